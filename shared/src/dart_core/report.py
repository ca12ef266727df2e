"""One self-contained report.html: settings, text, tables, curves and pictures of a run.

The file needs no network and runs no script; everything that is shown is escaped, and a content security policy in
the file itself forbids the rest. It reads well on a telephone, in the dark and on paper.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import hashlib
import importlib.metadata
import importlib.resources
import io
import math
import os
import re
import shlex
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from dart_core.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    Picture: TypeAlias = ArrayLike | Figure | os.PathLike[str] | str

Cell: TypeAlias = str | int | float | None

# Okabe and Ito's colours without the two that vanish on white or on black. report.css lists the same.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DASHES = ("-", "--", ":")
MARKS = (("*", "★"), ("D", "◆"), ("^", "▲"), ("s", "■"))
# Arrays whose longer side has fewer pixels than this are enlarged by a whole factor.
ENLARGED = 480
# A colour that nothing else has, replaced by one that follows the reader's light or dark scheme.
INK = "#010203"
INK_STYLE = "<style>svg{--ink:#24292f}@media screen and (prefers-color-scheme:dark){svg{--ink:#d5dae0}}</style>"


class Report:
    """Collects what a run has to show, in order, and writes it as one HTML file.

    Args:
        title: heading of the page.
        subtitle: one line below it.
        package: distribution whose name and version the page shows.
        command: the command line that made it; None takes that of the process.
    """

    def __init__(
        self, title: str, subtitle: str = "", *, package: str = "dart-core", command: str | None = None
    ) -> None:
        self.title = title
        self.subtitle = subtitle
        self.package = package
        self.command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]) if command is None else command
        self._blocks: list[dict[str, Any]] = []

    def section(self, title: str) -> None:
        """Start a section; the table of contents lists it."""
        self._blocks.append({"kind": "section", "title": title})

    def text(self, text: str) -> None:
        """Add plain text; an empty line starts a new paragraph."""
        paragraphs = [part for part in re.split(r"\n\s*\n", text) if part.strip()]
        self._blocks.append({"kind": "text", "paragraphs": paragraphs})

    def settings(self, settings: Mapping[str, object] | object) -> None:
        """Add settings, a mapping or a dataclass; nested ones are shown as `outer.inner`."""
        rows = [(name, _setting_text(value)) for name, value in _flatten(settings)]
        self._blocks.append({"kind": "settings", "rows": rows})

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[Cell]], caption: str = "") -> None:
        """Add a table; columns of numbers are right-aligned, None and nan are shown as a dash.

        Raises:
            InputError: a row has not as many cells as there are columns.
        """
        cells = [[value.item() if isinstance(value, np.generic) else value for value in row] for row in rows]
        for number, row in enumerate(cells):
            if len(row) != len(columns):
                problem = f"table row {number} has {len(row)} cells for {len(columns)} columns"
                raise InputError(problem, where=caption or None)
        texts, numeric = [], []
        for index in range(len(columns)):
            column = [row[index] for row in cells]
            texts.append(_column_texts(column))
            numeric.append(_is_numeric(column))
        block = {"kind": "table", "columns": list(columns), "caption": caption, "numeric": numeric}
        self._blocks.append({**block, "rows": list(zip(*texts, strict=True)) if cells else []})

    def curves(
        self,
        series: Mapping[str, tuple[ArrayLike, ArrayLike]],
        x_label: str,
        y_label: str,
        caption: str,
        marks: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        """Add curves of y against x.

        Args:
            series: name -> (x, y), both of shape (n,); nan leaves a gap.
            x_label: name (and unit) of the x axis.
            y_label: name (and unit) of the y axis.
            caption: what the picture shows.
            marks: name -> (x, y) of points to point out, for example a value that was chosen.

        Raises:
            InputError: x and y of a series do not have the same shape (n,).
        """
        legend = []
        lines = []
        for index, (name, (x, y)) in enumerate(series.items()):
            x_values, y_values = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
            if x_values.ndim != 1 or x_values.shape != y_values.shape:
                problem = f"curve {name!r}: x has shape {x_values.shape}, y {y_values.shape}"
                raise InputError(problem, where=caption or None, remedy="give two lists of the same length")
            colour, dash = index % len(COLOURS), index // len(COLOURS) % len(DASHES)
            lines.append((x_values, y_values, COLOURS[colour], DASHES[dash]))
            legend.append((f"line c{colour} d{dash}", "", name))
        points = []
        for index, (name, point) in enumerate((marks or {}).items()):
            marker, sign = MARKS[index % len(MARKS)]
            points.append((point, marker))
            legend.append(("mark", sign, name))
        names = ", ".join(name for _, _, name in legend)
        alt = f"{y_label} against {x_label}" + (f" for {names}" if names else "")
        source = _draw_curves(lines, points, x_label, y_label)
        block = {"kind": "figure", "class": "curves", "source": source, "caption": caption, "alt": alt}
        self._blocks.append({**block, "legend": legend if len(legend) > 1 else []})

    def picture(
        self, picture: Picture, caption: str, alt: str, *, value_range: tuple[float, float] | None = None
    ) -> None:
        """Add one picture.

        Args:
            picture: array (H, W) in grey or (H, W, 3) in red, green, blue; or a matplotlib Figure; or a PNG, JPEG,
                GIF or WebP file.
            caption: what the picture shows.
            alt: the same for somebody who cannot see it.
            value_range: values of an array shown as black and as full brightness; None takes 0..255 for uint8,
                0..1 for bool and the smallest and largest finite value for other types.

        Raises:
            InputError: an array of another shape, or a file that cannot be read as a picture.
            ValueError: no `alt`.
        """
        source = _picture_source(picture, caption, alt, value_range)
        block = {"kind": "figure", "class": "", "source": source, "caption": caption, "alt": alt}
        self._blocks.append({**block, "legend": []})

    def gallery(
        self,
        pictures: Iterable[tuple[Picture, str]],
        caption: str = "",
        *,
        value_range: tuple[float, float] | None = None,
    ) -> None:
        """Add a row of pictures of the same size, each with a caption; see `picture` for the arguments."""
        items = [(_picture_source(picture, text, text, value_range), text) for picture, text in pictures]
        self._blocks.append({"kind": "gallery", "pictures": items, "caption": caption})

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the page, making its folder where needed; the old file stays until the new one is complete.

        Raises:
            OutputError: the file cannot be written.
        """
        from dart_core.files import write_atomic

        path = Path(path)
        write_atomic(path, self._html().encode("utf-8", errors="backslashreplace"))
        return path

    def _html(self) -> str:
        import jinja2

        files = importlib.resources.files("dart_core")
        style = files.joinpath("report.css").read_text(encoding="utf-8")
        environment = jinja2.Environment(
            autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
        )
        template = environment.from_string(files.joinpath("report.html.j2").read_text(encoding="utf-8"))
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        sections = [block["title"] for block in self._blocks if block["kind"] == "section"]
        return template.render(
            title=self.title,
            subtitle=self.subtitle,
            command=self.command,
            made_by=_with_version(self.package),
            core=_with_version("dart-core"),
            date=datetime.datetime.now().astimezone(),
            style=style,
            style_digest=digest,
            sections=sections,
            blocks=self._blocks,
        )


