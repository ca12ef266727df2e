"""From a datalist to batches: splits, cells, folds, whole epochs."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dart_core.data.datalist import Datalist
from dart_core.errors import DartError
from skintone_debias.cases import EpochBatches, case_batches, nuisance_of, ordered, read_cases, take_fold
from skintone_debias.settings import CaseSettings

Write = Callable[..., CaseSettings]
COLUMNS = ("image", "subject", "site", "split", "label", "fitzpatrick")


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A datalist of rows (subject, site, split, label, fitzpatrick) with a small picture each."""

    def run(rows: Sequence[Sequence[str]], columns: Sequence[str] = COLUMNS, **settings: object) -> CaseSettings:
        with open(tmp_path / "list.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            for i, row in enumerate(rows):
                Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i}.png")
                writer.writerow([f"{i}.png", *row])
        return CaseSettings(tmp_path / "list.csv", **settings)  # type: ignore[arg-type]

    return run


ROWS = [
    ("a", "A", "train", "1", "2"), ("b", "A", "train", "0", "1"), ("c", "B", "train", "0", "2.0"), ("d", "A", "train", "1", "-1"),
    ("e", "A", "train", "0", ""), ("f", "B", "val", "1", "6"), ("g", "A", "test", "", "4"),
]  # fmt: skip


def read(settings: CaseSettings, unlearn: bool = True):
    return read_cases(Datalist.read(settings.datalist), settings, unlearn)


def test_training_pictures_are_those_whose_type_is_known(write):
    parts, left_out = read(write(ROWS))
    assert left_out == 2
    train, val = parts["train"], parts["val"]
    assert [row.subject for row in train.rows] == ["a", "b", "c"]
    assert train.labels.tolist() == [1, 0, 0]
    assert train.values == {"fitzpatrick": ["1", "2"]}
    assert train.nuisance.tolist() == [[1], [0], [1]]
    assert train.counts("fitzpatrick").tolist() == [1, 2]
    assert [row.subject for row in val.rows] == ["f"]
    assert val.nuisance.tolist() == [[-1]]  # type 6 is unknown to the heads, and nothing is asked of it


def test_none_is_a_value_and_a_gap_is_not(write):
    rows = [("a", "A", "train", "1", "none"), ("b", "A", "train", "0", "some"), ("c", "A", "train", "0", "nan")]
    settings = write(rows, (*COLUMNS[:-1], "hair"), nuisance=("hair",))
    parts, left_out = read(settings)
    assert parts["train"].values == {"hair": ["none", "some"]}
    assert left_out == 1
    assert [nuisance_of(row, "hair") for row in Datalist.read(settings.datalist)] == ["none", "some", None]


def test_sites_narrow_the_training(write):
    settings = write([*ROWS, ("h", "B", "train", "1", "3")], sites=("B",))
    parts, _ = read(settings)
    assert {row.site for row in parts["train"].rows} == {"B"}


def test_a_measure_is_no_nuisance(write):
    """An angle would give the head an output per picture."""

    def settings(values, count):
        rows = [(f"s{i}", "A", "train", str(i % 2), str(values[i % len(values)])) for i in range(count)]
        return write(rows, (*COLUMNS[:-1], "ita"), nuisance=("ita",))

    angles = [30 + i / 8 for i in range(51)]
    for few, count in ((angles[:6], 6), (angles[:7], 14), (angles[:50], 100)):
        assert len(read(settings(few, count))[0]["train"].values["ita"]) == len(few)
    message = (
        r"list\.csv, column ita: has {} values in {} training pictures; .*; name a column with few values: --nuisance"
    )
    for many, count in ((angles[:7], 13), (angles[:51], 200)):
        with pytest.raises(DartError, match=message.format(len(many), count)):
            read(settings(many, count))
        assert len(read(settings(many, count), unlearn=False)[0]["train"]) == count


