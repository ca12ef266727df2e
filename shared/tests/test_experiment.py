"""Grids of runs: addresses, what is repeated and what is not, whatever dies, on every executor."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock, Timeout
from hypothesis import given
from hypothesis import strategies as st

from dart_core import experiment
from dart_core.errors import InputError, SettingError
from dart_core.experiment import (
    PAGE,
    Job,
    LocalExecutor,
    Outcome,
    RayExecutor,
    SlurmExecutor,
    fingerprint,
    grid,
    run,
    summary,
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")

COUNTING = '''
"""Counts to --to, a step at a time, and keeps where it is in checkpoints; fails or dies where it is told to."""
import argparse, os, pathlib, signal, sys, time

def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("verb")
    parser.add_argument("--to", type=int, default=3)
    parser.add_argument("--pause", type=float, default=0)
    parser.add_argument("--add", type=pathlib.Path, nargs="*", default=[])
    parser.add_argument("--fail")
    parser.add_argument("--seed")
    parser.add_argument("--method")
    parser.add_argument("--datalist")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--out", type=pathlib.Path)
    given = parser.parse_args()
    if given.verb == "write":
        given.out.open("x").write("1")
        return
    place = given.out / "checkpoints" / "step.txt"
    if given.resume == (not place.is_file()):
        sys.exit("--resume belongs to a run that was begun, and to no other")
    start = int(place.read_text()) if given.resume else 0
    place.parent.mkdir(parents=True, exist_ok=True)
    (given.out / "process.txt").write_text(f"{os.getpid()} {os.environ.get('RAY_RAYLET_PID')}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for step in range(start, given.to):
        with open(given.out / "steps.txt", "a") as file:
            file.write(f"{step}\\n")
        place.with_name("new.txt").write_text(str(step + 1))
        place.with_name("new.txt").replace(place)
        time.sleep(given.pause)
        if given.fail == "die" and step == 1 and not given.resume or given.fail == "always die":
            os.kill(os.getpid(), signal.SIGKILL)
        if given.fail == "break":
            raise ZeroDivisionError("oops")
        if given.fail == "refuse":
            print("counting: error: scans.csv, row 3: no such file", file=sys.stderr)
            sys.exit(2)
    total = given.to + sum(int((other / "total.txt").read_text()) for other in given.add)
    (given.out / "total.txt").write_text(str(total))
'''


@pytest.fixture(autouse=True)
def counting(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A command `counting` that starts in no time."""
    place = tmp_path_factory.mktemp("commands")
    (place / "counting").mkdir()
    (place / "counting" / "__init__.py").write_text('__version__ = "1.0"\n')
    (place / "counting" / "cli.py").write_text(COUNTING)
    monkeypatch.syspath_prepend(place)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(place), os.environ.get("PYTHONPATH")))))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "counting"]:
        del sys.modules[name]


def steps(outcome: Outcome) -> list[int]:
    return [int(line) for line in (outcome.out / "steps.txt").read_text().splitlines()]


def go(jobs: list[Job], folder: Path, **options: int) -> dict[Job, Outcome]:
    return run(jobs, folder, LocalExecutor(2), every=0.02, **options)


# --- Addresses -------------------------------------------------------------------------------------------------------


def test_an_address_is_what_the_result_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scans = tmp_path / "scans.csv"
    scans.write_text("image\na.nii\n")
    (tmp_path / "a.nii").write_bytes(b"1")

    def address(*words: object, command: str = "counting", name: str = "") -> str:
        return Job(command, ("count", *words), name).address  # type: ignore[arg-type]

    first = address("--datalist", scans)
    assert address("--datalist", scans, name="mine") == first
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("scans.csv", "a.nii"):
        (moved / name).write_bytes((tmp_path / name).read_bytes())
    assert address("--datalist", moved / "scans.csv") == first
    (tmp_path / "a.nii").write_bytes(b"2")
    assert address("--datalist", scans) != first
    others = {address("--seed", 1), address("--seed", 2), address("--seed"), address("--seed", 1, "--to", 2), first}
    assert len(others) == 5
    before = address("--add", Job("counting", ("count", "--seed", 1)))
    assert address("--add", Job("counting", ("count", "--seed", 2))) != before
    monkeypatch.setattr("counting.__version__", "1.1")
    assert address("--datalist", moved / "scans.csv") != first


