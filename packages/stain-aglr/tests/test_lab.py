"""CIE Lab against scikit-image and OpenCV."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stain_aglr.lab import lab_to_rgb, rgb_to_lab, tissue_mask


def colours(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (64, 64, 3), np.uint8)
    image[0, :10] = np.arange(10)[:, None]
    image[1], image[2] = 0, 255
    return image


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None]


def test_lab_is_scikit_images() -> None:
    skimage = pytest.importorskip("skimage.color")
    lab = rgb_to_lab(tensor(colours()).double() / 255)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(lab, skimage.rgb2lab(colours()), atol=0.02)  # its white point has more digits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_there_and_back(dtype: torch.dtype) -> None:
    rgb = tensor(colours()).to(dtype) / 255
    back = lab_to_rgb(rgb_to_lab(rgb))
    assert back.dtype == dtype
    assert (back - rgb).abs().max() < 1e-4


def test_gradients_are_finite_and_right() -> None:
    rgb = torch.tensor([[0.0, 0.0, 0.0], [1, 1, 1], [0.03, 0.0, 0.9], [0.4, 0.5, 0.6]], dtype=torch.float64)
    rgb = rgb.T[None, :, :, None].clone().requires_grad_(True)
    rgb_to_lab(rgb).sum().backward()
    assert rgb.grad is not None
    assert rgb.grad.isfinite().all()
    inside = torch.rand(1, 3, 2, 2, dtype=torch.float64).mul_(0.8).add_(0.1).requires_grad_(True)
    assert torch.autograd.gradcheck(rgb_to_lab, (inside,))


def test_tissue_is_below_a_lightness_of_204() -> None:
    cv2 = pytest.importorskip("cv2")
    for seed in range(4):
        image = colours(seed)
        lightness = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)[..., 0]
        assert np.array_equal(tissue_mask(tensor(image))[0].numpy(), lightness / 255 < 0.8)


@pytest.mark.parametrize(("grey", "tissue"), [(0, True), (197, True), (198, False), (255, False)])
def test_tissue_of_greys(grey: int, tissue: bool) -> None:
    """L = 116 Y^(1/3) - 16 is 80 (204 of 255) between the greys 197 and 198, rounding included."""
    assert bool(tissue_mask(torch.full((1, 3, 1, 1), grey, dtype=torch.uint8)).all()) is tissue
