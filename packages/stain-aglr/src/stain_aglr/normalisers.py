"""Stain normalisation by unmixing: Macenko et al. 2009 and Vahadane et al. 2016 (specification 4.2 and 4.3).

Both find two stain vectors in the optical densities of a patch, unmix it with them, and mix it again with the vectors and
the strength of a reference. The functions work on batches of patches of one size, on any device; the two classes also take
single pictures as arrays.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dart_core.errors import InputError
from stain_aglr.lab import lab_to_rgb, rgb_to_lab, tissue_mask

MACENKO_LIGHT, MACENKO_TRANSPARENT, MACENKO_TAIL = 240.0, 0.15, 0.01
"""Incident light I0; optical density below which a pixel is glass; share of the angles cut off at either end."""
SMALLEST_ANGLE = 1e-3
"""Between the two stains, in radians: below, the tissue has one colour."""
MACENKO_REFERENCE = ((0.5626, 0.7201, 0.4062), (0.2159, 0.8012, 0.5581)), (1.9705, 1.0308)
"""Stain matrix and concentrations that an unfitted Macenko normaliser aims at (specification 4.3)."""
VAHADANE_SPARSITY, VAHADANE_UNMIXING = 0.1, 0.01
"""Weights of ||c||_1 while the dictionary is learnt and while the pixels are unmixed."""
VAHADANE_START = (0.65, 0.70, 0.29), (0.07, 0.99, 0.11)
"""Where the dictionary starts: haematoxylin and eosin of Ruifrok and Johnston 2001."""
LUMINOSITY_TAIL = 0.05
"""White is the 95th percentile of the lightness."""
STRENGTH_TAIL = 0.01
"""The strength of a stain is the 99th percentile of its concentration."""
STEPS, HISTORY, NEAR, FEWEST_PIXELS = 1000, 4, 0.01, 1024
"""Of the dictionary learning: most steps, steps that extrapolation looks back, pixels of a first round."""
SAMPLE_EVERY = 32
"""Step between the values of a row that are the sample of `largest`."""
PIXELS_AT_ONCE = 2**18
"""Pixels of a chunk: about what the processor's cache holds."""


class Stains(NamedTuple):
    """The stains of N patches with P pixels each."""

    matrix: Tensor
    """(N, 2, 3): rows haematoxylin, eosin, of unit length; columns red, green, blue."""
    strength: Tensor
    """(N, 2): 99th percentile of each stain's concentration over all pixels."""
    concentrations: Tensor
    """(N, 2, P)."""
    found: Tensor
    """(N,) bool: False for patches whose stains cannot be found: no tissue, or tissue of one colour."""


# --- Macenko ---------------------------------------------------------------------------------------------------------


def macenko_stains(images: Tensor, dtype: torch.dtype = torch.float32) -> Stains:
    """Stains by the plane of the two largest principal directions and the extreme angles in it (specification 4.3).

    Args:
        images: uint8 (N, 3, H, W).
        dtype: float32, or float64 for the last digit.
    """
    flat = images.flatten(2)
    od = logarithm_(flat.to(dtype).add_(1).mul_(1 / MACENKO_LIGHT)).neg_()
    # OD >= 0.15 in every channel, said of the pixel values.
    glass = flat.amax(1) > math.floor(MACENKO_LIGHT * math.exp(-MACENKO_TRANSPARENT)) - 1
    weight = (~glass).to(dtype)
    count = weight.sum(1)
    mean = (od @ weight[:, :, None]) / count.clamp(min=1)[:, None, None]
    centred = (od - mean).mul_(weight[:, None])
    enough = count > 1
    covariance = torch.where(enough[:, None, None], centred @ centred.mT, torch.eye(3).to(od))
    # Eigenvalues ascend: column 1 is the second largest, column 2 the largest. Taken in this order, the angle of no pixel is
    # near the jump of atan2, so that the eigenvectors' signs, which LAPACK is free to choose, do not matter (8.8).
    axes = torch.linalg.eigh(covariance).eigenvectors[:, :, 1:]
    across, along = (axes.mT @ od).unbind(1)
    angle = torch.atan2(along, across)
    high = tail_percentile(angle.masked_fill_(glass, -math.inf), MACENKO_TAIL, count)
    low = -tail_percentile(angle.neg_().masked_fill_(glass, -math.inf), MACENKO_TAIL, count)
    angles = torch.stack([low, high], 1)
    matrix = haematoxylin_first(torch.stack([angles.cos(), angles.sin()], 2) @ axes.mT)
    found = enough & ((high - low).sin().abs() > SMALLEST_ANGLE)
    # Least squares: C = (M M^T)^-1 M OD; unit vectors have M M^T = [[1, e], [e, 1]].
    e = (matrix[:, 0] * matrix[:, 1]).sum(1).mul(found)[:, None, None]
    concentrations = ((matrix - e * matrix.flip(1)) / (1 - e * e)) @ od
    strength = tail_percentile(concentrations, STRENGTH_TAIL)
    return Stains(matrix, strength, concentrations, found & (strength > 0).all(1))


