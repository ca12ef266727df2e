"""One run: device, precision, processes, seeds, output folder, checkpoints, and stopping without loss.

A method owns its loop and calls this::

    with Run(settings, config) as run:
        network = run.prepare(Network())
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        run.restore(network=network, optimizer=optimizer)
        for step, batch in run.steps(batches, total=10_000):
            loss = run.optimise(optimizer, lambda part: criterion(network(part["image"]), part["mask"]), batch)
            run.log.write(step, loss=loss)
        run.finish({"loss": float(loss)})

`torchrun --nproc-per-node N` around the same command spreads each batch over N processes.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import enum
import json
import os
import platform
import random
import re
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
import yaml
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dart_core import __version__, sharding
from dart_core.batches import Batches
from dart_core.checkpoint import (
    checkpoint_path,
    load_state,
    newest_checkpoint,
    prune_checkpoints,
    save_checkpoint,
    unwrap,
)
from dart_core.errors import CheckpointError, DeviceError, Interrupted, OutputError, SettingError
from dart_core.files import is_half_written, output_errors, write_atomic
from dart_core.log import Log, plain_number
from dart_core.settings import RunSettings, ShardedRunSettings

CONFIG = "config.yaml"
METRICS = "metrics.json"
CHECKPOINTS = "checkpoints"
_MARK = "# Settings of a dart-core run"
_claims: dict[Path, bool] = {}  # folder that this process has claimed -> whether it made it
_MAY_CHANGE = {"device", "workers", "processes", "out", "checkpoint_every", "track", "sharding"}
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Stateful(Protocol):
    """What a checkpoint can hold: a network, optimiser, scheduler, or anything with these two methods."""

    def state_dict(self) -> Any:
        """The state in tensors and plain values."""

    def load_state_dict(self, state_dict: Any, /) -> Any:
        """Take the state on."""


class Run:
    """Where and how a method's loop runs. A context manager; creating it touches nothing.

    Args:
        settings: device, precision, folder and so on.
        config: the method's own settings (dataclass or mapping; a `RunSettings` among them is taken for `settings`). Written to
            config.yaml, and compared with what lies there on --resume.

    Attributes:
        out: output folder.
        device: device of this process.
        rank: number of this process, from 0.
        world_size: number of processes.
        is_main: True in process 0, which alone writes files.
        log: metrics.jsonl, progress, tracker.
        step: number of steps done.

    Raises:
        DeviceError: on entering: the device is not there.
        OutputError: on entering: the folder is not empty, not ours to overwrite, or holds nothing to resume.
        SettingError: on entering: --resume with settings that would change the result.
    """

    def __init__(self, settings: RunSettings, config: Any = None) -> None:
        self.settings = settings
        fields = _fields(config or {})
        own = {key: value for key, value in fields.items() if not isinstance(value, RunSettings)}
        self.config = flat_settings({**own, "run": settings})
        self.out = settings.out
        self.rank, self.world_size, self.step = 0, 1, 0
        self.device = torch.device("cpu")
        self._stateful: dict[str, Stateful] = {}
        self._parallel: list[nn.Module] = []
        self._sharded = False
        self._rng: dict[str, Any] | None = None
        self._newest: Path | None = None
        self._older: Path | None = None
        self._begun = False
        self._signal = 0
        self._stepping = False
        self._cleanup = contextlib.ExitStack()

    @property
    def is_main(self) -> bool:
        """True in the process that writes files."""
        return self.rank == 0

    def __enter__(self) -> Run:
        with contextlib.ExitStack() as stack:
            distributed = "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1
            self.device = find_device(self.settings.device, distributed)
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)
                stack.enter_context(deterministic_convolutions())
            if distributed:
                _join_processes()
                self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
            self.log = Log(self.out, main=False)
            self._on_main(self._claim)
            stack.callback(lambda: self.log.close())
            self._scaler = torch.amp.GradScaler(self.device.type, enabled=self.settings.precision == "fp16")
            # The same in all processes, so that whatever is drawn before the first step agrees.
            _seed(self.settings.seed)
            if threading.current_thread() is threading.main_thread():
                for number in (signal.SIGINT, signal.SIGTERM):
                    stack.callback(signal.signal, number, signal.signal(number, self._on_signal))
            self._cleanup = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._cleanup.close()

    def _on_main(self, action: Callable[[], object]) -> None:
        """Let process 0 act while the others wait; where it fails, it alone says why and all of them leave."""
        error = None
        if self.is_main:
            try:
                action()
            except Exception as caught:
                error = caught
        status = torch.tensor(0 if error is None else getattr(error, "exit_status", 1))
        if self.world_size > 1:
            dist.broadcast(status, 0)
        if error is not None:
            raise error
        if status:
            raise SystemExit(int(status))

    def _claim(self) -> None:
        # An absent tracker is found out before an old run is replaced.
        self.log = Log(self.out, self.settings.track)
        claim_folder(self.out, self.config, self.settings.resume, self.settings.overwrite)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        impatient = number == signal.SIGINT and self._signal == number
        self._signal = number
        if impatient or not self._stepping:
            raise self._interrupted(number, f"step {self.step}")

    def _interrupted(self, number: int, where: str) -> BaseException:
        """What to raise: of several processes, the main one says what happened."""
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        error = Interrupted(f"stopped by {name} after {where}", signal_number=number, remedy="--resume continues")
        return error if self.is_main else SystemExit(error.exit_status)

    def _agreed_signal(self) -> int:
        """The signal that reached any of the processes; they must all stop after the same step."""
        if self.world_size == 1:
            return self._signal
        number = torch.tensor(self._signal)
        dist.all_reduce(number, dist.ReduceOp.MAX)
        return int(number)

    def prepare(self, module: nn.Module) -> nn.Module:
        """Move a network to the device and set it up for the settings: memory format, compilation, several processes.

        Create the optimiser from the returned module's parameters. A network that is spread over the processes
        (`ShardedRunSettings`) must be called in all of them, or `gathered`; `weights` gives its state.
        """
        module = module.to(self.device)
        if self.settings.channels_last:
            for parameter in module.parameters():
                parameter.data = _channels_last(parameter.data)
        if self.world_size > 1 and self.device.type == "cuda":
            convert: Callable[[nn.Module], nn.Module] = nn.SyncBatchNorm.convert_sync_batchnorm
            module = convert(module)
        if self.settings.compile:
            module.compile()
        if self.world_size > 1 and any(parameter.requires_grad for parameter in module.parameters()):
            if isinstance(self.settings, ShardedRunSettings) and self.settings.sharding == "fsdp":
                module, self._sharded = sharding.shard(module, self.device), True
            else:
                device_ids = [self.device] if self.device.type == "cuda" else None
                module = DistributedDataParallel(module, device_ids=device_ids)
            self._parallel.append(module)
        return module

    def gathered(self, module: nn.Module) -> contextlib.AbstractContextManager[None]:
        """A context in which one process may call a network by itself, without gradient; all processes must enter and leave.

        It matters where the network is spread over the processes, and does nothing to any other.
        """
        return sharding.gathered(module) if sharding.is_sharded(module) else torch.no_grad()

    def weights(self, module: nn.Module) -> dict[str, Tensor]:
        """The parameters and buffers of a network by name, whole, as copies on the CPU.

        Where the network is spread over the processes, all of them must call this.
        """
        state: dict[str, Tensor] = sharding.whole(unwrap(module).state_dict())
        return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}

    def restore(self, **stateful: Stateful) -> int:
        """Register what the checkpoints hold; with --resume, load the newest good checkpoint. Call it once.

        The states of the random number generators and of the fp16 gradient scaler are added, and are back in place when
        `steps` gives out the first batch.

        Args:
            stateful: networks, optimisers, schedulers, anything with state_dict and load_state_dict, by name.

        Returns:
            The first step to do; 0 in a new run.

        Raises:
            CheckpointError: all checkpoints are damaged, one holds code, or it belongs to another network.
        """
        self._stateful = {n: unwrap(item) if isinstance(item, nn.Module) else item for n, item in stateful.items()}
        found = newest_checkpoint(self.out / CHECKPOINTS, self._warn) if self.settings.resume else None
        if found is not None:
            self._load(*found)
        elif self.settings.resume:
            self._warn(f"{self.out}: stopped before its first checkpoint; starting from step 0")
        self.log.truncate(self.step)
        return self.step

    def _load(self, path: Path, checkpoint: Mapping[str, Any]) -> None:
        if not {"step", "state", "scaler", "rng"} <= checkpoint.keys():
            raise CheckpointError("not a checkpoint of a run", where=path, remedy="check --out")
        names = checkpoint["state"].keys()
        if names != self._stateful.keys():
            raise CheckpointError(
                f"holds {', '.join(names)}; this run has {', '.join(self._stateful)}", where=path, remedy="check --out"
            )
        for name, item in (*self._stateful.items(), ("scaler", self._scaler)):
            state = checkpoint["scaler"] if item is self._scaler else checkpoint["state"][name]
            try:
                state = sharding.spread(state, item) if self._sharded else state
                load_state(item, state, path) if isinstance(item, nn.Module) else item.load_state_dict(state)
            except CheckpointError:
                raise
            except (ValueError, KeyError, RuntimeError, TypeError, AttributeError, IndexError) as error:
                raise CheckpointError(
                    f"its '{name}' does not fit this run ({error})", where=path, remedy="check --out"
                ) from error
        self.step, self._newest = checkpoint["step"], path
        if self.rank < len(checkpoint["rng"]):
            self._rng = checkpoint["rng"][self.rank]
        if self.world_size != len(checkpoint["rng"]):
            self._warn(f"{path}: written by {len(checkpoint['rng'])} processes, continued by {self.world_size}")

    def _warn(self, line: str) -> None:
        if self.is_main:
            print(f"warning: {line}", file=sys.stderr, flush=True)

    def save(self) -> None:
        """Write a checkpoint of the steps done so far and keep the one before it. `steps` does this by itself.

        Raises:
            OutputError: the disk is full; the older checkpoints are untouched.
        """
        states: list[Any] = [_rng_state(self.device)]
        if self.world_size > 1:
            own, states = states[0], [None] * self.world_size
            dist.all_gather_object(states, own)
        gathered = None
        if self._sharded:
            gathered = {n: sharding.whole(item.state_dict(), self.is_main) for n, item in self._stateful.items()}
        self._on_main(lambda: self._write(states, gathered))

    def _write(self, rng: list[Any], state: Mapping[str, Any] | None) -> None:
        self.log.flush()
        path = checkpoint_path(self.out / CHECKPOINTS, self.step)
        path.parent.mkdir(exist_ok=True)
        if state is None:
            state = {name: item.state_dict() for name, item in self._stateful.items()}
        save_checkpoint(path, {"step": self.step, "state": state, "scaler": self._scaler.state_dict(), "rng": rng})
        if path != self._newest:  # a method may save the step that `steps` has saved
            self._older, self._newest = self._newest, path
        prune_checkpoints(path.parent, (self._newest, self._older))

    def steps(self, batches: Batches, total: int, label: str = "training") -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Give out (step, batch on the device) from the restored step up to `total`.

        After every `checkpoint_every`-th step and the last one a checkpoint is written. Ctrl-C or SIGTERM lets the step finish,
        writes a checkpoint and stops; a second Ctrl-C stops at once. A loop that is left by `break` writes no checkpoint.

        Args:
            batches: the joint batches; each process gets its share.
            total: steps of the whole run, those before a resume included.
            label: name on the progress bar.

        Raises:
            Interrupted: stopped by Ctrl-C or SIGTERM, after saving.
            OutputError: the disk is full.
        """
        if self.step >= total:
            return
        self._on_main(lambda: batches.share(self.world_size))
        first, pin = self.step, self.device.type == "cuda"
        loader = batches.loader(first, total, self.settings.workers, self.rank, self.world_size, pin)
        self._cleanup.callback(loader.close)
        if self._rng is not None:
            _set_rng_state(self._rng, self.device)
            self._rng = None
        elif self.rank > 0 and not self._begun:
            _seed(self.settings.seed, self.rank, self.step)
        self._begun = (
            True  # a further loop, of a method that calls this epoch by epoch, draws on as a resumed one would
        )
        self._stepping = True
        try:
            for step in self.log.progress(range(first, total), label, total, first):
                yield step, self.to_device(next(loader))
                self.step = step + 1
                number = self._agreed_signal()
                if number or self.step % self.settings.checkpoint_every == 0 or self.step == total:
                    self.save()
                if number:
                    raise self._interrupted(number, f"step {self.step} of {total}")
        finally:
            self._stepping = False
            loader.close()
        number = self._agreed_signal()
        if number:  # it came after the last look, while the last step was being saved
            raise self._interrupted(number, f"step {self.step} of {total}")

    def to_device(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A batch on this process's device, images in the memory format of the network."""
        moved = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}
        return {name: _channels_last(t) for name, t in moved.items()} if self.settings.channels_last else moved

    def autocast(self) -> torch.autocast:
        """Context in which the forward pass runs in the precision of the settings."""
        dtype = _DTYPES.get(self.settings.precision)
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)

    def optimise(
        self,
        optimizer: torch.optim.Optimizer,
        loss_function: Callable[[dict[str, Tensor]], Tensor],
        batch: Mapping[str, Tensor],
        network: nn.Module | None = None,
    ) -> Tensor:
        """One optimiser step on one batch.

        The batch is split into `accumulate` parts, weighted by their size: the step equals the undivided one where the loss is
        a mean over samples and no layer looks at the batch as a whole.

        Args:
            optimizer: its gradients are cleared first.
            loss_function: forward pass of a part of the batch up to the scalar loss; runs under autocast.
            batch: tensors (N, ...) by name.
            network: prepared network whose gradients the processes exchange with the last part only; None = all of them.

        Returns:
            The mean loss over the joint batch of all processes, without gradient.
        """
        optimizer.zero_grad(set_to_none=True)
        size = len(next(iter(batch.values())))
        count = min(self.settings.accumulate, size)
        parts = {name: tensor.tensor_split(count) for name, tensor in batch.items()}
        losses = []
        for index in range(count):
            part = {name: tensors[index] for name, tensors in parts.items()}
            weight = len(next(iter(part.values()))) / size
            with self._exchange(network, index == count - 1):
                with self.autocast():
                    loss = loss_function(part)
                self.backward(loss * weight)
            losses.append(loss.detach() * weight)
        self.step_optimizers(optimizer)
        return self.mean(torch.stack(losses).sum())

    @contextlib.contextmanager
    def _exchange(self, network: nn.Module | None, now: bool) -> Generator[None]:
        """Exchange gradients between the processes in this backward pass, or only add them up."""
        with contextlib.ExitStack() as stack:
            for module in [] if now else self._parallel:
                if network is None or network is module:
                    stack.enter_context(sharding.without_exchange(module))
            yield

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss, scaled where the precision is fp16."""
        torch.autograd.backward(self._scaler.scale(loss))

    def step_optimizers(self, *optimizers: torch.optim.Optimizer) -> None:
        """Step the optimisers whose losses went through `backward` since the last call.

        In fp16, an optimiser whose gradients overflowed is left out this time. Several optimisers belong into one call, because
        the scale changes at the end of it.
        """
        for optimizer in optimizers:
            self._scaler.step(optimizer)
        self._scaler.update()

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over all processes."""
        if self.world_size == 1:
            return value
        value = value.detach().clone()
        dist.all_reduce(value)
        return value / self.world_size

    def from_main(self, value: Any) -> Any:
        """What process 0 holds, in all processes: numbers, texts, tensors on the CPU, and collections of them."""
        if self.world_size == 1:
            return value
        held = [value]
        dist.broadcast_object_list(held, 0)
        return held[0]

    def finish(self, metrics: Mapping[str, Any]) -> None:
        """Write metrics.json (nan and infinity as null).

        Raises:
            OutputError: the disk is full.
        """
        if self.is_main:
            text = json.dumps(_plain(metrics), indent=2, ensure_ascii=False)
            write_atomic(self.out / METRICS, text + "\n")


