from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from dart_core.augment.genesis import distort, inner_cutout, local_pixel_shuffle, nonlinear_intensity, outer_cutout

IDENTITY = torch.tensor([[0, 0], [1 / 3, 1 / 3], [2 / 3, 2 / 3], [1, 1]], dtype=torch.float64)


def seeded(seed: int = 0, device: str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def numbered(*shape: int) -> Tensor:
    """Every value of a sample is its own index."""
    return torch.arange(math.prod(shape[1:])).view(1, *shape[1:]).expand(shape)


def agree(found: Tensor, mean: float, deviation: float, measured_with: int = 400) -> None:
    """A mean over samples against the mean of a specification that was itself measured, within four standard errors."""
    error = deviation * math.sqrt(1 / len(found) + 1 / measured_with)
    assert abs(float(found.double().mean()) - mean) < 4 * error
    # A standard deviation has a relative standard error of about 1 / sqrt(2 n), wider for skewed distributions.
    assert float(found.double().std()) == pytest.approx(deviation, rel=6 / math.sqrt(2 * len(found)))


def shuffled_one_by_one(x: np.ndarray, blocks: int, rng: np.random.Generator) -> np.ndarray:
    """The specification read literally: one sample, one block after the other."""
    result = x.copy()
    for _ in range(blocks):
        length = [rng.integers(1, side // 10, endpoint=True) for side in x.shape[1:]]
        start = [rng.integers(0, side - n, endpoint=True) for side, n in zip(x.shape[1:], length, strict=True)]
        window = (slice(None), *(slice(s, s + n) for s, n in zip(start, length, strict=True)))
        result[window] = rng.permutation(x[window].flatten()).reshape(x[window].shape)
    return result


@functools.cache
def all_shuffled_one_by_one(samples: int, shape: tuple[int, ...], blocks: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.stack([shuffled_one_by_one(sample.numpy(), blocks, rng) for sample in numbered(samples, *shape)])


def same_distribution(a: np.ndarray, b: np.ndarray) -> None:
    """Chi-squared test of two samples of whole numbers, rare ones pooled."""
    values = np.union1d(a, b)
    table = np.array([[(part == value).sum() for value in values] for part in (a, b)])
    rare = table.sum(0) < 20
    table = np.column_stack([table[:, ~rare], table[:, rare].sum(1)]) if rare.any() else table
    table = table[:, table.sum(0) > 0]
    assert stats.chi2_contingency(table).pvalue > 1e-4


@pytest.fixture(params=["compiled", "tensor operations"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's form and the GPU's, both on the CPU."""
    if request.param == "tensor operations":
        monkeypatch.setattr("dart_core.augment.genesis._compiled", lambda *_: False)


class SplitMix:
    """The random numbers of one sample by the authors' loop, in whole numbers of any size."""

    def __init__(self, seed: int) -> None:
        self.state = seed

    def bits(self) -> int:
        self.state = (self.state + 0x9E3779B97F4A7C15) % 2**64
        z = self.state
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return z ^ z >> 31

    def halves(self) -> tuple[int, int]:
        return divmod(self.bits(), 2**32)

    def skip(self, numbers: int) -> None:
        self.state = (self.state + numbers * 0x9E3779B97F4A7C15) % 2**64

    def lengths_and_starts(self, sides: list[int], limits: list[tuple[int, int]], margin: int) -> list[tuple[int, int]]:
        """One of either for each axis, from the halves of one number."""
        found = []
        for side, (low, high) in zip(sides, limits, strict=True):
            upper, lower = self.halves()
            length = low + upper * (high - low + 1) // 2**32
            found.append((length, margin + lower * (side - length - 2 * margin + 1) // 2**32))
        return found

    def shuffled(self, values: np.ndarray) -> np.ndarray:
        """Fisher and Yates: value i changes places with one of those up to itself."""
        half = (len(values) + 1) // 2
        pairs = np.array([self.halves() for _ in range(half)], dtype=object)
        result = values.copy()
        for i, number in enumerate([*pairs[:, 0], *pairs[: len(values) - half, 1]]):
            other = int(number) * (i + 1) // 2**32
            result[[i, other]] = result[[other, i]]
        return result


def windows(places: list[tuple[int, int]]) -> tuple[slice, ...]:
    return tuple(slice(start, start + length) for length, start in places)


def seeds_of(samples: int, seed: int) -> list[int]:
    return torch.empty(samples, dtype=torch.int64).random_(generator=seeded(seed)).tolist()


class TestSameDraws:
    """The compiled code against loops over blocks, windows and values with the same random numbers."""

    def test_random_numbers_are_those_of_the_authors(self) -> None:
        # The first five for the seed 1234567 of the authors' C code (Rosetta Code, "Pseudo-random numbers/Splitmix64").
        published = [
            6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821,
        ]  # fmt: skip
        stream = SplitMix(1234567)
        assert [stream.bits() for _ in published] == published

    @pytest.mark.parametrize("channels", ["mixed", "together"])
    @pytest.mark.parametrize("shape", [(3, 2, 20, 31), (2, 1, 21, 13, 30), (2, 3, 20, 10, 22)])
    def test_local_shuffling(self, shape: tuple[int, ...], channels: Literal["mixed", "together"]) -> None:
        x, blocks = numbered(*shape).clone(), 50
        found = local_pixel_shuffle(x, blocks, channels, seeded(5)).numpy()
        missing = [1] * (5 - len(shape))
        sides = [*missing, *shape[2:]]
        limits = [(1, max(1, side // 10)) for side in sides]
        for sample, seed in enumerate(seeds_of(len(x), 5)):
            stream, before = SplitMix(seed), x[sample].numpy().reshape(-1, *sides)
            expected = before.copy()
            for _ in range(blocks):
                window = (slice(None), *windows(stream.lengths_and_starts(sides, limits, 0)))
                values = before[window]
                if channels == "mixed":
                    expected[window] = stream.shuffled(values.reshape(-1)).reshape(values.shape)
                else:
                    together = values.reshape(len(values), -1).T
                    expected[window] = stream.shuffled(together).T.reshape(values.shape)
            np.testing.assert_array_equal(found[sample], expected.reshape(shape[1:]))

    @pytest.mark.parametrize("shape", [(6, 2, 20, 31), (6, 2, 16, 21, 23)])
    @pytest.mark.parametrize("outer", [True, False])
    def test_cutouts(self, shape: tuple[int, ...], outer: bool) -> None:
        x = torch.rand(shape, generator=seeded(1)) + 2
        found = (outer_cutout if outer else inner_cutout)(x, seeded(5)).numpy()
        sides = list(shape[2:])
        limits = [(s - 4 * s // 7, s - 3 * s // 7) if outer else (s // 6, s // 3) for s in sides]
        for sample, seed in enumerate(seeds_of(len(x), 5)):
            stream, inside = SplitMix(seed), np.zeros(sides, bool)
            for window in range(5):
                if not (outer and window == 0) and (stream.bits() >> 11) * 2**-53 < 0.05:
                    break
                if len(sides) == 2:
                    stream.skip(1)
                inside[windows(stream.lengths_and_starts(sides, limits, 3))] = True
            noise = np.zeros(shape[1:], np.float32)
            half = (sides[-1] + 1) // 2
            stream.state = seed
            stream.skip(64)
            for line in noise.reshape(-1, sides[-1]):
                numbers = [stream.bits() for _ in range(half)]
                line[:] = [n / 2**24 for n in [*(b >> 40 for b in numbers), *(b % 2**24 for b in numbers)][: len(line)]]
            if not outer:
                noise[:] = noise[:1]
            expected = np.where(inside if outer else ~inside, x[sample].numpy(), noise)
            np.testing.assert_array_equal(found[sample], expected)

    def test_the_map_of_tensor_operations(self, monkeypatch: pytest.MonkeyPatch) -> None:
        x = torch.rand(8, 1, 30, 30, 30, generator=seeded(1), dtype=torch.float64)
        control = torch.stack([control_points(*c.tolist()) for c in torch.rand(8, 4, generator=seeded(3))])
        down = torch.arange(8) % 2 == 0
        for points in (500, 100_000):
            for dtype, tolerance in ((torch.float32, 2e-7), (torch.float64, 1e-10)):
                found = nonlinear_intensity(x.to(dtype), control, down, points)
                with monkeypatch.context() as patch:
                    patch.setattr("dart_core.augment.genesis._compiled", lambda *_: False)
                    expected = nonlinear_intensity(x.to(dtype).double(), control, down, points)
                torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)


def some(*chosen: int, of: int = 6) -> Tensor:
    return torch.isin(torch.arange(of), torch.tensor(chosen))


@pytest.mark.usefixtures("form")
class TestDistort:
    @pytest.mark.parametrize(
        ("shape", "dtype"),
        [((6, 3, 20, 31), torch.float32), ((6, 1, 20, 16, 22), torch.float32), ((6, 1, 20, 31), torch.float64)],
    )
    @pytest.mark.parametrize("channels", ["mixed", "together"])
    @pytest.mark.parametrize("in_place", [True, False])
    def test_is_the_single_functions_in_turn(
        self, shape: tuple[int, ...], dtype: torch.dtype, channels: Literal["mixed", "together"], in_place: bool
    ) -> None:
        x = torch.rand(shape, generator=seeded(1), dtype=dtype)
        curves = torch.stack([control_points(*c.tolist()) for c in torch.rand(6, 4, generator=seeded(2))])
        down, choices = some(0, 3), (some(0, 1, 2), some(1, 2, 3), some(2, 3), some(1, 4))
        generator, expected = seeded(7), x.clone()
        for rows, function in zip(
            choices,
            (
                lambda part, rows: local_pixel_shuffle(part, 30, channels, generator),
                lambda part, rows: nonlinear_intensity(part, curves[rows], down[rows], 700),
                lambda part, rows: outer_cutout(part, generator),
                lambda part, rows: inner_cutout(part, generator),
            ),
            strict=True,
        ):
            expected[rows] = function(expected[rows], rows)
        before, memory = x.clone(), x if in_place else None
        found = distort(x, curves, *choices, down, 30, channels, 700, seeded(7), memory)
        assert torch.equal(found, expected)
        assert torch.equal(found[5], before[5])
        assert (found is x) == in_place
        assert in_place or torch.equal(x, before)

    def test_nothing_chosen_is_a_copy(self) -> None:
        # Sides that are too small for a distortion matter where it is chosen.
        x, none = torch.rand(2, 1, 9, 9, generator=seeded()), some(of=2)
        found = distort(x, IDENTITY, none, none, none, none)
        assert torch.equal(found, x)
        assert found.data_ptr() != x.data_ptr()
        with pytest.raises(ValueError, match="at least 14"):
            distort(x, IDENTITY, none, none, some(1, of=2), none)

    @pytest.mark.parametrize("wrong", [torch.ones(5, dtype=torch.bool), torch.ones(6)])
    def test_choices_that_do_not_fit(self, wrong: Tensor) -> None:
        good = some(1)
        with pytest.raises(ValueError, match="mapped is"):
            distort(torch.rand(6, 1, 20, 20), IDENTITY, good, wrong, good, good)


@pytest.mark.usefixtures("form")
class TestOut:
    FUNCTIONS: tuple[Callable[..., Tensor], ...] = (
        lambda x, out: local_pixel_shuffle(x, 50, generator=seeded(), out=out),
        lambda x, out: local_pixel_shuffle(x, 50, "together", seeded(), out),
        lambda x, out: local_pixel_shuffle(x, 0, out=out),
        lambda x, out: nonlinear_intensity(x, control_points(0.1, 0.7, 0.2, 0.9), out=out),
        lambda x, out: inner_cutout(x, seeded(), out),
        lambda x, out: outer_cutout(x, seeded(), out),
    )

    @pytest.mark.parametrize("function", FUNCTIONS)
    @pytest.mark.parametrize("shape", [(3, 2, 20, 30), (2, 1, 20, 20, 20)])
    def test_takes_the_result(self, function: Callable[..., Tensor], shape: tuple[int, ...]) -> None:
        x = torch.rand(shape, generator=seeded(1))
        before, expected = x.clone(), function(x, None)
        for memory in (torch.zeros(shape), torch.zeros(*shape[:-2], shape[-1], shape[-2]).mT):
            assert function(x, memory) is memory
            assert torch.equal(memory, expected)
            assert torch.equal(x, before)
        for memory in (before.clone(), before.mT.contiguous().mT):
            assert function(memory, memory) is memory
            assert torch.equal(memory, expected)

    @pytest.mark.parametrize("function", FUNCTIONS)
    @pytest.mark.parametrize("out", [torch.zeros(3, 2, 20, 31), torch.zeros(3, 2, 20, 30, dtype=torch.float64)])
    def test_must_be_alike(self, function: Callable[..., Tensor], out: Tensor) -> None:
        with pytest.raises(ValueError, match="give the same"):
            function(torch.rand(3, 2, 20, 30), out)


@pytest.mark.usefixtures("form")
class TestLocalPixelShuffle:
    @given(
        st.sampled_from([(2, 3, 20, 31), (1, 1, 10, 45), (3, 2, 12, 20, 33), (1, 1, 10, 10, 10)]),
        st.sampled_from(["mixed", "together"]),
        st.integers(0, 300),
        st.integers(0, 2**32),
    )
    @settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_values_come_from_near_in_the_undistorted_input(
        self, shape: tuple[int, ...], channels: Literal["mixed", "together"], blocks: int, seed: int
    ) -> None:
        x = numbered(*shape)
        before = x.clone()
        result = local_pixel_shuffle(x, blocks, channels, seeded(seed))
        assert torch.equal(x, before)
        assert result.shape == x.shape
        there = np.unravel_index(result.numpy(), shape[1:])
        here = np.unravel_index(x.numpy(), shape[1:])
        if channels == "together":
            assert (there[0] == here[0]).all()
        for axis, side in enumerate(shape[2:], 1):
            # Blocks that read what others had written would carry values further than a block is long.
            assert np.abs(there[axis] - here[axis]).max() < side // 10
        assert torch.equal(result, local_pixel_shuffle(x, blocks, channels, seeded(seed)))

    @pytest.mark.parametrize("channels", ["mixed", "together"])
    def test_one_block_is_a_permutation_within_one_window(self, channels: Literal["mixed", "together"]) -> None:
        x = numbered(200, 2, 40, 60)
        result = local_pixel_shuffle(x, 1, channels, seeded())
        assert torch.equal(result.flatten(1).sort(1).values, x.flatten(1))
        changed = (result != x).any(1)
        rows, columns = changed.any(2).sum(1), changed.any(1).sum(1)
        assert int(rows.max()) == 4
        assert int(columns.max()) == 6
        if channels == "together":
            assert torch.equal(result[:, 1] - result[:, 0], x[:, 1] - x[:, 0])

    def test_every_permutation_is_equally_likely(self) -> None:
        # In a picture of 10 x 10 pixels a block is one pixel: its three values in one of six orders.
        x = numbered(30_000, 3, 10, 10)
        result = local_pixel_shuffle(x, 1, "mixed", seeded()).flatten(2) // 100
        touched = (result != torch.arange(3)[:, None]).any(1)
        orders = result.movedim(1, 2)[touched] @ torch.tensor([9, 3, 1])
        found = torch.bincount(orders, minlength=27)[[7, 11, 15, 19, 21]]
        assert int(found.sum()) == len(orders)
        identical = len(x) - len(orders)
        assert stats.chisquare([identical, *found.tolist()]).pvalue > 1e-4

    def test_every_place_of_a_block_is_equally_likely(self) -> None:
        # Blocks of 2 x 2 pixels of which every pixel moved: nine arrangements.
        x = numbered(30_000, 1, 20, 20)
        result = local_pixel_shuffle(x, 1, generator=seeded()).flatten(1)
        moved = result != x.flatten(1)
        all_four = moved.sum(1) == 4
        sources = result[all_four][moved[all_four]].view(-1, 4)
        orders = (sources - sources.min(1, keepdim=True).values) @ torch.tensor([1, 32, 1024, 32768])
        found = torch.unique(orders, return_counts=True)[1]
        assert len(found) == 9
        assert stats.chisquare(found.numpy()).pvalue > 1e-4

    @pytest.mark.parametrize("shape", [(2, 21, 30), (1, 21, 20, 32)])
    def test_as_one_block_after_the_other(self, shape: tuple[int, ...]) -> None:
        samples, blocks = 300, 60 if len(shape) == 3 else 900
        x = numbered(samples, *shape)
        ours = local_pixel_shuffle(x, blocks, generator=seeded()).numpy()
        theirs = all_shuffled_one_by_one(samples, shape, blocks)
        # One value of each sample, because those of one sample depend on each other; corner, edge and middle.
        for place in ((0,) * len(shape), (0, *(side // 2 for side in shape[1:])), (0, 0, *(s // 2 for s in shape[2:]))):
            same_distribution(ours[:, *place], theirs[:, *place])
        for statistic in (
            lambda part: (part != x.numpy()).reshape(samples, -1).sum(1),
            lambda part: np.array([len(np.unique(sample)) for sample in part]),
            # Neighbours that stay neighbours: what the values of one block have in common.
            lambda part: (np.diff(part.reshape(samples, -1), axis=1) == 1).sum(1),
        ):
            assert stats.ks_2samp(statistic(ours), statistic(theirs)).pvalue > 1e-4

    def test_moments_of_pictures(self) -> None:
        x = torch.rand(64, 3, 224, 224, generator=seeded(1))
        result = local_pixel_shuffle(x, generator=seeded())
        agree((result != x).any(1).double().mean((1, 2)), 0.0997, 0.0127)
        numbers = numbered(16, 3, 224, 224)
        moved = local_pixel_shuffle(numbers, generator=seeded())
        touched = (moved != numbers).any(1, keepdim=True).expand_as(moved)
        elsewhere = (moved // 224**2 != numbers // 224**2)[touched].double().mean()
        assert float(elsewhere) == pytest.approx(2 / 3, abs=0.01)

    @pytest.mark.parametrize(("sides", "changed", "lost"), [((64, 64, 64), 0.757, 0.198), ((64, 64, 32), 0.784, 0.213)])
    def test_moments_of_volumes(self, sides: tuple[int, ...], changed: float, lost: float) -> None:
        x = numbered(2, 1, *sides)
        result = local_pixel_shuffle(x, generator=seeded()).flatten(1)
        # 10,000 blocks average themselves: one cube's fraction has a standard deviation below 0.004.
        assert float((result != x.flatten(1)).double().mean()) == pytest.approx(changed, abs=0.01)
        kept = np.mean([len(np.unique(sample)) for sample in result]) / math.prod(sides)
        assert 1 - kept == pytest.approx(lost, abs=0.01)

    def test_samples_have_draws_of_their_own(self) -> None:
        result = local_pixel_shuffle(torch.rand(1, 1, 64, 64, generator=seeded(1)).expand(4, -1, -1, -1), 40)
        assert len(torch.unique(result.flatten(1), dim=0)) == 4

    def test_many_samples_are_done_in_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        x = numbered(7, 1, 30, 30)
        monkeypatch.setattr("dart_core.augment._parts.AT_ONCE", 2 * 40 * 4)
        result = local_pixel_shuffle(x, generator=seeded())
        assert all((sample != x[0]).any() for sample in result)
        assert torch.equal(result.flatten(1).sort(1).values[:, 0], x[:, 0, 0, 0])

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.bool])
    def test_types(self, dtype: torch.dtype) -> None:
        x = (torch.rand(2, 1, 40, 40, generator=seeded()) * 1.5).to(dtype).mT
        result = local_pixel_shuffle(x)
        assert result.dtype == dtype
        assert result.shape == x.shape

    def test_an_even_picture_stays(self) -> None:
        x = torch.full((2, 3, 40, 40), 0.3)
        assert torch.equal(local_pixel_shuffle(x), x)

    @pytest.mark.parametrize(
        ("shape", "settings", "words"),
        [
            ((1, 1, 9, 20), {}, "at least 10"),
            ((1, 20, 20), {}, "shape"),
            ((1, 1, 20, 20), {"blocks": -1}, "blocks"),
            ((1, 1, 20, 20), {"channels": "apart"}, "'apart'"),
        ],
    )
    def test_what_does_not_fit(self, shape: tuple[int, ...], settings: dict, words: str) -> None:
        with pytest.raises(ValueError, match=words):
            local_pixel_shuffle(torch.zeros(shape), **settings)


def bezier(control: np.ndarray, u: np.ndarray) -> np.ndarray:
    return np.array([math.comb(3, i) * u**i * (1 - u) ** (3 - i) for i in range(4)]).T @ control


def interpolated(v: np.ndarray, control: np.ndarray, decreasing: bool, points: int) -> np.ndarray:
    """The specification read literally."""
    u = np.linspace(0, 1, points)
    x, y = bezier(control, u)[:, 0], bezier(control, 1 - u if decreasing else u)[:, 1]
    return np.interp(v, np.maximum.accumulate(x), y)


def control_points(a1: float, b1: float, a2: float, b2: float) -> Tensor:
    return torch.tensor([[0, 0], [a1, b1], [a2, b2], [1, 1]], dtype=torch.float64)


UNIT = st.floats(0, 1)


class TestNonlinearIntensity:
    @given(UNIT, UNIT, UNIT, UNIT, st.booleans(), st.sampled_from([2, 500, 501, 3000]), st.integers(0, 2**32))
    @settings(deadline=None)
    def test_interpolates_in_the_table(
        self, a1: float, b1: float, a2: float, b2: float, decreasing: bool, points: int, seed: int
    ) -> None:
        control = control_points(a1, b1, a2, b2)
        x = torch.rand(1, 1, 20, 20, generator=seeded(seed), dtype=torch.float64)
        x[..., 0, :2] = torch.tensor([0.0, 1.0])
        expected = interpolated(x.numpy(), control.numpy(), decreasing, points)
        # Where the curve is all but vertical, rounding of the table's positions shows.
        steep = np.abs(
            interpolated(x.numpy() + 1e-13, control.numpy(), decreasing, points)
            - interpolated(x.numpy() - 1e-13, control.numpy(), decreasing, points)
        )
        found = nonlinear_intensity(x, control, decreasing, points)
        assert (np.abs(found.numpy() - expected) <= 1e-9 + steep).all()
        order = x.flatten().argsort()
        slope = found.flatten()[order].diff()
        assert (slope <= 1e-12).all() if decreasing else (slope >= -1e-12).all()
        ends = found[0, 0, 0, :2].tolist()
        assert ends == pytest.approx([1, 0] if decreasing else [0, 1], abs=1e-12)

    @pytest.mark.parametrize("points", [500, 100_000])
    @pytest.mark.parametrize("side", [8, 48])
    def test_single_precision(self, points: int, side: int) -> None:
        control = torch.stack([
            *(control_points(*c.tolist()) for c in torch.rand(3, 4, generator=seeded(3), dtype=torch.float64)),
            control_points(1, 0.3, 0, 0.7),  # vertical in the middle
            control_points(0, 1, 0.2, 1),  # vertical at the ends
            control_points(0.9, 0, 0.9, 0.1),
        ])  # fmt: skip
        x = torch.rand(6, 1, side, side, side, generator=seeded(4))
        x[:, :, 0], x[:, :, 1] = 0, 1
        down = torch.tensor([True, False] * 3)
        found = nonlinear_intensity(x, control, down, points)
        assert found.dtype == torch.float32
        for i in range(6):
            expected = interpolated(x[i].double().numpy(), control[i].numpy(), bool(down[i]), points)
            np.testing.assert_allclose(found[i].numpy(), expected, rtol=1e-6, atol=6e-7)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_a_straight_curve(self, dtype: torch.dtype) -> None:
        x = torch.rand(2, 3, 40, 40, generator=seeded(), dtype=dtype)
        tolerance = {"rtol": 0.0, "atol": 4 * torch.finfo(dtype).eps}
        torch.testing.assert_close(nonlinear_intensity(x, IDENTITY), x, **tolerance)
        torch.testing.assert_close(nonlinear_intensity(x, IDENTITY, True), 1 - x, **tolerance)

    def test_the_decreasing_map_is_not_one_minus_the_increasing(self) -> None:
        x, control = torch.rand(1, 1, 20, 20, generator=seeded()), control_points(0.1, 0.7, 0.2, 0.9)
        up, down = nonlinear_intensity(x, control), nonlinear_intensity(x, control, decreasing=True)
        assert float((1 - up - down).abs().max()) > 0.1

    @pytest.mark.usefixtures("form")
    def test_outside_the_range_it_stays_at_the_ends(self) -> None:
        x = torch.tensor([[-1.0, 0.0, 1.0, 7.0]])
        assert nonlinear_intensity(x, IDENTITY).tolist() == [[0, 0, 1, 1]]
        assert nonlinear_intensity(x, IDENTITY, True).tolist() == [[1, 1, 0, 0]]

    def test_does_not_write_into_its_input(self) -> None:
        x = torch.rand(2, 1, 16, 16, generator=seeded())
        before = x.clone()
        nonlinear_intensity(x, control_points(0.2, 0.9, 0.3, 0.8))
        assert torch.equal(x, before)

    @pytest.mark.parametrize(
        ("x", "control", "options", "words"),
        [
            (torch.zeros(2, 1, 4, 4), torch.zeros(3, 2), {}, "control points have shape"),
            (torch.zeros(2, 1, 4, 4), IDENTITY.expand(3, 4, 2), {}, "control points have shape"),
            (torch.zeros(2, 1, 4, 4), IDENTITY.flip(0), {}, "go from"),
            (torch.zeros(2, 1, 4, 4), control_points(1.2, 0, 0, 0), {}, "within"),
            (torch.zeros(2, 1, 4, 4), control_points(float("nan"), 0, 0, 0), {}, "within"),
            (torch.zeros(2, 1, 4, 4), IDENTITY, {"points": 1}, "points"),
            (torch.zeros(2, 1, 4, 4), IDENTITY, {"decreasing": torch.ones(3, dtype=torch.bool)}, "decreasing"),
            (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), IDENTITY, {}, "uint8"),
        ],
    )
    def test_what_does_not_fit(self, x: Tensor, control: Tensor, options: dict, words: str) -> None:
        with pytest.raises(ValueError, match=words):
            nonlinear_intensity(x, control, **options)


CUTOUTS = [inner_cutout, outer_cutout]


class TestCutouts:
    @pytest.mark.usefixtures("form")
    @pytest.mark.parametrize("cutout", CUTOUTS)
    @given(
        st.sampled_from([(3, 2, 20, 41), (2, 1, 14, 14), (2, 2, 16, 20, 35), (1, 1, 14, 15, 64)]), st.integers(0, 2**32)
    )
    @settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_what_the_windows_may_touch(self, cutout: Callable[..., Tensor], shape: tuple[int, ...], seed: int) -> None:
        x = torch.rand(shape, generator=seeded(seed + 1)) + 2
        before = x.clone()
        result = cutout(x, seeded(seed))
        assert torch.equal(x, before)
        assert torch.equal(result, cutout(x, seeded(seed)))
        noise = result < 2
        assert torch.equal(result[~noise], x[~noise])
        assert (result[noise] >= 0).all()
        assert (result[noise] < 1).all()
        # The same places in all channels.
        assert torch.equal(noise, noise[:, :1].expand_as(noise))
        inside = noise[:, 0] if cutout is inner_cutout else ~noise[:, 0]
        for axis in range(1, inside.ndim):
            along = inside.movedim(axis, 0)
            assert not along[:3].any()
            assert not along[-3:].any()
        if cutout is inner_cutout:
            first = result[:, :1].expand_as(result)
            assert torch.equal(result[noise], first[noise])
        elif shape[1] > 1:
            assert not torch.isclose(result[:, 0][noise[:, 0]], result[:, 1][noise[:, 0]]).all()

    @pytest.mark.usefixtures("form")
    def test_outer_keeps_a_window_of_the_least_size(self) -> None:
        for side in (21, 64):
            x = torch.full((50, 1, side, side), 2.0)
            kept = outer_cutout(x, seeded())[:, 0] == 2
            least = side - 4 * side // 7
            whole = -torch.nn.functional.max_pool2d(-kept.float()[:, None], least, 1)
            assert (whole.amax((1, 2, 3)) == 1).all()

    @pytest.mark.parametrize(("side", "mean", "deviation"), [(224, 0.548, 0.108), (448, 0.558, 0.104)])
    def test_moments_of_outer_cutout_in_pictures(self, side: int, mean: float, deviation: float) -> None:
        x = torch.full((256, 1, side, side), 2.0)
        agree((outer_cutout(x, seeded()) == 2).double().mean((1, 2, 3)), mean, deviation)

    def test_moments_of_inner_cutout_in_pictures(self) -> None:
        x = torch.full((400, 1, 224, 224), 2.0)
        replaced = (inner_cutout(x, seeded()) < 2).double().mean((1, 2, 3))
        agree(replaced, 0.224, 0.083)
        # No window at all with probability 0.05.
        assert stats.binomtest(int((replaced == 0).sum()), 400, 0.05).pvalue > 1e-4

    @pytest.mark.usefixtures("form")
    def test_moments_in_volumes(self) -> None:
        x = torch.full((100, 1, 64, 64, 64), 2.0)
        agree((inner_cutout(x, seeded()) < 2).double().mean((1, 2, 3, 4)), 0.0576, 0.022)
        agree((outer_cutout(x, seeded()) == 2).double().mean((1, 2, 3, 4)), 0.326, 0.067)

    @pytest.mark.usefixtures("form")
    def test_noise_is_uniform(self) -> None:
        for cutout in CUTOUTS:
            result = cutout(torch.full((4, 1, 60, 60), 2.0), seeded())
            assert stats.kstest(result[result < 2].numpy()[:2000], "uniform").pvalue > 1e-4

    @pytest.mark.parametrize(("cutout", "side"), [(inner_cutout, 7), (outer_cutout, 13)])
    def test_too_small(self, cutout: Callable[..., Tensor], side: int) -> None:
        cutout(torch.zeros(50, 1, side + 1, side + 1))
        with pytest.raises(ValueError, match="at least"):
            cutout(torch.zeros(1, 1, side, 40))


def test_threads_change_nothing() -> None:
    x, threads = torch.rand(5, 1, 64, 64, 64, generator=seeded()), torch.get_num_threads()
    control = control_points(0.2, 0.6, 0.1, 0.9)
    functions: list[Callable[[], Tensor]] = [
        lambda: local_pixel_shuffle(x, 1000, generator=seeded()),
        lambda: nonlinear_intensity(x, control),
        lambda: inner_cutout(x, seeded()),
        lambda: outer_cutout(x, seeded()),
        lambda: distort(x, control, *[torch.ones(5, dtype=torch.bool)] * 4, blocks=1000, generator=seeded()),
    ]
    try:
        for function in functions:
            torch.set_num_threads(1)
            alone = function()
            torch.set_num_threads(2)
            assert torch.equal(alone, function())
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_the_global_generator_is_used_without_another() -> None:
    for function in (local_pixel_shuffle, *CUTOUTS):
        x = torch.rand(2, 1, 40, 40)
        torch.manual_seed(3)
        first, second = function(x), function(x)
        torch.manual_seed(3)
        assert torch.equal(function(x), first)
        assert not torch.equal(first, second)


@pytest.mark.gpu
def test_cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    x = torch.rand(4, 1, 64, 64, 64, generator=seeded()).cuda()
    control = torch.stack([control_points(*torch.rand(4, generator=seeded(i)).tolist()) for i in range(4)])
    down = torch.tensor([True, False, False, True])
    found = nonlinear_intensity(x, control, down, 100_000)
    torch.testing.assert_close(found.cpu(), nonlinear_intensity(x.cpu(), control, down, 100_000), rtol=1e-6, atol=1e-6)
    for function in (local_pixel_shuffle, *CUTOUTS):
        assert function(x, generator=seeded()).is_cuda
        assert torch.equal(function(x, generator=seeded(0, "cuda")), function(x, generator=seeded(0, "cuda")))
        assert function(x).is_cuda
    chosen = [some(0, 1, of=4).cuda(), some(1, 2, of=4).cuda(), some(0, of=4).cuda(), some(3, of=4).cuda()]
    result = distort(x, control.cuda(), *chosen, down.cuda(), generator=seeded(0, "cuda"))
    torch.testing.assert_close(
        result[2].cpu(), nonlinear_intensity(x[2:3].cpu(), control[2:3])[0], rtol=1e-6, atol=1e-6
    )
    numbers = numbered(2, 1, 64, 64, 64).cuda()
    changed = (local_pixel_shuffle(numbers, generator=seeded(0, "cuda")) != numbers).double().mean()
    assert float(changed) == pytest.approx(0.757, abs=0.01)
