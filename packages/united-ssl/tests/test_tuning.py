from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dart_core.errors import InputError
from united_ssl.tuning import foreground_classes


class Cubes(SimpleNamespace):
    def __len__(self) -> int:
        return len(self.masks)


def cubes(*labels: int) -> Any:
    """Two cubes whose masks hold these labels."""
    masks = np.zeros((2, 4, 4, 4), np.uint8)
    masks[:, 0, 0, : len(labels)] = labels
    return Cubes(source=Path("cubes"), mask=lambda i: masks[i], masks=masks)


def test_classes_without_gaps_are_counted() -> None:
    assert foreground_classes({"train": cubes(0, 1), "val": cubes(3, 2)}) == 3
    assert foreground_classes({"train": cubes(1)}) == 1


@pytest.mark.parametrize("labels", [(1, 2, 4), (255,), (2,)])
def test_gaps_are_refused(labels: tuple[int, ...]) -> None:
    """A class of no voxel would count as found wherever it is not predicted."""
    with pytest.raises(InputError, match=f"labels {', '.join(map(str, labels))}.*without gaps"):
        foreground_classes({"train": cubes(*labels)})
    with pytest.raises(InputError, match="all masks are empty"):
        foreground_classes({"train": cubes(0)})
