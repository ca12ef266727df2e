"""sissi.seamless_synthetic against cv2.seamlessClone called as the authors call it: 50 boxes at 640 x 480, strong blur.

Both blur the picture with OpenCV; what differs is the Poisson clone: sine transforms by SciPy here, OpenCV's own there. OpenCV gets
one thread, as a loading process has.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
from compare import alternate, record

from sissi import seamless_synthetic

HEIGHT, WIDTH, BOXES = 480, 640, 50
KERNEL, SIGMA = (71, 71), 30.0


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="both work on the CPU; other devices are skipped")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    arguments = parser.parse_args()
    if arguments.device != "cpu":
        print("the clone is measured on the CPU")
        return
    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8), (7, 7), 0)
    corner = np.stack([rng.integers(2, WIDTH - 50, BOXES), rng.integers(2, HEIGHT - 50, BOXES)], axis=1)
    boxes = np.concatenate([corner, corner + rng.integers(15, 45, (BOXES, 2))], axis=1)

    def opencv() -> np.ndarray:
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        for x1, y1, x2, y2 in boxes:
            mask[y1:y2, x1:x2] = 255
        x, y, width, height = cv2.boundingRect(mask)
        ground = cv2.GaussianBlur(image, KERNEL, SIGMA)
        return np.asarray(cv2.seamlessClone(image, ground, mask, (x + width // 2, y + height // 2), cv2.MIXED_CLONE))

    def ours() -> np.ndarray:
        return seamless_synthetic(image, boxes, KERNEL, SIGMA)

    difference = int(np.abs(opencv().astype(int) - ours()).max())
    if difference > 1:
        raise SystemExit(f"values differ by {difference} grey levels; not timed")
    seconds = alternate({"OpenCV": opencv, "ours": ours}, arguments.rounds)
    notes = {"pixels": [HEIGHT, WIDTH], "boxes": BOXES, "largest difference in grey levels": difference}
    record("sissi-clone", seconds, notes, arguments.out)


if __name__ == "__main__":
    main()
