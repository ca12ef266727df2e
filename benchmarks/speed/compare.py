"""What the speed benchmarks share: alternating rounds, the machine's name, and records in benchmarks/results."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from dart_core.memory import keep_freed_memory

keep_freed_memory()  # as every command does


def alternate(functions: Mapping[str, Callable[[], object]], rounds: int = 5) -> dict[str, list[float]]:
    """Call the functions in turn, `rounds` times after one call each to warm up; seconds of every call by name.

    Every second round goes backwards, so that a machine that slows down does so for all of them.
    """
    for function in functions.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for index in range(rounds):
        for name in list(functions)[:: 1 if index % 2 == 0 else -1]:
            started = time.perf_counter()
            functions[name]()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def ratios(seconds: Mapping[str, list[float]]) -> dict[str, dict[str, float]]:
    """How many times faster than the first each of the others is: ratio of the medians, and spread of the rounds' ratios."""
    first, *others = seconds
    result = {}
    for name in others:
        each = [a / b for a, b in zip(seconds[first], seconds[name], strict=True)]
        result[name] = {
            "ratio": statistics.median(seconds[first]) / statistics.median(seconds[name]),
            "mean": statistics.fmean(each),
            "std": statistics.stdev(each) if len(each) > 1 else 0.0,
            "min": min(each),
            "max": max(each),
        }
    return result


def hardware(device: str = "cpu") -> str:
    """Processor and its vector instructions (hosts of one name differ in them), cores, and the GPU where it was used."""
    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
        processor = names[0].strip() if names else processor
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = f", {torch.cuda.get_device_name(device)}" if device.startswith("cuda") else ""
    return f"{processor} {torch.backends.cpu.get_cpu_capability()}, {cores} cores{gpu}"


def versions() -> dict[str, str]:
    """Python's, and those of the packages that the benchmark itself imports."""
    modules = {
        (value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None) or "").partition(".")[
            0
        ]
        for value in vars(sys.modules["__main__"]).values()
    }
    packages = importlib.metadata.packages_distributions()
    names = {name for module in {*modules, "torch", "numpy"} for name in packages.get(module, [])}
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in sorted(names)}}


def record(
    task: str, seconds: Mapping[str, list[float]], notes: Mapping[str, Any], out: Path, device: str = "cpu"
) -> Path:
    """Print the ratios and write the record.

    Args:
        task: name of the benchmark.
        seconds: what `alternate` returned; the first is what the others are compared with.
        notes: sizes, largest difference of the results, and what else belongs to the numbers.
        out: a folder, which gets `<task>_<hardware>_<date>.json`, or a file that ends in .json.
        device: "cpu", or the CUDA device that was used.
    """
    machine, today = hardware(device), date.today().isoformat()
    first, *_ = seconds
    found = ratios(seconds)
    print(f"{task} on {machine}, {torch.get_num_threads()} threads")
    for name, times in seconds.items():
        spread = statistics.stdev(times) if len(times) > 1 else 0.0
        print(f"  {name}: {statistics.median(times):.4g} s (std {spread:.2g}, {len(times)} rounds)")
    for name, values in found.items():
        low, high = values["min"], values["max"]
        print(f"  {name}: {values['ratio']:.4g} times as fast as {first} (rounds {low:.4g} to {high:.4g})")
    content = {
        "task": task,
        "date": today,
        "hardware": machine,
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "rounds": {name: list(times) for name, times in seconds.items()},
        "times_as_fast": found,
        "compared_with": first,
        **notes,
    }
    short = re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-")
    path = out if out.suffix == ".json" else out / f"{task}_{short}_{today}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"  {path}")
    return path
