"""Files of the authors, of timm and of this package (specification 3, 8.2, 9.11)."""

from __future__ import annotations

import pytest
import timm
import torch

from dart_core.checkpoint import save_tensors
from dart_core.errors import CheckpointError
from popar import POPAR, load_popar_weights
from popar.networks import Classifier, build_backbone, patch_tokens
from popar.weights import timm_state

VIT = {"patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2}
SWIN = {"patch_size": 2, "embed_dim": 8, "depths": (1, 1, 2), "num_heads": (1, 2, 2), "window_size": 4}


def authors_file(path, network, prefix, size):
    """A pretraining file as the authors' program writes it: old names, buffers of window masks, both heads, the optimiser."""
    state = {}
    for name, value in network.backbone.state_dict().items():
        parts = name.split(".")
        if "downsample" in parts:
            parts[1] = str(int(parts[1]) - 1)
        state[f"{prefix}swin_model.{'.'.join(parts)}"] = value.clone()
    state[f"{prefix}swin_model.layers.0.blocks.0.attn_mask"] = torch.zeros(size, 16, 16)
    state[f"{prefix}swin_model.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16, dtype=torch.long)
    heads = {
        "head.weight": network.order_head.weight, "head.bias": network.order_head.bias, "bias": network.order_head.bias,
        "decoder.0.weight": network.restoration_head.weight, "decoder.0.bias": network.restoration_head.bias,
    }  # fmt: skip
    state |= {f"{prefix}{name}": value.detach().clone() for name, value in heads.items()}
    torch.save({"model": state, "optimizer": {"lr": 0.1}, "epoch": 300}, path)
    return path


@pytest.mark.parametrize("prefix", ["", "module."])
def test_file_of_the_authors(prefix, tmp_path):
    source, x = POPAR("swin_b", 32, **SWIN).eval(), torch.randn(2, 3, 32, 32)
    path = authors_file(tmp_path / "authors.pth", source, prefix, 64)
    assert any(".layers.0.downsample." in name for name in torch.load(path)["model"])
    model = timm.create_model("swin_base_patch4_window7_224", img_size=32, num_classes=0, **SWIN).eval()
    found = load_popar_weights(path, model)
    assert (found.missing, found.unexpected, found.shape_mismatch) == ((), (), ())
    assert len(found.loaded) == len(model.state_dict())
    assert torch.equal(model.forward_features(x), source.backbone.forward_features(x))
    network = POPAR("swin_b", 32, **SWIN).eval()
    load_popar_weights(path, network)
    for ours, theirs in zip(network(x), source(x), strict=True):
        assert torch.equal(ours, theirs)


def test_weights_of_another_size(tmp_path):
    """A Swin takes all of them; the order head is of another number of patches and stays as it is."""
    path = authors_file(tmp_path / "authors.pth", POPAR("swin_b", 64, **SWIN), "", 64)
    network = POPAR("swin_b", 32, **SWIN)
    before = network.order_head.weight.clone()
    found = load_popar_weights(path, network)
    assert found.shape_mismatch == ()
    assert set(found.missing) == {"order_head.weight", "order_head.bias"}
    assert torch.equal(network.order_head.weight, before)
    small, large = network.backbone, POPAR("swin_b", 64, **SWIN)
    load_popar_weights(path, large)
    assert all(torch.equal(value, large.backbone.state_dict()[name]) for name, value in small.state_dict().items())


def test_position_embeddings_of_another_size_are_interpolated(tmp_path):
    source = POPAR("vit_b", 32, **VIT)
    with torch.no_grad():  # constant: whatever the interpolation, it stays so
        source.backbone.pos_embed.fill_(0.25)
    save_tensors(tmp_path / "vit.safetensors", dict(source.state_dict()), {})
    network = POPAR("vit_b", 64, **VIT)
    found = load_popar_weights(tmp_path / "vit.safetensors", network)
    assert "pos_embed" in found.loaded
    assert torch.allclose(network.backbone.pos_embed, torch.tensor(0.25))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_own_file_and_timms(suffix, tmp_path):
    source = POPAR("vit_b", 32, **VIT)
    for name, state in (("own", dict(source.state_dict())), ("timm", timm_state(source))):
        path = tmp_path / f"{name}{suffix}"
        save_tensors(path, state, {}) if suffix == ".safetensors" else torch.save(state, path)
        network = Classifier("vit_b", 2, 32, **VIT)
        found = load_popar_weights(path, network)
        assert not found.missing
        x = torch.randn(1, 3, 32, 32)
        assert torch.equal(patch_tokens(network.backbone.eval(), x), patch_tokens(source.backbone.eval(), x))


def test_file_of_moco_v3(tmp_path):
    """Two encoders and heads of their own; the first encoder is the one that is used (benchmark-transformers 2.3)."""
    source, other = POPAR("vit_b", 32, **VIT).backbone, POPAR("vit_b", 32, **VIT).backbone
    state = {f"module.base_encoder.{name}": value for name, value in source.state_dict().items()}
    state |= {f"module.momentum_encoder.{name}": value for name, value in other.state_dict().items()}
    state |= {
        f"module.{part}.0.weight": torch.zeros(3, 3)
        for part in ("base_encoder.head", "momentum_encoder.head", "predictor")
    }
    torch.save({"epoch": 300, "arch": "vit_base", "state_dict": state}, tmp_path / "moco.pth.tar")
    network = Classifier("vit_b", 2, 32, **VIT)
    found = load_popar_weights(tmp_path / "moco.pth.tar", network)
    assert not found.missing
    assert all(torch.equal(value, network.backbone.state_dict()[name]) for name, value in source.state_dict().items())


def test_classifier_of_a_timm_file_is_left_out(tmp_path):
    save_tensors(tmp_path / "a.safetensors", timm_state(Classifier("vit_b", 7, 32, **VIT)), {})
    network = Classifier("vit_b", 2, 32, **VIT)
    assert load_popar_weights(tmp_path / "a.safetensors", network).unexpected == ()


def test_less_than_95_per_cent_is_refused(tmp_path):
    """And the network stays as it was: the authors' own script loads nothing and does not say so."""
    source = POPAR("vit_b", 32, **VIT)
    state = timm_state(source)
    total = len(state)
    kept = dict(list(state.items())[: int(0.95 * total)])
    save_tensors(tmp_path / "few.safetensors", kept, {})
    network = POPAR("vit_b", 32, **VIT)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for error in (ValueError, CheckpointError):
        with pytest.raises(
            error, match=rf"few.safetensors: fits only {len(kept)} of the {total} tensors .* 0 unexpected"
        ):
            load_popar_weights(tmp_path / "few.safetensors", network)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    nearly = dict(list(state.items())[: total - 1])
    save_tensors(tmp_path / "nearly.safetensors", nearly, {})
    backbone = load_popar_weights(tmp_path / "nearly.safetensors", network.backbone)
    assert backbone.missing == (list(state)[-1],)


def test_other_families_and_files_are_refused(tmp_path):
    save_tensors(tmp_path / "swin.safetensors", timm_state(POPAR("swin_b", 32, **SWIN)), {})
    with pytest.raises(ValueError, match="fits only 0 of the"):
        load_popar_weights(tmp_path / "swin.safetensors", POPAR("vit_b", 32, **VIT))
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(CheckpointError, match=r"text\.pth: damaged"):
        load_popar_weights(tmp_path / "text.pth", POPAR("vit_b", 32, **VIT))
    with pytest.raises(CheckpointError, match=r"gone\.pth: no such file"):
        load_popar_weights(tmp_path / "gone.pth", POPAR("vit_b", 32, **VIT))
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(ValueError, match=r"empty\.pth: holds no tensors by name"):
        load_popar_weights(tmp_path / "empty.pth", POPAR("vit_b", 32, **VIT))
    (tmp_path / "run").mkdir()
    with pytest.raises(CheckpointError, match=r"run: holds no model\.safetensors"):
        load_popar_weights(tmp_path / "run", POPAR("vit_b", 32, **VIT))


@pytest.mark.slow
def test_swin_b_of_the_authors_at_both_sizes(tmp_path):
    """All 327 tensors, also 448 loaded at 224; token features bit-identical (specification 3)."""
    source = POPAR("swin_b")
    path = authors_file(tmp_path / "authors.pth", source, "module.", 256)
    small = build_backbone("swin_b", 224).eval()
    small.load_state_dict(source.backbone.state_dict())
    for size in (448, 224):
        model = timm.create_model("swin_base_patch4_window7_224", img_size=size, num_classes=0).eval()
        found = load_popar_weights(path, model)
        assert (len(found.loaded), found.missing, found.unexpected) == (327, (), ())
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(model.forward_features(x), small.forward_features(x))
