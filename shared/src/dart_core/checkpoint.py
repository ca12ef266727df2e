"""Checkpoints that survive a crash at any moment, and weight files to hand on.

A checkpoint is a `torch.save` archive. It is written beside its final name, flushed to the disk and then renamed, so that a
file under its final name is always complete. The archive carries a CRC-32 of each of its entries; all of them are checked
before anything is read, which finds truncated files and flipped bits. Nothing is ever unpickled: only tensors and plain
Python values are read (`weights_only=True`).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dart_core.errors import CheckpointError, DartError
from dart_core.files import write_atomic

SUFFIX = ".pt"
WEIGHTS = "model.safetensors"
"""The network of a run folder."""
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
_DIGEST = "sha256"
T = TypeVar("T")


def _plain(value: Any, key: str) -> Any:
    """The same state in types that `weights_only` loading accepts; views do not drag their whole storage along."""
    if isinstance(value, Tensor):
        value = value.detach().as_subclass(Tensor)
        return value.clone() if value.untyped_storage().nbytes() > value.nbytes else value
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in _PLAIN:
        return value
    if isinstance(value, Mapping):
        return OrderedDict((name, _plain(item, f"{key}.{name}")) for name, item in value.items())
    if type(value) in (list, tuple):
        return type(value)(_plain(item, f"{key}.{i}") for i, item in enumerate(value))
    raise TypeError(
        f"{key or 'state'} is a {type(value).__name__}; a checkpoint holds tensors, numbers, strings, None, and mappings, lists and tuples of them"
    )


def save_checkpoint(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically.

    Args:
        path: the file, by convention `*.pt`.
        state: nested mappings, lists and tuples of tensors, numbers, strings and None.

    Raises:
        OutputError: the disk is full, or the folder cannot be written; an older file of that name is untouched.
        TypeError: the state holds something else, which could not be read back safely.
    """
    buffer = io.BytesIO()
    torch.save(_plain(state, ""), buffer)
    # Released here: a view that a traceback keeps alive until garbage collection crashes Python 3.12.1.
    with buffer.getbuffer() as content:
        write_atomic(path, content)


