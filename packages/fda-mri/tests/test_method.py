from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor, nn

from dart_core.nets import ResidualUNet2d
from dart_core.run import Run
from dart_core.settings import RunSettings
from fda_mri import (
    DonorBank,
    multi_source_predict,
    normalise_volume,
    segmentation_loss,
    select_beta,
    select_pairs,
    train_source,
)
from fda_mri.method import training_batches, validation_loss
from fda_mri.settings import Training

quick = settings(deadline=None, max_examples=25, derandomize=True)
SHAPE = (43, 50, 6)
Transfer = Callable[..., Any]


def scan(seed: int, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    rng = np.random.default_rng(seed)
    y, x, z = np.mgrid[: shape[0], : shape[1], : shape[2]] / 15
    a, b, c = rng.uniform(0.3, 3, 3)
    return torch.from_numpy(0.5 + 0.3 * np.sin(a * y + z) * np.cos(b * x + c) + 0.2 * rng.random(shape))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A network that looks at neighbours and at borders, float64."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(1, 3, 5, padding=2), nn.Tanh(), nn.Dropout(0.5), nn.Conv2d(3, 1, 3, padding=1))
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.mul_(4)
    return layers.double()


# Multi-source prediction against a loop


def slow_predict(
    network: nn.Module,
    target: Tensor,
    donors: list[list[Tensor]],
    beta: float,
    transfer: Transfer,
    output: str = "authors",
    average: str = "probabilities",
) -> np.ndarray:
    """Specification 2.5, one slice and one donor at a time; donors[z] are the donor slices of slice z."""
    network.eval()
    h, w, slices = target.shape
    top, left = -h % 8 // 2, -w % 8 // 2
    result = np.zeros(target.shape)
    for z in range(slices):
        terms = []
        for donor in donors[z]:
            t = transfer(target[..., z].numpy(), donor.numpy(), beta, output)
            t = np.pad(t, ((top, -h % 8 - top), (left, -w % 8 - left)), constant_values=t.min())
            with torch.no_grad():
                logits = network(torch.from_numpy(t)[None, None])[0, 0].numpy()[top : top + h, left : left + w]
            terms.append(1 / (1 + np.exp(-logits)) if average == "probabilities" else logits)
        mean = np.mean(terms, axis=0)
        result[..., z] = mean if average == "probabilities" else 1 / (1 + np.exp(-mean))
    return result


@pytest.mark.parametrize("mode", ["3d", "2d", "2.5d"])
@pytest.mark.parametrize("beta", [0.0, 0.02, 0.08])
def test_equals_the_loop(mode: Any, beta: float, network: nn.Module, numpy_transfer: Transfer) -> None:
    sources, target = [scan(seed) for seed in range(3)], scan(10)
    bank = DonorBank.build(sources)
    # In 2.5-D nine donors are more than the first and last two slices have.
    n = 9 if mode == "2.5d" else 2
    scans, offsets, _ = bank.rank(target, mode, n)
    chosen = [
        [sources[k][..., z + int(d)] for k, d in zip(scans[z], offsets[z], strict=True) if k >= 0]
        for z in range(SHAPE[2])
    ]
    assert {len(row) for row in chosen} == ({3, 9} if mode == "2.5d" else {2})
    expected = slow_predict(network, target, chosen, beta, numpy_transfer)
    found = multi_source_predict(network, target, bank, beta, mode=mode, n=n)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-10)
    given_donors = multi_source_predict(network, target, bank.gather(scans, offsets), beta, batch_size=4)
    np.testing.assert_allclose(given_donors.numpy(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("output", ["authors", "formula", "clip"])
@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_options_equal_the_loop(output: Any, average: Any, network: nn.Module, numpy_transfer: Transfer) -> None:
    target, donors = scan(11), torch.stack([scan(seed) for seed in range(20, 23)])
    chosen = [[donor[..., z] for donor in donors] for z in range(SHAPE[2])]
    expected = slow_predict(network, target, chosen, 0.05, numpy_transfer, output, average)
    found = multi_source_predict(network, target, donors, 0.05, output=output, average=average)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-10)


def test_averaging_logits_is_something_else(network: nn.Module) -> None:
    target, donors = scan(12), torch.stack([scan(seed) for seed in range(20, 23)])
    one, other = (
        multi_source_predict(network, target, donors, 0.05, average=average) for average in ("probabilities", "logits")
    )
    assert (one - other).abs().max() > 1e-3


@pytest.mark.parametrize("beta", [0.02, 0.3])
def test_slots_without_any_donor(beta: float, network: nn.Module) -> None:
    """With three slices the 2.5-D search has no neighbours at all, so that whole ranks stay empty."""
    bank, target = DonorBank.build([scan(0, (48, 48, 3))]), scan(1, (48, 48, 3))
    found = multi_source_predict(network, target, bank, beta, mode="2.5d", n=4)
    torch.testing.assert_close(found, multi_source_predict(network, target, bank, beta, mode="2d", n=1))


def test_identical_donors_are_one_donor(network: nn.Module) -> None:
    target, donor = scan(13), scan(14)
    one = multi_source_predict(network, target, donor[None], 0.03)
    many = multi_source_predict(network, target, donor.expand(5, *SHAPE), 0.03)
    torch.testing.assert_close(many, one, rtol=0, atol=1e-12)


def test_mean_lies_between_the_single_predictions(network: nn.Module) -> None:
    target, donors = scan(15), torch.stack([scan(seed) for seed in range(4)])
    single = torch.stack([multi_source_predict(network, target, donor[None], 0.03) for donor in donors])
    mean = multi_source_predict(network, target, donors, 0.03)
    assert (mean >= single.amin(0) - 1e-12).all()
    assert (mean <= single.amax(0) + 1e-12).all()
    torch.testing.assert_close(mean, single.mean(0))


def test_network_sees_padded_slices_in_evaluation_mode(network: nn.Module) -> None:
    seen: list[torch.Size] = []

    def model(x: Tensor) -> Tensor:
        seen.append(x.shape)
        return x

    multi_source_predict(model, scan(16), scan(17)[None], 0.03, batch_size=4)
    assert seen == [(4, 1, 48, 56), (2, 1, 48, 56)]
    network.train()
    results = [multi_source_predict(network, scan(16), scan(17)[None], 0.03) for _ in range(2)]
    assert torch.equal(*results)  # no dropout
    assert network.training
    assert not results[0].requires_grad


def test_arrays_give_arrays(network: nn.Module) -> None:
    target, donors = scan(18), torch.stack([scan(19), scan(20)])
    expected = multi_source_predict(network, target, donors, 0.03, output="formula").numpy()
    array: Any = target.numpy()
    for given_donors in (donors, donors.numpy()):
        found: Any = multi_source_predict(network, array, given_donors, 0.03, output="formula")  # type: ignore[arg-type]
        assert isinstance(found, np.ndarray)
        assert np.array_equal(found, expected)
    bank = DonorBank.build(list(donors))
    found = multi_source_predict(network, array, bank, 0.03, "2d", 1)
    assert np.array_equal(found, multi_source_predict(network, target, bank, 0.03, "2d", 1).numpy())


def test_float32_agrees_with_float64() -> None:
    target, donors = scan(21), torch.stack([scan(22), scan(23)])

    def model(x: Tensor) -> Tensor:
        return 6 * x - 3

    found = multi_source_predict(model, target.float(), donors.float(), 0.03)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), multi_source_predict(model, target, donors, 0.03), rtol=0, atol=1e-5)


