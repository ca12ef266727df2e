from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from dart_core.errors import InputError, SettingError
from dart_core.sliding_window import importance_map, predict_volume, sliding_window_predict, window_starts


def network(channels: int = 1, classes: int = 3) -> nn.Sequential:
    """Sees 5 x 5 pixels, and its BatchNorm behaves differently in training."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, classes, 3, padding=1)
    ).double()


def volume(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def oracle(
    model: Callable[[np.ndarray], np.ndarray], values: np.ndarray, patch: tuple[int, int], mirror: bool
) -> np.ndarray:
    """nnU-Net's loops: slice by slice, tile by tile, flip by flip."""
    slices = []
    for z in range(values.shape[1]):
        image = values[:, z]
        missing = [max(p - n, 0) for p, n in zip(patch, image.shape[1:], strict=True)]
        image = np.pad(image, [(0, 0), *((m // 2, m // 2 + m % 2) for m in missing)])
        starts = []
        for n, p in zip(image.shape[1:], patch, strict=True):
            count = math.ceil((n - p) / (0.5 * p)) + 1
            starts.append([int(np.round((n - p) / max(count - 1, 1) * i)) for i in range(count)])
        dot = np.zeros(patch)
        dot[patch[0] // 2, patch[1] // 2] = 1
        weight = gaussian_filter(dot, [p / 8 for p in patch], mode="constant")
        weight /= weight.max()
        weight[weight == 0] = weight[weight > 0].min()
        tiles = list(itertools.product(*starts))
        if len(tiles) == 1:
            weight = np.ones(patch)
        total, weights = 0.0, np.zeros(image.shape[1:])
        for r, c in tiles:
            tile = image[:, r : r + patch[0], c : c + patch[1]]
            flips: list[tuple[int, ...]] = [(), (1,), (2,), (1, 2)] if mirror else [()]
            p = np.mean([np.flip(model(np.flip(tile, axes)), axes) for axes in flips], axis=0)
            full = np.zeros((len(p), *image.shape[1:]))
            full[:, r : r + patch[0], c : c + patch[1]] = p * weight
            total = total + full
            weights[r : r + patch[0], c : c + patch[1]] += weight
        result = np.asarray(total) / weights
        result = result[:, missing[0] // 2 :, missing[1] // 2 :][:, : values.shape[2], : values.shape[3]]
        slices.append(result)
    return np.stack(slices, axis=1)


def as_numpy(net: nn.Module) -> Callable[[np.ndarray], np.ndarray]:
    def call(tile: np.ndarray) -> np.ndarray:
        net.eval()
        with torch.no_grad():
            result: np.ndarray = net(torch.from_numpy(tile.copy())[None]).softmax(1)[0].numpy()
        return result

    return call


@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize(
    ("shape", "patch"),
    [
        ((1, 3, 16, 24), (16, 24)),  # one tile
        ((2, 5, 40, 21), (16, 12)),  # several tiles in both directions
        ((1, 2, 13, 40), (16, 16)),  # padded in one direction, tiled in the other
        ((1, 1, 9, 6), (16, 17)),  # padded in both
        ((1, 2, 60, 17), (9, 17)),  # odd patches
    ],
)
def test_against_loops(shape: tuple[int, int, int, int], patch: tuple[int, int], mirror: bool) -> None:
    net, x = network(shape[0]), volume(*shape)
    expected = oracle(as_numpy(net), x.numpy(), patch, mirror)
    for batch_size in (1, 3, 16, 1000):
        result = sliding_window_predict(net, x, patch, mirror, batch_size=batch_size)
        assert result.shape == (3, *shape[1:])
        np.testing.assert_allclose(result.numpy(), expected, rtol=1e-10, atol=1e-12)


def test_one_tile_is_the_direct_forward() -> None:
    net, x = network(), volume(1, 4, 16, 16)
    direct = net.eval()(x.transpose(0, 1)).softmax(1).transpose(0, 1)
    assert torch.equal(sliding_window_predict(net, x, (16, 16), mirror=False), direct)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 20), st.integers(1, 20), st.booleans(), st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_a_network_without_neighbourhood_does_not_see_the_tiles(
    height: int, width: int, rows: int, columns: int, mirror: bool, batch_size: int
) -> None:
    torch.manual_seed(0)
    net = nn.Conv2d(2, 3, 1).double()
    x = volume(2, 3, height, width)
    expected = net(x.transpose(0, 1)).softmax(1).transpose(0, 1)
    result = sliding_window_predict(net, x, (rows, columns), mirror, batch_size=batch_size)
    torch.testing.assert_close(result, expected.detach(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(result.sum(0), torch.ones_like(result[0]), rtol=1e-12, atol=0)


@pytest.mark.parametrize("patch", [(8, 8), (32, 20), (50, 64)])
@pytest.mark.parametrize("mirror", [True, False])
def test_a_network_that_is_constant_in_space(patch: tuple[int, int], mirror: bool) -> None:
    logits = torch.tensor([0.3, -1.0, 2.0])
    result = sliding_window_predict(
        lambda x: logits[None, :, None, None].expand(len(x), 3, *x.shape[2:]), torch.rand(1, 2, 45, 33), patch, mirror
    )
    expected = logits.softmax(0)[:, None, None, None].expand(3, 2, 45, 33)
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=0)


def test_mirroring_makes_the_prediction_equivariant() -> None:
    net, x = network(), volume(1, 2, 23, 31)
    result = sliding_window_predict(net, x, (12, 16))
    for axes in ((-1,), (-2,), (-2, -1)):
        # starts 0, 6, 11 are not symmetric after rounding, but one tile is
        mirrored = sliding_window_predict(net, x[..., :12, :16].flip(axes), (12, 16)).flip(axes)
        torch.testing.assert_close(mirrored, sliding_window_predict(net, x[..., :12, :16], (12, 16)))
    assert not torch.equal(result, sliding_window_predict(net, x, (12, 16), mirror=False))


def test_the_first_of_several_outputs_counts() -> None:
    net, x = network().eval(), volume(1, 2, 20, 20)
    result = sliding_window_predict(lambda tile: [net(tile), torch.zeros(1)], x, (16, 16))
    torch.testing.assert_close(result, sliding_window_predict(lambda tile: net(tile), x, (16, 16)), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("size", "patch", "starts"),
    [
        (110, 64, [0, 23, 46]),  # specification adagrad-unet 9
        (50, 24, [0, 9, 17, 26]),
        (64, 64, [0]),
        (65, 64, [0, 1]),
        (96, 64, [0, 32]),
        (97, 64, [0, 16, 33]),  # 16.5 rounds to even
        (4, 1, [0, 0, 1, 2, 2, 2, 3]),  # half a pixel is the step
    ],
)
def test_starts(size: int, patch: int, starts: list[int]) -> None:
    assert window_starts(size, patch) == starts


@given(st.integers(1, 400), st.integers(1, 400))
@settings(deadline=None)
def test_starts_cover_the_axis(a: int, b: int) -> None:
    patch, size = sorted((a, b))
    starts = window_starts(size, patch)
    assert starts[0] == 0
    assert starts[-1] == size - patch
    steps = np.diff(starts)
    assert (steps >= 0).all()
    # half a patch, and the rounding
    assert not len(steps) or steps.max() <= patch / 2 + 1
    assert not len(steps) or steps.max() - steps.min() <= 1


@pytest.mark.parametrize("patch", [(64, 48), (17, 33), (5, 24), (1, 2)])
def test_importance_is_a_filtered_dot(patch: tuple[int, int]) -> None:
    dot = np.zeros(patch)
    dot[patch[0] // 2, patch[1] // 2] = 1
    expected = gaussian_filter(dot, [p / 8 for p in patch], mode="constant")
    expected /= expected.max()
    assert (expected > 0).all()
    result = importance_map(patch)
    assert result.dtype == torch.float64
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-10)
    assert float(result.max()) == 1
    assert float(result.min()) >= math.exp(-16) - 1e-20


def test_modes_gradients_and_types() -> None:
    net = network()
    net[2].eval()
    modes = [part.training for part in net.modules()]
    x = volume(1, 2, 20, 20)
    before = net[1].running_mean.clone()
    result = sliding_window_predict(net, x, (16, 16))
    assert result.dtype == torch.float64
    assert not result.requires_grad
    assert torch.equal(net[1].running_mean, before)
    assert [part.training for part in net.modules()] == modes
    # the network decides about the type of the result, and the volume stays what it was
    single = sliding_window_predict(network().float(), x, (16, 16))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, result.float(), rtol=1e-4, atol=1e-5)
    assert x.dtype == torch.float64
    half = sliding_window_predict(lambda tile: tile.half().expand(-1, 2, -1, -1), x, (16, 16))
    assert half.dtype == torch.float32
    integers = sliding_window_predict(network().float(), x.round().to(torch.int16), (16, 16))
    torch.testing.assert_close(integers, sliding_window_predict(network().float(), x.round(), (16, 16)))


def test_an_array_gives_an_array() -> None:
    net, x = network(), volume(1, 3, 20, 20)
    result = sliding_window_predict(net, x.numpy()[:, ::-1], (16, 16))
    assert isinstance(result, np.ndarray)
    np.testing.assert_array_equal(result, sliding_window_predict(net, x.flip(1), (16, 16)).numpy())


def test_modes_come_back_after_an_error() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no")

    broken = Broken()
    with pytest.raises(RuntimeError, match="no"):
        sliding_window_predict(broken, torch.zeros(1, 1, 4, 4), (4, 4))
    assert broken.training


@pytest.mark.parametrize("shape", [(3, 4, 4), (1, 0, 4, 4), (1, 1, 1, 4, 4)])
def test_bad_volumes(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="a volume"):
        sliding_window_predict(network().float(), torch.zeros(shape), (4, 4))


@pytest.mark.parametrize("patch", [(4,), (4, 4, 4), (0, 4), (4, -1)])
def test_bad_patches(patch: tuple[int, ...]) -> None:
    with pytest.raises(SettingError, match="patch size"):
        sliding_window_predict(network().float(), torch.zeros(1, 1, 4, 4), patch)


def test_other_bad_input() -> None:
    with pytest.raises(SettingError, match="batch size 0"):
        sliding_window_predict(network().float(), torch.zeros(1, 1, 4, 4), (4, 4), batch_size=0)
    with pytest.raises(InputError, match=r"the network gave \(1, 1, 2, 2\) for \(1, 1, 4, 4\)"):
        sliding_window_predict(nn.MaxPool2d(2), torch.zeros(1, 1, 4, 4), (4, 4))
    for size, patch in ((4, 5), (4, 0)):
        with pytest.raises(ValueError, match="does not fit"):
            window_starts(size, patch)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_agrees_with_cpu() -> None:
    net, x = network(), volume(1, 3, 40, 21)
    expected = sliding_window_predict(net, x, (16, 12))
    net.cuda()
    for place in (x, x.cuda()):
        result = sliding_window_predict(net, place, (16, 12))
        assert result.device == place.device
        torch.testing.assert_close(result.cpu(), expected, rtol=1e-9, atol=1e-9)


# --- Three dimensions ------------------------------------------------------------------------------------------------


def test_volumes_are_predicted_as_their_voxels():
    """A network of single voxels does not see where the tiles lie, nor whether they are mirrored."""
    volume = torch.randn(1, 9, 12, 7, generator=torch.Generator().manual_seed(0))

    def network(x):
        return torch.cat((x, -x), 1)

    expected = network(volume[None])[0].softmax(0)
    for patch in ((4, 6, 4), (9, 12, 7), (16, 16, 16)):
        for mirror in (False, True):
            torch.testing.assert_close(predict_volume(network, volume, patch, mirror, batch_size=3), expected)


def test_overlapping_tiles_of_a_volume_are_weighted():
    """Tile i of two answers i: what they share is their mean by importance."""
    volume = torch.zeros(1, 4, 4, 6)
    calls = iter(range(9))

    def network(x):
        return torch.full_like(x, float(next(calls))).expand(-1, 2, -1, -1, -1) * torch.tensor([0.0, 1]).view(
            1, 2, 1, 1, 1
        )

    found = predict_volume(network, volume, (4, 4, 4), batch_size=1)
    importance = importance_map((4, 4, 4))
    first, second = 0.5, 1 / (1 + np.exp(-1))
    a, b = importance[0, 0, 2].item(), importance[0, 0, 0].item()
    assert found[1, 0, 0, 2].item() == pytest.approx((a * first + b * second) / (a + b), rel=1e-6)
    assert found[1, 0, 0, 0].item() == pytest.approx(first)
    torch.testing.assert_close(importance[2, :, :], importance_map((4, 4)))


def test_mirrored_passes_of_a_volume_are_averaged():
    volume = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1))

    def network(x):
        return torch.cat((x.cumsum(-1), x.cumsum(-3)), 1)

    each = []
    for count in range(4):
        for axes in itertools.combinations((-3, -2, -1), count):
            each.append(network(volume[None].flip(axes)).softmax(1).flip(axes)[0])
    assert len(each) == 8
    torch.testing.assert_close(predict_volume(network, volume, (4, 4, 4), True), torch.stack(each).mean(0))


def test_what_is_no_volume():
    with pytest.raises(ValueError, match=r"a volume \(C, D, H, W\)"):
        predict_volume(lambda x: x, torch.zeros(4, 4, 4), (4, 4, 4))
    with pytest.raises(ValueError, match="patch size"):
        predict_volume(lambda x: x, torch.zeros(1, 4, 4, 4), (4, 4))
    with pytest.raises(ValueError, match="the network gave"):
        predict_volume(lambda x: x[..., :2], torch.zeros(1, 4, 4, 4), (4, 4, 4))
