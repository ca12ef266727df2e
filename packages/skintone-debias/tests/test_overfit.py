"""Every method learns a handful of pictures by heart."""

from __future__ import annotations

import pytest
import torch

from dart_core.data.datalist import Datalist
from skintone_debias.cases import case_batches, read_cases
from skintone_debias.method import class_weights, debias_optimizers, debias_step, main_loss
from skintone_debias.networks import Model, build
from skintone_debias.recipes import RECIPES
from skintone_debias.settings import CaseSettings, Unlearning
from skintone_debias.training import head_columns


@pytest.mark.parametrize("method", ["none", "lntl", "tabe", "clgr", "both"])
def test_overfit_one_batch(method, lesions):
    settings = CaseSettings(lesions)
    cases = read_cases(Datalist.read(lesions), settings, unlearn=True)[0]["train"]
    heads = head_columns(Unlearning(method), settings.nuisance)
    torch.manual_seed(0)
    network = build(Model("test_resnet", 32, False, method, "label", cases.values, heads))
    optimizers = debias_optimizers(
        network.encoder, network.main_head, list(network.aux_heads), method, 0.01, 0.01, momentum=0.5
    )
    batch = case_batches(cases, heads, 32, False, 8, seed=0).batch(0)
    x, weights = network.normalised(batch["image"]), [class_weights(cases.counts(name)).float() for name in heads]
    network.main_head[0].eval()
    losses = [
        debias_step(
            network.encoder, network.main_head, list(network.aux_heads), optimizers, x, batch["label"],
            list(batch["nuisance"].unbind(1)), method, weights,
        )
        for _ in range(40)
    ]  # fmt: skip
    assert all(len(found["loss_auxiliary"]) == len(RECIPES[method].heads) for found in losses)
    with torch.no_grad():
        found = main_loss(network.main_head(network.encoder(x)), batch["label"])
    assert float(found) < 0.1
