"""Encoder and heads: sizes of the paper, and files that know what they hold."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dart_core.checkpoint import save_weights
from dart_core.errors import CheckpointError
from dart_core.nets.backbones import create_backbone
from skintone_debias.networks import LesionNet, MainHead, Model, auxiliary_head, build, load_model, save_model

MODEL = Model("test_resnet", 32, False, "clgr", "label", {"fitzpatrick": ["1", "2", "6"]}, ["fitzpatrick"], seed=4)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "features", "count"),
    [
        ("resnext101_32x8d", 2048, 86_742_336),
        ("resnet101", 2048, 42_500_160),
        ("densenet161", 2208, 26_472_000),
        ("inception_v3", 2048, 21_785_568),
        ("efficientnet_b3", 1536, 10_696_232),
    ],
)
def test_encoders_of_the_paper(name, features, count):
    with torch.device("meta"):
        encoder = create_backbone(name)
    assert encoder.num_features == features
    assert parameters(encoder) == count


def test_heads_of_the_paper():
    head = MainHead(2048)
    assert parameters(head) == 2049
    assert isinstance(head[0], nn.Dropout)
    assert head[0].p == 0.5
    assert [parameters(auxiliary_head(2048, n)) for n in (2, 6)] == [4098, 12294]
    assert parameters(auxiliary_head(2048, 2, deep=True)) == 262_530


def test_bytes_and_fractions_are_the_same_picture():
    network = build(MODEL).eval()
    pictures = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(network(pictures), network(pictures.float() / 255))
    grey = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert torch.equal(network.normalised(grey), torch.zeros(1, 3, 4, 4))


def test_written_and_read_back(tmp_path):
    network = build(MODEL)
    save_model(tmp_path / "model.safetensors", network, MODEL)
    for path in (tmp_path, tmp_path / "model.safetensors"):
        other, model = load_model(path)
        assert model == MODEL
        assert isinstance(other, LesionNet)
        assert not other.training
        for key, value in network.state_dict().items():
            assert torch.equal(other.state_dict()[key], value)


def test_files_of_something_else_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="finish the training run"):
        load_model(tmp_path)
    save_weights(tmp_path / "other.safetensors", nn.Linear(2, 2), {"other": "x"})
    with pytest.raises(CheckpointError, match="is no classifier of skintone-debias"):
        load_model(tmp_path / "other.safetensors")
