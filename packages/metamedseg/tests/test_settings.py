"""What the settings of meta-train become with each method, and what each refuses."""

from __future__ import annotations

import dataclasses

import pytest

from dart_core.run import flat_settings
from dart_core.testing import settings_given
from metamedseg.cli import COMMANDS
from metamedseg.settings import Inner, Meta, MetaTrain, Tasks


@pytest.fixture
def given(monkeypatch):
    """The settings that meta-train gets from some words."""

    def parse(*words: object) -> MetaTrain:
        every = ["meta-train", "--slices", "slices", "--out", "run", *map(str, words)]
        return settings_given("metamedseg", COMMANDS, every, monkeypatch)

    return parse


class TestDefaults:
    def test_reptile_has_the_papers(self, given):
        command = given()
        assert (command.definition, command.inner, command.meta) == (Tasks(), Inner(), Meta())
        assert command.run.checkpoint_every == 1

    def test_dawoud_has_its_own(self, given):
        """Specification 4, item 3."""
        command = given("--method", "dawoud")
        flat = flat_settings(command)  # config.yaml
        expected = {
            "inner_epochs": 30, "inner_lr": 0.001, "weight_decay": 5e-4, "factor": 1.0, "meta_epochs": 300, "meta_lr": 1.0,
            "weighting": "average", "shots": 15, "replacement": True, "alpha": 0.01, "beta": 0.01, "checkpoint_every": 1,
        }  # fmt: skip
        assert {name: flat[name] for name in expected} == expected
        assert dataclasses.replace(command) == command
        again = [word for key in ("weighting", "inner_epochs", "meta_lr") for word in (f"--{key}", flat[key])]
        assert given("--method", "dawoud", *again).meta.weighting == "average"

    def test_a_group_in_which_something_is_given_stays(self, given):
        command = given("--method", "dawoud", "--shots", 5, "--inner-epochs", 7)
        assert (command.definition, command.inner) == (Tasks(shots=5), Inner(inner_epochs=7))
        assert command.meta.meta_epochs == 300
        assert given("--method", "dawoud", "--meta-epochs", 9).meta == Meta(meta_epochs=9, weighting="average")

    def test_transfer_writes_no_checkpoint_each_slice(self, given):
        assert given("--method", "transfer").run.checkpoint_every == 500
        assert given("--method", "transfer", "--checkpoint-every", 20).run.checkpoint_every == 20


@pytest.mark.parametrize(
    ("method", "words"),
    [
        *(("dawoud", words) for words in (
            ("--loss", "iou"), ("--batch-size", 2), ("--visit-decay",), ("--per-epoch", 3), ("--weighting", "complement"),
            ("--distance-to", "mean"), ("--epochs", 3),
        )),
        *(("transfer", words) for words in (
            ("--inner-lr", 0.1), ("--loss", "bce"), ("--meta-lr", 0.1), ("--validation-slices", 0), ("--shots", 3), ("--alpha", 0.1),
        )),
        *(("reptile", words) for words in (("--entropy", "full"), ("--slices-per-set", 3))),
    ],
)  # fmt: skip
def test_what_a_method_never_reads_is_refused(method, words, command, slices, tmp_path):
    finished = command("meta-train", "--slices", slices, "--method", method, *words, "--out", tmp_path / "run")
    assert finished.status == 2
    assert f"{words[0]} does nothing with the method {method}; leave it out" in finished.line
    assert not (tmp_path / "run").exists()