def _damage(path: Path) -> str | None:
    """What is wrong with the archive as a file, or None."""
    try:
        with zipfile.ZipFile(path) as archive:
            # torch takes an entry that is marked as a folder for empty, and reads memory that nobody wrote.
            folder = next((info.filename for info in archive.infolist() if info.external_attr & 0x10), None)
            entry = folder or archive.testzip()
    except FileNotFoundError:
        raise CheckpointError("no such file", where=path, remedy="give the path of a checkpoint") from None
    except (OSError, ValueError, RuntimeError, NotImplementedError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        return str(error) or type(error).__name__
    return None if entry is None else f"checksum of {entry} does not match"


def load_checkpoint(path: str | os.PathLike[str], map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint; checks it for damage first and never executes what is in it.

    Args:
        path: a file that `save_checkpoint` or `torch.save` wrote.
        map_location: device that receives the tensors.

    Raises:
        CheckpointError: missing, truncated or altered file; a file with code in it; not a mapping.
    """
    path = Path(path)
    damage = _damage(path)
    if damage is not None:
        raise CheckpointError(
            f"damaged, or not a checkpoint ({damage})", where=path, remedy="use an older checkpoint or train anew"
        )
    return _read(path, map_location)


def read_weight_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a weight file of any origin holds: safetensors, or what `torch.save` wrote, its old form included.

    Args:
        path: `*.safetensors` is read as that, everything else as a PyTorch file.

    Returns:
        Tensors (on the CPU) and plain values by name, nested as in the file.

    Raises:
        CheckpointError: missing or damaged file, one with code in it, or one that is no mapping.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError("this is a folder, not a file", where=path, remedy="give the weight file in it")
    if path.suffix.lower() == ".safetensors":
        return dict(load_weights(path)[0])
    try:
        with open(path, "rb") as file:
            old = file.read(2) == b"\x80\x02"  # a bare pickle, as PyTorch wrote before 1.6
    except OSError:
        old = False
    return _read(path, "cpu") if old else load_checkpoint(path)


def _read(path: Path, map_location: str | torch.device) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"needs {_names_in(path)} to be run in order to load and was therefore not loaded",
            where=path,
            remedy="use a checkpoint that holds tensors and plain values only",
        ) from error
    except (RuntimeError, ValueError, KeyError, EOFError, AttributeError, TypeError) as error:
        raise CheckpointError(f"cannot be read ({error})", where=path, remedy="use another checkpoint") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"holds a {type(state).__name__}, not a mapping", where=path, remedy="use another file")
    return state


def _names_in(path: Path) -> str:
    try:
        return ", ".join(torch.serialization.get_unsafe_globals_in_checkpoint(path)) or "code"
    except Exception:  # the file is hostile: whatever its listing raises, it is refused all the same
        return "code"


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lies."""
    return folder / f"step-{step:09d}{SUFFIX}"


def prune_checkpoints(folder: Path, keep: Collection[Path | None]) -> None:
    """Delete all checkpoints in `folder` but those in `keep`."""
    for path in folder.glob(f"step-*{SUFFIX}"):
        if path not in keep:
            path.unlink(missing_ok=True)


def newest_checkpoint(
    folder: Path, warn: Callable[[str], None], map_location: str | torch.device = "cpu"
) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint in `folder` that is whole, with its content; None where there is no checkpoint at all.

    Args:
        folder: folder with `step-*.pt` files.
        warn: gets one line for each damaged checkpoint that is passed over.
        map_location: device that receives the tensors.

    Raises:
        CheckpointError: every checkpoint is damaged, or the newest whole one holds code.
    """
    paths = sorted(folder.glob(f"step-*{SUFFIX}"), reverse=True)
    for path in paths:
        damage = _damage(path)
        if damage is None:
            return path, _read(path, map_location)
        warn(f"{path}: damaged ({damage}); trying the checkpoint before it")
    if paths:
        raise CheckpointError("all checkpoints are damaged", where=folder, remedy="start anew with --overwrite")
    return None


def unwrap(module: nn.Module) -> nn.Module:
    """The network itself, without DistributedDataParallel around it."""
    return module.module if isinstance(module, DistributedDataParallel) else module


def load_state(module: nn.Module, state: Mapping[str, Any], where: str | os.PathLike[str]) -> None:
    """Copy weights into a network after checking that every name and shape fits.

    Args:
        module: the network, changed in place; untouched if anything does not fit.
        state: its parameters and buffers by name.
        where: the file they come from, for the message.

    Raises:
        CheckpointError: names the first key that is missing, superfluous, or of another shape.
    """
    module = unwrap(module)
    own = module.state_dict()
    problem = None
    for key in (*own, *state):
        if key not in state:
            problem = f"has no '{key}'"
        elif key not in own:
            problem = f"has '{key}', which this network has not"
        elif isinstance(own[key], Tensor) and not isinstance(state[key], Tensor):
            problem = f"'{key}' is not a tensor"
        elif isinstance(own[key], Tensor) and own[key].shape != state[key].shape:
            problem = f"'{key}' has shape {tuple(state[key].shape)}, in this network {tuple(own[key].shape)}"
        if problem is not None:
            raise CheckpointError(
                f"belongs to another network: {problem}", where=where, remedy="give the settings it was trained with"
            )
    module.load_state_dict(state)


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_weights(path: str | os.PathLike[str], module: nn.Module, metadata: Mapping[str, str]) -> None:
    """Write the parameters and buffers of a network as a safetensors file, atomically.

    Args:
        path: the file, by convention `*.safetensors`.
        module: the network.
        metadata: strings that travel with the weights (settings needed to build the network again, licence).

    Raises:
        OutputError: the disk is full, or the folder cannot be written; an older file of that name is untouched.
    """
    if any(hasattr(parameter, "full_tensor") for parameter in module.parameters()):
        raise TypeError("the network is spread over processes; give what `Run.weights` returns to `save_tensors`")
    # Tied weights share memory, which the format does not know: each name gets its own copy.
    state = {
        key: value.detach().cpu().as_subclass(Tensor).clone() for key, value in unwrap(module).state_dict().items()
    }
    save_tensors(path, state, metadata)


def save_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors by name as a safetensors file, atomically; `load_weights` reads it.

    Args:
        path: the file, by convention `*.safetensors`.
        tensors: on the CPU; no two may share memory.
        metadata: strings that travel with them.

    Raises:
        OutputError: the disk is full, or the folder cannot be written; an older file of that name is untouched.
    """
    tensors = {key: value.contiguous() for key, value in tensors.items()}
    write_atomic(path, to_safetensors(tensors, {**metadata, _DIGEST: _digest(tensors, metadata)}))


def _open_weights(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise CheckpointError("no such file", where=path, remedy="give the path of a .safetensors file") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"damaged, or not a safetensors file ({error})", where=path, remedy="export the weights again"
        ) from error


def load_weights(
    path: str | os.PathLike[str], module: nn.Module | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file.

    Args:
        path: a file that `save_weights` or any other program wrote.
        module: network to copy the weights into, if given.

    Returns:
        The tensors by name (on the CPU) and the metadata.

    Raises:
        CheckpointError: missing or damaged file, or weights of another network.
    """
    path = Path(path)
    with _open_weights(path) as file:
        metadata = dict(file.metadata() or {})
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    digest = metadata.pop(_DIGEST, None)
    if digest is not None and digest != _digest(state, metadata):
        raise CheckpointError("damaged (checksum does not match)", where=path, remedy="export the weights again")
    if module is not None:
        load_state(module, state, path)
    return state, metadata


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The strings that `save_weights` stored, without reading the tensors.

    Raises:
        CheckpointError: missing file, or not a safetensors file.
    """
    with _open_weights(Path(path)) as file:
        metadata = dict(file.metadata() or {})
    metadata.pop(_DIGEST, None)
    return metadata


# --- Networks that say what they are ---------------------------------------------------------------------------------


def weights_file(path: Path, name: str = WEIGHTS) -> Path:
    """The weight file that a run folder, or the path of the file itself, stands for.

    Args:
        path: the folder or the file.
        name: of the file in a folder.

    Raises:
        CheckpointError: a folder without one.
    """
    if not path.is_dir():
        return path
    if not (path / name).is_file():
        raise CheckpointError(f"holds no {name}", where=path, remedy="finish the training run (--resume)")
    return path / name


def save_model(folder: Path, network: nn.Module, key: str, model: Any) -> Path:
    """Write model.safetensors into a run folder with all that is needed to build the network again.

    Args:
        folder: of the run.
        network: its network.
        key: under which `read_model` finds the description; by convention the name of the package.
        model: a dataclass of plain values that describes the network.

    Returns:
        The file.

    Raises:
        OutputError: the file cannot be written.
    """
    save_weights(folder / WEIGHTS, network, {key: json.dumps(asdict(model))})
    return folder / WEIGHTS


def read_model(file: Path, key: str, parse: Callable[[Any], T], problem: str, remedy: str) -> T:
    """What a weight file says of its network.

    Args:
        file: of `weights_file`.
        key: as `save_model` was given it.
        parse: what JSON made of the description -> the description, or the network too. Whatever it raises for values that do
            not belong there means that the file holds something else.
        problem: what to say of a file that holds something else.
        remedy: what to do then.

    Raises:
        CheckpointError: no such file, a damaged one, or one that holds something else.
    """
    text = read_metadata(file).get(key)
    try:
        return parse(json.loads(text or ""))
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, DartError) as error:
        raise CheckpointError(problem, where=file, remedy=remedy) from error