def test_data_that_have_moved_before_a_job_was_done(tmp_path: Path) -> None:
    places = [tmp_path / name for name in ("old", "new")]
    for place in places:
        place.mkdir()
        (place / "scans.csv").write_text("image\na.nii\n")
        (place / "a.nii").write_bytes(b"1")
    jobs = [Job("counting", ("count", "--datalist", place / "scans.csv", "--to", 3)) for place in places]
    home = tmp_path / "experiment" / "runs" / jobs[0].address
    begun = home / jobs[0].out / "checkpoints" / "step-1.pt"
    begun.parent.mkdir(parents=True)
    begun.touch()
    old = {"command": "counting", "words": ["count", "--datalist", str(places[0] / "scans.csv"), "--to", "3"]}
    (home / "job.json").write_text(json.dumps({**old, "out": jobs[0].out, "name": "x"}))
    for path in places[0].iterdir():
        path.unlink()
    assert go([jobs[1]], tmp_path / "experiment")[jobs[1]].state == "done"
    assert str(places[1] / "scans.csv") in json.loads((home / "job.json").read_text())["words"]
    assert not begun.exists()


@given(st.binary(max_size=200_000), st.integers(0, 199_999))
def test_all_bytes_of_a_file_count(content: bytes, where: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        one, other = Path(folder, "one"), Path(folder, "other")
        one.write_bytes(content)
        other.write_bytes(content)
        assert fingerprint(one) == fingerprint(other)
        other.write_bytes(content + b"x")
        assert fingerprint(other) != fingerprint(one)
        if content:
            changed = bytearray(content)
            changed[where % len(content)] ^= 1
            other.write_bytes(changed)
            assert fingerprint(other) != fingerprint(one)


def test_the_middle_of_a_large_file_counts(tmp_path: Path) -> None:
    content = bytearray(3_000_000)
    (tmp_path / "a").write_bytes(content)
    before = fingerprint(tmp_path / "a")
    content[1_500_000] = 1
    (tmp_path / "a").write_bytes(content)
    assert fingerprint(tmp_path / "a") != before


DECATHLON = {
    "name": "x",
    "training": [{"image": "./imagesTr/1.nii", "label": "./labelsTr/1.nii"}],
    "test": ["./imagesTs/2.nii"],
}
NNUNET = {"channel_names": {"0": "T1"}, "file_ending": ".nii"}


@pytest.mark.parametrize("content", [DECATHLON, NNUNET], ids=["decathlon", "nnunet"])
@pytest.mark.parametrize("name", ["imagesTr/1.nii", "labelsTr/1.nii", "imagesTs/2.nii"])
def test_the_images_of_a_json_list_count(content: dict[str, object], name: str, tmp_path: Path) -> None:
    for part in ("imagesTr/1.nii", "labelsTr/1.nii", "imagesTs/2.nii"):
        (tmp_path / part).parent.mkdir(exist_ok=True)
        (tmp_path / part).write_text("1")
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    before = fingerprint(tmp_path / "dataset.json")
    assert fingerprint(tmp_path / "dataset.json") == before
    (tmp_path / name).write_text("2")
    assert fingerprint(tmp_path / "dataset.json") != before


def test_lists_that_cannot_be_read_or_name_no_file_are_files(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "a.csv").write_text("image,words\nnothing.nii," + "long " * 100)
    assert fingerprint(tmp_path / "a.json") != fingerprint(tmp_path / "a.csv")


def test_data_are_looked_at_once_in_a_call_and_anew_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.nii").write_bytes(b"1")
    looked: list[Path] = []
    files = experiment._files
    monkeypatch.setattr(experiment, "_files", lambda path: looked.append(path) or files(path))

    def addresses() -> set[str]:
        with experiment.data_looked_at_once(tmp_path / "e"), experiment.data_looked_at_once(tmp_path / "other"):
            return {Job("counting", ("count", "--datalist", data, "--seed", seed)).address for seed in range(5)}

    first = addresses()
    assert len(first) == 5
    assert looked == [data]
    (data / "a.nii").write_bytes(b"2")
    assert not first & addresses()
    assert len(looked) == 2
    assert not (tmp_path / "other").exists()


def test_much_to_read_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scan.nii").write_bytes(b"1" * 100)
    fingerprint(tmp_path / "scan.nii")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(experiment, "_WORTH_SAYING", 100)
    fingerprint(tmp_path / "scan.nii")
    assert "scan.nii: reading 0 GB to know its content" in capsys.readouterr().err


def test_a_file_is_read_again_only_where_size_or_time_have_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = tmp_path / "scan.nii"
    read: list[str] = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, how: read.append(file.name) or digest(file, how))

    def look() -> str:
        with experiment.data_looked_at_once(tmp_path / "e"):
            return fingerprint(scan)

    scan.write_bytes(b"1")
    assert look() == look()
    assert len(read) == 2  # just written: it may change again without a new time
    os.utime(scan, ns=(0, 10**18))
    first = look()
    assert look() == first
    assert len(read) == 3
    scan.write_bytes(b"2")
    os.utime(scan, ns=(0, 10**18 + 1))
    assert look() != first
    assert len(read) == 4


