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
        flat = flat_settings(command)  # config.yaml
        expected = {
            "inner_epochs": 20, "inner_lr": 0.01, "weight_decay": 0.003, "factor": 0.7, "meta_epochs": 100, "meta_lr": 0.01,
            "weighting": "inverse_distance", "replacement": "off", "checkpoint_every": 1,
        }  # fmt: skip
        assert {name: flat[name] for name in expected} == expected
        found = (command.definition, command.inner, command.meta)
        assert found == (Tasks().resolved(), Inner().resolved(), Meta().resolved())
        assert dataclasses.replace(command) == command

    def test_dawoud_has_its_own(self, given):
        """Specification 4, item 3."""
        command = given("--method", "dawoud")
        flat = flat_settings(command)  # config.yaml
        expected = {
            "inner_epochs": 30, "inner_lr": 0.001, "weight_decay": 5e-4, "factor": 1.0, "meta_epochs": 300, "meta_lr": 1.0,
            "weighting": "average", "shots": 15, "replacement": "on", "alpha": 0.01, "beta": 0.01, "checkpoint_every": 1,
        }  # fmt: skip
        assert {name: flat[name] for name in expected} == expected
        assert dataclasses.replace(command) == command
        again = [word for key in ("weighting", "inner_epochs", "meta_lr") for word in (f"--{key}", flat[key])]
        assert given("--method", "dawoud", *again).meta.weighting == "average"

    @pytest.mark.parametrize(
        ("words", "changed"),
        [
            (("--meta-epochs", 100), {"meta_epochs": 100}),
            (("--shots", 5), {"shots": 5}),
            (("--replacement", "off"), {"replacement": "off"}),
            (("--inner-epochs", 20, "--inner-lr", 0.01), {"inner_epochs": 20, "inner_lr": 0.01}),
        ],
    )
    def test_what_is_given_to_dawoud_acts_and_changes_nothing_else(self, words, changed, given):
        """Also where it is the default of another method."""
        usual = flat_settings(given("--method", "dawoud"))
        assert flat_settings(given("--method", "dawoud", *words)) == {**usual, **changed}

    def test_transfer_writes_no_checkpoint_each_slice(self, given):
        assert given("--method", "transfer").run.checkpoint_every == 500
        assert given("--method", "transfer", "--checkpoint-every", 20).run.checkpoint_every == 20


@pytest.mark.parametrize(
    ("method", "words"),
    [
        *(("dawoud", words) for words in (
            ("--loss", "iou"), ("--batch-size", 2), ("--visit-decay",), ("--per-epoch", 3), ("--weighting", "complement"),
            ("--weighting", "inverse_distance"), ("--distance-to", "mean"), ("--epochs", 3),
        )),
        *(("transfer", words) for words in (
            ("--inner-lr", 0.1), ("--loss", "bce"), ("--meta-lr", 0.1), ("--validation-slices", 0), ("--shots", 3), ("--alpha", 0.1),
            ("--inner-lr", 0.01), ("--processes", 2), ("--threads", 2),
        )),
        *(("reptile", words) for words in (("--entropy", "full"), ("--slices-per-set", 3))),
    ],
)  # fmt: skip
def test_what_a_method_never_reads_is_refused(method, words, command, slices, tmp_path):
    finished = command("meta-train", "--slices", slices, "--method", method, *words, "--out", tmp_path / "run")
    assert finished.status == 2
    assert f"{words[0]} does nothing with the method {method}; leave it out" in finished.line
    assert not (tmp_path / "run").exists()


def test_flags_without_effect_beside_others_are_refused(command, slices, tmp_path):
    out = ("--slices", slices, "--out", tmp_path / "run")
    finished = command("meta-train", "--weighting", "average", "--distance-to", "mean", *out)
    assert finished.status == 2
    assert "--distance-to does nothing with --weighting average; leave it out" in finished.line
    finished = command("fine-tune", "--target", "spleen", "--shots", 0, "--shots-from", "volume", *out)
    assert finished.status == 2
    assert "--shots-from volume does nothing with --shots 0" in finished.line
    assert not (tmp_path / "run").exists()
