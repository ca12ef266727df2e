from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "numpy",
    "scipy",
    "matplotlib",
    "PIL",
    "monai",
    "nibabel",
    "sklearn",
    "requests",
    "pooch",
    "jinja2",
    "rich",
)


@pytest.mark.parametrize("module", ["dart_core", "dart_core.cli", "dart_core.settings", "dart_core.errors"])
def test_a_light_module_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*sorted(set({HEAVY}) & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.split() == []


def test_importing_by_name_works() -> None:
    code = "import dart_core; print(all(hasattr(dart_core, name) for name in dart_core.__all__))"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout == "True\n"
