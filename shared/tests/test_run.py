from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import math
import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from dart_core.batches import Batches
from dart_core.checkpoint import checkpoint_path, load_checkpoint, save_checkpoint
from dart_core.errors import CheckpointError, DeviceError, Interrupted, OutputError, SettingError
from dart_core.files import atomic_write
from dart_core.run import Run, claim_folder, find_device, flat_settings
from dart_core.settings import RunSettings

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

CUDA = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")],
)
DEVICES = ["cpu", CUDA]


@pytest.fixture(autouse=True)
def _exact_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPU kernels of a float32 convolution agree to 1e-5 without TF32 only, and always give the same only where told to."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


class Colour(Enum):
    RED = "red"


@dataclass(frozen=True)
class Method:
    """Settings of a method, with every type that a setting can have."""

    run: RunSettings
    width: int = 4
    lr: float = 1e-5
    name: str | None = None
    sizes: tuple[int, ...] = (3, 5)
    colour: Colour = Colour.RED
    data: Path = Path("data/list.csv")


def settings(tmp_path: Path, **changes: Any) -> RunSettings:
    return RunSettings(out=tmp_path / "run", **{"device": "cpu", **changes})


def load(index: int, generator: np.random.Generator) -> dict[str, Any]:
    image = np.random.default_rng(index).normal(size=(1, 6, 6)) + 0.1 * generator.normal(size=(1, 6, 6))
    return {"image": image.astype(np.float32), "label": np.array([index % 2], np.float32)}


def batches() -> Batches:
    return Batches(load, size=11, batch_size=6, seed=1)


def small_network(dropout: float = 0.0) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Dropout(dropout), nn.Flatten(), nn.Linear(64, 1)
    )


def draw() -> float:
    return random.random() + np.random.random()  # noqa: NPY002 (the global generators are what is tested)


def train(
    where: RunSettings,
    total: int = 12,
    dropout: float = 0.3,
    each_step: Callable[[Run, int], None] = lambda run, step: None,
    width: int = 4,
) -> dict[str, Tensor]:
    with Run(where, {"width": width}) as run:
        network = run.prepare(small_network(dropout))
        optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
        first = run.restore(network=network, optimizer=optimizer)
        assert first == run.step
        criterion = nn.BCEWithLogitsLoss()
        for step, batch in run.steps(batches(), total):
            loss = run.optimise(optimizer, lambda part: criterion(network(part["image"]), part["label"]), batch)
            run.log.write(step, loss=loss, noise=draw())
            each_step(run, step)
        run.finish({"steps": run.step})
        return {key: value.cpu().clone() for key, value in network.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def metrics(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "time"} for line in found]


def stop_at(step: int, number: int = signal.SIGTERM) -> Callable[[Run, int], None]:
    return lambda run, now: os.kill(os.getpid(), number) if now == step else None


# The output folder


def test_a_step_that_is_saved_twice_does_not_cost_the_checkpoint_before(tmp_path: Path) -> None:
    found: list[str] = []

    def again(run: Run, step: int) -> None:
        if step == 6:  # of which `steps` has a checkpoint already
            run.save()
            found.extend(sorted(path.name for path in (run.out / "checkpoints").iterdir()))

    train(settings(tmp_path, checkpoint_every=3), total=7, each_step=again)
    assert found == ["step-000000003.pt", "step-000000006.pt"]


def test_creating_a_run_touches_nothing(tmp_path: Path) -> None:
    run = Run(settings(tmp_path), {"width": 3})
    assert list(tmp_path.iterdir()) == []
    assert run.out == tmp_path / "run"


def test_files_of_a_run(tmp_path: Path) -> None:
    train(settings(tmp_path, checkpoint_every=5))
    names = {str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("*") if path.is_file()}
    checkpoints = {f"checkpoints/step-{step:09d}.pt" for step in (10, 12)}
    assert names == {"config.yaml", "metrics.json", "metrics.jsonl", *checkpoints}
    assert [line["step"] for line in metrics(tmp_path / "run")] == list(range(12))
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == {"steps": 12}


