"""Networks are pooled over seeds and compared with each other only where nothing else differs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from popar.evaluation import Scored, comparisons, over_seeds, result_rows
from popar.models import Tuned

VARIANTS = (
    {"network": {"depth": 4}}, {"network": {"depth": 6}}, {"head": "mlp"}, {"normalisation": "chestxray14"},
    {"site": "elsewhere"}, {"image_size": 448}, {"backbone": "swin_b"},
)  # fmt: skip


def scored(init, seed, **changes):
    """Perfect on two pictures of the data set "here"."""
    usual = {
        "backbone": "vit_b",
        "image_size": 224,
        "network": {},
        "head": "linear",
        "normalisation": "imagenet",
        "site": "here",
    }
    about = Tuned(
        labels=("a",), multi_label=True, colour=False, target="multi-label", init=init, seed=seed, split_seed=0,
        **{**usual, **changes},
    )  # fmt: skip
    truth = np.array([[0.0], [1.0]])
    return Scored(Path(f"{init}-{seed}"), about, truth, truth, "here")


@pytest.mark.parametrize("changes", VARIANTS)
def test_other_networks_are_no_further_seeds(changes):
    results = result_rows([scored("random", 0), scored("random", 1), scored("random", 0, **changes)])
    rows = over_seeds(results)
    assert [row["seeds"] for row in rows] == [2, 1]
    assert rows[0]["method"] == "random, vit_b at 224"
    assert rows[1]["method"] != rows[0]["method"]


@pytest.mark.parametrize("changes", VARIANTS)
def test_other_networks_are_not_compared(changes):
    base = [scored("random", 0), scored("random", 1)]
    assert comparisons(result_rows([*base, scored("POPAR", 0, **changes)]), "random") == []
    alike = [scored("random", seed, **changes) for seed in (0, 1)]
    results = result_rows([*base, *alike, scored("POPAR", 0, **changes), scored("POPAR", 1, **changes)])
    (row,) = comparisons(results, "random")
    assert (row["pairs"], row["difference"]) == (2, 0)
    assert row["method"] == results[-1]["method"]
    assert row["method"].startswith("POPAR, ")


def test_names_of_other_training_sites():
    (row,) = result_rows([scored("POPAR", 0, site="elsewhere", head="mlp")])
    assert row["method"] == "POPAR, vit_b at 224, mlp head, trained on elsewhere"
