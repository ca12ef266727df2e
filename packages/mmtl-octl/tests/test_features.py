"""Patients as vectors, t-SNE, and the losses of test patients near and far from the training patients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dart_core.errors import InputError
from dart_core.nets import ResidualUNet2d
from mmtl_octl.features import (
    Snapshot,
    embed,
    load_snapshots,
    middle_slices,
    near_and_far,
    patient_features,
    progress_figure,
    save_snapshot,
    snapshot,
)


def test_slices_of_the_authors_and_of_smaller_volumes() -> None:
    assert middle_slices(269) == range(120, 180)
    assert middle_slices(180) == range(120, 180)
    assert middle_slices(179) == range(79, 119)
    assert middle_slices(10) == range(4, 6)
    assert len(middle_slices(1)) == 1


@pytest.fixture
def network() -> ResidualUNet2d:
    torch.manual_seed(0)
    return ResidualUNet2d(width=2)


def test_features_are_means_over_channels_then_slices(network: ResidualUNet2d, make_scan) -> None:
    scan = make_scan("p", (16, 24, 10))
    network.train()
    vector, loss = patient_features(network, network.bottleneck[3], scan, 1, 0)
    assert network.training
    assert vector.shape == (2 * 3,)
    network.eval()
    images = torch.from_numpy(np.moveaxis(scan.volume[..., 4:6], -1, 0)[:, None].copy())
    with torch.no_grad():
        x = network.init_path(images)
        x = network.down2(network.down1(x))
        expected = network.bottleneck[:4](x).mean(1).reshape(2, -1).mean(0)
        logits = network(images)
    np.testing.assert_allclose(vector, expected.numpy(), rtol=1e-5)
    truth = torch.from_numpy(np.moveaxis(scan.truth[..., 4:6], -1, 0)[:, None].astype(np.float32))
    assert loss == pytest.approx(float(nn.functional.binary_cross_entropy_with_logits(logits, truth)), rel=1e-5)
    assert not network.bottleneck[3]._forward_hooks


def test_patches_give_patients_of_any_size_one_length(network: ResidualUNet2d, make_scan) -> None:
    vectors = [
        patient_features(network, network.bottleneck[3], make_scan("p", shape), 1, 32)[0]
        for shape in ((16, 24, 6), (40, 20, 9))
    ]
    assert [len(vector) for vector in vectors] == [16, 16]


def test_snapshot_makes_a_round_trip(network: ResidualUNet2d, make_scan, tmp_path: Path) -> None:
    scans = {"source": [make_scan("a"), make_scan("b")], "target train": [make_scan("c")], "target test": []}
    for epoch in (12, 0):
        taken = snapshot(epoch, network, network.bottleneck[3], scans, 1, 0)
        save_snapshot(tmp_path, taken)
    first, second = load_snapshots(tmp_path)
    assert (first.epoch, second.epoch) == (0, 12)
    assert second.group == ("source", "source", "target train")
    assert second.patient == ("a", "b", "c")
    np.testing.assert_array_equal(second.features, taken.features)
    np.testing.assert_array_equal(second.loss, taken.loss)


def test_folders_without_features(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no features/"):
        load_snapshots(tmp_path)
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "epoch-001.npz").write_text("no archive")
    with pytest.raises(InputError, match=r"epoch-001.npz: cannot be read"):
        load_snapshots(tmp_path)


def test_embedding_keeps_clusters_apart() -> None:
    rng = np.random.default_rng(0)
    features = np.concatenate([rng.normal(size=(20, 50)), rng.normal(size=(20, 50)) + 20])
    points = embed(features)
    assert points.shape == (40, 2)
    np.testing.assert_array_equal(points, embed(features))
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1) + np.diag(np.full(40, np.inf))
    assert ((distance.argmin(1) < 20) == (np.arange(40) < 20)).all()
    with pytest.raises(InputError, match="3 patients are too few"):
        embed(features[:3])
    assert embed(features[:5]).shape == (5, 2)


def test_near_is_within_20_in_l1() -> None:
    group = ("source", "target train", "target test", "target test", "target test")
    points = np.array([[0.0, 0.0], [0, 0], [12, 8], [12, 8.1], [-3, 1]])
    taken = Snapshot(1, np.zeros((5, 2), np.float32), np.array([9, 9, 1, 2, 3], np.float32), group, ("",) * 5)
    assert near_and_far(taken, points) == {"near": 2, "far": 1, "loss_near": 2.0, "loss_far": 2.0}
    points[2:] = 100
    found = near_and_far(taken, points)
    assert (found["near"], found["far"], found["loss_far"]) == (0, 3, 2.0)
    assert np.isnan(found["loss_near"])


def test_figure_has_a_panel_for_each_epoch() -> None:
    taken = [
        Snapshot(
            e,
            np.zeros((3, 2), np.float32),
            np.zeros(3, np.float32),
            ("source", "target train", "target test"),
            ("",) * 3,
        )
        for e in (0, 20, 40, 60)
    ]
    figure = progress_figure(taken, [np.random.default_rng(e.epoch).normal(size=(3, 2)) for e in taken])
    assert [axes.get_title() for axes in figure.axes][:4] == ["epoch 0", "epoch 20", "epoch 40", "epoch 60"]