def test_bad_donors_are_refused(network: nn.Module) -> None:
    target, donors = scan(24), torch.stack([scan(25), scan(26)])
    with pytest.raises(ValueError, match=r"donors have shape \(2, 43, 50, 5\), the target scan \(43, 50, 6\)"):
        multi_source_predict(network, target, donors[..., :5], 0.03)
    with pytest.raises(ValueError, match="donors have shape"):
        multi_source_predict(network, target, donors[0], 0.03)
    donors[..., 4] = torch.nan
    with pytest.raises(ValueError, match="slice 4 of the target scan has no donor"):
        multi_source_predict(network, target, donors, 0.03)
    with pytest.raises(ValueError, match="unknown donor search"):
        multi_source_predict(network, target, DonorBank.build([scan(0)]), 0.03, mode="4d")  # type: ignore[arg-type]


# Normalisation


@quick
@given(
    arrays.arrays(np.float64, arrays.array_shapes(min_dims=3, max_dims=3, max_side=6), elements=st.floats(-1e3, 1e3)),
)
def test_normalisation_by_hand(volume: np.ndarray) -> None:
    low, high = np.percentile(volume, (1, 99))
    clipped = volume.clip(low, high)
    expected = clipped - clipped.min()
    if expected.max() > 0:
        expected = expected / expected.max()
    found: Any = normalise_volume(volume)  # type: ignore[arg-type]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert np.array_equal(found, normalise_volume(torch.from_numpy(volume)).numpy())


