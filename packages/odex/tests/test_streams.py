"""The streams of the paper."""

from __future__ import annotations

import pytest

from odex import smooth_stream
from odex.streams import COMPOSITION


def test_shifting_source():
    sources = {"HarP": [f"h{i:03d}" for i in reversed(range(135))], "Dryad": [f"d{i:03d}" for i in range(25)],
               "Decathlon": [f"c{i:03d}" for i in range(130)]}  # fmt: skip
    stages = smooth_stream(sources)
    assert [len(stage) for stage in stages] == [58, 58, 58, 58, 58]
    assert stages[0] == [f"h{i:03d}" for i in range(58)]
    assert stages[1][44:] == [f"d{i:03d}" for i in range(8)] + [f"c{i:03d}" for i in range(6)]
    flat = [case for stage in stages for case in stage]
    assert len(set(flat)) == len(flat) == 290
    assert [sum(column) for column in zip(*COMPOSITION, strict=True)] == [135, 25, 130]


def test_own_composition():
    assert smooth_stream({"a": [3, 1, 2], "b": [5]}, [(2, 0), (1, 1)]) == [[1, 2], [3, 5]]
    with pytest.raises(ValueError, match="source a has 3 cases, stage 2 needs 4"):
        smooth_stream({"a": [1, 2, 3]}, [(2,), (2,)])
    with pytest.raises(ValueError, match="stage 1 has the counts"):
        smooth_stream({"a": [1], "b": [2]}, [(1,)])
