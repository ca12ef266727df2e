"""Public names, and help that needs no heavy package."""

from __future__ import annotations

import subprocess
import sys

import pytest

import skintone_debias
from skintone_debias.cli import COMMANDS


def test_public_names() -> None:
    public: list[str] = getattr(skintone_debias, "__all__")  # noqa: B009 (mypy does not see it)
    for name in public:
        assert getattr(skintone_debias, name) is not None
    assert set(public) >= {
        "auxiliary_loss", "class_weights", "confusion_loss", "debias_optimizers", "debias_step", "fitzpatrick_type",
        "groh_ita", "groh_skin_mask", "individual_typology_angle", "label_skin_tone", "lntl_loss", "remove_hair",
        "reverse_gradient", "tta_variants", "within_one_accuracy",
    }  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_help_needs_no_heavy_package(name: str) -> None:
    program = (
        f"import sys; from skintone_debias.cli import main; sys.argv = ['skintone-debias', {name!r}, '--help']\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'torchvision', 'timm', 'cv2', 'skimage', 'matplotlib', 'sklearn', 'scipy', 'numpy', 'PIL'}\n"
        "sys.exit(f'imported: {heavy & set(sys.modules)}' if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("--") > 2


def test_label_starts_without_torch() -> None:
    """Its processes would otherwise load it as well."""
    program = "import sys, skintone_debias.labelling; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
