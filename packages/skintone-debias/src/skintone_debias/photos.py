"""One picture file to one label. Free of torch and matplotlib, because the processes of `label` start with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from dart_core.data.images import open_image
from dart_core.errors import DartError, InputError
from skintone_debias.groh import groh_ita
from skintone_debias.settings import Angle, Bands, Labeller
from skintone_debias.tone import SIDE, fitzpatrick_type, middle_square, tone_of_square

SMALLEST = 32
"""Side in pixels below which a picture is not labelled: a patch would be fewer than three pixels wide."""


@dataclass(frozen=True)
class LabelOptions:
    """How a file is labelled; see `settings.Label`."""

    method: Labeller = "patches"
    bands: Bands = "kinyanjui"
    angle: Angle | None = None
    pre_sized: bool = False
    reject_neutral: bool = False


class Photo(NamedTuple):
    """What became of one file."""

    ita: float = np.nan
    fitzpatrick: int = -1
    patch: int = -1
    patch_itas: tuple[float, ...] = ()
    neutral: tuple[bool, ...] = ()
    """Which patches are grey, bluish, black or white."""
    reason: str = ""
    """Why there is no type."""


def label_photo(path: Path, options: LabelOptions) -> Photo:
    """Label one file; whatever is wrong with it becomes its reason."""
    try:
        with warnings.catch_warnings():
            # What Pillow has to say about odd metadata would come from every process, without the file's name.
            warnings.simplefilter("ignore")
            return _label(path, options)
    except DartError as error:
        # The row names the file already.
        return Photo(reason="; ".join(part for part in (error.problem, error.remedy) if part))
    except MemoryError:
        return Photo(reason="out of memory; make the picture smaller, or give fewer --workers")


def _label(path: Path, options: LabelOptions) -> Photo:
    image = open_image(path)
    width, height = image.size
    if min(width, height) < SMALLEST:
        raise InputError(f"{width} x {height} pixels are too few", remedy=f"give at least {SMALLEST} x {SMALLEST}")
    if options.method != "patches":
        pixels = np.asarray(image)
        _refuse_grey(pixels)
        ita = groh_ita(pixels, options.method == "groh", angle=options.angle or "atan2")
        reason = "no pixel of skin colour" if np.isnan(ita) else ""
        return Photo(ita, fitzpatrick_type(ita, options.bands), reason=reason)
    if options.pre_sized and image.size != (SIDE, SIDE):
        raise InputError(f"{width} x {height} pixels, not {SIDE} x {SIDE}", remedy="leave out --pre-sized")
    square = np.asarray(image) if options.pre_sized else middle_square(image)
    _refuse_grey(square)
    tone = tone_of_square(square, options.bands, options.angle or "atan", options.reject_neutral)
    reason = "" if tone.patch >= 0 else "all eight patches are grey, bluish, black or white"
    return Photo(
        tone.ita, tone.fitzpatrick, tone.patch, tuple(tone.patch_itas.tolist()), tuple(tone.neutral.tolist()), reason
    )


def _refuse_grey(rgb: np.ndarray) -> None:
    # The angle of a grey is that of rounding errors in b*: near 90 degrees above L* 50, near -90 below.
    if np.array_equal(rgb[..., 0], rgb[..., 1]) and np.array_equal(rgb[..., 1], rgb[..., 2]):
        raise InputError("the picture is grey, so it has no skin tone", remedy="give the colour picture")


# --- Processes -------------------------------------------------------------------------------------------------------


def start_process() -> None:
    """Prepare a process that labels files for another one, and ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command itself answers Ctrl-C
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