def test_config_holds_the_settings_by_their_flags(tmp_path: Path) -> None:
    where = settings(tmp_path, workers=2)
    with Run(where, Method(where)):
        pass
    text = (tmp_path / "run" / "config.yaml").read_text()
    config = yaml.safe_load(text)
    own = {"width": 4, "lr": 1e-5, "name": None, "sizes": [3, 5], "colour": "red", "data": "data/list.csv"}
    assert {key: config.pop(key) for key in own} == own
    assert config.pop("out") == str(tmp_path / "run")
    acts = {"out", "resume", "overwrite"}
    assert config == {f.name: getattr(where, f.name) for f in dataclasses.fields(where) if f.name not in acts}
    assert torch.__version__ in text.splitlines()[0]


def test_settings_of_the_same_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="seed"):
        Run(settings(tmp_path), {"seed": 3})
    with pytest.raises(TypeError, match="lambda"):
        flat_settings({"function": lambda: None})


def test_folder_with_a_run(tmp_path: Path) -> None:
    train(settings(tmp_path), total=2)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(OutputError, match=r"run: holds a run already; --resume .* --overwrite"):
        train(settings(tmp_path))
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    with pytest.raises(OutputError, match=r"run: holds a run already; give another --out, --overwrite replaces it"):
        claim_folder(tmp_path / "run", {})  # by a command that cannot resume
    (tmp_path / "run" / "old").mkdir()
    (tmp_path / "run" / "old" / "picture.png").touch()
    train(settings(tmp_path, overwrite=True), total=3)
    assert not (tmp_path / "run" / "old").exists()
    assert len(metrics(tmp_path / "run")) == 3


def test_what_a_killed_process_had_half_written(tmp_path: Path) -> None:
    """It keeps no folder from being claimed and is removed, by --resume wherever in the run it lies."""

    def half_write(path: Path) -> Path:
        with contextlib.suppress(ZeroDivisionError), atomic_write(path) as temporary:
            raise ZeroDivisionError
        temporary.write_bytes(b"half")
        return temporary

    run = tmp_path / "run"
    left = [half_write(run / "config.yaml")]
    train(settings(tmp_path), total=2)
    assert not left[0].exists()
    mine = run / ".tmp-mine"
    mine.touch()
    left += [half_write(run / "checkpoints" / "step-000000003.pt"), half_write(run / "selection-1" / "scores.csv")]
    train(settings(tmp_path, resume=True), total=3)
    assert not any(path.exists() for path in left)
    assert mine.exists()
    assert len(metrics(run)) == 3


@pytest.mark.parametrize("given", [{"init": "run/model.pt"}, {"pool": "run"}, {"models": ["other", "run/model.pt"]}])
def test_overwrite_keeps_what_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, object]
) -> None:
    monkeypatch.chdir(tmp_path)
    claim_folder(Path("run"), {})
    Path("run/model.pt").touch()
    with pytest.raises(OutputError, match=f"run: holds what --{next(iter(given))} names; give another --out"):
        claim_folder(Path("run"), {"out": "run", **given}, overwrite=True)
    assert Path("run/model.pt").exists()
    claim_folder(Path("run"), {"out": "run", "init": "elsewhere.pt", "method": "run/no such file"}, overwrite=True)
    assert not Path("run/model.pt").exists()


@pytest.mark.parametrize("config", [None, "version: 3\nservices: {}\n"])
def test_overwrite_deletes_only_runs(tmp_path: Path, config: str | None) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    if config is not None:
        (folder / "config.yaml").write_text(config)
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="holds is no run; give another --out"):
            train(settings(tmp_path, overwrite=overwrite))
    assert (folder / "thesis.txt").read_text() == "years of work"


def test_out_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    for flags in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(OutputError, match="is a file"):
            train(settings(tmp_path, **flags))
    with pytest.raises(OutputError, match="in the way"):
        claim_folder(tmp_path / "run" / "below", {})


