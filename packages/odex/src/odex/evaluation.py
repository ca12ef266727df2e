"""The command `evaluate`: stage matrix, Dice, backward and forward transfer, pool, time, Wilcoxon's test (specification 6)."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dart_core.cli import say
from dart_core.data.volumes import read_mask, read_volume
from dart_core.errors import InputError
from dart_core.evaluation import PREDICTIONS, Prediction, Result, read_predictions, score_folders
from dart_core.files import write_atomic, write_csv
from dart_core.metrics import backward_transfer, forward_transfer, wilcoxon_signed_rank
from dart_core.report import Report
from dart_core.run import METRICS, claim_folder, flat_settings
from odex import settings as of
from odex.figures import Case, stage_figure, states_figure, time_figure
from odex.learning import PACKAGE
from odex.tables import printed_table

SCORES, MATRICES = "scores.csv", "stage_matrices.csv"


@dataclass
class Course:
    """One method with one seed, through the stages."""

    method: str
    seed: Any
    stages: list[str] = field(default_factory=list)
    """Names, as far as the last state has learned them."""
    states: dict[int, dict[str, dict[str, float]]] = field(default_factory=dict)
    """After so many stages: test stage -> case -> Dice."""
    last: dict[str, Any] = field(default_factory=dict)
    """What predict said of the last state."""
    folders: dict[int, Path] = field(default_factory=dict)
    """Where the masks of each state are."""

    @property
    def final(self) -> int:
        """Stages that the last state has learned."""
        return max(self.states)

    def matrix(self) -> NDArray[np.float64]:
        """A[i, j]: mean Dice on stage j after stage i; nan where it was not predicted."""
        n = len(self.stages)
        found = np.full((n, n), np.nan)
        for after, state in self.states.items():
            for name, cases in state.items():
                if name in self.stages and after <= n:
                    found[after - 1, self.stages.index(name)] = np.mean(list(cases.values()))
        return found


def evaluate(command: of.Evaluate) -> None:
    """Score the predictions of methods, seeds and states."""
    courses = read_courses(command.predictions, command.measure)
    out = command.output.out
    claim_folder(out, flat_settings(command), overwrite=command.output.overwrite)
    rows = summarise(courses, command)
    write_csv(
        out / SCORES, ("method", "seed", "after", "stage", "case", "dice"),
        [(c.method, c.seed, after, stage, case, f"{value:.6f}")
         for c in courses for after, state in c.states.items() for stage, cases in state.items() for case, value in cases.items()],
    )  # fmt: skip
    matrices = mean_matrices(courses)
    write_csv(
        out / MATRICES, ("method", "after", *_stages(courses)),
        [(method, i + 1, *(f"{v:.6f}" for v in line)) for method, matrix in matrices.items() for i, line in enumerate(matrix)],
    )  # fmt: skip
    write_atomic(out / METRICS, json.dumps({"summary": rows}, indent=2) + "\n")
    report = Report("Evaluation", ", ".join(dict.fromkeys(c.method for c in courses)), package=PACKAGE)
    sections(report, courses, rows, spread=command.spread)
    report.section("Settings")
    report.settings(command)
    report.write(out / "report.html")
    for row in rows:
        print(summary_line(row))
    say(f"report: {out / 'report.html'}")


def read_courses(folders: Sequence[Path], measure: Literal["dice", "patch_dice"] = "dice") -> list[Course]:
    """Predictions by method and seed, scored on whole images, or as `predict --patch-dice` did.

    Raises:
        InputError: a folder without predictions or of something else, two of the same method, seed and state, or a case without mask.
    """
    courses: dict[tuple[str, str], Course] = {}
    for folder in folders:
        said = _said(folder)
        course = courses.setdefault((said["method"], str(said["seed"])), Course(said["method"], said["seed"]))
        if said["after"] in course.states:
            raise InputError(
                f"a second folder of {said['method']} after stage {said['after']} (seed {said['seed']})", where=folder,
                remedy="give each state once; learn repetitions with another --seed",
            )  # fmt: skip
        if measure == "dice":
            state = _by_stage(score_folders([folder], command="odex", tolerance=1.0))
        else:
            state = _patch_dice(folder)
        course.states[said["after"]], course.folders[said["after"]] = state, folder
        if not course.last or said["after"] > course.last["after"]:
            course.last, course.stages = said, list(said["stages"])
    for course in courses.values():
        missing = [name for name in course.stages if all(name not in state for state in course.states.values())]
        if missing and len(course.stages) > 1:
            say(f"note: {course.method}: no prediction of stage {', '.join(missing)}; it has no BWT and no FWT")
        # `joint` learns everything at once, under one name; its stages are those that it was tested on.
        if len(course.stages) == 1:
            course.stages = list(course.states[1])
    return list(courses.values())


def _said(folder: Path) -> dict[str, Any]:
    file = folder / METRICS
    try:
        said: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if missing := {"method", "after", "stages", "seed", "networks", "bytes", "seconds"} - said.keys():
            raise ValueError(f"no {min(missing)}")
    except OSError as error:
        raise InputError(
            f"cannot be read ({error.strerror})", where=file, remedy="give folders that `odex predict` wrote"
        ) from error
    except (ValueError, AttributeError) as error:
        raise InputError(f"is damaged ({error})", where=file, remedy="run `odex predict` again") from error
    return said


def _by_stage(results: Sequence[Result]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for result, name in zip(results, _case_names(results), strict=True):
        found.setdefault(result.pair[1], {})[name] = result.dice
    return found


def _case_names(listed: Sequence[Result | Prediction]) -> list[str]:
    """A name for each case, the same in every state: that of its file, where this is not enough its path, of frames both names."""
    stages = [one.pair[1] for one in listed]
    names = [one.image.name for one in listed]
    paths = [one.image.as_posix() for one in listed]
    for finer in (paths, [f"{path} ({one.prediction.name})" for path, one in zip(paths, listed, strict=True)]):
        counts = Counter(zip(stages, names, strict=True))
        names = [f if counts[s, n] > 1 else n for s, n, f in zip(stages, names, finer, strict=True)]
    return names


def _patch_dice(folder: Path) -> dict[str, dict[str, float]]:
    """The column patch_dice; cases that were never drawn are missing, as in the authors' numbers."""
    listed = read_predictions(folder, "odex")
    with (folder / PREDICTIONS).open(newline="", encoding="utf-8") as file:
        values = [row.get("patch_dice") for row in csv.DictReader(file)]
    found: dict[str, dict[str, float]] = {}
    for prediction, name, value in zip(listed, _case_names(listed), values, strict=True):
        try:
            if value:
                found.setdefault(prediction.pair[1], {})[name] = float(value)
        except ValueError:
            raise InputError(
                f"patch_dice is {value!r}", where=prediction.where, remedy="run `odex predict` again"
            ) from None
    if not found:
        raise InputError("has no Dice of patches", where=folder, remedy="run `odex predict` with --patch-dice 100")
    return found


