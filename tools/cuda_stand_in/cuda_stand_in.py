"""A CUDA device that is none: its tensors say "cuda:0", hold their numbers in the memory of the CPU and are computed there.

For machines without a GPU (`nox -s cuda_stand_in`; `sitecustomize.py` gives it to every process of Python that has this folder in
PYTHONPATH). It finds what a first run on a GPU finds first: an operation on tensors of two devices, one that CUDA has no kernel
for, a generator of the wrong device, tensors of the device given to NumPy. It computes what the CPU computes, so it says nothing about
what kernels do and need, rounding, streams or speed; the memory that it counts is that of tensors. Its inference mode is `no_grad`.

PyTorch takes a tensor's device from the runtime of CUDA in a few places below Python (the streams of the backward pass); `runtime.c` and
`driver.c` answer those.
"""

from __future__ import annotations

import contextlib
import types
from typing import Any

import numpy as np
import torch
import torch._dynamo  # looks at the functions of torch.cuda when it is imported, so before they change
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("cuda", 0)
_CPU = torch.device("cpu")
aten = torch.ops.aten
# May take tensors of two devices.
_COPIES = {aten.copy_.default, aten._to_copy.default}
# May take indices in the memory of the CPU.
_INDEXED = {aten.index.Tensor, aten._unsafe_index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}  # fmt: skip
# May take a single number in the memory of the CPU, like everything that works value by value.
_WITH_NUMBER = {
    aten.fill_.Tensor,
    aten.where.self,
    aten.masked_fill.Tensor,
    aten.masked_fill_.Tensor,
    aten.index_fill.int_Tensor,
}
_MATH_ATTENTION = 0


class _Memory:
    """Counts the bytes of living tensors, each piece of memory once: what `torch.cuda.max_memory_allocated` calls allocated by tensors."""

    def __init__(self) -> None:
        self.now, self.peak = 0, 0
        self._pieces: dict[int, list[int]] = {}  # address -> tensors on it, bytes

    def hold(self, tensor: StandIn) -> None:
        """Count a new tensor, until it goes."""
        storage = tensor.held.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if size:
            piece = self._pieces.setdefault(address, [0, size])
            self.now += size if not piece[0] else 0
            piece[0] += 1
            self.peak = max(self.peak, self.now)
            # Not a weak reference, with which PyTorch does not let a parameter move.
            tensor.piece = _Piece(address)  # type: ignore[attr-defined]

    def release(self, address: int) -> None:
        """One tensor less."""
        piece = self._pieces[address]
        piece[0] -= 1
        if not piece[0]:
            self.now -= piece[1]
            del self._pieces[address]

    def forget_peak(self, *_: Any) -> None:
        """Begin anew with what is held now."""
        self.peak = self.now


_memory = _Memory()


class _Piece:
    """Goes with its tensor."""

    def __init__(self, address: int) -> None:
        self.address = address

    def __del__(self) -> None:
        _memory.release(self.address)


class StandIn(Tensor):
    """A tensor of the device.

    Attributes:
        held: the same numbers in the memory of the CPU.
    """

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, requires_grad: bool = False) -> StandIn:
        """Wrap a tensor of the CPU, whose memory it shares."""
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, layout=held.layout,
            device=DEVICE, requires_grad=requires_grad or held.requires_grad,
        )  # fmt: skip
        made.held = held.detach() if held.requires_grad else held
        _memory.hold(made)
        return made  # type: ignore[no-any-return]

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"StandIn({self.held!r})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Files are read with map_location="cpu" here, so the device need not be written."""
        return self.held.clone().requires_grad_(self.requires_grad).__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            memo[id(self)] = copied = StandIn(self.held.clone(), self.requires_grad)
            if getattr(self, "_is_param", False):
                copied._is_param = True  # type: ignore[attr-defined]
        return memo[id(self)]

    def tolist(self) -> Any:
        """The numbers."""
        return self.held.tolist()


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation of PyTorch: checked as CUDA does, computed on the CPU.

    Raises:
        NotImplementedError: this build of PyTorch has no kernel of CUDA for it.
        RuntimeError: tensors of two devices.
    """
    if func is aten._fused_sdp_choice.default:
        return _MATH_ATTENTION  # the others are kernels of CUDA
    if func is aten.is_pinned.default:
        return True
    if func is aten._pin_memory.default:
        return args[0]
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    ours = any(isinstance(tensor, StandIn) for tensor in tensors)
    asked = kwargs.get("device")
    if not ours and not _is_cuda(asked):
        return func(*args, **kwargs)
    if not torch._C._dispatch_has_computed_kernel_for_dispatch_key(func.name(), "CUDA"):
        raise NotImplementedError(f"Could not run '{func.name()}' with arguments from the 'CUDA' backend.")
    if ours and func not in _COPIES:
        _check_devices(func, args, tensors)
    own_args, own_kwargs = tree_map_only(StandIn, lambda tensor: tensor.held, (args, kwargs))
    own_kwargs.pop("pin_memory", None)
    if asked is not None:
        own_kwargs["device"] = _CPU
    result = func(*own_args, **own_kwargs)
    if func is aten.copy_.default and not isinstance(args[0], StandIn):
        return args[0]
    if asked is not None and not _is_cuda(asked):
        return result
    wrapped = tree_map_only(Tensor, lambda tensor: tensor if isinstance(tensor, StandIn) else StandIn(tensor), result)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if ours else wrapped


def _check_devices(func: Any, args: Any, tensors: list[Tensor]) -> None:
    others = [tensor for tensor in tensors if not isinstance(tensor, StandIn)]
    if func in _INDEXED:
        values = args[2] if len(args) > 2 else args[0]
        others = [] if isinstance(args[0], StandIn) and (isinstance(values, StandIn) or not values.ndim) else others
    elif torch.Tag.pointwise in func.tags or func in _WITH_NUMBER or "foreach" in func.name():
        others = [tensor for tensor in others if tensor.ndim]
    if others:
        shapes = ", ".join(f"{tensor.device} {tuple(tensor.shape)}" for tensor in tensors)
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {shapes} in {func}")


def _is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


class _Factories(TorchDispatchMode):
    """Operations without a tensor of the device, which may ask for one."""

    def __torch_dispatch__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


class Generator(torch.Generator):
    """A generator that knows the device it was asked for."""

    asked: torch.device

    def __new__(cls, device: Any = "cpu") -> Generator:
        """Of the CPU, whatever it says."""
        made: Generator = super().__new__(cls, device="cpu")
        made.asked = DEVICE if _is_cuda(device) else _CPU
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """As asked."""
        return self.asked


class _Calls(TorchFunctionMode):
    """What has to be seen before PyTorch's C++, which would ask the driver."""

    def __torch_function__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.device:
            return func(*args, **kwargs)
        if isinstance(kwargs.get("generator"), torch.Generator):
            _check_generator(func, args, kwargs)
        if args and isinstance(args[0], StandIn):
            if func in (Tensor.numpy, Tensor.__array__):
                raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first.")  # fmt: skip
            if func in (Tensor.__getitem__, Tensor.__setitem__):
                args = (args[0], _without_lists(args[1]), *args[2:])
            if func is Tensor.new_tensor:
                return torch.tensor(args[1], **{"dtype": args[0].dtype, "device": DEVICE, **kwargs})
        if func is Tensor.cuda:
            func, args, kwargs = Tensor.to, (args[0], DEVICE), {}
        return func(*map(_numbered, args), **{name: _numbered(value) for name, value in kwargs.items()})


