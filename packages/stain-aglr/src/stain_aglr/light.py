"""HED-light: how a patch is altered (paper section 1.2 and 2.1; specification 2.3, with its corrections in 11).

Scaling, blur and the smoothing of displacements are linear and separable, so each is one small matrix per patch and axis:
the matrix holds weights, border rule and cropping alike, and a batch of patches takes two batched products on any device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from dart_core.errors import InputError, SettingError
from stain_aglr.hed import CUTOFF, check_images, numbers, random_hed_jitter, uniform
from stain_aglr.settings import Quantise, Space

SCALE, ALPHA, SIGMA = (0.8, 1.2), (80.0, 120.0), (9.0, 11.0)
BRIGHTNESS, CONTRAST, NOISE, BLUR = (0.65, 1.35), (0.5, 1.5), (0.0, 0.1), (0.1, 1.0)
LUMA = (0.299, 0.587, 0.114)
_TRUNCATE = 4.0
"""Gaussian weights end at this many sigmas, as SciPy's."""


# --- Colour ----------------------------------------------------------------------------------------------------------


def adjust_brightness(images: Tensor, factor: Tensor | ArrayLike) -> Tensor:
    """Multiply patches by a factor each: clip(b x).

    Args:
        images: float (N, 3, H, W) in [0, 1].
        factor: (N,), or one number.

    Returns:
        Like `images`, in [0, 1].
    """
    return (images * _column(factor, images, "factor")).clamp(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor | ArrayLike) -> Tensor:
    """Stretch patches about their mean grey level m: clip(m + c (x - m)).

    m = floor(255 mean + 0.5) / 255 with the mean of the luma 0.299 R + 0.587 G + 0.114 B, one number per patch.

    Args:
        images: float (N, 3, H, W) in [0, 1].
        factor: (N,), or one number.

    Returns:
        Like `images`, in [0, 1].
    """
    check_images(images)
    # The mean in float64: half a grey level decides, and summing in float32 would depend on the order of the pixels.
    mean = images.mean((2, 3), dtype=torch.float64) @ torch.tensor(LUMA, dtype=torch.float64, device=images.device)
    middle = (torch.floor(255 * mean + 0.5) / 255).to(images.dtype)[:, None, None, None]
    return (middle + _column(factor, images, "factor") * (images - middle)).clamp(0, 1)


def add_noise(images: Tensor, sigma: Tensor | ArrayLike, noise: Tensor) -> Tensor:
    """Add standard normal noise of a given strength: clip(x + sigma noise).

    Args:
        images: float (N, 3, H, W) in [0, 1].
        sigma: (N,), or one number, on the scale of `images`.
        noise: (N, 3, H, W).

    Returns:
        Like `images`, in [0, 1].
    """
    return torch.addcmul(images, _column(sigma, images, "sigma"), noise.to(images.dtype)).clamp(0, 1)


def gaussian_blur(images: Tensor, sigma: Tensor | ArrayLike) -> Tensor:
    """Blur patches as `scipy.ndimage.gaussian_filter` does (mode "reflect", truncated at four sigmas).

    Args:
        images: float (N, 3, H, W).
        sigma: (N,) in pixels, or one number; 0 and whatever is too small to reach a neighbour change nothing.

    Returns:
        Like `images`.

    Raises:
        ValueError: a negative sigma.
    """
    sigma = _values(sigma, images, "sigma")
    return _separable(images, *(_blur_matrix(side, sigma, images.dtype, mirror=True) for side in images.shape[-2:]))


# --- Geometry --------------------------------------------------------------------------------------------------------