def test_out_is_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").symlink_to("elsewhere")
    train(settings(tmp_path), total=1)
    train(settings(tmp_path, overwrite=True), total=1)
    assert (tmp_path / "run").is_symlink()
    assert (tmp_path / "elsewhere" / "config.yaml").exists()


def test_resume_where_nothing_is(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "none", tmp_path / "empty"):
        with pytest.raises(OutputError, match="no run to resume here"):
            train(RunSettings(out=out, device="cpu", resume=True))
    assert not (tmp_path / "none").exists()


def test_resume_with_other_settings(tmp_path: Path) -> None:
    train(settings(tmp_path), total=2)
    with pytest.raises(SettingError, match=r"config\.yaml: width was 4 when the run started and is 5 now; resume with"):
        train(settings(tmp_path, resume=True), width=5)
    with pytest.raises(SettingError, match="precision was fp32"):
        train(settings(tmp_path, resume=True, precision="bf16"))
    train(settings(tmp_path, resume=True, workers=1, checkpoint_every=3), total=4)
    (tmp_path / "run").rename(tmp_path / "moved")
    train(RunSettings(out=tmp_path / "moved", device="cpu", resume=True), total=5)
    (tmp_path / "moved" / "config.yaml").write_text("a: [")
    with pytest.raises(SettingError, match=r"config\.yaml: cannot be read"):
        train(RunSettings(out=tmp_path / "moved", device="cpu", resume=True))


def test_an_absent_tracker_is_found_before_anything_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(settings(tmp_path), total=2)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SettingError, match="pip install wandb"):
        train(settings(tmp_path, overwrite=True, track="wandb"))
    assert len(metrics(tmp_path / "run")) == 2


