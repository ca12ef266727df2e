"""f_FDA: the low-frequency Fourier amplitudes of one slice put into another (paper section 3, specification 2.1).

Shapes: slices are h x w, K is the half width of the window of exchanged frequencies.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from dart_core.arrays import accepts_arrays
from dart_core.errors import InputError, SettingError

Output = Literal["authors", "formula", "clip"]


def circular_mask(shape: tuple[int, int], beta: float) -> Tensor:
    """The window M of the centred spectrum (specification 2.1, step 3).

    Args:
        shape: (h, w).
        beta: radius as a fraction of the shorter side.

    Returns:
        (h, w) bool, true strictly inside beta * min(h, w) of (h // 2, w // 2).
    """
    h, w = shape
    rows, columns = torch.arange(h) - h // 2, torch.arange(w) - w // 2
    return (rows.square()[:, None] + columns.square()).double().sqrt() < _radius(shape, beta)


@accepts_arrays
def fourier_transfer(
    target: Tensor,
    source: Tensor,
    beta: float,
    output: Output = "authors",
    average_styles: bool = False,
    phase: bool = False,
    window: Literal["circle", "authors_rectangle"] = "circle",
) -> Tensor:
    """f_FDA(s, t): the target slice with the low-frequency amplitudes of the source slice (paper section 3, formula).

    Args:
        target: (..., h, w) slices t, float32 or float64, values about [0, 1].
        source: slices s that broadcast against `target`; with `average_styles` (..., k, h, w).
        beta: window radius as a fraction of the shorter side; 0 swaps nothing.
        output: "authors" divides the modulus by its maximum, slice by slice, so the range is [0, 1]; "formula" is the
            real part as the paper prints it; "clip" the real part clipped to [0, 1].
        average_styles: average the amplitudes of the k source slices before the swap (not the same as averaging
            predictions over donors).
        phase: mix complex spectra, so the source's phase comes along inside the window.
        window: "authors_rectangle" is the rectangle of the authors' code, which is not symmetric about DC.

    Returns:
        (..., h, w) in the dtype of `target`, never a view of it. With output "authors", target slices that are zero
        throughout, and results that are, give zeros.

    Raises:
        ValueError: slices of different h or w, negative beta, unknown output or window.

    Source: specification 2.1; the fast path is property 12 of section 9.
    """
    target = target if target.is_floating_point() else target.float()
    source = source.to(target.dtype)
    h, w = target.shape[-2:]
    if source.shape[-2:] != (h, w):
        raise InputError(
            f"source slices are {source.shape[-2]} x {source.shape[-1]}, target slices {h} x {w}",
            remedy="bring both scans to one grid",
        )
    if output not in ("authors", "formula", "clip"):
        raise SettingError(f"unknown output {output!r}", remedy="give authors, formula or clip")
    half_width = max(0, math.ceil(_radius((h, w), beta)) - 1)
    styles = (*source.shape[:-3], h, w) if average_styles else source.shape
    shape = torch.broadcast_shapes(target.shape, styles)
    if 0 in shape:
        return target.new_empty(shape)
    plain = window == "circle" and not average_styles and not phase
    if beta == 0 and plain:
        new = target.expand(shape).clone()
    elif plain and 4 * (2 * half_width + 1) < min(h, w):
        new = _swap_amplitudes_narrow(target, source, beta, half_width)
    else:
        new = _swap_spectra(target, source, beta, average_styles, phase, window)
    if output == "authors":
        modulus = new.abs()
        maximum = modulus.amax((-2, -1), keepdim=True)
        # What is left of a slice that the swap empties is the rounding of zero, which must not be scaled up.
        largest = target.abs().amax((-2, -1), keepdim=True)
        blank = (largest == 0) | (maximum <= 64 * torch.finfo(target.dtype).eps * largest)
        return (modulus / maximum.masked_fill(blank, 1)).masked_fill_(blank, 0)
    real = new.real if new.is_complex() else new
    return real.clamp(0, 1) if output == "clip" else real


def _radius(shape: tuple[int, int], beta: float) -> float:
    if not beta >= 0 or math.isinf(beta):
        raise SettingError(f"beta is {beta}", remedy="give a number of at least 0")
    return beta * min(shape)


def _swap_spectra(
    target: Tensor, source: Tensor, beta: float, average_styles: bool, phase: bool, window: str
) -> Tensor:
    """Steps 2 to 5 as written, for any window and option: (..., h, w), complex where the window is not symmetric."""
    h, w = target.shape[-2:]
    if window == "circle":
        inside = circular_mask((h, w), beta)
    elif window == "authors_rectangle":
        reach = int(beta * min(h, w))
        inside = torch.zeros(h, w, dtype=torch.bool)
        inside[max(0, h // 2 - reach) : h // 2 + reach, max(0, w // 2 - reach) : w // 2 + reach] = True
    else:
        raise SettingError(f"unknown window {window!r}", remedy="give circle or authors_rectangle")
    inside = torch.fft.ifftshift(inside).to(target.device)
    source_spectrum, spectrum = torch.fft.fft2(source), torch.fft.fft2(target)
    if phase:
        style = source_spectrum.mean(-3) if average_styles else source_spectrum
        mixed = torch.where(inside, style, spectrum)
    else:
        amplitude = source_spectrum.abs()
        amplitude = amplitude.mean(-3) if average_styles else amplitude
        mixed = torch.where(inside, torch.polar(*_broadcast(amplitude, spectrum.angle())), spectrum)
    new: Tensor = torch.fft.ifft2(mixed)
    if window == "circle":
        new = new.real
    return new


def _broadcast(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    first, second = torch.broadcast_tensors(x, y)
    return first.contiguous(), second.contiguous()


def _swap_amplitudes_narrow(target: Tensor, source: Tensor, beta: float, half_width: int) -> Tensor:
    """The same by two thin matrix products a slice: only frequencies inside the window are ever computed.

    y - t is the inverse transform of (|S| - |T|) exp(i angle T) inside the window. Real slices have conjugate
    spectra, so columns 0..K of the centred spectrum are enough.
    """
    h, w = target.shape[-2:]
    basis = _window_basis(h, w, beta, half_width, target.dtype, target.device)
    rows, columns, inverse_rows, inverse_columns, inside = basis

    def low_frequencies(slices: Tensor) -> Tensor:
        return rows @ torch.view_as_complex((slices @ columns).unflatten(-1, (-1, 2)))

    spectrum = low_frequencies(target)
    amplitude = spectrum.abs()
    # Below this a value is the rounding of a sum that is zero; the angle of exact zero is zero.
    noise = torch.finfo(target.dtype).eps * target.abs().sum((-2, -1))[..., None, None]
    is_zero = amplitude <= noise
    direction = torch.where(is_zero, 1.0, spectrum / amplitude.masked_fill(is_zero, 1))
    change = direction * ((low_frequencies(source).abs() - amplitude) * inside)
    return target + torch.view_as_real(inverse_rows @ change).flatten(-2) @ inverse_columns


@lru_cache(maxsize=32)
def _window_basis(
    h: int, w: int, beta: float, half_width: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Fourier bases of the window's frequencies: rows -K..K, columns 0..K."""
    row_frequencies = torch.arange(-half_width, half_width + 1, dtype=torch.float64)
    column_frequencies = torch.arange(half_width + 1, dtype=torch.float64)
    row_angle = 2 * math.pi * row_frequencies[:, None] * torch.arange(h) / h  # (2K+1, h)
    column_angle = 2 * math.pi * column_frequencies * torch.arange(w)[:, None] / w  # (w, K+1)
    rows = torch.polar(torch.ones_like(row_angle), -row_angle)
    columns = torch.stack([column_angle.cos(), -column_angle.sin()], -1).flatten(1)  # (w, 2(K+1)), real and imaginary
    # Columns 1..K stand for themselves and their mirror images.
    weight = column_frequencies.clamp(max=1).add(1) / (h * w)
    inverse = torch.stack([column_angle.cos() * weight, -column_angle.sin() * weight], -1).flatten(1).T
    inside = (row_frequencies.square()[:, None] + column_frequencies.square()).sqrt() < _radius((h, w), beta)
    complex_dtype = torch.complex128 if dtype == torch.float64 else torch.complex64
    return (
        rows.to(device, complex_dtype),
        columns.to(device, dtype),
        rows.mH.contiguous().to(device, complex_dtype),
        inverse.contiguous().to(device, dtype),
        inside.to(device, dtype),
    )
