"""Stage matrices, transfer and tables from known scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dart_core.evaluation import Prediction
from dart_core.metrics import backward_transfer, forward_transfer
from dart_core.settings import OutputSettings
from odex.evaluation import Course, _case_names, mean_matrices, printed_rows, single_states, summarise
from odex.settings import Evaluate

STAGES = ["a", "b", "c"]
A = np.array([[0.8, 0.5, 0.2], [0.7, 0.9, 0.4], [0.4, 0.6, 0.8]])


def course(method: str, matrix: np.ndarray, seed: int = 0, learned: list[str] | None = None) -> Course:
    """Two cases per stage, a little above and below the mean."""
    found = Course(method, seed, list(STAGES))
    for i, line in enumerate(matrix):
        found.states[i + 1] = {s: {"1": v - 0.01 * j, "2": v + 0.01 * j} for j, (s, v) in enumerate(zip(STAGES, line, strict=True))}  # fmt: skip
    found.last = {"networks": 2, "bytes": 3e6, "seconds": [1.0, 2.0, 3.0], "stages": learned or STAGES}
    return found


def evaluate(**options: object) -> Evaluate:
    return Evaluate(OutputSettings(Path("out")), (), **options)  # type: ignore[arg-type]


def test_numbers_by_hand():
    (row,) = summarise([course("Seq.", A)], evaluate())
    assert row["dice"] == pytest.approx(0.6)
    assert row["dice_std"] == pytest.approx(np.std([0.4, 0.6, 0.8]))
    backward = [(0.7 - 0.8 + 0.4 - 0.8) / 2, 0.6 - 0.9]
    assert (row["bwt"], row["bwt_std"]) == (pytest.approx(np.mean(backward)), pytest.approx(np.std(backward)))
    forward = [0.9 - 0.5, 0.8 - 0.4]
    assert (row["fwt"], row["fwt_std"]) == (pytest.approx(np.mean(forward)), pytest.approx(np.std(forward)))
    assert row["megabytes"] == 3
    assert row["seconds"] == 6
    (final,) = summarise([course("Seq.", A)], evaluate(backward="final", spread="cases"))
    assert final["bwt"] == pytest.approx(np.mean([0.4 - 0.8, 0.6 - 0.9]))
    assert final["dice_std"] == pytest.approx(np.std([0.4, 0.4, 0.59, 0.61, 0.78, 0.82]))


def test_seeds_are_averaged():
    courses = [course("ODEx", A, 0), course("ODEx", A + 0.1, 1), course("Seq.", A - 0.1, 0), course("Seq.", A - 0.2, 1)]
    rows = {row["method"]: row for row in summarise(courses, evaluate())}
    assert rows["ODEx"]["seeds"] == 2
    assert rows["ODEx"]["dice"] == pytest.approx(0.65)
    assert rows["ODEx"]["dice_over_seeds_std"] == pytest.approx(np.std([0.6, 0.7], ddof=1))
    assert rows["ODEx"]["p_wilcoxon"] is None
    assert rows["Seq."]["better_by"] == pytest.approx(0.2)
    assert rows["Seq."]["pairs"] == 6  # cases, not cases and seeds
    assert rows["Seq."]["p_wilcoxon"] == pytest.approx(1 / 2**6)
    np.testing.assert_allclose(mean_matrices(courses)["ODEx"], A + 0.05)


def test_joint_has_neither_backward_nor_forward_transfer():
    joint = course("Joint", np.array([[0.9, 0.8, 0.7]]), learned=["a+b+c"])
    rows = {row["method"]: row for row in summarise([joint, course("Seq.", A)], evaluate())}
    assert rows["Joint"]["dice"] == pytest.approx(0.8)
    assert [rows["Joint"][key] for key in ("bwt", "bwt_std", "fwt", "fwt_std")] == [None] * 4
    assert rows["Seq."]["bwt"] is not None
    assert set(mean_matrices([joint, course("Seq.", A)])) == {"Seq."}
    np.testing.assert_allclose(single_states([joint, course("Seq.", A)])["Joint"], [0.9, 0.8, 0.7])


def test_states_without_the_next_stages_have_no_forward_transfer():
    found = course("Seq.", A)
    for i, state in found.states.items():
        found.states[i] = {stage: cases for stage, cases in state.items() if STAGES.index(stage) < i}
    (row,) = summarise([found], evaluate())
    assert row["fwt"] is None
    assert row["bwt"] == pytest.approx(backward_transfer(A)[0])


def test_an_untouched_pool_forgets_nothing():
    matrix = np.array([[0.8, 0.1, 0.1], [0.8, 0.9, 0.1], [0.8, 0.9, 0.7]])
    (row,) = summarise([course("ODEx", matrix)], evaluate())
    assert row["bwt"] == pytest.approx(0)
    assert row["fwt"] == pytest.approx(forward_transfer(matrix)[0])


def test_the_printed_tables():
    columns, lines = printed_rows("table1")
    assert len(columns) == 7
    assert [line[0] for line in lines[:2]] == ["Joint", "Seq."]
    joint = next(line for line in lines if line[0] == "Joint")
    assert joint[2] == joint[3] == ""  # no transfer


def test_cases_of_one_file_name_are_told_apart():
    def listed(path: str, mask: str) -> Prediction:
        return Prediction(Path(path), None, Path(mask), "s", ("a", "b"), "m", None, None, "")

    found = _case_names(
        [listed("1/t1.nii", "1"), listed("2/t1.nii", "2"), listed("3/t2.nii", "3"), listed("3/t2.nii", "4")]
    )
    assert found == ["1/t1.nii", "2/t1.nii", "3/t2.nii (3)", "3/t2.nii (4)"]
