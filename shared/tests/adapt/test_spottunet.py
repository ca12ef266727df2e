from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dart_core.adapt import LAYERS, PolicyNet, PolicyStatistics, SpotTUNet, adapt_batch_norm, policy_penalty
from dart_core.batches import Batches
from dart_core.checkpoint import load_state, load_weights, save_weights
from dart_core.errors import SettingError
from dart_core.nets import ResidualUNet2d
from dart_core.run import Run
from dart_core.settings import RunSettings

# The table of the specification (3.3): which modules of the U-Net each index switches.
TABLE = {
    0: "init_path.0", 1: "init_path.1", 2: "init_path.2", 3: "init_path.3",
    4: "down1.0", 5: "down1.1", 6: "down1.2", 7: "down1.3",
    8: "down2.0", 9: "down2.1", 10: "down2.2", 11: "down2.3",
    12: "bottleneck.0", 13: "bottleneck.1", 14: "bottleneck.2", 15: "bottleneck.3", 16: "bottleneck.4",
    17: "up2.0", 18: "up2.1", 19: "up2.2", 20: "up2.3",
    21: "up1.0", 22: "up1.1", 23: "up1.2", 24: "up1.3",
    25: "out_path.0", 26: "out_path.1", 27: "out_path.2", 28: "out_path.3",
    29: "shortcut0", 30: "shortcut1", 31: "shortcut2",
}  # fmt: skip
FINAL_NORM = "out_path.4"


