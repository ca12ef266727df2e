"""The boards: what a record says of made-up scores, and the page in a real browser."""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from dart_core.errors import InputError
from dart_core.experiment import Job, Outcome
from dart_core.testing import chromium

HERE = Path(__file__).parents[1]


@pytest.fixture(autouse=True, scope="module")
def scripts() -> Iterator[None]:
    """Scripts find each other as they do when they are run."""
    places = [str(HERE / "leaderboard"), str(HERE / "reproduce")]
    sys.path[:0] = places
    yield
    for place in places:
        sys.path.remove(place)


SCORES = {
    "None": {("a", 0): 0.5, ("a", 1): 0.6, ("b", 0): 0.7, ("b", 1): 0.8, ("c", 0): 0.5, ("c", 1): 0.6},
    "New": {("a", 0): 0.6, ("a", 1): 0.72, ("b", 0): 0.83, ("b", 1): 0.94, ("c", 0): 0.65, ("c", 1): 0.76},
    "Broken": {("a", 0): 0.1},
}


def record(tmp_path: Path) -> dict[str, Any]:
    """Of a board with three methods, one of which failed on all places but one."""
    import protocol as of

    entries, outcomes, scores = [], {}, {}
    for method, values in SCORES.items():
        runs = []
        for place, seed in SCORES["None"]:
            trained = Job("aiva", ("adapt", "--method", method, "--place", place, "--seed", seed))
            predicted = Job("aiva", ("predict", "--model", trained))
            there = (place, seed) in values
            folder = tmp_path / "runs" / f"{method}{place}{seed}"
            for job, part in ((trained, "t"), (predicted, "p")):
                outcomes[job] = Outcome(job, folder / part, "done" if there else "failed")
            if there:
                (folder / "t" / "out").mkdir(parents=True)
                (folder / "t" / "out" / "report.html").write_text(
                    f"<title>{method} {place} {seed}</title>", encoding="utf-8"
                )
                scores[folder / "p" / "out"] = values[place, seed]
            runs.append(of.Run(place, seed, trained, predicted))
        entries.append(of.Entry(method, "aiva", "masks" if method == "New" else "nothing", runs))
    board = of.Board(
        "made-up", "Made-up <scores>", {"small": "the same for all"}, ("dice",), "None", lambda scale: entries,
        lambda folder, run, scale: {"dice": scores[folder]},
    )  # fmt: skip
    return of.results(board, of.Scale("small", tmp_path), entries, outcomes)


def test_a_seed_is_the_mean_of_its_places_and_tests_pair_runs(tmp_path: Path) -> None:
    found = {entry["method"]: entry for entry in record(tmp_path)["entries"]}
    none = found["None"]["scores"]["dice"]
    assert none["n"] == 2
    assert none["mean"] == pytest.approx((1.7 / 3 + 2.0 / 3) / 2)
    assert none["std"] == pytest.approx(abs(2.0 - 1.7) / 3 / 2**0.5)
    assert found["New"]["p"] == pytest.approx(2 / 2**6)  # six pairs, all better: two-sided exact
    assert found["None"]["p"] is None
    assert (found["New"]["against"], found["None"]["against"]) == ("None", "")
    assert found["Broken"]["p"] is None
    assert [run["state"] for run in found["Broken"]["runs"]] == ["done"] + ["failed"] * 5


def test_a_true_zero_ranks_above_what_is_missing() -> None:
    import page as of

    means = {"missing": None, "zero": 0.0, "negative": -0.5, "best": 0.7}
    entries = [{"method": name, "scores": {"dice": {"mean": mean}}} for name, mean in means.items()]
    order = [entry["method"] for entry in of.ranked({"metrics": ["dice"], "entries": entries})]
    assert order == ["best", "zero", "negative", "missing"]


def test_links_lead_to_the_reports_after_all_has_moved(tmp_path: Path) -> None:
    import page as of

    before, after = tmp_path / "a 50% #1?", tmp_path / "moved & away"
    of.write([record(before)], before / "pages" / "leaderboard.html")
    before.rename(after)
    text = (after / "pages" / "leaderboard.html").read_text(encoding="utf-8")
    links = [html.unescape(link) for link in re.findall(r'<a href="([^"]*)"', text)]
    assert len(links) == 13
    titles = set()
    for link in links:
        parts = urlsplit(link)
        assert (parts.scheme, parts.query, parts.fragment) == ("", "", "")
        titles.add((after / "pages" / unquote(parts.path)).read_text(encoding="utf-8"))
    assert "<title>New c 1</title>" in titles


def test_an_error_in_one_board_keeps_the_page_of_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import leaderboard as of

    def one(board, scale, executor):  # type: ignore[no-untyped-def]
        if board.name == "xrays":
            raise InputError("the data set is not there", where="nih_cxr_1000")
        return record(tmp_path), True

    monkeypatch.setattr(of, "board_record", one)
    for name in ("mri", "xrays"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(BOARD=SimpleNamespace(name=name)))
    monkeypatch.setattr(sys, "argv", ["leaderboard", "mri", "xrays", "--work", str(tmp_path), "--scale", "smoke"])
    assert of.main() == 2
    told = capsys.readouterr()
    assert "xrays: nih_cxr_1000: the data set is not there" in told.err
    assert "New" in told.out
    assert "Made-up" in (tmp_path / "leaderboard.html").read_text(encoding="utf-8")
    assert (tmp_path / "leaderboard-mri-smoke.json").is_file()


@pytest.mark.browser
def test_the_page_sorts_filters_and_links(tmp_path: Path) -> None:
    import page as of

    path = of.write([record(tmp_path / "50% #1?")], tmp_path / "pages" / "leaderboard.html")
    assert "Made-up &lt;scores&gt;" in path.read_text(encoding="utf-8")
    with chromium() as browser:
        page = browser.new_page()
        problems: list[str] = []
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(path.as_uri())

        def methods() -> list[str]:
            rows = page.locator("tbody tr:visible td:first-child")
            return [str(text) for text in rows.all_text_contents()]

        assert methods() == ["New", "None", "Broken"]
        page.get_by_role("button", name="dice").click()
        assert methods() == ["Broken", "None", "New"]
        page.get_by_role("button", name="dice").click()
        assert methods() == ["New", "None", "Broken"]
        page.get_by_role("button", name="method").click()
        assert methods() == ["Broken", "New", "None"]
        page.get_by_role("button", name="p", exact=True).click()
        assert methods()[0] == "New"  # those without a number stay at the end
        page.get_by_label("Needs").select_option("nothing")
        assert set(methods()) == {"None", "Broken"}
        page.get_by_label("Find").fill("BROK")
        assert methods() == ["Broken"]
        assert page.locator("output").text_content() == "1 of 3 methods"
        page.get_by_label("Find").fill("")
        page.get_by_label("Needs").select_option("masks")
        page.locator("tbody tr:visible summary").click()
        page.get_by_role("link", name="b, seed 1").click()
        assert page.title() == "New b 1"
        assert problems == []
