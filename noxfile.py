"""Every session a person or CI runs; `nox -l` lists them, `nox -s NAME` runs one.

uv makes the environments where it is there, virtualenv where it is not. Either way they draw on one cache: uv links the
files out of it, so torch is unpacked once however many environments hold it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nox
from nox.command import CommandFailed

ROOT = Path(__file__).parent.resolve()
PACKAGES = sorted(found.parent.name for found in ROOT.glob("packages/*/pyproject.toml"))
ALL = ["core", *PACKAGES]
DEMO = "fda-mri"
# Parts of the core that a method may use without its machinery, so they must not know of it.
LOW = ("nets", "losses", "metrics", "augment", "optim", "adapt")
PARALLEL = ("--numprocesses=auto", "--maxprocesses=8", "--dist=worksteal")
# Hypothesis draws the same examples in every run, so that a commit passes or fails once and for all; to look for new ones:
# nox -s tests -- --hypothesis-profile=default
REPEATABLE = ("--hypothesis-profile=ci",)
# The newest Python that the packages support, for machines that have only a newer one; uv fetches it there.
PYTHON = "3.13" if sys.version_info >= (3, 14) else None

nox.needs_version = ">=2025.10.14"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "imports", "types", "tests"]


def folder(name: str) -> str:
    return "shared" if name == "core" else f"packages/{name}"


def module(name: str) -> str:
    return "dart_core" if name == "core" else name.replace("-", "_")


def metadata(name: str) -> dict:
    return nox.project.load_toml(ROOT / folder(name) / "pyproject.toml")["project"]


def core_with_extras(path: str) -> str:
    return f"{path}[{','.join(metadata('core')['optional-dependencies'])}]"


def group(name: str) -> list[str]:
    """Requirements of a dependency group of the root pyproject.toml."""
    return list(nox.project.dependency_groups(nox.project.load_toml("pyproject.toml"), name))


def sources(names: list[str], extras: bool = True) -> list[str]:
    """Arguments that install the core and the packages `names` from the source tree."""
    core = core_with_extras("./shared") if extras else "./shared"
    arguments = ["-e", core]
    for name in names:
        if name != "core":
            arguments += ["-e", f"./{folder(name)}"]
    return arguments


def install(session: nox.Session, *requirements: str) -> None:
    session.install(*requirements, "-c", "constraints.txt")


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Leading package names, and what follows them."""
    count = next((i for i, argument in enumerate(arguments) if argument not in ALL), len(arguments))
    return arguments[:count], arguments[count:]


def environment() -> dict[str, str]:
    """One thread per test process, and the real data where it lies beside this checkout."""
    variables = {"OMP_NUM_THREADS": "1"}
    beside = ROOT.parent / "shared" / "data"
    if "DART_DATA" not in os.environ and beside.is_dir():
        variables["DART_DATA"] = str(beside)
    return variables


def on_the_cpu() -> dict[str, str | None]:
    """For tests that come to the same wherever they run: a GPU is not seen. Those of CUDA have a session of their own.

    Temporary files lie where they do without nox, whose own folder for them lies in the environment, where Ray's may not.
    """
    return {**environment(), "CUDA_VISIBLE_DEVICES": "", "TMPDIR": os.environ.get("TMPDIR")}


def scripts(where: str) -> list[str]:
    found = (path.relative_to(ROOT) for path in ROOT.glob(f"benchmarks/{where}/*.py"))
    # Those two are what the others share.
    return sorted(str(path) for path in found if path.name not in ("compare.py", "promises.py"))


@nox.session(python=PYTHON)
def demo(session: nox.Session) -> None:
    """Run a package's demo on phantoms and say where the report lies: nox -s demo -- fda-mri."""
    name = session.posargs[0] if session.posargs else DEMO
    if name not in PACKAGES or len(session.posargs) > 1:
        session.error(f"there is no package {' '.join(session.posargs)!r}; choose one of: {', '.join(PACKAGES)}")
    install(session, *sources([name], extras=False))
    out = Path("demo-out", name)
    # A demo that was cut off leaves a folder that --overwrite rightly refuses to take for a run.
    shutil.rmtree(out, ignore_errors=True)
    session.run(name, "demo", "--out", str(out), "--overwrite")
    session.log(f"The report lies in {(ROOT / out / 'report.html').as_uri()}")


@nox.session(python=PYTHON)
def tests(session: nox.Session) -> None:
    """Run the tests of everything, or of packages by name: nox -s tests -- fda-mri core; more words go to pytest."""
    names, arguments = split(session.posargs)
    install(session, *sources(names or PACKAGES), *group("test"))
    session.run("pytest", *PARALLEL, *REPEATABLE, *map(folder, names), *arguments, env=on_the_cpu())


