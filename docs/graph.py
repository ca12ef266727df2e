"""Draw who imports whom: `python docs/graph.py` writes docs/dependencies.svg, `--check` fails if it is not up to date.

Lines go from each method to the parts of the core that it imports, and between those parts; read from the sources with grimp, which
import-linter brings along. `nox -s imports` checks it.
"""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[1]
PICTURE = Path(__file__).with_name("dependencies.svg")
# What is drawn as one box, from top to bottom; the modules of the core that are named nowhere are the foundations.
UPPER = {
    "experiment": ("experiment",),
    "commands": ("cli", "settings", "scan_commands"),
    "runs": ("run", "sharding", "checkpoint", "batches", "log"),
    "training": ("fine_tuning", "sliding_window", "picture_views"),
    "scores": ("evaluation", "classification"),
    "reports": ("report", "figures"),
    "data": ("data", "itk_volumes"),
    "export": ("export",),
}
LOWER = {name: (name,) for name in ("nets", "losses", "metrics", "augment", "adapt", "optim")}
FOUNDATIONS = "files, errors, arrays, fetch: under everything"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b07d00", "#3a8fc2", "#7a5195", "#6b6b6b")
WIDTH, HEIGHT, BOX = 1500, 520, (100, 34)


def edges() -> dict[tuple[str, str], int]:
    """(from, to) -> number of imports between two boxes."""
    packages = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))
    modules = {name.replace("-", "_"): name for name in packages}
    for folder in ("shared", *(f"packages/{name}" for name in packages)):
        sys.path.insert(0, str(ROOT / folder / "src"))
    graph = grimp.build_graph("dart_core", *modules, cache_dir=None)
    parts = {part: box for box, found in {**UPPER, **LOWER}.items() for part in found}

    def box_of(module: str) -> str:
        top, _, rest = module.partition(".")
        return modules[top] if top in modules else parts.get(rest.partition(".")[0], FOUNDATIONS)

    found: dict[tuple[str, str], int] = {}
    for module in graph.modules:
        if module in ("dart_core", "dart_core.testing"):
            continue
        for imported in graph.find_modules_directly_imported_by(module):
            pair = box_of(module), box_of(imported)
            # Every part stands on the foundations; these lines would only hide the others.
            if pair[0] != pair[1] and pair[1] != FOUNDATIONS:
                found[pair] = found.get(pair, 0) + 1
    return dict(sorted(found.items()))


def draw(found: dict[tuple[str, str], int]) -> str:
    """The picture: methods above, the core below in two rows."""
    methods = sorted({first for first, _ in found} - {*UPPER, *LOWER, FOUNDATIONS})
    rows = [methods, list(UPPER), list(LOWER), [FOUNDATIONS]]
    place = {
        name: ((i + 0.5) * WIDTH / len(row), 50 + y * (HEIGHT - 100) / (len(rows) - 1))
        for y, row in enumerate(rows)
        for i, name in enumerate(row)
    }
    colour = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate((*UPPER, *LOWER, FOUNDATIONS))}
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">',
        f'<title>Who imports whom</title><rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
    ]
    for (first, second), count in found.items():
        (x1, y1), (x2, y2) = place[first], place[second]
        bend = 0 if y1 != y2 else 60
        path = f"M{x1:.0f},{y1:.0f} C{x1:.0f},{(y1 + y2) / 2 + bend:.0f} {x2:.0f},{(y1 + y2) / 2 + bend:.0f} {x2:.0f},{y2:.0f}"
        lines.append(
            f'<path d="{path}" fill="none" stroke="{colour[second]}" stroke-opacity=".45" stroke-width="{min(4, 0.8 + count / 8):.1f}">'
            f"<title>{escape(first)} → {escape(second)}: {count}</title></path>"
        )
    for name, (x, y) in place.items():
        wide = WIDTH / len(methods) - 8 if name in methods else WIDTH - 40 if name == FOUNDATIONS else BOX[0]
        size = ' font-size="10"' if name in methods and len(name) > 14 else ""
        lines.append(
            f'<rect x="{x - wide / 2:.0f}" y="{y - BOX[1] / 2:.0f}" width="{wide:.0f}" height="{BOX[1]}" rx="5" fill="#f6f8fa" '
            f'stroke="{colour.get(name, "#24292f")}"/><text x="{x:.0f}" y="{y + 5:.0f}" text-anchor="middle"{size}>{escape(name)}</text>'
        )
    return "\n".join([*lines, "</svg>\n"])


def main() -> int:
    """Command line."""
    picture = draw(edges())
    if "--check" not in sys.argv:
        PICTURE.write_text(picture, encoding="utf-8")
    elif not PICTURE.is_file() or PICTURE.read_text(encoding="utf-8") != picture:
        print(f"{PICTURE.relative_to(ROOT)} is not up to date; run: python docs/graph.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
