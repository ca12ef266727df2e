"""The network learns a few slices by heart, with AvaGrad, and segments them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from adagrad_unet import settings as of
from adagrad_unet.cases import load_case, make_recipe, read_case
from adagrad_unet.method import train_network
from adagrad_unet.network import GenericUNet2d
from adagrad_unet.prediction import segment_case
from adagrad_unet.rows import read_datalist, select
from dart_core.run import Run
from dart_core.settings import RunSettings


def test_a_heart_is_learnt_by_heart(hearts: Path, tmp_path: Path) -> None:
    cases = of.Cases(hearts, "B", labels=("LV", "MYO", "RV"))
    rows = select(cases, "train", read_datalist(cases))[:1]
    recipe = make_recipe(rows, cases, of.Planning(base_features=8, max_pools=2, batch_size=6), ("LV", "MYO", "RV"))
    training = of.Training(
        of.Optimisation("avagrad", learning_rate=3.0), epochs=5, batches=50, validation_batches=0, augmentation=False
    )
    loaded = [load_case(row, recipe) for row in rows]
    torch.manual_seed(0)
    with Run(RunSettings(tmp_path / "run", device="cpu", seed=0)) as run:
        network = GenericUNet2d(1, 4, recipe.plan.pool, recipe.plan.conv, recipe.plan.features)
        train_network(run, network, loaded, loaded, recipe, training)
    for row in rows:
        raw = read_case(row, recipe, 1)
        assert raw.labels is not None
        predicted = segment_case(network, raw, recipe, mirror=False).T[raw.box]
        for label in (1, 2, 3):
            ours, truth = predicted == label, raw.labels == label
            assert 2 * np.sum(ours & truth) / (ours.sum() + truth.sum()) > 0.95, (row.image.name, label)