@nox.session(python=PYTHON)
def build(session: nox.Session) -> None:
    """Build a wheel and a source archive of every package into dist/ and check them."""
    install(session, *group("build"))
    shutil.rmtree("dist", ignore_errors=True)
    for name in ALL:
        session.run("python", "-m", "build", "--no-isolation", "--outdir", "dist", folder(name))
        (wheel,) = built(name)
        files = zipfile.ZipFile(wheel).namelist()
        top = {file.split("/")[0] for file in files}
        if top != {module(name), f"{wheel.stem.split('-py3')[0]}.dist-info"}:
            session.error(f"{wheel.name} holds {sorted(top)}, not just the package and its metadata")
        for ending in (f"{module(name)}/py.typed", ".dist-info/licenses/LICENSE"):
            if not any(file.endswith(ending) for file in files):
                session.error(f"{wheel.name} lacks {ending}")
    session.run("twine", "check", "--strict", *map(str, sorted(Path("dist").iterdir())))


def built(name: str) -> list[Path]:
    """The wheel of a package in dist/."""
    project = metadata(name)
    return list(ROOT.glob(f"dist/{project['name'].replace('-', '_')}-{project['version']}-*.whl"))


@nox.session(python=PYTHON, reuse_venv=False, requires=["build"])
@nox.parametrize("name", [nox.param(name, id=name) for name in ALL])
def wheels(session: nox.Session, name: str) -> None:
    """Install one package's wheel with the core's in a clean environment; run its tests and --help from there."""
    (core,) = built("core")
    wanted = [core_with_extras(str(core))] if name == "core" else [str(core), *map(str, built(name))]
    install(session, *wanted, *group("test"))
    away = Path(session.create_tmp(), name)
    shutil.rmtree(away, ignore_errors=True)
    shutil.copytree(folder(name), away, ignore=shutil.ignore_patterns("src", "__pycache__"))
    with session.chdir(away):
        where = f"import {module(name)} as m; print(m.__file__); assert 'site-packages' in m.__file__"
        session.run("python", "-c", where)
        for command in metadata(name).get("scripts", {}):
            session.run(command, "--help", silent=True)
            session.run(command, "--version")
        settings = [f"--config-file={ROOT / 'pyproject.toml'}", "--rootdir=.", "--confcutdir=."]
        session.run("pytest", *PARALLEL, *REPEATABLE, *settings, "tests", *session.posargs, env=on_the_cpu())