# --- Numbers ---------------------------------------------------------------------------------------------------------


def summarise(courses: Sequence[Course], command: of.Evaluate) -> list[dict[str, Any]]:
    """One row per method: means over its seeds."""
    methods = list(dict.fromkeys(course.method for course in courses))
    rows = []
    for method in methods:
        own = [course for course in courses if course.method == method]
        each = [_numbers(course, command) for course in own]
        row: dict[str, Any] = {"method": method, "seeds": len(own)}
        for key in each[0]:
            values = [value for numbers in each if (value := numbers[key]) is not None]
            row[key] = float(np.mean(values)) if values else None
            if key == "dice":
                row["dice_over_seeds_std"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
        row |= _compared(courses, method, command.reference)
        rows.append(row)
    return rows


def _numbers(course: Course, command: of.Evaluate) -> dict[str, float | None]:
    final = course.states[course.final]
    means = [float(np.mean(list(cases.values()))) for cases in final.values()]
    pooled = [value for cases in final.values() for value in cases.values()]
    numbers: dict[str, float | None] = {
        "dice": float(np.mean(means)),
        "dice_std": float(np.std(means if command.spread == "stages" else pooled)),
        "bwt": None, "bwt_std": None, "fwt": None, "fwt_std": None,
        "networks": float(course.last["networks"]), "megabytes": course.last["bytes"] / 1e6,
        "seconds": float(sum(course.last["seconds"])),
    }  # fmt: skip
    matrix = course.matrix()
    lower = matrix[np.tril_indices(len(matrix))]
    if len(matrix) > 1 and np.isfinite(lower).all():
        numbers["bwt"], numbers["bwt_std"] = backward_transfer(matrix, command.backward)
    if len(matrix) > 1 and np.isfinite([*np.diag(matrix)[1:], *np.diag(matrix, 1)]).all():
        numbers["fwt"], numbers["fwt_std"] = forward_transfer(matrix)
    return numbers


def _compared(courses: Sequence[Course], method: str, reference: str) -> dict[str, float | None]:
    """Wilcoxon's one-sided signed-rank test, case by case in the final state: is the reference better?"""
    ours = {
        (str(c.seed), s, k): v
        for c in courses
        if c.method == reference
        for s, cs in c.states[c.final].items()
        for k, v in cs.items()
    }
    theirs = {
        (str(c.seed), s, k): v
        for c in courses
        if c.method == method
        for s, cs in c.states[c.final].items()
        for k, v in cs.items()
    }
    # Repetitions of one case are not independent: their mean stands for them.
    both: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for key in ours.keys() & theirs.keys():
        both.setdefault(key[1:], []).append((ours[key], theirs[key]))
    if method == reference or len(both) < 2:
        return {"p_wilcoxon": None, "better_by": None, "pairs": None}
    pairs = np.array([np.mean(values, axis=0) for values in both.values()])
    _, p = wilcoxon_signed_rank(pairs[:, 0], pairs[:, 1], "greater")
    return {"p_wilcoxon": p, "better_by": float(np.mean(pairs[:, 0] - pairs[:, 1])), "pairs": float(len(pairs))}


def mean_matrices(courses: Sequence[Course]) -> dict[str, NDArray[np.float64]]:
    """The stage matrix of each method, mean over its seeds; methods that have a state after every stage."""
    found: dict[str, list[NDArray[np.float64]]] = {}
    stages = _stages(courses)
    for course in courses:
        if course.stages == stages and len(course.states) > 1:
            found.setdefault(course.method, []).append(course.matrix())
    return {method: np.mean(matrices, axis=0) for method, matrices in found.items()}


def single_states(courses: Sequence[Course]) -> dict[str, NDArray[np.float64]]:
    """Mean Dice on each stage of the methods with one state only, which learned all stages at once (Joint)."""
    stages = _stages(courses)
    found: dict[str, list[NDArray[np.float64]]] = {}
    for course in courses:
        if len(course.states) == 1 and course.stages == stages and len(course.last["stages"]) == 1:
            found.setdefault(course.method, []).append(course.matrix()[0])
    return {method: np.mean(rows, axis=0) for method, rows in found.items()}


def _stages(courses: Sequence[Course]) -> list[str]:
    return max((course.stages for course in courses), key=lambda names: (len(names), names))


# --- What is shown ---------------------------------------------------------------------------------------------------


def summary_line(row: Mapping[str, Any]) -> str:
    """One line for the terminal."""
    parts = [f"{row['method']:<10} Dice {row['dice']:.3f} ± {row['dice_std']:.3f}"]
    for key in ("bwt", "fwt"):
        if row[key] is not None:
            parts.append(f"{key.upper()} {row[key]:+.3f} ± {row[f'{key}_std']:.3f}")
    parts.append(f"{row['networks']:g} networks, {row['megabytes']:.1f} MB, {row['seconds']:.0f} s")
    if row["p_wilcoxon"] is not None:
        parts.append(f"p {row['p_wilcoxon']:.2g}")
    return "  ".join(parts)


def sections(
    report: Report,
    courses: Sequence[Course],
    rows: Sequence[Mapping[str, Any]],
    printed: bool = True,
    spread: Literal["stages", "cases"] = "stages",
) -> None:
    """Tables and pictures of an evaluation."""
    report.section("Dice, forgetting, learning")
    report.text(
        "Dice: mean over the test images of all stages with the last state. BWT (backward transfer): how much worse, when negative,"
        " a stage's test images are segmented after later stages. FWT (forward transfer): how much a stage's own training has"
        " gained on its test images. p: Wilcoxon's one-sided signed-rank test that the reference method is better, case by case."
    )

    def with_spread(row: Mapping[str, Any], key: str) -> str | None:
        return None if row[key] is None else f"{row[key]:.3f} ± {row[f'{key}_std']:.3f}"

    report.table(
        ("method", "seeds", "Dice", "BWT", "FWT", "networks", "MB", "seconds", "p"),
        [
            (row["method"], row["seeds"], with_spread(row, "dice"), with_spread(row, "bwt"), with_spread(row, "fwt"), row["networks"],
             row["megabytes"], row["seconds"], row["p_wilcoxon"])
            for row in rows
        ],
        f"Means over seeds; ±: standard deviation over the {spread} (BWT and FWT: over the stages)",
    )  # fmt: skip
    matrices, stages = mean_matrices(courses), _stages(courses)
    if matrices:
        report.section("Stage by stage")
        report.picture(
            stage_figure(matrices, stages, single_states(courses)), "Dice on the test images of each stage (panel) while the stages"
            " are learned one after the other; the dotted line marks when the stage itself is learned (Fig. 3, left, of the paper)",
            "curves of the Dice of every method, one panel per stage",
        )  # fmt: skip
        for method, matrix in matrices.items():
            report.table(
                ("learned up to", *stages),
                [(name, *map(float, line)) for name, line in zip(stages, matrix, strict=True)],
                f"{method}: Dice on the test images of each stage (columns) after each training (rows)",
            )
    rows_of_cases = states(courses)
    if rows_of_cases:
        report.section("One image through the stages")
        report.picture(
            states_figure(*rows_of_cases), f"A test image of {stages[0]}. First row: the true outline alone, then"
            f" {rows_of_cases[0][0]} after each stage; second row: every method after the last stage. Green: true, red: predicted"
            " (Fig. 4 of the paper)",
            "slices of one image with outlines",
        )  # fmt: skip
    seconds = {
        course.method if course.seed is None else f"{course.method}, seed {course.seed}": course.last["seconds"]
        for course in courses
    }
    report.section("Time")
    report.picture(
        time_figure(seconds), "Training time, stage upon stage (Fig. 3, right, of the paper)", "bars by method"
    )
    if printed:
        report.section("The paper")
        for name, caption in (("table1", "Table 1"), ("table2", "Table 2")):
            columns, lines = printed_rows(name)
            report.table(columns, lines, f"{caption} as printed, on HarP, Dryad and Decathlon")


def states(courses: Sequence[Course]) -> tuple[tuple[str, list[Case]], tuple[str, list[Case]]] | None:
    """One image of the first stage: by one method (Seq. where it is there) after each stage, and by all methods after the last.

    Returns:
        (label, cases) of both rows; None where no such image was segmented.
    """
    stages = _stages(courses)
    firsts = list({course.method: course for course in reversed(courses)}.values())[::-1]
    shown = next((course for course in firsts if course.method == of.NAMES["sequential"]), firsts[0])
    listed = [p for p in read_predictions(shown.folders[shown.final], "odex") if p.pair[1] == stages[0]]
    if not listed:
        return None
    chosen = listed[0]
    volume = read_volume(chosen.image, frame=chosen.frame)
    assert chosen.mask is not None  # it was scored
    truth = read_mask(chosen.mask, volume, frame=chosen.frame)

    def case(course: Course, after: int, title: str) -> Case | None:
        found = (p for p in read_predictions(course.folders[after], "odex") if _same(p, chosen))
        prediction = next(found, None)
        if prediction is None:
            return None
        return title, volume.array.T, read_mask(prediction.prediction, volume).T, truth.T

    first = [case(shown, after, f"after stage {after}") for after in sorted(shown.states)]
    second = [case(course, course.final, course.method) for course in firsts]
    alone: Case = ("truth", volume.array.T, np.zeros_like(truth.T), truth.T)
    return (shown.method, [alone, *filter(None, first)]), ("after all stages", [*filter(None, second)])


def _same(one: Prediction, other: Prediction) -> bool:
    return (one.image, one.frame, one.pair[1]) == (other.image, other.frame, other.pair[1])


def printed_rows(name: str) -> tuple[list[str], list[list[Any]]]:
    """A printed table ready to show."""
    lines = []
    table = printed_table(name)
    for row in table:
        line: list[Any] = [row["method"]]
        for scenario in ("shifting_source", "transformed"):
            for measure in ("dice", "bwt", "fwt"):
                mean, std = row[f"{scenario}_{measure}_mean"], row[f"{scenario}_{measure}_std"]
                line.append("" if mean == "" else f"{mean:.2f} ± {std:.2f}")
            if f"{scenario}_n_models" in row:
                line.append(row[f"{scenario}_n_models"])
        lines.append(line)
    extra = ["networks"] if "shifting_source_n_models" in table[0] else []
    columns = [f"{scenario}: {m}" for scenario in ("shifting", "transformed") for m in ("Dice", "BWT", "FWT", *extra)]
    return ["method", *columns], lines
