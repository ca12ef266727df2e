"""Files of other projects in timm's names (specification 2.3, properties 9.4 and 9.8)."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.interpolate import make_interp_spline
from torch import Tensor, nn

from benchmark_transformers import SimMIM, convert_checkpoint, interpolate_relative_position_bias
from benchmark_transformers.conversion import backbone_tensors, convert, convert_simmim
from dart_core.errors import CheckpointError

SWIN = {"patch_size": 2, "embed_dim": 8, "depths": (1, 2, 1), "num_heads": (1, 2, 4), "window_size": 3}
VIT = {"patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 2}
Q = 1.0912813
"""Specification 2.3."""


def swin(window: int = 3, size: int = 24, classes: int = 3) -> nn.Module:
    import timm

    options = {**SWIN, "window_size": window, "img_size": size, "num_classes": classes}
    network: nn.Module = timm.create_model("swin_base_patch4_window7_224", **options)
    return network


def vit(size: int = 16, **changes: Any) -> nn.Module:
    import timm

    network: nn.Module = timm.create_model("vit_base_patch16_224", img_size=size, num_classes=3, **{**VIT, **changes})
    return network


def beit(size: int = 16) -> nn.Module:
    import timm

    network: nn.Module = timm.create_model("beit_base_patch16_224", img_size=size, num_classes=3, **VIT)
    return network


def resnet() -> nn.Module:
    import timm

    network: nn.Module = timm.create_model("resnet50", num_classes=3)
    return network


def random_weights(network: nn.Module, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(t.shape, generator=generator) if t.is_floating_point() else t.clone()
        for name, t in network.state_dict().items()
    }


def owners_swin(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's names as the owners' files have them: merge layers at the end of the stage, plain head, index buffers."""
    found = {}
    for name, tensor in state.items():
        name = re.sub(r"^layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", name)
        found[name.replace("head.fc.", "head.")] = tensor
        if name.endswith("relative_position_bias_table"):
            found[name.replace("bias_table", "index")] = torch.zeros(9, 9, dtype=torch.int64)
    found["layers.0.blocks.0.attn_mask"] = torch.zeros(4, 9, 9)
    return found