def scale_patches(images: Tensor, factor: Tensor | ArrayLike) -> Tensor:
    """Zoom about the centre and keep the size: below 1 the surroundings are mirrored in, above 1 the border is cut off.

    Below 1, ceil(size (1/f - 1) / 2) pixels are added on each side (mirrored without repeating the edge); then
    `scipy.ndimage.zoom(order=1, mode="reflect")`; then the central crop of the old size.

    Args:
        images: float (N, 3, H, W).
        factor: (N,), or one number, above 0.

    Returns:
        Like `images`.

    Raises:
        ValueError: a factor of 0 or less, or one so small that the mirror image would not reach.
    """
    factor = _values(factor, images, "factor")
    if (factor <= 0).any():
        raise InputError("a scaling factor is not positive", remedy="give factors above 0")
    return _separable(images, *(_scale_matrix(side, factor, images.dtype) for side in images.shape[-2:]))


def elastic_deform(images: Tensor, drow: Tensor | ArrayLike, dcol: Tensor | ArrayLike) -> Tensor:
    """Move pixels: the value at (r, c) becomes that at (r + drow, c + dcol), linearly interpolated, borders reflecting.

    The same as `scipy.ndimage.map_coordinates(order=1, mode="reflect")` (the edge pixel is repeated).

    Args:
        images: float (N, 3, H, W).
        drow: displacement along rows in pixels, (H, W) for all patches or (N, H, W).
        dcol: along columns.

    Returns:
        Like `images`.
    """
    check_images(images)
    height, width = images.shape[-2:]
    places, shares = [], []
    for moved, size, other in ((drow, height, (1, height, 1)), (dcol, width, (1, 1, width))):
        displacement = numbers(moved, images.device).to(images.dtype)
        if displacement.shape not in ((height, width), (len(images), height, width)):
            raise InputError(
                f"the displacements have shape {tuple(displacement.shape)}",
                remedy=f"give ({height}, {width}) or ({len(images)}, {height}, {width})",
            )
        # Whole pixels and fractions apart: adding the place first would cost the fraction its last digits.
        whole = displacement.floor()
        first = whole.reshape(-1, height, width).long() + torch.arange(size, device=images.device).view(other)
        places.append((_mirrored(first, size), _mirrored(first + 1, size)))
        shares.append((displacement - whole).reshape(-1, 1, height * width))
    (top, bottom), (left, right) = places
    down, across = shares
    pixels = images.flatten(2)

    def at(rows: Tensor, columns: Tensor) -> Tensor:
        index = (rows * width + columns).flatten(1)[:, None]
        return pixels.gather(2, index.expand(len(images), images.shape[1], -1))

    upper = torch.lerp(at(top, left), at(top, right), across)
    lower = torch.lerp(at(bottom, left), at(bottom, right), across)
    return torch.lerp(upper, lower, down).view_as(images)


def quarter_turns_and_flips(images: Tensor, turns: Tensor, horizontal: Tensor, vertical: Tensor) -> Tensor:
    """Turn each square patch by a number of quarter turns, then mirror it.

    Args:
        images: (N, 3, H, W); patches that are not square are only turned by 0 or 2 quarters.
        turns: (N,) of 0 to 3; odd ones count as one less for patches that are not square.
        horizontal: (N,) bool: mirror left and right.
        vertical: (N,) bool: mirror top and bottom.
    """
    if images.shape[-1] != images.shape[-2]:
        turns = turns // 2 * 2
    # A turn by two quarters is both flips; a turn by one is a transposition with a flip. So: transpose, flip, flip.
    one, two = (turns % 2).bool(), turns >= 2
    up, across = one ^ two ^ vertical, two ^ horizontal  # one quarter, counter-clockwise: transpose, then top to bottom
    for chosen, turned in ((one, lambda x: x.mT), (up, lambda x: x.flip(-2)), (across, lambda x: x.flip(-1))):
        images = (
            torch.where(chosen.to(images.device)[:, None, None, None], turned(images), images)
            if chosen.any()
            else images
        )
    return images


