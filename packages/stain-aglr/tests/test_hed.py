"""HED jitter against closed forms, scikit-image and an independent float64 implementation (specification 2.2, 9)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.color import hed2rgb, rgb2hed

from dart_core.run import cpu_threads
from stain_aglr import hed_jitter, random_hed_jitter
from stain_aglr.hed import SPACES, STAINS

PIXEL = torch.tensor([150, 100, 170], dtype=torch.float64).view(1, 3, 1, 1) / 255
ZERO = (0.0, 0.0, 0.0)


def reference(patch, alpha, beta, space):
    """The three conventions as printed, pixel by pixel in float64: patch (3, H, W)."""
    m = np.array(STAINS)
    x = patch.reshape(3, -1).T
    if space == "offset2":
        s = -np.log(x + 2) @ np.linalg.inv(m)
        out = np.exp(-(s * (1 + alpha) + beta) @ m) - 2
    elif space == "od":
        s = -np.log((255 * x + 1) / 256) @ np.linalg.inv(m)
        out = (256 * np.exp(-(s * (1 + alpha) + beta) @ m) - 1) / 255
    else:
        s = rgb2hed(x[None])[0] * (1 + alpha) + beta
        out = hed2rgb(s[None])[0]
    return np.clip(out, 0, 1).T.reshape(patch.shape)


@pytest.fixture(scope="module")
def patches():
    return np.random.default_rng(0).random((5, 3, 12, 9))


@pytest.mark.parametrize(
    ("space", "alpha", "beta", "expected"),
    [
        ("offset2", ZERO, (0.05, 0, 0), (128.89, 79.02, 160.21)),
        ("offset2", (0.05, 0, 0), ZERO, (174.87, 124.79, 181.31)),
        ("offset2", ZERO, (0, 0.05, 0), (147.69, 70.54, 166.27)),
        ("offset2", ZERO, (0, 0, 0.05), (141.15, 82.86, 143.99)),
        ("od", ZERO, (0.05, 0, 0), (145.17, 96.53, 167.54)),
        ("skimage", ZERO, (0.05, 0, 0), (95.74, 61.66, 139.14)),  # no stain of this pixel is negative: nothing is cut
    ],
)
def test_printed_pixel(space, alpha, beta, expected):
    found = hed_jitter(PIXEL, alpha, beta, space) * 255
    np.testing.assert_allclose(found.ravel(), expected, atol=0.006)


@pytest.mark.parametrize("space", SPACES)
def test_equals_the_formula_patch_by_patch(space, patches):
    rng = np.random.default_rng(1)
    alpha, beta = rng.uniform(-0.2, 0.2, (2, 5, 3))
    expected = np.stack([reference(p, a, b, space) for p, a, b in zip(patches, alpha, beta, strict=True)])
    found = hed_jitter(torch.from_numpy(patches), alpha, beta, space)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)
    single = hed_jitter(torch.from_numpy(patches).float(), torch.from_numpy(alpha), beta, space)
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("space", SPACES)
def test_path_with_gradient_gives_the_same_values(space, patches):
    """Patches that want a gradient go through PyTorch's functions alone."""
    x = torch.from_numpy(patches).requires_grad_()
    alpha, beta = torch.full((2, 5, 3), 0.03, dtype=torch.float64).unbind()
    found = hed_jitter(x, alpha, beta, space)
    torch.testing.assert_close(found.detach(), hed_jitter(x.detach(), alpha, beta, space), rtol=1e-12, atol=1e-13)
    found.sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


@given(st.floats(-3, 3), st.floats(-2, 2), st.sampled_from(SPACES))
def test_compiled_form_equals_the_formula_for_any_amounts(alpha, beta, space):
    """float32 on the CPU is compiled with polynomials for logarithm and power; float64 is not. 1,100 pixels are two stretches."""
    x = torch.rand(2, 3, 1, 1100, generator=torch.Generator().manual_seed(0))
    x[0, :, 0, :4] = torch.tensor([[0, 1, 0, 1 / 255], [0, 1, 1, 0], [0, 1, 0, 1]])
    amounts = (alpha, -alpha, alpha / 3), (beta, beta / 2, -beta)
    found, exact = hed_jitter(x, *amounts, space), hed_jitter(x.double(), *amounts, space)
    assert found.dtype == torch.float32
    # A logarithm's rounding grows with the amounts on the way to the colour.
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=2e-5)


def test_a_pixel_that_is_no_number_stays_none():
    x = torch.full((1, 3, 2, 2), 0.5)
    x[0, 1, 0, 0], x[0, 2, 1, 1] = float("nan"), float("inf")
    found = hed_jitter(x, (0.05, 0.02, -0.01), (0.01, 0.02, 0.03))
    assert found[0, :, 0, 0].isnan().all()
    assert found[0, :, 1, 1].isnan().all()
    assert found[0, :, 0, 1].isfinite().all()


def test_gradient(patches):
    x = torch.from_numpy(patches[:1, :, :2, :2] * 0.5 + 0.2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: hed_jitter(x, (0.02, -0.01, 0.03), (0.01, 0.0, -0.02)), (x,))


