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


def test_every_public_name_can_be_imported() -> None:
    import dart_core

    names: list[str] = vars(dart_core)["__all__"]
    assert [name for name in names if getattr(dart_core, name, None) is None] == []
