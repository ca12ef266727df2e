"""Closed-form cases of the specification: its section 9 in order, then the counts and rules of section 2."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dart_core.evaluation import score
from fda_mri import (
    DonorBank,
    circular_mask,
    fourier_transfer,
    multi_source_predict,
    select_beta,
    select_pairs,
    sr_sim,
)
from fda_mri.baselines import printed_table
from fda_mri.settings import BETAS, COUNTS, Transfer

SHAPES = [(24, 30), (25, 31), (48, 56)]


def slices(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random(shape))


def formula(t: Tensor, s: Tensor, beta: float) -> Tensor:
    return fourier_transfer(t, s, beta, output="formula")


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


# Section 9


@pytest.mark.parametrize("shape", SHAPES)
def test_1_no_window_and_whole_window(shape: tuple[int, int]) -> None:
    t, s = slices(0, *shape) - 0.2, slices(1, *shape)
    close(formula(t, s, 0), t)
    close(fourier_transfer(t, s, 0), t.abs() / t.abs().max())
    close(fourier_transfer(t, s, 0, output="clip"), t.clamp(0, 1))
    assert circular_mask(shape, 1).all()
    whole = torch.fft.ifft2(torch.polar(torch.fft.fft2(s).abs(), torch.fft.fft2(t).angle())).real
    for beta in (1.0, 1.7, 50.0):
        close(formula(t, s, beta), whole)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("beta", [0.0, 0.02, 0.1, 0.4, 2.0])
def test_2_source_equal_to_target(shape: tuple[int, int], beta: float) -> None:
    t = slices(2, *shape)
    close(formula(t, t, beta), t)
    close(fourier_transfer(t, t, beta), t / t.max())
    if beta == 2:
        close(formula(t, 0.3 * t, beta), 0.3 * t)
        close(fourier_transfer(t, 0.3 * t, beta), t / t.max())


@pytest.mark.parametrize("shape", [*SHAPES, (3, 4)])
def test_3_only_the_mean_inside(shape: tuple[int, int]) -> None:
    beta = 0.9 / min(shape)
    assert circular_mask(shape, beta).sum() == 1
    t, s = slices(3, *shape), slices(4, *shape)
    close(formula(t, s, beta), t + s.mean() - t.mean())
    moved = (t + s.mean() - t.mean()).abs()
    close(fourier_transfer(t, s, beta), moved / moved.max())
    negative = t - 2
    close(formula(negative, s, beta), negative - s.mean() - negative.mean())
    assert formula(negative, s, beta).mean().item() == pytest.approx(-s.mean().item())
    # A mean of exactly 0 has the phase 0.
    balanced = torch.zeros(shape, dtype=torch.float64)
    balanced[0, 0], balanced[1, 2] = 0.5, -0.5
    close(formula(balanced, s - 3, beta), balanced + (s - 3).mean().abs())


def test_4_energy() -> None:
    for shape in SHAPES:
        t, s = slices(5, *shape), slices(6, *shape)
        y = formula(t, s, 0.15)
        inside = torch.fft.ifftshift(circular_mask(shape, 0.15))
        amplitude = torch.where(inside, torch.fft.fft2(s).abs(), torch.fft.fft2(t).abs())
        assert y.square().sum().item() == pytest.approx(amplitude.square().sum().item() / y.numel(), rel=1e-12)
        close(torch.fft.fft2(y).abs() / y.numel(), amplitude / y.numel())
        turned = torch.fft.fft2(y) * torch.fft.fft2(t).conj()
        assert turned.angle().abs().max() < 1e-8


def test_5_scale_and_shifts() -> None:
    t, s = slices(7, 24, 30), slices(8, 24, 30)
    result = fourier_transfer(t, s, 0.1)
    close(fourier_transfer(17.0 * t, 17.0 * s, 0.1), result)
    close(fourier_transfer(t, s.roll((5, -3), (0, 1)), 0.1), result)
    close(fourier_transfer(t.roll((5, -3), (0, 1)), s, 0.1), result.roll((5, -3), (0, 1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_6_two_by_two(dtype: torch.dtype) -> None:
    t, s = torch.tensor([[1, 0], [0, 0]], dtype=dtype), torch.ones(2, 2, dtype=dtype)
    torch.testing.assert_close(formula(t, s, 0.5), torch.tensor([[1.75, 0.75], [0.75, 0.75]], dtype=dtype))
    torch.testing.assert_close(fourier_transfer(t, s, 0.5), torch.tensor([[1, 3 / 7], [3 / 7, 3 / 7]], dtype=dtype))
    torch.testing.assert_close(
        fourier_transfer(t, s, 0.5, output="clip"), torch.tensor([[1, 0.75], [0.75, 0.75]], dtype=dtype)
    )


@pytest.mark.parametrize(("dtype", "half"), [(torch.float32, 0.35709), (torch.float64, 0.35706)])
def test_7_sr_sim(dtype: torch.dtype, half: float) -> None:
    zeros, grey, white = (torch.full((120, 120), value, dtype=dtype) for value in (0.0, 0.5, 1.0))
    assert sr_sim(zeros, zeros).item() == pytest.approx(1, abs=1e-6)
    assert sr_sim(white, white).item() == pytest.approx(1, abs=1e-6)
    assert sr_sim(grey, grey).item() == pytest.approx(1, abs=1e-6)
    assert sr_sim(zeros, grey).item() == pytest.approx(half, abs=2e-5)
    x, y = slices(9, 5, 48, 56).to(dtype), slices(10, 5, 48, 56).to(dtype)
    together = sr_sim(x, y)
    assert (together <= 1 + 1e-6).all()
    torch.testing.assert_close(sr_sim(y, x), together)
    torch.testing.assert_close(torch.stack([sr_sim(a, b) for a, b in zip(x, y, strict=True)]), together)


def test_8_search_with_one_donor() -> None:
    source, target = slices(11, 44, 50, 8), slices(12, 44, 50, 8)
    bank = DonorBank.build([source])
    three, two, between = (bank.rank(target, mode, 1) for mode in ("3d", "2d", "2.5d"))
    for scans, _, _ in (three, two, between):
        assert not scans.any()
    for _, offsets, _ in (three, two):
        assert not offsets.any()
    assert not between[1][[0, 1, 6, 7]].any()
    torch.testing.assert_close(three[2], two[2].mean().expand(8, 1))
    assert (between[2] >= two[2]).all()
    assert torch.equal(between[1] == 0, between[2] == two[2])
    assert between[1].any()


def test_9_donors_that_are_the_same() -> None:
    def model(x: Tensor) -> Tensor:
        return 8 * x - 4

    target, sources = slices(13, 24, 32, 3), slices(14, 4, 24, 32, 3)
    one = multi_source_predict(model, target, sources[:1], 0.1)
    close(multi_source_predict(model, target, sources[:1].expand(6, -1, -1, -1), 0.1), one)
    single = torch.stack([multi_source_predict(model, target, source[None], 0.1) for source in sources])
    mean = multi_source_predict(model, target, sources, 0.1)
    assert (single.amin(0) <= mean).all()
    assert (mean <= single.amax(0)).all()
    # One slice by hand: sigmoid(8 x - 4) of each transferred slice.
    moved = fourier_transfer(target[..., 1], sources[..., 1], 0.1)
    close(mean[..., 1], (1 / (1 + torch.exp(4 - 8 * moved))).mean(0))


def test_10_surface_dice() -> None:
    cube = np.zeros((20, 20, 20), bool)
    cube[4:12, 4:12, 4:12] = True
    moved = np.roll(cube, 1, axis=0)
    voxel, neighbour = np.zeros_like(cube), np.zeros_like(cube)
    voxel[5, 5, 5] = neighbour[6, 5, 5] = True
    far = np.roll(cube, 8, axis=(0, 1, 2))
    empty = np.zeros_like(cube)

    def surface(a: np.ndarray, b: np.ndarray, tolerance: float = 1.0) -> float:
        return score(a, b, (1, 1, 1), tolerance)["surface_dice"]

    assert surface(cube, cube) == 1
    assert surface(cube, moved) == 1
    assert surface(cube, moved, 0.5) == pytest.approx(0.66585, abs=5e-6)
    assert surface(voxel, neighbour, 0.5) == pytest.approx(0.5)
    assert surface(voxel, neighbour) == pytest.approx(1)
    assert surface(voxel, far) == 0
    assert np.isnan(surface(empty, empty))
    assert surface(cube, empty) == 0
    assert score(empty, empty, (1, 1, 1))["dice"] == 1


@pytest.mark.parametrize(
    ("shape", "counts"),
    [
        ((182, 218), [1, 9, 21, 45, 69, 97, 129, 169]),
        ((256, 256), [5, 21, 45, 89, 129, 185, 249, 333]),
        # At beta 0.025 the radius is exactly 4; a window with its edge would hold 49.
        ((160, 160), [1, 9, 21, 37, 45, 69, 97, 129]),
    ],
)
def test_11_window_counts(shape: tuple[int, int], counts: list[int]) -> None:
    assert [int(circular_mask(shape, beta / 1000).sum()) for beta in range(5, 45, 5)] == counts
    assert circular_mask(shape, 0).sum() == 0
    assert circular_mask(shape, 0.04)[shape[0] // 2, shape[1] // 2]


def test_12_change_is_band_limited() -> None:
    t, s = slices(15, 182, 218), slices(16, 182, 218)
    for beta in BETAS:
        inside = circular_mask((182, 218), beta)
        change = torch.fft.fftshift(torch.fft.fft2(formula(t, s, beta) - t))
        assert not (change.abs() > 1e-8)[~inside].any()
        spectrum, source = (torch.fft.fftshift(torch.fft.fft2(image)) for image in (t, s))
        expected = torch.polar(source.abs() - spectrum.abs(), spectrum.angle())
        torch.testing.assert_close(change[inside], expected[inside], rtol=0, atol=1e-8)


# 2.6: choice of beta


def test_grid_of_the_paper() -> None:
    assert BETAS == (0.0, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03)
    assert COUNTS == (1, 3, 5, 7, 11, 15)
    default = Transfer()
    assert (default.n, default.neighbours, default.crop, default.mode, default.beta) == (7, 2, 60, "3d", 0.015)
    assert (default.output, default.average, default.donor_seed) == ("authors", "probabilities", 42)


def test_both_policies_for_beta() -> None:
    scores = np.array([[0.1, 0.2, 0.9, 0.3], [0.1, 0.8, 0.3, 0.2], [0.2, 0.6, 0.5, 0.9]])
    betas = (0.0, 0.005, 0.01, 0.015)
    per_pair: Any = select_beta(scores, betas, policy="per_pair")
    assert per_pair.tolist() == [0.01, 0.005, 0.015]
    # Column means 0.133, 0.533, 0.567, 0.467.
    averaged = select_beta(scores, betas)
    assert isinstance(averaged, float)
    assert averaged == 0.01
    assert select_beta(scores.tolist(), list(betas), "averaged") == 0.01


def test_best_at_no_swap_takes_the_next_value() -> None:
    """Not the best of the others, which is 0.01."""
    curve = np.array([[0.9, 0.1, 0.8]])
    assert select_beta(curve, (0.0, 0.005, 0.01)) == 0.005
    assert np.asarray(select_beta(curve, (0.0, 0.005, 0.01), policy="per_pair")).tolist() == [0.005]
    # A grid without 0 has no such rule.
    assert select_beta(curve, (0.005, 0.01, 0.015)) == 0.005
    assert select_beta(np.array([[0.1, 0.9, 0.8]]), (0.005, 0.01, 0.015)) == 0.01


def test_first_maximum_wins() -> None:
    assert select_beta(np.array([[0.1, 0.7, 0.7, 0.7]]), (0.0, 0.005, 0.01, 0.015)) == 0.005
    assert select_beta(np.array([[0.7, 0.1, 0.1, 0.7]]), (0.0, 0.005, 0.01, 0.015)) == 0.005


# 2.7: choice of the pairs


@pytest.fixture(scope="module")
def transfer_matrix() -> tuple[list[str], np.ndarray]:
    table = printed_table("table1")
    sites = [str(row["target_domain"]) for row in table]
    return sites, np.array([[float(row[f"source_{site}_mean"]) for site in sites] for row in table])


PAPER = ["sm3->ge15", "ge3->ph3", "ph3->ge15", "sm15->ph3", "ph3->sm15", "ge15->ph15"]


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("score", PAPER),
        ("decline_vs_source", PAPER),
        ("decline_vs_target", ["sm3->ge15", "ge3->ge15", "ph3->ge15", "ph15->ge3", "ph3->sm15", "ge15->ph15"]),
    ],
)
def test_the_paper_chose_its_six_pairs(by: Any, expected: list[str], transfer_matrix: Any) -> None:
    sites, matrix = transfer_matrix
    assert [f"{sites[source]}->{sites[target]}" for source, target in select_pairs(matrix, by=by)] == expected


def test_default_order_is_the_score(transfer_matrix: Any) -> None:
    _, matrix = transfer_matrix
    assert select_pairs(matrix) == select_pairs(matrix, 2, "score")
    assert len(select_pairs(matrix, per_cluster=5)) == 15
