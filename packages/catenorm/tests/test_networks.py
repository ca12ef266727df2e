"""The U-Net and DeepLabV3+."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from catenorm import CateNorm2d, CateNormDeepLabV3Plus, CateNormUNet, parameter_groups
from catenorm.networks import LEVELS, NAMES


def unet(blocks: Any = (1, 2), classes: int = 3, **options: Any) -> CateNormUNet:
    torch.manual_seed(0)
    return CateNormUNet(3, classes, blocks, width=4, **options)


@pytest.mark.parametrize("size", [(32, 32), (37, 50), (16, 23)])
def test_any_size(size: tuple[int, int]) -> None:
    network = unet().eval()
    x = torch.randn(1, 3, *size)
    logits = network(x)
    assert logits.shape == (1, 3, *size)
    assert network(x, torch.rand(1, 3, 8, 8)).shape == (1, 3, *size)


def test_the_skip_is_padded_left_and_top_by_the_smaller_half() -> None:
    """7 pixels under a skip of 17 that was halved thrice: 8 come back, 0 before and 1 behind."""
    network = unet(())
    up = network.up4.eval()
    seen: list[Tensor] = []
    up.conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    up(torch.ones(1, 8, 8, 8), torch.zeros(1, 4, 17, 18))
    joined = seen[0][:, 4:]  # the skip comes first
    assert not joined[:, :, -1].any()
    assert not joined[..., 0].any()
    assert not joined[..., -1].any()
    assert joined[:, :, 0, 1:-1].any()


def test_registration_order() -> None:
    network = unet((1, 7))
    assert [name for name, _ in network.named_children()] == [*NAMES, "out"]
    assert [name for name, _ in network.inc.named_children()] == ["conv", "block"]
    assert [name for name, _ in network.up1.named_children()] == ["norm", "up", "conv", "block"]
    assert [name for name, _ in network.up1.block.named_children()] == [
        "norm1",
        "cate1",
        "conv1",
        "norm2",
        "cate2",
        "conv2",
    ]
    assert [name for name, _ in network.up1.block.cate1.named_parameters()] == [  # type: ignore[union-attr]
        "shared.weight", "shared.bias", "gamma.weight", "gamma.bias", "beta.weight", "beta.bias",
    ]  # fmt: skip


def test_which_blocks_are_categorical() -> None:
    for number, name in enumerate(NAMES, 1):
        network = unet((number,))
        found = {where.split(".")[0] for where, module in network.named_modules() if isinstance(module, CateNorm2d)}
        assert found == {name}


def test_levels_of_the_blocks() -> None:
    network, sizes = unet(range(1, 11)).eval(), []
    for name in NAMES:
        block: Any = network.get_submodule(name)
        block.block.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[-1]))
    network(torch.zeros(1, 3, 32, 32))
    assert sizes == [32 >> level for level in LEVELS]


@pytest.mark.parametrize(("norm", "kind"), [("in", nn.InstanceNorm2d), ("gn", nn.GroupNorm)])
def test_other_norms_everywhere(norm: Any, kind: type[nn.Module]) -> None:
    network = unet((), norm=norm)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    norms = [module for module in network.modules() if isinstance(module, kind)]
    assert len(norms) == 2 * 10 + 4 + 1
    wide = CateNormUNet(3, 2, (), norm, width=32)
    groups = [module for module in wide.modules() if isinstance(module, nn.GroupNorm)]
    assert all(module.num_groups == 16 for module in groups)
    assert network(torch.randn(1, 3, 32, 32)).shape == (1, 3, 32, 32)


@pytest.mark.parametrize("blocks", [(0,), (1, 11)])
def test_no_such_block(blocks: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="there is no block"):
        unet(blocks)


# DeepLabV3+ (3.2)


@pytest.fixture(scope="module")
def deeplab() -> CateNormDeepLabV3Plus:
    torch.manual_seed(0)
    return CateNormDeepLabV3Plus(3, 2).eval()


def test_deeplab_gives_the_size_of_the_input(deeplab: CateNormDeepLabV3Plus) -> None:
    x = torch.randn(1, 3, 48, 40)
    with torch.inference_mode():
        first = deeplab(x)
        second = deeplab(x, first.softmax(1))
    assert first.shape == second.shape == (1, 2, 48, 40)
    assert not torch.allclose(first, second)


def test_deeplab_normalises_by_classes_in_the_units_of_stages_1_and_2(deeplab: CateNormDeepLabV3Plus) -> None:
    found = [name for name, module in deeplab.named_modules() if isinstance(module, CateNorm2d)]
    assert len(found) == 3 * (3 + 4)
    assert {name.split(".")[0] for name in found} == {"layer1", "layer2"}
    assert not any("downsample" in name for name in found)
    groups = parameter_groups(deeplab)
    assert len(groups["bn"]) == 2 * len(found)
    assert sum(len(group) for group in groups.values()) == len(list(deeplab.parameters()))


def test_deeplab_without_stages_has_the_same_names_and_first_pass(deeplab: CateNormDeepLabV3Plus) -> None:
    plain = CateNormDeepLabV3Plus(3, 2, ()).eval()
    own = deeplab.state_dict()
    plain.load_state_dict({name: own[name] for name in plain.state_dict()})
    x = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(plain(x), deeplab(x))
        assert torch.equal(plain(x, torch.rand(1, 2, 8, 8)), plain(x))


def test_deeplab_output_stride_is_16(deeplab: CateNormDeepLabV3Plus) -> None:
    sizes: list[int] = []
    handle = deeplab.aspp.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[-1]))
    with torch.inference_mode():
        deeplab(torch.zeros(1, 3, 64, 64))
    handle.remove()
    assert sizes == [4]


def test_deeplab_drops_nothing(deeplab: CateNormDeepLabV3Plus) -> None:
    """3.2 has no dropout, torchvision's ASPP has: by the batch's statistics two passes are equal."""
    network = copy.deepcopy(deeplab).train()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(x), network(x))


def test_deeplab_has_four_stages() -> None:
    with pytest.raises(ValueError, match="there is no encoder stage 5"), torch.device("meta"):
        CateNormDeepLabV3Plus(3, 2, (5,))
