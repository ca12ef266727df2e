from __future__ import annotations

import base64
import html
import io
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from dart_core.errors import InputError, OutputError
from dart_core.report import Report, mean_and_spread
from dart_core.testing import chromium

HOSTILE = [
    "<script>document.title = 'run'</script>",
    "{{7*7}}{% raw %}",
    '"><img src=x onerror="document.title=\'run\'">',
    "' onload='document.title=1",
    "--> <style>body{display:none}</style> &amp; <svg/onload=alert(1)>",
]


class Page(HTMLParser):
    """Tags with their attributes, and the text of each, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def read(report: Report, folder: Path) -> Page:
    return Page(report.write(folder / "report.html").read_text(encoding="utf-8"))


def pixels_of(page: Page, index: int = 0) -> np.ndarray[Any, Any]:
    source = page.of("img")[index]["src"]
    assert source is not None
    assert source.startswith("data:image/png;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))


def cells_of(report: Report, folder: Path) -> list[str]:
    return re.findall(r"<td[^>]*>(.*?)</td>", report.write(folder / "r.html").read_text(encoding="utf-8"))


def full_report(text: str = "a text") -> Report:
    report = Report(text, text, command=f"prog {text}")
    report.section(text)
    report.text(f"{text}\n\nsecond {text}")
    report.settings({text: text, "list": [text], "nested": {text: None}})
    report.section(f"second {text}")
    report.table([text, "n"], [[text, 1], ["b", None]], text)
    report.table([f"column {i}" for i in range(40)], [["w" * 80] * 40])
    report.curves({text: ([0, 1, 2], [1.0, float("nan"), 2.0]), "_b": ([], [])}, text, text, text, marks={text: (1, 1)})
    report.picture(np.eye(4), text, text)
    report.gallery([(np.eye(4), text), (np.zeros((300, 20, 3), np.uint8), "b")], text)
    figure = Figure(figsize=(20, 2))
    figure.add_subplot().plot([1, 2])
    report.picture(figure, text, text)
    return report


def test_says_where_it_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dart_core

    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/fda-mri", "demo", "--out", "a b"])
    words = " ".join(read(Report("A title", "and a subtitle"), tmp_path).words)
    assert "A title" in words
    assert "and a subtitle" in words
    assert "fda-mri demo --out 'a b'" in words
    assert "/somewhere" not in words
    assert f"dart-core {dart_core.__version__}" in words
    assert re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d [+-]\d{4}", words)
    assert "Research software, not a medical device" in words


def test_names_a_package_that_is_not_installed_without_version(tmp_path: Path) -> None:
    assert "no-such-distribution" in read(Report("t", package="no-such-distribution"), tmp_path).words


def test_contents_list_the_sections(tmp_path: Path) -> None:
    report = Report("t")
    report.section("First")
    assert not read(report, tmp_path).of("nav")
    report.section("Second")
    page = read(report, tmp_path)
    targets = [link["href"] for link in page.of("a")]
    assert targets == [f"#{heading['id']}" for heading in page.of("h2") if "id" in heading]
    assert len(targets) == 2
    assert page.words.count("First") == 2


def test_text_has_paragraphs(tmp_path: Path) -> None:
    report = Report("t")
    report.text("one\nline\n\n \n\ntwo\n")
    text = report.write(tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<p>one\nline</p>" in text
    assert text.count("<p>") == 2 + 2  # the footer has two


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1


@dataclass(frozen=True)
class Outer:
    on: bool = True
    empty: None = None
    betas: tuple[float, ...] = (0.5, 1e-3)
    none: tuple[str, ...] = ()
    inner: Inner = field(default_factory=Inner)


def test_settings_of_a_dataclass(tmp_path: Path) -> None:
    report = Report("t")
    report.settings(Outer())
    text = report.write(tmp_path / "r.html").read_text(encoding="utf-8")
    shown = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", text))
    assert shown == {"on": "yes", "empty": "–", "betas": "0.5, 0.001", "none": "(none)", "inner.rate": "0.1"}
    with pytest.raises(TypeError):
        report.settings(3)


@pytest.mark.parametrize(
    ("column", "shown"),
    [
        ([1, 20], ["1", "20"]),
        ([0.005, 0.01, 0.5], ["0.005", "0.010", "0.500"]),
        ([0.87346, 0.5], ["0.873", "0.500"]),
        ([12.345678, 0.5], ["12.35", "0.50"]),
        ([123.456789, 0.5], ["123.5", "0.5"]),
        ([12345.678901], ["12346"]),
        ([1.0, 2.0], ["1", "2"]),
        ([0.123456, 0.0001234, 0.0], ["0.123", "1.2e-04", "0.000"]),
        ([2e12], ["2.0e+12"]),
        ([None, float("nan"), 0.25], ["–", "–", "0.25"]),
        ([float("inf"), float("-inf")], ["∞", "-∞"]),
        ([np.float32(0.25), np.int64(3), np.float64("nan")], ["0.25", "3", "–"]),
        ([True, False], ["yes", "no"]),
        (["0.85 ± 0.02", "text"], ["0.85 ± 0.02", "text"]),
    ],
)
def test_numbers_in_tables(column: list[Any], shown: list[str], tmp_path: Path) -> None:
    report = Report("t")
    report.table(["a"], [[cell] for cell in column])
    assert cells_of(report, tmp_path) == shown


@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=5))
def test_no_number_is_shown_wrong(tmp_path_factory: pytest.TempPathFactory, column: list[float]) -> None:
    report = Report("t")
    report.table(["a"], [[cell] for cell in column])
    shown = [float(cell) for cell in cells_of(report, tmp_path_factory.mktemp("r"))]
    assert shown == pytest.approx(column, rel=0.051, abs=0)


@pytest.mark.parametrize(
    ("column", "right"),
    [
        ([1, 2.0, None], True),
        (["0.85 ± 0.02", "–", "12 %"], False),
        (["0.85 ± 0.02", "12 %", "1/3"], True),
        (["a", 1], False),
        ([True], False),
        ([None], False),
        ([], False),
    ],
)
def test_columns_of_numbers_are_right_aligned(column: list[Any], right: bool, tmp_path: Path) -> None:
    report = Report("t")
    report.table(["a"], [[cell] for cell in column])
    page = read(report, tmp_path)
    assert {cell.get("class") == "number" for cell in page.of("td") + page.of("th")} == {right}


def test_table_without_rows_says_so(tmp_path: Path) -> None:
    report = Report("t")
    report.table(["a", "b"], [])
    assert cells_of(report, tmp_path) == ["no rows"]


def test_table_with_a_short_row_is_refused() -> None:
    with pytest.raises(InputError, match="Scores: table row 1 has 1 cells for 2 columns"):
        Report("t").table(["a", "b"], [[1, 2], [3]], "Scores")


@pytest.mark.parametrize(
    ("array", "value_range", "corners"),
    [
        (np.array([[0.0, 0.5], [1.0, 2.0]]), None, [[0, 64], [128, 255]]),
        (np.array([[0.0, 0.5], [1.0, 2.0]]), (0.0, 1.0), [[0, 128], [255, 255]]),
        (np.array([[-1000, 0], [1000, 3000]], np.int16), (-1000, 1000), [[0, 128], [255, 255]]),
        (np.array([[10, 20], [30, 250]], np.uint8), None, [[10, 20], [30, 250]]),
        (np.array([[True, False], [False, True]]), None, [[255, 0], [0, 255]]),
        (np.array([[np.nan, 1.0], [3.0, np.inf]]), None, [[0, 0], [255, 255]]),
        (np.full((2, 2), 7.0), None, [[0, 0], [0, 0]]),
        (np.full((2, 2), np.nan), None, [[0, 0], [0, 0]]),
        (np.array([[1e308, -1e308], [0.0, 0.0]]), (-1.0, 1.0), [[255, 0], [128, 128]]),
    ],
)
def test_grey_pictures(array: Any, value_range: tuple[float, float] | None, corners: Any, tmp_path: Path) -> None:
    report = Report("t")
    report.picture(array, "caption", "alt", value_range=value_range)
    page = read(report, tmp_path)
    pixels = pixels_of(page)
    side = pixels.shape[0] // 2
    assert pixels[side // 2 :: side, side // 2 :: side].tolist() == corners
    assert page.of("img")[0]["alt"] == "alt"
    assert "caption" in page.words


def test_colour_pictures_keep_their_channels(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (500, 40, 3), dtype=np.uint8)
    report = Report("t")
    report.gallery([(rgb, "one"), (rgb[::-1], "two")], "both")
    page = read(report, tmp_path)
    assert np.array_equal(pixels_of(page, 0), rgb)
    assert np.array_equal(pixels_of(page, 1), rgb[::-1])
    assert [image["alt"] for image in page.of("img")] == ["one", "two"]


def test_pictures_from_files_and_figures(tmp_path: Path) -> None:
    parameters: Any = matplotlib.rcParams
    before = {name: parameters[name] for name in ("svg.fonttype", "svg.hashsalt", "axes.edgecolor")}
    Image.new("RGB", (3, 2), "red").save(tmp_path / "a.png")
    Image.new("RGB", (3, 2), "red").save(tmp_path / "a.jpg")
    figure = Figure(figsize=(2, 1))
    figure.add_subplot().plot([0, 1], [1, 0])
    report = Report("t")
    report.picture(tmp_path / "a.png", "c", "a")
    report.picture(str(tmp_path / "a.jpg"), "c", "a")
    report.picture(figure, "c", "a")
    report.curves({"a": ([0], [1])}, "x", "y", "c")
    kinds = [str(image["src"]).partition(";")[0] for image in read(report, tmp_path).of("img")]
    assert kinds == ["data:image/png", "data:image/jpeg", "data:image/png", "data:image/svg+xml"]
    assert {name: parameters[name] for name in before} == before


@pytest.mark.parametrize("shape", [(4,), (2, 2, 2), (2, 2, 4), (1, 2, 2, 3), (0, 3), (3, 0, 3)])
def test_arrays_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=rf"Slice 3: picture has shape {re.escape(str(shape))}"):
        Report("t").picture(np.zeros(shape), "Slice 3", "alt")


@pytest.mark.parametrize("array", [np.array([["a"]]), np.array([[1j]])])
def test_arrays_of_other_things_are_refused(array: Any) -> None:
    with pytest.raises(InputError, match="real numbers"):
        Report("t").picture(array, "c", "alt")


@pytest.mark.parametrize("content", [None, b"", b"<svg onload='alert(1)'/>", b"\x89PNG\r\n\x1a\nshort"])
def test_files_that_are_no_pictures_are_refused(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.png: cannot be read as a picture"):
        Report("t").picture(tmp_path / "a.png", "c", "alt")


def test_alternative_text_is_required() -> None:
    with pytest.raises(ValueError, match="alt"):
        Report("t").picture(np.eye(2), "caption", " ")
    with pytest.raises(ValueError, match="caption"):
        Report("t").gallery([(np.eye(2), "")])


def test_curves_of_unequal_length_are_refused() -> None:
    with pytest.raises(InputError, match=r"Loss: curve 'a': x has shape \(2,\), y \(3,\)"):
        Report("t").curves({"a": ([1, 2], [1, 2, 3])}, "x", "y", "Loss")


def test_curves_draw_what_they_are_given(tmp_path: Path) -> None:
    report = Report("t")
    series = {f"series {i}": ([0.0, 10.0], [0.0, 100.0 + i]) for i in range(20)}
    report.curves(series, "epochs <&>", "loss $x_{$", "caption", marks={"best": (10.0, 100.0)})
    page = read(report, tmp_path)
    image = page.of("img")[0]
    svg = base64.b64decode(str(image["src"]).partition(",")[2]).decode()
    assert "epochs &lt;&amp;&gt;" in svg
    assert "loss $x_{$" in svg
    assert "#010203" not in svg
    assert all(f">{tick}<" in svg for tick in ("0", "2", "4", "6", "8", "10", "100"))
    assert [word for word in page.words if word.startswith("series")] == list(series)
    assert len({entry["class"] for entry in page.of("span") if "line" in str(entry.get("class"))}) == 18
    assert "★" in page.words
    assert str(image["alt"]).startswith("loss $x_{$ against epochs <&> for series 0, series 1")


def test_same_curves_give_the_same_picture(tmp_path: Path) -> None:
    sources = []
    for _ in range(2):
        report = Report("t")
        report.curves({"a": (np.arange(30), np.arange(30) ** 2)}, "x", "y", "c")
        sources.append(read(report, tmp_path).of("img")[0]["src"])
    assert sources[0] == sources[1]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(text: str, tmp_path: Path) -> None:
    page, harmless = read(full_report(text), tmp_path), read(full_report("a text"), tmp_path)
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in harmless.tags]
    assert [sorted(attributes) for _, attributes in page.tags] == [
        sorted(attributes) for _, attributes in harmless.tags
    ]
    assert [word.replace(text, "a text") for word in page.words[:4]] == harmless.words[:4]


@given(st.text())
def test_any_text_can_be_shown(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    report = Report(text, text, command=text)
    report.text(f"[{text}]")
    report.table([text], [[text]], text)
    page = report.write(tmp_path_factory.mktemp("r") / "r.html").read_text(encoding="utf-8")
    assert html.unescape(page).replace("\r\n", "\n").count(text.replace("\r\n", "\n").replace("\r", "\n")) >= 4


@pytest.mark.parametrize("name", ["\udc80.nii", "\x00\x1b[31m", "漢字 😀", "$\\frac{"])
def test_odd_names_can_be_shown(name: str, tmp_path: Path) -> None:
    assert len(read(full_report(name), tmp_path).of("img")) == 5


def test_the_file_allows_nothing_from_outside(tmp_path: Path) -> None:
    page = read(full_report(), tmp_path)
    policy = next(meta["content"] for meta in page.of("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert str(policy).startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in str(policy)
    assert not page.of("script")
    links = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert all(str(link).startswith(("data:", "#")) for link in links)


def test_writing_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "report.html"
    target.write_text("the old report")

    def full_disk(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OutputError, match=r"report\.html: the disk is full"):
        Report("t").write(target)
    assert target.read_text() == "the old report"
    assert os.listdir(tmp_path) == ["report.html"]
    monkeypatch.undo()
    assert Report("t").write(target) == target
    assert "the old report" not in target.read_text(encoding="utf-8")
    assert os.listdir(tmp_path) == ["report.html"]


def test_the_folder_is_made(tmp_path: Path) -> None:
    assert Report("t").write(tmp_path / "new" / "report.html").is_file()


# In a real browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
@pytest.mark.parametrize("text", ["a text", " ".join(HOSTILE)])
def test_renders_in_a_browser(browser: Any, text: str, width: int, scheme: str, tmp_path: Path) -> None:
    path = full_report(text).write(tmp_path / "report.html")
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri(), wait_until="load")
    assert page.title() == text
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    images = page.evaluate(
        "[...document.images].map(image => [image.naturalWidth, image.getBoundingClientRect().right])"
    )
    assert len(images) == 5
    assert all(natural > 0 and right <= width for natural, right in images)
    assert page.locator("h1").inner_text() == text
    assert page.locator("td").first.inner_text() == text
    boxes = page.evaluate("[...document.querySelectorAll('.scroll')].map(box => [box.scrollWidth, box.clientWidth])")
    assert boxes[1][0] > boxes[1][1]  # the wide table scrolls inside its own box
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    assert complaints == []
    assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]
    page.close()


def test_mean_and_spread_say_what_is_undefined() -> None:
    assert mean_and_spread(None, None) == "–"
    assert mean_and_spread(0.5, None) == "0.5000"
    assert mean_and_spread(0.5, 0.25) == "0.5000 ± 0.2500"
