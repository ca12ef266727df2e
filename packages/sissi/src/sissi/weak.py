"""Weak labels by classical image processing: circles, edges, watershed (specification 2A, paper 3.1 and its appendix A).

Which pipeline fits follows from the state of the cells in a picture: dead cells are round (circles), inhibited ones stand alone
(edges), living ones touch each other (watershed).
"""

from __future__ import annotations

from typing import Any, Literal, overload

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from skimage.feature import canny
from skimage.measure import label
from skimage.morphology import reconstruction, skeletonize
from skimage.segmentation import watershed
from torch import Tensor

from dart_core.errors import InputError, SettingError
from sissi.boxes import boxes_of, compiled, weak_nms
from sissi.settings import Kind

Picture = NDArray[np.uint8]
KINDS: tuple[Kind, ...] = ("circles", "edges", "watershed")
SUPPRESSION = 0.15


@overload
def weak_labels(
    image: Picture, kind: Kind = ..., *, rec: Literal["and", "min"] = ..., grey: Literal["swapped", "correct"] = ...
) -> NDArray[np.float64]: ...
@overload
def weak_labels(
    image: Tensor, kind: Kind = ..., *, rec: Literal["and", "min"] = ..., grey: Literal["swapped", "correct"] = ...
) -> Tensor: ...
def weak_labels(
    image: Picture | Tensor,
    kind: Kind = "circles",
    *,
    rec: Literal["and", "min"] = "and",
    grey: Literal["swapped", "correct"] = "swapped",
) -> NDArray[np.float64] | Tensor:
    """Find cells without learning.

    Args:
        image: uint8 (H, W, 3), blue, green, red, array or tensor.
        kind: circles (W1, dead cells), edges (W2, inhibited ones) or watershed (W3, living ones).
        rec: watershed: how the reconstruction combines its pictures: bit by bit (as coded) or by their minimum (what was meant).
        grey: edges: weights of red and blue swapped (as coded) or correct.

    Returns:
        (n, 4) boxes in pixels, n = 0 where nothing was found; a tensor on its device for a tensor.

    Raises:
        InputError: another kind of picture.
        SettingError: an unknown `kind`.
    """
    if isinstance(image, Tensor):
        array = image.detach().cpu().contiguous().numpy()
        return torch.from_numpy(weak_labels(array, kind, rec=rec, grey=grey)).to(image.device)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError("weak labels need a picture of type uint8 and shape (H, W, 3)", remedy="convert it")
    if kind not in KINDS:
        raise SettingError(f"no pipeline {kind!r}", remedy=f"give one of {', '.join(KINDS)}")
    if kind == "circles":
        return circles(image)
    return edges(image, grey) if kind == "edges" else touching(image, rec)


# --- W1: circles -----------------------------------------------------------------------------------------------------


def circles(image: Picture) -> NDArray[np.float64]:
    """Circle Hough transform; its threshold accepts almost any peak, so that many boxes are wrong on purpose."""
    height, width = image.shape[:2]
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    found: Any = cv2.HoughCircles(grey, cv2.HOUGH_GRADIENT, 10, 25, param1=100, param2=0.1, minRadius=7, maxRadius=15)
    if found is None or not np.size(found):
        return np.zeros((0, 4))
    x, y, r = np.around(np.asarray(found).reshape(-1, 3)).T.astype(np.float64)
    low = np.maximum([x - r - 10, y - r - 10], 0)
    high = [np.minimum(x + r + 10, width - 1), np.minimum(y + r + 10, height - 1)]
    return np.stack([*low, *high], axis=1)


# --- W2: edges -------------------------------------------------------------------------------------------------------


def edges(image: Picture, grey: Literal["swapped", "correct"] = "swapped") -> NDArray[np.float64]:
    """Canny edges after the background, a series of openings and closings, is taken away."""
    weights = np.array([0.2125, 0.7154, 0.0721])
    picture = (image / 255) @ (weights if grey == "swapped" else weights[::-1])
    ground = picture
    for i in range(3, 100, 2):
        square = np.ones((10, i), np.uint8)
        ground = cv2.morphologyEx(ground, cv2.MORPH_OPEN, square)
        ground = cv2.morphologyEx(ground, cv2.MORPH_CLOSE, square)
    flat = picture - 0.9 * ground + (0.9 * ground).mean()
    found = canny(flat, sigma=0.1, low_threshold=0.1, high_threshold=0.2).astype(np.uint8)
    closed = cv2.morphologyEx(found, cv2.MORPH_CLOSE, np.ones((2, 2), np.uint8))
    boxes = _bounding(label(closed, connectivity=2))
    boxes[:, 2:] += 1
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return weak_nms(boxes[(area >= 400) & (area <= 80000)], SUPPRESSION)


def _bounding(labels: NDArray[Any]) -> NDArray[np.float64]:
    """Smallest and largest column and row (n, 4) of each label from 1 on."""
    places = [place for place in ndimage.find_objects(labels) if place is not None]
    return boxes_of([(x.start, y.start, x.stop - 1, y.stop - 1) for y, x in places])


# --- W3: watershed ---------------------------------------------------------------------------------------------------


