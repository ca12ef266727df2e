"""The four targets of the paper, and one's own data (specification 4 and 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from dart_core.data.catalog import chestxray14, chexpert, rsna_pneumonia, shenzhen
from dart_core.data.datalist import Datalist, Row
from dart_core.data.pictures import (
    Pictures,
    filled,
    label_columns,
    read_pictures,
    site_rows,
    sites_of,
    split_pictures,
)
from dart_core.errors import InputError, SettingError
from dart_core.settings import UncertainLabels
from popar.settings import FineTuning, LabelSettings, Target

OptimizerName = Literal["sgd", "adamw"]
RATES: dict[str, float] = {"sgd": 0.01, "adamw": 1e-4}
MOMENTUM, DECAY = 0.9, 0.01
VAL_SHARE, TEST_SHARE = 0.13, 0.2
"""Chance of a patient to be for validation (that of ChestX-ray14's published lists) or test, where the data name none."""
UNCERTAIN = ("-1", "-1.0")
_ADVICE = dict.fromkeys(UNCERTAIN, "an uncertain label is understood with --target chexpert")


@dataclass(frozen=True)
class Recipe:
    """A target: its labels and how a network is fine-tuned on them."""

    labels: tuple[str, ...]
    """Empty: those of the datalist."""
    multi_label: bool
    batch_size: int
    optimizer: OptimizerName
    learning_rate: float
    reported: tuple[str, ...] = ()
    """Labels of which the mean AUC is reported; empty: all."""


RECIPES: dict[Target, Recipe] = {
    "chestxray14": Recipe(chestxray14.LIST_ORDER, True, 160, "adamw", 1e-4),
    "chexpert": Recipe(chexpert.LABELS, True, 160, "sgd", 0.01, chexpert.COMPETITION),
    "shenzhen": Recipe((shenzhen.LABEL,), True, 60, "sgd", 0.01),
    "rsna-pneumonia": Recipe(rsna_pneumonia.CLASSES, False, 120, "sgd", 0.01),
    "multi-label": Recipe((), True, 32, "adamw", 1e-4),
    "multi-class": Recipe((), False, 32, "adamw", 1e-4),
}


def recipe_of(label: LabelSettings, tuning: FineTuning) -> Recipe:
    """The recipe of a target with what a command changes."""
    recipe = RECIPES[label.target]
    optimizer = tuning.optimizer or recipe.optimizer
    usual = recipe.learning_rate if optimizer == recipe.optimizer else RATES[optimizer]
    return replace(
        recipe, labels=label.labels or recipe.labels, batch_size=tuning.batch_size or recipe.batch_size,
        optimizer=optimizer, learning_rate=usual if tuning.learning_rate is None else tuning.learning_rate,
    )  # fmt: skip


# --- Labels ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Labelled:
    """Radiographs of one part with their labels."""

    pictures: Pictures
    uncertain: NDArray[np.bool_]
    """(n, labels): marked -1; `pictures.truth` is nan there."""

    def __len__(self) -> int:
        return len(self.pictures)

    def targets(self, index: int, generator: np.random.Generator, policy: UncertainLabels) -> NDArray[np.float32]:
        """What training takes the labels of a picture for: (labels,), nan = unknown."""
        marked = np.where(self.uncertain[index], -1, self.pictures.truth[index])
        return chexpert.draw_uncertain(marked, policy, generator).astype(np.float32)


def labelled_parts(datalist: Datalist, label: LabelSettings, recipe: Recipe) -> dict[str, Labelled]:
    """Training, validation and test pictures.

    What the datalist names is kept; where it names no test or validation pictures, patients are drawn (pictures, where it
    names no subjects).

    Args:
        datalist: rows of one data set.
        label: target, site and seed of the draw.
        recipe: labels.

    Raises:
        InputError: several data sets, no such label, a cell that is no label, or a class that is not exactly one.
    """
    pictures, uncertain = read_labels(datalist, label, recipe)
    parts = _split(pictures, label.split_seed)
    place = {id(row): i for i, row in enumerate(pictures.rows)}
    return {name: Labelled(part, uncertain[[place[id(row)] for row in part.rows]]) for name, part in parts.items()}


def _split(pictures: Pictures, seed: int) -> dict[str, Pictures]:
    split_by: Literal["patient", "image"] = "patient" if all(row.subject for row in pictures.rows) else "image"
    return split_pictures(pictures, split_by, TEST_SHARE, VAL_SHARE, seed)


def with_drawn_test(datalist: Datalist, seed: int) -> tuple[Datalist, int]:
    """The rows with split test where `labelled_parts` draws them for it, so that a pretraining can leave them out; how many.

    Each data set is drawn from by itself, as it is fine-tuned on. One that names test pictures, or has no label columns and
    therefore cannot be fine-tuned on, stays as it is.

    Args:
        datalist: rows of one or more data sets.
        seed: the `split_seed` of the fine-tuning.
    """
    drawn: set[int] = set()
    for site in sites_of(datalist):
        rows = site_rows(datalist, site)
        if all(row.split != "test" for row in rows) and label_columns(rows, _ADVICE):
            parts = _split(Pictures(site, (), rows, np.zeros((len(rows), 0), np.float32)), seed)
            drawn |= {id(row) for row in parts["test"].rows}
    rows = tuple(replace(row, split="test") if id(row) in drawn else row for row in datalist)
    return Datalist(rows, datalist.source), len(drawn)


def read_labels(
    datalist: Datalist, label: LabelSettings, recipe: Recipe, labelled: bool = True
) -> tuple[Pictures, NDArray[np.bool_]]:
    """All rows of a datalist with their labels, and (n, labels) where one is uncertain.

    Args:
        datalist: rows of one data set.
        label: target and site.
        recipe: labels.
        labelled: every picture must have a label.

    Raises:
        InputError: see `labelled_parts`.
    """
    sites = sites_of(datalist)
    if len(sites) > 1:
        raise SettingError(
            f"{datalist.source} holds several data sets: {', '.join(sites)}", remedy=f"name one: --site {sites[0]}"
        )
    rows = datalist.rows
    if label.target == "chexpert":
        rows = tuple(_certain(row, recipe.labels) for row in rows)
    pictures = read_pictures(Datalist(rows, datalist.source), sites[0], recipe.labels, False, _ADVICE)
    marked = [[row.labels.get(name, "") in UNCERTAIN for name in pictures.labels] for row in datalist.rows]
    uncertain = np.array(marked, dtype=bool).reshape(pictures.truth.shape)
    if label.target == "chexpert":
        # What a report does not mention counts as absent (specification 5), as in the folder of the owners.
        absent = np.isnan(pictures.truth) & ~uncertain
        pictures = replace(pictures, truth=np.where(absent, np.float32(0), pictures.truth))
    if labelled:
        _check_labelled(pictures, uncertain, recipe)
    return pictures, uncertain


def _certain(row: Row, labels: Sequence[str]) -> Row:
    """The row with its uncertain cells empty; they are kept apart."""
    emptied = {name: "" for name in labels if row.labels.get(name, "") in UNCERTAIN}
    return replace(row, labels={**row.labels, **emptied})


def _check_labelled(pictures: Pictures, uncertain: NDArray[np.bool_], recipe: Recipe) -> None:
    if not pictures.labels:
        raise InputError(
            f"site {pictures.name} has no label column",
            where=pictures.rows[0].source,
            remedy="add one column per label with 0 and 1, or name them: --labels",
        )
    for row, truth, unsure in zip(pictures.rows, pictures.truth, uncertain, strict=True):
        if np.isnan(truth).all() and not unsure.any():
            raise InputError("no label is filled in", where=row.where(pictures.labels[0]), remedy="fill in 0 or 1")
        if not recipe.multi_label and (truth == 1).sum() != 1:
            raise InputError(
                f"{int((truth == 1).sum())} of the classes {', '.join(pictures.labels)} are 1",
                where=f"{row.source}, row {row.line}",
                remedy="mark exactly one, or give --target multi-label",
            )


def part_of(parts: Mapping[str, Labelled], name: str, datalist: Datalist) -> Labelled:
    """A part, of which there must be one.

    Raises:
        InputError: it is empty.
    """
    filled(parts[name].pictures, name, datalist)
    return parts[name]


# --- Losses and optimisers -------------------------------------------------------------------------------------------


def label_loss(logits: Tensor, targets: Tensor, multi_label: bool) -> Tensor:
    """Mean binary cross-entropy over known labels, or the cross-entropy of classes.

    Args:
        logits: (N, K).
        targets: (N, K) in [0, 1]; nan = unknown, left out. Of classes exactly one is 1.
        multi_label: which of the two.

    Returns:
        Scalar; 0 where nothing is known.
    """
    if not multi_label:
        return F.cross_entropy(logits, targets.nan_to_num(0.0))
    known = ~targets.isnan()
    each = F.binary_cross_entropy_with_logits(logits, targets.nan_to_num(0.0).to(logits.dtype), reduction="none")
    return (each * known).sum() / known.sum().clamp(min=1)


def optimizer_of(recipe: Recipe, network: nn.Module) -> torch.optim.Optimizer:
    """AdamW (decay 0.01) or SGD (momentum 0.9, no decay)."""
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(network.parameters(), recipe.learning_rate, weight_decay=DECAY, foreach=True)
    return torch.optim.SGD(network.parameters(), recipe.learning_rate, momentum=MOMENTUM, foreach=True)


def scores_of(
    truth: NDArray[Any], scores: NDArray[Any], labels: Sequence[str], multi_label: bool, reported: Sequence[str] = ()
) -> dict[str, Any]:
    """What a table of this target shows (specification 6).

    Args:
        truth: (n, K), nan = unknown.
        scores: (n, K) probabilities.
        labels: K names.
        multi_label: mean AUC; otherwise the accuracy of the largest probability.
        reported: labels of the mean; empty: all.

    Returns:
        "auc" by label (None without both classes), "mean_auc" over the reported labels that have one, "undefined" (reported
        labels that have none), and for classes "accuracy" (None without labels).
    """
    from dart_core import metrics

    areas = metrics.roc_auc(truth, scores)
    auc = {name: None if np.isnan(area) else float(area) for name, area in zip(labels, areas, strict=True)}
    counted = [name for name in labels if name in reported] or list(labels)
    values = [value for name in counted if (value := auc[name]) is not None]
    found: dict[str, Any] = {
        "auc": auc, "mean_auc": float(np.mean(values)) if values else None,
        "undefined": [name for name in counted if auc[name] is None],
    }  # fmt: skip
    if not multi_label:
        known = ~np.isnan(truth).any(1)
        hits = scores[known].argmax(1) == truth[known].argmax(1)
        found["accuracy"] = float(hits.mean()) if known.any() else None
    return found
