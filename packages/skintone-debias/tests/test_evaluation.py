"""`skintone-debias evaluate` on made-up predictions: which networks belong together, and what the tables say of them."""

from __future__ import annotations

import dataclasses
import html
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from dart_core.classification import write_predictions
from skintone_debias.evaluation import group_of
from skintone_debias.networks import Model

LABELS = (0, 0, 1, 1)
THREE_QUARTERS, ALL = (0.1, 0.6, 0.4, 0.9), (0.1, 0.2, 0.8, 0.9)
"""Scores with an AUC of 3/4, and of 1."""
ERROR = 0.276
"""Hanley and McNeil's standard error of an AUC A of 3/4 from two and two pictures: with Q1 = A / (2 - A) = 0.6 and Q2 = 2 A^2 /
(1 + A) = 0.642857 its square is (A (1 - A) + (Q1 - A^2) + (Q2 - A^2)) / 4 = 0.076339."""

Write = Callable[..., Path]


@pytest.fixture
def predicted(tmp_path: Path) -> Write:
    """A folder as `predict` writes it."""

    def run(
        method: str = "none", seed: int = 0, sites: Sequence[str] = ("A",), encoder: str = "resnet101", weights: str = "model",
        scores: Sequence[float] = THREE_QUARTERS, site: str = "mclass-d", types: Sequence[str] = (), views: int = 8,
        image_size: int = 32, square: bool = False, heads: Sequence[str] = (),
    ) -> Path:  # fmt: skip
        folder = tmp_path / f"p{len(list(tmp_path.glob('p*')))}"
        folder.mkdir()
        write_predictions(
            folder,
            [
                {
                    "image": folder / f"{i}.png", "subject": f"s{i}", "site": site, "label": label, "score": score,
                    **({"fitzpatrick": types[i]} if types else {}),
                }
                for i, (label, score) in enumerate(zip(LABELS, scores, strict=True))
            ],
        )  # fmt: skip
        made = Model(encoder, image_size, square, method, "label", heads=list(heads), seed=seed, sites=list(sites))
        content = {"weights": weights, "views": views, "model": dataclasses.asdict(made)}
        (folder / "metrics.json").write_text(json.dumps(content))
        return folder

    return run


def tables(folder: Path) -> list[tuple[str, list[list[str]]]]:
    """The tables of a report: caption, and the texts of the cells by row."""
    report = (folder / "report.html").read_text(encoding="utf-8")
    found = []
    for block in re.findall(r"<figure.*?</figure>", report, re.DOTALL):
        rows = [
            re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL)
            for row in re.findall(r"<tr>.*?</tr>", block, re.DOTALL)
        ]
        caption = re.search(r"<figcaption>(.*?)</figcaption>", block, re.DOTALL)
        if rows:
            found.append(
                (html.unescape(caption[1]) if caption else "", [[html.unescape(c).strip() for c in r] for r in rows])
            )
    return found


def rows_of(folder: Path, *words: str) -> dict[str, list[str]]:
    """The only table whose caption holds these words, by first cell."""
    (rows,) = [rows for caption, rows in tables(folder) if all(word in caption for word in words)]
    return {row[0]: row[1:] for row in rows}


def test_the_paper_s_own_settings_stand_beside_its_numbers(command, predicted, tmp_path):
    methods = ("none", "tabe (confusion target noise, zero grad mode zero)", "lr-control (encoder lr 0.0033)")
    found = command("evaluate", "--predictions", *map(predicted, methods), "--out", tmp_path / "e")
    assert found.status == 0, found.err
    rows = rows_of(tmp_path / "e", "Table 2 of the paper")
    assert rows["Baseline"][-1] == "0.853"
    assert rows["TABE (confusion target noise, zero grad mode zero)"][-1] == "0.865"
    assert rows["lr-control (encoder lr 0.0033)"][-1] == "–"
    assert rows["Dermatologists"][-1] == "0.671"


def test_networks_of_other_sites_have_tables_of_their_own(command, predicted, tmp_path):
    folders = predicted(sites=("A",)), predicted(sites=("B", "C"), scores=ALL)
    found = command("evaluate", "--predictions", *folders, "--out", tmp_path / "e")
    assert found.status == 0, found.err
    for sites, auc in (("A", "0.750"), ("B+C", "1.000")):
        assert rows_of(tmp_path / "e", "Table 2 of the paper", f"Trained on {sites};")["Baseline"][0].startswith(auc)


@pytest.mark.parametrize(
    ("one", "other", "apart"),
    [
        ({}, {"weights": "best"}, ("A", "A, weights best")),
        ({"seed": 0}, {"seed": 1, "weights": "best"}, ("A", "A, weights best")),
        ({}, {"encoder": "resnet50"}, ("A, encoder resnet101", "A, encoder resnet50")),
        ({"seed": 0}, {"seed": 1, "encoder": "resnet50"}, ("A, encoder resnet101", "A, encoder resnet50")),
        ({}, {"image_size": 64}, ("A, 32 pixels", "A, 64 pixels")),
        ({}, {"square": True}, ("A, 32 pixels", "A, 32 pixels of the middle square")),
        ({"seed": 0}, {"seed": 1, "views": 1}, ("A, 8 views", "A, 1 view")),
    ],
)  # fmt: skip
def test_networks_that_differ_are_not_averaged(one, other, apart, command, predicted, tmp_path):
    folders = predicted(**one), predicted(**other, scores=ALL)
    found = command("evaluate", "--predictions", *folders, "--out", tmp_path / "e")
    assert found.status == 0, found.err
    summary = json.loads((tmp_path / "e" / "metrics.json").read_text())["summary"]["site"]
    assert [(row["trained_on"], row["mean"], row["seeds"]) for row in summary] == [
        (apart[0], 0.75, 1),
        (apart[1], 1.0, 1),
    ]
    assert all(f"trained on {name}" in found.out for name in apart)