def save(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


# Interpolation


def test_a_constant_table_stays_constant() -> None:
    table = torch.full((121, 4), 0.37, dtype=torch.float64)
    assert torch.allclose(interpolate_relative_position_bias(table, 7), torch.full((169, 4), 0.37).double(), atol=1e-12)


def test_the_same_window_changes_nothing() -> None:
    table = torch.randn(169, 3)
    assert torch.equal(interpolate_relative_position_bias(table, 7), table)


@pytest.mark.parametrize(("old", "new"), [(6, 7), (6, 12), (7, 12), (3, 4)])
def test_middle_and_neighbours_are_reproduced(old: int, new: int) -> None:
    table = torch.randn(((2 * old - 1) ** 2, 2), dtype=torch.float64)
    before = table.reshape(2 * old - 1, 2 * old - 1, 2)[old - 2 : old + 1, old - 2 : old + 1]
    after = interpolate_relative_position_bias(table, new).reshape(2 * new - 1, 2 * new - 1, 2)
    assert torch.allclose(after[new - 2 : new + 1, new - 2 : new + 1], before, atol=1e-10)


def test_equals_a_spline_of_another_program() -> None:
    """Two passes of SciPy's one-dimensional spline on the grid of the specification."""
    table = torch.randn(121, 3, dtype=torch.float64)
    steps = np.cumsum(Q ** np.arange(5))
    grid = np.concatenate([-steps[::-1], [0], steps])
    assert steps[-1] == pytest.approx(6, abs=1e-5)
    wanted = np.clip(np.arange(-6, 7), grid[0], grid[-1])
    values = table.numpy().reshape(11, 11, 3)
    rows = make_interp_spline(grid, values, k=3, axis=0)(wanted)
    expected = make_interp_spline(grid, rows, k=3, axis=1)(wanted)
    found = interpolate_relative_position_bias(table, 7).numpy().reshape(13, 13, 3)
    assert np.allclose(found, expected, atol=2e-5)  # q is printed with seven digits


def test_type_and_arrays_are_kept() -> None:
    for dtype in (torch.float16, torch.float32, torch.float64):
        assert interpolate_relative_position_bias(torch.zeros(25, 1, dtype=dtype), 4).dtype == dtype
    assert isinstance(interpolate_relative_position_bias(np.zeros((25, 1)), 4), np.ndarray)


def test_tables_that_are_none() -> None:
    for shape in ((120, 4), (16, 4), (121,)):
        with pytest.raises(ValueError, match="a table of shape"):
            interpolate_relative_position_bias(torch.zeros(shape), 7)


# Files


def assert_converts(path: Path, model: nn.Module, source: str, expected: dict[str, Tensor]) -> None:
    """Everything of the backbone is there with the values it had; head and further names are not."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = convert(path, model, source)
    assert found.share == 1.0
    assert not found.counts.missing
    assert not found.counts.shape_mismatch
    state = convert_checkpoint(path, model, source)
    assert state.keys() == backbone_tensors(model).keys()
    assert not any(name.startswith(("head", "fc.")) for name in state)
    for name, tensor in state.items():
        assert torch.equal(tensor, expected[name]), name
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), "the model was changed"


def test_simmim_swin(tmp_path: Path) -> None:
    state = random_weights(swin())
    content = {"encoder." + name: tensor for name, tensor in owners_swin(state).items()}
    content |= {
        "encoder.mask_token": torch.zeros(1, 1, 8),
        "decoder.0.weight": torch.zeros(2),
        "decoder.0.bias": torch.zeros(2),
    }
    path = save(tmp_path / "simmim.pth", {"model": content, "epoch": 799})
    assert_converts(path, swin(), "simmim", state)


def test_simmim_swin_to_another_window(tmp_path: Path) -> None:
    """As from 192 pixels and window 6 to 224 and window 7: everything but the tables as it was, those interpolated."""
    old, new = swin(3, 24), swin(4, 32)
    state = random_weights(old)
    path = save(tmp_path / "simmim.pth", {"model": prefixed("encoder.", owners_swin(state))})
    found = convert_checkpoint(path, new, "simmim")
    for name, tensor in found.items():
        if name.endswith("bias_table"):
            assert tensor.shape == (49, state[name].shape[1])
            assert torch.equal(tensor, interpolate_relative_position_bias(state[name], 4))
        else:
            assert torch.equal(tensor, state[name])


def test_simmim_vit_becomes_beit(tmp_path: Path) -> None:
    """The shared table goes to every block, and the network computes what the pre-trained encoder computed."""
    torch.manual_seed(0)
    pretrained, model = SimMIM("vit_b", 16, **VIT).eval(), beit().eval()
    with torch.no_grad():
        for parameter in pretrained.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    content = {"model": dict(pretrained.state_dict())}
    content["model"]["encoder.rel_pos_bias.relative_position_index"] = torch.zeros(17, 17, dtype=torch.int64)
    found = convert(save(tmp_path / "vit.pth", content), model, "simmim")
    assert found.share == 1.0
    assert found.counts.unexpected == ()
    model.load_state_dict(found.state, strict=False)
    pretrained.encoder.norm = nn.Identity()
    image = torch.randn(2, 3, 16, 16)
    expected = pretrained.encode(image, torch.zeros(2, 4, 4)).flatten(2).transpose(1, 2)
    assert torch.allclose(model.forward_features(image)[:, 1:], expected, atol=1e-5)  # type: ignore[operator]


def test_simmim_vit_without_shared_table(tmp_path: Path) -> None:
    state = random_weights(beit())
    path = save(tmp_path / "vit.pth", {"model": prefixed("encoder.", state)})
    assert_converts(path, beit(), "simmim", state)


def test_beit_of_its_owners(tmp_path: Path) -> None:
    """The layout of SimMIM's ViT without its prefix: a table that the blocks share, a head that guesses visual tokens."""
    state = random_weights(beit())
    tables = [name for name in state if name.endswith("relative_position_bias_table")]
    content = {name: tensor for name, tensor in state.items() if name not in tables and not name.startswith("head.")}
    content["rel_pos_bias.relative_position_bias_table"] = state[tables[0]]
    content["rel_pos_bias.relative_position_index"] = torch.zeros(17, 17, dtype=torch.int64)
    content |= {
        "mask_token": torch.zeros(1, 1, 12),
        "norm.weight": torch.zeros(12),
        "lm_head.weight": torch.zeros(9, 12),
    }
    found = convert(save(tmp_path / "beit.pth", {"model": content}), beit(), "simmim")
    assert (found.share, found.counts.unexpected) == (1.0, ("lm_head.weight",))
    for name, tensor in found.state.items():
        assert torch.equal(tensor, state[tables[0] if name in tables else name]), name


def test_moco_v3(tmp_path: Path) -> None:
    for number, make in enumerate((vit, resnet)):
        state = random_weights(make())
        backbone = {name: t for name, t in state.items() if not name.startswith(("head.", "fc."))}
        content = prefixed("module.base_encoder.", backbone)
        content |= prefixed("module.momentum_encoder.", random_weights(make(), 2))
        content |= {
            "module.base_encoder.head.0.weight": torch.zeros(4, 4),
            "module.base_encoder.fc.0.weight": torch.zeros(4),
        }
        content |= {"module.predictor.0.weight": torch.zeros(4, 4)}
        path = save(tmp_path / f"moco{number}.pth", {"state_dict": content, "arch": "vit_base", "epoch": 300})
        assert_converts(path, make(), "moco_v3", state)


def test_dino(tmp_path: Path) -> None:
    state = random_weights(vit())
    teacher = prefixed("backbone.", {k: t for k, t in state.items() if not k.startswith("head.")})
    teacher |= {"head.mlp.0.weight": torch.zeros(2, 2), "head.last_layer.weight_g": torch.zeros(2)}
    for prefix in ("", "module."):
        content = {"student": prefixed("module.", random_weights(vit(), 5)), "teacher": prefixed(prefix, teacher)}
        assert_converts(save(tmp_path / "dino.pth", content), vit(), "dino", state)


def test_mae(tmp_path: Path) -> None:
    state = random_weights(vit())
    content = {k: t for k, t in state.items() if not k.startswith("head.")}
    content |= {
        "mask_token": torch.zeros(1, 1, 8),
        "decoder_pos_embed": torch.zeros(1, 17, 8),
        "decoder_blocks.0.x": torch.zeros(1),
    }
    assert_converts(save(tmp_path / "mae.pth", {"model": content}), vit(), "mae", state)


def test_moby(tmp_path: Path) -> None:
    state = random_weights(swin())
    content = prefixed("encoder.", owners_swin(state)) | prefixed("encoder_k.", owners_swin(random_weights(swin(), 2)))
    content |= {"projector.linear1.weight": torch.zeros(2, 2), "queue1": torch.zeros(2, 2)}
    assert_converts(save(tmp_path / "moby.pth", {"model": content}), swin(), "moby", state)


def test_positions_of_another_size_are_resampled(tmp_path: Path) -> None:
    state = random_weights(vit())
    state["pos_embed"][:, 1:] = 0.5
    path = save(tmp_path / "mae.pth", {"model": state})
    found = convert_checkpoint(path, vit(24), "mae")
    assert found["pos_embed"].shape == (1, 37, 12)
    assert torch.equal(found["pos_embed"][:, 0], state["pos_embed"][:, 0])
    assert torch.allclose(found["pos_embed"][:, 1:], torch.tensor(0.5))


@pytest.mark.parametrize(
    ("model", "source"),
    [
        (lambda: swin(), "mae"),
        (lambda: vit(embed_dim=16), "mae"),
        (lambda: vit(depth=4), "mae"),
        (resnet, "moco_v3"),
        (beit, "simmim"),
    ],
)
def test_another_network_is_refused_with_the_counts(
    model: Callable[[], nn.Module], source: str, tmp_path: Path
) -> None:
    path = save(tmp_path / "file.pth", {"model": random_weights(vit())})
    with pytest.raises(
        ValueError, match=r"fits \d+% of the weights .*\d+ loaded, \d+ missing, \d+ unexpected"
    ) as caught:
        convert_checkpoint(path, model(), source)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_few_missing_tensors_are_let_pass_and_counted(tmp_path: Path) -> None:
    state = random_weights(vit())
    del state["norm.bias"]
    found = convert(save(tmp_path / "file.pth", {"model": state}), vit(), "mae")
    assert found.counts.missing == ("norm.bias",)
    assert 0.95 < found.share < 1
    assert "1 missing" in str(found)


def test_unknown_source_and_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="source is 'beit'"):
        convert_checkpoint(tmp_path / "x.pth", vit(), "beit")  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="no such file"):
        convert_checkpoint(tmp_path / "x.pth", vit(), "mae")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(CheckpointError, match="damaged"):
        convert_checkpoint(tmp_path / "text.pth", vit(), "mae")


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path(tmp_path / "sprung").write_text, ("x",))

    save(tmp_path / "trap.pth", {"model": {"x": Trap()}})
    with pytest.raises(CheckpointError, match="was therefore not loaded"):
        convert_checkpoint(tmp_path / "trap.pth", vit(), "mae")
    assert not (tmp_path / "sprung").exists()


# Continued pre-training


@pytest.mark.parametrize("backbone", ["swin_b", "vit_b"])
def test_simmim_file_into_simmim(backbone: str, tmp_path: Path) -> None:
    options, size = (SWIN, 24) if backbone == "swin_b" else (VIT, 16)
    first, second = (SimMIM(backbone, size, **options) for _ in range(2))  # type: ignore[arg-type]
    state = random_weights(first)
    encoder = {k.removeprefix("encoder."): t for k, t in state.items() if k.startswith("encoder.")}
    encoder = owners_swin(encoder) if backbone == "swin_b" else encoder
    content = prefixed("encoder.", encoder) | {k: t for k, t in state.items() if k.startswith("decoder.")}
    found = convert_simmim(save(tmp_path / "file.pth", {"model": content}), second)
    second.load_state_dict(found.state)
    assert all(torch.equal(second.state_dict()[name], tensor) for name, tensor in state.items())
    assert {"encoder.mask_token", "decoder.0.weight"} <= found.state.keys()


def test_simmim_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "file.pth", {"model": SimMIM("vit_b", 16, **VIT).state_dict()})
    with pytest.raises(ValueError, match="fits"):
        convert_simmim(path, SimMIM("swin_b", 24, **SWIN))
