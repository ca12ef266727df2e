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

import protocol
from page import write
from protocol import Board, Scale, results

from dart_core.errors import DartError, Interrupted
from dart_core.experiment import run
from dart_core.files import write_atomic

BOARDS = ("mri", "xrays")


def main() -> int:
    """Command line."""
    from reproduce import executor_of

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("boards", nargs="*", help=f"of {', '.join(BOARDS)}; none: all")
    parser.add_argument("--data-root", type=Path, default=os.environ.get("DART_DATA"))
    parser.add_argument("--scale", choices=("small", "smoke"), default="small")
    parser.add_argument("--repetitions", type=int, help="seeds, in place of three")
    parser.add_argument("--work", type=Path, default=Path("runs/leaderboard"), help="folder of the runs")
    parser.add_argument("--out", type=Path, help="folder of page and records; default: --work")
    parser.add_argument("--executor", choices=("local", "ray", "slurm"), default="local")
    parser.add_argument("--processes", type=int, default=1, help="runs at a time, with the local executor")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.boards if name not in BOARDS]
    if unknown:
        parser.error(f"there is no board {unknown[0]!r}; there are {', '.join(BOARDS)}")
    if arguments.processes < 1 or (arguments.repetitions is not None and arguments.repetitions < 1):
        parser.error("--processes and --repetitions start at 1")
    data = Path(arguments.data_root) if arguments.data_root else None
    scale = Scale(arguments.scale, arguments.work.resolve(), data, arguments.repetitions)
    out = (arguments.out or scale.work).resolve()
    out.mkdir(parents=True, exist_ok=True)
    records, failed = [], False
    try:
        executor = executor_of(arguments.executor, arguments.processes, scale.work)
        for name in arguments.boards or BOARDS:
            board: Board = importlib.import_module(name).BOARD
            entries = list(board.entries(scale))
            jobs = [job for entry in entries for one in entry.runs for job in (one.trained, one.predicted)]
            outcomes = run(jobs, scale.work / "experiment", executor)
            failed |= any(outcome.state != "done" for outcome in outcomes.values())
            record = results(board, scale, entries, outcomes)
            record |= {
                "date": datetime.date.today().isoformat(),
                "hardware": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
                "hours": round(sum(outcome.seconds or 0 for outcome in outcomes.values()) / 3600, 2),
            }
            write_atomic(out / f"leaderboard-{name}-{scale.name}.json", json.dumps(_portable(record), indent=1) + "\n")
            records.append(record)
    except (KeyboardInterrupt, Interrupted) as stop:
        print("leaderboard: stopped; the same words go on where it was", file=sys.stderr)
        return stop.exit_status if isinstance(stop, Interrupted) else 130
    except DartError as error:
        print(f"leaderboard: error: {error}", file=sys.stderr)
        return 2
    for record in records:
        print(f"\n{record['title']}")
        first = record["metrics"][0]
        for entry in sorted(record["entries"], key=lambda e: -(e["scores"][first]["mean"] or -1)):
            score = entry["scores"][first]
            value = "–" if score["mean"] is None else f"{score['mean']:.3f}"
            print(f"  {value}  {entry['method']} ({entry['needs']})")
    print(write(records, out / "leaderboard.html"))
    return 1 if failed else 0


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
