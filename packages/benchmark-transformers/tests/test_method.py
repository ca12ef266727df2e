"""The fine-tuning protocol (specification 2.1)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import timm
import torch

from benchmark_transformers.method import classification_loss, layer_groups, make_optimizer, measure
from benchmark_transformers.settings import FineTuneRecipe


def test_multi_label_loss_in_closed_form() -> None:
    logits = torch.tensor([[0.0, 2.0], [-1.0, 3.0]], dtype=torch.float64)
    targets = torch.tensor([[1.0, 0.0], [0.7, 1.0]], dtype=torch.float64)
    p = 1 / (1 + np.exp(-logits.numpy()))
    expected = -(targets.numpy() * np.log(p) + (1 - targets.numpy()) * np.log(1 - p)).mean()
    assert float(classification_loss(logits, targets, False)) == pytest.approx(expected, rel=1e-12)
    targets[1, 1] = math.nan  # unknown: as if it were not there
    known = np.array([[True, True], [True, False]])
    expected = -(targets.numpy() * np.log(p) + (1 - targets.numpy()) * np.log(1 - p))[known].mean()
    assert float(classification_loss(logits, targets, False)) == pytest.approx(expected, rel=1e-12)


def test_unknown_labels_have_no_gradient() -> None:
    logits = torch.zeros(2, 2, requires_grad=True)
    classification_loss(logits, torch.tensor([[1.0, math.nan], [math.nan, math.nan]]), False).backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [[-0.5, 0.0], [0.0, 0.0]]


def test_exclusive_loss_is_the_cross_entropy_of_the_class() -> None:
    logits = torch.randn(4, 3, dtype=torch.float64)
    classes = torch.tensor([0, 2, 1, 2])
    one_hot = torch.nn.functional.one_hot(classes, 3).double()
    expected = -logits.log_softmax(1)[torch.arange(4), classes].mean()
    assert float(classification_loss(logits, one_hot, True)) == pytest.approx(float(expected), rel=1e-12)


def test_measures() -> None:
    known = np.array([[1, 0, math.nan], [0, 0, 1], [1, 0, math.nan]])
    scores = np.array([[0.9, 0.1, 0.2], [0.2, 0.6, 0.9], [0.1, 0.2, 0.3]])
    assert measure(known, scores, False) == (0.5, 1)  # the second label has one class only, the third too
    value, defined = measure(known[:, 1:], scores[:, 1:], False)
    assert math.isnan(value)
    assert defined == 0
    assert measure(known, scores, False, [1, 2]) == (pytest.approx(value, nan_ok=True), defined)
    one_hot = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [math.nan] * 3])
    found = np.array([[0.5, 0.3, 0.2], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8], [0.1, 0.1, 0.8]])
    assert measure(one_hot, found, True) == (pytest.approx(2 / 3), 3)


def test_optimisers() -> None:
    network = timm.create_model("vit_base_patch16_224", img_size=16, patch_size=4, embed_dim=12, depth=2, num_heads=2)
    groups = {
        name: make_optimizer(network, FineTuneRecipe(optimizer=name)).param_groups
        for name in ("sgd", "momentum", "adamw")
    }
    assert (groups["sgd"][0]["momentum"], groups["sgd"][0]["nesterov"], groups["sgd"][0]["weight_decay"]) == (
        0.9,
        True,
        0,
    )
    assert (groups["momentum"][0]["momentum"], groups["momentum"][0]["nesterov"]) == (0.9, False)
    assert groups["adamw"][0]["betas"] == (0.9, 0.999)


def test_layer_decay_of_swin() -> None:
    """Specification 2.2.9: L = 24 for the paper's Swin; here 4."""
    network = timm.create_model(
        "swin_base_patch4_window7_224",
        img_size=32,
        patch_size=2,
        embed_dim=8,
        depths=(1, 2, 1),
        num_heads=(1, 2, 4),
        window_size=2,
    )
    scales = {
        id(parameter): group["lr_scale"] for group in layer_groups(network, 0.05, 0.8) for parameter in group["params"]
    }
    decays = {id(p): group["weight_decay"] for group in layer_groups(network, 0.05, 0.8) for p in group["params"]}
    expected = {
        "patch_embed.proj.weight": 0, "layers.0.blocks.0.norm1.bias": 1, "layers.1.downsample.reduction.weight": 1,
        "layers.1.blocks.0.mlp.fc1.weight": 2, "layers.1.blocks.1.attn.qkv.weight": 3, "layers.2.downsample.norm.weight": 3,
        "layers.2.blocks.0.attn.proj.bias": 4, "norm.weight": 5, "head.fc.weight": 5,
    }  # fmt: skip
    parameters = dict(network.named_parameters())
    for name, layer in expected.items():
        assert scales[id(parameters[name])] == pytest.approx(0.8 ** (5 - layer)), name
        assert decays[id(parameters[name])] == (0.05 if parameters[name].dim() > 1 else 0)
    assert len(scales) == len(parameters)


def test_layer_decay_of_the_published_networks() -> None:
    with torch.device("meta"):
        swin, vit = (timm.create_model(name) for name in ("swin_base_patch4_window7_224", "beit_base_patch16_224"))
    for network, blocks, decay in ((swin, 24, 0.8), (vit, 12, 0.65)):
        scales = {group["lr_scale"] for group in layer_groups(network, 0.05, decay)}
        assert sorted(scales) == pytest.approx([decay ** (blocks + 1 - i) for i in range(blocks + 2)])