@pytest.mark.parametrize("kind", ["<i2", ">i2", ">f4", "<f8", "u1", "f2"])
def test_normalisation_of_arrays_as_files_give_them(kind: str) -> None:
    numbers = np.arange(120).reshape(4, 5, 6)
    volume: Any = numbers.astype(kind)[::-1].transpose(2, 0, 1)
    volume.flags.writeable = False
    found: Any = normalise_volume(volume)
    assert isinstance(found, np.ndarray)
    expected: Any = normalise_volume(numbers[::-1].transpose(2, 0, 1).astype(np.float32))  # type: ignore[arg-type]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_normalisation_of_0_to_100() -> None:
    """Percentiles of 0, 1, ..., 100 are the numbers themselves: 1 becomes 0, 99 becomes 1, 50 becomes 1/2."""
    volume = torch.arange(101, dtype=torch.int16).reshape(101, 1, 1)
    found = normalise_volume(volume).flatten()
    assert found[[0, 1, 50, 99, 100]].tolist() == [0, 0, 0.5, 1, 1]
    assert not normalise_volume(torch.full((3, 3, 3), 7.0)).any()
    with pytest.raises(ValueError, match="NaN or infinite"):
        normalise_volume(torch.full((3, 3, 3), torch.nan))


# Loss and training


def test_loss_by_hand() -> None:
    logits = torch.tensor([[0.3, -1.2, 2.0], [0.0, 0.7, -3.0]], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    p = 1 / (1 + np.exp(-logits.detach().numpy()))
    bce = -np.mean(y.numpy() * np.log(p) + (1 - y.numpy()) * np.log(1 - p))
    dice = [1 - 2 * (q * t).sum() / ((q**2).sum() + (t**2).sum()) for q, t in zip(p, y.numpy(), strict=True)]
    loss = segmentation_loss(logits, y)
    assert loss.item() == pytest.approx(0.4 * bce + 0.6 * np.mean(dice), abs=1e-7)
    assert dice[1] == 1  # an empty mask costs 1
    torch.autograd.backward(loss)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_loss_at_even_odds() -> None:
    """p = 1/2 everywhere, mask all ones: BCE ln 2, Dice loss 1 - 2 (1/2) / (1/4 + 1) = 1/5."""
    loss = segmentation_loss(torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 4, 4))
    assert loss.item() == pytest.approx(0.4 * math.log(2) + 0.6 * 0.2, abs=1e-6)


