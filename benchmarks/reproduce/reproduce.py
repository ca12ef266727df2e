"""Run a table of a paper and set our numbers beside the printed ones.

    nox -s reproduce -- mmtl-octl table2 --data-root DATA --scale paper|small|smoke
    nox -s reproduce -- all --scale smoke

paper: the real thing, on the data of the paper; its cost is estimated first. small: minutes to some hours on a processor, on small real
sets; how much is left is shown as it goes. smoke: phantoms, one repetition, a few steps; shows that every run of the table works and
says nothing about methods.
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
from dart_core.experiment import Executor, LocalExecutor, RayExecutor, SlurmExecutor, data_looked_at_once, run


def reproduce(table: Table, scale: Scale, executor: Executor, out: Path, yes: bool) -> int:
    """Run and write a table; how many runs did not come to their end. A number that is undefined is no failure: the table names it."""
    with data_looked_at_once(scale.work / "experiment"):
        return _reproduce(table, scale, executor, out, yes)


def _reproduce(table: Table, scale: Scale, executor: Executor, out: Path, yes: bool) -> int:
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


def executor_options(parser: argparse.ArgumentParser) -> None:
    """Options that say where the runs go."""
    parser.add_argument("--executor", choices=("local", "ray", "slurm"), default="local")
    parser.add_argument("--processes", type=int, help="local: runs at a time (1)")
    parser.add_argument(
        "--gpus", type=float, help="ray, slurm: of each run; with ray a share such as 0.25 too (1 where there are GPUs)"
    )
    parser.add_argument(
        "--timeout-hours", type=float, help="slurm: of each run (24); one that is stopped goes on with the next call"
    )
    parser.add_argument(
        "--slurm",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="slurm: a parameter of submitit, as often as needed: --slurm partition=gpu --slurm account=lab --slurm cpus_per_task=8",
    )


def executor_of(options: argparse.Namespace, work: Path) -> Executor:
    """Where the runs go.

    Raises:
        SettingError: options that do not belong together, or that the cluster cannot fulfil.
    """
    name = options.executor
    owners = {"processes": ("local",), "gpus": ("ray", "slurm"), "timeout_hours": ("slurm",), "slurm": ("slurm",)}
    for option, executors in owners.items():
        if getattr(options, option) not in (None, []) and name not in executors:
            flag = option.replace("_", "-")
            raise SettingError(
                f"--{flag} does nothing with --executor {name}", remedy=f"it is for {' and '.join(executors)}"
            )
    if name == "ray":
        return RayExecutor(gpus=options.gpus)
    if name == "slurm":
        return SlurmExecutor(work / "slurm", **slurm_parameters(options))
    processes = 1 if options.processes is None else options.processes
    if processes < 1:
        raise SettingError("--processes starts at 1")
    # Runs that share the processor share its cores; the words stay the same, so that the address does.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    return LocalExecutor(processes)


def slurm_parameters(options: argparse.Namespace) -> dict[str, str | int]:
    """What submitit is given.

    Raises:
        SettingError: no such number of GPUs or hours, or a parameter that is no NAME=VALUE.
    """
    gpus = 1 if options.gpus is None else options.gpus
    hours = 24 if options.timeout_hours is None else options.timeout_hours
    if gpus < 0 or gpus != int(gpus):
        raise SettingError(f"SLURM gives whole GPUs, not {gpus:g}", remedy="give --gpus 0, 1, ...")
    if hours * 60 < 1:
        raise SettingError(f"--timeout-hours {hours:g} is less than a minute")
    parameters: dict[str, str | int] = {"timeout_min": int(hours * 60)}
    if gpus:
        parameters["gpus_per_node"] = int(gpus)
    for text in options.slurm:
        key, sign, value = text.partition("=")
        if not (key and sign and value):
            raise SettingError(f"--slurm {text} is no NAME=VALUE", remedy="write it as in --slurm partition=gpu")
        parameters[f"slurm_{key}"] = int(value) if value.isdecimal() else value
    return parameters


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
    executor_options(parser)
    parser.add_argument("--yes", action="store_true", help="start the paper's scale without asking")
    arguments = parser.parse_args()
    known = known_tables()
    if arguments.package is None:
        print(listing(known))
        return 0
    wanted = [key for key in known if arguments.package in ("all", key[0]) and arguments.table in ("", key[1])]
    stopped: dict[str, DartError] = {}
    failures = 0
    try:
        if not wanted:
            load(arguments.package, arguments.table)  # says what there is
        if arguments.repetitions is not None and arguments.repetitions < 1:
            raise SettingError("--repetitions starts at 1")
        data = Path(arguments.data_root) if arguments.data_root else None
        scale = Scale(arguments.scale, arguments.work.resolve(), data, arguments.repetitions)
        executor = executor_of(arguments, scale.work)
        out = arguments.out or scale.work / "tables"
        for key in wanted:
            try:
                failures += reproduce(load(*key), scale, executor, out, arguments.yes)
            except Interrupted:
                raise
            except DartError as error:  # such as a data set that is not there, which the other tables may not need
                stopped[" ".join(key)] = error
                print(f"reproduce: error: {' '.join(key)}: {error}", file=sys.stderr)
    except (KeyboardInterrupt, Interrupted) as stop:
        print("reproduce: stopped; the same words go on where it was", file=sys.stderr)
        return stop.exit_status if isinstance(stop, Interrupted) else 130
    except DartError as error:
        print(f"reproduce: error: {error}", file=sys.stderr)
        return 2
    if stopped and len(wanted) > 1:
        print(
            f"reproduce: {len(stopped)} of {len(wanted)} tables were not made, for what stands above: {', '.join(stopped)}",
            file=sys.stderr,
        )
    if stopped:
        return 2
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