# --- The recipe ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HEDLight:
    """The whole recipe on a batch, own draws for each patch (specification 2.1 to 2.3).

    Shared by raw and altered patch: quarter turns, flips, scaling, elastic deformation. Then, on the altered one alone: HED
    jitter, brightness, contrast, noise, blur.
    """

    strength: float = 0.05
    """Of the HED jitter: 0.05 = HED-light, 0.2 = HED-strong."""
    space: Space = "offset2"
    """See `hed_jitter`."""
    quantise: Quantise = "round"
    """What becomes of fractions of a grey level after the HED jitter."""
    cutoff: tuple[float, float] | None = CUTOFF
    """See `hed_jitter`."""
    spatial: bool = True
    """Scaling and elastic deformation; without them the geometry is quarter turns and flips."""
    blur: tuple[float, float] = BLUR
    """Range of the blur's sigma in pixels."""

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw and apply.

        Args:
            images: (N, 3, H, W) RGB, float in [0, 1] or uint8.
            generator: draws; on the CPU or the images' device; None takes PyTorch's global one.

        Returns:
            The raw patches after the geometry alone, and the altered ones; both (N, 3, H, W) in [0, 1], float32 for uint8.
        """
        raw = self.geometry(as_float(images), generator)
        return raw, self.appearance(raw, generator)

    def geometry(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """What raw and altered patches share."""
        images = random_turns(images, generator)
        if not self.spatial:
            return images
        n, (height, width) = len(images), images.shape[-2:]
        scale = uniform((n,), *SCALE, images, generator)
        images = scale_patches(images, scale)
        sigma, alpha = (uniform((n,), *limits, images, generator) for limits in (SIGMA, ALPHA))
        noise = uniform((n, 2, height, width), -1, 1, images, generator)
        drow, dcol = displacements(noise, sigma, alpha).unbind(1)
        return elastic_deform(images, drow, dcol)

    def appearance(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """What is done to the altered patches alone."""
        n = len(images)
        altered = random_hed_jitter(images, self.strength, generator, self.space, self.cutoff)
        altered = quantised(altered, self.quantise)
        altered = adjust_brightness(altered, uniform((n,), *BRIGHTNESS, images, generator))
        altered = adjust_contrast(altered, uniform((n,), *CONTRAST, images, generator))
        device = images.device if generator is None else generator.device
        noise = torch.randn(images.shape, generator=generator, dtype=images.dtype, device=device).to(images.device)
        altered = add_noise(altered, uniform((n,), *NOISE, images, generator), noise)
        return gaussian_blur(altered, uniform((n,), *self.blur, images, generator)).clamp(0, 1)


def random_turns(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Quarter turns (0 to 3 alike) and flips (each with probability 1/2), drawn for each patch."""
    draws = uniform((3, len(images)), 0, 1, images, generator)
    return quarter_turns_and_flips(images, (4 * draws[0]).floor().clamp(max=3), draws[1] < 0.5, draws[2] < 0.5)


def displacements(noise: Tensor, sigma: Tensor | ArrayLike, alpha: Tensor | ArrayLike) -> Tensor:
    """Smooth displacement fields (Simard et al. 2003): alpha times Gaussian-filtered noise, zero outside the patch.

    Args:
        noise: (N, C, H, W) in [-1, 1].
        sigma: (N,) in pixels.
        alpha: (N,) in pixels.

    Returns:
        Like `noise`, in pixels; with alpha 100 and sigma 10 of standard deviation about 1.6.
    """
    sigma = _values(sigma, noise, "sigma")
    smooth = _separable(noise, *(_blur_matrix(side, sigma, noise.dtype, mirror=False) for side in noise.shape[-2:]))
    return _column(alpha, noise, "alpha") * smooth


def quantised(images: Tensor, how: Quantise) -> Tensor:
    """Patches in [0, 1] on whole grey levels.

    Raises:
        ValueError: `how` is neither round, truncate nor none.
    """
    if how == "none":
        return images
    if how not in ("round", "truncate"):
        raise SettingError(f"quantise is {how!r}", remedy="give round, truncate or none")
    levels = images * 255
    return (levels.round() if how == "round" else levels.floor()) / 255