def _plain(value: Any) -> Any:
    """Settings and results in the types of YAML and JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(_fields(value))
    if isinstance(value, Mapping):
        return {str(_plain(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, enum.Enum):
        return _plain(value.value)
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if value is None or isinstance(value, bool | int | float | str):
        return plain_number(value)
    raise TypeError(f"{value!r} is neither a number, text, path nor a collection of them")


def _fields(config: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(config):
        return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return dict(config)


@contextlib.contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """PyTorch computes with so many CPU threads; as a context or decorator."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def flat_settings(config: Any) -> dict[str, Any]:
    """Settings in one flat mapping whose keys are the flags, so that it can be given back as --config.

    Args:
        config: a dataclass (or mapping); the fields of dataclasses nested in it stand beside its own.

    Raises:
        ValueError: two settings of the same name.
    """
    flat: dict[str, Any] = {}
    for key, value in _fields(config).items():
        added = flat_settings(value) if dataclasses.is_dataclass(value) else {key: _plain(value)}
        if twice := added.keys() & flat.keys():
            raise ValueError(f"several settings have the names {sorted(twice)}")
        flat |= added
    return {key: value for key, value in flat.items() if key not in ("resume", "overwrite")}


def claim_folder(out: Path, config: Mapping[str, Any], resume: bool | None = None, overwrite: bool = False) -> None:
    """Take an output folder and write config.yaml, or refuse before anything in it is touched.

    Args:
        out: the folder; made where it is missing.
        config: what `flat_settings` gives.
        resume: continue the run that lies there, less what a killed process had half written; None for commands that cannot.
        overwrite: delete the run that lies there. Only a folder whose config.yaml is ours is ever emptied.

    Raises:
        OutputError: not empty, nothing to resume, not ours to overwrite, holds what the command reads, or cannot be written.
        SettingError: resuming with settings that would change the result.
    """
    file = out / CONFIG
    with output_errors(out):
        if out.exists() and not out.is_dir():
            raise OutputError("is a file, not a folder", where=out, remedy="give another --out")
        if resume:
            if not file.is_file():
                raise OutputError("no run to resume here", where=out, remedy="check --out, or leave out --resume")
            _compare(file, config)
            for path in filter(is_half_written, out.rglob("*")):
                path.unlink(missing_ok=True)
            return
        if out.is_dir():
            if not all(map(is_half_written, out.iterdir())):
                ours = file.is_file() and file.read_text(encoding="utf-8", errors="replace").startswith(_MARK)
                if not ours:
                    raise OutputError("not empty, and what it holds is no run", where=out, remedy="give another --out")
                if not overwrite:
                    other = "give another --out" if resume is None else "--resume continues it"
                    raise OutputError("holds a run already", where=out, remedy=f"{other}, --overwrite replaces it")
                _refuse_to_delete(out, config)
            # The settings file goes last: until then the folder is still known as a run.
            for path in sorted(out.iterdir(), key=lambda path: path == file):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        made = not out.exists()
        out.mkdir(parents=True, exist_ok=True)
    header = f"{_MARK} (dart-core {__version__}, torch {torch.__version__}, Python {platform.python_version()})\n"
    write_atomic(file, header + yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
    _claims[out.absolute()] = made


def _refuse_to_delete(out: Path, config: Mapping[str, Any]) -> None:
    """Keep --overwrite from deleting what the command reads, such as the pool or model of the run that it replaces."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            value = list(value.values())
        for text in value if isinstance(value, list) else [value]:
            if key == "out" or not isinstance(text, str) or not os.path.lexists(text):
                continue
            path = Path(text).resolve()
            if out.resolve() in (path, *path.parents):
                flag = key.replace("_", "-")
                raise OutputError(f"holds what --{flag} names", where=out, remedy="give another --out")


def give_back_folders() -> None:
    """Undo the claims of this process that came to nothing: folders that hold config.yaml alone.

    A command that refuses its input after the claim then leaves no trace, and is given again as it was.
    """
    for out, made in _claims.items():
        with contextlib.suppress(OSError):
            if [path.name for path in out.iterdir()] == [CONFIG]:
                (out / CONFIG).unlink()
                if made:
                    out.rmdir()
    _claims.clear()


def _compare(file: Path, config: Mapping[str, Any]) -> None:
    """Refuse to continue a run with other settings than it started with."""
    try:
        before = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingError(f"cannot be read ({error})", where=file, remedy="start anew with --overwrite") from error
    before = before if isinstance(before, dict) else {}
    now = yaml.safe_load(yaml.safe_dump(dict(config)))
    for key in (*now, *(key for key in before if key not in now)):
        old, new = before.get(key, "not set"), now.get(key, "not set")
        if key not in _MAY_CHANGE and old != new:
            raise SettingError(
                f"{key} was {old} when the run started and is {new} now",
                where=file,
                remedy="resume with the old value, or start a new run",
            )


def find_device(name: str, distributed: bool = False) -> torch.device:
    """The device that `--device` names.

    Args:
        name: cpu, cuda, cuda:N or auto.
        distributed: several processes were started, each with its own device.

    Raises:
        SettingError: no such name.
        DeviceError: the device is not there.
    """
    match = re.fullmatch(r"auto|cpu|cuda(?::(\d+))?", name)
    if match is None:
        raise SettingError(f"--device is '{name}'", remedy="give cpu, cuda, cuda:N or auto")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise DeviceError(
            f"--device is {name}, and PyTorch finds no CUDA device here",
            remedy="give --device cpu, or install the driver and a CUDA build of PyTorch",
        )
    if match[1] and distributed:
        raise SettingError(f"--device {name} names one device for several processes", remedy="give --device cuda")
    index = int(match[1] or (os.environ.get("LOCAL_RANK", "0") if distributed else torch.cuda.current_device()))
    count = torch.cuda.device_count()
    if index >= count:
        asked = f"--device is {name}" + (f", this is process {index} on this machine" if distributed else "")
        found = f"PyTorch finds {count} CUDA device{'s' if count > 1 else ''} here, numbered from 0"
        raise DeviceError(f"{asked}, and {found}", remedy="give a smaller number, or start fewer processes")
    return torch.device("cuda", index)


@contextlib.contextmanager
def deterministic_convolutions() -> Generator[None, None, None]:
    """Have cuDNN take only kernels that give the same gradient each time, without which a resumed run on a GPU is not the same."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before


def _join_processes() -> None:
    """Connect the processes that torchrun started, once for all runs of the program: it cannot be done a second time."""
    if not dist.is_initialized():
        # gloo carries what lies on the CPU (signals, random states), also where the networks are on CUDA.
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        atexit.register(dist.destroy_process_group)


def _channels_last(tensor: Tensor) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return tensor.contiguous(memory_format=formats[tensor.dim()]) if tensor.dim() in formats else tensor


def _seed(seed: int, *key: int) -> None:
    """Seed the global generators of Python, NumPy and PyTorch (all devices)."""
    if key:
        seed = int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0])
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (other libraries draw from it)
    torch.manual_seed(seed)


def _rng_state(device: torch.device) -> dict[str, Any]:
    legacy: Any = np.random.get_state()  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": (legacy[0], torch.from_numpy(legacy[1].astype(np.int64)), *legacy[2:]),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def _set_rng_state(state: Mapping[str, Any], device: torch.device) -> None:
    name, keys, *rest = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