def test_finish_writes_plain_json(tmp_path: Path) -> None:
    with Run(settings(tmp_path)) as run:
        run.finish({"dice": {"A": np.float32(0.5), "B": math.nan}, "loss": torch.tensor([1.0, 2.0]), "site": "Zürich"})
    text = (tmp_path / "run" / "metrics.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"dice": {"A": 0.5, "B": None}, "loss": [1.0, 2.0], "site": "Zürich"}


# The device


def test_devices() -> None:
    assert find_device("cpu") == torch.device("cpu")
    for name in ("gpu", "cuda:", "cuda:x", "cpu:0", "mps", ""):
        with pytest.raises(SettingError, match="give cpu, cuda, cuda:N or auto"):
            find_device(name)


def test_cuda_asked_for_and_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device("auto") == torch.device("cpu")
    for name in ("cuda", "cuda:1"):
        with pytest.raises(DeviceError, match=f"--device is {name}, and .* no CUDA device here; give --device cpu"):
            train(settings(tmp_path, device=name))
    assert not (tmp_path / "run").exists()


def test_choice_of_the_cuda_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert find_device("auto") == find_device("cuda") == torch.device("cuda", 0)
    assert find_device("cuda:1") == find_device("cuda", distributed=True) == torch.device("cuda", 1)
    with pytest.raises(DeviceError, match="--device is cuda:2, and PyTorch finds 2 CUDA devices here, numbered from 0"):
        find_device("cuda:2")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(DeviceError, match="--device is cuda, this is process 2 on this machine, and PyTorch finds 2"):
        find_device("cuda", distributed=True)
    with pytest.raises(SettingError, match="one device for several processes"):
        find_device("cuda:1", distributed=True)


# One step


def one_step(tmp_path: Path, name: str, device: str = "cpu", **changes: Any) -> tuple[Tensor, dict[str, Tensor]]:
    where = RunSettings(out=tmp_path / name, device=device, **changes)
    with Run(where) as run:
        network = run.prepare(small_network())
        optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
        _, batch = next(iter(run.steps(Batches(load, 13, 7, 0), 1)))
        criterion = nn.BCEWithLogitsLoss()
        loss = run.optimise(optimizer, lambda part: criterion(network(part["image"]), part["label"]), batch)
        assert not loss.requires_grad
        return loss.cpu(), {key: value.cpu() for key, value in network.state_dict().items()}


def test_a_step_equals_plain_pytorch(tmp_path: Path) -> None:
    loss, weights = one_step(tmp_path, "ours", seed=5)
    torch.manual_seed(5)
    network = small_network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    batch = Batches(load, 13, 7, 0).batch(0)
    expected = nn.functional.binary_cross_entropy_with_logits(network(batch["image"]), batch["label"])
    expected.backward()
    optimizer.step()
    assert torch.equal(loss, expected.detach())
    assert equal(weights, network.state_dict())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("parts", [2, 3, 7, 100])
def test_accumulation_equals_the_undivided_step(tmp_path: Path, device: str, parts: int) -> None:
    loss, weights = one_step(tmp_path, "whole", device)
    loss_in_parts, weights_in_parts = one_step(tmp_path, "parts", device, accumulate=parts)
    torch.testing.assert_close(loss_in_parts, loss, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(weights_in_parts, weights, rtol=1e-6, atol=1e-6)


def test_accumulation_divides_the_batch(tmp_path: Path) -> None:
    seen: list[int] = []
    with Run(settings(tmp_path, accumulate=3)) as run:
        weight = nn.Parameter(torch.zeros(()))

        def loss(part: dict[str, Tensor]) -> Tensor:
            seen.append(len(part["x"]))
            return (weight * part["x"]).mean()

        mean = run.optimise(torch.optim.SGD([weight], lr=1.0), loss, {"x": torch.arange(1.0, 8.0)})
    assert seen == [3, 2, 2]
    assert weight.item() == pytest.approx(-4.0)
    assert mean.item() == 0.0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_half_precision(tmp_path: Path, device: str, precision: Any, dtype: torch.dtype) -> None:
    loss, weights = one_step(tmp_path, "full", device)
    half_loss, half_weights = one_step(tmp_path, "half", device, precision=precision)
    assert all(value.dtype == torch.float32 for value in half_weights.values())
    torch.testing.assert_close(half_loss, loss, rtol=0.05, atol=0.0, check_dtype=False)
    torch.testing.assert_close(half_weights, weights, rtol=0.05, atol=0.02)
    assert not equal(weights, half_weights)
    with Run(settings(tmp_path, device=device, precision=precision)) as run, run.autocast():
        assert nn.Linear(2, 2).to(run.device)(torch.ones(1, 2, device=run.device)).dtype == dtype


def test_full_precision_does_not_cast(tmp_path: Path) -> None:
    with Run(settings(tmp_path)) as run, run.autocast():
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.float32


@pytest.mark.parametrize("device", DEVICES)
def test_fp16_leaves_out_a_step_that_overflows(tmp_path: Path, device: str) -> None:
    with Run(settings(tmp_path, device=device, precision="fp16")) as run:
        good, bad = (nn.Parameter(torch.ones((), device=run.device)) for _ in range(2))
        optimizers = [torch.optim.SGD([parameter], lr=0.5) for parameter in (good, bad)]
        run.backward(good * 2)
        run.backward(bad * torch.tensor(math.inf, device=run.device))
        run.step_optimizers(*optimizers)
        assert good.item() == 0.0
        assert bad.item() == 1.0


def test_two_losses_and_two_optimisers(tmp_path: Path) -> None:
    with Run(settings(tmp_path)) as run:
        a, b = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(()))
        run.backward(a * 2)
        run.backward(b * 3)
        run.step_optimizers(torch.optim.SGD([a], lr=1.0), torch.optim.SGD([b], lr=1.0))
        assert (a.item(), b.item()) == (-1.0, -2.0)


@pytest.mark.parametrize("device", DEVICES)
def test_channels_last(tmp_path: Path, device: str) -> None:
    with Run(settings(tmp_path, device=device, channels_last=True)) as run:
        flat, deep = run.prepare(nn.Conv2d(3, 4, 3)), run.prepare(nn.Conv3d(3, 4, 3))
        batch = run.to_device({"flat": torch.ones(2, 3, 8, 8), "deep": torch.ones(2, 3, 8, 8, 8), "y": torch.ones(2)})
        for tensor in (flat.weight, batch["flat"], flat(batch["flat"])):
            assert tensor.is_contiguous(memory_format=torch.channels_last)
        for tensor in (deep.weight, batch["deep"]):
            assert tensor.is_contiguous(memory_format=torch.channels_last_3d)
        assert {tensor.device.type for tensor in (flat.weight, *batch.values())} == {run.device.type}
    _, plain = one_step(tmp_path, "plain", device)
    _, last = one_step(tmp_path, "last", device, channels_last=True)
    torch.testing.assert_close(last, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.filterwarnings("ignore")
def test_compile(tmp_path: Path, device: str) -> None:
    loss, weights = one_step(tmp_path, "eager", device)
    compiled_loss, compiled_weights = one_step(tmp_path, "compiled", device, compile=True)
    torch.testing.assert_close(compiled_loss, loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(compiled_weights, weights, rtol=1e-5, atol=1e-6)


# Resuming


@pytest.mark.parametrize("device", DEVICES)
def test_convolutions_are_deterministic_on_cuda(tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else cuDNN may choose gradients that add up in another order each time, and a resumed run would not be the same."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    with Run(settings(tmp_path, device=device)):
        assert torch.backends.cudnn.deterministic == (device == "cuda")
    assert not torch.backends.cudnn.deterministic


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_runs_resume_exactly(tmp_path: Path, device: str, precision: Any, number: int, status: int) -> None:
    shared = {"device": device, "precision": precision}
    expected = train(RunSettings(out=tmp_path / "whole", **shared))
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match=r"stopped by (Ctrl-C|SIGTERM) after step 6 of 12; --resume") as caught:
        train(settings(tmp_path, **shared), each_step=stop_at(5, number))
    assert caught.value.exit_status == status
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    torch.manual_seed(99)
    random.seed(99)
    assert equal(train(settings(tmp_path, **shared, resume=True)), expected)
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")


def test_a_signal_while_the_last_step_is_saved_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = train(RunSettings(out=tmp_path / "whole", device="cpu"))
    save = Run.save

    def save_and_signal(run: Run) -> None:
        save(run)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(Run, "save", save_and_signal)
        with pytest.raises(Interrupted, match="SIGTERM after step 12 of 12"):
            train(settings(tmp_path))
    assert equal(train(settings(tmp_path, resume=True)), expected)


def test_random_numbers_between_restore_and_the_first_step_change_nothing(tmp_path: Path) -> None:
    expected = train(RunSettings(out=tmp_path / "whole", device="cpu"))
    with pytest.raises(Interrupted):
        train(settings(tmp_path), each_step=stop_at(5))
    with Run(settings(tmp_path, resume=True), {"width": 4}) as run:
        network = small_network(0.3)
        optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
        assert run.restore(network=network, optimizer=optimizer) == 6
        torch.rand(5), draw()
        for _, batch in run.steps(batches(), 12):
            loss = nn.functional.binary_cross_entropy_with_logits(network(batch["image"]), batch["label"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            draw()
    assert equal(dict(network.state_dict()), expected)


def test_a_finished_run_resumes_without_steps(tmp_path: Path) -> None:
    expected = train(settings(tmp_path))
    assert equal(train(settings(tmp_path, resume=True)), expected)
    assert len(metrics(tmp_path / "run")) == 12


def test_a_run_stopped_before_its_first_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = train(RunSettings(out=tmp_path / "whole", device="cpu"))

    def crash(run: Run, step: int) -> None:
        if step == 3:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(settings(tmp_path), each_step=crash)
    assert equal(train(settings(tmp_path, resume=True)), expected)
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    assert "before its first checkpoint; starting from step 0" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_checkpoint_falls_back(tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    expected = train(RunSettings(out=tmp_path / "whole", device="cpu"))
    train(settings(tmp_path, checkpoint_every=4), total=9)
    newest, older = (checkpoint_path(tmp_path / "run" / "checkpoints", step) for step in (9, 8))
    content = newest.read_bytes()
    middle = len(content) // 2
    newest.write_bytes(
        content[:middle]
        if damage == "truncated"
        else content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]
    )
    assert equal(train(settings(tmp_path, resume=True)), expected)
    error = capsys.readouterr().err
    assert f"warning: {newest}: damaged" in error
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    assert older.exists()
    assert not newest.exists()
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(CheckpointError, match="all checkpoints are damaged"):
        train(settings(tmp_path, resume=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c | {"state": {"network": {}, "optimizer": {}}}, "belongs to another network: has no '0.weight'"),
        (lambda c: c | {"state": {"generator": {}}}, "holds generator; this run has network, optimizer"),
        (lambda c: c | {"state": c["state"] | {"optimizer": {}}}, "its 'optimizer' does not fit this run"),
        (lambda c: c["state"], "not a checkpoint of a run"),
    ],
)
def test_checkpoint_of_another_run(tmp_path: Path, change: Any, message: str) -> None:
    train(settings(tmp_path), total=2)
    path = checkpoint_path(tmp_path / "run" / "checkpoints", 2)
    save_checkpoint(path, change(load_checkpoint(path)))
    with pytest.raises(CheckpointError, match=message) as caught:
        train(settings(tmp_path, resume=True))
    assert str(caught.value).startswith(str(path))
    assert str(caught.value).count(str(path)) == 1


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = train(RunSettings(out=tmp_path / "whole", device="cpu"))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OutputError, match=r"step-000000010\.pt: the disk is full; free some space and .* --resume"):
        train(
            settings(tmp_path, checkpoint_every=5),
            each_step=lambda run, step: monkeypatch.setattr(os, "replace", full) if step == 7 else None,
        )
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000000005.pt"]
    assert equal(train(settings(tmp_path, resume=True)), expected)


def test_a_full_disk_at_the_metrics_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OutputError, match=r"metrics\.jsonl: the disk is full"):
        train(settings(tmp_path), each_step=lambda run, step: monkeypatch.setattr(os, "fsync", full))
    assert list((tmp_path / "run").glob("checkpoints/*")) == []


# Signals


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    def twice(run: Run, step: int) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("the second signal did not interrupt")

    with pytest.raises(Interrupted, match="Ctrl-C after step 3;"):
        train(settings(tmp_path, checkpoint_every=2), each_step=twice)
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1


def test_a_signal_outside_the_loop_stops_at_once(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="stopped by SIGTERM") as caught, Run(settings(tmp_path)):
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.exit_status == 143


def test_a_run_in_another_thread_leaves_signals_alone(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    results: list[dict[str, Tensor]] = []
    thread = threading.Thread(target=lambda: results.append(train(settings(tmp_path), total=2)))
    thread.start()
    thread.join()
    assert len(results) == 1
    assert signal.getsignal(signal.SIGINT) is before


def test_leaving_the_loop_early(tmp_path: Path) -> None:
    with Run(settings(tmp_path, workers=1)) as run:
        for step, _ in run.steps(batches(), 100):
            if step == 3:
                break
        assert run.step == 3
        assert not (tmp_path / "run" / "checkpoints").exists()
        run.save()
    assert load_checkpoint(checkpoint_path(tmp_path / "run" / "checkpoints", 3))["step"] == 3


def test_two_loops_in_a_row(tmp_path: Path) -> None:
    with Run(settings(tmp_path)) as run:
        first = [step for step, _ in run.steps(batches(), 3)]
        second = [step for step, _ in run.steps(batches(), 5, label="adaptation")]
    assert (first, second) == ([0, 1, 2], [3, 4])


def test_seed_decides(tmp_path: Path) -> None:
    weights = [
        train(RunSettings(out=tmp_path / str(i), device="cpu", seed=seed), 2) for i, seed in enumerate((1, 1, 2))
    ]
    assert equal(weights[0], weights[1])
    assert not equal(weights[0], weights[2])


def test_result_does_not_depend_on_the_workers(tmp_path: Path) -> None:
    weights = [train(RunSettings(out=tmp_path / str(n), device="cpu", workers=n)) for n in (0, 2)]
    assert equal(*weights)
