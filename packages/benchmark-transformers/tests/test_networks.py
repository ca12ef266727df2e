"""What is built, and how a local file gets into it (specification 2.1.12, 2.3)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from timm.layers import DropPath
from torch import Tensor, nn

from benchmark_transformers import INITIALISATIONS, convert_checkpoint
from benchmark_transformers.conversion import backbone_tensors
from benchmark_transformers.networks import Architecture, load_initial_weights
from benchmark_transformers.settings import DataSettings, FineTune, FineTuneRecipe, Network
from benchmark_transformers.training import starting_point
from dart_core.errors import CheckpointError
from dart_core.settings import RunSettings

SIZES = {"patch_size": 2, "embed_dim": 8, "depths": (1, 2, 1), "num_heads": (1, 2, 4), "window_size": 3}
SWIN = Architecture("swin_base_patch4_window7_224", SIZES)


def rates(network: nn.Module) -> list[float]:
    """Of the blocks' stochastic depth, where there is any."""
    return [module.drop_prob for module in network.modules() if isinstance(module, DropPath)]


@pytest.mark.parametrize(("given", "highest"), [(None, 0.1), (0.0, 0.0), (0.3, 0.3)])
def test_stochastic_depth_is_that_of_the_recipe(given: float | None, highest: float, tmp_path: Path) -> None:
    command = FineTune(
        RunSettings(tmp_path), DataSettings(tmp_path), "scratch-swin-b",
        network=Network(2, 8, (1, 2, 1), (1, 2, 4), 3), recipe=FineTuneRecipe(image_size=24, drop_path=given),
    )  # fmt: skip
    network, _ = starting_point(command).network(3, 24)
    assert max(rates(network), default=0.0) == pytest.approx(highest)


@pytest.mark.parametrize("name", sorted({row.architecture for row in INITIALISATIONS}))
def test_every_architecture_takes_a_rate(name: str) -> None:
    for rate in (0.0, 0.2):
        with torch.device("meta"):
            network = Architecture(name).build(2, 224, rate)
        assert max(rates(network), default=0.0) == pytest.approx(rate)


def random_weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(t.shape, generator=generator) for name, t in SWIN.build(5, 24).state_dict().items()}


def old_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As timm before 0.9 and the owners have them: a merge layer at the end of its stage, a plain head, buffers."""
    found = {}
    for name, tensor in state.items():
        name = re.sub(r"^layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", name)
        found[name.replace("head.fc.", "head.")] = tensor
    return found | {"layers.0.blocks.0.attn_mask": torch.zeros(4, 9, 9)}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(("key", "prefix"), [("", ""), ("model", ""), ("state_dict", "module.")])
def test_swin_of_any_version_of_timm(old: bool, key: str, prefix: str, tmp_path: Path) -> None:
    state = random_weights()
    content = {prefix + name: tensor for name, tensor in (old_names(state) if old else state).items()}
    torch.save({key: content} if key else content, tmp_path / "swin.pth")
    network = SWIN.build(5, 24)
    head = network.get_parameter("head.fc.weight").clone()
    assert ", 0 missing" in load_initial_weights(network, tmp_path / "swin.pth", "timm")
    for name in backbone_tensors(network):
        assert torch.equal(network.state_dict()[name], state[name]), name
    assert torch.equal(network.get_parameter("head.fc.weight"), head)


@pytest.mark.parametrize("old", [False, True])
def test_a_missing_merge_layer_is_refused(old: bool, tmp_path: Path) -> None:
    """One of 64 tensors, so that more than 95 % are there."""
    state = random_weights()
    del state["layers.2.downsample.norm.bias"]
    torch.save(old_names(state) if old else state, tmp_path / "swin.pth")
    network = SWIN.build(5, 24)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"swin\.pth: fits 9\d% .*downsample"):
        load_initial_weights(network, tmp_path / "swin.pth", "timm")
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in before.items())
    with pytest.raises(CheckpointError, match=r"swin\.pth: fits 98% .*'layers\.2\.downsample\.norm\.bias'"):
        convert_checkpoint(tmp_path / "swin.pth", network, "simmim")
