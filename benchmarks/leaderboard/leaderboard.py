"""All methods that solve the same task, on the same data, under one protocol.

    nox -s leaderboard -- [mri] [xrays] --data-root DATA --scale small|smoke

Runs what is not done yet, and writes leaderboard.html (sorts and filters; a link to each run's report) and a record of each board.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import protocol
from page import ranked, write
from protocol import Board, Scale, results

from dart_core.errors import DartError, Interrupted
from dart_core.experiment import Executor, data_looked_at_once, run
from dart_core.files import write_atomic

BOARDS = ("mri", "xrays")


def main() -> int:
    """Command line."""
    from reproduce import executor_of, executor_options

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("boards", nargs="*", help=f"of {', '.join(BOARDS)}; none: all")
    parser.add_argument("--data-root", type=Path, default=os.environ.get("DART_DATA"))
    parser.add_argument("--scale", choices=("small", "smoke"), default="small")
    parser.add_argument("--repetitions", type=int, help="seeds, in place of three")
    parser.add_argument("--work", type=Path, default=Path("runs/leaderboard"), help="folder of the runs")
    parser.add_argument("--out", type=Path, help="folder of page and records; default: --work")
    executor_options(parser)
    arguments = parser.parse_args()
    unknown = [name for name in arguments.boards if name not in BOARDS]
    if unknown:
        parser.error(f"there is no board {unknown[0]!r}; there are {', '.join(BOARDS)}")
    if arguments.repetitions is not None and arguments.repetitions < 1:
        parser.error("--repetitions starts at 1")
    data = Path(arguments.data_root) if arguments.data_root else None
    scale = Scale(arguments.scale, arguments.work.resolve(), data, arguments.repetitions)
    out = (arguments.out or scale.work).resolve()
    out.mkdir(parents=True, exist_ok=True)
    records, failed, stopped = [], False, False
    try:
        executor = executor_of(arguments, scale.work)
        for name in arguments.boards or BOARDS:
            try:
                record, complete = board_record(importlib.import_module(name).BOARD, scale, executor)
            except Interrupted:
                raise
            except DartError as error:  # such as a data set that is not there, which the other board may not need
                print(f"leaderboard: error: {name}: {error}", file=sys.stderr)
                stopped = True
                continue
            failed |= not complete
            write_atomic(out / f"leaderboard-{name}-{scale.name}.json", json.dumps(_portable(record), indent=1) + "\n")
            records.append(record)
            write(records, out / "leaderboard.html")
    except (KeyboardInterrupt, Interrupted) as stop:
        print("leaderboard: stopped; the same words go on where it was", file=sys.stderr)
        return stop.exit_status if isinstance(stop, Interrupted) else 130
    except DartError as error:
        print(f"leaderboard: error: {error}", file=sys.stderr)
        return 2
    for record in records:
        print(f"\n{record['title']}")
        first = record["metrics"][0]
        for entry in ranked(record):
            score = entry["scores"][first]
            value = "–" if score["mean"] is None else f"{score['mean']:.3f}"
            print(f"  {value}  {entry['method']} ({entry['needs']})")
    if records:
        print(out / "leaderboard.html")
    return 2 if stopped else 1 if failed else 0


def board_record(board: Board, scale: Scale, executor: Executor) -> tuple[dict[str, Any], bool]:
    """Run what is not done yet; the record, and whether every run came to its end."""
    experiment = scale.work / "experiment"
    with data_looked_at_once(experiment):
        entries = list(board.entries(scale))
        jobs = [job for entry in entries for one in entry.runs for job in (one.trained, one.predicted)]
        outcomes = run(jobs, experiment, executor)
        record = results(board, scale, entries, outcomes)
    record |= {
        "date": datetime.date.today().isoformat(),
        "hardware": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "hours": round(sum(outcome.seconds or 0 for outcome in outcomes.values()) / 3600, 2),
    }
    return record, all(outcome.state == "done" for outcome in outcomes.values())


def _portable(record: dict) -> dict:  # type: ignore[type-arg]
    """Without the places of the runs on this machine."""
    entries = [
        {**entry, "runs": [{k: v for k, v in one.items() if k != "run"} for one in entry["runs"]]}
        for entry in record["entries"]
    ]
    return {**record, "entries": entries}


if __name__ == "__main__":
    assert protocol  # puts the folder of the tables on the path
    sys.exit(main())
