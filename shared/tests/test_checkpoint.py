from __future__ import annotations

import contextlib
import errno
import os
import pickle
import resource
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from dart_core import checkpoint
from dart_core.checkpoint import (
    WEIGHTS,
    checkpoint_path,
    load_checkpoint,
    load_state,
    load_weights,
    newest_checkpoint,
    prune_checkpoints,
    read_metadata,
    read_model,
    read_weight_file,
    save_checkpoint,
    save_model,
    save_weights,
    weights_file,
)
from dart_core.errors import CheckpointError, OutputError
from dart_core.files import write_atomic

IN_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def network(width: int = 3) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Linear(4, 2))


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def trained_state() -> dict[str, Any]:
    module = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3))
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.rand(2, 1, 5, 5)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, 10)
    return {"network": module.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}


def test_round_trip(tmp_path: Path) -> None:
    state = {**trained_state(), "step": 7, "nested": [1, (2.5, None, "x", b"y", True)], "dtype": torch.float16}
    save_checkpoint(tmp_path / "a.pt", state)
    assert same(dict(state), load_checkpoint(tmp_path / "a.pt"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_numpy_scalars_become_numbers_and_other_objects_are_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pt", {"best": np.float64(0.5)})
    assert same(load_checkpoint(tmp_path / "a.pt"), {"best": 0.5})
    with pytest.raises(TypeError, match=r"a\.b\.1 is a Path|a\.b\.1 is a PosixPath"):
        save_checkpoint(tmp_path / "b.pt", {"a": {"b": [1, tmp_path]}})
    assert not (tmp_path / "b.pt").exists()


def test_a_view_does_not_drag_its_storage_along(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pt", {"row": torch.zeros(1000, 1000)[3]})
    assert (tmp_path / "a.pt").stat().st_size < 20_000


@IN_FOLDER
@given(data=st.data())
def test_a_flipped_bit_is_found_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "a.pt"
    state = {"weight": torch.arange(40.0), "step": 3, "name": "x"}
    save_checkpoint(path, state)
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    with contextlib.suppress(CheckpointError):
        assert same(state, load_checkpoint(path))


def test_a_weight_that_is_marked_as_a_folder_is_found(tmp_path: Path) -> None:
    """No checksum covers the mark, and torch then leaves the weight as it finds the memory."""
    path = tmp_path / "a.pt"
    save_checkpoint(path, {"weight": torch.arange(40.0)})
    content = bytearray(path.read_bytes())
    directory = content.index(b"PK\x01\x02")
    while content[directory + 46 : directory + 46 + content[directory + 28]].rsplit(b"/", 2)[-2:] != [b"data", b"0"]:
        directory = content.index(b"PK\x01\x02", directory + 1)
    content[directory + 38] |= 0x10
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)


@IN_FOLDER
@given(data=st.data())
def test_a_truncated_file_is_found(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "a.pt"
    save_checkpoint(path, {"weight": torch.arange(40.0)})
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)


def test_every_flipped_byte_of_a_weight_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    weight = torch.arange(8.0) + 1000
    save_checkpoint(path, {"weight": weight})
    content = path.read_bytes()
    start = content.index(weight.numpy().tobytes())
    for offset in range(32):
        path.write_bytes(
            content[: start + offset] + bytes([content[start + offset] ^ 1]) + content[start + offset + 1 :]
        )
        with pytest.raises(CheckpointError, match="damaged"):
            load_checkpoint(path)


class Attack:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.target}",)


def test_code_in_a_checkpoint_is_refused_and_not_executed(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2), "attack": Attack(tmp_path / "pwned")}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"a\.pt: needs posix\.system to be run") as caught:
        load_checkpoint(tmp_path / "a.pt")
    assert "\n" not in str(caught.value)
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Attack(tmp_path / "pwned")))
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "b.pt")
    assert not (tmp_path / "pwned").exists()
    # The file does what it is meant to do where somebody unpickles it.
    torch.load(tmp_path / "a.pt", weights_only=False)
    assert (tmp_path / "pwned").exists()


