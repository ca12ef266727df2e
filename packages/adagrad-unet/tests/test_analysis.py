"""Update magnitudes and the spread of learning rates against NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from adagrad_unet import AvaGrad, GenericUNet2d, layer_update_magnitude
from adagrad_unet.analysis import (
    FORMS,
    UpdateRecorder,
    by_group,
    levelness,
    normalised_rates,
    rate_percentiles,
)


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.InstanceNorm2d(3, affine=True), nn.ConvTranspose2d(3, 2, 2, bias=False))


def copied(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def one_step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int = 0) -> None:
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("form", FORMS)
def test_magnitudes_of_one_step(form):
    model = small()
    before = copied(model)
    one_step(model, torch.optim.SGD(model.parameters(), lr=0.5))
    found = layer_update_magnitude(model, before, form)
    assert list(found) == ["0", "2"]
    for name, value in found.items():
        old = before[f"{name}.weight"].numpy().astype(np.float64)
        change = model.get_submodule(name).weight.detach().numpy() - old
        expected = {
            "mean_abs": np.abs(change).mean(),
            "l2": np.linalg.norm(change),
            "relative": np.linalg.norm(change) / np.linalg.norm(old),
        }[form]
        assert value == pytest.approx(expected, rel=1e-5)


def test_nothing_moved_and_a_module_that_is_one_convolution():
    model = nn.Conv2d(1, 1, 3)
    assert layer_update_magnitude(model, copied(model)) == {"": 0.0}
    assert layer_update_magnitude(nn.Linear(2, 2), {}) == {}


def test_large_weights_keep_their_digits():
    """Two million equal changes: naive single-precision sums would be wrong in the third digit."""
    model = nn.Conv2d(480, 480, 3)
    before = copied(model)
    with torch.no_grad():
        model.weight.copy_(before["weight"] + 0.125)
    assert layer_update_magnitude(model, before)[""] == pytest.approx(0.125, rel=1e-5)
    assert layer_update_magnitude(model, before, "l2")[""] == pytest.approx(0.125 * 1440 / math.sqrt(1), rel=1e-5)


def test_states_that_do_not_fit():
    model = small()
    with pytest.raises(ValueError, match=r"no fitting '2\.weight'"):
        layer_update_magnitude(model, {"0.weight": model[0].weight})
    with pytest.raises(ValueError, match=r"no fitting '0\.weight'"):
        layer_update_magnitude(model, {"0.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="unknown form 'max'"):
        layer_update_magnitude(model, copied(model), "max")


def test_recorder_is_the_mean_over_steps():
    model = small()
    optimizer = AvaGrad(model.parameters(), 1.0)
    recorder = UpdateRecorder(model, optimizer)
    assert all(math.isnan(value) for value in recorder.means()["l2"].values())
    seen: dict[str, list[dict[str, float]]] = {form: [] for form in FORMS}
    for step in range(4):
        before = copied(model)
        one_step(model, optimizer, step)
        for form in FORMS:
            seen[form].append(layer_update_magnitude(model, before, form))
    for form in FORMS:
        for name, value in recorder.means()[form].items():
            assert value == pytest.approx(np.mean([row[name] for row in seen[form]]), rel=1e-12)


def test_recorder_every_other_step_and_resume():
    whole, parts = small(), small()
    first = torch.optim.SGD(whole.parameters(), lr=0.1)
    straight = UpdateRecorder(whole, first, every=2)
    for step in range(7):
        one_step(whole, first, step)
    assert straight.recorded == 4
    second = torch.optim.SGD(parts.parameters(), lr=0.1)
    before = UpdateRecorder(parts, second, every=2)
    for step in range(3):
        one_step(parts, second, step)
    state = before.state_dict()
    third = torch.optim.SGD(parts.parameters(), lr=0.1)
    after = UpdateRecorder(parts, third, every=2)
    after.load_state_dict(state)
    for step in range(3, 7):
        one_step(parts, third, step)
    assert after.means() == straight.means()
    with pytest.raises(ValueError, match="another network"):
        UpdateRecorder(nn.Conv2d(1, 1, 1), torch.optim.SGD([nn.Parameter(torch.ones(1))])).load_state_dict(state)


def test_layers_that_do_not_learn_are_not_recorded():
    model = small()
    model[2].weight.requires_grad_(False)
    assert list(UpdateRecorder(model, torch.optim.SGD(model.parameters())).layers) == ["0"]


def test_groups_in_forward_order():
    own = GenericUNet2d(1, 2, ((2, 2),) * 2, ((3, 3),) * 3, (4, 8, 16))
    layers = layer_update_magnitude(own, copied(own), "l2")
    numbered = {name: float(i) for i, name in enumerate(layers)}
    groups = by_group(numbered)
    assert {title: len(values) for title, values in groups.items()} == {
        "context": 6, "localization": 4, "transpose": 2, "segmentation": 2,
    }  # fmt: skip
    assert [value for values in groups.values() for value in values] == sorted(numbered.values())
    assert levelness(numbered | {"conv_blocks_context.0.blocks.0.conv": 0.5}) == {"all": 26.0, "context": 10.0}


@pytest.mark.parametrize("variant", ["official", "printed"])
def test_rates_of_avagrad(variant):
    model = small()
    optimizer = AvaGrad(model.parameters(), 1.0, eps=1e-3, variant=variant)
    assert len(normalised_rates(optimizer)) == 0
    assert rate_percentiles(optimizer) == {}
    for step in range(3):
        one_step(model, optimizer, step)
    c = 1 - 0.999**3 if variant == "official" else 1
    v = np.concatenate([optimizer.state[p]["exp_avg_sq"].numpy().ravel() for p in model.parameters()]).astype(float)
    eta = 1 / (np.sqrt(v / c) + 1e-3)
    expected = eta / np.sqrt(np.mean(eta**2))
    np.testing.assert_allclose(normalised_rates(optimizer), expected, rtol=1e-5)
    found = rate_percentiles(optimizer)
    assert list(found) == ["rate_min", "rate_p1", "rate_p50", "rate_p99", "rate_max"]
    assert found["rate_p50"] == pytest.approx(np.median(expected), rel=1e-5)


def test_rates_of_adam_and_sgd():
    model = small()
    adam = torch.optim.Adam(model.parameters(), amsgrad=True)
    one_step(model, adam)
    v = np.concatenate([adam.state[p]["max_exp_avg_sq"].numpy().ravel() for p in model.parameters()]).astype(float)
    eta = 1 / (np.sqrt(v / 0.001) + 1e-8)
    np.testing.assert_allclose(normalised_rates(adam), eta / np.sqrt(np.mean(eta**2)), rtol=1e-4)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    one_step(model, sgd)
    assert rate_percentiles(sgd) == {}


def test_a_large_eps_is_not_adaptive():
    model = small()
    optimizer = AvaGrad(model.parameters(), 1.0, eps=1e6)
    one_step(model, optimizer)
    np.testing.assert_allclose(normalised_rates(optimizer), 1, atol=1e-6)