def haematoxylin_first(matrix: Tensor) -> Tensor:
    """Rows of (N, 2, 3) in the order of their red components, the larger first."""
    return torch.where((matrix[:, 0, 0] >= matrix[:, 1, 0])[:, None, None], matrix, matrix.flip(1))


def tail_percentile(values: Tensor, tail: float, count: Tensor | None = None) -> Tensor:
    """The (1 - tail) quantile over the last axis, with linear interpolation like numpy.percentile.

    Only the tail is sorted, which takes a fraction of the time of sorting everything.

    Args:
        values: (..., P); what is not to count is -inf.
        tail: 0.01 for the 99th percentile.
        count: (...) number of values that count; None = all. 0 gives -inf.
    """
    size = values.shape[-1]
    top = largest(values, min(size, math.floor((size - 1) * tail) + 2))
    number = torch.full(values.shape[:-1], size, device=values.device) if count is None else count
    place = (tail * (number.to(torch.float64) - 1)).clamp(min=0)
    below = place.floor().long()
    upper = top.gather(-1, below[..., None])[..., 0]
    lower = top.gather(-1, (below + 1).clamp(max=top.shape[-1] - 1)[..., None])[..., 0]
    share = (place - below).to(values.dtype)
    return torch.where(share > 0, upper + share * (lower - upper), upper)


def largest(values: Tensor, count: int) -> Tensor:
    """The largest values over the last axis, (..., count) of (..., P), in falling order.

    On the CPU a sample of each long row says above which bound its largest values lie, and only those are looked at, which takes
    a third of the time of PyTorch's topk (benchmarks/speed/macenko.py).
    """
    size = values.shape[-1]
    if values.device.type != "cpu" or size < SAMPLE_EVERY * SAMPLE_EVERY:
        return values.topk(count, dim=-1).values
    rows = values.detach().reshape(-1, size).numpy()
    found = np.empty((len(rows), count), rows.dtype)
    # Twice as many of the sample as its share of them, and some more for its spread.
    place = min(size, 2 * count + 8 * SAMPLE_EVERY) // SAMPLE_EVERY
    for row, result in zip(rows, found, strict=True):
        bound = np.partition(row[::SAMPLE_EVERY], -place)[-place]
        above = row[row >= bound]
        above = above if len(above) >= count else row
        result[:] = np.sort(np.partition(above, -count)[-count:])[::-1]
    return torch.from_numpy(found).view(*values.shape[:-1], count)


def logarithm_(values: Tensor) -> Tensor:
    """The natural logarithm, in place; on the CPU NumPy's, which takes a third of the time."""
    if values.device.type != "cpu":
        return values.log_()
    np.log(values.numpy(), out=values.numpy())
    return values


# --- Vahadane --------------------------------------------------------------------------------------------------------


def vahadane_stains(images: Tensor, dtype: torch.dtype = torch.float32) -> Stains:
    """Stains as a sparse non-negative dictionary of two atoms, learnt on the tissue (specification 4.2).

    Args:
        images: uint8 (N, 3, H, W).
        dtype: float32, or float64 for the last digit.
    """
    od = (images.flatten(2).clamp(min=1).to(dtype) / 255).log_().neg_().clamp_(min=1e-6)
    tissue = tissue_mask(images).flatten(1)
    matrix = stain_dictionary(od, tissue)
    concentrations = unmix(od, matrix, VAHADANE_UNMIXING)
    strength = tail_percentile(concentrations, STRENGTH_TAIL)
    # Tissue of one colour, such as a black or grey picture, has one stain; the other cannot be scaled to the reference's.
    return Stains(matrix, strength, concentrations, tissue.any(1) & (strength > 0).all(1))