def marked_scans() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Every voxel says in which scan, row, column and slice it lies; a mask is a function of its image."""
    volumes = []
    for k, shape in enumerate([(30, 34, 4), (26, 40, 3)]):
        y, x, z = np.mgrid[: shape[0], : shape[1], : shape[2]]
        volumes.append((k * 1e6 + z * 1e4 + y * 100 + x).astype(np.float32))
    return volumes, [volume.astype(int) % 3 == 0 for volume in volumes]


def test_training_batches_are_random_crops_of_image_and_mask() -> None:
    volumes, masks = marked_scans()
    batches = training_batches(volumes, masks, Training(crop_size=24, batch_size=50), seed=3)
    batch = [batches.batch(step) for step in range(8)]
    image, mask = (torch.cat([part[name] for part in batch])[:, 0].numpy() for name in ("image", "mask"))
    assert image.shape == mask.shape == (400, 24, 24)
    assert mask.dtype == np.float32
    assert np.array_equal(mask == 1, image.astype(int) % 3 == 0)
    corner = image[:, 0, 0].astype(int)
    assert np.array_equal(image, corner[:, None, None] + 100 * np.arange(24)[:, None] + np.arange(24))
    scan, z, y, x = corner // 10**6, corner // 10**4 % 100, corner // 100 % 100, corner % 100
    # Uniform over scans, over their slices, and over all places; bounds at five standard deviations.
    assert abs((scan == 0).sum() - 200) < 50
    for k, (rows, columns, slices) in enumerate([(7, 11, 4), (3, 17, 3)]):
        drawn = int((scan == k).sum())
        for values, count in ((z[scan == k], slices), (y[scan == k], rows), (x[scan == k], columns)):
            counts = np.bincount(values, minlength=count)
            assert len(counts) == count
            assert np.abs(counts - drawn / count).max() < 5 * math.sqrt(drawn / count)


def test_training_pads_small_slices() -> None:
    volumes, masks = marked_scans()
    volumes = [volume + 1 for volume in volumes]
    batch = training_batches(volumes, masks, Training(crop_size=40, batch_size=20), seed=3).batch(0)
    for image, mask in zip(batch["image"][:, 0].numpy(), batch["mask"][:, 0].numpy(), strict=True):
        scan = int(image.max() >= 1e6)
        h, w, _ = volumes[scan].shape
        top, left = (40 - h) // 2, (40 - w) // 2
        inside = np.zeros((40, 40), bool)
        inside[top : top + h, left : left + w] = True
        assert (image[~inside] == image[inside].min()).all()
        assert not mask[~inside].any()
        assert np.array_equal(mask[inside] == 1, (image[inside].astype(int) - 1) % 3 == 0)


def phantom_training() -> tuple[list[np.ndarray], list[np.ndarray]]:
    volumes = [scan(seed, (24, 32, 3)).float().numpy() for seed in range(2)]
    return volumes, [volume > 0.6 for volume in volumes]


class InDouble(nn.Module):
    """The network in float64, where two orders of the same sums stay together."""

    def __init__(self) -> None:
        super().__init__()
        self.network = ResidualUNet2d(width=2).double()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x.double())
        return logits


def test_training_equals_the_plain_loop(tmp_path: Path) -> None:
    """SGD with Nesterov momentum 0.9, no weight decay, a tenth of the learning rate from `drop_epoch` on."""
    volumes, masks = phantom_training()
    recipe = Training(
        width=2, epochs=3, iterations=2, batch_size=4, learning_rate=0.02, drop_epoch=2, crop_size=16, log_every=1
    )
    torch.manual_seed(1)
    network, plain = InDouble(), InDouble()
    plain.load_state_dict(network.state_dict())
    with Run(RunSettings(tmp_path / "run", device="cpu", seed=5)) as run:
        train_source(run, network, volumes, masks, recipe, (volumes[:1], masks[:1]))
    batches = training_batches(volumes, masks, recipe, seed=5)
    velocity = [torch.zeros_like(parameter) for parameter in plain.parameters()]
    losses = []
    for step in range(6):
        batch = batches.batch(step)
        loss = segmentation_loss(plain(batch["image"]), batch["mask"])
        gradients = torch.autograd.grad(loss, list(plain.parameters()))
        rate = 0.02 if step < 4 else 0.002
        with torch.no_grad():
            for parameter, v, gradient in zip(plain.parameters(), velocity, gradients, strict=True):
                v.mul_(0.9).add_(gradient)
                parameter.sub_(rate * (gradient + 0.9 * v))
        losses.append(loss.item())
    for value, expected in zip(network.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-8, atol=1e-10)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if line.get("loss") is not None]
    assert [line["step"] for line in logged] == list(range(6))
    np.testing.assert_allclose([line["loss"] for line in logged], losses, rtol=1e-9)
    validated = [line for line in lines if line.get("validation_loss") is not None]
    assert [line["step"] for line in validated] == [1, 3, 5]
    expected_loss = validation_loss(plain, volumes[:1], masks[:1])
    assert validated[-1]["validation_loss"] == pytest.approx(expected_loss, rel=1e-6)


def test_recipe_of_the_paper() -> None:
    recipe = Training()
    assert (recipe.width, recipe.epochs, recipe.iterations, recipe.batch_size) == (16, 100, 100, 16)
    assert (recipe.learning_rate, recipe.drop_epoch, recipe.crop_size) == (1e-3, 80, 160)
    assert RunSettings(Path("x")).seed == 0xBADCAFE
    assert sum(parameter.numel() for parameter in ResidualUNet2d(width=recipe.width).parameters()) == 1_561_491


def test_validation_loss_is_the_mean_over_scans() -> None:
    """A network that gives 0 everywhere: the loss of each slice follows from its mask alone."""
    masks = [np.zeros((16, 16, 2), bool), np.ones((16, 16, 4), bool)]
    network = nn.Conv2d(1, 1, 1)
    nn.init.zeros_(network.weight)
    assert network.bias is not None
    nn.init.zeros_(network.bias)
    found = validation_loss(network, [np.ones(mask.shape, np.float32) for mask in masks], masks)
    empty, full = 0.4 * math.log(2) + 0.6, 0.4 * math.log(2) + 0.6 * 0.2
    assert found == pytest.approx((empty + full) / 2, abs=1e-6)


# Choice of beta and of pairs


def test_bad_scores_are_refused() -> None:
    for scores, betas in (
        ([[0.1, 0.2]], [0.1]),
        ([[0.1, math.nan]], [0.0, 0.1]),
        ([[[0.1, 0.2]]], [0.0, 0.1]),
    ):
        with pytest.raises(ValueError, match="give one finite score per pair and beta"):
            select_beta(np.array(scores), betas)
    with pytest.raises(ValueError, match="the best beta is 0 and the grid ends there"):
        select_beta(np.array([[0.5]]), [0.0])
    with pytest.raises(ValueError, match="unknown policy 'best'"):
        select_beta(np.array([[0.5, 0.4]]), [0.0, 0.1], policy="best")  # type: ignore[arg-type]


def test_bad_matrices_are_refused() -> None:
    for matrix, k in ((np.zeros((3, 4)), 1), (np.zeros((2, 2)), 1), (np.zeros((3, 3)), 3), (np.zeros((3, 3)), 0)):
        with pytest.raises(ValueError, match="no three clusters"):
            select_pairs(matrix, per_cluster=k)
    unknown = np.zeros((4, 4))
    unknown[0, 3] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        select_pairs(unknown, per_cluster=1)
    with pytest.raises(ValueError, match="unknown order 'size'"):
        select_pairs(np.zeros((4, 4)), by="size")  # type: ignore[arg-type]


@quick
@given(st.integers(3, 7), st.integers(1, 2), st.integers(0, 2**32 - 1))
def test_pairs_are_the_ends_and_the_middle(sites: int, k: int, seed: int) -> None:
    matrix = np.random.default_rng(seed).random((sites, sites))
    ranked = sorted(matrix[target, source] for target in range(sites) for source in range(sites) if source != target)
    count = sites * (sites - 1)
    start = (count - k) // 2
    expected = ranked[:k] + ranked[start : start + k] + ranked[count - k :]
    pairs = select_pairs(matrix, per_cluster=k)
    assert [matrix[target, source] for source, target in pairs] == expected
    # A model that is worse everywhere by the same amount declines as much as before.
    shifted = matrix - np.linspace(0, 0.4, sites)[None, :]
    assert select_pairs(shifted, k, "decline_vs_source") == select_pairs(matrix, k, "decline_vs_source")
    harder = matrix - np.linspace(0, 0.4, sites)[:, None]
    assert select_pairs(harder, k, "decline_vs_target") == select_pairs(matrix, k, "decline_vs_target")