def test_a_whole_network_is_refused(tmp_path: Path) -> None:
    torch.save(network(), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"torch\.nn"):
        load_checkpoint(tmp_path / "a.pt")


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        load_checkpoint(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "text.pt")
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(tmp_path / "folder.pt")
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("a.txt", "hello")
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "other.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="holds a list"):
        load_checkpoint(tmp_path / "list.pt")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    path = tmp_path / "a.pt"
    save_checkpoint(path, {"step": 1})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OutputError, match=r"a\.pt: the disk is full; free some space"):
        save_checkpoint(path, {"step": 2})
    monkeypatch.undo()
    assert load_checkpoint(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_a_write_that_the_system_cuts_short(tmp_path: Path) -> None:
    """A file size limit makes the write itself fail in the middle, as a full disk does."""
    path = tmp_path / "a.pt"
    save_checkpoint(path, {"step": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OutputError, match="the disk is full"):
            save_checkpoint(path, {"weight": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert load_checkpoint(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="in the way"):
        write_atomic(tmp_path / "file" / "a.txt", "x")


def test_killed_while_writing(tmp_path: Path) -> None:
    """Killed between the write and the rename: the old file is whole."""
    path = tmp_path / "a.pt"
    save_checkpoint(path, {"step": 1})
    program = (
        "import os, signal, sys\n"
        "from dart_core.files import write_atomic\n"
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_atomic(sys.argv[1], b'x' * 100_000)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert done.returncode == -9
    assert load_checkpoint(path) == {"step": 1}


def test_newest_falls_back_past_damage_and_says_so(tmp_path: Path) -> None:
    lines: list[str] = []
    assert newest_checkpoint(tmp_path, lines.append) is None
    for step in (10, 9, 100):
        save_checkpoint(checkpoint_path(tmp_path, step), {"step": step})
    newest = checkpoint_path(tmp_path, 100)
    found = newest_checkpoint(tmp_path, lines.append)
    assert found is not None
    assert found == (newest, {"step": 100})
    assert lines == []
    newest.write_bytes(newest.read_bytes()[:-10])
    found = newest_checkpoint(tmp_path, lines.append)
    assert found is not None
    assert found[1] == {"step": 10}
    assert len(lines) == 1
    assert str(newest) in lines[0]
    assert "damaged" in lines[0]
    for step in (9, 10):
        checkpoint_path(tmp_path, step).write_bytes(b"")
    with pytest.raises(CheckpointError, match="all checkpoints are damaged"):
        newest_checkpoint(tmp_path, lines.append)


def test_newest_does_not_fall_back_past_code(tmp_path: Path) -> None:
    save_checkpoint(checkpoint_path(tmp_path, 1), {"step": 1})
    torch.save({"attack": Attack(tmp_path / "pwned")}, checkpoint_path(tmp_path, 2))
    with pytest.raises(CheckpointError, match=r"posix\.system"):
        newest_checkpoint(tmp_path, print)
    assert not (tmp_path / "pwned").exists()


def test_prune_deletes_other_checkpoints_only(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20, 99):
        checkpoint_path(tmp_path, step).touch()
    (tmp_path / "mine.pt").touch()
    prune_checkpoints(tmp_path, [None, checkpoint_path(tmp_path, 10), checkpoint_path(tmp_path, 15)])
    kept = {checkpoint_path(tmp_path, 10), checkpoint_path(tmp_path, 15), tmp_path / "mine.pt"}
    assert set(tmp_path.iterdir()) == kept


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s | {"0.weight": torch.zeros(5, 1, 3, 3)},
            r"'0.weight' has shape \(5, 1, 3, 3\), in this .*\(3, 1, 3, 3\)",
        ),
        (lambda s: {key: value for key, value in s.items() if key != "3.bias"}, "has no '3.bias'"),
        (lambda s: s | {"4.weight": torch.zeros(1)}, "has '4.weight', which this network has not"),
        (lambda s: s | {"3.bias": "text"}, "'3.bias' is not a tensor"),
    ],
)
def test_state_of_another_network(change: Any, message: str) -> None:
    module = network()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    state = {key: torch.zeros_like(value) for key, value in before.items()}
    with pytest.raises(CheckpointError, match=f"^a.pt: belongs to another network: .*{message}"):
        load_state(module, change(state), "a.pt")
    assert same(before, dict(module.state_dict()))
    load_state(module, state, "a.pt")
    assert not any(value.any() for value in module.state_dict().values())


def test_weights_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    source, target = network(), network()
    source = source.to(memory_format=torch.channels_last)
    source.register_buffer("flags", torch.tensor([True, False]))
    target.register_buffer("flags", torch.tensor([False, False]))
    source.register_buffer("small", torch.ones((), dtype=torch.bfloat16))
    target.register_buffer("small", torch.zeros((), dtype=torch.bfloat16))
    save_weights(path, source, {"width": "3"})
    state, metadata = load_weights(path, target)
    assert metadata == read_metadata(path) == {"width": "3"}
    assert same(dict(source.state_dict()), dict(target.state_dict()))
    assert same(dict(source.state_dict()), state)


def test_tied_weights(tmp_path: Path) -> None:
    module = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    module[1].weight = module[0].weight
    save_weights(tmp_path / "w.safetensors", module, {})
    state, _ = load_weights(tmp_path / "w.safetensors")
    assert torch.equal(state["0.weight"], module[0].weight)
    assert torch.equal(state["1.weight"], module[0].weight)


@IN_FOLDER
@given(data=st.data())
def test_any_damage_of_weights_is_found(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, nn.Linear(3, 2), {"width": "3"})
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[position] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del content[position:]
    path.write_bytes(content)
    with contextlib.suppress(CheckpointError):
        state, metadata = load_weights(path)
        # Only the name under which the checksum is stored can have changed: nothing then says what it was.
        assert "sha256" not in metadata
        assert len(metadata) == 2
        assert state.keys() == {"weight", "bias"}


def test_weights_of_other_programs_and_other_files(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.ones(2, 3), "bias": torch.zeros(2)}, tmp_path / "w.safetensors")
    module = nn.Linear(3, 2)
    assert load_weights(tmp_path / "w.safetensors", module)[1] == {}
    assert module.weight.eq(1).all()
    with pytest.raises(CheckpointError, match="another network"):
        load_weights(tmp_path / "w.safetensors", nn.Linear(4, 2))
    with pytest.raises(CheckpointError, match="no such file"):
        load_weights(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="no such file"):
        read_metadata(tmp_path / "none.safetensors")
    save_checkpoint(tmp_path / "a.pt", {"step": 1})
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load_weights(tmp_path / "a.pt")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_weights_from_cuda(tmp_path: Path) -> None:
    module = nn.Linear(3, 2).cuda()
    save_weights(tmp_path / "w.safetensors", module, {})
    save_checkpoint(tmp_path / "a.pt", {"network": module.state_dict()})
    assert torch.equal(load_weights(tmp_path / "w.safetensors")[0]["weight"], module.weight.cpu())
    assert load_checkpoint(tmp_path / "a.pt")["network"]["weight"].device.type == "cpu"


def test_a_failed_write_holds_no_view_of_the_buffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Garbage collection of a buffer with a view on it crashes Python 3.12.1 and warns in 3.13."""
    views: list[memoryview] = []

    def fails(path: Path, data: memoryview) -> None:
        views.append(data)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_atomic", fails)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path / "a.pt", {"step": 1})
    with pytest.raises(ValueError, match="released"):
        views[0].tobytes()


@pytest.mark.parametrize("ending", ["pth", "old.pth", "safetensors", "SafeTensors"])
def test_weight_files_of_any_origin(tmp_path: Path, ending: str) -> None:
    net, path = network(), tmp_path / f"a.{ending}"
    if ending.lower() == "safetensors":
        save_weights(path, net, {"licence": "none"})
    else:
        torch.save(dict(net.state_dict()), path, _use_new_zipfile_serialization=ending == "pth")
    found = read_weight_file(path)
    assert found.keys() == net.state_dict().keys()
    assert all(torch.equal(value, found[key]) for key, value in net.state_dict().items())


def test_code_in_an_old_weight_file_is_refused_and_not_executed(tmp_path: Path) -> None:
    torch.save({"a": Attack(tmp_path / "executed")}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(
        CheckpointError, match=r"a\.pth: needs .* to be run in order to load and was therefore not loaded"
    ):
        read_weight_file(tmp_path / "a.pth")
    assert not (tmp_path / "executed").exists()


# --- Networks that say what they are ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    width: int


def test_a_run_folder_says_what_its_network_is(tmp_path: Path) -> None:
    net = network()
    assert save_model(tmp_path, net, "here", Model(3)) == tmp_path / WEIGHTS
    for path in (tmp_path, tmp_path / WEIGHTS):
        file = weights_file(path)
        assert read_model(file, "here", lambda fields: Model(**fields), "is no model", "train one") == Model(3)
        assert load_weights(file)[0].keys() == net.state_dict().keys()


def test_a_folder_without_its_file_is_not_finished(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors; finish the training run \(--resume\)"):
        weights_file(tmp_path)
    with pytest.raises(CheckpointError, match=r"holds no other\.safetensors"):
        weights_file(tmp_path, "other.safetensors")
    assert weights_file(tmp_path / "absent") == tmp_path / "absent"  # the reader says that there is no such file


@pytest.mark.parametrize(
    "metadata", [{}, {"there": "{}"}, {"here": ""}, {"here": "no JSON"}, {"here": "[]"}, {"here": "null"}, {"here": "{}"},
                 {"here": '{"wide": 3}'}, {"here": '{"width": 3, "depth": 1}'}]
)  # fmt: skip
def test_a_file_of_something_else_is_refused(tmp_path: Path, metadata: dict[str, str]) -> None:
    save_weights(tmp_path / "a.safetensors", network(), metadata)
    with pytest.raises(CheckpointError, match=r"a\.safetensors: is no model; train one"):
        read_model(tmp_path / "a.safetensors", "here", lambda fields: Model(**fields), "is no model", "train one")
