"""The four targets and their labels (specification 4 to 6)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dart_core.data.datalist import Datalist, Row
from popar.recipes import (
    RECIPES,
    label_loss,
    labelled_parts,
    optimizer_of,
    read_labels,
    recipe_of,
    scores_of,
    with_drawn_test,
)
from popar.settings import FineTuning, LabelSettings


def rows(cells, split="train", subjects=True):
    """A datalist with label cells: one dict per picture."""
    source = Path("list.csv")
    return Datalist(
        tuple(
            Row(Path(f"{i}.png"), subject=f"s{i}" * subjects, split=split, labels={k: v for k, v in row.items() if v}, line=i + 2, source=source)
            for i, row in enumerate(cells)
        ),
        source,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("target", "outputs", "batch", "optimizer", "rate", "multi_label"),
    [
        ("chestxray14", 14, 160, "adamw", 1e-4, True),
        ("chexpert", 14, 160, "sgd", 0.01, True),
        ("shenzhen", 1, 60, "sgd", 0.01, True),
        ("rsna-pneumonia", 3, 120, "sgd", 0.01, False),
    ],
)
def test_recipes_of_the_paper(target, outputs, batch, optimizer, rate, multi_label):
    recipe = recipe_of(LabelSettings(target), FineTuning())
    assert (len(recipe.labels), recipe.batch_size, recipe.optimizer, recipe.learning_rate, recipe.multi_label) == (outputs, batch, optimizer, rate, multi_label)  # fmt: skip
    made = optimizer_of(recipe, torch.nn.Linear(2, 2)).param_groups[0]
    if optimizer == "adamw":
        assert (made["betas"], made["weight_decay"]) == ((0.9, 0.999), 0.01)
    else:
        assert (made["momentum"], made["nesterov"], made["weight_decay"]) == (0.9, False, 0)


def test_order_and_reported_labels():
    assert RECIPES["chestxray14"].labels[:3] == ("Atelectasis", "Cardiomegaly", "Effusion")
    assert set(RECIPES["chexpert"].reported) == {
        "Atelectasis",
        "Cardiomegaly",
        "Consolidation",
        "Edema",
        "Pleural Effusion",
    }
    assert FineTuning().epochs == 200
    assert FineTuning().patience == 20
    other = recipe_of(LabelSettings("shenzhen"), FineTuning(optimizer="adamw", batch_size=8))
    assert (other.learning_rate, other.batch_size) == (1e-4, 8)
    assert recipe_of(LabelSettings("shenzhen"), FineTuning(learning_rate=1e-3)).learning_rate == 1e-3


def test_uncertain_labels_are_drawn_anew_each_time():
    names = RECIPES["chexpert"].labels
    cells = [{name: "-1" if name == "Edema" else "0" for name in names} for _ in range(10)]
    label = LabelSettings("chexpert")
    part = labelled_parts(rows(cells), label, recipe_of(label, FineTuning()))["train"]
    edema = names.index("Edema")
    assert part.uncertain[:, edema].all()
    assert part.uncertain.sum() == len(part)
    generator = np.random.default_rng(0)
    drawn = np.array([part.targets(0, generator, "lsr-ones") for _ in range(200)])
    assert drawn[:, edema].min() >= 0.55
    assert drawn[:, edema].max() <= 0.85
    assert drawn[:, edema].mean() == pytest.approx(0.7, abs=0.02)
    assert (np.delete(drawn, edema, 1) == 0).all()
    for policy, value in (("ones", 1), ("zeros", 0)):
        assert part.targets(0, generator, policy)[edema] == value
    assert np.isnan(part.pictures.truth[0, edema])


@pytest.mark.parametrize(
    ("target", "cells", "line"),
    [
        ("multi-label", [{"a": "1"}, {"a": "-1"}], r"row 3, column a: '-1' is no label; give 0 or 1; an uncertain"),
        ("multi-label", [{"a": "1", "b": "0"}, {}], r"row 3, column a: no label is filled in; fill in 0 or 1"),
        ("multi-label", [{}, {}], "has no label column"),
        ("multi-class", [{"a": "1", "b": "0"}, {"a": "1", "b": "1"}], r"row 3: 2 of the classes a, b are 1; mark exactly one"),
        ("multi-class", [{"a": "0", "b": "0"}], "0 of the classes a, b are 1"),
        ("shenzhen", [{"a": "1"}], "no column 'Tuberculosis'"),
        ("chexpert", [{"Edema": "2"}], "no column"),
    ],
)  # fmt: skip
def test_bad_cells(target, cells, line):
    label = LabelSettings(target)
    with pytest.raises(ValueError, match=line):
        labelled_parts(rows(cells), label, recipe_of(label, FineTuning()))


def test_empty_cells_are_unknown_and_left_out_of_the_loss():
    label = LabelSettings()
    recipe = recipe_of(label, FineTuning())
    pictures, _ = read_labels(rows([{"a": "1", "b": "0"}, {"a": "0", "b": ""}]), label, recipe)
    assert np.isnan(pictures.truth[1, 1])
    logits = torch.tensor([[0.5, -1.0], [2.0, 30.0]], requires_grad=True)
    loss = label_loss(logits, torch.from_numpy(pictures.truth), True)
    known = F.binary_cross_entropy_with_logits(torch.tensor([0.5, -1.0, 2.0]), torch.tensor([1.0, 0.0, 0.0]))
    assert loss.item() == pytest.approx(known.item())
    loss.backward()
    assert logits.grad[1, 1] == 0
    assert label_loss(logits, torch.full((2, 2), torch.nan), True) == 0


def test_empty_cells_of_chexpert_are_absent():
    """Unless they are uncertain (specification 5); that they are unknown is so in other data only."""
    names = RECIPES["chexpert"].labels
    cells = [dict.fromkeys(names, "") | {"Edema": "1", "Fracture": "-1"}, dict.fromkeys(names, "1")]
    label = LabelSettings("chexpert")
    part = labelled_parts(rows(cells), label, recipe_of(label, FineTuning()))["train"]
    place = next(i for i, row in enumerate(part.pictures.rows) if row.image.name == "0.png")
    edema, fracture = names.index("Edema"), names.index("Fracture")
    targets = part.targets(place, np.random.default_rng(0), "lsr-zeros")
    assert targets[edema] == 1
    assert 0 < targets[fracture] < 0.3
    assert (np.delete(targets, [edema, fracture]) == 0).all()
    assert np.flatnonzero(np.isnan(part.pictures.truth[place])).tolist() == [fracture]


def test_loss_of_classes():
    logits, truth = torch.randn(4, 3), torch.tensor([2, 0, 1, 1])
    found = label_loss(logits, F.one_hot(truth, 3).float(), False)
    assert found.item() == pytest.approx(F.cross_entropy(logits, truth).item())


def test_several_data_sets_must_be_told_apart():
    mixed = Datalist((Row(Path("a.png"), site="x", labels={"a": "1"}), Row(Path("b.png"), site="y", labels={"a": "0"})))
    with pytest.raises(ValueError, match="several data sets: x, y; name one: --site x"):
        read_labels(mixed, LabelSettings(), recipe_of(LabelSettings(), FineTuning()))


def test_splits_are_drawn_by_patient_and_are_the_same_again():
    cells = [{"a": str(i % 2)} for i in range(200)]
    label = LabelSettings(split_seed=3)
    recipe = recipe_of(label, FineTuning())
    parts, again = (labelled_parts(rows(cells, ""), label, recipe) for _ in range(2))
    assert sum(map(len, parts.values())) == 200
    assert all(len(part) > 5 for part in parts.values())
    names = {name: {row.image for row in part.pictures.rows} for name, part in parts.items()}
    assert not names["train"] & names["test"]
    assert names == {name: {row.image for row in part.pictures.rows} for name, part in again.items()}


@pytest.mark.parametrize("subjects", [True, False])
@pytest.mark.parametrize("named", ["", "val"])
def test_the_drawn_test_is_known_before(named, subjects):
    """The same pictures as in the fine-tuning on each of two data sets, whatever its seed."""
    cells = [{"a": str(i % 2)} for i in range(60)]
    listed = [
        dataclasses.replace(row, site="xy"[i % 2], split=named if i % 5 == 0 else "")
        for i, row in enumerate(rows(cells, "", subjects))
    ]
    datalist = Datalist(tuple(listed), Path("list.csv"))
    for seed in (0, 7):
        marked, count = with_drawn_test(datalist, seed)
        assert [row.image for row in marked] == [row.image for row in datalist]
        drawn = {row.image for row in marked if row.split == "test"}
        assert len(drawn) == count > 0
        label = LabelSettings(split_seed=seed)
        tests = [
            labelled_parts(datalist.select(site=site), label, recipe_of(label, FineTuning()))["test"] for site in "xy"
        ]
        assert drawn == {row.image for part in tests for row in part.pictures.rows}


@pytest.mark.parametrize(
    ("cells", "split"), [([{"a": "1"}] * 40, "train"), ([{}] * 40, ""), ([{"age": "61"}] * 40, "")]
)
def test_no_test_is_drawn(cells, split):
    """Where the data name every split, or nothing to fine-tune on."""
    datalist = rows(cells, split)
    assert with_drawn_test(datalist, 0) == (datalist, 0)
    named = Datalist((*datalist, Row(Path("t.png"), split="test", labels={"a": "1"})), datalist.source)
    assert with_drawn_test(named, 0) == (named, 0)


def test_scores():
    truth = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]], dtype=float)
    scores = np.array([[0.9, 0.1, 0.5], [0.2, 0.4, 0.5], [0.2, 0.3, 0.5], [0.2, 0.4, 0.5]])
    found = scores_of(truth, scores, ("a", "b", "c"), True)
    # a: 0.9 and 0.2 against 0.2, 0.2: (2 + 2/2)/4; b: 0.4 against 0.1, 0.3, 0.4: 2.5/3
    assert found["auc"] == {"a": pytest.approx(0.75), "b": pytest.approx(2.5 / 3), "c": None}
    assert found["mean_auc"] == pytest.approx((0.75 + 2.5 / 3) / 2)
    assert found["undefined"] == ["c"]
    assert scores_of(truth, scores, ("a", "b", "c"), True, ("b",))["mean_auc"] == pytest.approx(2.5 / 3)
    classes = np.eye(3)[[0, 1, 1, 2]]
    predicted = np.array([[0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.5, 0.4, 0.1], [0, 0, 1.0]])
    assert scores_of(classes, predicted, ("a", "b", "c"), False)["accuracy"] == 0.75