def randomise(net: ResidualUNet2d, seed: int) -> None:
    """Weights and statistics as after a training: nothing at its initial value, activations of ordinary size."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
    adapt_batch_norm(net, [1 + torch.randn(2, net.init_path[0].in_channels, 32, 32, generator=generator)], momentum=0.9)


def make(in_channels: int = 1, out_channels: int = 1, dtype: torch.dtype = torch.float32, **options) -> SpotTUNet:  # type: ignore[no-untyped-def]
    """A network whose two copies differ."""
    torch.manual_seed(0)
    source = ResidualUNet2d(in_channels, out_channels, width=2)
    randomise(source, 1)
    spot = SpotTUNet(source, **options)
    randomise(spot.fine_tuned, 2)
    return spot.to(dtype)


def mixed(spot: SpotTUNet, x: Tensor, policy: Tensor, top: bool = True, final: int = 29) -> Tensor:
    """The forward pass as the authors write it: every layer twice, x (1 - P) + y P, modules taken from the table."""

    def layer(name: str, index: int, t: Tensor) -> Tensor:
        p = policy[:, index].view(-1, 1, 1, 1)
        if name == "shortcut0" and not top:
            p = torch.zeros_like(p)
        return spot.fine_tuned.get_submodule(name)(t) * (1 - p) + spot.frozen.get_submodule(name)(t) * p

    def layers(first: int, last: int, t: Tensor) -> Tensor:
        for index in range(first, last + 1):
            t = layer(TABLE[index], index, t)
        return t

    x0 = layers(0, 3, x)
    x1 = layers(4, 7, x0)
    x2 = layers(8, 11, x1)
    y = layers(12, 16, x2) + layer("shortcut2", 31, x2)
    y = layers(17, 20, y) + layer("shortcut1", 30, x1)
    y = layers(21, 24, y) + layer("shortcut0", 29, x0)
    return layer(FINAL_NORM, final, layers(25, 28, y))


# --- construction ----------------------------------------------------------------------------------------------------


def test_two_copies_of_the_source() -> None:
    torch.manual_seed(0)
    source = ResidualUNet2d()
    randomise(source, 0)
    source.requires_grad_(False).eval()
    before = copy.deepcopy(source.state_dict())
    spot = SpotTUNet(source)
    unet = [p for name, p in spot.named_parameters() if "policy" not in name]
    assert sum(p.numel() for p in unet) == 3_122_982
    assert sum(p.numel() for p in unet if p.requires_grad) == 1_561_491
    assert all(not p.requires_grad for p in spot.frozen.parameters())
    for name, tensor in before.items():
        assert torch.equal(spot.fine_tuned.state_dict()[name], tensor)
        assert torch.equal(spot.frozen.state_dict()[name], tensor)
    with torch.no_grad():
        for p in spot.parameters():
            p.zero_()
    assert all(torch.equal(source.state_dict()[name], tensor) for name, tensor in before.items())
    assert spot.training
    assert spot.frozen.training
    assert len(LAYERS) == len(set(LAYERS)) == 32


def test_parameters_of_the_two_optimisers() -> None:
    spot = make()
    unet, policy = list(spot.unet_parameters()), list(spot.policy_parameters())
    assert {id(p) for p in unet} == {id(p) for p in spot.fine_tuned.parameters()}
    assert {id(p) for p in policy} == {id(p) for n, p in spot.named_parameters() if "policy" in n}
    trainable = {id(p) for p in spot.parameters() if p.requires_grad}
    assert {id(p) for p in (*unet, *policy)} == trainable
    assert sum(p.numel() for p in policy) == 1_180_320


def test_a_policy_network_of_ones_own() -> None:
    net = PolicyNet()
    assert make(policy=net).policy is net
    assert make(in_channels=3)(torch.zeros(2, 3, 16, 16)).shape == (2, 1, 16, 16)  # its own has 3 channels, too


def test_the_policy_network_follows_the_type_of_the_source() -> None:
    network = SpotTUNet(ResidualUNet2d(width=2).double()).eval()
    logits, policy = network(torch.rand(2, 1, 16, 16, dtype=torch.float64), return_policy=True)
    assert logits.dtype == policy.dtype == torch.float64


def test_impossible_settings() -> None:
    with pytest.raises(SettingError, match="no layer 32; tie the final norm to 29 or 28"):
        make(final_norm_index=32)
    with pytest.raises(SettingError, match="temperature of the policy is 0"):
        make(temperature=0.0)


# --- the switched pass -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize("constant", [0.0, 1.0])
def test_constant_policies_are_one_of_the_networks_bit_for_bit(constant: float, classes: int, gradient: bool) -> None:
    spot = make(out_channels=classes).eval()
    x = torch.randn(3, 1, 24, 16)
    with torch.set_grad_enabled(gradient):
        expected = (spot.frozen if constant else spot.fine_tuned)(x)
        assert torch.equal(spot(x, torch.full((3, 32), constant)), expected)
    assert not torch.allclose(spot.frozen(x), spot.fine_tuned(x), atol=1e-2)


@pytest.mark.parametrize("gradient", [False, True])
def test_samples_of_one_batch_use_different_copies(gradient: bool) -> None:
    spot = make().eval()
    x = torch.randn(4, 1, 16, 16)
    policy = torch.tensor([0.0, 1.0, 0.0, 1.0])[:, None].expand(4, 32)
    with torch.set_grad_enabled(gradient):
        out = spot(x, policy)
        assert torch.equal(out[::2], spot.fine_tuned(x)[::2])
        assert torch.equal(out[1::2], spot.frozen(x)[1::2])


@pytest.mark.parametrize("training", [False, True])
def test_equal_copies_do_not_depend_on_the_policy(training: bool) -> None:
    torch.manual_seed(0)
    source = ResidualUNet2d(width=2)
    randomise(source, 0)
    spot = SpotTUNet(source).train(training)
    x = torch.randn(4, 1, 16, 16)
    expected = copy.deepcopy(source).train(training)(x)
    for policy in (torch.rand(4, 32).round(), torch.ones(4, 32)):
        assert torch.equal(copy.deepcopy(spot)(x, policy), expected)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", ["hard", "some columns constant", "fractions"])
@pytest.mark.parametrize(("top", "final"), [(True, 29), (False, 29), (True, 28)])
def test_agrees_with_the_layers_written_out(kind: str, training: bool, top: bool, final: int) -> None:
    spot = make(2, 3, torch.float64, switch_top_skip=top, final_norm_index=final).train(training)
    twin = copy.deepcopy(spot)
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(3, 2, 16, 24, dtype=torch.float64, generator=generator)
    policy = torch.rand(3, 32, dtype=torch.float64, generator=generator)
    policy = policy if kind == "fractions" else policy.round()
    if kind == "some columns constant":
        policy[:, ::3], policy[:, 1::3] = 0, 1
    other = policy.clone().requires_grad_()
    policy.requires_grad_()
    out, expected = spot(x, policy), mixed(twin, x, other, top, final)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    upstream = torch.randn(out.shape, dtype=torch.float64, generator=generator)
    out.backward(upstream)
    expected.backward(upstream)
    pairs = [(policy.grad, other.grad)]
    pairs += [(p.grad, q.grad) for p, q in zip(spot.unet_parameters(), twin.unet_parameters(), strict=True)]
    # Biases in front of a batch norm have no gradient but rounding.
    scale = max(float(two.abs().max()) for _, two in pairs if two is not None)
    for one, two in pairs:
        torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-12 * scale)
    for one, two in zip(spot.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(one, two)
    with torch.no_grad():  # where a layer that all samples agree on is computed once
        torch.testing.assert_close(spot(x, policy), mixed(twin, x, other, top, final), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("final", [29, 28])
def test_index_of_every_layer(final: int) -> None:
    """Only the fine-tuned parameters of the layers that are not frozen get a gradient; all others get exactly zero."""
    spot = make(final_norm_index=final).eval()
    x = torch.randn(2, 1, 16, 16)
    for index, module in TABLE.items():
        spot.zero_grad()
        policy = torch.ones(2, 32)
        policy[:, index] = 0
        spot(x, policy).sin().sum().backward()
        expected = {module, FINAL_NORM} if index == final else {module}
        moved = set()
        for name, p in spot.fine_tuned.named_parameters():
            assert p.grad is not None
            if p.grad.any():
                moved.add(name)
        wanted = {
            name for name, _ in spot.fine_tuned.named_parameters() if name.startswith(tuple(f"{e}." for e in expected))
        }
        assert moved == wanted, LAYERS[index]
        assert all(p.grad is None for p in spot.frozen.parameters())


def test_top_skip_that_is_not_switched() -> None:
    spot = make(switch_top_skip=False).eval()
    x = torch.randn(2, 1, 16, 16)
    spot(x, torch.ones(2, 32)).sin().sum().backward()
    moved = {name for name, p in spot.fine_tuned.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"shortcut0.weight", "shortcut0.bias"}
    # The final norm still follows its index.
    hybrid = copy.deepcopy(spot.frozen)
    hybrid.shortcut0 = copy.deepcopy(spot.fine_tuned.shortcut0)
    assert torch.equal(spot(x, torch.ones(2, 32)), hybrid(x))


def test_a_diverged_copy_that_nobody_uses_does_no_harm() -> None:
    spot = make().eval()
    x = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        for p in spot.fine_tuned.parameters():
            p.fill_(torch.nan)
        assert torch.equal(spot(x, torch.ones(2, 32)), spot.frozen(x))


def test_result_does_not_depend_on_the_rest_of_the_batch() -> None:
    spot = make().eval()
    x = torch.randn(4, 1, 16, 16)
    policy = torch.rand(4, 32).round()
    with torch.no_grad():
        alone = torch.cat([spot(x[i : i + 1], policy[i : i + 1]) for i in range(4)])
        torch.testing.assert_close(spot(x, policy), alone)


# --- the own policy --------------------------------------------------------------------------------------------------


class Fixed(nn.Module):
    """A policy network that gives the same logits for everything."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), -1)


