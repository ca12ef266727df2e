"""Skin tone of a photograph from eight small patches near its border (paper section 3.2; specification 2A)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, overload

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from skimage.color import rgb2lab

from dart_core.errors import InputError
from skintone_debias.settings import Angle, Bands

SIDE = 256
"""Side of the square picture that the patches lie in (A1)."""
PATCH = 20
"""Side of a patch."""
CORNERS = ((230, 115), (5, 115), (115, 5), (115, 230), (216, 216), (216, 20), (20, 20), (20, 216))
"""First row and column of each patch: bottom, top, left, right; bottom right, bottom left, top left, top right (A4)."""
BOUNDS = {
    "kinyanjui": (55.0, 41.0, 28.0, 19.0, 10.0),
    # Groh's first bound belongs to the lighter type, all others to the darker one.
    "empirical": (float(np.nextafter(45.0, 0.0)), 28.0, 17.0, 5.0, -20.0),
}
"""Largest ITA that is still the next darker type, in degrees, from type 1 on (A7; 4.1)."""

_HAIR = cv2.getStructuringElement(cv2.MORPH_CROSS, (17, 17))
_THRESHOLD = 10
_RADIUS = 1
# With this radius inpainting a pixel reads its four neighbours and, for gradients, theirs: nothing farther than two steps
# along rows and columns. Pixels that near have dilations by this cross that touch.
_REACH = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class SkinTone:
    """Skin tone of one picture."""

    ita: float
    """Individual typology angle of the lightest patch in degrees; nan where there is none."""
    fitzpatrick: int
    """Type 1 (light) to 6 (dark); -1 where there is none."""
    patch: int
    """The lightest patch, from 0, the first one of equals; -1 where there is none."""
    patch_itas: NDArray[np.float64]
    """(8,) angles of all patches in degrees."""
    neutral: NDArray[np.bool_]
    """(8,) patches that are grey, bluish, black or white (A9)."""


# --- Hair (A2) -------------------------------------------------------------------------------------------------------


@overload
def remove_hair(rgb_uint8: NDArray[Any], return_mask: Literal[False] = False) -> Pixels: ...
@overload
def remove_hair(rgb_uint8: NDArray[Any], return_mask: Literal[True]) -> tuple[Pixels, NDArray[np.bool_]]: ...
@overload
def remove_hair(rgb_uint8: NDArray[Any], return_mask: bool) -> Pixels | tuple[Pixels, NDArray[np.bool_]]: ...
def remove_hair(rgb_uint8: NDArray[Any], return_mask: bool = False) -> Pixels | tuple[Pixels, NDArray[np.bool_]]:
    """Paint over dark thin structures: where the closing with a cross of 17 pixels is more than 10 grey levels brighter.

    The constants are those of the paper's program for pictures of 256 x 256 pixels.

    Args:
        rgb_uint8: uint8 (H, W, 3) in red, green, blue; not changed.
        return_mask: also return where hair was found.

    Returns:
        uint8 (H, W, 3), or that and the mask, bool (H, W).

    Raises:
        InputError: another type or shape.
    """
    rgb = checked(rgb_uint8)
    mask = hair_mask(rgb)
    painted = np.asarray(cv2.inpaint(rgb, mask, _RADIUS, cv2.INPAINT_TELEA), dtype=np.uint8)
    return (painted, mask.astype(bool)) if return_mask else painted


def hair_mask(rgb: Pixels) -> Pixels:
    """Where hair is, as uint8 (H, W) of 0 and 1."""
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    return (cv2.morphologyEx(grey, cv2.MORPH_BLACKHAT, _HAIR) > _THRESHOLD).view(np.uint8)


def hair_free_patches(rgb: Pixels) -> Pixels:
    """The patches of `remove_hair(rgb)`, without painting over hair that cannot matter to them.

    What is painted in a patch depends on nothing beyond the connected hairs that lie in it, where hairs count as
    connected as long as inpainting could read across the gap.

    Args:
        rgb: uint8 (256, 256, 3).

    Returns:
        uint8 (8, 20, 20, 3).
    """
    mask = hair_mask(rgb)
    inside = _patches(mask)
    if not inside.any():
        return _patches(rgb)
    count, names = cv2.connectedComponents(cv2.dilate(mask, _REACH), connectivity=4)
    wanted = np.zeros(count, np.uint8)
    wanted[_patches(names)[inside > 0]] = 1
    return _patches(cv2.inpaint(rgb, mask & wanted[names], _RADIUS, cv2.INPAINT_TELEA))


def _patches(picture: NDArray[Any]) -> NDArray[Any]:
    return np.stack([picture[row : row + PATCH, column : column + PATCH] for row, column in CORNERS])


# --- Angle and type (A3, A5, A7) -------------------------------------------------------------------------------------


def individual_typology_angle(L: ArrayLike, b: ArrayLike, angle: Angle = "atan") -> Any:
    """Individual typology angle (paper Eq. 1), element by element.

    Args:
        L: lightness L* of CIELAB, 0 to 100.
        b: b* of CIELAB, yellow positive; broadcasts with L.
        angle: "atan" of the quotient, -90 to 90: for b < 0 the sign turns, b = 0 gives the sign of L - 50 times 90;
            "atan2", -180 to 180 (Groh et al.).

    Returns:
        Degrees, float64; nan for L = 50 with b = 0 (0 with "atan2").
    """
    # Adding 0 makes the negative zero positive, so that b = 0 goes by the sign of L - 50 alone.
    height, base = _float64(L) - 50.0, _float64(b) + 0.0
    if angle == "atan2":
        return np.degrees(np.arctan2(height, base))
    if angle != "atan":
        raise InputError(f"angle is {angle!r}", remedy="give atan or atan2")
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.degrees(np.arctan(height / base))  # Eq. 1


def fitzpatrick_type(ita: ArrayLike, bands: Bands = "kinyanjui") -> Any:
    """Fitzpatrick type of an angle (paper Eq. 2), element by element.

    Args:
        ita: individual typology angles in degrees.
        bands: "kinyanjui", above 55, 41, 28, 19, 10 (the paper's); "empirical", 45 and above, above 28, 17, 5, -20
            (Groh et al.).

    Returns:
        1 (light) to 6 (dark), -1 for nan; an int, or an int64 array of the shape of `ita`.
    """
    if bands not in BOUNDS:
        raise InputError(f"bands is {bands!r}", remedy=f"give {' or '.join(BOUNDS)}")
    angles = _float64(ita)
    darker = (angles[..., None] <= np.array(BOUNDS[bands])).sum(-1)  # Eq. 2
    types = np.where(np.isnan(angles), -1, 1 + darker)
    return types if types.ndim else int(types)


def _float64(values: Any) -> NDArray[np.float64]:
    return np.asarray(_off_torch(values), dtype=np.float64)


def _off_torch(values: Any) -> Any:
    return values.detach().cpu().numpy() if hasattr(values, "detach") else values


# --- A picture's tone (A1, A4, A6) -----------------------------------------------------------------------------------


def label_skin_tone(
    rgb_uint8: NDArray[Any],
    pre_sized: bool = False,
    on_error: Literal["raise", -1] = "raise",
    *,
    bands: Bands = "kinyanjui",
    angle: Angle = "atan",
    reject_neutral: bool = False,
) -> SkinTone:
    """Skin tone of a photograph: the lightest of eight patches near the border, after hair removal.

    Args:
        rgb_uint8: uint8 (H, W, 3) in red, green, blue, of any size; not changed. Its middle square is resized to
            256 x 256 (Lanczos).
        pre_sized: the picture is 256 x 256 and is taken as it is.
        on_error: "raise", or -1: what cannot be labelled gets type -1, as in the authors' program.
        bands: see `fitzpatrick_type`.
        angle: see `individual_typology_angle`.
        reject_neutral: grey, bluish, black and white patches (b* <= 1, L* < 5 or L* > 98) cannot be the lightest one (A9). They
            are no skin, and their angle is near 90 or -90 degrees. Not in the paper.

    Returns:
        Angle, type, patch and the angles of all patches. Without any patch to choose from (all rejected, or nan) the
        angle is nan, type and patch are -1.

    Raises:
        InputError: not uint8 (H, W, 3), or with pre_sized of another size; whatever `on_error` says, an option that is unknown.
    """
    if on_error not in ("raise", -1):
        raise InputError(f"on_error is {on_error!r}", remedy="give raise or -1")
    try:
        rgb = checked(rgb_uint8)
        if not pre_sized:
            rgb = middle_square(Image.fromarray(rgb))
        elif rgb.shape[:2] != (SIDE, SIDE):
            height, width = rgb.shape[:2]
            raise InputError(
                f"the picture is {width} x {height}, not {SIDE} x {SIDE} pixels", remedy="leave out pre_sized"
            )
    except InputError:
        if on_error == "raise":
            raise
        return SkinTone(np.nan, -1, -1, np.full(len(CORNERS), np.nan), np.zeros(len(CORNERS), bool))
    return tone_of_square(rgb, bands, angle, reject_neutral)


def middle_square(image: Image.Image) -> Pixels:
    """The largest square in the middle, resized to uint8 (256, 256, 3) as the authors prepare their pictures (A1)."""
    side = min(image.size)
    left, top = ((length - side) // 2 for length in image.size)
    square = image.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def tone_of_square(
    rgb: Pixels,
    bands: Bands = "kinyanjui",
    angle: Angle = "atan",
    reject_neutral: bool = False,
    patches: Callable[[Pixels], Pixels] = hair_free_patches,
) -> SkinTone:
    """`label_skin_tone` of a picture uint8 (256, 256, 3)."""
    lightness, _, yellow = rgb2lab(patches(rgb)).mean((1, 2)).T  # means first, the angle afterwards (A4)
    itas = individual_typology_angle(lightness, yellow, angle)
    neutral = (yellow <= 1) | (lightness < 5) | (lightness > 98)
    offered = np.where(neutral & reject_neutral, np.nan, itas)
    if np.isnan(offered).all():
        return SkinTone(np.nan, -1, -1, itas, neutral)
    patch = int(np.nanargmax(offered))
    return SkinTone(float(itas[patch]), fitzpatrick_type(itas[patch], bands), patch, itas, neutral)


def checked(rgb: Any) -> Pixels:
    """The picture as an array, if it is uint8 (H, W, 3).

    Raises:
        InputError: it is not, or cannot be made an array.
    """
    remedy = "convert it to 8-bit red, green and blue (PIL: image.convert('RGB'))"
    try:
        pixels = np.asarray(_off_torch(rgb))
    except (ValueError, TypeError, RuntimeError) as error:  # such as lists of unequal length
        reason = " ".join(str(error).split())
        raise InputError(f"the picture is no array ({reason})", remedy=remedy) from error
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise InputError(
            f"the picture is {pixels.dtype} of shape {pixels.shape}, not uint8 (H, W, 3)",
            remedy=remedy,
        )
    return np.ascontiguousarray(pixels)