def unmix(od: Tensor, matrix: Tensor, sparsity: float) -> Tensor:
    """Minimise ½||od - c W||² + sparsity ||c||_1 over c >= 0, exactly, for every pixel.

    With two atoms, both are active, or one, or none. If the unconstrained solution has a coordinate <= 0, that one is 0 and
    the other is the solution on its own axis (both atoms are non-negative, hence W W^T too).

    Args:
        od: (N, 3, P).
        matrix: W, (N, 2, 3), non-negative.
        sparsity: weight of the 1-norm.

    Returns:
        c, (N, 2, P).
    """
    gram = matrix @ matrix.mT
    a, e, d = gram[:, 0, 0], gram[:, 0, 1], gram[:, 1, 1]
    determinant = a * d - e * e
    # Of two parallel atoms the second is not needed.
    parallel = determinant <= 1e-9 * a * d
    inverse = torch.where(parallel, 0.0, 1 / determinant)
    both = torch.stack([torch.stack([d, -e], 1), torch.stack([-e, a], 1)], 1) * inverse[:, None, None]
    single = torch.diag_embed(torch.stack([1 / a, torch.where(parallel, 0.0, 1 / d)], 1))
    ways = torch.cat([both, single], 1)  # (N, 4, 2)
    shift = (-sparsity * ways.sum(2))[:, :, None]
    both_1, both_2, single_1, single_2 = torch.baddbmm(shift, ways @ matrix, od).unbind(1)
    c = torch.stack([torch.where(both_2 <= 0, single_1, both_1), torch.where(both_1 <= 0, single_2, both_2)], 1)
    return c.clamp_(min=0)


def stain_dictionary(od: Tensor, tissue: Tensor, start: Tensor | None = None) -> Tensor:
    """Minimise mean(½||od - c W||² + 0.1 ||c||_1) over c >= 0 and non-negative rows of W no longer than 1.

    Alternates between the exact solution for c and, row by row, for W. Each patch stops when its rows move no more.

    Args:
        od: (N, 3, P) optical densities.
        tissue: (N, P) bool, the pixels that count.
        start: (2, 3) first dictionary; None = Ruifrok and Johnston's.

    Returns:
        W, (N, 2, 3), rows of unit length, the one with more red first. A patch without tissue keeps the start.
    """
    start = torch.tensor(VAHADANE_START) if start is None else start
    matrix = torch.nn.functional.normalize(start.to(od), dim=1).expand(len(od), 2, 3)
    # Where there is no optical density, c is 0, and the pixel says nothing about W.
    od = od * tissue[:, None]
    # Most of the way is made with a part of the pixels.
    for stride in (16, 4, 1):
        if stride == 1 or od.shape[2] // stride >= FEWEST_PIXELS:
            matrix = _fixed_point(matrix, od[:, :, ::stride].contiguous())
    return haematoxylin_first(torch.nn.functional.normalize(matrix, dim=2))


def _fixed_point(matrix: Tensor, od: Tensor) -> Tensor:
    """Alternate until the rows (N, 2, 3) move no more, with Anderson's extrapolation from the last steps.

    Alternation alone creeps: where the stains of a patch are alike it takes hundreds of steps. An extrapolation that lengthens
    the way still to go is taken back.
    """
    tolerance = 1e-9 if od.dtype == torch.float64 else 2e-6
    results: list[Tensor] = []
    moves: list[Tensor] = []
    for _ in range(STEPS):
        result = _better_rows(matrix, od)
        move = (result - matrix).flatten(1)
        size = move.abs().amax(1)
        if (size <= tolerance).all():
            return result
        results, moves = [*results[-HISTORY:], result.flatten(1)], [*moves[-HISTORY:], move]
        matrix = result
        if len(moves) > 2:
            steps = torch.stack([b - a for a, b in itertools.pairwise(moves)], 2)
            ahead = torch.stack([b - a for a, b in itertools.pairwise(results)], 2)
            # In float64, with a ridge that keeps apart steps that are nearly parallel, or 0 where a patch has arrived.
            wide = steps.to(torch.float64)
            gram = wide.mT @ wide
            ridge = gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * 1e-10 + 1e-30
            system = gram + ridge * torch.eye(gram.shape[1]).to(gram)
            weights = torch.linalg.solve_ex(system, wide.mT @ move[:, :, None].to(wide)).result.to(ahead)
            leap = _feasible((result.flatten(1) - (ahead @ weights)[:, :, 0]).view_as(result))
            shrinking = size <= (2 * moves[-2].abs().amax(1)).clamp(max=NEAR)
            good = shrinking & leap.isfinite().all(2).all(1)
            matrix = torch.where(good[:, None, None], leap, result)
    return matrix


