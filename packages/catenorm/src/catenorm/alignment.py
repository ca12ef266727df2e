"""Class-wise alignment of intensities between domains (paper, Appendix A; specification 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dart_core.errors import InputError

SPREAD = 1e-10
"""A standard deviation over cases below this part of the largest value is a rounding error, and counts as 0."""

Moments = Mapping[int, NDArray[np.float64]]
"""Case -> (mean, standard deviation) of a class."""


def align_class_statistics(
    images: Any, labels: Any, domains: Any, target_domain: Any = 0, *, clamp_negative: bool = False
) -> Any:
    """Give every class of every case the place in the target domain that it has in its own (eqs 6 to 12).

    A class's mean (and its standard deviation) is standardised among the cases of its domain, then scaled to the target
    domain's cases; pixels of the class follow linearly. Background is a class too. What the paper leaves open: a domain of one
    case, or without spread, goes to the target's mean; a class without contrast becomes flat; absent classes are skipped, and a
    class that no case of the target has stays as it is.

    Args:
        images: (M, ...) array or tensor, or a list of M arrays.
        labels: whole numbers, of the shapes of the images.
        domains: (M,) one number per case.
        target_domain: whose cases stay as they are.
        clamp_negative: a standard deviation that comes out negative, which mirrors the class, becomes 0.

    Returns:
        like `images`, of the same type (float32 for whole numbers).

    Raises:
        ValueError: numbers of cases or shapes that do not fit, pixels that are not finite, or no case of the target domain.
    """
    cases = [_array(image) for image in images]
    known = [_array(label) for label in labels]
    where = [_plain(domain) for domain in domains]
    if not len(cases) == len(known) == len(where):
        raise InputError(f"{len(cases)} images, {len(known)} labels, {len(where)} domains", remedy="give one of each")
    for number, (image, label) in enumerate(zip(cases, known, strict=True)):
        if image.shape != label.shape:
            raise InputError(f"case {number}: image {image.shape}, labels {label.shape}", remedy="give equal shapes")
        if not np.isfinite(image).all():
            raise InputError(f"case {number}: NaN or infinite pixels", remedy="replace them before aligning")
    if target_domain not in where:
        raise InputError(f"no case is of the target domain {target_domain}", remedy="name one of the domains")
    aligned = [image.astype(np.promote_types(image.dtype, np.float32)) for image in cases]
    for value in np.unique(np.concatenate([np.unique(label) for label in known])):
        masks = [label == value for label in known]
        moments = {
            n: class_moments(image[mask])
            for n, (image, mask) in enumerate(zip(cases, masks, strict=True))
            if mask.any()
        }
        new = aligned_moments(moments, where, target_domain)
        for number, (mean, deviation) in new.items():
            if clamp_negative:
                deviation = max(deviation, 0.0)
            mask, (own_mean, own_deviation) = masks[number], moments[number]
            pixels = cases[number][mask].astype(np.float64)
            scaled = (pixels - own_mean) / own_deviation * deviation if own_deviation > 0 else np.zeros_like(pixels)
            aligned[number][mask] = scaled + mean  # Eq. 12
    if isinstance(images, Tensor):
        return images.new_tensor(np.stack(aligned), dtype=None if images.is_floating_point() else Tensor().dtype)
    return np.stack(aligned) if isinstance(images, np.ndarray) else aligned


def class_moments(pixels: NDArray[Any]) -> NDArray[np.float64]:
    """Mean and population standard deviation of one class of one case (eqs 6, 7)."""
    wide = pixels.astype(np.float64)
    return np.array([wide.mean(), 0.0 if wide.min() == wide.max() else wide.std()])


def aligned_moments(moments: Moments, domains: Sequence[Any], target: Any) -> dict[int, tuple[float, float]]:
    """The new mean and standard deviation of a class for every case that has it and is not of the target (eqs 8 to 11)."""
    at_target = [pair for number, pair in moments.items() if domains[number] == target]
    if not at_target:
        return {}
    target_mean, target_spread = _over_cases(at_target)
    found = {}
    for domain in dict.fromkeys(domains[number] for number in moments):
        if domain == target:
            continue
        own = {number: pair for number, pair in moments.items() if domains[number] == domain}
        mean, spread = _over_cases(list(own.values()))  # Eqs 8, 9
        for number, pair in own.items():
            standard = np.divide(pair - mean, spread, out=np.zeros(2), where=spread > 0)
            new = standard * target_spread + target_mean  # Eqs 10, 11
            found[number] = (float(new[0]), float(new[1]))
    return found


def _over_cases(pairs: Sequence[NDArray[np.float64]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and population standard deviation over the cases of a domain, of means and of standard deviations."""
    values = np.stack(pairs)
    spread = values.std(0)
    return values.mean(0), np.where(spread > SPREAD * np.abs(values).max(0), spread, 0.0)


def _array(values: Any) -> NDArray[Any]:
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)


def _plain(domain: Any) -> Any:
    return domain.item() if hasattr(domain, "item") else domain