def test_a_folder_is_its_files_and_their_names(tmp_path: Path) -> None:
    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / "a" / "deep" / "1.txt").write_text("1")
    before = fingerprint(tmp_path / "a")
    (tmp_path / "a" / "deep" / "1.txt").rename(tmp_path / "a" / "deep" / "2.txt")
    assert fingerprint(tmp_path / "a") != before
    with pytest.raises(InputError, match=r"nothing\.csv: no such file"):
        fingerprint(tmp_path / "nothing.csv")


def test_an_unknown_command_is_told() -> None:
    with pytest.raises(SettingError, match="no package of the command 'fda-mrx'"):
        _ = Job("fda-mrx", ("train",)).address


def test_part_of_what_a_job_writes_is_a_word_for_others(tmp_path: Path) -> None:
    first = Job("counting", ("count", "--to", 2))
    second = Job("counting", ("count", "--to", 1, "--add", first.file("checkpoints/..")))
    assert second.needs == (first,)
    assert second.address != Job("counting", ("count", "--to", 1, "--add", first)).address
    assert (go([second], tmp_path)[second].out / "total.txt").read_text() == "3"


def test_a_job_may_write_a_file(tmp_path: Path) -> None:
    job = Job("counting", ("write",), out="total.txt")
    assert job.address != Job("counting", ("write",)).address
    found = go([job], tmp_path)[job]
    assert found.out == found.folder / "total.txt"
    assert found.out.read_text() == "1"
    (found.folder / "done.json").unlink()  # as if it had been killed after it had written half of it
    assert go([job], tmp_path)[job].out.read_text() == "1"


def test_a_grid_has_every_combination() -> None:
    jobs = grid("counting", ("count", "--to", 2), method=("a", "b"), seed=(0, 1, 2))
    assert len({job.address for job in jobs}) == 6
    assert [str(job) for job in jobs][:2] == ["counting count method a seed 0", "counting count method a seed 1"]
    assert jobs[0].words == ("count", "--to", 2, "--method", "a", "--seed", 0)


# --- What runs, and what does not ------------------------------------------------------------------------------------


def test_what_others_need_runs_first_and_nothing_runs_twice(tmp_path: Path) -> None:
    first, second = (Job("counting", ("count", "--to", n)) for n in (2, 3))
    both = Job("counting", ("count", "--to", 1, "--add", first, second))
    for _ in range(2):
        found = go([both], tmp_path / "experiment")
        assert [found[job].state for job in (first, second, both)] == ["done"] * 3
        assert (found[both].out / "total.txt").read_text() == "6"
        assert steps(found[second]) == [0, 1, 2]
        assert {outcome.attempts for outcome in found.values()} == {1}
    page = (tmp_path / "experiment" / PAGE).read_text(encoding="utf-8")
    assert "3 done" in page
    assert first.address in page


def test_a_failure_is_shown_with_its_last_lines_and_tried_again_by_the_next_call(tmp_path: Path) -> None:
    bad = Job("counting", ("count", "--fail", "refuse"), "the bad one")
    after, good = Job("counting", ("count", "--add", bad)), Job("counting", ("count",))
    for attempt in (1, 2):
        found = go([after, good], tmp_path)
        assert [found[job].state for job in (bad, after, good)] == ["failed", "skipped", "done"]
        assert "scans.csv, row 3: no such file" in found[bad].last_lines
        assert found[bad].attempts == attempt
    page = (tmp_path / PAGE).read_text(encoding="utf-8")
    assert "scans.csv, row 3: no such file" in page
    assert "the bad one" in page
    assert "1 done, 1 failed, 1 skipped" in page