def test_a_baseline_needs_no_nuisance(write):
    settings = write([("a", "A", "train", "1"), ("b", "A", "train", "0")], COLUMNS[:-1])
    parts, left_out = read(settings, unlearn=False)
    assert len(parts["train"]) == 2
    assert left_out == 0
    with pytest.raises(DartError, match="has no column 'fitzpatrick'"):
        read(settings)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([("a", "A", "train", "2", "1")], r"row 2, column label: '2' is no label"),
        ([("a", "A", "train", "", "1")], r"there is no label; give 1 for malignant"),
        ([("a", "A", "train", "1", "7")], r"row 2, column fitzpatrick: '7' is no Fitzpatrick type"),
        ([("a", "A", "train", "1", "dark")], r"'dark' is no Fitzpatrick type"),
        ([("a", "A", "test", "1", "1")], r"holds no training picture; write train"),
        ([("a", "A", "train", "1", "-1")], r"holds no training picture; 1 lack the nuisance"),
        ([("a", "A", "train", "1", "1"), ("b", "A", "train", "1", "2")], r"no training picture is benign"),
        ([("a", "A", "train", "1", "1"), ("b", "A", "train", "0", "1")], r"nothing to unlearn"),
    ],
)
def test_bad_cells_are_named(write, rows, words):
    if "label" in words and "benign" not in words:
        rows = [*rows, ("z", "A", "train", "0", "2")]
    with pytest.raises(DartError, match=words):
        read(write(rows))


def test_a_missing_file_is_named(write):
    settings = write(ROWS)
    (settings.datalist.parent / "1.png").unlink()
    with pytest.raises(DartError, match=r"row 3, column image: .*1\.png is not there"):
        read(settings)


def test_numbers_are_ordered_by_size():
    assert ordered(["10", "9", "x", "-2", "9"]) == ["-2", "9", "10", "x"]


# --- Folds -----------------------------------------------------------------------------------------------------------


def many(write: Write, extra: Callable[[int], tuple[str, ...]] = lambda i: ()):
    columns = (*COLUMNS, *(("fold",) if extra(0) else ()))
    rows = [(f"s{i // 2}", "A", "train", str(i // 2 % 2), str(1 + i % 2), *extra(i)) for i in range(40)]
    return read(write(rows, columns))[0]["train"]


def test_folds_part_the_pictures_by_subject(write):
    cases = many(write)
    seen: list[str] = []
    for fold in range(5):
        train, val = take_fold(cases, fold, 5, seed=1)
        assert len(train) + len(val) == len(cases)
        assert not {row.subject for row in train.rows} & {row.subject for row in val.rows}
        assert 0 < val.labels.mean() < 1
        seen += [row.image.name for row in val.rows]
    assert sorted(seen) == sorted(row.image.name for row in cases.rows)
    again = take_fold(cases, 4, 5, seed=1)[1]
    assert [row.image for row in again.rows] == [row.image for row in val.rows]


def test_a_column_fold_is_kept(write):
    cases = many(write, lambda i: (str(i // 2 % 3),))
    _, val = take_fold(cases, 2, 5, seed=0)
    assert {row.labels["fold"] for row in val.rows} == {"2"}
    with pytest.raises(DartError, match="the datalist's column fold has 0, 1, 2"):
        take_fold(cases, 4, 5, seed=0)


def test_impossible_folds_are_refused(write):
    cases = many(write)
    with pytest.raises(DartError, match="give 0 to 4"):
        take_fold(cases, 5, 5, 0)
    with pytest.raises(DartError, match="20 subjects"):
        take_fold(cases, 0, 30, 0)


# --- Batches ---------------------------------------------------------------------------------------------------------


def test_epochs_drop_what_fills_no_batch():
    batches = EpochBatches(lambda i, rng: {"i": i}, size=11, batch_size=4, seed=0)
    assert batches.per_epoch == 2
    epochs = []
    for epoch in range(3):
        plan = [pair for step in (2 * epoch, 2 * epoch + 1) for pair in batches.plan(step)]
        assert {e for e, _ in plan} == {epoch}
        samples = [sample for _, sample in plan]
        assert len(set(samples)) == 8
        epochs.append(samples)
    assert epochs[0] != epochs[1]
    assert len({sample for samples in epochs for sample in samples}) > 8


def test_batches_hold_pictures_as_they_are(write):
    cases = many(write)
    batches = case_batches(cases, ["fitzpatrick", "fitzpatrick"], 8, False, 6, seed=0)
    batch = batches.batch(0)
    assert batch["image"].shape == (6, 3, 8, 8)
    places = [sample for _, sample in batches.plan(0)]
    assert batch["image"][:, 0, 0, 0].tolist() == [int(cases.rows[i].image.stem) for i in places]
    assert batch["label"].tolist() == cases.labels[places].tolist()
    assert np.array_equal(batch["nuisance"].numpy(), np.repeat(cases.nuisance[places], 2, axis=1))
    with pytest.raises(DartError, match="give --batch-size 40 or fewer"):
        case_batches(cases, [], 8, False, 64, seed=0)
