from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from dart_core.data.cache import ArrayCache
from dart_core.errors import InputError, OutputError, SettingError


class Counter:
    """Computes an array and counts how often it was asked."""

    def __init__(self, array: np.ndarray | None = None) -> None:
        self.array = np.random.default_rng(0).uniform(size=(5, 6, 7)) if array is None else array
        self.calls = 0

    def __call__(self) -> np.ndarray:
        self.calls += 1
        return self.array


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "scan.nii"
    path.write_bytes(b"12345")
    return path


@pytest.fixture
def cache(tmp_path: Path) -> ArrayCache:
    return ArrayCache(tmp_path / "cache")


def entry(cache: ArrayCache) -> Path:
    (path,) = (path for path in cache.folder.rglob("*") if path.is_file())
    return path


@pytest.mark.parametrize("memory_map", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "float32", "bool"])
def test_computed_once_and_the_same_every_time(cache, source, dtype, memory_map):
    compute = Counter()
    first = cache.get({"step": "scale"}, [source], compute, dtype, memory_map)
    second = ArrayCache(cache.folder).get({"step": "scale"}, [source], compute, dtype, memory_map)
    assert compute.calls == 1
    assert_array_equal(first, second)
    assert_array_equal(first, compute.array.astype(dtype))
    expected = dtype if memory_map or dtype == "bool" else "float32"
    assert first.dtype == second.dtype == expected
    assert entry(cache).suffix == ".npy"
    assert_array_equal(np.load(entry(cache), allow_pickle=False), first)
    assert not any(a.flags.writeable for a in (first, second)) if memory_map else first.flags.writeable


def test_anything_that_matters_gives_another_entry(cache, source, tmp_path):
    compute = Counter()
    other = tmp_path / "other.nii"
    other.write_bytes(b"12345")
    cache.get({"a": 1, "b": 2}, [source], compute)
    cache.get({"b": 2, "a": 1}, [source], compute)
    cache.get({"b": 2, "a": 1}, [os.path.relpath(source)], compute)
    assert compute.calls == 1
    cache.get({"a": 1, "b": 3}, [source], compute)
    cache.get("a", [source], compute)
    cache.get({"a": 1, "b": 2}, [source, other], compute)
    cache.get({"a": 1, "b": 2}, [other], compute)
    cache.get({"a": 1, "b": 2}, [source], compute, dtype="float32")
    assert compute.calls == 6
    source.write_bytes(b"123456")
    cache.get({"a": 1, "b": 2}, [source], compute)
    assert compute.calls == 7
    os.utime(source, ns=(1, 1))
    cache.get({"a": 1, "b": 2}, [source], compute)
    assert compute.calls == 8


@settings(deadline=None, max_examples=80)
@given(data=st.data())
def test_damage_anywhere_is_noticed(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damage")
    compute = Counter(np.arange(30, dtype=np.float32))
    cache = ArrayCache(folder)
    cache.get("x", [], compute)
    path = entry(cache)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans(), label="cut"):
        content = content[: data.draw(st.integers(0, len(content) - 1), label="length")]
    else:
        content[data.draw(st.integers(0, len(content) - 1), label="place")] ^= data.draw(
            st.integers(1, 255), label="bits"
        )
    path.write_bytes(content)
    assert_array_equal(cache.get("x", [], compute), compute.array)
    assert compute.calls == 2
    assert_array_equal(cache.get("x", [], compute), compute.array)
    assert compute.calls == 2


@pytest.mark.parametrize("length", [0, 3, 100, -5, -1])
def test_a_cut_entry_is_noticed_when_mapped(cache, length):
    compute = Counter()
    cache.get("x", [], compute)
    path = entry(cache)
    path.write_bytes(path.read_bytes()[:length])
    assert_array_equal(cache.get("x", [], compute, memory_map=True), compute.array.astype(np.float16))
    assert compute.calls == 2


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("exploded",)


def test_nothing_is_unpickled(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    compute = Counter()
    cache.get("x", [], compute)
    path = entry(cache)
    np.save(path, np.array([Bomb()], dtype=object), allow_pickle=True)
    assert b"exploded" in path.read_bytes()
    for memory_map in (False, True):
        assert_array_equal(cache.get("x", [], compute, memory_map=memory_map), compute.array.astype(np.float16))
        path.write_bytes(pickle.dumps(Bomb()))
    assert not (tmp_path / "exploded").exists()


def test_an_empty_and_a_scalar_array(cache):
    for number, array in enumerate((np.zeros((0, 3)), np.array(2.0))):
        compute = Counter(array)
        for _ in range(2):
            assert_array_equal(cache.get(str(number), [], compute), array)
        assert compute.calls == 1


def test_values_that_do_not_fit(cache):
    with pytest.raises(InputError, match="70000 do not fit into float16"):
        cache.get("x", [], Counter(np.array([1.0, 70000.0])))
    assert_array_equal(cache.get("x", [], Counter(np.array([70000.0])), dtype="float32"), [70000])
    assert_array_equal(cache.get("y", [], Counter(np.array([np.inf]))), [np.inf])


def test_missing_source(cache, tmp_path):
    with pytest.raises(InputError, match=r"gone.nii: file not found"):
        cache.get("x", [tmp_path / "gone.nii"], Counter())


def test_parameters_that_are_no_plain_values(cache):
    for parameters in ({"a": object()}, {"a": float("nan")}):
        with pytest.raises(SettingError, match="JSON"):
            cache.get(parameters, [], Counter())


def test_full_disk(cache, file_size_limit):
    with file_size_limit(1000), pytest.raises(OutputError, match="disk is full"):
        cache.get("x", [], Counter(np.zeros(10000)))
    assert not [path for path in cache.folder.rglob("*") if path.is_file()]


def test_an_error_while_computing_leaves_nothing(cache):
    def compute() -> np.ndarray:
        raise InputError("bad scan")

    with pytest.raises(InputError, match="bad scan"):
        cache.get("x", [], compute)
    assert not cache.folder.exists()


FILL = """
import sys
import numpy as np
from dart_core.data.cache import ArrayCache
cache = ArrayCache(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for number in range(30):
    got = cache.get(f"x{number}", [], lambda: np.full((50, 50), number))
    assert (got == number).all(), number
"""


def test_two_processes_at_once(tmp_path):
    command = [sys.executable, "-c", FILL, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as first, subprocess.Popen(command, **pipes) as second:
        for process in (first, second):
            assert process.stdout.readline() == "ready\n"
        for process in (first, second):
            process.stdin.write("go\n")
            process.stdin.close()
    assert (first.returncode, second.returncode) == (0, 0)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 30
    assert all(path.suffix == ".npy" for path in files)