def test_a_bug_is_a_failure_and_not_tried_twice(tmp_path: Path) -> None:
    job = Job("counting", ("count", "--fail", "break"))
    found = go([job], tmp_path)[job]
    assert (found.state, found.attempts) == ("failed", 1)
    assert found.last_lines.endswith("ZeroDivisionError: oops")


def test_one_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    job = Job("counting", ("count", "--to", 5, "--fail", "die"))
    found = go([job], tmp_path)[job]
    assert (found.state, found.attempts) == ("done", 2)
    assert steps(found) == [0, 1, 2, 3, 4]


def test_one_that_is_always_killed_fails_at_last(tmp_path: Path) -> None:
    job = Job("counting", ("count", "--to", 50, "--fail", "always die"))
    found = go([job], tmp_path, retries=2)[job]
    assert (found.state, found.attempts) == ("failed", 3)
    assert "killed, out of memory, or its machine was lost" in found.last_lines


class Nowhere:
    """Loses what it is given."""

    capacity = 1

    def start(self, folder: Path) -> None: ...

    def ended(self, handle: None) -> bool:
        return True

    def stop(self, handle: None) -> None: ...


def test_one_that_never_began_is_not_said_to_be_out_of_memory(tmp_path: Path) -> None:
    job = Job("counting", ("count",))
    found = run([job], tmp_path, Nowhere(), every=0.01)[job]
    assert (found.state, found.attempts) == ("failed", 0)
    assert "before the run began" in found.last_lines
    assert "memory" not in found.last_lines


def test_data_that_change_before_a_job_begins_are_refused_and_taken_by_the_next_call(tmp_path: Path) -> None:
    (tmp_path / "scans.csv").write_text("image\na.nii\n")
    (tmp_path / "a.nii").write_bytes(b"1")
    job = Job("counting", ("count", "--datalist", tmp_path / "scans.csv"))
    first = job.address

    class Late(LocalExecutor):
        def start(self, folder: Path) -> BaseProcess:
            (tmp_path / "a.nii").write_bytes(b"22")
            return super().start(folder)

    found = run([job], tmp_path / "e", Late(), every=0.02)[job]
    assert (found.state, found.folder.name) == ("failed", first)
    assert "scans.csv: has changed since this run was asked for; call the script again" in found.last_lines
    assert not found.out.exists()
    found = go([job], tmp_path / "e")[job]
    assert found.state == "done"
    assert found.folder.name != first


def test_a_script_without_a_guard_starts_its_runs_once(tmp_path: Path) -> None:
    script = tmp_path / "study.py"
    script.write_text("""
from pathlib import Path
from dart_core.experiment import Job, LocalExecutor, run
with open("called.txt", "a") as file:
    file.write("x")
outcomes = run([Job("counting", ("count",))], Path("e"), LocalExecutor(1))
assert [outcome.state for outcome in outcomes.values()] == ["done"], outcomes
""")
    ended = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=250)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "called.txt").read_text() == "x"


def test_the_page_shows_the_jobs_of_all_calls(tmp_path: Path) -> None:
    bad = Job("counting", ("count", "--fail", "refuse"), "the bad one")
    after, good = Job("counting", ("count", "--add", bad), "after it"), Job("counting", ("count",), "the good one")
    go([bad, after], tmp_path)
    go([good], tmp_path)
    page = (tmp_path / PAGE).read_text(encoding="utf-8")
    assert "scans.csv, row 3: no such file" in page
    assert "1 done, 1 failed, 1 unfinished" in page
    assert all(name in page for name in ("the bad one", "after it", "the good one"))


def test_a_second_caller_leaves_the_failure_of_the_first_alone(tmp_path: Path) -> None:
    job = Job("counting", ("count",))
    home = tmp_path / "runs" / job.address
    home.mkdir(parents=True)
    (home / "failed.json").write_text(json.dumps({"status": 2, "seconds": 1.0, "attempts": 1}))
    found: list[dict[Job, Outcome]] = []
    caller = threading.Thread(target=lambda: found.append(go([job], tmp_path)))
    with FileLock(home / "lock"):
        caller.start()
        wait_for((tmp_path / PAGE).is_file)
        assert (home / "failed.json").is_file()
        (home / "failed.json").write_text(json.dumps({"status": 2, "seconds": 1.0, "attempts": 2}))
    caller.join()
    assert found[0][job].state == "failed"
    assert not (home / "out").exists()  # the first caller has just tried it
    assert go([job], tmp_path)[job].state == "done"


