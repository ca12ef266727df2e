"""Run a table of a paper and set our numbers beside the printed ones.

    nox -s reproduce -- mmtl-octl table2 --data-root DATA --scale paper|small|smoke
    nox -s reproduce -- all --scale smoke

paper: the real thing, on the data of the paper; its cost is estimated first. small: minutes to an hour on a processor, on small real
sets. smoke: phantoms, one repetition, a few steps; shows that every run of the table works and says nothing about methods.
Without a table: lists what there is. What is finished is never run again: stop it when you like, and give the same words.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from table import Scale, ScaleName, Table, gpu_hours, known_tables, load, our_numbers, with_needs, write

from dart_core.errors import DartError, Interrupted, SettingError
from dart_core.experiment import Executor, LocalExecutor, RayExecutor, SlurmExecutor, run


def reproduce(table: Table, scale: Scale, executor: Executor, out: Path, yes: bool) -> int:
    """Run and write a table; how many runs did not come to their end. A number that is undefined is no failure: the table names it."""
    cells = list(table.cells(scale))
    jobs = with_needs(job for cell in cells for jobs in cell.runs for job in jobs)
    experiment = scale.work / "experiment"
    hours, left = gpu_hours(table, jobs, experiment)
    print(f"{table.package} {table.name} ({scale.name}): {len(jobs)} runs, {left} to do", flush=True)
    if scale.name == "paper" and left:
        print(f"about {hours:.0f} GPU hours ({table.hours_from})")
        if not yes and not _agreed():
            raise SettingError("nothing was started", remedy="answer y, or give --yes")
    outcomes = run(jobs, experiment, executor)
    ours, missing = our_numbers(table, cells, outcomes)
    print(write(table, scale, ours, missing, out))
    if missing:
        print(f"{len(missing)} cells have no number; see {experiment / 'experiment.html'}", file=sys.stderr)
    return sum(outcome.state != "done" for outcome in outcomes.values())


def _agreed() -> bool:
    if not sys.stdin.isatty():
        return False
    return input("Start? [y/N] ").strip().lower() in ("y", "yes")


def executor_of(name: str, processes: int, work: Path) -> Executor:
    """Where the runs go."""
    if name == "ray":
        return RayExecutor(gpus=1)
    if name == "slurm":
        return SlurmExecutor(work / "slurm", gpus_per_node=1, timeout_min=24 * 60)
    # Runs that share the processor share its cores; the words stay the same, so that the address does.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    return LocalExecutor(processes)


def listing(tables: Mapping[tuple[str, str], Path]) -> str:
    """What there is, a package a line."""
    found: dict[str, list[str]] = {}
    for package, name in tables:
        found.setdefault(package, []).append(name)
    return "\n".join(f"{package}: {', '.join(names)}" for package, names in found.items())


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", nargs="?", help="such as mmtl-octl; all for every table there is")
    parser.add_argument("table", nargs="?", default="", help="such as table2; none: every table of the package")
    parser.add_argument("--data-root", type=Path, default=os.environ.get("DART_DATA"))
    parser.add_argument("--scale", choices=get_args(ScaleName), default="smoke")
    parser.add_argument("--repetitions", type=int, help="seeds or folds, in place of the table's own")
    parser.add_argument("--work", type=Path, default=Path("runs/reproduce"), help="folder of the runs")
    parser.add_argument("--out", type=Path, help="folder of the tables; default: tables/ in --work")
    parser.add_argument("--executor", choices=("local", "ray", "slurm"), default="local")
    parser.add_argument("--processes", type=int, default=1, help="runs at a time, with the local executor")
    parser.add_argument("--yes", action="store_true", help="start the paper's scale without asking")
    arguments = parser.parse_args()
    known = known_tables()
    if arguments.package is None:
        print(listing(known))
        return 0
    wanted = [key for key in known if arguments.package in ("all", key[0]) and arguments.table in ("", key[1])]
    try:
        if not wanted:
            load(arguments.package, arguments.table)  # says what there is
        if arguments.processes < 1 or (arguments.repetitions is not None and arguments.repetitions < 1):
            raise SettingError("--processes and --repetitions start at 1")
        data = Path(arguments.data_root) if arguments.data_root else None
        scale = Scale(arguments.scale, arguments.work.resolve(), data, arguments.repetitions)
        executor = executor_of(arguments.executor, arguments.processes, scale.work)
        out = arguments.out or scale.work / "tables"
        failures = sum(reproduce(load(*key), scale, executor, out, arguments.yes) for key in wanted)
    except (KeyboardInterrupt, Interrupted) as stop:
        print("reproduce: stopped; the same words go on where it was", file=sys.stderr)
        return stop.exit_status if isinstance(stop, Interrupted) else 130
    except DartError as error:
        print(f"reproduce: error: {error}", file=sys.stderr)
        return 2
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