def _feasible(rows: Tensor) -> Tensor:
    """The nearest non-negative rows (..., 3) no longer than 1."""
    rows = rows.clamp(min=0)
    feasible: Tensor = rows / rows.norm(dim=-1, keepdim=True).clamp(min=1)
    return feasible


def _better_rows(matrix: Tensor, od: Tensor) -> Tensor:
    """One alternation: the best c for W, then the best first row, then the best second row."""
    c = unmix(od, matrix, VAHADANE_SPARSITY)
    gram, cross = c @ c.mT, c @ od.mT
    rows = list(matrix.unbind(1))
    for j in (0, 1):
        own = gram[:, j, j, None]
        best = _feasible((cross[:, j] - gram[:, j, 1 - j, None] * rows[1 - j]) / own)
        # An atom that no pixel uses, or that only hurts, stays where it is.
        rows[j] = torch.where((own > 0) & (best > 0).any(1, keepdim=True), best, rows[j])
    return torch.stack(rows, 1)


def luminosity_standardised(images: Tensor) -> Tensor:
    """Scale the lightness of each patch so that its 95th percentile is white, and cut it off there (StainTools).

    Args:
        images: uint8 (N, 3, H, W).

    Returns:
        uint8 (N, 3, H, W).
    """
    lab = rgb_to_lab(images.to(torch.float32) / 255)
    white = tail_percentile(lab[:, 0].flatten(1), LUMINOSITY_TAIL).clamp(min=1e-6)
    lab[:, 0] = (lab[:, 0] * (100 / white)[:, None, None]).clamp(max=100)
    return (lab_to_rgb(lab) * 255).round().to(torch.uint8)


# --- The two normalisers ---------------------------------------------------------------------------------------------