def test_inference_takes_the_more_probable_choice() -> None:
    logits = torch.randn(64)
    spot = make(policy=Fixed(logits), temperature=50.0).eval()
    x = torch.randn(3, 1, 16, 16)
    out, policy = spot(x, return_policy=True)
    assert torch.equal(policy, logits.view(32, 2).argmax(-1).float().expand(3, 32))
    assert torch.equal(out, spot(x, policy))
    assert torch.equal(out, spot(x))


def test_training_samples() -> None:
    spot = make(policy=Fixed(torch.zeros(64)), temperature=5.0)
    x = torch.randn(8, 1, 16, 16)
    out, policy = spot(x, return_policy=True)
    assert ((policy == 0) | (policy == 1)).all()
    assert 64 < policy.sum() < 192
    assert len(policy.unique(dim=0)) == 8
    (F.binary_cross_entropy_with_logits(out, torch.zeros_like(out)) + policy_penalty(policy, 0.1)).backward()
    assert spot.policy.get_parameter("logits").grad.abs().sum() > 0  # type: ignore[union-attr]
    assert all(p.grad is None for p in spot.frozen.parameters())
    assert all(p.grad is not None for p in spot.unet_parameters())


def test_a_penalty_that_outweighs_the_loss_freezes_everything() -> None:
    torch.manual_seed(0)
    spot = make(policy=Fixed(torch.zeros(64)), temperature=1.0)
    optimizer = torch.optim.SGD(spot.policy_parameters(), lr=200.0)
    x = torch.randn(4, 1, 16, 16)
    for _ in range(40):
        optimizer.zero_grad()
        out, policy = spot(x, return_policy=True)
        (out.square().mean() * 1e-3 + policy_penalty(policy, 1.0)).backward()
        optimizer.step()
    assert spot.eval()(x, return_policy=True)[1].mean() == 1


