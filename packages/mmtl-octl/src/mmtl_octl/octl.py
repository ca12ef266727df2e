"""Fine-tuning that goes on from the optimiser's saved gradient history (paper Algorithms 2 and 3, OCTL).

Both optimisers are PyTorch's own with a history put into their state and the paper's decay rates: what PyTorch's users
know of state_dict, resuming, gradient scaling and several parameter groups holds here too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from dart_core.checkpoint import load_weights, save_tensors, unwrap
from dart_core.errors import InputError, SettingError

Parameters: TypeAlias = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]
Moments: TypeAlias = tuple[Tensor, Tensor] | tuple[Tensor, Tensor, float | Tensor]
Kind = Literal["sgd", "adam"]
StartStep: TypeAlias = int | Literal["keep"]

_BUFFERS: dict[Kind, tuple[str, ...]] = {"sgd": ("momentum_buffer",), "adam": ("exp_avg", "exp_avg_sq")}
_STEP = "step"


class OCTLSGD(torch.optim.SGD):
    """Momentum SGD that starts with a history H_0 (paper Algorithm 2).

    H_t = momentum * H_{t-1} + g_t and theta_t = theta_{t-1} - lr * H_t: plain momentum, not Nesterov's, no dampening
    (specification 2.3, item 1). Without history it is PyTorch's momentum SGD, with momentum 0 gradient descent.

    Args:
        params: parameters or parameter groups, as for any PyTorch optimiser.
        lr: learning rate.
        momentum: decay of the history, mu.
        history: momentum buffers in the order of `params`, copied; None is zeros.
        weight_decay: factor of the L2 penalty that is added to the gradient.

    Raises:
        ValueError: another number of buffers than parameters, or another shape.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float,
        momentum: float = 0.99,
        history: Sequence[Tensor] | None = None,
        *,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr, momentum=momentum, weight_decay=weight_decay, foreach=True)
        parameters = _parameters(self)
        buffers = [torch.zeros_like(p) for p in parameters] if history is None else history
        _check_count(parameters, buffers)
        for number, (parameter, buffer) in enumerate(zip(parameters, buffers, strict=True)):
            self.state[parameter]["momentum_buffer"] = _copy(buffer, parameter, number)


