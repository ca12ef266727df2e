"""Fourier transfer of fda-mri against the slice-by-slice NumPy form: a volume of 200 slices of 182 x 218 with 7 donors."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from compare import alternate, record

from fda_mri import circular_mask, fourier_transfer

SLICES, SHAPE, DONORS, BETA = 200, (182, 218), 7, 0.03


def slice_by_slice(target: np.ndarray, donors: np.ndarray) -> np.ndarray:
    """(n, Z, h, w) transferred slices as the paper's formula reads, one at a time."""
    window = circular_mask(SHAPE, BETA).numpy()
    result = np.empty_like(donors)
    for j, donor in enumerate(donors):
        for z, (t, s) in enumerate(zip(target, donor, strict=True)):
            spectrum = np.fft.fftshift(np.fft.fft2(t))
            style = np.fft.fftshift(np.fft.fft2(s))
            amplitude = np.where(window, np.abs(style), np.abs(spectrum))
            new = np.abs(np.fft.ifft2(np.fft.ifftshift(amplitude * np.exp(1j * np.angle(spectrum)))))
            result[j, z] = new / new.max()
    return result


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    target = rng.random((SLICES, *SHAPE), dtype=np.float32)
    donors = rng.random((DONORS, SLICES, *SHAPE), dtype=np.float32)
    target_tensor, donor_tensor = (torch.from_numpy(x).to(arguments.device) for x in (target, donors))

    def ours() -> torch.Tensor:
        # Donor by donor, as `multi_source_predict` does.
        result = torch.stack([fourier_transfer(target_tensor, donor, BETA) for donor in donor_tensor])
        if arguments.device != "cpu":
            torch.cuda.synchronize()
        return result

    difference = float(np.abs(ours().cpu().numpy() - slice_by_slice(target, donors)).max())
    if difference > 1e-5:
        raise SystemExit(f"results differ by {difference:.1e}; not timed")
    seconds = alternate(
        {"numpy slice by slice": lambda: slice_by_slice(target, donors), "ours": ours}, arguments.rounds
    )
    record(
        f"fda-mri-transfer-{arguments.device}",
        seconds,
        {"largest difference": difference},
        arguments.out,
        arguments.device,
    )


if __name__ == "__main__":
    main()