def test_nan_of_the_policy_network() -> None:
    spot = make(policy=Fixed(torch.full((64,), torch.nan)))
    for mode in (True, False):
        with pytest.raises(ValueError, match="the policy network gives nan"):
            spot.train(mode)(torch.zeros(1, 1, 8, 8))


def test_wrong_shapes() -> None:
    spot = make()
    with pytest.raises(ValueError, match=r"slices are 12 x 16; pad them"):
        spot(torch.zeros(1, 1, 12, 16))
    with pytest.raises(ValueError, match=r"policy has shape \(1, 32\); for these slices it is \(2, 32\)"):
        spot(torch.zeros(2, 1, 16, 16), torch.zeros(1, 32))


# --- batch norm of the frozen copy (8.3) -----------------------------------------------------------------------------


def test_frozen_statistics_move_by_default() -> None:
    spot = make()
    before = copy.deepcopy(dict(spot.frozen.named_buffers()))
    spot(torch.randn(2, 1, 16, 16), torch.ones(2, 32))
    running = [name for name in before if "running" in name]
    assert len(running) == 94
    assert all(not torch.equal(before[name], spot.frozen.get_buffer(name)) for name in running)


def test_frozen_statistics_stay_on_request() -> None:
    spot = make(frozen_bn_eval=True)
    assert spot.fine_tuned.training
    assert not spot.frozen.training
    assert not spot.eval().train().frozen.training
    before = copy.deepcopy(dict(spot.frozen.named_buffers()))
    x = torch.randn(2, 1, 16, 16)
    assert torch.equal(spot(x, torch.ones(2, 32)), spot.frozen(x))
    assert all(torch.equal(before[name], buffer) for name, buffer in spot.frozen.named_buffers())


# --- training, saving, resuming --------------------------------------------------------------------------------------


def test_overfits_one_batch() -> None:
    torch.manual_seed(0)
    spot = SpotTUNet(ResidualUNet2d(width=4))
    unet = torch.optim.SGD(spot.unet_parameters(), lr=0.05, momentum=0.9, nesterov=True)
    policy_optimizer = torch.optim.SGD(
        spot.policy_parameters(), lr=1e-2, momentum=0.9, nesterov=True, weight_decay=1e-3
    )
    y = torch.zeros(4, 1, 32, 32)
    y[:, :, 8:20, 4:28] = 1
    x = torch.rand(4, 1, 32, 32) + y
    losses = []
    for _ in range(60):
        unet.zero_grad()
        policy_optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(spot(x), y)
        loss.backward()
        unet.step()
        policy_optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.3 * losses[0]


def load(index: int, generator: np.random.Generator) -> dict[str, np.ndarray]:
    image = np.random.default_rng(index).random((1, 16, 16)) + 0.1 * generator.random((1, 16, 16))
    return {"image": image.astype(np.float32), "mask": (image > 0.6).astype(np.float32)}