def _check_generator(func: Any, args: Any, kwargs: dict[str, Any]) -> None:
    device = kwargs.get("device") or next((leaf.device for leaf in tree_leaves(args) if isinstance(leaf, Tensor)), _CPU)
    wanted, found = torch.device(device).type, kwargs["generator"].device.type
    if wanted != found:
        raise RuntimeError(f"Expected a '{wanted}' device type for generator but found '{found}' in {func}")


def _without_lists(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(_without_lists(part) for part in index)
    return torch.tensor(index) if isinstance(index, list | np.ndarray) else index


def _numbered(value: Any) -> Any:
    """The device with its number, for which the driver is asked else."""
    return DEVICE if isinstance(value, torch.device | str) and str(value) == "cuda" else value


def _by_way_of_the_cpu(function: Any) -> Any:
    """`torch.tensor` and the like, which write numbers of Python into memory themselves."""

    def made(*args: Any, **kwargs: Any) -> Any:
        if not _is_cuda(kwargs.get("device")) or any(isinstance(value, StandIn) for value in args):
            return function(*args, **kwargs)
        requires_grad = kwargs.pop("requires_grad", False)
        return function(*args, **{**kwargs, "device": _CPU}).to(DEVICE).requires_grad_(requires_grad)

    return made


class _Moment:
    """An event or a stream: everything is done already."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def record(self, *_: Any) -> None:
        pass

    synchronize = wait = wait_stream = wait_event = record

    def query(self) -> bool:
        return True

    def elapsed_time(self, _: Any) -> float:
        return 1.0


def _nothing(*_: Any, **__: Any) -> None:
    pass


def install() -> None:
    """Give this process the device, for good."""
    properties = types.SimpleNamespace(name="stand-in", total_memory=1 << 36, multi_processor_count=1, major=9, minor=0)
    answers: dict[str, Any] = {
        "is_available": lambda: True, "is_initialized": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0,
        "get_device_name": lambda *_: "stand-in", "get_device_capability": lambda *_: (9, 0), "get_device_properties": lambda *_: properties,
        "is_bf16_supported": lambda *_, **__: True, "max_memory_allocated": lambda *_: _memory.peak,
        "memory_allocated": lambda *_: _memory.now, "max_memory_reserved": lambda *_: _memory.peak, "reset_peak_memory_stats": _memory.forget_peak,
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": lambda state, *_: torch.set_rng_state(state), "get_rng_state_all": lambda: [torch.get_rng_state()],
        "Event": _Moment, "Stream": _Moment, "current_stream": _Moment, "default_stream": _Moment, "stream": lambda *_: contextlib.nullcontext(),
    }  # fmt: skip
    for name in ("_lazy_init", "set_device", "synchronize", "empty_cache", "manual_seed", "manual_seed_all"):
        answers[name] = _nothing
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    torch._C._cuda_setDevice = _nothing
    torch.Generator = Generator  # type: ignore[misc]
    torch.tensor, torch.as_tensor, torch.asarray = map(
        _by_way_of_the_cpu, (torch.tensor, torch.as_tensor, torch.asarray)
    )
    # A view of a tensor made elsewhere has a version, which tensors of the inference mode have not.
    torch.inference_mode = lambda mode=True: torch.no_grad() if mode else contextlib.nullcontext()  # type: ignore[assignment,misc]
    torch.is_inference_mode_enabled = lambda: not torch.is_grad_enabled()
    Tensor.pin_memory = lambda self, *_: self  # type: ignore[assignment,method-assign]  # also called in threads
    torch.backends.cudnn.enabled = False
    # A module keeps its parameters when it moves, as on a GPU; they change their class here.
    torch.__future__.set_swap_module_params_on_conversion(True)
    _foreach_utils._foreach_supported_types.append(StandIn)
    _Calls().__enter__()
    _Factories().__enter__()
