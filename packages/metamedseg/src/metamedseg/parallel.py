"""Tasks of a meta-epoch in several processes. Each result is a pure function of the step and the weights it starts from."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from dart_core.errors import DartError
from dart_core.memory import keep_freed_memory
from dart_core.processes import process_context
from metamedseg.method import Results, State, TaskResult, TaskTrainer


class TaskProcessError(DartError):
    """A process that trained tasks ended by itself."""


@contextlib.contextmanager
def results_of(trainer: TaskTrainer, device: torch.device, processes: int, threads: int) -> Iterator[Results]:
    """Give out what trains tasks: this process for one, else new ones, which end with the context.

    Args:
        trainer: of the tasks.
        device: of a single process; of several, CUDA spreads them over all devices.
        processes: how many.
        threads: CPU threads of each new one.
    """
    if processes == 1:
        yield lambda steps, theta, ahead: (
            ahead.pop(step) if step in ahead else trainer.train(step, theta, device) for step in steps
        )
        return
    pool = _Pool(trainer, device, processes, threads)
    try:
        yield pool
    finally:
        pool.close()


class _Pool:
    """Processes that wait for (step, weights) and answer with results."""

    def __init__(self, trainer: TaskTrainer, device: torch.device, processes: int, threads: int) -> None:
        context = process_context("metamedseg.method")
        self.processes: dict[Connection, BaseProcess] = {}
        for number in range(processes):
            own, other = context.Pipe()
            place = f"cuda:{number % torch.cuda.device_count()}" if device.type == "cuda" else str(device)
            process = context.Process(target=_serve, args=(other, trainer, place, threads), daemon=True)
            process.start()
            other.close()
            self.processes[own] = process

    def __call__(self, steps: Sequence[int], theta: State, ahead: dict[int, TaskResult]) -> Iterator[TaskResult]:
        weights = {name: value.numpy() for name, value in theta.items()}
        waiting, busy = [step for step in steps if step not in ahead], {}
        free = list(self.processes)
        for step in steps:
            while step not in ahead:
                while free and waiting:
                    connection = free.pop()
                    busy[connection] = waiting.pop(0)
                    self._talk(connection, lambda c=connection: c.send((busy[c], weights)))
                for ready in wait(list(busy)):
                    assert isinstance(ready, Connection)
                    ahead[busy.pop(ready)] = self._receive(ready)
                    free.append(ready)
            yield ahead.pop(step)

    def _receive(self, connection: Connection) -> TaskResult:
        kind, content = self._talk(connection, connection.recv)
        if kind == "bad input":
            raise DartError(content)
        if kind == "failure":
            raise RuntimeError(f"a process that trained a task failed:\n{content}")
        state = {name: torch.from_numpy(value) for name, value in content.pop("state").items()}
        return TaskResult(state=state, **content)

    def _talk(self, connection: Connection, action: Any) -> Any:
        try:
            return action()
        except (EOFError, OSError) as error:
            process = self.processes[connection]
            process.join(5)
            raise TaskProcessError(
                f"a process that trained a task ended with status {process.exitcode}",
                remedy="--resume continues; give fewer --processes if memory was short",
            ) from error

    def close(self) -> None:
        """End the processes."""
        for process in self.processes.values():
            process.kill()
        for connection, process in self.processes.items():
            process.join()
            connection.close()


def _serve(connection: Connection, trainer: TaskTrainer, place: str, threads: int) -> None:
    """In a new process: train what is asked for until the other side is gone."""
    keep_freed_memory()
    # Ctrl-C, and SIGTERM of a scheduler, reach the whole group; the main process ends these when it has saved.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    torch.set_num_threads(threads)
    device = torch.device(place)
    torch.backends.cudnn.deterministic = True  # as in a `Run`
    while True:
        try:
            step, weights = connection.recv()
        except EOFError:
            return
        try:
            theta = {name: torch.from_numpy(value.copy()) for name, value in weights.items()}
            result = trainer.train(step, theta, device)
            content = {**vars(result), "state": {name: value.numpy() for name, value in result.state.items()}}
            answer: tuple[str, Any] = ("result", content)
        except DartError as error:
            answer = ("bad input", str(error))
        except Exception:  # told to the main process, which raises it
            answer = ("failure", traceback.format_exc())
        connection.send(answer)


def _end_with(sentinel: int) -> None:
    """End this process as soon as its parent has ended, even by kill -9, in the middle of a task."""
    wait([sentinel])
    os._exit(1)
