from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dart_core.checkpoint import save_tensors
from dart_core.errors import CheckpointError, InputError
from fda_mri import DonorBank, random_donors, sr_sim
from fda_mri.donors import crop_about_centre

quick = settings(deadline=None, max_examples=25, derandomize=True)
SHAPE = (44, 50, 7)


def scan(seed: int, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    """An off-centre head with waves in it, float64, zero outside."""
    rng = np.random.default_rng(seed)
    h, w, slices = shape
    y, x, z = np.mgrid[:h, :w, :slices]
    centre = rng.uniform(0.3, 0.7, 2) * (h, w)
    inside = ((y - centre[0]) / (0.3 * h)) ** 2 + ((x - centre[1]) / (0.35 * w)) ** 2 < 1 - (z / slices - 0.4) ** 2
    a, b, c = rng.uniform(0.2, 0.9, 3)
    volume = inside * (0.5 + 0.3 * np.sin(a * y + z) * np.cos(b * x + c * z) + 0.2 * rng.random(shape))
    return torch.from_numpy(volume)


# A slow loop over slices and scans


def slow_crop(image: np.ndarray, half: int) -> np.ndarray:
    """Specification 2.3 for one slice, with the whole slice padded first."""
    h, w = image.shape
    mass = image.sum()
    if mass == 0:
        row, column = h // 2, w // 2
    else:
        row = math.trunc((image.sum(1) * np.arange(h)).sum() / mass)
        column = math.trunc((image.sum(0) * np.arange(w)).sum() / mass)
    padded = np.pad(image, half, constant_values=image.min())
    return padded[row : row + 2 * half, column : column + 2 * half]


def slow_rank(
    sources: list[Tensor],
    target: Tensor,
    mode: str,
    n: int,
    m: int = 2,
    half: int | None = None,
    edges: str = "authors",
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Specification 2.4, one pair of slices at a time."""
    slices = target.shape[-1]

    def score(k: int, there: int, here: int) -> float:
        x, y = target[..., here], sources[k][..., there]
        if half is not None:
            x, y = (torch.from_numpy(slow_crop(image.numpy(), half)) for image in (x, y))
        return float(sr_sim(x, y))

    mean = [sum(score(k, z, z) for z in range(slices)) / slices for k in range(len(sources))] if mode == "3d" else []
    rows = []
    for z in range(slices):
        if mode == "3d":
            candidates = [(value, k, 0) for k, value in enumerate(mean)]
        else:
            offsets = [0]
            if mode == "2.5d" and (edges == "clip" or m <= z <= slices - 1 - m):
                offsets = [d for d in range(-m, m + 1) if 0 <= z + d < slices]
            candidates = [(score(k, z + d, z), k, d) for k in range(len(sources)) for d in offsets]
        ranked = sorted(candidates, key=lambda candidate: -candidate[0])[:n]  # stable
        most = len(sources) * (2 * m + 1 if mode == "2.5d" else 1)
        rows.append(ranked + [(math.nan, -1, 0)] * (min(n, most) - len(ranked)))
    table = np.array(rows)
    return table[..., 1].astype(int), table[..., 2].astype(int), table[..., 0]


def assert_same(found: tuple[Tensor, Tensor, Tensor], expected: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    assert [part.shape for part in found] == [part.shape for part in expected]
    np.testing.assert_allclose(found[2].numpy(), expected[2], rtol=0, atol=1e-10)
    assert np.array_equal(found[0].numpy(), expected[0])
    assert np.array_equal(found[1].numpy(), expected[1])


@pytest.fixture(scope="module")
def sources() -> list[Tensor]:
    return [scan(seed) for seed in range(4)]


@pytest.fixture(scope="module")
def bank(sources: list[Tensor]) -> DonorBank:
    return DonorBank.build(sources)


@pytest.mark.parametrize("mode", ["3d", "2d", "2.5d"])
@pytest.mark.parametrize("crop", [60, 21, None])
def test_equals_the_slow_loop(mode: Any, crop: int | None, sources: list[Tensor], bank: DonorBank) -> None:
    target = scan(100)
    half = None if crop is None else min(crop, 22)  # half of the shorter side
    for n in (3, 50):
        assert_same(bank.rank(target, mode, n, 2, crop), slow_rank(sources, target, mode, n, 2, half))


@pytest.mark.parametrize("edges", ["authors", "clip"])
@pytest.mark.parametrize("m", [0, 1, 3, 8])
def test_neighbours_at_the_ends(edges: Any, m: int, sources: list[Tensor], bank: DonorBank) -> None:
    target = scan(101)
    found = bank.rank(target, "2.5d", 6, m, 21, edges=edges)
    assert_same(found, slow_rank(sources, target, "2.5d", 6, m, 21, edges))
    if m == 8:  # more neighbours than slices: with the authors' rule nobody has any
        assert not found[1].any() or edges == "clip"


def test_one_scan_and_few_slices() -> None:
    source, target = scan(1, (44, 50, 3)), scan(2, (44, 50, 3))
    bank = DonorBank.build([source])
    for mode in ("3d", "2d", "2.5d"):
        assert_same(bank.rank(target, mode, 7), slow_rank([source], target, mode, 7, 2, 22))
    scans, offsets, scores = bank.rank(target, "2.5d", 7)
    assert scans.tolist() == [[0, -1, -1, -1, -1]] * 3
    assert not offsets.any()
    assert torch.isfinite(scores).sum(1).tolist() == [1, 1, 1]


@pytest.mark.parametrize("mode", ["3d", "2d", "2.5d"])
def test_ties_keep_the_order_of_the_bank(mode: Any) -> None:
    twin, other = scan(3), scan(4)
    found = DonorBank.build([other, twin, other.clone(), twin.clone()]).rank(scan(5), mode, 20)
    for row, offsets in zip(found[0].tolist(), found[1].tolist(), strict=True):
        places = {(k, d): place for place, (k, d) in enumerate(zip(row, offsets, strict=True)) if k >= 0}
        for k, d in places:
            if k < 2:
                assert places[k, d] + 1 == places[k + 2, d]
    assert torch.equal(found[2][:, 0:4:2], found[2][:, 1:4:2])


def test_blank_slices_and_crops_over_the_border() -> None:
    sources, target = [scan(6), scan(7)], scan(8)
    sources[0][..., 2] = 0
    target[..., 3] = 0
    corner = torch.zeros(SHAPE, dtype=torch.float64)
    corner[:9, -6:] = scan(9)[:9, -6:] + 0.3
    sources.append(corner)
    bank = DonorBank.build(sources)
    for mode in ("2d", "2.5d", "3d"):
        found = bank.rank(target, mode, 9, crop=20)
        assert_same(found, slow_rank(sources, target, mode, 9, 2, 20))
        assert not torch.isnan(found[2][found[0] >= 0]).any()


@quick
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(2, 60))
def test_crop_equals_padding_first(seed: int, scale: int, half: int) -> None:
    rng = np.random.default_rng(seed)
    # Small whole numbers, so that both ways find the very same centre.
    images = rng.integers(0, scale, (4, *rng.integers(1, 50, 2))) + rng.integers(0, 2)
    images[0] = 0
    images[1] *= rng.integers(0, 2, images.shape[1:])
    found = crop_about_centre(torch.from_numpy(images.astype(np.float64)), half)
    assert found.shape == (4, 2 * half, 2 * half)
    for crop, image in zip(found.numpy(), images, strict=True):
        assert np.array_equal(crop, slow_crop(image, half))


def test_crop_of_one_bright_pixel() -> None:
    image = torch.zeros(1, 200, 220)
    image[0, 63, 100] = 1
    crop = crop_about_centre(image, 60)
    assert crop.shape == (1, 120, 120)
    assert crop[0, 60, 60] == 1  # sixty before, fifty-nine behind
    assert crop.sum() == 1


# Between the modes (specification 9, item 8)


def test_one_donor_of_one_scan() -> None:
    bank, target = DonorBank.build([scan(10)]), scan(11)
    three, two, half = (bank.rank(target, mode, 1) for mode in ("3d", "2d", "2.5d"))
    assert torch.equal(three[0], two[0])
    assert not three[1].any()
    assert not two[1].any()
    ends = [0, 1, SHAPE[2] - 2, SHAPE[2] - 1]
    assert not half[1][ends].any()
    torch.testing.assert_close(half[2][ends], two[2][ends], rtol=0, atol=1e-12)
    best_is_own = (half[2] - two[2]).abs() < 1e-12
    assert torch.equal(best_is_own, half[1] == 0)
    assert not best_is_own.all()


def test_modes_are_consistent(bank: DonorBank) -> None:
    target = scan(12)
    three, two, half = (bank.rank(target, mode, 4) for mode in ("3d", "2d", "2.5d"))
    assert (three[0] == three[0][0]).all()
    for place, k in enumerate(three[0][0].tolist()):
        own = two[2][two[0] == k]
        assert len(own) == SHAPE[2]
        torch.testing.assert_close(three[2][0, place], own.mean())
    assert (half[2][:, 0] >= two[2][:, 0] - 1e-12).all()
    for scores in (three[2], two[2], half[2]):
        assert (scores.diff(dim=1) <= 0)[:, 1:].all()


def test_the_scan_itself_is_its_best_donor(bank: DonorBank, sources: list[Tensor]) -> None:
    for mode in ("3d", "2d", "2.5d"):
        scans, offsets, scores = bank.rank(sources[2], mode, 1)
        assert (scans == 2).all()
        assert not offsets.any()
        torch.testing.assert_close(scores, torch.ones_like(scores), rtol=0, atol=1e-9)


def test_search_does_not_change_the_bank(bank: DonorBank) -> None:
    target = scan(13)
    first = bank.rank(target, "2.5d")
    bank.rank(scan(14), "2d", crop=None)
    for again, before in zip(bank.rank(target, "2.5d"), first, strict=True):
        assert torch.equal(again.nan_to_num(-9), before.nan_to_num(-9))


def test_float32_agrees_with_float64(sources: list[Tensor], bank: DonorBank) -> None:
    target = scan(15)
    single = DonorBank.build([source.float() for source in sources])
    found, expected = single.rank(target.float(), "2d", 4), bank.rank(target, "2d", 4)
    assert found[2].dtype == torch.float32
    assert expected[2].dtype == torch.float64
    torch.testing.assert_close(found[2].double(), expected[2], rtol=0, atol=1e-5)


def test_arrays_do_as_well(sources: list[Tensor], bank: DonorBank) -> None:
    arrays: Any = [source.numpy() for source in sources]
    target: Any = scan(16).numpy()
    for found, expected in zip(DonorBank.build(arrays).rank(target), bank.rank(scan(16)), strict=True):
        assert torch.equal(found, expected)


# The bank itself


def test_gather_stacks_slices(bank: DonorBank, sources: list[Tensor]) -> None:
    scans, offsets, _ = bank.rank(scan(17), "2.5d", 9)
    donors = bank.gather(scans, offsets)
    assert donors.shape == (9, *SHAPE)
    for z in range(SHAPE[2]):
        for j in range(9):
            k, d = int(scans[z, j]), int(offsets[z, j])
            if k < 0:
                assert torch.isnan(donors[j, ..., z]).all()
            else:
                assert torch.equal(donors[j, ..., z], sources[k][..., z + d])
    same_place = bank.gather(torch.tensor([[1, 0, -1]]).expand(7, 3))
    assert torch.equal(same_place[0], sources[1])
    assert torch.equal(same_place[1], sources[0])
    assert torch.isnan(same_place[2]).all()


def test_scans_are_kept_in_half_precision_only_where_that_is_exact() -> None:
    exact = scan(18).half().float()
    bank = DonorBank.build([exact, scan(19).float()], ["a", "b"])
    assert torch.equal(bank.scan(0), exact)
    assert torch.equal(bank.scan(1), scan(19).float())
    assert bank._scans[0].dtype == torch.float16
    assert bank._scans[1].dtype == torch.float32
    assert bank.shape == SHAPE
    assert len(bank) == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_saved_banks_come_back(dtype: torch.dtype, tmp_path: Path) -> None:
    volumes = [scan(seed).half().to(dtype) if dtype == torch.float16 else scan(seed).to(dtype) for seed in range(12)]
    bank = DonorBank.build(volumes, [f"name {k}" for k in range(12)])
    bank.metadata = {"site": "x"}
    bank.save(tmp_path / "bank.safetensors")
    loaded = DonorBank.load(tmp_path / "bank.safetensors")
    assert loaded.names == bank.names
    assert loaded.metadata == {"site": "x"}
    for k in range(12):
        assert torch.equal(loaded.scan(k), bank.scan(k))
        assert loaded.scan(k).dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    target = scan(20).to(loaded.scan(0).dtype)
    for found, expected in zip(loaded.rank(target, n=12), bank.rank(target, n=12), strict=True):
        assert torch.equal(found, expected)


def test_random_donors_are_those_of_the_authors() -> None:
    """Python's generator, restarted with 42 for every scan, slice by slice, donor by donor (specification 2.5)."""
    generator = random.Random(42)
    expected = [[generator.choice(range(57)) for _ in range(7)] for _ in range(172)]
    assert random_donors(57, 172).tolist() == expected
    assert random_donors(57, 172, n=1).shape == (172, 1)
    assert not torch.equal(random_donors(57, 172, seed=1), random_donors(57, 172))
    assert set(random_donors(3, 200, n=1).flatten().tolist()) == {0, 1, 2}


# Bad input


@pytest.mark.parametrize(
    ("volumes", "problem"),
    [
        ([], "at least one source scan"),
        ([torch.zeros(44, 50)], "volume 0: has 2 dimensions; give"),
        ([torch.zeros(44, 50, 3), torch.zeros(44, 50, 4)], r"volume 1: has shape \(44, 50, 4\), the first volume"),
        ([torch.zeros(44, 50, 3), torch.full((44, 50, 3), torch.nan)], "volume 1: holds values that are not finite"),
    ],
)
def test_bad_volumes_are_refused(volumes: list[Tensor], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        DonorBank.build(volumes)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"mode": "4d"}, "unknown donor search '4d'; give 3d, 2d or 2.5d"),
        ({"n": 0}, "n is 0"),
        ({"neighbours": -1}, "neighbours -1"),
        ({"crop": 19}, "crop is 19; SR-SIM needs at least 20"),
    ],
)
def test_bad_searches_are_refused(options: Any, problem: str, bank: DonorBank) -> None:
    with pytest.raises(ValueError, match=problem):
        bank.rank(scan(0), **options)


def test_target_on_another_grid_is_refused(bank: DonorBank) -> None:
    with pytest.raises(InputError, match=r"target scan has shape \(44, 50, 6\), the donor bank \(44, 50, 7\); bring"):
        bank.rank(scan(0, (44, 50, 6)))


def test_slices_too_small_for_sr_sim_are_refused() -> None:
    small = scan(0, (38, 50, 3))
    bank = DonorBank.build([small])
    with pytest.raises(ValueError, match="at least 40 pixels"):
        bank.rank(small, crop=None)
    # A crop is padded to 40 pixels, so it can be compared.
    assert bank.rank(small)[2].shape == (3, 1)


def test_files_that_are_no_bank(tmp_path: Path, bank: DonorBank) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        DonorBank.load(tmp_path / "absent.safetensors")
    path = tmp_path / "bank.safetensors"
    save_tensors(path, {"scan.00000": torch.zeros(3, 44, 50)}, {})
    with pytest.raises(InputError, match="is not a donor bank; write one with `fda-mri bank`"):
        DonorBank.load(path)
    bank.save(path)
    content = bytearray(path.read_bytes())
    content[-100] ^= 4
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        DonorBank.load(path)
