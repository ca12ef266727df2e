"""Which networks' scores share a mean, and which stand for themselves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mmtl_octl.evaluation import Scored, paper_tables, place_of
from mmtl_octl.models import Model


def scored(source: list[str], target: str, site: str, value: float, method: str = "mmtl") -> Scored:
    model = Model("ResidualUNet2d", 2, 1, "plain", None, "sgd", 1, source, target, method, 1, 3, 89)
    result: Any = SimpleNamespace(surface_dice=value, dice=value)
    return Scored(model, site, [result])


def test_joint_sources_count_with_every_site_and_other_sites_apart() -> None:
    joint = ["a", "b"]
    networks = [
        scored(joint, "t", "t", 0.9), scored(joint, "t", "a", 0.6), scored(joint, "t", "b", 0.4),
        scored(["a"], "t", "c", 0.1), scored(["a"], "u", "c", 0.3),
    ]  # fmt: skip
    found = {where: [(cell.pairs, cell.mean) for cell in cells] for where, cells in paper_tables(networks)[1].items()}
    assert found == {
        "target": [(1, pytest.approx(0.9))],
        "source": [(2, pytest.approx(0.5))],
        "elsewhere": [(2, pytest.approx(0.2))],
    }


def test_networks_of_one_source_and_several_targets_count_once_each() -> None:
    """Table 3 of the paper: every pair, tested on its source."""
    networks = [scored(["a"], target, "a", value) for target, value in (("t", 0.4), ("u", 0.8))]
    (cell,) = paper_tables(networks)[1]["source"]
    assert (cell.pairs, cell.mean) == (2, pytest.approx(0.6))


def test_a_method_with_options_stands_behind_the_plain_one() -> None:
    names = ["target", "mmtl", "octl_start0", "fta_mu05", "octl", "fta_mu099", "none", "unheard"]
    assert [place_of(name) for name in names] == [8, 7, 6, 1, 6, 2, 0, 1]