def mean_and_spread(mean: float | None, std: float | None) -> str:
    """A measure over seeds as text; a dash where it is undefined."""
    if mean is None:
        return "–"
    return f"{mean:.4f}" if std is None else f"{mean:.4f} ± {std:.4f}"


def _draw_curves(
    lines: Sequence[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], str, str]],
    points: Sequence[tuple[tuple[float, float], str]],
    x_label: str,
    y_label: str,
) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    inked = ("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "text.color", "grid.color")
    # Text stays text, so that the reader's own fonts show it, in any script.
    style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "dart", **dict.fromkeys(inked, INK)}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        figure = Figure(figsize=(5.2, 3.2), layout="constrained")
        axes = figure.add_subplot()
        for x, y, colour, dash in lines:
            # A curve of few points shows where they are.
            marker = "o" if np.isfinite(y).sum() <= 20 else None
            axes.plot(x, y, dash, color=colour, marker=marker, markersize=3.5, linewidth=1.6)
        for (x_mark, y_mark), marker in points:
            axes.plot([x_mark], [y_mark], marker, color=INK, markersize=10 if marker == "*" else 6, zorder=5)
        axes.set_xlabel(_printable(x_label), parse_math=False)
        axes.set_ylabel(_printable(y_label), parse_math=False)
        axes.margins(x=0.02)
        axes.grid(visible=True, alpha=0.15, linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    head, tag, body = buffer.getvalue().partition("<defs>")
    return _data_uri((head + INK_STYLE + tag + body).replace(INK, "var(--ink)").encode(), "image/svg+xml")


def _picture_source(picture: Picture, caption: str, alt: str, value_range: tuple[float, float] | None) -> str:
    from matplotlib.figure import Figure
    from PIL import Image

    if not alt.strip():
        raise ValueError("a picture needs a text for readers who cannot see it: give alt (in a gallery, the caption)")
    buffer = io.BytesIO()
    if isinstance(picture, Figure):
        picture.savefig(buffer, format="png", dpi=144)
        return _data_uri(buffer.getvalue(), "image/png")
    if isinstance(picture, str | os.PathLike):
        try:
            data = Path(picture).read_bytes()
            with Image.open(io.BytesIO(data), formats=["PNG", "JPEG", "GIF", "WEBP"]) as image:
                image.load()
                return _data_uri(data, f"image/{str(image.format).lower()}")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise InputError(
                "cannot be read as a picture", where=picture, remedy="give a PNG, JPEG, GIF or WebP"
            ) from error
    pixels = _to_bytes(np.asarray(picture), caption, value_range)
    # Browsers blur what they enlarge, so very small arrays are enlarged here, pixel by pixel.
    factor = max(1, ENLARGED // max(pixels.shape[:2]))
    Image.fromarray(pixels.repeat(factor, axis=0).repeat(factor, axis=1)).save(buffer, format="PNG", optimize=True)
    return _data_uri(buffer.getvalue(), "image/png")


def _to_bytes(
    pixels: np.ndarray[Any, Any], caption: str, value_range: tuple[float, float] | None
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    if not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)) or 0 in pixels.shape:
        raise InputError(f"picture has shape {pixels.shape}", where=caption or None, remedy="give (H, W) or (H, W, 3)")
    if not (np.issubdtype(pixels.dtype, np.number) or pixels.dtype == bool) or np.iscomplexobj(pixels):
        raise InputError(f"picture holds {pixels.dtype}", where=caption or None, remedy="give real numbers")
    values = pixels.astype(np.float64)
    finite = np.isfinite(values)
    if value_range is not None:
        low, high = value_range
    elif pixels.dtype in (np.uint8, bool):
        low, high = 0.0, 255.0 if pixels.dtype == np.uint8 else 1.0
    else:
        low, high = (values[finite].min(), values[finite].max()) if finite.any() else (0.0, 1.0)
    shown = np.where(np.isnan(values), low, values).clip(low, high) - low
    return (shown * (255.0 / (high - low) if high > low else 0.0)).round().astype(np.uint8)


def _data_uri(data: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def _printable(text: str) -> str:
    """Without the control characters that have no place in an SVG file."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _with_version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return package


def _flatten(settings: Mapping[str, object] | object, prefix: str = "") -> Iterable[tuple[str, object]]:
    if dataclasses.is_dataclass(settings):
        settings = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    if not isinstance(settings, Mapping):
        raise TypeError(f"settings are a mapping or a dataclass, not {type(settings).__name__}")
    for name, value in settings.items():
        nested = isinstance(value, Mapping) or (dataclasses.is_dataclass(value) and not isinstance(value, type))
        if nested:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _setting_text(value: object) -> str:
    if isinstance(value, list | tuple | set | frozenset):
        return ", ".join(_setting_text(item) for item in value) or "(none)"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value is None else str(value)


def _column_texts(column: Sequence[Cell]) -> list[str]:
    """One column as text, all its fractions with the same number of decimals."""
    fractions = [cell for cell in column if isinstance(cell, float) and math.isfinite(cell)]
    largest = max(map(abs, fractions), default=0.0)
    exact = (d for d in range(5) if all(math.isclose(round(v, d), v, rel_tol=1e-12) for v in fractions))
    decimals = next(exact, 3 if largest < 10 else 2 if largest < 100 else 1 if largest < 1000 else 0)

    def text(cell: Cell) -> str:
        if isinstance(cell, bool):
            return "yes" if cell else "no"
        if cell is None or (isinstance(cell, float) and math.isnan(cell)):
            return "–"
        if not isinstance(cell, float):
            return str(cell)
        if math.isinf(cell):
            return "∞" if cell > 0 else "-∞"
        lost = abs(round(cell, decimals) - cell) > 0.05 * abs(cell)
        return f"{cell:.1e}" if lost or abs(cell) >= 1e9 else f"{cell:.{decimals}f}"

    return [text(cell) for cell in column]


def _is_numeric(column: Sequence[Cell]) -> bool:
    """Whether a column holds numbers, also those written as text such as "0.85 ± 0.02"."""
    cells = [cell for cell in column if cell is not None]
    number = re.compile(r"[\s\d.,+\-±–%()/e∞]*\d[\s\d.,+\-±–%()/e∞]*")
    kinds = [
        not isinstance(cell, bool) and (not isinstance(cell, str) or bool(number.fullmatch(cell))) for cell in cells
    ]
    return bool(cells) and all(kinds)
