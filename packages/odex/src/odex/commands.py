"""The commands `check-data` and `pool`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

from dart_core.data.datalist import Datalist, Row, check
from dart_core.errors import DartError
from odex import settings as of
from odex.cases import LEAST_FILLED, Stage, check_foreground, read_case, read_stage, scan_of, stage_cases
from odex.learning import NETWORK_COLUMNS, STAGE_COLUMNS, pool_rows
from odex.store import read_pool

Size: TypeAlias = tuple[str, tuple[int, ...]]
"""File name, and voxels (z, y, x)."""


def check_data(command: of.CheckData) -> int:
    """Print every problem of every stage, and how many cases there are; 2 if there is a problem."""
    total = 0
    for path in command.stage:
        stage = read_stage(path)
        sizes: list[Size] = []
        trained = set(map(scan_of, stage.rows["train"]))

        def open_row(
            row: Row, stage: Stage = stage, sizes: list[Size] = sizes, trained: set[Any] = trained
        ) -> Iterator[tuple[str, DartError]]:
            try:
                raw = read_case(row, command.data, stage.labels, need_mask=row.split != "test")
                sizes.append((row.image.name, raw.inside.shape))
                if scan_of(row) in trained:
                    check_foreground(row, raw.known_labels)
            except DartError as error:
                yield "image", error

        rows = tuple({scan_of(row): row for split in stage.rows.values() for row in split}.values())
        problems = check(Datalist(rows, stage.source), open_row)
        for problem in problems:
            print(problem)
        if len(stage.rows["train"]) < 2:
            print(f"{stage.source}: stage {stage.name} has {len(stage.rows['train'])} training case; gather at least 2")
            total += 1
        total += len(problems)
        print(f"stage {stage.name}: {stage_cases(stage)}")
        for name, shape in sizes:
            largest = [max(size[axis] for _, size in sizes) for axis in range(3)]
            if any(side < LEAST_FILLED * most for side, most in zip(shape, largest, strict=True)):
                print(f"note: {name} has {' x '.join(map(str, shape))} voxels (z, y, x), others up to "
                      f"{' x '.join(map(str, largest))}: it may fill less than half of the planned patch")  # fmt: skip
    print(f"{len(command.stage)} stages: {total or 'no'} problem{'s' * (total != 1)}")
    return 2 if total else 0


def show_pool(command: of.ShowPool) -> None:
    """Print networks, sizes and decisions."""
    pool = read_pool(command.pool)
    networks, stages = pool_rows(pool)
    print(f"{of.NAMES[pool.method]}: {len(networks)} network{'s' * (len(networks) > 1)}, {pool.bytes / 1e6:.1f} MB")
    for columns, rows in ((NETWORK_COLUMNS, networks), (STAGE_COLUMNS, stages)):
        texts = [columns, *([_cell(value) for value in row] for row in rows)]
        widths = [max(len(row[i]) for row in texts) for i in range(len(columns))]
        print()
        for row in texts:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _cell(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
