"""Network files, masks, and the score that chooses a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from aiva.models import PACKAGE, Model, build, load_model, mask_of, probabilities, source_judge
from dart_core import metrics
from dart_core.checkpoint import save_model, save_weights
from dart_core.data.scans import load_scans, open_datalist, rows_of
from dart_core.errors import CheckpointError, SettingError
from dart_core.nets import ResidualUNet2d
from dart_core.scan_commands import check_settings
from dart_core.settings import ScanSettings

MODEL = Model(2, 1, "plain", None, ["a", "b"], "c", "aiva", 12, "network of the last step")


def test_a_file_says_all_about_its_network(tmp_path: Path) -> None:
    network = build(MODEL)
    save_model(tmp_path, network, PACKAGE, MODEL)
    for path in (tmp_path, tmp_path / "model.safetensors"):
        loaded, model = load_model(path)
        assert model == MODEL
        assert model.source_site == "a+b"
        assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in network.state_dict().items())


def test_files_of_others(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors; finish the training run"):
        load_model(tmp_path)
    save_weights(tmp_path / "other.safetensors", ResidualUNet2d(width=2), {"network": "ResidualUNet2d"})
    with pytest.raises(CheckpointError, match="is no network of aiva"):
        load_model(tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="no such file"):
        load_model(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"preprocessing": "prostate"}, "--preprocessing was plain when this network was trained and is prostate now"),
        ({"preprocessing": "cc359"}, "--preprocessing was plain"),
        ({"spacing": (1.0, 1.0, 2.0)}, "--spacing was that of the files when .* and is 1 1 2 now"),
    ],
)
def test_scans_must_be_like_those_of_the_training(changes: Any, problem: str) -> None:
    check_settings(MODEL, ScanSettings(Path("a.csv"), "plain"), Path("m"))
    with pytest.raises(SettingError, match=problem):
        check_settings(
            MODEL, ScanSettings(**{"datalist": Path("a.csv"), "preprocessing": "plain", **changes}), Path("m")
        )


def test_masks() -> None:
    """Two parts, of 4 and of 2 voxels; the first and the last two slices of a prostate are left out."""
    foreground = np.zeros((4, 4, 6), np.float32)
    foreground[0, 0, 0:5] = foreground[3, 3, 2:4] = 0.9
    foreground[1, 1, 3] = 0.5
    plain = mask_of(foreground, prostate=False, largest=False)
    assert np.array_equal(plain, foreground > 0.5)
    assert mask_of(foreground, False, True).sum() == 5
    kept = mask_of(foreground, True, True)
    assert kept[0, 0].tolist() == [False, True, True, True, False, False]
    assert kept.sum() == 3
    assert not mask_of(np.zeros((4, 4, 6), np.float32), True, True).any()


class Threshold(nn.Module):
    """Foreground where the (middle) channel is above a value; logits two per pixel."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        middle = x[:, x.shape[1] // 2][:, None]
        return torch.cat([self.value.expand_as(middle), middle], 1)


def test_score_of_the_source(datalist: Path, prostates: Path) -> None:
    settings = ScanSettings(datalist, "plain")
    scans = load_scans(rows_of(open_datalist(datalist), ["sm15"], "train"), settings)
    masks = [np.asarray(scan.volume, np.float32) > 0.5 for scan in scans]
    expected = [metrics.surface_dice(m, s.truth, s.spacing, 1.0) for m, s in zip(masks, scans, strict=True)]
    assert source_judge(scans, settings)(Threshold(0.5)) == pytest.approx(np.mean(expected), abs=1e-6)
    assert np.array_equal(probabilities(Threshold(0.5), scans[0], 1) > 0.5, masks[0])

    settings = ScanSettings(prostates, "prostate")
    scans = load_scans(rows_of(open_datalist(prostates), ["UCL"], "train"), settings)
    expected = []
    for scan in scans:
        mask = mask_of((scan.volume > 0.8).astype(np.float32), True, True)
        expected.append(metrics.dice(mask[..., 1:-2], scan.truth[..., 1:-2]))
    assert source_judge(scans, settings)(Threshold(0.8)) == pytest.approx(np.mean(expected), abs=1e-6)
    assert 0 < np.mean(expected) < 1
