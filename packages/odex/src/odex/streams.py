"""The two streams of the paper (specification 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from dart_core.errors import InputError

if TYPE_CHECKING:
    from _typeshed import SupportsRichComparison

Item = TypeVar("Item", bound="SupportsRichComparison")

COMPOSITION = ((58, 0, 0), (44, 8, 6), (24, 9, 25), (9, 8, 41), (0, 0, 58))
"""Cases of each source (HarP, Dryad, Decathlon, in this order) in the five stages. The paper's own table is in a supplement that is not available; the sums are its
135, 25 and 130."""


def smooth_stream(
    sources: Mapping[str, Sequence[Item]], composition: Sequence[Sequence[int]] = COMPOSITION
) -> list[list[Item]]:
    """Mix sources in proportions that shift from stage to stage.

    Args:
        sources: cases of each source, in any order; they are sorted and then taken in order, each once.
        composition: for each stage, how many cases of each source.

    Returns:
        the cases of each stage, source by source.

    Raises:
        ValueError: a source with fewer cases than the composition asks for, another number of sources, or an empty stage.
    """
    taken = dict.fromkeys(sources, 0)
    ordered = {name: sorted(cases) for name, cases in sources.items()}
    stages: list[list[Item]] = []
    for number, counts in enumerate(composition, 1):
        if len(counts) != len(sources) or min(counts) < 0 or not sum(counts):
            raise InputError(
                f"stage {number} has the counts {tuple(counts)} for the {len(sources)} sources {', '.join(sources)}",
                remedy="give one number for each source, not all 0",
            )
        stage: list[Item] = []
        for (name, cases), count in zip(ordered.items(), counts, strict=True):
            first = taken[name]
            if first + count > len(cases):
                raise InputError(
                    f"source {name} has {len(cases)} cases, stage {number} needs {first + count} of them by then",
                    remedy="give more cases, or another composition",
                )
            stage += cases[first : first + count]
            taken[name] = first + count
        stages.append(stage)
    return stages