class MacenkoNormalizer:
    """Gives pictures the stains of a reference by Macenko's method; unfitted, those of its default reference.

    Attributes:
        stain_matrix: float64 (2, 3), rows haematoxylin, eosin, of unit length.
        max_concentrations: float64 (2,), the 99th percentile of each.
    """

    method = "macenko"
    light = MACENKO_LIGHT

    def __init__(self) -> None:
        self.stain_matrix = np.array(MACENKO_REFERENCE[0])
        self.max_concentrations = np.array(MACENKO_REFERENCE[1])

    def fit(self, image: NDArray[np.uint8]) -> MacenkoNormalizer:
        """Take the stains of a picture, uint8 (H, W, 3), as the reference.

        Raises:
            ValueError: no such picture, or one without stained tissue.
        """
        self.stain_matrix, self.max_concentrations = reference_stains(image, self.stains)
        return self

    def transform(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Normalise a picture, uint8 (H, W, 3); one whose stains cannot be found comes back unchanged.

        Raises:
            ValueError: no such picture.
        """
        return transformed(image, self)

    def stains(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Stains:
        """The stains of uint8 (N, 3, H, W); see `macenko_stains`."""
        return macenko_stains(images, dtype)

    def normalise_batch(self, images: Tensor) -> Tensor:
        """Normalise uint8 (N, 3, H, W) on its device, in float32; patches whose stains cannot be found stay as they are."""
        return normalised(images, self)


class VahadaneNormalizer:
    """Gives pictures the stains of a reference by Vahadane's method.

    Args:
        standardise_luminosity: first scale each picture's lightness, the reference's too, so that its 95th percentile is
            white, as users of StainTools often do; the paper does not say.

    Attributes:
        stain_matrix: float64 (2, 3), rows haematoxylin, eosin, of unit length; None before `fit`.
        max_concentrations: float64 (2,), the 99th percentile of each; None before `fit`.
    """

    method = "vahadane"
    light = 255.0

    def __init__(self, standardise_luminosity: bool = False) -> None:
        self.standardise_luminosity = standardise_luminosity
        self.stain_matrix: NDArray[np.float64] | None = None
        self.max_concentrations: NDArray[np.float64] | None = None

    def fit(self, image: NDArray[np.uint8]) -> VahadaneNormalizer:
        """Take the stains of a picture, uint8 (H, W, 3), as the reference.

        Raises:
            ValueError: no such picture, or one without stained tissue.
        """
        self.stain_matrix, self.max_concentrations = reference_stains(image, self.stains)
        return self

    def transform(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Normalise a picture, uint8 (H, W, 3); one whose stains cannot be found comes back unchanged.

        Raises:
            ValueError: no such picture, or the normaliser has no reference yet.
        """
        return transformed(image, self)

    def stains(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Stains:
        """The stains of uint8 (N, 3, H, W); see `vahadane_stains`."""
        return vahadane_stains(luminosity_standardised(images) if self.standardise_luminosity else images, dtype)

    def normalise_batch(self, images: Tensor) -> Tensor:
        """Normalise uint8 (N, 3, H, W) on its device, in float32; patches whose stains cannot be found stay as they are."""
        return normalised(images, self)


Unmixing = MacenkoNormalizer | VahadaneNormalizer


def reference_stains(
    image: NDArray[np.uint8], stains: Callable[[Tensor, torch.dtype], Stains]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Stain matrix (2, 3) and strength (2,) of one picture, uint8 (H, W, 3).

    Raises:
        ValueError: no such picture, or one whose stains cannot be found.
    """
    found = stains(as_batch(image), torch.float64)
    if not found.found[0] or not (found.strength[0] > 0).all():
        raise InputError("the reference shows no stained tissue", remedy="choose a picture with nuclei and stroma")
    return found.matrix[0].numpy(), found.strength[0].numpy()


def transformed(image: NDArray[np.uint8], normaliser: Unmixing) -> NDArray[np.uint8]:
    """One picture, uint8 (H, W, 3), normalised in float64."""
    return normalised(as_batch(image), normaliser, torch.float64)[0].permute(1, 2, 0).contiguous().numpy()


def normalised(images: Tensor, normaliser: Unmixing, dtype: torch.dtype = torch.float32) -> Tensor:
    """Patches uint8 (N, 3, H, W) with the reference's stains, in small chunks, which is faster than all at once.

    Raises:
        ValueError: other images, or the normaliser has no reference yet.
    """
    check_batch(images)
    if normaliser.stain_matrix is None or normaliser.max_concentrations is None:
        raise InputError("the normaliser has no reference yet", remedy="call fit with a reference picture first")
    if not images.numel():
        return images.clone()
    target = torch.from_numpy(normaliser.stain_matrix).to(images.device, dtype)
    strength = torch.from_numpy(normaliser.max_concentrations).to(images.device, dtype)
    count = max(1, PIXELS_AT_ONCE // (images.shape[2] * images.shape[3])) if images.device.type == "cpu" else 64
    return torch.cat(
        [
            remixed(part, normaliser.stains(part, dtype), target, strength, normaliser.light)
            for part in images.split(count)
        ]
    )


def remixed(images: Tensor, stains: Stains, matrix: Tensor, strength: Tensor, light: float) -> Tensor:
    """light exp(-C W) with the reference's matrix W and concentrations scaled to its strength (Beer and Lambert).

    Args:
        images: uint8 (N, 3, H, W), given back where no stains were found.
        stains: of these images.
        matrix: W, (2, 3).
        strength: (2,).
        light: 240 for Macenko, 255 for Vahadane.

    Returns:
        uint8 (N, 3, H, W), cut off above 255 and truncated (8.9).
    """
    # A stain that 99 % of the pixels lack cannot be scaled.
    scale = torch.where(stains.strength > 0, strength / stains.strength, 1.0)
    light_log = torch.full((1, 1, 1), math.log(light)).to(matrix)
    logarithm = torch.baddbmm(light_log, (scale[:, :, None] * matrix).mT, stains.concentrations, alpha=-1)
    mixed = logarithm.exp_().clamp_(max=255).to(torch.uint8).view_as(images)
    return torch.where(stains.found[:, None, None, None], mixed, images)


def as_batch(image: NDArray[np.uint8]) -> Tensor:
    """uint8 (H, W, 3) -> (1, 3, H, W).

    Raises:
        ValueError: another shape or type.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise InputError(f"the picture has shape {image.shape} and type {image.dtype}", remedy="give uint8 (H, W, 3)")
    return torch.from_numpy(image.transpose(2, 0, 1).copy())[None]


def check_batch(images: Tensor) -> None:
    """Refuse what is no batch of 8-bit colour patches.

    Raises:
        ValueError: not uint8 (N, 3, H, W).
    """
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
        problem = f"the patches have shape {tuple(images.shape)} and type {images.dtype}"
        raise InputError(problem, remedy="give uint8 (N, 3, H, W)")


def nearest_to_mean(colours: Tensor) -> list[int]:
    """Patches in the order of how near their mean colour is to the mean of all; the first is the reference (specification 10).

    Args:
        colours: (N, 3) mean colours.
    """
    order: list[int] = (colours - colours.mean(0)).square().sum(1).argsort(stable=True).tolist()
    return order