@pytest.mark.parametrize("space", ["offset2", "od"])
def test_nothing_drawn_is_the_identity(space, patches):
    x = torch.from_numpy(patches)
    assert (hed_jitter(x, ZERO, ZERO, space) - x).abs().max() < 1e-9
    every = torch.arange(256).view(1, 1, 16, 16).expand(1, 3, 16, 16).float() / 255
    assert torch.equal((hed_jitter(every, ZERO, ZERO, space) * 255).round(), every * 255)


def test_nothing_drawn_changes_colours_in_scikit_images_space(patches):
    assert (hed_jitter(torch.from_numpy(patches), ZERO, ZERO, "skimage") - torch.from_numpy(patches)).abs().max() > 0.1


def test_white_moves_in_the_default_space():
    white = torch.ones(1, 3, 1, 1, dtype=torch.float64)
    np.testing.assert_allclose(hed_jitter(white, (-0.05,) * 3, ZERO).ravel() * 255, [214.1] * 3, atol=0.05)


@given(st.floats(-0.2, 0.2), st.floats(-0.2, 0.2), st.sampled_from(["offset2", "od"]))
def test_jitters_can_be_undone(alpha, beta, space):
    """s (1 + a) + b is undone by a' = -a / (1 + a), b' = -b / (1 + a), as long as nothing was clipped."""
    x = torch.full((1, 3, 1, 1), 0.5, dtype=torch.float64)
    there = hed_jitter(x, (alpha,) * 3, (beta, -beta, beta / 2), space)
    if ((there <= 0) | (there >= 1)).any():
        return
    undo = [-b / (1 + alpha) for b in (beta, -beta, beta / 2)]
    torch.testing.assert_close(hed_jitter(there, (-alpha / (1 + alpha),) * 3, undo, space), x, rtol=1e-9, atol=1e-9)


def test_cutoff():
    x = torch.stack([torch.full((3, 4, 4), v / 255) for v in (230, 20, 200)])
    found = hed_jitter(x, (0.05, 0.02, -0.01), (0.01, 0.02, 0.03), cutoff=(0.15, 0.85))
    assert torch.equal(found[:2], x[:2])
    assert not torch.allclose(found[2], x[2], atol=0.01)
    assert not torch.allclose(hed_jitter(x, (0.05, 0.02, -0.01), (0.01, 0.02, 0.03))[:2], x[:2], atol=0.01)


def test_random_draws_are_of_each_patch_and_repeatable(patches):
    x = torch.from_numpy(patches[:1]).expand(4, -1, -1, -1)
    first, second = (random_hed_jitter(x, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert len({float(patch.sum()) for patch in first}) == 4
    alpha, beta = torch.rand((2, 4, 3), generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 0.1 - 0.05
    torch.testing.assert_close(first, hed_jitter(x, alpha, beta, cutoff=(0.15, 0.85)))
    torch.testing.assert_close(random_hed_jitter(x, strength=0.0), x)


def test_layouts_and_sizes(patches):
    x = torch.from_numpy(patches)
    last = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(hed_jitter(last, (0.1, 0, 0), ZERO), hed_jitter(x, (0.1, 0, 0), ZERO))
    assert hed_jitter(x[:0], torch.zeros(0, 3), torch.zeros(0, 3)).shape == (0, 3, 12, 9)
    before = x.clone()
    hed_jitter(x, (0.1, 0, 0), ZERO)
    assert torch.equal(x, before)
    big = torch.rand(40, 3, 96, 96, dtype=torch.float64)  # several parts of the cache
    alpha = torch.rand(40, 3) * 0.1
    expected = torch.cat([hed_jitter(big[i : i + 1], alpha[i], ZERO) for i in range(40)])
    torch.testing.assert_close(hed_jitter(big, alpha, ZERO), expected)


@pytest.mark.parametrize(
    ("images", "alpha", "words"),
    [
        (torch.zeros(3, 4, 4), ZERO, "(3, 4, 4)"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), ZERO, "uint8"),
        (torch.zeros(1, 4, 4, 3), ZERO, "(1, 4, 4, 3)"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(3, 3), "alpha has shape (3, 3)"),
    ],
)
def test_bad_input(images, alpha, words):
    with pytest.raises(ValueError, match="give") as caught:
        hed_jitter(images, alpha, ZERO)
    assert words in str(caught.value)


def test_unknown_space():
    with pytest.raises(ValueError, match="no space 'lab'; give one of offset2, skimage, od"):
        hed_jitter(PIXEL, ZERO, ZERO, "lab")  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("space", SPACES)
def test_cuda(space, patches):
    x = torch.from_numpy(patches)
    found = hed_jitter(x.cuda(), (0.02, -0.03, 0.01), (0.01, 0.02, 0.03), space).cpu()
    torch.testing.assert_close(found, hed_jitter(x, (0.02, -0.03, 0.01), (0.01, 0.02, 0.03), space))


@pytest.mark.parametrize("space", SPACES)
def test_threads_do_not_change_the_result(space):
    x = torch.rand(5, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    alpha, beta = torch.rand(2, 5, 3, generator=torch.Generator().manual_seed(1)) * 0.1
    found = []
    for count in (1, 3):
        with cpu_threads(count):
            found.append(hed_jitter(x, alpha, beta, space))
    assert torch.equal(*found)