def as_float(images: Tensor) -> Tensor:
    """uint8 patches as float32 in [0, 1]; float ones as they are."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images


# --- Matrices --------------------------------------------------------------------------------------------------------


def _separable(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """rows (N, H, H) and columns (N, W, W) on (N, C, H, W)."""
    return rows[:, None] @ images @ columns.mT[:, None]


def _blur_matrix(size: int, sigma: Tensor, dtype: torch.dtype, mirror: bool) -> Tensor:
    """(N, size, size) weights of a Gaussian filter; outside the border pixels repeat in reverse (mirror) or are zero."""
    if (sigma < 0).any():
        raise InputError("a sigma is negative", remedy="give sigmas of 0 or more")
    radius = torch.floor(_TRUNCATE * sigma + 0.5)
    reach = int(radius.max()) if len(sigma) else 0
    offsets = torch.arange(-reach, reach + 1, device=sigma.device, dtype=torch.float64)
    weights = torch.exp(-0.5 * (offsets / sigma.clamp(min=1e-9)[:, None]) ** 2) * (offsets.abs() <= radius[:, None])
    weights = weights / weights.sum(1, keepdim=True)
    places = torch.arange(size, device=sigma.device)[:, None] + offsets.long()
    if mirror:
        target, kept = _mirrored(places, size), weights[:, None].expand(-1, size, -1)
    else:
        target, kept = places.clamp(0, size - 1), weights[:, None] * ((places >= 0) & (places < size))
    matrix = torch.zeros(len(sigma), size, size, dtype=torch.float64, device=sigma.device)
    return matrix.scatter_add_(2, target.expand(len(sigma), -1, -1), kept).to(dtype)


def _scale_matrix(size: int, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """(N, size, size) weights of padding, linear zoom and central crop in one."""
    pad = torch.ceil(size * (1 / factor - 1) / 2).clamp(min=0)
    if (pad > size - 1).any():
        raise InputError(
            f"a scaling factor of {float(factor.min()):g} needs more than the patch's mirror image",
            remedy="give factors nearer to 1",
        )
    padded = size + 2 * pad
    zoomed = torch.round(padded * factor)
    start = torch.floor((zoomed - size) / 2)
    step = (padded - 1) / (zoomed - 1).clamp(min=1)
    # Where each pixel of the result lies on the padded axis, then on the patch's own.
    place = (start[:, None] + torch.arange(size, device=factor.device)) * step[:, None]
    low = place.floor()
    share = place - low
    own = (low - pad[:, None]).long()
    matrix = torch.zeros(len(factor), size, size, dtype=torch.float64, device=factor.device)
    for where, weight in ((own, 1 - share), (own + 1, share)):
        inside = where.abs()
        inside = torch.where(inside > size - 1, 2 * (size - 1) - inside, inside).clamp(0, size - 1)
        matrix.scatter_add_(2, inside[..., None], weight[..., None])
    return matrix.to(dtype)


def _mirrored(places: Tensor, size: int) -> Tensor:
    """Indices reflected about the outer edges of the border pixels, which are thereby repeated: ... 1 0 | 0 1 ..."""
    folded = places.remainder(2 * size)
    return torch.minimum(folded, 2 * size - 1 - folded)


def _values(value: Tensor | ArrayLike, images: Tensor, name: str) -> Tensor:
    """(N,) float64 on the images' device."""
    value = numbers(value, images.device)
    if value.shape not in ((), (len(images),)):
        raise InputError(f"{name} has shape {tuple(value.shape)}", remedy=f"give ({len(images)},)")
    return value.expand(len(images))


def _column(value: Tensor | ArrayLike, images: Tensor, name: str) -> Tensor:
    """(N, 1, 1, 1) of the images' type."""
    return _values(value, images, name).to(images.dtype)[:, None, None, None]
