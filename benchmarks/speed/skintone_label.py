"""skintone-debias label against the authors' program: JPEG files of 600 x 450 pixels to skin tones, decoding included.

The peer does what the authors' preprocessing.py does, in one process and one file after the other, with the same versions
of OpenCV, Pillow and scikit-image: decode with OpenCV, cut out the middle square, resize it to 256 x 256 (Lanczos), remove
hair from the whole picture, convert the whole picture to CIELAB, average eight patches. What it leaves out is in its favour:
the authors save the resized picture as JPEG and decode it a second time. A second peer converts only the eight patches, one
by one; that is not what they do, but the least change that would speed their program up.

Ours is what the command runs: `label_files` with two processes that are started before the clock, as a folder of
thousands of files would find them; and once without processes. All eight angles of every picture must agree to 1e-9 degrees
before anything is timed.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from compare import alternate, record
from PIL import Image
from skimage.color import rgb2lab

from dart_core.data.phantoms import write_skin_lesions
from skintone_debias.labelling import Labellers
from skintone_debias.photos import LabelOptions

SIZE = (600, 450)
CORNERS = ((230, 115), (5, 115), (115, 5), (115, 230), (216, 216), (216, 20), (20, 20), (20, 216))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="both work on the CPU; other devices are skipped")
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    arguments = parser.parse_args()
    if arguments.device != "cpu":
        print("labelling is measured on the CPU")
        return
    # One core for the peer, as its one process has it; OpenCV would start threads in it.
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder, Labellers(arguments.workers) as labellers, Labellers(0) as alone:
        files, source = write_pictures(Path(folder), arguments.pictures)
        functions: dict[str, Callable[[], np.ndarray]] = {
            "authors": lambda: np.array([authors(file, whole_lab) for file in files]),
            "authors, CIELAB of the patches only": lambda: np.array([authors(file, patch_lab) for file in files]),
            "ours, 1 process": lambda: ours(alone, files),
            f"ours, {arguments.workers} processes": lambda: ours(labellers, files),
        }
        first, *others = (function() for function in functions.values())
        difference = max(float(np.abs(first - other).max()) for other in others)
        if not difference <= 1e-9:
            raise SystemExit(f"angles differ by {difference:.1e} degrees; not timed")
        seconds = alternate(functions, arguments.rounds)
    notes = {
        "pictures": len(files),
        "source": source,
        "size": SIZE,
        "largest difference in degrees": difference,
        "pictures per second": {name: len(files) / float(np.median(times)) for name, times in seconds.items()},
    }
    print({name: round(value, 1) for name, value in notes["pictures per second"].items()})
    record("skintone-label", seconds, notes, arguments.out)


def ours(labellers: Labellers, files: list[Path]) -> np.ndarray:
    """(files, 8) angles."""
    return np.array([photo.patch_itas for photo in labellers.label(files, LabelOptions())])


def authors(file: Path, lab_patches: Callable[[np.ndarray], list[np.ndarray]]) -> list[float]:
    """The eight angles of a file."""
    picture = cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB)
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(picture[top : top + side, left : left + side])
    resized = np.asarray(square.resize((256, 256), Image.Resampling.LANCZOS))
    grey = cv2.cvtColor(resized, cv2.COLOR_RGB2GRAY)
    blackhat = cv2.morphologyEx(grey, cv2.MORPH_BLACKHAT, cv2.getStructuringElement(1, (17, 17)))
    _, mask = cv2.threshold(blackhat, 10, 255, cv2.THRESH_BINARY)
    clean = cv2.inpaint(resized, mask, 1, cv2.INPAINT_TELEA)
    means = [(patch[..., 0].mean(), patch[..., 2].mean()) for patch in lab_patches(clean)]
    return [math.atan((lightness - 50) / yellow) * (180 / math.pi) for lightness, yellow in means]


def whole_lab(picture: np.ndarray) -> list[np.ndarray]:
    """CIELAB of the picture, then its patches."""
    lab = rgb2lab(picture)
    return [lab[row : row + 20, column : column + 20] for row, column in CORNERS]


def patch_lab(picture: np.ndarray) -> list[np.ndarray]:
    """CIELAB of each patch."""
    return [rgb2lab(picture[row : row + 20, column : column + 20]) for row, column in CORNERS]


def write_pictures(folder: Path, count: int) -> tuple[list[Path], str]:
    """Dermoscopic pictures as JPEG of SIZE: those of HAM10000 where DART_DATA is, else phantoms, again and again."""
    real = Path(os.environ.get("DART_DATA", ""), "ham10000_sites", "images")
    found = sorted(real.glob("*.jpg")) if real.is_dir() else []
    source = "ham10000_sites, enlarged" if found else "phantoms"
    if not found:
        per_site = min(count, 48) // 2
        found = sorted(
            write_skin_lesions(folder / "phantoms", pictures_per_site=per_site, size=450).parent.rglob("*.png")
        )
    spread = np.linspace(0, len(found) - 1, min(count, len(found))).astype(int)
    files = []
    for number in range(count):
        files.append(folder / f"{number}.jpg")
        with Image.open(found[spread[number % len(spread)]]) as image:
            resized = image.convert("RGB").resize(SIZE, Image.Resampling.BICUBIC)
            resized.save(files[-1], quality=92, subsampling="4:2:0")
    return files, source


if __name__ == "__main__":
    main()