class OCTLAdam(torch.optim.Adam):
    """Adam that starts with moments M_0, V_0 and a step counter above 0 (paper Algorithm 3).

    M_t = b1 M_{t-1} + (1 - b1) g_t; V_t = b2 V_{t-1} + (1 - b2) g_t^2;
    theta_t = theta_{t-1} - lr * M_t / (1 - b1^(t + s)) / (sqrt(V_t / (1 - b2^(t + s))) + eps), s = `start_step`.
    The paper prints g_t^2 in the first moment as well, which would let every parameter only fall; it is taken for the
    misprint it must be (specification 2.3, item 2).

    Args:
        params: parameters or parameter groups, as for any PyTorch optimiser.
        lr: learning rate.
        betas: decay of the moments; the authors' program ran with (0.9, 0.999).
        eps: added to the root of the second moment.
        history: (M_0, V_0) in the order of `params`, copied; None is zeros. With `start_step` "keep" each may have the
            step counter as a third element.
        start_step: what the step counters are set to before the first step; "keep" takes on the saved ones.
        weight_decay: factor of the L2 penalty that is added to the gradient.

    Raises:
        ValueError: another number of moments than parameters, another shape, a negative or unknown start, or "keep" with
            moments that come without their counter.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float,
        betas: tuple[float, float] = (0.99, 0.999),
        eps: float = 1e-8,
        history: Sequence[Moments] | None = None,
        start_step: StartStep = 100,
        *,
        weight_decay: float = 0.0,
    ) -> None:
        _check_start(start_step)
        super().__init__(params, lr, betas=betas, eps=eps, weight_decay=weight_decay, foreach=True)
        self.start_step = start_step
        parameters = _parameters(self)
        moments = [(torch.zeros_like(p), torch.zeros_like(p), 0.0) for p in parameters] if history is None else history
        _check_count(parameters, moments)
        for number, (parameter, values) in enumerate(zip(parameters, moments, strict=True)):
            if start_step == "keep" and len(values) < 3:
                raise InputError(
                    f"the moments of parameter {number} come without the step counter that start_step 'keep' takes on",
                    remedy="give (M0, V0, step), use load_history, or give a number as start_step",
                )
            state = self.state[parameter]
            for name, value in zip(_BUFFERS["adam"], values, strict=False):
                state[name] = _copy(torch.as_tensor(value), parameter, number)
            state[_STEP] = torch.tensor(float(values[-1] if start_step == "keep" else start_step))


def save_history(optimizer: torch.optim.Optimizer, model: nn.Module, path: str | Path) -> None:
    """Write the gradient history of an optimiser by parameter name (specification 2.3, items 3 and 5).

    The file is a safetensors file: one buffer per parameter of SGD, two and a step counter of Adam, and in its metadata
    the names and the hyper-parameters of the parameter groups. Parameters that never got a gradient have a history of
    zeros.

    Args:
        optimizer: PyTorch's SGD with momentum or Adam, or OCTLSGD or OCTLAdam.
        model: the network whose parameters it trains.
        path: the file, by convention history.safetensors beside the weights.

    Raises:
        ValueError: an optimiser that keeps no such history or has not made a step, or trains other parameters.
        OutputError: the file cannot be written; an older one is untouched.
    """
    kind, named = _kind(optimizer), _named(optimizer, model)
    buffers = _BUFFERS[kind]
    if not any(optimizer.state.get(parameter, {}).get(buffers[0]) is not None for parameter in named.values()):
        raise InputError("the optimiser holds no history yet", remedy="train at least one step before saving it")
    tensors: dict[str, Tensor] = {}
    for name, parameter in named.items():
        state = optimizer.state.get(parameter, {})
        for buffer in buffers:
            value = state.get(buffer)
            value = torch.zeros_like(parameter) if value is None else value
            tensors[f"{buffer}/{name}"] = value.detach().to("cpu", copy=True).contiguous()
        if kind == "adam":
            tensors[f"{_STEP}/{name}"] = torch.tensor(float(state.get(_STEP, 0)))
    groups = [
        {k: v for k, v in group.items() if k not in ("params", "param_names")} for group in optimizer.param_groups
    ]
    metadata = {"history": kind, "parameters": json.dumps(list(named)), "groups": json.dumps(groups, default=str)}
    save_tensors(path, tensors, metadata)


def load_history(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    path: str | Path,
    missing: Literal["error", "zeros"] = "error",
) -> None:
    """Put a saved gradient history into an optimiser, matched by parameter name (specification 2.3, items 4 and 5).

    Buffers and step counters are set, hyper-parameters never: learning rate, momentum, Nesterov and betas stay those of
    the fine-tuning. Counters of OCTLAdam follow its `start_step`; those of PyTorch's Adam are taken on.

    Args:
        optimizer: as for `save_history`; changed in place, or not at all if anything does not fit.
        model: the network whose parameters it trains. They may stand in another order than when the file was written.
        path: the file.
        missing: what to do with parameters that the file does not have: an error, or zeros (a new head). With "zeros",
            parameters of the file that this network does not have (the old head) are passed over.

    Raises:
        ValueError: the history of another kind of optimiser or of another network: other names or shapes.
        CheckpointError: missing or damaged file.
    """
    if missing not in ("error", "zeros"):
        raise SettingError(f"missing is {missing!r}", remedy="give 'error' or 'zeros'")
    kind, named = _kind(optimizer, saving=False), _named(optimizer, model)
    tensors, metadata = load_weights(path)
    names = _names_in(tensors, metadata, kind, path)
    known = dict(unwrap(model).named_parameters())
    other, remedy = "belongs to another network", "give the history that was saved with this network's weights"
    if missing == "error":
        for name in names:
            if name not in known:
                raise InputError(f"{other}: it has '{name}', which this network has not", where=path, remedy=remedy)
        for name in named:
            if name not in names:
                raise InputError(f"{other}: it has no '{name}'", where=path, remedy=remedy)
    elif not names.keys() & named.keys():
        raise InputError(f"{other}: none of its parameters is in this network", where=path, remedy=remedy)
    states: dict[Tensor, dict[str, Tensor]] = {}
    for name, parameter in named.items():
        state: dict[str, Tensor] = {}
        for buffer in _BUFFERS[kind]:
            value = tensors[f"{buffer}/{name}"] if name in names else torch.zeros_like(parameter, device="cpu")
            if value.shape != parameter.shape:
                shapes = f"shape {tuple(value.shape)}, in this network {tuple(parameter.shape)}"
                raise InputError(f"{other}: '{name}' has {shapes}", where=path, remedy=remedy)
            if not bool(value.isfinite().all()):
                raise InputError(
                    f"its {buffer} of '{name}' is not finite", where=path, remedy="train the source network again"
                )
            state[buffer] = value.to(parameter, copy=True, memory_format=torch.preserve_format)
        if kind == "adam":
            start: StartStep = getattr(optimizer, "start_step", "keep")
            saved = float(tensors[f"{_STEP}/{name}"]) if name in names else 0.0
            state[_STEP] = torch.tensor(saved if start == "keep" else float(start))
        states[parameter] = state
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if kind == "adam" and (group.get("fused") or group.get("capturable")):
                states[parameter][_STEP] = states[parameter][_STEP].to(parameter.device)
            optimizer.state[parameter] = states[parameter]


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _kind(optimizer: torch.optim.Optimizer, saving: bool = True) -> Kind:
    if isinstance(optimizer, torch.optim.SGD):
        # OCTLSGD with momentum 0 may be given a history, which it then does not use (specification 9).
        exempt = isinstance(optimizer, OCTLSGD) and not saving
        if not exempt and any(group["momentum"] == 0 for group in optimizer.param_groups):
            raise InputError("SGD without momentum keeps no history", remedy="train with momentum")
        return "sgd"
    if isinstance(optimizer, torch.optim.Adam) and not any(group["amsgrad"] for group in optimizer.param_groups):
        return "adam"
    raise InputError(
        f"no gradient history is known of {type(optimizer).__name__} as it is set up",
        remedy="use SGD with momentum, or Adam without amsgrad",
    )


def _named(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that the optimiser trains, by their names in the model."""
    trained = {id(parameter) for parameter in _parameters(optimizer)}
    named = {name: p for name, p in unwrap(model).named_parameters() if id(p) in trained}
    if len(named) < len(trained):
        raise InputError(
            f"the optimiser trains {len(trained)} parameters and the model has {len(named)} of them",
            remedy="give the model that the optimiser was made for",
        )
    return named