def test_two_callers_share_the_work(tmp_path: Path) -> None:
    jobs = [Job("counting", ("count", "--to", 3, "--pause", 0.05, "--seed", seed)) for seed in range(3)]
    found: list[dict[Job, Outcome]] = []
    callers = [threading.Thread(target=lambda: found.append(go(jobs, tmp_path))) for _ in range(2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for outcomes in found:
        assert {outcome.state for outcome in outcomes.values()} == {"done"}
        assert {outcome.attempts for outcome in outcomes.values()} == {1}
        assert [steps(outcome) for outcome in outcomes.values()] == [[0, 1, 2]] * 3


def test_a_job_that_another_process_is_at_does_not_hold_up_the_others(tmp_path: Path) -> None:
    jobs = [Job("counting", ("count", "--to", 3, "--seed", seed)) for seed in range(2)]
    first, second = (tmp_path / "runs" / job.address for job in jobs)
    first.mkdir(parents=True)
    found: list[dict[Job, Outcome]] = []
    caller = threading.Thread(target=lambda: found.append(run(jobs, tmp_path, LocalExecutor(1), every=0.02)))
    with FileLock(first / "lock"):
        caller.start()
        end = time.monotonic() + 60
        while not (second / "done.json").is_file() and time.monotonic() < end:
            time.sleep(0.05)
        assert (second / "done.json").is_file()
        assert not (first / "attempts.json").is_file()
    caller.join()
    assert {outcome.state for outcome in found[0].values()} == {"done"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_let_running_jobs_save_and_the_next_call_goes_on(number: signal.Signals, tmp_path: Path) -> None:
    job = Job("counting", ("count", "--to", 400, "--pause", 0.01))
    script = f"""
import signal
from pathlib import Path
from dart_core.experiment import Job, LocalExecutor, run
signal.signal(signal.SIGINT, signal.default_int_handler)
run([Job({job.command!r}, {job.words!r})], Path({str(tmp_path)!r}), LocalExecutor(1))
"""
    caller = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    out = tmp_path / "runs" / job.address / "out"
    wait_for(lambda: (out / "steps.txt").is_file() and len((out / "steps.txt").read_text()) > 10)
    caller.send_signal(number)
    assert caller.wait(60) != 0
    assert not taken(out.parent)
    assert not (out / "total.txt").is_file()
    found = go([job], tmp_path)[job]
    assert (found.state, found.attempts) == ("done", 2), found.last_lines
    # Stopped between writing a step and writing where it is, it would write that step again.
    assert sorted(set(steps(found))) == list(range(400))
    assert len(steps(found)) <= 401


def test_the_summary_says_what_is_left() -> None:
    job, folder = Job("counting", ()), Path()
    done = Outcome(job, folder, "done", 120.0)
    assert summary([done]) == "1 done"
    assert summary([done, Outcome(job, folder, "running"), Outcome(job, folder, "waiting")]) == (
        "1 done, 1 running, 1 waiting; about 4 min left"
    )
    assert summary([Outcome(job, folder, "failed")]) == "0 done, 1 failed"


def taken(folder: Path) -> bool:
    """Whether a process is still at a job."""
    try:
        with FileLock(folder / "lock", timeout=0):
            return False
    except Timeout:
        return True


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 200  # a new process imports torch, which takes a minute on a busy machine
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


# --- Clusters --------------------------------------------------------------------------------------------------------


def test_submitit(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    first = Job("counting", ("count", "--to", 2))
    jobs = [first, Job("counting", ("count", "--add", first)), Job("counting", ("count", "--fail", "refuse"))]
    found = run(jobs, tmp_path, SlurmExecutor(tmp_path / "slurm", cluster="local", timeout_min=2), every=0.05)
    assert [found[job].state for job in jobs] == ["done", "done", "failed"]
    assert (found[jobs[1]].out / "total.txt").read_text() == "5"


def test_parameters_that_slurm_does_not_know_are_told(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    with pytest.raises(SettingError, match=r"Unknown argument 'partitoin' .*Valid arguments: .*partition"):
        SlurmExecutor(tmp_path, cluster="local", slurm_partitoin="gpu")
    if shutil.which("srun") is None:
        with pytest.raises(SettingError, match="there is no SLURM on this machine"):
            SlurmExecutor(tmp_path)


def cluster_of(monkeypatch: pytest.MonkeyPatch, *nodes: dict[str, float]) -> list[dict[str, float]]:
    """A stand-in for Ray with some nodes; what its tasks ask for."""
    asked: list[dict[str, float]] = []

    def remote(**options: float) -> Callable[[object], object]:
        asked.append(options)
        return lambda function: function

    alive = [{"Alive": True, "Resources": node} for node in nodes]
    dead = {"Alive": False, "Resources": {"CPU": 99, "GPU": 99}}
    ray = SimpleNamespace(init=lambda **_: None, nodes=lambda: [dead, *alive], remote=remote)
    monkeypatch.setitem(sys.modules, "ray", ray)
    return asked


@pytest.mark.parametrize(("node", "gpus"), [({"CPU": 4}, 0), ({"CPU": 4, "GPU": 2}, 1)])
def test_ray_jobs_take_a_gpu_where_there_is_one(node: dict, gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[type-arg]
    asked = cluster_of(monkeypatch, {"CPU": 1}, node)
    RayExecutor(gpus=None)
    assert asked[0]["num_gpus"] == gpus


def test_what_no_ray_node_has_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster_of(monkeypatch, {"CPU": 8}, {"CPU": 1, "GPU": 1})
    with pytest.raises(SettingError, match=r"no node of the Ray cluster has 2 CPUs and 0\.5 GPUs"):
        RayExecutor(cpus=2, gpus=0.5)
    with pytest.raises(SettingError, match=r"Ray gives no 1\.5 GPUs; ask for a share"):
        RayExecutor(gpus=1.5)


TWO_NODES = """
import json, os, signal, sys
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from dart_core.experiment import Job, RayExecutor, run

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
other = cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
jobs = [Job("counting", ("count", "--to", 20, "--pause", 0.2, "--seed", seed)) for seed in range(5)]
folder = Path(sys.argv[1])
executor, killed = RayExecutor(cluster.address), []
ended = executor.ended

(raylet,) = other.all_processes["raylet"]

def look(handle):
    if not killed and any(folder.glob("runs/*/done.json")):
        for steps in folder.glob("runs/*/out/steps.txt"):
            process, own = steps.with_name("process.txt").read_text().split()
            home = steps.parents[1]
            if int(own) == raylet.process.pid and not (home / "done.json").is_file() and len(steps.read_text()) > 8:
                # In the middle of a job: its machine is lost, and the job's own process, which would outlive the node here, with it.
                os.kill(int(process), signal.SIGKILL)
                cluster.remove_node(other, allow_graceful=False)
                killed.append(home.name)
                break
    return ended(handle)

executor.ended = look
found = run(jobs, folder, executor, every=0.1)
found = [[str(outcome.folder), outcome.state, outcome.attempts, outcome.folder.name in killed] for outcome in found.values()]
Path(sys.argv[2]).write_text(json.dumps(found))  # Ray has messages of its own for stdout
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_ray_node_that_is_killed_loses_nothing_and_nothing_runs_twice(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_enable_metrics_collection": "0"}
    script = tmp_path / "two_nodes.py"
    script.write_text(TWO_NODES)
    command = [sys.executable, str(script), str(tmp_path / "e"), str(tmp_path / "outcomes.json")]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=800)
    assert ended.returncode == 0, ended.stderr
    outcomes = json.loads((tmp_path / "outcomes.json").read_text())
    assert [state for _, state, _, _ in outcomes] == ["done"] * 5
    assert sorted((lost, attempts) for _, _, attempts, lost in outcomes) == [(False, 1)] * 4 + [(True, 2)]
    for folder, _, _, lost in outcomes:
        assert (Path(folder) / "out" / "total.txt").read_text() == "20"
        written = [int(line) for line in (Path(folder) / "out" / "steps.txt").read_text().splitlines()]
        # The lost job went on from its checkpoint: at most the step it was at twice.
        assert sorted(set(written)) == list(range(20))
        assert len(written) <= 20 + lost
