"""sissi.weighted_boxes_fusion against ensemble-boxes: 20 views x 200 boxes, as a correction of labels fuses them.

The boxes are those of 200 cells, moved a little in each view and with other scores. Fusing is one pass of machine code (numba); the
call is what a user writes, with lists per view, so that putting them together is part of the time.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from compare import alternate, record
from ensemble_boxes import weighted_boxes_fusion as reference

from sissi import weighted_boxes_fusion

VIEWS, CELLS = 20, 200
IOU, SKIP = 0.5, 0.25


def boxes_of_views(cells: int = CELLS) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Boxes (cells, 4), scores and labels of each view."""
    rng = np.random.default_rng(0)
    centre, half = rng.uniform(0.05, 0.95, (cells, 2)), rng.uniform(0.015, 0.04, (cells, 2))
    boxes = [np.concatenate([centre - half, centre + half], 1) + rng.normal(0, 0.003, (cells, 4)) for _ in range(VIEWS)]
    boxes = [view.clip(0, 1) for view in boxes]
    return boxes, [rng.uniform(0.1, 1, cells) for _ in range(VIEWS)], [np.ones(cells, int)] * VIEWS


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="both work on the CPU; other devices are skipped")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    arguments = parser.parse_args()
    if arguments.device != "cpu":
        print("the fusion is measured on the CPU")
        return
    boxes, scores, labels = boxes_of_views()

    def theirs() -> tuple[np.ndarray, ...]:
        return tuple(reference(boxes, scores, labels, iou_thr=IOU, skip_box_thr=SKIP))

    def ours() -> tuple[np.ndarray, ...]:
        return tuple(weighted_boxes_fusion(boxes, scores, labels, iou_threshold=IOU, skip_box_threshold=SKIP))

    if len(theirs()[0]) != len(ours()[0]):
        raise SystemExit("another number of boxes; not timed")
    difference = max(float(np.abs(a - b).max()) for a, b in zip(theirs(), ours(), strict=True))
    if difference > 1e-5:
        raise SystemExit(f"values differ by {difference:.1e}; not timed")
    seconds = alternate({"ensemble-boxes": theirs, "ours": ours}, arguments.rounds)
    record(
        "sissi-fusion",
        seconds,
        {"views": VIEWS, "boxes": CELLS, "fused": len(ours()[0]), "largest difference": difference},
        arguments.out,
    )


if __name__ == "__main__":
    main()