@pytest.mark.parametrize("method", ["lntl", "tabe (confusion target noise)"])
def test_other_nuisances_are_not_averaged(method, command, predicted, tmp_path):
    """They are compared with the same baseline, and beside the paper's numbers."""
    folders = [predicted(seed=seed) for seed in (0, 1)]
    for heads, scores in ((["fitzpatrick"], THREE_QUARTERS), (["site", "site"], ALL)):
        folders += [predicted(method, seed, heads=heads, scores=scores) for seed in (0, 1)]
    found = command("evaluate", "--predictions", *folders, "--out", tmp_path / "e")
    assert found.status == 0, found.err
    content = json.loads((tmp_path / "e" / "metrics.json").read_text())
    one, other = (
        {"lntl": f"lntl (nuisance {name})"}.get(method, f"tabe (confusion target noise, nuisance {name})")
        for name in ("fitzpatrick", "site")
    )
    means = [(row["method"], row["mean"], row["seeds"]) for row in content["summary"]["site"]]
    assert means == [("none", 0.75, 2), (one, 0.75, 2), (other, 1.0, 2)]
    assert [(row["method"], row["difference"]) for row in content["comparisons"]["site"]] == [(one, 0.0), (other, 0.25)]
    rows = rows_of(tmp_path / "e", "Table 2 of the paper")
    plain = {"lntl": "LNTL"}.get(method, "TABE")
    assert rows[f"{plain} {one.partition(' ')[2]}"][-1] == {"LNTL": "0.858", "TABE": "0.865"}[plain]
    # With one nuisance there is nothing to tell apart.
    found = command("evaluate", "--predictions", *folders[:4], "--out", tmp_path / "alike")
    assert {row["method"] for row in json.loads((tmp_path / "alike" / "metrics.json").read_text())["sites"]} == {
        "none",
        method,
    }


def test_means_over_seeds_are_printed(command, predicted, tmp_path):
    folders = [
        predicted(seed=seed, scores=scores, types=("3", "5", "3", "5")) for seed, scores in ((0, THREE_QUARTERS), (1, ALL))
    ]  # fmt: skip
    found = command("evaluate", "--predictions", *folders, "--out", tmp_path / "e")
    assert found.status == 0, found.err
    assert "none         2 seeds  mclass-d: mean AUC 0.875 ± 0.177\n" in found.out
    assert "none         2 seeds  mean gap 0.000 ± 0.000\n" in found.out
    alone = command("evaluate", "--predictions", predicted(site="mclass-c", scores=ALL), "--out", tmp_path / "one")
    assert "none         1 seed  mclass-c: mean AUC 1.000\n" in alone.out


def test_rates_of_the_control_are_not_averaged(command, predicted, tmp_path):
    folders = predicted("lr-control (encoder lr 0.0033)"), predicted("lr-control (encoder lr 0.01)", seed=1)
    found = command("evaluate", "--predictions", *folders, "--out", tmp_path / "e")
    assert found.status == 0, found.err
    summary = json.loads((tmp_path / "e" / "metrics.json").read_text())["summary"]["site"]
    assert [row["seeds"] for row in summary] == [1, 1]


def test_one_seed_has_the_error_of_its_auc_and_several_have_their_spread(command, predicted, tmp_path):
    one = predicted(types=("3", "4", "3", "4")), predicted("clgr", scores=ALL, types=("3", "4", "3", "4"))
    assert command("evaluate", "--predictions", *one, "--out", tmp_path / "one").status == 0
    for words, column in ((("AUC on each data set",), 0), (("AUC on each group",), 0), (("Table 2 of the paper",), 0)):
        rows = rows_of(tmp_path / "one", *words)
        assert rows["Baseline" if "Table" in words[0] else "none"][column] == f"0.750 ({ERROR})"
        # The formula gives 0 for an AUC of 1, which is no error.
        assert rows["CLGR" if "Table" in words[0] else "clgr"][column] == "1.000"
    several = predicted(), predicted(seed=1, scores=ALL)
    assert command("evaluate", "--predictions", *several, "--out", tmp_path / "several").status == 0
    assert rows_of(tmp_path / "several", "AUC on each data set")["none"][0] == "0.875 ± 0.177"


def test_a_baseline_that_is_not_there_is_refused(command, predicted, tmp_path):
    folders = predicted("lntl"), predicted("clgr")
    found = command("evaluate", "--predictions", *folders, "--baseline", "lntll", "--out", tmp_path / "e")
    assert found.status == 2
    assert found.line.endswith("--baseline is lntll; methods there: lntl, clgr")
    assert not (tmp_path / "e").exists()
    # The default is no wish.
    assert command("evaluate", "--predictions", *folders, "--out", tmp_path / "e").status == 0


@pytest.mark.parametrize(
    ("cell", "group", "single"),
    [("3.0", "3&4", "3"), ("4", "3&4", "4"), ("6.0", "5&6", "6"), ("-1.0", "unknown", "unknown"), ("nan", "unknown", "unknown")],
)  # fmt: skip
def test_types_are_read_as_in_training(cell, group, single):
    assert group_of(cell, "fitzpatrick", single_types=False) == group
    assert group_of(cell, "fitzpatrick", single_types=True) == single
