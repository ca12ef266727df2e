"""The boards as one HTML file that sorts and filters without a network: what no report can do, which runs no script."""

from __future__ import annotations

import base64
import hashlib
import html
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dart_core.files import write_atomic

STYLE = """
:root{color-scheme:light dark;--ink:#24292f;--paper:#fff;--line:#d0d7de;--soft:#f6f8fa;--link:#0550ae}
@media(prefers-color-scheme:dark){:root{--ink:#d5dae0;--paper:#15181c;--line:#3a4048;--soft:#1e2329;--link:#79b8ff}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:75rem;margin:2rem auto;padding:0 1rem}
a{color:var(--link)}table{border-collapse:collapse;width:100%}.wide{overflow-x:auto}
th,td{padding:.35rem .6rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
th button{all:unset;cursor:pointer;font-weight:600}th button:focus-visible{outline:2px solid var(--link)}
th[aria-sort=ascending] button::after{content:" ▲"}th[aria-sort=descending] button::after{content:" ▼"}
tbody tr:hover{background:var(--soft)}.controls{display:flex;gap:1rem;flex-wrap:wrap;margin:1rem 0}
input,select{font:inherit;color:inherit;background:var(--soft);border:1px solid var(--line);padding:.3rem .5rem}
summary{cursor:pointer}.reference{font-weight:600}
"""
SCRIPT = """
"use strict";
for (const board of document.querySelectorAll("section.board")) {
  const body = board.querySelector("tbody"), rows = [...body.rows], heads = [...board.querySelectorAll("thead th")];
  const text = board.querySelector("input"), needs = board.querySelector("select"), shown = board.querySelector("output");
  const sort = (column, ascending) => {
    const number = heads[column].classList.contains("number");
    const key = row => { const v = row.cells[column].dataset.value ?? row.cells[column].textContent; return number ? parseFloat(v) : v; };
    rows.sort((a, b) => {
      const x = key(a), y = key(b);
      if (number && (isNaN(x) || isNaN(y))) return isNaN(x) - isNaN(y);  // without a number: always at the end
      const order = number ? x - y : x.localeCompare(y);
      return ascending ? order : -order;
    });
    body.append(...rows);
    heads.forEach((head, i) => i === column ? head.setAttribute("aria-sort", ascending ? "ascending" : "descending")
                                            : head.removeAttribute("aria-sort"));
  };
  heads.forEach((head, i) => head.querySelector("button")?.addEventListener("click", () => {
    const before = head.getAttribute("aria-sort");
    sort(i, before ? before !== "ascending" : !head.classList.contains("number"));
  }));
  const filter = () => {
    for (const row of rows)
      row.hidden = !row.textContent.toLowerCase().includes(text.value.toLowerCase())
        || needs.value !== "" && row.dataset.needs !== needs.value;
    shown.value = `${rows.filter(row => !row.hidden).length} of ${rows.length} methods`;
  };
  text.addEventListener("input", filter);
  needs.addEventListener("change", filter);
  filter();
}
"""


def write(records: Iterable[Mapping[str, Any]], path: Path) -> Path:
    """Write the page of some boards; links to runs are relative to it, and are left out where a run is not there."""
    sections = "".join(_board(record, path.parent) for record in records)
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><title>Leaderboards</title><style>{STYLE}</style></head>'
        f"<body><h1>Leaderboards</h1>{sections}<script>{SCRIPT}</script></body></html>\n"
    )
    write_atomic(path, page)
    return path


def ranked(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Entries of a board from the best to the worst by the first metric; those without a number at the end."""
    means = [(entry["scores"][record["metrics"][0]]["mean"], entry) for entry in record["entries"]]
    return [entry for mean, entry in sorted(means, key=lambda pair: (pair[0] is None, -(pair[0] or 0)))]


def _board(record: Mapping[str, Any], folder: Path) -> str:
    metrics: Sequence[str] = record["metrics"]
    entries = ranked(record)
    needs = sorted({entry["needs"] for entry in entries})
    heads = [
        ("method", False), ("package", False), ("needs", False), *((name.replace("_", " "), True) for name in metrics),
        ("p", True), ("against", False), ("runs", False),
    ]  # fmt: skip
    options = "".join(f"<option>{html.escape(name)}</option>" for name in needs)
    first = 3  # of the metrics; the table comes sorted by it
    head = "".join(
        f'<th class="{"number" if number else ""}"{" aria-sort=descending" if i == first else ""}>'
        + (f"<button>{html.escape(name)}</button>" if name != "runs" else "runs")
        + "</th>"
        for i, (name, number) in enumerate(heads)
    )
    rows = "".join(_row(entry, record, folder) for entry in entries)
    seeds = {run["seed"] for entry in entries for run in entry["runs"]}
    return (
        f'<section class="board" id="{html.escape(record["task"])}"><h2>{html.escape(record["title"])}</h2>'
        f"<p>{html.escape(record['protocol'])}</p><p>Scale: {html.escape(record['scale'])}; mean ± standard deviation over "
        f"{len(seeds)} seed{'s' * (len(seeds) != 1)}; p: Wilcoxon's signed-rank test against the named method over runs of the same place and seed, which "
        "share test cases; not corrected for the number of methods.</p>"
        f'<div class="controls"><label>Find <input type="search"></label><label>Needs <select><option value="">anything</option>{options}'
        f'</select></label><output></output></div><div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        "</section>"
    )


def _row(entry: Mapping[str, Any], record: Mapping[str, Any], folder: Path) -> str:
    cells = [f"<td>{html.escape(entry[name])}</td>" for name in ("method", "package", "needs")]
    for metric in record["metrics"]:
        score = entry["scores"][metric]
        text = "–" if score["mean"] is None else f"{score['mean']:.3f}"
        text += f" ± {score['std']:.3f}" if score["std"] is not None else ""
        cells.append(
            f'<td class="number" data-value="{score["mean"] if score["mean"] is not None else ""}">{text}</td>'
        )
    p = entry["p"]
    cells.append(f'<td class="number" data-value="{"" if p is None else p}">{"–" if p is None else f"{p:.2g}"}</td>')
    cells.append(f"<td>{html.escape(entry['against'])}</td>")
    links = "".join(f"<li>{_link(run, record['metrics'][0], folder)}</li>" for run in entry["runs"])
    cells.append(f"<td><details><summary>{len(entry['runs'])}</summary><ul>{links}</ul></details></td>")
    kind = ' class="reference"' if entry["method"] == record["reference"] else ""
    return f'<tr data-needs="{html.escape(entry["needs"])}"{kind}>{"".join(cells)}</tr>'


def _link(run: Mapping[str, Any], metric: str, folder: Path) -> str:
    value = f"{run[metric]:.3f}" if metric in run else run["state"]
    text = html.escape(f"{run['place']}, seed {run['seed']}: {value}")
    report = Path(run["run"], "report.html") if run.get("run") else None
    if report is None or not report.is_file():
        return text
    return f'<a href="{html.escape(quote(Path(os.path.relpath(report, folder)).as_posix()))}">{text}</a>'
