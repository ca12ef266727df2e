"""Every loss brings the network to learn a handful of patches by heart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dart_core.batches import Batches
from dart_core.data.phantoms.histology import histology_patch
from dart_core.run import Run
from dart_core.settings import RunSettings
from stain_aglr.method import train_network, weights_of
from stain_aglr.networks import StainAgLr
from stain_aglr.settings import Augmentation, Losses, Training

LABELS = np.array([0, 1] * 4)
PATCHES = torch.stack(
    [torch.from_numpy(histology_patch(i, "RUMC", bool(k), 32)).permute(2, 0, 1) for i, k in enumerate(LABELS)]
)


@pytest.mark.parametrize("method", ["vanilla", "hed", "stain-aglr"])
def test_one_batch(method, tmp_path):
    batches = Batches(lambda i, rng: {"image": PATCHES[i], "label": LABELS[i]}, 8, 8, 0)
    training = Training(width=4, batch_size=8, learning_rate=5e-3, patience=100, max_epochs=160, log_every=1)

    def validate(classifier):
        with torch.no_grad():
            logits = classifier(PATCHES.float() / 255)
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(LABELS))
        return {"validation_loss": float(loss), "right": float((logits.argmax(1).numpy() == LABELS).mean())}

    with Run(RunSettings(tmp_path / "run", device="cpu", seed=0)) as run:
        losses = (
            Losses() if method != "stain-aglr" else Losses(lambda2=1.0)
        )  # the default 10 keeps answers soft for long
        network = StainAgLr(training.width, weights_of(method, losses)[0] > 0)
        light = Augmentation(strength=0.02, spatial="rigid", largest_blur=0.1)
        best = train_network(run, network, batches, method, training, losses, light, validate)
    assert best.loss < 0.1
    network.load_state_dict(best.weights)
    assert validate(network.eval().patch_classifier)["right"] == 1
