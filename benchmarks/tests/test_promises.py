"""The speed page: which record counts, what holds, what is missing."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SPEED = Path(__file__).parents[1] / "speed"


@pytest.fixture(autouse=True, scope="module")
def scripts() -> Iterator[None]:
    """Scripts find each other as they do when they are run."""
    sys.path.insert(0, str(SPEED))
    yield
    sys.path.remove(str(SPEED))


def write(folder: Path, ratio: float, date: str, hardware: str = "here") -> None:
    content = {
        "task": "sissi-fusion", "date": date, "hardware": hardware, "rounds": {},
        "times_as_fast": {"ours": {"ratio": ratio}},
    }  # fmt: skip
    (folder / f"sissi-fusion_{hardware}_{date}.json").write_text(json.dumps(content))


def test_the_newest_record_of_each_hardware_counts(tmp_path: Path) -> None:
    import promises as of

    write(tmp_path, 70, "2026-01-02")
    write(tmp_path, 5, "2026-01-10")
    write(tmp_path, 30, "2026-01-01", "there")
    rows = {(row[0], row[5]): row for row in of.rows_of(of.newest(tmp_path)) if row[3] is not None}
    assert rows == {
        ("sissi", "here"): ("sissi", rows["sissi", "here"][1], "≥ 10", 5.0, "NO", "here", "2026-01-10"),
        ("sissi", "there"): ("sissi", rows["sissi", "there"][1], "≥ 10", 30.0, "yes", "there", "2026-01-01"),
    }
    assert {row[4] for row in of.rows_of(of.newest(tmp_path)) if row[3] is None} == {"not measured", "needs a GPU"}
    text = of.write(tmp_path).read_text(encoding="utf-8")
    assert "1 of " in text
    assert "1 do not" in text


def test_the_same_machine_without_its_capability_is_marked(tmp_path: Path) -> None:
    import promises as of

    names = ["AMD EPYC, 2 cores", "AMD EPYC AVX512, 2 cores", "Xeon, 2 cores", "AMD EPYC AVX2, 2 cores, H200"]
    for name in names:
        write(tmp_path, 70, "2026-01-02", name)
    shown = {row[5] for row in of.rows_of(of.newest(tmp_path)) if row[3] is not None}
    assert shown == {names[0] + " (capability not recorded)", *names[1:]}


def test_the_variant_that_counts_is_named() -> None:
    import promises as of

    record = {"date": "", "times_as_fast": {"ours, 1": {"ratio": 1}, "ours, 2": {"ratio": 40}, "NumPy": {"ratio": 50}}}
    (row,) = [row for row in of.rows_of({("genesis", "here"): record}) if row[3] is not None]
    assert row[1].endswith("NumPy (ours, 2)")
    assert row[3] == 40


def test_every_promise_reads_the_committed_records() -> None:
    import promises as of

    records = of.newest(SPEED.parent / "results")
    rows = of.rows_of(records)
    assert [row for row in rows if row[4] == "not measured"] == []
    assert {task for task, _ in records} >= {promise.task for promise in of.PROMISES if not promise.needs_gpu}


def test_growth_is_drawn(tmp_path: Path) -> None:
    import promises as of

    series = {
        "title": "fusion",
        "unit": "boxes",
        "seconds": {"ours": {"10": 0.1, "20": 0.2}, "theirs": {"10": 1, "20": 2}},
    }
    record = {"task": "growth", "date": "2026-01-01", "hardware": "here", "series": [series]}
    (tmp_path / "growth_here_2026-01-01.json").write_text(json.dumps(record))
    text = of.write(tmp_path).read_text(encoding="utf-8")
    assert "Growth of cost: here" in text
    assert "data:image/svg+xml" in text