def _names_in(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], kind: Kind, path: str | Path
) -> dict[str, None]:
    """The parameter names of a history file, in its order, after checking that it is one and of the right kind."""
    saved = metadata.get("history")
    if saved not in _BUFFERS:
        raise InputError("holds no gradient history", where=path, remedy="give a file that save_history wrote")
    if saved != kind:
        words = {"sgd": "SGD", "adam": "Adam"}
        raise InputError(
            f"is the history of {words[saved]}; the optimiser here is {words[kind]}",
            where=path,
            remedy="fine-tune with the optimiser of the source training",
        )
    try:
        names = dict.fromkeys(json.loads(metadata.get("parameters", "[]")))
    except (ValueError, TypeError):
        names = {}
    keys = (*_BUFFERS[kind], *((_STEP,) if kind == "adam" else ()))
    if {f"{key}/{name}" for key in keys for name in names} != tensors.keys():
        raise InputError("its list of names does not fit its tensors", where=path, remedy="save the history again")
    return names


def _check_start(start_step: StartStep) -> None:
    if start_step != "keep" and (not isinstance(start_step, int) or start_step < 0):
        raise SettingError(f"start_step is {start_step!r}", remedy="give a whole number from 0 on, or 'keep'")


def _check_count(parameters: Sequence[Tensor], history: Sequence[Any]) -> None:
    if len(history) != len(parameters):
        raise InputError(
            f"the history has {len(history)} entries for {len(parameters)} parameters",
            remedy="give one per parameter, in their order",
        )


def _copy(value: Tensor, parameter: Tensor, number: int) -> Tensor:
    if value.shape != parameter.shape:
        raise InputError(
            f"the history of parameter {number} has shape {tuple(value.shape)}, the parameter {tuple(parameter.shape)}",
            remedy="give the history in the order of the parameters",
        )
    return value.detach().to(parameter, copy=True, memory_format=torch.preserve_format)
