"""DSBN, MS-Net, W-Net and the printed tables."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from catenorm import (
    CateNormUNet,
    MSNet,
    SiteBatchNorm2d,
    SiteNetwork,
    WNet,
    ms_net_step,
    segmentation_loss,
    two_stage_step,
)
from catenorm.baselines import PRINTED_TABLES, printed_table, site_dice
from dart_core.errors import InputError


def images(n: int) -> Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def unet() -> CateNormUNet:
    torch.manual_seed(0)
    return CateNormUNet(3, 2, (), width=4)


# DSBN


def test_each_site_is_normalised_by_itself() -> None:
    layer = SiteBatchNorm2d(nn.BatchNorm2d(4), 2)
    x = torch.randn(5, 4, 6, 6)
    site = torch.tensor([0, 1, 0, 1, 1])
    layer.site = site
    out = layer(x)
    for number in (0, 1):
        own = site == number
        torch.testing.assert_close(out[own], nn.BatchNorm2d(4)(x[own]))
    assert not torch.equal(layer.norms[0].running_mean, layer.norms[1].running_mean)  # type: ignore[arg-type]


def test_a_batch_of_one_site_leaves_the_other_alone() -> None:
    network = SiteNetwork(unet(), ("a", "b"))
    before = copy.deepcopy(network.state_dict())
    network(images(2), torch.ones(2))
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(".norms.1." in name for name in changed)


def test_of_one_site_it_is_the_plain_network() -> None:
    plain = unet()
    network = SiteNetwork(copy.deepcopy(plain), ("a",))
    x = images(2)
    assert torch.equal(network(x, torch.zeros(2)), plain(x))
    norms = sum(isinstance(module, SiteBatchNorm2d) for module in network.modules())
    assert norms == 2 * 10 + 4 + 1  # everywhere


def test_unknown_site() -> None:
    network = SiteNetwork(unet(), ("a", "b"))
    assert network.number("b") == 1
    with pytest.raises(ValueError, match="for the sites a, b, and none for c"):
        network.number("c")
    with pytest.raises(ValueError, match="do not know the sites"):
        network.network(images(1))


@pytest.mark.parametrize("number", [-1, 2])
def test_a_number_that_is_none_of_a_site(number: int) -> None:
    """The image would get no norm at all."""
    site = torch.tensor([0, number])
    ms = MSNet(3, 2, ("a", "b"), width=2)
    for call in (SiteNetwork(unet(), ("a", "b")), ms, ms.auxiliary_logits):
        with pytest.raises(InputError, match=f"an image is said to be of site {number}; give numbers from 0 to 1"):
            call(images(2), site)


# MS-Net


def ms_net() -> MSNet:
    torch.manual_seed(0)
    return MSNet(3, 2, ("a", "b"), width=4)


def test_ms_net_has_no_biases_and_wide_ends() -> None:
    network = ms_net()
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert all(m.bias is None for m in convolutions)
    universal = network.universal
    assert isinstance(universal, CateNormUNet)
    assert universal.inc.conv.kernel_size == universal.out.conv.kernel_size == (3, 3)
    assert len(network.auxiliary) == 2


def test_auxiliary_decoders_are_those_of_the_sites() -> None:
    network = ms_net().eval()
    x, site = images(4), torch.tensor([0, 0, 1, 1])
    both = network.auxiliary_logits(x, site)
    for number in (0, 1):
        own = site == number
        torch.testing.assert_close(network.auxiliary_logits(x[own], site[own]), both[own])
    swapped = network.auxiliary_logits(x.flip(0), site.flip(0))
    torch.testing.assert_close(swapped.flip(0), both)
    assert not torch.allclose(network.auxiliary_logits(x, 1 - site), both)


def test_what_each_stage_of_ms_net_updates() -> None:
    network = ms_net()
    optimizers = [torch.optim.Adam(parameters, 1e-3) for parameters in network.parameter_sets()]
    x, site = images(4), torch.tensor([0, 0, 1, 1])
    y = (x[:, 1] > 0).long()

    def changed(universal: bool) -> set[str]:
        before = {name: p.detach().clone() for name, p in network.named_parameters()}
        result = ms_net_step(network, optimizers, x, y, site, universal)
        assert math.isnan(result["loss_universal"]) is not universal
        return {name for name, p in network.named_parameters() if p.ndim == 4 and not torch.equal(p, before[name])}

    convolutions = {name for name, p in network.named_parameters() if p.ndim == 4}
    decoder = {name for name in convolutions if name.startswith("universal.up") or name.startswith("universal.out")}
    assert changed(universal=False) == convolutions - decoder
    assert changed(universal=True) == convolutions


def test_under_autocast_the_universal_network_goes_by_the_new_encoder() -> None:
    network = ms_net()
    optimizers = [torch.optim.Adam(parameters, 0.05) for parameters in network.parameter_sets()]
    x, site = images(4), torch.tensor([0, 0, 1, 1])
    states: list[dict[str, Tensor]] = []
    handle = network.register_forward_pre_hook(lambda *_: states.append(copy.deepcopy(network.state_dict())))
    with torch.autocast("cpu", torch.bfloat16):
        found = ms_net_step(network, optimizers, x, (x[:, 1] > 0).long(), site)["logits"]
    handle.remove()
    network.load_state_dict(states[0])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(found, network(x, site))


def test_site_dice_by_hand() -> None:
    """Uniform predictions; site a all background, site b half and half."""
    truth = torch.zeros(2, 2, 2, 2)
    truth[0, 0] = 1
    truth[1, 0, 0] = truth[1, 1, 1] = 1
    loss = site_dice(torch.zeros(2, 2, 2, 2), truth, torch.tensor([0, 1]))
    a = 1 - (2 * 2 / (2 + 4) + 0) / 2
    b = 1 - 2 * 1 / (2 + 2)
    assert loss.item() == pytest.approx(a + b)


# W-Net


def test_w_net_goes_through_both_stages() -> None:
    torch.manual_seed(0)
    network = WNet(3, 2, (1,), width=4)
    x = images(2)
    y = (x[:, 1] > 0).long()
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    before = copy.deepcopy(network.state_dict())
    calls = []
    network.second.register_forward_hook(lambda *_: calls.append(copy.deepcopy(network.state_dict())))
    two_stage_step(network, optimizer, x, y, segmentation_loss)
    assert len(calls) == 1
    stage_1, after = calls[0], network.state_dict()
    names = [name for name, p in network.named_parameters() if p.ndim == 4]
    assert all(torch.equal(stage_1[n], before[n]) is n.startswith("second.") for n in names)
    assert all(torch.equal(after[n], stage_1[n]) is n.startswith("first.") for n in names)


# Printed tables


def test_printed_tables_are_those_of_the_specification() -> None:
    specification = Path(__file__).parents[4] / "shared" / "specs" / "tables"
    for name in PRINTED_TABLES:
        assert printed_table(name)
        file = specification / f"catenorm_{name}.csv"
        if file.is_file():
            packaged = Path(__file__).parents[1] / "src" / "catenorm" / "tables" / f"{name}.csv"
            assert packaged.read_text() == file.read_text()


def test_printed_averages() -> None:
    """Table 10's averages are the means of its sites and (but for rounding) of its organs."""
    for row in printed_table("table10"):
        assert row["AVG"] == pytest.approx(np.mean([row["BTCV"], row["TCIA"]]), abs=0.0051)
        organs = ("Spleen", "Kidney_L", "Gallbladder", "Liver", "Stomach", "Pancreas")
        assert row["AVG"] == pytest.approx(np.mean([row[o] for o in organs]), abs=0.011)
