"""Encoders from timm, and weights from files of any origin."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from dart_core.checkpoint import save_weights
from dart_core.errors import CheckpointError, SettingError
from dart_core.nets import Conversion, create_backbone, load_backbone_weights

# A network with convolutions and batch norm that is built in milliseconds, and a transformer.
CNN, VIT = "test_resnet", "test_vit"


def test_the_encoders_of_the_papers() -> None:
    """Parameters and features of specification skintone-debias 3, counted there without the last layer."""
    expected = {
        "resnext101_32x8d": (86_742_336, 2048),
        "resnet101": (42_500_160, 2048),
        "densenet161": (26_472_000, 2208),
        "inception_v3": (21_785_568, 2048),
        "efficientnet_b3": (10_696_232, 1536),
    }
    with torch.device("meta"):
        found = {name: create_backbone(name) for name in expected}
    counted = {name: (sum(p.numel() for p in net.parameters()), net.num_features) for name, net in found.items()}
    assert counted == expected


@pytest.mark.parametrize("name", [CNN, VIT, "mobilenetv3_small_050", "efficientvit_b0", "resnet18.a1_in1k"])
def test_features_are_pooled_and_as_many_as_said(name: str) -> None:
    """Also where layers lie between the pooling and the classifier, as in mobile networks."""
    net = create_backbone(name, image_size=64).eval()
    for size, batch in ((64, 1), (64, 3)):
        with torch.no_grad():
            assert net(torch.rand(batch, 3, size, size)).shape == (batch, net.num_features)


def test_channels_and_sizes() -> None:
    assert create_backbone(CNN, in_channels=5)(torch.rand(2, 5, 48, 80)).ndim == 2  # any size
    net = create_backbone(VIT, in_channels=1, image_size=96)
    assert net(torch.rand(2, 1, 96, 96)).shape == (2, net.num_features)
    for channels in (0, -1):
        with pytest.raises(SettingError, match=f"in_channels is {channels}"):
            create_backbone(CNN, in_channels=channels)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("resnext101_32x8", "resnext101_32x8d"),
        ("resnext101", "resnext101_32x4d"),
        ("ResNet-50", "resnet50"),
        ("resnet18.no_such_tag", "resnet18"),
        ("", "timm knows"),
        ("zzz", "timm knows"),
    ],
)
def test_unknown_names(name: str, near: str) -> None:
    with pytest.raises(SettingError, match=f"timm has no network '{name}'") as error:
        create_backbone(name)
    assert near in str(error.value)


@pytest.mark.parametrize("name", ["hf-hub:timm/resnet18.a1_in1k", "hf_hub:timm/resnet18", "local-dir:/tmp", CNN])
def test_nothing_reaches_the_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    if name == CNN:
        create_backbone(name)
    else:
        with pytest.raises(SettingError, match="timm has no network"):
            create_backbone(name)


# --- Weights ---------------------------------------------------------------------------------------------------------


def state(seed: int = 0, name: str = CNN) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    net = create_backbone(name)
    for buffer in net.buffers():
        buffer += 1
    return net.state_dict()


def same(net: nn.Module, expected: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, expected[key]) for key, value in net.state_dict().items())


def test_a_file_of_torchvision_gives_torchvision_s_features(tmp_path: Path) -> None:
    """The same architecture from another library, with its classifier in the file."""
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(weights=None).eval()
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    ours = create_backbone("resnet18", tmp_path / "resnet18.pth").eval()
    theirs.fc = nn.Identity()
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))
    found = load_backbone_weights(ours, tmp_path / "resnet18.pth")
    assert found.unexpected == ("fc.weight", "fc.bias")
    assert set(found.loaded) == set(ours.state_dict())
    assert found.missing == found.shape_mismatch == ()


Wrap = Callable[[dict[str, Tensor]], dict[str, Any]]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 7, "args": {"lr": 0.1}},
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {"model": {f"module.encoder.{k}": v for k, v in s.items()} | {"module.head.weight": torch.ones(3)}},
        lambda s: {"optimizer": {"conv1.weight": torch.zeros(1)}, "ema": s},
        lambda s: {**{f"backbone.{k}": v for k, v in s.items()}, "projector.0.weight": torch.ones(2, 2)},
        lambda s: {k: v.half() for k, v in s.items()},
        lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
    ],
    ids=["bare", "state_dict", "module", "nested", "beside an optimiser", "backbone", "half precision", "old counters"],
)
@pytest.mark.parametrize("old", [False, True], ids=["archive", "pickle"])
def test_files_as_programs_write_them(tmp_path: Path, wrap: Wrap, old: bool) -> None:
    content = state()
    torch.save(wrap(content), tmp_path / "a.pth", _use_new_zipfile_serialization=not old)
    net = create_backbone(CNN)
    found = load_backbone_weights(net, tmp_path / "a.pth")
    assert found.missing == found.shape_mismatch == ()
    parameters = {key for key in content if not key.endswith("num_batches_tracked")}
    assert parameters <= set(found.loaded)
    for key in parameters:
        torch.testing.assert_close(net.state_dict()[key], content[key], rtol=2e-3, atol=1e-3)
    create_backbone(CNN, tmp_path / "a.pth")


def test_safetensors(tmp_path: Path) -> None:
    content = state()
    net = create_backbone(CNN)
    net.load_state_dict(content)
    save_weights(tmp_path / "a.safetensors", nn.ModuleDict({"encoder": net, "head": nn.Linear(2, 2)}), {"a": "b"})
    assert same(create_backbone(CNN, tmp_path / "a.safetensors"), content)


def test_what_fits_is_loaded_and_the_rest_is_named(tmp_path: Path) -> None:
    content, before = state(), state(seed=1)
    net = create_backbone(CNN)
    net.load_state_dict(before)
    names = [key for key in content if content[key].ndim == 4]
    torch.save(
        {**{k: v for k, v in content.items() if k != names[1]}, names[2]: torch.ones(1), "head.weight": torch.ones(2)},
        tmp_path / "a.pth",
    )
    found = load_backbone_weights(net, tmp_path / "a.pth")
    assert found == Conversion(
        loaded=tuple(key for key in content if key not in names[1:3]),
        missing=(names[1],),
        unexpected=("head.weight",),
        shape_mismatch=(names[2],),
    )
    expected = {key: (before if key in names[1:3] else content)[key] for key in content}
    assert same(net, expected)


def test_a_backbone_needs_all_its_weights(tmp_path: Path) -> None:
    content = state()
    name = next(key for key in content if content[key].ndim == 4)
    torch.save({k: v for k, v in content.items() if k != name}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=rf"a.pth: fits only \d+ of the \d+ weights of {CNN}: it has no '{name}'"):
        create_backbone(CNN, tmp_path / "a.pth")
    torch.save(content, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match=r"it has another shape for '.*weight'; give the weights of this network"):
        create_backbone(CNN, tmp_path / "b.pth", in_channels=1)
    torch.save(state(name=VIT), tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match="another shape for 'pos_embed'"):
        create_backbone(VIT, tmp_path / "c.pth", image_size=64)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    net = create_backbone(CNN)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    torch.save(state(), tmp_path / "whole.pth", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "start.pth").write_bytes(whole[:40])
    (tmp_path / "text.pth").write_text("weights")
    (tmp_path / "empty.pth").touch()
    (tmp_path / "text.safetensors").write_text("weights")
    torch.save(state(name=VIT), tmp_path / "vit.pth")
    torch.save({"lr": 0.1}, tmp_path / "numbers.pth")
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    for old in (False, True):
        torch.save(nn.Linear(1, 1), tmp_path / f"network{old:d}.pth", _use_new_zipfile_serialization=not old)
    for name, problem in {
        "no.pth": "no such file",
        "cut.pth": "cannot be read|damaged",
        "start.pth": "cannot be read|damaged",
        "text.pth": "damaged, or not a checkpoint",
        "empty.pth": "damaged, or not a checkpoint",
        "text.safetensors": "not a safetensors file",
        "vit.pth": r"holds no weight that fits this network \(ResNet\): 0 loaded, \d+ missing, 0 of another shape, \d+ unexpected; give a file with the weights of this architecture",
        "numbers.pth": "holds no weight that fits",
        "list.pth": "holds a list, not a mapping",
        "network0.pth": "was therefore not loaded",
        "network1.pth": "was therefore not loaded",
        ".": "this is a folder, not a file",
    }.items():
        with pytest.raises(CheckpointError, match=problem) as error:
            load_backbone_weights(net, tmp_path / name)
        assert str(error.value).startswith(str(tmp_path / name))
        assert "\n" not in str(error.value)
    assert same(net, before)


def test_keywords_of_the_architecture():
    small = create_backbone("vit_tiny_patch16_224", image_size=32, depth=1, embed_dim=24, num_heads=2)
    assert (len(small.blocks), small.num_features) == (1, 24)
    with pytest.raises(SettingError, match=r"vit_tiny_patch16_224 cannot be built .* depht = 1 \(") as caught:
        create_backbone("vit_tiny_patch16_224", image_size=32, depht=1)
    assert "\n" not in str(caught.value)
