"""`odex learn`, killed or stopped inside a stage and resumed, against the stages that nothing happened to; and a chain of stages."""

from __future__ import annotations

import json
import sys

import pytest

from dart_core.testing import Trainings, assert_equal_states

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals"),
    pytest.mark.timeout(900),
]

LONGER = ("--epochs", 4, "--batches", 3, "--log-every", 1, "--checkpoint-every", 2, "--device", "cpu", "--seed", 1)


@pytest.fixture(scope="module")
def trainings(tmp_path_factory):
    with Trainings("odex", tmp_path_factory.mktemp("trainings"), ("odex.learning",)) as made:
        yield made


def decided(run):
    content = json.loads((run / "pool" / "pool.json").read_text())
    for stage in content["stages"]:
        stage.pop("seconds")
    return content


@pytest.mark.parametrize("method", ["odex-inf", "rw"])
def test_a_stage_is_killed(method, trainings, learned, stages, tmp_path):
    first = learned(method, 1)[0]
    words = ("learn", "--stage", stages[1], "--pool", first, *LONGER)
    trainings.assert_survives_kill(words, tmp_path / "run")
    # pool and decisions too, and weights, statistics and memory were compared as files
    assert_equal_states(decided(tmp_path / "run"), decided(trainings.whole(words)))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ewc", "mib", "plop", "lwf"])
def test_a_stage_is_stopped(method, trainings, learned, stages, tmp_path):
    """As published: what a method remembers, and the network before the stage, are those of the run that goes through."""
    first = learned(method, 1)[0]
    words = ("learn", "--stage", stages[1], "--pool", first, *LONGER)
    trainings.assert_survives_interrupt(words, tmp_path / "run")
    assert_equal_states(decided(tmp_path / "run"), decided(trainings.whole(words)))


@pytest.mark.slow
def test_a_stage_is_stopped_while_lwf_runs_through_it_twice(trainings, learned, stages, tmp_path):
    first = learned("lwf", 1, "--compat", "lifelong-nnunet")[0]
    trainings.assert_survives_interrupt(("learn", "--stage", stages[1], "--pool", first, *LONGER), tmp_path / "run")


def test_a_resumed_stage_goes_on_to_the_same_next_one(command, trainings, learned, stages, tmp_path):
    """Between stages everything lies in the run folder: the same folder read later gives the same next stage."""
    first = learned("odex", 1)[0]
    words = ("learn", "--stage", stages[1], "--pool", first, *LONGER)
    whole = trainings.whole(words)
    assert command(*words, "--out", tmp_path / "again").status == 0
    assert_equal_states(decided(tmp_path / "again"), decided(whole))
    # finished already: the same pool once more
    assert command(*words, "--out", tmp_path / "again", "--resume").status == 0
    assert_equal_states(decided(tmp_path / "again"), decided(whole))