def train(out: Path, stop: int | None, **changes: bool) -> dict[str, Tensor]:
    """Eight steps with both optimisers and the statistics; leave after `stop` steps where it is given."""
    with Run(RunSettings(out=out, device="cpu", checkpoint_every=1, seed=3, **changes)) as run:
        spot = SpotTUNet(ResidualUNet2d(width=2))
        network = run.prepare(spot)
        unet = torch.optim.SGD(spot.unet_parameters(), lr=0.05, momentum=0.9, nesterov=True)
        chooser = torch.optim.Adam(spot.policy_parameters(), lr=1e-2, weight_decay=1e-3)
        statistics = PolicyStatistics()
        run.restore(network=network, unet=unet, policy=chooser, statistics=statistics)
        for step, batch in run.steps(Batches(load, 7, 3, 0), 8):
            if step == stop:
                break
            unet.zero_grad()
            chooser.zero_grad()
            logits, policy = network(batch["image"], return_policy=True)
            loss = F.binary_cross_entropy_with_logits(logits, batch["mask"]) + policy_penalty(policy, 0.005)
            run.backward(loss)
            run.step_optimizers(unet, chooser)
            statistics.update(policy)
        assert statistics.samples == 3 * (8 if stop is None else stop)
        return {**copy.deepcopy(spot.state_dict()), "statistics": statistics.fine_tuned()}


@pytest.mark.parametrize("channels_last", [False, True])
def test_resumes_exactly_with_both_optimisers_and_the_statistics(tmp_path: Path, channels_last: bool) -> None:
    whole = train(tmp_path / "whole", None, channels_last=channels_last)
    train(tmp_path / "stopped", 5, channels_last=channels_last)
    resumed = train(tmp_path / "stopped", None, resume=True, channels_last=channels_last)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_weights_round_trip(tmp_path: Path) -> None:
    spot = make(3, 4)
    spot(torch.randn(2, 3, 16, 16))
    save_weights(tmp_path / "spot.safetensors", spot, {"kind": "spottunet"})
    other = SpotTUNet(ResidualUNet2d(3, 4, width=2))
    load_weights(tmp_path / "spot.safetensors", other)
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(other.eval()(x), spot.eval()(x))
    load_state(other, spot.state_dict(), "memory")
    assert other.state_dict().keys() == spot.state_dict().keys()


def test_channels_last_gives_the_same() -> None:
    spot = make().eval()
    x, policy = torch.randn(2, 1, 16, 24), torch.rand(2, 32).round()
    expected = spot(x, policy)
    other = copy.deepcopy(spot).to(memory_format=torch.channels_last)
    result = other(x.contiguous(memory_format=torch.channels_last), policy)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


def test_runs_under_bfloat16_autocast() -> None:
    spot = make(out_channels=4)
    x = torch.randn(4, 1, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, policy = spot(x, return_policy=True)
        loss = F.cross_entropy(logits.float(), torch.zeros(4, 16, 16, dtype=torch.int64)) + policy_penalty(policy, 0.1)
    loss.backward()
    assert policy.dtype == torch.float32
    assert all(p.grad is not None and p.grad.isfinite().all() for p in spot.parameters() if p.requires_grad)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0")
def test_compiles_to_one_graph() -> None:
    spot = make().train()
    explained = torch._dynamo.explain(lambda x, p: spot(x, p))(torch.randn(2, 1, 16, 16), torch.rand(2, 32).round())
    assert explained.graph_break_count == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_agrees_with_cpu() -> None:
    spot = make(dtype=torch.float64).eval()
    x, policy = torch.randn(2, 1, 32, 32, dtype=torch.float64), torch.rand(2, 32, dtype=torch.float64).round()
    other = copy.deepcopy(spot).cuda()
    for p in (policy, None, torch.ones_like(policy)):
        result = other(x.cuda(), None if p is None else p.cuda())
        torch.testing.assert_close(result.cpu(), spot(x, p), rtol=1e-8, atol=1e-8)
    assert torch.equal(other(x.cuda(), torch.ones_like(policy).cuda()), other.frozen(x.cuda()))
