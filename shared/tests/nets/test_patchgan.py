from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from torch import nn

from dart_core.nets import PatchDiscriminator


def closed_form(in_channels: int, width: int) -> int:
    widths = [in_channels, width, 2 * width, 4 * width, 8 * width, 1]
    return sum(16 * a * b + b for a, b in itertools.pairwise(widths))


@pytest.mark.parametrize(("in_channels", "parameters"), [(1, 2_762_689), (3, 2_764_737)])
def test_parameter_count(in_channels: int, parameters: int) -> None:
    # 2,764,737 is the well-known count of the pix2pix / CycleGAN discriminator for colour images.
    net = PatchDiscriminator(in_channels)
    assert sum(p.numel() for p in net.parameters()) == parameters == closed_form(in_channels, 64)


def test_receptive_field_is_70() -> None:
    torch.manual_seed(0)
    net = PatchDiscriminator(width=4).double()
    for module in net.modules():
        if isinstance(module, nn.Sequential):
            # InstanceNorm looks at the whole image; the field of the convolutions is what the name 70x70 means.
            for index, layer in enumerate(module):
                if isinstance(layer, nn.InstanceNorm2d):
                    module[index] = nn.Identity()
    x = torch.rand(1, 1, 160, 160, dtype=torch.float64, requires_grad=True)
    out = net(x)
    out[0, 0, 9, 9].backward()
    assert x.grad is not None
    rows, columns = torch.nonzero(x.grad[0, 0], as_tuple=True)
    assert int(rows.max() - rows.min()) + 1 == 70
    assert int(columns.max() - columns.min()) + 1 == 70


@pytest.mark.parametrize(("side", "patches"), [(256, 30), (96, 10), (24, 1)])
def test_output_shape(side: int, patches: int) -> None:
    assert PatchDiscriminator(2, width=2)(torch.zeros(3, 2, side, side)).shape == (3, 1, patches, patches)


def test_initial_weights() -> None:
    torch.manual_seed(0)
    convolutions = [m for m in PatchDiscriminator().modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 5
    for convolution in convolutions[1:4]:
        assert float(convolution.weight.detach().std()) == pytest.approx(0.02, rel=0.02)
        assert float(convolution.weight.detach().mean()) == pytest.approx(0.0, abs=2e-4)
    assert all(convolution.bias is not None and not convolution.bias.any() for convolution in convolutions)


@pytest.mark.slow
def test_agrees_with_monai() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nets = pytest.importorskip("monai.networks.nets")
    torch.manual_seed(0)
    ours = PatchDiscriminator(2, width=4)
    theirs = nets.PatchDiscriminator(spatial_dims=2, channels=4, in_channels=2, norm="INSTANCE", bias=True)
    values = list(ours.state_dict().values())
    theirs.load_state_dict(dict(zip(theirs.state_dict(), values, strict=True)))
    x = torch.randn(2, 2, 64, 80)
    torch.testing.assert_close(ours(x), theirs(x)[-1])


def test_image_that_is_too_small() -> None:
    with pytest.raises(ValueError, match="23 x 64; the discriminator needs sides of 24"):
        PatchDiscriminator(width=2)(torch.zeros(1, 1, 23, 64))
