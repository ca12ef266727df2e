"""What tables call an adaptation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aiva.cli import COMMANDS
from aiva.settings import Adapt, Alignment, Baselines, Training
from dart_core.settings import RunSettings, ScanSettings
from dart_core.testing import config_words, settings_given

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.mark.parametrize(
    ("method", "changes", "name"),
    [
        ("aiva", {}, "aiva"),
        ("aiva", {"alignment": Alignment(clusters=6, lambda_factor=0.8)}, "aiva_clusters6_lambda-factor0.8"),
        ("aiva", {"alignment": Alignment(slice_positions=False, kmeans="k-means++")}, "aiva_no-slice-positions_k-means++"),
        ("aiva", {"alignment": Alignment(step_every_iteration=True)}, "aiva_step-every-iteration"),
        ("aiva", {"training": Training(checkpoint="lowest_source")}, "aiva_lowest-source"),
        ("adabn", {"baselines": Baselines(adabn="cumulative")}, "adabn-cumulative"),
        ("adabn", {"baselines": Baselines(adabn="cumulative", passes=10)}, "adabn-cumulative_passes10"),
        ("adabn", {"training": Training(checkpoint="last")}, "adabn"),  # there is no choice to make
        ("seg-jdot", {"baselines": Baselines(jdot_form="authors", ot="sinkhorn", reg=0.2)}, "seg-jdot_authors_sinkhorn_reg0.2"),
        ("adaptsegnet", {"baselines": Baselines(adversarial_weight=0.01)}, "adaptsegnet_adversarial-weight0.01"),
        ("target", {"training": Training(checkpoint="last")}, "target_last"),
        ("none", {"training": Training(checkpoint="last")}, "none"),
    ],
)  # fmt: skip
def test_the_name_says_what_departs_from_the_defaults(method: Any, changes: dict[str, Any], name: str) -> None:
    source = None if method == "target" else Path("run")
    adapt = Adapt(RunSettings(Path("out")), ScanSettings(Path("a.csv")), "ge3", method, source, **changes)
    assert adapt.name == name


def test_the_rows_of_the_tables_have_names_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above all the two forms of AIVA, which were averaged when both were called aiva."""

    def names(table: str) -> dict[str, str]:
        found = {}
        for path in sorted(CONFIGS.glob(f"{table}_*.yaml")):
            given = settings_given("aiva", COMMANDS, config_words(path, "aiva"), monkeypatch)
            if isinstance(given, Adapt):
                found[path.stem.removeprefix(f"{table}_")] = given.name
        return found

    first, second = names("table1"), names("table2")
    printed = first.pop("aiva_as_printed")
    # Table 1 is the default; what records and leaderboards call its methods stays.
    assert first == {row: row.replace("_", "-") for row in first}
    assert printed == (
        "aiva_no-slice-positions_k-means++_recompute_paper-sum_acc-amount0_lambda-factor1_step-every-iteration"
    )
    assert len(set(second.values())) == len(second)
    assert second["aiva"] == "aiva_iterations-per-epoch50_acc-amount20_lambda-factor0.8"
