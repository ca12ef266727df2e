"""Runs the Python code of the READMEs and the documentation: one test per document, its blocks one after the other."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    return Document.from_parent(parent, path=file_path) if file_path.suffix == ".md" else None


class Document(pytest.File):
    def collect(self) -> Iterator[pytest.Item]:
        code = python_code(self.path.read_text(encoding="utf-8"))
        if code.strip():
            yield Example.from_parent(self, name="python", code=code)


class Example(pytest.Item):
    def __init__(self, code: str, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.code = code

    def runtest(self) -> None:
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            exec(compile(self.code, self.path, "exec"), {"__name__": "__main__"})


def python_code(document: str) -> str:
    """The code in ```python fences; all other lines become empty, so that a traceback names the line of the document."""
    lines, inside = [], False
    for line in document.splitlines():
        fence = line.startswith("```")
        lines.append(line if inside and not fence else "")
        inside = line.strip() == "```python" if fence else inside
    return "\n".join(lines)
