"""FSDP2 in two processes on the CPU (gloo), started by torchrun, against one process with the joint batch."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dart_core.checkpoint import load_checkpoint, load_weights
from dart_core.errors import SettingError
from dart_core.settings import ShardedRunSettings
from dart_core.sharding import is_sharded, repeated_blocks, whole
from dart_core.testing import assert_equal_states, torchrun

PROGRAM = Path(__file__).parent / "programs" / "sharded.py"
NAMES = ["plain", "accumulated", "ours", "alone"]


@pytest.fixture(scope="module")
def program() -> dict[str, Any]:
    return runpy.run_path(str(PROGRAM))


@pytest.fixture(scope="module")
def one(program: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("one") / "run"
    program["train"](out)
    return out


@pytest.fixture(scope="module")
def two(program: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trainings of the program in two processes; one of them continues a run of a single process."""
    folder = tmp_path_factory.mktemp("two")
    program["train"](folder / "alone", program["HALF"], sharding="none")
    torchrun(PROGRAM, folder)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_weights(folder / "weights.safetensors")[0]


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def state(folder: Path) -> dict[str, Any]:
    return load_checkpoint(max((folder / "checkpoints").iterdir()))["state"]


@pytest.mark.slow
class TestTwoProcesses:
    @pytest.mark.parametrize("name", NAMES)
    def test_equal_one_with_the_joint_batch(self, two: Path, one: Path, name: str) -> None:
        assert load_weights(two / name / "weights.safetensors")[1] == {"processes": "2"}
        torch.testing.assert_close(weights(two / name), weights(one), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(losses(two / name), losses(one), rtol=1e-6, atol=1e-6)

    def test_hold_half_of_the_weights_each(self, two: Path, one: Path) -> None:
        held, all_of_them = (json.loads((path / "metrics.json").read_text())["held"] for path in (two / "plain", one))
        assert all_of_them == sum(tensor.numel() for tensor in weights(one).values()) - 1
        # The first of two gets the larger half of what cannot be halved.
        assert all_of_them / 2 <= held < 0.6 * all_of_them

    @pytest.mark.parametrize("name", NAMES)
    def test_checkpoints_are_those_of_one_process(self, two: Path, one: Path, name: str) -> None:
        torch.testing.assert_close(state(two / name), state(one), rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("name", NAMES[:2])
    def test_one_process_calls_the_gathered_network(self, two: Path, one: Path, name: str) -> None:
        shown, expected = (json.loads((path / "metrics.json").read_text())["shown"] for path in (two / name, one))
        assert list(expected) == ["1", "5", "9"]
        assert shown == pytest.approx(expected, abs=1e-5)

    def test_one_process_cannot_write_what_is_spread(self, two: Path, one: Path) -> None:
        assert json.loads((two / "plain" / "metrics.json").read_text())["refused"]
        assert not json.loads((one / "metrics.json").read_text())["refused"]

    def test_resume_is_exact(self, two: Path) -> None:
        assert_equal_states(state(two / "ours"), state(two / "plain"))

    def test_one_process_continues(self, two: Path, one: Path, program: dict[str, Any]) -> None:
        program["train"](two / "half", sharding="none", resume=True)
        torch.testing.assert_close(weights(two / "half"), weights(one), rtol=1e-6, atol=1e-6)

    def test_only_one_writes(self, two: Path) -> None:
        files = {path.name for path in (two / "plain").rglob("*") if path.is_file()}
        names = {"config.yaml", "metrics.json", "metrics.jsonl", "weights.safetensors"}
        assert files == names | {"step-000000009.pt", "step-000000012.pt"}


def test_blocks_are_found_and_layers_are_not(program: dict[str, Any]) -> None:
    network = program["Network"]()
    assert repeated_blocks(network) == list(network.blocks)
    assert not repeated_blocks(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    assert not repeated_blocks(nn.Sequential(nn.Sequential(nn.ReLU()), nn.Sequential(nn.ReLU())))


@pytest.mark.parametrize(
    ("name", "blocks", "stages"),
    [("vit_tiny_patch16_224", 12, 0), ("swin_tiny_patch4_window7_224", 12, 4), ("beit_base_patch16_224", 12, 0)],
)
def test_blocks_of_timm(name: str, blocks: int, stages: int) -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        network = timm.create_model(name)
    found = [type(block).__name__ for block in repeated_blocks(network)]
    assert sum("Block" in kind for kind in found) == blocks
    assert sum("Stage" in kind for kind in found) == stages


def test_whole_leaves_other_states_alone() -> None:
    given = {"a": [torch.ones(2), (1, "b")], "c": None}
    assert_equal_states(whole(given), given)
    assert not is_sharded(nn.Linear(2, 2))


@pytest.mark.parametrize("given", [{"precision": "fp16"}, {"channels_last": True}, {"compile": True}])
def test_what_does_not_go_with_sharding(tmp_path: Path, given: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="--sharding fsdp"):
        ShardedRunSettings(out=tmp_path, sharding="fsdp", **given)
    ShardedRunSettings(out=tmp_path, **given)
