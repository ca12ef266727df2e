"""Networks whose weights, gradients and optimiser states are spread over the processes (FSDP2).

`dart_core.run.Run` uses it where its settings say so. States leave and enter whole: a checkpoint of a sharded run is that of any
other run, so that it can be continued by another number of processes, sharded or not.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Generator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def shard(module: nn.Module, device: torch.device) -> nn.Module:
    """Spread a network over all processes, in place; each repeated block is gathered when it computes, and let go again.

    Args:
        module: the network, with the same values in all processes.
        device: where it lies.

    Returns:
        The same object.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for block in (*reversed(repeated_blocks(module)), module):
        fully_shard(block, mesh=mesh)
    return module


def repeated_blocks(module: nn.Module) -> list[nn.Module]:
    """The blocks that a network repeats: children of one class in an `nn.Sequential` or `nn.ModuleList`, layers aside.

    Such are the blocks of timm's ViT and Swin, and Swin's stages around them. Outer ones come first.
    """
    found = []
    for parent in module.modules():
        if isinstance(parent, nn.Sequential | nn.ModuleList):
            children = [
                child for child in parent if next(child.children(), None) and next(child.parameters(), None) is not None
            ]
            classes = Counter(type(child) for child in children)
            found += [child for child in children if classes[type(child)] > 1]
    return list(dict.fromkeys(found))


def is_sharded(module: nn.Module) -> bool:
    """Whether the weights of a network are spread over processes."""
    return any(_is_distributed(parameter) for parameter in module.parameters())


@contextlib.contextmanager
def without_exchange(module: nn.Module) -> Generator[None]:
    """Let backward passes add their gradients up in each process; the next one outside of this exchanges the sum."""
    if isinstance(module, DistributedDataParallel):
        with module.no_sync():
            yield
        return
    module.set_requires_gradient_sync(False)  # type: ignore[operator]
    try:
        yield
    finally:
        module.set_requires_gradient_sync(True)  # type: ignore[operator]


@contextlib.contextmanager
def gathered(module: nn.Module) -> Generator[None]:
    """Hold a network whole in every process, so that each may call it by itself, without gradient. All must enter and leave."""
    from torch.distributed.fsdp import FSDPModule

    parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        with torch.no_grad():
            yield
    finally:
        for part in parts:
            # The outermost part is kept whole between forward and backward pass, as fully_shard sets it up.
            part.set_reshard_after_forward(part is not module, recurse=False)
            part.reshard()


def whole(state: Any, keep: bool = True) -> Any:
    """A state with whole tensors, on the CPU where they were spread. All processes must call it.

    Args:
        state: nested mappings, lists and tuples.
        keep: this process needs the result; others take part and get None in the tensors' places.
    """
    if _is_distributed(state):
        tensor = state.full_tensor()
        return tensor.cpu() if keep else None
    if isinstance(state, Mapping):
        return {key: whole(value, keep) for key, value in state.items()}
    if type(state) in (list, tuple):
        return type(state)(whole(value, keep) for value in state)
    return state


def spread(state: Any, item: Any) -> Any:
    """This process's part of a whole state, as `item.load_state_dict` needs it. Without exchange.

    Args:
        state: what `whole` gave, or a run that is not sharded.
        item: a network, an optimiser, or anything else with a state_dict.
    """
    if isinstance(item, torch.optim.Optimizer):
        return _spread_optimizer(state, item)
    return _spread_like(state, item.state_dict())


def _spread_like(state: Any, own: Any) -> Any:
    """Tensors like those at the same places of another state; what has no counterpart of its shape stays."""
    if _is_distributed(own):
        return _part(state, own)
    if isinstance(state, Mapping) and isinstance(own, Mapping):
        return {key: _spread_like(value, own.get(key)) for key, value in state.items()}
    if type(state) in (list, tuple) and type(own) in (list, tuple) and len(state) == len(own):
        return type(state)(_spread_like(value, other) for value, other in zip(state, own, strict=True))
    return state


def _spread_optimizer(state: Any, optimizer: torch.optim.Optimizer) -> Any:
    """An optimiser numbers its parameters group by group; what has a parameter's shape is spread as the parameter."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    by_number = dict(zip(numbers, parameters, strict=False))
    spread_states = {
        number: {
            name: _part(value, by_number[number]) if _is_distributed(by_number.get(number)) else value
            for name, value in values.items()
        }
        for number, values in state["state"].items()
    }
    return {**state, "state": spread_states}


def _part(value: Any, like: Any) -> Any:
    """The part of a whole tensor that belongs to this process, laid out like another one of the same shape."""
    from torch.distributed.tensor import distribute_tensor

    if not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    # Every process has read the whole tensor, so that none has to send anything.
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def _is_distributed(value: Any) -> bool:
    return isinstance(value, Tensor) and hasattr(value, "full_tensor")