def touching(image: Picture, rec: Literal["and", "min"] = "and") -> NDArray[np.float64]:
    """Watershed from many markers on the gradient, with ridges and foreground imposed as minima."""
    height, width = image.shape[:2]
    contrast = _equalised(image)
    grey = np.asarray(cv2.cvtColor(contrast, cv2.COLOR_BGR2GRAY), np.uint8)  # the picture is RGB by now: as coded
    smooth = cv2.bilateralFilter(cv2.medianBlur(grey, 5), 9, 75, 75)
    dark = cv2.adaptiveThreshold(smooth, 255, cv2.ADAPTIVE_THRESH_GAUSSIAN_C, cv2.THRESH_BINARY_INV, 29, 0)
    ridges = skeletonize(dark > 0)
    magnitude = _sobel(grey)
    foreground = _foreground(grey, rec)
    surface = _impose_minima(magnitude / 255, ridges | foreground)
    markers, _ = ndimage.label(find_maxima(contrast.mean(axis=2), 50.0))
    boxes = _bounding(watershed(surface, markers, mask=foreground))
    boxes += np.array([-2, -2, 2, 2])
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    inside = (boxes[:, 0] >= 0) & (boxes[:, 1] >= 0) & (boxes[:, 2] < width) & (boxes[:, 3] < height)
    return weak_nms(boxes[inside & (area >= 400) & (area <= 1500)], SUPPRESSION)


def _equalised(image: Picture) -> Picture:
    """Gamma 1.5, and adaptive equalisation of the brightness; red, green, blue."""
    table = np.floor(255 * (np.arange(256) / 255) ** 1.5).astype(np.uint8)
    hue = cv2.cvtColor(cv2.LUT(image, table), cv2.COLOR_BGR2HSV)
    hue[..., 2] = cv2.createCLAHE(clipLimit=15, tileGridSize=(20, 20)).apply(hue[..., 2])
    return np.asarray(cv2.cvtColor(hue, cv2.COLOR_HSV2RGB))


def _sobel(grey: Picture) -> Picture:
    across, down = cv2.Sobel(grey, cv2.CV_64F, 1, 0, ksize=3), cv2.Sobel(grey, cv2.CV_64F, 0, 1, ksize=3)
    length = np.hypot(across, down)
    spread = np.ptp(length)
    return np.asarray((length - length.min()) * (255 / spread if spread else 0)).astype(np.uint8)


def _foreground(grey: Picture, rec: Literal["and", "min"]) -> NDArray[np.bool_]:
    """Opening and closing by reconstruction, then Otsu's threshold."""
    ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (20, 20))
    opened = reconstruct(np.asarray(cv2.erode(grey, ellipse), np.uint8), grey, rec)
    closed = 255 - reconstruct(255 - np.asarray(cv2.dilate(opened, ellipse), np.uint8), 255 - grey, rec)
    clean = cv2.morphologyEx(closed, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    _, mask = cv2.threshold(clean, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    return np.asarray(mask > 0)


def reconstruct(marker: Picture, mask: Picture, rec: Literal["and", "min"] = "and") -> Picture:
    """Dilate the marker with an 11x11 square and combine it with the mask, until nothing changes (W3.6).

    With "and" the numbers are combined bit by bit, as the authors coded it; "min" is the geodesic reconstruction.
    """
    combine = np.bitwise_and if rec == "and" else np.minimum
    square = np.ones((11, 11), np.uint8)
    # Each change moves by 5 pixels; "and" need not rise steadily, so its rounds are counted.
    for _ in range(4 * sum(mask.shape)):
        grown = combine(cv2.dilate(marker, square), mask)
        if np.array_equal(grown, marker):
            break
        marker = grown
    return marker


def _impose_minima(surface: NDArray[np.float64], places: NDArray[np.bool_]) -> NDArray[np.float64]:
    if not places.any():
        return surface
    marker = np.where(places, 0.0, surface.max() + 2)
    return np.asarray(reconstruction(marker, np.minimum(surface + 1, marker), method="erosion"))


def find_maxima(picture: NDArray[np.floating[Any]], tolerance: float) -> NDArray[np.bool_]:
    """ImageJ's "Find Maxima" (W3.9): one point for each maximum that stands out by more than the tolerance.

    Args:
        picture: (H, W).
        tolerance: how far one must go down from a maximum before anything brighter, or reached before, is met.

    Returns:
        bool (H, W).
    """
    values = np.ascontiguousarray(picture, dtype=np.float64)
    peaks = (values == ndimage.maximum_filter(values, 3, mode="nearest")) & (values > values.min())
    places = np.flatnonzero(peaks)
    order = places[np.argsort(-values.ravel()[places], kind="stable")]
    return np.asarray(_flood(values, order, tolerance))


@compiled
def _flood(values: Any, order: Any, tolerance: float) -> Any:
    height, width = values.shape
    visited = np.zeros((height, width), np.int64)  # number of the flood that reached a pixel; 0: none yet
    markers = np.zeros((height, width), np.bool_)
    queue = np.empty(height * width, np.int64)
    flood = 0
    for start in order:
        if visited[start // width, start % width]:
            continue
        flood += 1
        top = values[start // width, start % width]
        queue[0] = start
        visited[start // width, start % width] = flood
        first, last = 0, 1
        alone = True
        sum_y, sum_x, equal = 0.0, 0.0, 0
        while first < last:
            y, x = queue[first] // width, queue[first] % width
            first += 1
            if values[y, x] == top:
                sum_y += y
                sum_x += x
                equal += 1
            for v in range(max(y - 1, 0), min(y + 2, height)):
                for u in range(max(x - 1, 0), min(x + 2, width)):
                    if visited[v, u] == flood:
                        continue
                    if visited[v, u] or values[v, u] > top:
                        alone = False
                    if not visited[v, u] and values[v, u] >= top - tolerance:
                        visited[v, u] = flood
                        queue[last] = v * width + u
                        last += 1
        if not alone:
            continue
        y_mean, x_mean = round(sum_y / equal), round(sum_x / equal)
        best, chosen = np.inf, start
        for i in range(last):
            y, x = queue[i] // width, queue[i] % width
            distance = (y - y_mean) ** 2 + (x - x_mean) ** 2
            if values[y, x] == top and distance < best:
                best, chosen = distance, queue[i]
        markers[chosen // width, chosen % width] = True
    return markers
