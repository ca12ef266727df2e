"""Which parameters of a source network are fine-tuned, and how far they may go: freezing, L2-SP.

Paragraphs are those of the specification sheets of SpotTUNet (4) and mmtl-octl (4.3 - 4.5).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dart_core.errors import InputError, SettingError
from dart_core.nets.unet import ResidualUNet2d


def freeze(model: ResidualUNet2d, policy: Literal["all", "first", "last"]) -> None:
    """Set requires_grad of a U-Net's parameters for a fine-tuning policy.

    The running statistics of all batch norms still adapt in training mode, whatever the policy (mmtl-octl sheet 4.4).

    Args:
        model: the network, changed in place.
        policy: what stays trainable. "all": everything; "first": the first convolution and the first residual block
            (4,816 parameters at one input channel and width 16); "last": the last residual block and the 1x1
            convolution with its batch norm (4,721 at one output channel), not the final batch norm behind it.

    Raises:
        ValueError: another policy.
    """
    if policy == "all":
        trained: tuple[nn.Module, ...] = (model,)
    elif policy == "first":
        trained = (model.init_path[0], model.init_path[1])
    elif policy == "last":
        trained = (model.out_path[2], model.out_path[3])
    else:
        raise SettingError(f"unknown fine-tuning policy {policy!r}", remedy="give all, first or last")
    model.requires_grad_(False)
    for part in trained:
        part.requires_grad_(True)


def l2_sp_penalty(model: nn.Module, reference_state: Mapping[str, Tensor], alpha: float = 0.1) -> Tensor:
    """alpha * sum (p - p0)² over all parameters: batch norm and output layer included, buffers not (mmtl-octl sheet 4.5).

    Args:
        model: the network that is fine-tuned; one of DistributedDataParallel is unwrapped.
        reference_state: state_dict of the source network; entries that are no parameters of `model` are passed over.
        alpha: weight.

    Returns:
        Scalar; its gradient is 2 alpha (p - p0).

    Raises:
        ValueError: a parameter is missing in `reference_state`, or has another shape there.
    """
    parameters = _parameters(model)
    return alpha * _squares(parameters, reference_state)


def l2_sp_li_penalty(
    model: nn.Module,
    reference_state: Mapping[str, Tensor],
    head: Collection[str],
    alpha: float = 0.1,
    beta: float = 0.01,
) -> Tensor:
    """alpha/2 * sum (p - p0)² + beta/2 * sum w², w the new head, p everything else (Li et al. 2018).

    Args:
        model: the network that is fine-tuned.
        reference_state: state_dict of the source network; needs nothing for the head.
        head: names of the head's parameters.
        alpha: weight of the part with a starting point.
        beta: weight of the head's decay.

    Raises:
        ValueError: as in `l2_sp_penalty`, or a name in `head` that the network has not.
    """
    parameters = _parameters(model)
    if unknown := sorted(set(head) - parameters.keys()):
        raise InputError(f"the network has no parameter {unknown[0]!r} for the head")
    old = {name: parameter for name, parameter in parameters.items() if name not in head}
    decay = torch.stack([parameters[name].square().sum() for name in head]).sum() if head else 0.0
    return alpha / 2 * _squares(old, reference_state) + beta / 2 * decay


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return dict((model.module if isinstance(model, DistributedDataParallel) else model).named_parameters())


def _squares(parameters: Mapping[str, nn.Parameter], reference: Mapping[str, Tensor]) -> Tensor:
    terms = []
    for name, parameter in parameters.items():
        if name not in reference or reference[name].shape != parameter.shape:
            found = f"shape {tuple(reference[name].shape)}" if name in reference else "nothing"
            raise InputError(
                f"{name!r} has shape {tuple(parameter.shape)}, the reference holds {found} for it",
                remedy="give the state_dict of the same network",
            )
        terms.append((parameter - reference[name].detach().to(parameter)).square().sum())
    return torch.stack(terms).sum() if terms else torch.zeros(())
