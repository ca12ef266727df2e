"""The names that tables give to methods: those of the paper, and with every option that is not the default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mmtl_octl.settings import Adaptation

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.mark.parametrize(
    ("task", "optimizer", "options", "name"),
    [
        ("segmentation", "sgd", {"method": "fta", "momentum": 0.99}, "fta_mu099"),
        ("segmentation", "sgd", {"method": "octl", "momentum": 0.99}, "octl"),
        ("segmentation", "sgd", {"method": "octl", "momentum": 0.0}, "octl_mu0"),
        ("segmentation", "sgd", {"method": "octl", "betas": (0.9, 0.999), "start_step": 0}, "octl"),
        ("segmentation", "adam", {"method": "octl", "betas": (0.9, 0.999)}, "octl_betas0.9-0.999"),
        ("segmentation", "adam", {"method": "octl", "start_step": "keep"}, "octl_startkeep"),
        ("classification", "adam", {"method": "octl", "start_step": "keep"}, "octl"),
        ("classification", "adam", {"method": "octl", "start_step": 100}, "octl_start100"),
        ("segmentation", "sgd", {"method": "mmtl", "schedule": "release", "keep_source": True}, "mmtl_release_kept"),
        ("classification", "adam", {"method": "mmtl", "schedule": "paper"}, "mmtl_paper"),
        ("segmentation", "sgd", {"method": "l2sp", "alpha": 0.5, "beta": 1}, "l2sp_alpha0.5"),
        ("segmentation", "sgd", {"method": "l2sp", "l2sp": "li2018", "beta": 1}, "l2sp_li2018_beta1"),
        ("segmentation", "sgd", {"method": "spottune", "k": 0.0}, "spottune_k0"),
        ("classification", "adam", {"method": "spottune", "k": 0.0}, "spottune"),
        ("segmentation", "sgd", {"method": "ftf", "keep": "best", "alpha": 7}, "ftf_best"),
    ],
)
def test_names_tell_options_apart(task: Any, optimizer: Any, options: Any, name: str) -> None:
    assert Adaptation(**options).name_in(task, optimizer) == name


@pytest.mark.parametrize("method", ["none", "mmtl", "octl", "fta", "ftf", "l2sp", "spottune", "target"])
def test_the_papers_settings_have_the_papers_names(method: Any) -> None:
    assert Adaptation(method).name == method
    for file in (*CONFIGS.glob("table2_*_[0-9]*.yaml"), *CONFIGS.glob("table[45]_[0-9]*.yaml")):
        given = yaml.safe_load(file.read_text())
        names = ("schedule", "betas", "start_step", "l2sp", "alpha", "k")
        options = {name: tuple(given[name]) if name == "betas" else given[name] for name in names}
        task = given.get("task", "segmentation")
        assert Adaptation(method, **options).name_in(task, given["optimizer"]) == method, file
