"""AvaGrad (Savarese et al., CVPR 2021), the optimiser of the paper's section 2.3. It is not Adagrad.

For t = 1, 2, ..., element by element:

    m_t     = b1 m_{t-1} + (1 - b1) g_t                      (a)
    eta_t   = 1 / (sqrt(v_{t-1}) + eps)                      (b)  the v of the step before
    w_{t+1} = w_t - lr eta_t / rms(eta_t) m_t                (c)  rms = norm / sqrt(number of components)
    v_t     = b2 v_{t-1} + (1 - b2) g_t^2                    (d)

The code of its authors (`variant="official"`) differs from this print in five points (specification 2.1): m and v are divided
by their bias corrections; a tensor's first step only fills m, v and the norm; the norm is one step late; it runs over all
tensors of the parameter group that have a gradient; and t is counted for each tensor.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from dart_core.errors import SettingError

_SETTINGS = (
    "lr", "betas", "eps", "weight_decay", "foreach", "variant", "norm_scope", "bias_correction", "decoupled", "maximize", "gamma",
)  # fmt: skip
_LOW = (torch.float16, torch.bfloat16)
# Numbers in a block on the CPU: the blocks of g, m, v, w and of the intermediate result fit into the cache together.
_BLOCK = 1 << 17
# Tensors below this size are updated in lists (benchmarks/speed/avagrad.py): the calls cost more than the work, and the
# intermediate results of them all are small.
_SMALL = 1 << 15
# The same operations on one tensor, and on a list of tensors in few kernel launches.
_NAMES = ("add", "add_", "addcdiv_", "addcmul_", "lerp_", "mul", "mul_", "neg", "sqrt")
_ONE = SimpleNamespace(**{name: getattr(torch.Tensor, name) for name in _NAMES})
_MANY = SimpleNamespace(**{name: getattr(torch, f"_foreach_{name}") for name in _NAMES})


@dataclass(frozen=True)
class _Piece:
    """What is updated in one go: one tensor each (or a block of it), or one list of tensors each."""

    step: int
    """t of these tensors."""
    weight: Any
    gradient: Any
    mean: Any
    square: Any

    @property
    def do(self) -> SimpleNamespace:
        return _MANY if isinstance(self.weight, list) else _ONE


class AvaGrad(Optimizer):
    """AvaGrad as a PyTorch optimiser.

    For float16 and bfloat16 parameters m, v and a master copy of the parameter, in which the steps add up, are float32. A tensor
    without gradient is left out of the step, of the norm and of t; a group in which no tensor has one keeps its gamma.

    `param_groups[i]["gamma"]` is 1 / rms(eta) of the last step, None before the first: a number on the CPU, a tensor without
    axes on a GPU, where reading it would have to wait. The official variant uses it in the step that follows.

    With decoupled weight decay, lr 10 multiplies weights by 1 - 10 weight_decay in every step.

    Args:
        params: parameters, or groups of them; every group has its own norm.
        lr: learning rate alpha (the paper's: 10). A scheduler may change it.
        betas: decay of m and of v.
        eps: adaptability epsilon, outside the root (the paper's: 0.1). Where sqrt(v) is far below it everywhere, the method is
            SGD with averaged momentum (specification 2.2).
        weight_decay: factor of the decay.
        foreach: True: few kernel launches for the whole group, with temporary copies of its size. False: one tensor at a time.
            None: True on a GPU and for small tensors, others block by block. The numbers are the same but for the order of the sum in the norm.
        variant: "official" as the authors' code, "printed" as the formulas above.
        norm_scope: what rms runs over: the "group", or each "tensor" by itself.
        bias_correction: divide m by 1 - b1^t and v_{t-1} by 1 - b2^(t-1); None: True for official, False for printed.
        decoupled: multiply weights by 1 - lr weight_decay (not scaled by gamma; not in a step without update) instead of adding
            weight_decay w to the gradient.
        maximize: climb instead of descending.

    Raises:
        ValueError: a setting out of its range.
        RuntimeError: from `step`: sparse or complex gradients.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 10.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 0.1,
        weight_decay: float = 0.0,
        foreach: bool | None = None,
        variant: Literal["official", "printed"] = "official",
        norm_scope: Literal["group", "tensor"] = "group",
        bias_correction: bool | None = None,
        decoupled: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "foreach": foreach, "variant": variant,
            "norm_scope": norm_scope, "bias_correction": bias_correction, "decoupled": decoupled, "maximize": maximize,
            "gamma": None,
        }  # fmt: skip
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, which may have settings of its own.

        Raises:
            ValueError: a setting out of its range.
        """
        _check({**self.defaults, **param_group})
        super().add_param_group(param_group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for name in _SETTINGS:
                group.setdefault(name, self.defaults[name])

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take a state on. What is float32 for a parameter of lower precision stays float32."""
        super().load_state_dict(dict(state_dict))
        names = itertools.chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        parameters = itertools.chain.from_iterable(group["params"] for group in self.param_groups)
        # PyTorch has just cast the state to the type of its parameter.
        for name, parameter in zip(names, parameters, strict=True):
            for key, value in state_dict["state"].get(name, {}).items() if parameter.dtype in _LOW else ():
                if isinstance(value, Tensor):
                    self.state[parameter][key] = value.to(parameter.device, torch.float32, copy=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Do one step.

        Args:
            closure: computes the loss and its gradients; called once, before the step.

        Returns:
            What the closure gave.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None and p.numel()]
            for parameter in parameters:
                self._prepare(parameter)
            if group["norm_scope"] == "tensor":
                for parameter in parameters:
                    self._update(group, [parameter], self.state[parameter])
            elif parameters:
                self._update(group, parameters, group)
            self._write_back(parameters)
        return loss

    def _prepare(self, parameter: Tensor) -> None:
        """Make the state where it is missing, and count the step."""
        gradient = parameter.grad
        if gradient is None or gradient.is_sparse or gradient.is_complex():
            raise RuntimeError("AvaGrad needs dense, real gradients")
        state = self.state[parameter]
        if not state:
            zeros = torch.zeros_like(parameter, dtype=torch.float32 if parameter.dtype in _LOW else None)
            state |= {"step": 0, "exp_avg": zeros, "exp_avg_sq": zeros.clone()}
            if parameter.dtype in _LOW:
                state["master"] = parameter.to(torch.float32)
        elif parameter.dtype in _LOW:
            # Weights that were loaded or changed since the last step count; elsewhere the finer copy does.
            changed = state["master"].to(parameter.dtype) != parameter
            state["master"] = torch.where(changed, parameter.to(torch.float32), state["master"])
        state["step"] += 1

    def _write_back(self, parameters: Sequence[Tensor]) -> None:
        for parameter in parameters:
            if parameter.dtype in _LOW:
                parameter.copy_(self.state[parameter]["master"])

    def _update(self, group: dict[str, Any], parameters: Sequence[Tensor], scope: dict[str, Any]) -> None:
        """Update some tensors that share a norm; `scope` holds its gamma."""
        pieces = self._pieces(group, parameters)
        size = sum(parameter.numel() for parameter in parameters)
        update = _official if group["variant"] == "official" else _printed
        scope["gamma"] = update(group, pieces, size, scope.get("gamma"))

    def _pieces(self, group: Mapping[str, Any], parameters: Sequence[Tensor]) -> list[_Piece]:
        lists: dict[Any, tuple[list[Tensor], ...]] = {}
        pieces = []
        for parameter in parameters:
            state, gradient = self.state[parameter], parameter.grad
            assert gradient is not None
            weight = state.get("master", parameter)
            tensors = (weight, gradient.to(weight.dtype), state["exp_avg"], state["exp_avg_sq"])
            together = group["foreach"]
            if together is None:
                together = parameter.device.type != "cpu" or parameter.numel() < _SMALL
            if together:
                key = (state["step"], weight.device, weight.dtype)
                for part, tensor in zip(lists.setdefault(key, ([], [], [], [])), tensors, strict=True):
                    part.append(tensor)
            else:
                blocks = [tensors] if group["foreach"] is False else _blocks(tensors)
                pieces += [_Piece(state["step"], *block) for block in blocks]
        return pieces + [_Piece(step, *part) for (step, *_), part in lists.items()]


def _official(group: Mapping[str, Any], pieces: Sequence[_Piece], size: int, gamma: Any) -> Any:
    """The authors' code: step with the norm that the step before found, then find the norm for the next. Gives gamma."""
    sums = []
    for piece in pieces:
        do, gradient = piece.do, _gradient(group, piece)
        do.lerp_(piece.mean, gradient, 1 - group["betas"][0])  # (a)
        eta = do.sqrt(piece.square)
        # 1 / (sqrt(v) / c + eps) = c / (sqrt(v) + c eps), which saves a pass over the data.
        c = _root(group, piece.step)
        before = _root(group, piece.step - 1) if piece.step > 1 else 0.0
        do.add_(eta, before * group["eps"])
        if piece.step > 1:
            _descend(group, piece, eta, gamma, before)  # (c)
        do.add_(eta, (c - before) * group["eps"])
        sums += _sums_of_inverse_squares(eta, c)
        do.mul_(piece.square, group["betas"][1])  # (d)
        do.addcmul_(piece.square, gradient, gradient, value=1 - group["betas"][1])
    return _gamma(sums, size)


def _printed(group: Mapping[str, Any], pieces: Sequence[_Piece], size: int, gamma: Any) -> Any:
    """The printed formulas: the norm of this step's own eta. Gives gamma."""

    def denominator(piece: _Piece) -> Any:
        """(sqrt(v_{t-1}) + c eps) and c."""
        c = _root(group, piece.step - 1) if piece.step > 1 else 1.0
        eta = piece.do.sqrt(piece.square)
        piece.do.add_(eta, c * group["eps"])
        return eta, c

    sums = []
    for piece in pieces:
        piece.do.lerp_(piece.mean, _gradient(group, piece), 1 - group["betas"][0])  # (a)
        eta, c = denominator(piece)
        sums += _sums_of_inverse_squares(eta, c)  # (b)
    gamma = _gamma(sums, size)
    for piece in pieces:
        gradient = _gradient(group, piece)
        eta, c = denominator(piece)
        _descend(group, piece, eta, gamma, c)  # (c)
        piece.do.mul_(piece.square, group["betas"][1])  # (d)
        piece.do.addcmul_(piece.square, gradient, gradient, value=1 - group["betas"][1])
    return gamma


def _gradient(group: Mapping[str, Any], piece: _Piece) -> Any:
    """The gradient to follow, with coupled weight decay; the parameter's own gradient is never changed."""
    gradient = piece.do.neg(piece.gradient) if group["maximize"] else piece.gradient
    if group["weight_decay"] and not group["decoupled"]:
        gradient = piece.do.add(gradient, piece.weight, alpha=group["weight_decay"])
    return gradient


def _descend(group: Mapping[str, Any], piece: _Piece, denominator: Any, gamma: Any, c: float) -> None:
    """w -= lr gamma m / (1 - b1^t) * c / denominator, after decoupled weight decay."""
    do, lr = piece.do, float(group["lr"])
    if group["weight_decay"] and group["decoupled"]:
        do.mul_(piece.weight, 1 - lr * group["weight_decay"])
    scale = -lr * c / (1 - group["betas"][0] ** piece.step if _corrects(group) else 1.0)
    if isinstance(gamma, Tensor):
        weight = piece.weight[0] if isinstance(piece.weight, list) else piece.weight
        if weight.device.type == "cpu":
            gamma = float(gamma)
        else:
            denominator = do.mul(denominator, gamma.to(weight.device, weight.dtype).reciprocal())
            gamma = 1.0
    do.addcdiv_(piece.weight, piece.mean, denominator, value=scale * gamma)


def _corrects(group: Mapping[str, Any]) -> bool:
    correction = group["bias_correction"]
    return bool(group["variant"] == "official" if correction is None else correction)


def _root(group: Mapping[str, Any], step: int) -> float:
    """Root of the bias correction of v after so many steps."""
    return math.sqrt(1 - group["betas"][1] ** step) if _corrects(group) else 1.0


def _sums_of_inverse_squares(denominator: Any, c: float) -> list[Any]:
    """The sum of (c / denominator)^2, in parts; uses the denominator up. (Norms on the CPU lose digits where all entries are alike.)"""
    tensors: list[Tensor] = [denominator] if isinstance(denominator, Tensor) else list(denominator)
    if tensors[0].device.type == "cpu":
        return [c * c * float(tensor.pow_(-2).sum()) for tensor in tensors]
    torch._foreach_reciprocal_(tensors)
    return [torch.stack(torch._foreach_norm(tensors)).double().square().sum() * (c * c)]


def _gamma(sums: Sequence[Any], size: int) -> Any:
    """1 / rms(eta)."""
    if all(isinstance(part, float) for part in sums):
        return math.sqrt(size / math.fsum(sums))
    device = next(part.device for part in sums if isinstance(part, Tensor))
    return (size / torch.stack([torch.as_tensor(part, device=device) for part in sums]).sum()).sqrt()


def _blocks(tensors: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Blocks of tensors that lie in memory in the same order; one block where they do not."""
    flat = []
    for tensor in tensors:
        if tensor.stride() != tensors[0].stride():
            return iter([tuple(tensors)])
        # From the axis with the largest steps to the one with the smallest.
        ordered = tensor.permute(sorted(range(tensor.ndim), key=tensor.stride, reverse=True))
        if not ordered.is_contiguous():
            return iter([tuple(tensors)])
        flat.append(ordered.view(-1).split(_BLOCK))
    return zip(*flat, strict=True)


def _check(group: Mapping[str, Any]) -> None:
    allowed = {
        "lr": float(group["lr"]) >= 0,
        "betas": len(group["betas"]) == 2 and all(0 <= beta < 1 for beta in group["betas"]),
        "eps": group["eps"] > 0,
        "weight_decay": group["weight_decay"] >= 0,
        "variant": group["variant"] in ("official", "printed"),
        "norm_scope": group["norm_scope"] in ("group", "tensor"),
    }
    remedies = {
        "lr": "give 0 or more",
        "betas": "give two numbers from 0 to below 1",
        "eps": "give more than 0",
        "weight_decay": "give 0 or more",
        "variant": "give official or printed",
        "norm_scope": "give group or tensor",
    }
    for name, is_allowed in allowed.items():
        if not is_allowed:
            raise SettingError(f"AvaGrad's {name} is {group[name]}", remedy=remedies[name])
