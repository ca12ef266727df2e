"""Normalisers of a run: fitted on the training patches, stored, read again; GAN training killed and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dart_core.data.datalist import Datalist
from dart_core.data.phantoms import write_histology
from dart_core.errors import CheckpointError
from dart_core.run import Run
from dart_core.settings import RunSettings
from stain_aglr.datasets import PatchFiles
from stain_aglr.normalisation import Normaliser, fit_normaliser, load_normaliser, save_normaliser
from stain_aglr.settings import GanTraining

METHODS = ("macenko", "vahadane", "stst-gan", "dscsi-gan")
GAN = GanTraining(
    gan_size=32,
    gan_width=2,
    gan_epochs=1,
    gan_batch_size=2,
    feature_epochs=1,
    gan_backbone="test_resnet",
    gan_log_every=1,
)


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> tuple[PatchFiles, Any]:
    rows = list(Datalist.read(write_histology(tmp_path_factory.mktemp("patches"), ("RUMC",), 12, 64)))
    return PatchFiles(rows), np.array([int(row.labels["label"]) for row in rows])


def fit(method: str, out: Path, patches: tuple[PatchFiles, Any], resume: bool = False, every: int = 2) -> Normaliser:
    settings = RunSettings(out, device="cpu", seed=3, resume=resume, checkpoint_every=every)
    with Run(settings, {"method": method}) as run:
        return fit_normaliser(run, method, *patches, GAN, 3)


@pytest.mark.parametrize("method", METHODS)
def test_stored_and_read_again(method: str, patches: Any, tmp_path: Path) -> None:
    normaliser = fit(method, tmp_path / "run", patches)
    save_normaliser(tmp_path, normaliser)
    again = load_normaliser(tmp_path)
    images = torch.stack([patches[0][i] for i in range(3)])
    result = normaliser(images)
    assert result.shape == images.shape
    assert result.dtype == torch.uint8
    assert torch.equal(again(images), result)
    assert torch.equal(again.normalise_batch(images[1:2]), result[1:2]) or (
        (again(images[1:2]).int() - result[1:2].int()).abs().max() <= 1
    )
    assert normaliser(images[:0]).shape == (0, 3, 64, 64)


@pytest.mark.parametrize("method", ["stst-gan", "dscsi-gan"])
def test_a_gan_resumes_exactly(method: str, patches: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the middle of a step after the checkpoint of step 4, in dscsi-gan once in each part."""
    expected = fit(method, tmp_path / "whole", patches).how.state_dict()  # type: ignore[union-attr]
    for stop in (5, 9) if method == "dscsi-gan" else (5,):
        out = tmp_path / f"stopped-{stop}"
        with monkeypatch.context() as patch:
            write = __import__("dart_core.log", fromlist=["Log"]).Log.write

            def until(log: Any, step: int, _stop: int = stop, _write: Any = write, **values: Any) -> None:
                if step == _stop:
                    raise KeyError("killed")
                _write(log, step, **values)

            patch.setattr("dart_core.log.Log.write", until)
            with pytest.raises(KeyError, match="killed"):
                fit(method, out, patches)
        torch.rand(7)
        resumed = fit(method, out, patches, resume=True).how.state_dict()  # type: ignore[union-attr]
        assert all(torch.equal(resumed[name], expected[name]) for name in expected)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        load_normaliser(tmp_path)
    from dart_core.checkpoint import save_tensors

    save_tensors(tmp_path / "normaliser.safetensors", {"a": torch.zeros(1)}, {})
    with pytest.raises(CheckpointError, match="holds no normaliser"):
        load_normaliser(tmp_path)
