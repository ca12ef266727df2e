"""What the studies on real data share: options, where a record comes from, and where it goes."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dart_core.files import write_atomic

RESULTS = Path(__file__).parents[1] / "results"


def study_options(doc: str | None, name: str, smoke: str = "") -> argparse.ArgumentParser:
    """Options that every study has.

    Args:
        doc: of the script.
        name: of the script, for its working folder.
        smoke: what --smoke does; without it there is none.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=os.environ.get("DART_DATA"))
    parser.add_argument("--work", type=Path, default=Path("runs", name))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--seeds", type=int, default=3)
    if smoke:
        parser.add_argument("--smoke", action="store_true", help=smoke)
    return parser


def study_arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options of this call, `data_root` a folder."""
    arguments = parser.parse_args()
    if arguments.data_root is None:
        parser.error("give --data-root or set DART_DATA")
    arguments.data_root = Path(arguments.data_root)
    return arguments


def origin(task: str, threads: str = "one thread") -> dict[str, Any]:
    """First lines of a record: task, date, hardware, versions."""
    hardware = (platform.processor() or platform.machine(), threads, f"{os.cpu_count()} cores, CPU")
    return {
        "task": task,
        "date": datetime.date.today().isoformat(),
        "hardware": ", ".join(filter(None, hardware)),
        "versions": {"torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()},
    }


def write_record(record: Mapping[str, Any], out: Path, name: str) -> Path:
    """Write `<name>_<processor>_<date>.json` into a folder of records."""
    path = out / f"{name}_{platform.machine()}-cpu_{datetime.date.today().isoformat()}.json"
    write_atomic(path, json.dumps(record, indent=1, default=str) + "\n")
    return path
