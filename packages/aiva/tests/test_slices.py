"""Slices and batches of two sites."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aiva.settings import Training
from aiva.slices import SitePair, Slices, patch_size_of
from dart_core.data.scans import centre_patch, load_scans, open_datalist, prostate_slices, rows_of, slice_stack
from dart_core.errors import InputError
from dart_core.settings import ScanSettings


def test_every_slice_once(pair: tuple[Slices, Slices]) -> None:
    source, target = pair
    assert source.places == [(scan, z) for scan in range(3) for z in range(12)]
    np.testing.assert_allclose(source.positions, np.tile(np.arange(12) / 12, 3))
    sample: Any = source.load(14)
    image, mask = centre_patch(slice_stack(source.scans[1].volume, 2), source.scans[1].truth[..., 2], 48)
    assert np.array_equal(sample["image"], image)
    assert np.array_equal(sample["mask"], mask)
    assert sample["mask"].dtype == np.int64
    assert sample["index"] == 14
    assert "mask" not in target.load(3)  # though the phantoms have masks
    assert source.feature_shape == (6, 6)


def test_prostate_slices(prostates: Path) -> None:
    settings = ScanSettings(prostates, "prostate")
    rows = rows_of(open_datalist(prostates), ["UCL"], "train")
    scans = load_scans(rows, settings, need_mask=True)
    labelled = Slices(scans, settings, 48, seed=3)
    expected = []
    for number, scan in enumerate(scans):
        rng = np.random.default_rng(np.random.SeedSequence(3, spawn_key=(number,)))
        expected += [(number, z) for z in prostate_slices(scan.truth, rng)]
    assert labelled.places == expected
    # Without masks, all those among which they are drawn.
    unlabelled = Slices(scans, settings, 48, labelled=False)
    assert unlabelled.places == [(number, z) for number in range(3) for z in range(1, 8)]
    image: Any = unlabelled.load(0)["image"]
    assert image.shape == (3, 48, 48)


def test_random_patches_differ(pair: tuple[Slices, Slices], datalist: Path) -> None:
    settings = ScanSettings(datalist, "plain")
    slices = Slices(pair[0].scans, settings, 16, random_patches=True)
    one, other = (np.asarray(slices.load(6, np.random.default_rng(seed))["image"]) for seed in (1, 2))
    assert not np.array_equal(one, other)
    centred = Slices(pair[0].scans, settings, 16)
    one, other = (np.asarray(centred.load(6, np.random.default_rng(seed))["image"]) for seed in (1, 2))
    assert np.array_equal(one, other)


def test_patch_sizes(pair: tuple[Slices, Slices], datalist: Path) -> None:
    scans = pair[0].scans
    assert patch_size_of(Training(), ScanSettings(datalist), scans) == 256
    assert patch_size_of(Training(), ScanSettings(datalist, "plain"), scans) == 56  # of 48 x 56
    assert patch_size_of(Training(patch_size=40), ScanSettings(datalist), scans) == 40


def test_periods_start_anew(pair: tuple[Slices, Slices]) -> None:
    """36 slices, 4 per step: 9 steps are one pass; a period of 5 steps sees 20 different ones, whatever came before."""
    batches = SitePair(*pair, batch_size=4, seed=0, period=5)
    for site in ("source", "target"):
        seen = [torch.cat([batches.batch(s)[f"{site}_index"] for s in range(p * 5, p * 5 + 5)]) for p in range(4)]
        assert all(len(set(index.tolist())) == 20 for index in seen)
        assert len({tuple(index.tolist()) for index in seen}) == 4
    first = batches.batch(0)
    assert not torch.equal(first["source_index"], first["target_index"])
    assert set(first) == {"source_image", "source_index", "source_mask", "target_image", "target_index"}


def test_without_periods_one_pass_follows_the_other(pair: tuple[Slices, Slices]) -> None:
    batches = SitePair(*pair, batch_size=4, seed=0)
    index = torch.cat([batches.batch(step)["target_index"] for step in range(18)])
    assert sorted(index[:36].tolist()) == sorted(index[36:].tolist()) == list(range(36))
    assert torch.equal(batches.batch(7)["target_index"], index[28:32])


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_depend_on_the_step_alone(pair: tuple[Slices, Slices], workers: int) -> None:
    batches = SitePair(*pair, batch_size=3, seed=5, period=4)
    for step, batch in enumerate(batches.loader(3, 9, workers), start=3):
        expected = batches.batch(step)
        assert all(torch.equal(batch[name], expected[name]) for name in expected)


def test_a_scan_without_slices(prostates: Path) -> None:
    settings = ScanSettings(prostates, "prostate")
    scans = load_scans(rows_of(open_datalist(prostates), ["UCL"], "train"), settings)
    short = [type(scan)(**{**vars(scan), "volume": scan.volume[..., :3]}) for scan in scans]
    with pytest.raises(InputError, match="its 3 slices leave none to train on; leave this scan out"):
        Slices(short, settings, 48, labelled=False)
