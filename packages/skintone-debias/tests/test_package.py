"""Public names, and help that needs no heavy package."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dart_core.testing import assert_exports, assert_help_is_light
from skintone_debias.cli import COMMANDS


def test_public_names() -> None:
    assert_exports(
        "skintone_debias", "auxiliary_loss", "class_weights", "confusion_loss", "debias_optimizers", "debias_step", "fitzpatrick_type",
        "groh_ita", "groh_skin_mask", "individual_typology_angle", "label_skin_tone", "lntl_loss", "remove_hair",
        "reverse_gradient", "tta_variants", "within_one_accuracy",
    )  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_help_needs_no_heavy_package(name: str) -> None:
    assert_help_is_light("skintone_debias", name)


def test_label_starts_without_torch() -> None:
    """Its processes would otherwise load it as well."""
    program = "import sys, skintone_debias.labelling; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