@nox.session(python=PYTHON)
def lint(session: nox.Session) -> None:
    """Check style and formatting with ruff."""
    install(session, *group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session(python=PYTHON)
def types(session: nox.Session) -> None:
    """Check the types of every package with mypy, strictly."""
    install(session, *sources(PACKAGES), *group("types"))
    session.run("mypy", *[word for name in ALL for word in ("--package", module(name))])


@nox.session(python=PYTHON)
def imports(session: nox.Session) -> None:
    """Check who may import whom (ARCHITECTURE.md) with import-linter."""
    install(session, *group("imports"))
    modules = [module(name) for name in PACKAGES]
    low = [f"dart_core.{part}" for part in LOW if (ROOT / "shared/src/dart_core" / part).is_dir()]
    contracts = f"""
[tool.importlinter]
root_packages = {json.dumps(["dart_core", *modules])}

[[tool.importlinter.contracts]]
name = "A method imports the core and no other method; the core imports no method"
type = "layers"
layers = {json.dumps([" | ".join(modules), "dart_core"])}

[[tool.importlinter.contracts]]
name = "Networks, losses and metrics know nothing of runs, commands and reports"
type = "forbidden"
source_modules = {json.dumps(low)}
forbidden_modules = {json.dumps([f"dart_core.{part}" for part in ("run", "cli", "report")])}
"""
    path = Path(session.create_tmp(), "importlinter.toml")
    path.write_text(contracts, encoding="utf-8")
    source = os.pathsep.join(str(ROOT / folder(name) / "src") for name in ALL)
    session.run("lint-imports", "--config", str(path), "--no-cache", env={"PYTHONPATH": source})
    session.run("python", "docs/graph.py", "--check")


@nox.session(python=PYTHON)
def docs(session: nox.Session) -> None:
    """Build the documentation into site/; a broken link or reference is an error."""
    install(session, *group("docs"))
    session.run("mkdocs", "build", "--strict", *session.posargs)


@nox.session(python="3.11", reuse_venv=False)
def minimums(session: nox.Session) -> None:
    """Run the quick tests with the lowest versions that the packages say they work with."""
    if session.venv_backend != "uv":
        session.skip("only uv resolves to the lowest versions; python3 -m pip install 'nox[uv]'")
    names, arguments = split(session.posargs)
    session.install("--resolution", "lowest-direct", *sources(names or PACKAGES), *group("test"))
    paths = [f"{folder(name)}/tests" for name in names or ALL]
    session.run("pytest", *PARALLEL, *REPEATABLE, "-m", "not slow and not gpu", *paths, *arguments, env=on_the_cpu())


@nox.session(python=PYTHON)
def gpu(session: nox.Session) -> None:
    """Run the CUDA tests and the speed benchmarks on a GPU; skips where there is none."""
    if not cuda_device():
        session.skip("no CUDA device on this machine (nvidia-smi lists none)")
    install(session, *sources(PACKAGES), *group("test"))
    session.run("pytest", "-m", "gpu", *session.posargs, env=environment())
    measure(session, "cuda")


def measure(session: nox.Session, device: str, *arguments: str) -> None:
    """Run every speed benchmark, and write the page; then fail if a benchmark did, so that one does not cost the others' numbers."""
    failed = []
    for script in scripts("speed"):
        try:
            session.run("python", script, "--device", device, *arguments)
        except CommandFailed:
            failed.append(Path(script).name)
    session.run("python", "benchmarks/speed/promises.py")
    if failed:
        session.error(f"{len(failed)} benchmarks failed: {', '.join(failed)}; what they said stands above")


@nox.session(python=PYTHON)
def cuda_stand_in(session: nox.Session) -> None:
    """Run the CUDA tests without a GPU: every tensor of the device is one of the CPU that says it is not.

    Finds tensors of two devices in one operation, and the like; see tools/cuda_stand_in. No speed, no kernels.
    """
    if not shutil.which("cc"):
        session.skip("no C compiler (cc) on this machine")
    source, made = ROOT / "tools/cuda_stand_in", Path(session.create_tmp()).resolve()
    for name, library in (("runtime.c", "runtime.so"), ("driver.c", "libcuda.so.1")):
        words = ("-shared", "-fPIC", "-O1", f"-Wl,-soname,{library}", "-o", str(made / library), str(source / name))
        session.run("cc", *words, external=True)
    install(session, *sources(PACKAGES), *group("test"))
    variables = {"LD_LIBRARY_PATH": str(made), "LD_PRELOAD": str(made / "runtime.so"), "PYTHONPATH": str(source)}
    words = session.posargs or ["tools", "shared", "packages", "benchmarks"]
    session.run("pytest", "-m", "gpu", "--timeout=1800", *words, env={**environment(), **variables})


def cuda_device() -> bool:
    if not shutil.which("nvidia-smi"):
        return False
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return listed.returncode == 0 and "GPU 0" in listed.stdout


@nox.session(python=PYTHON)
def speed(session: nox.Session) -> None:
    """Measure against the peers on the CPU and write benchmarks/results."""
    install(session, *sources(PACKAGES), *group("peers"))
    measure(session, "cpu", *session.posargs)


@nox.session(python=PYTHON)
def reproduce(session: nox.Session) -> None:
    """Run the papers' tables: nox -s reproduce -- mmtl-octl table2 --scale small; without words, the list of them.

    A study on real data that is no table of a paper goes by the name of its script: nox -s reproduce -- fda_mri_lgg.
    """
    scripts_ = {Path(script).stem: script for script in scripts("reproduce")}
    # The other scripts there prepare data, or are what the tables share.
    studies = {name for name in scripts_ if name.startswith(tuple(f"{module(package)}_" for package in PACKAGES))}
    chosen, arguments = "reproduce", session.posargs
    if arguments and arguments[0] in studies:
        chosen, arguments = arguments[0], arguments[1:]
    variables = environment()
    if chosen in studies and "DART_DATA" not in {**os.environ, **variables}:
        session.error("set DART_DATA to the folder of the real data sets")
    install(session, *sources(PACKAGES))
    del variables["OMP_NUM_THREADS"]
    session.run("python", scripts_[chosen], *arguments, env=variables)


@nox.session(python=PYTHON)
def leaderboard(session: nox.Session) -> None:
    """Compare all methods of a task under one protocol: nox -s leaderboard -- mri --scale small."""
    install(session, *sources(PACKAGES))
    variables = environment()
    del variables["OMP_NUM_THREADS"]
    session.run("python", "benchmarks/leaderboard/leaderboard.py", *session.posargs, env=variables)


@nox.session(python=PYTHON)
def nightly(session: nox.Session) -> None:
    """Run what takes too long for every commit: types, docs, wheels, minimums, CUDA's stand-in, all tables and boards on phantoms."""
    for name in ("types", "docs", *(f"wheels({name})" for name in ALL), "minimums", "cuda_stand_in"):
        session.notify(name)
    session.notify("reproduce", ["all", "--scale", "smoke"])
    session.notify("leaderboard", ["--scale", "smoke"])
