"""Which slices training draws from, and what a batch of them looks like (specification 2.4, 5)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dart_core.data.datalist import Row
from dart_core.errors import InputError
from dart_core.settings import ScanSettings
from mmtl_octl.pools import first_patients, make_pool, patch_size_of, training_batches
from mmtl_octl.settings import Training

PLAIN = ScanSettings(Path("list.csv"), preprocessing="plain")
PROSTATE = ScanSettings(Path("list.csv"), preprocessing="prostate")


def test_ninety_slices_of_a_cc359_patient(make_scan) -> None:
    """269 slices with interval 3 give 89, with 4 give 67 (specification 2.4)."""
    scan = make_scan("p", (8, 8, 269))
    cc359 = ScanSettings(Path("list.csv"))
    assert make_pool([scan], cc359, 0, 3).size == 89
    assert make_pool([scan], cc359, 0, 4).size == 67
    assert make_pool([scan], cc359, 0).size == 269
    assert [z for _, z in make_pool([scan], cc359, 0, 100).patients[0]] == [0, 100]
    with pytest.raises(InputError, match=r"p.nii.gz: its 269 slices leave none.*--interval"):
        make_pool([scan], cc359, 0, 300)


def test_scans_of_one_subject_are_one_patient(make_scan) -> None:
    pool = make_pool([make_scan("p"), make_scan("q"), make_scan("p"), make_scan("p", site="b")], PLAIN, 0)
    assert [len(patient) for patient in pool.patients] == [12, 6, 6]
    assert {scan for scan, _ in pool.patients[0]} == {0, 2}


def test_prostate_slices_are_drawn_once_and_lose_the_last_one(make_scan) -> None:
    scan = make_scan("p", (16, 24, 12))  # prostate in slices 1 to 10
    pool = make_pool([scan], PROSTATE, 0)
    assert [z for _, z in pool.patients[0]] == list(range(1, 10))
    assert make_pool([scan], PROSTATE, 0).patients == pool.patients
    assert make_pool([scan], PROSTATE, 0, 3).size == 3


def test_first_patients_in_the_order_of_the_datalist() -> None:
    rows = [Row(Path(f"{n}.nii"), subject=s, site="a", source=Path("l.csv")) for n, s in enumerate("bbacb")]
    assert [row.image.stem for row in first_patients(rows, 1)] == ["0", "1", "4"]
    assert len(first_patients(rows, 2)) == 4
    assert len(first_patients(rows, 0)) == 5
    with pytest.raises(InputError, match=r"l.csv: site a has 3 training patients; give --patients 3 or fewer"):
        first_patients(rows, 4)


def test_a_batch_holds_target_then_source_slices(make_scan) -> None:
    source, target = make_pool([make_scan("s")], PLAIN, 0), make_pool([make_scan("t")], PLAIN, 0)
    training = Training(epochs=4, batches=3, batch_size=8)
    batches = training_batches(source, target, training, PLAIN, 7, "paper")
    for step in (0, 5, 11):
        batch = batches.batch(step)
        assert batch["image"].shape == batch["mask"].shape == (8, 1, 16, 24)
        assert batch["image"].dtype == batch["mask"].dtype == torch.float32
        chosen_target, chosen_source = batches.mixed.batch(*divmod(step, 3))
        expected = [target.scans[0].volume[..., z] for z in chosen_target]
        expected += [source.scans[0].volume[..., z - 6] for z in chosen_source]
        np.testing.assert_array_equal(batch["image"][:, 0].numpy(), np.stack(expected))
    assert batches.mixed.counts == (2, 4, 6, 8)


def test_prostate_batches_have_three_slices_as_channels(make_scan) -> None:
    scan = make_scan("t", (16, 24, 12))
    batches = training_batches(
        None, make_pool([scan], PROSTATE, 0), Training(epochs=1, batches=1, batch_size=2), PROSTATE, 0, "target"
    )
    batch = batches.batch(0)
    assert batch["image"].shape == (2, 3, 16, 24)
    z = batches.mixed.batch(0, 0)[0][0] + 1
    np.testing.assert_array_equal(batch["image"][0].numpy(), np.moveaxis(scan.volume[..., z - 1 : z + 2], -1, 0))
    np.testing.assert_array_equal(batch["mask"][0, 0].numpy(), scan.truth[..., z])


def test_patches_make_scans_of_any_size_fit(make_scan) -> None:
    scans = [make_scan("p", (16, 24, 6)), make_scan("q", (30, 20, 6))]
    pool = make_pool(scans, PLAIN, 0)
    with pytest.raises(InputError, match=r"q.nii.gz: slices of 30 x 20 pixels; those of p.nii.gz have 16 x 24"):
        training_batches(None, pool, Training(), PLAIN, 0, "target")
    with pytest.raises(InputError, match=r"q.nii.gz: slices of 30 x 20 pixels; train on patches: --patch-size 16"):
        training_batches(None, make_pool(scans[1:], PLAIN, 0), Training(), PLAIN, 0, "target")
    batches = training_batches(None, pool, Training(batch_size=8, patch_size=16), PLAIN, 0, "target")
    assert batches.batch(0)["image"].shape == (8, 1, 16, 16)
    # A patch of the same slice lies elsewhere the next time.
    one = training_batches(
        None, make_pool([make_scan("p", (40, 40, 1))], PLAIN, 0), Training(patch_size=8), PLAIN, 0, "target"
    )
    assert len({tuple(image.ravel().tolist()) for image in one.batch(0)["image"]}) > 8


def test_patch_sizes_of_the_papers() -> None:
    assert patch_size_of(Training(), ScanSettings(Path("l.csv"))) == 256
    assert patch_size_of(Training(), PROSTATE) == 0
    assert patch_size_of(Training(patch_size=64), PROSTATE) == 64
