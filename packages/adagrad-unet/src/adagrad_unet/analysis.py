"""How fast each layer learns (paper section 3.2, Fig. 2), and whether the optimiser is adaptive at all (specification 2.2, 2.8)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from adagrad_unet.avagrad import AvaGrad
from adagrad_unet.network import GROUPS
from dart_core.errors import InputError, SettingError

Form = Literal["mean_abs", "l2", "relative"]
FORMS: tuple[Form, ...] = ("mean_abs", "l2", "relative")
PERCENTILES = (1, 50, 99)


def layer_update_magnitude(model: nn.Module, before: Mapping[str, Tensor], form: Form = "mean_abs") -> dict[str, float]:
    """How far the weight of each convolution has moved since `before`; biases and norms are left out.

    A convolution in front of a norm does not care how large its weights are, so only the relative form can be compared
    between layers.

    Args:
        model: any module, after one optimiser step.
        before: its `state_dict` before the step (a copy: `state_dict` itself shares memory with the model).
        form: "mean_abs" the mean of |w' - w|, "l2" the norm of w' - w, "relative" that norm over the norm of w.

    Returns:
        name of the convolution's module -> magnitude, in the order of the model.

    Raises:
        ValueError: an unknown form, or a weight that `before` has not, or has in another shape.
    """
    layers = _convolutions(model)
    for name, layer in layers.items():
        key = f"{name}.weight" if name else "weight"
        if key not in before or before[key].shape != layer.weight.shape:
            raise InputError(f"the state before the step has no fitting {key!r}", remedy="give this model's state_dict")
    old = [before[f"{name}.weight" if name else "weight"].to(layer.weight.device) for name, layer in layers.items()]
    with torch.no_grad():
        values = _magnitudes([layer.weight for layer in layers.values()], old, form)
    return dict(zip(layers, values.tolist(), strict=True))


def _convolutions(model: nn.Module) -> dict[str, Any]:
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def _magnitudes(new: Sequence[Tensor], old: Sequence[Tensor], form: Form) -> Tensor:
    """(layers,) float64 on the device of the weights."""
    if form not in FORMS:
        raise SettingError(f"unknown form {form!r}", remedy=f"give {', '.join(FORMS)}")
    if not new:
        return torch.zeros(0, dtype=torch.float64)
    change = torch._foreach_sub(list(new), list(old))
    if form == "mean_abs":
        return _norms(change, 1) / torch.tensor([max(part.numel(), 1) for part in change], device=change[0].device)
    return _norms(change, 2) if form == "l2" else _norms(change, 2) / _norms(list(old), 2)


def _norms(tensors: Sequence[Tensor], order: Literal[1, 2]) -> Tensor:
    """Norms (n,) in float64, in few kernel launches."""
    if tensors[0].device.type != "cpu":
        return torch.stack(torch._foreach_norm(list(tensors), order)).double()
    # Norms of large tensors on the CPU lose digits where all entries are alike; sums do not.
    sums = [(part.abs() if order == 1 else part.square()).sum() for part in tensors]
    return torch.stack(sums).double() ** (1 / order)


class UpdateRecorder:
    """Sums up every form of `layer_update_magnitude` over the steps of an optimiser; goes into the checkpoint.

    Layers without gradient (nnU-Net's lowest segmentation output) are not recorded.

    Args:
        model: network whose convolutions are watched.
        optimizer: its steps are watched.
        every: record every so many steps, beginning with the first.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, every: int = 1) -> None:
        self.layers = {name: layer for name, layer in _convolutions(model).items() if layer.weight.requires_grad}
        self.every = every
        self.steps = self.recorded = 0
        self._sums = torch.zeros(len(FORMS), len(self.layers), dtype=torch.float64)
        self._before: list[Tensor] | None = None
        optimizer.register_step_pre_hook(self._look)
        optimizer.register_step_post_hook(self._add)

    def _weights(self) -> list[Tensor]:
        return [layer.weight.detach() for layer in self.layers.values()]

    def _look(self, optimizer: Optimizer, *arguments: Any) -> None:
        if self.steps % self.every == 0:
            self._before = [weight.clone() for weight in self._weights()]

    @torch.no_grad()
    def _add(self, optimizer: Optimizer, *arguments: Any) -> None:
        self.steps += 1
        if self._before is None:
            return
        weights = self._weights()
        new = torch.stack([_magnitudes(weights, self._before, form) for form in FORMS])
        self._sums = self._sums.to(new.device) + new
        self.recorded += 1
        self._before = None

    def means(self) -> dict[str, dict[str, float]]:
        """Form -> layer -> mean over the recorded steps; nan where there is none."""
        means = (self._sums / self.recorded if self.recorded else self._sums * math.nan).tolist()
        return {form: dict(zip(self.layers, row, strict=True)) for form, row in zip(FORMS, means, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """Sums and counts."""
        return {"sums": self._sums.cpu(), "steps": self.steps, "recorded": self.recorded, "layers": list(self.layers)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take on what `state_dict` gave.

        Raises:
            ValueError: it is about other layers.
        """
        if list(state_dict["layers"]) != list(self.layers):
            raise InputError("recorded updates of another network")
        self._sums = state_dict["sums"].clone()
        self.steps, self.recorded = int(state_dict["steps"]), int(state_dict["recorded"])


def by_group(layers: Mapping[str, float]) -> dict[str, list[float]]:
    """Values of the layers of the 2-D U-Net by the groups of Fig. 2, in forward order within each.

    Args:
        layers: module name -> value, in the network's order.
    """
    groups: dict[str, list[float]] = {title: [] for title in GROUPS.values()}
    for name, value in layers.items():
        title = GROUPS.get(name.partition(".")[0])
        if title is not None:
            groups[title].append(value)
    return groups


def levelness(layers: Mapping[str, float]) -> dict[str, float]:
    """Largest over smallest value: of all layers, and of the encoder. Nearer to 1 = layers learn at more similar speeds."""

    def ratio(values: Sequence[float]) -> float:
        return max(values) / min(values) if values and min(values) > 0 else math.nan

    return {"all": ratio(list(layers.values())), "context": ratio(by_group(layers)["context"])}


def normalised_rates(optimizer: Optimizer) -> NDArray[np.float32]:
    """eta / rms(eta) of every parameter: 1 everywhere means that the optimiser is not adaptive.

    eta = 1 / (sqrt(v) + eps) with the v of now, bias-corrected where the optimiser does so (Adam: the maximum of AMSGrad
    where it is on). The root mean square runs over each parameter group.

    Args:
        optimizer: AvaGrad or Adam; of any other there is nothing to see.

    Returns:
        (numbers,), empty for another optimiser and before the first step.
    """
    parts = []
    for group in optimizer.param_groups:
        rates = []
        for parameter in group["params"]:
            state = optimizer.state.get(parameter)
            if not state or "exp_avg_sq" not in state:
                continue
            square = state.get("max_exp_avg_sq", state["exp_avg_sq"]).detach()
            corrects = not isinstance(optimizer, AvaGrad) or group["bias_correction"] in (True, None)
            if isinstance(optimizer, AvaGrad) and group["bias_correction"] is None:
                corrects = group["variant"] == "official"
            c = 1 - group["betas"][1] ** float(state["step"]) if corrects else 1.0
            rates.append(((square / c).sqrt() + group["eps"]).reciprocal().flatten())
        if rates:
            eta = torch.cat(rates)
            parts.append((eta / eta.double().square().mean().sqrt()).float().cpu().numpy())
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def rate_percentiles(optimizer: Optimizer) -> dict[str, float]:
    """Smallest, largest and PERCENTILES of `normalised_rates` by name; empty where there is nothing to see."""
    rates = normalised_rates(optimizer)
    if not len(rates):
        return {}
    values = np.percentile(rates, (0, *PERCENTILES, 100))
    names = ("min", *(f"p{percentile}" for percentile in PERCENTILES), "max")
    return {f"rate_{name}": float(value) for name, value in zip(names, values, strict=True)}
