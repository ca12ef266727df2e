"""What a command's settings say of themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from dart_core.settings import RunSettings
from stain_aglr.settings import ON, Augmentation, GanTraining, Losses, PatchSettings, Train, Training

RUN, PATCHES = RunSettings(Path("run")), PatchSettings(Path("list.csv"))


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, {}),
        ({"augmentation": Augmentation(strength=0.2)}, {"strength": "0.2"}),
        ({"losses": Losses(ce_on="both")}, {}),  # the default written out
        ({"losses": Losses(ce_on="raw", detach_target=True, form="element")}, {"ce_on": "raw", "detach_target": ON, "form": "element"}),
        ({"losses": Losses(lambda1=1.0)}, {}),  # a network file has the weights by themselves
        ({"training": Training(balanced=True, learning_rate=5e-3)}, {"balanced": ON}),
        ({"method": "vahadane", "standardise_luminosity": True}, {"standardise_luminosity": ON}),
        ({"method": "macenko", "reference": Path("pictures/ours.png")}, {"reference": "ours.png"}),
        ({"method": "stst-gan", "gan": GanTraining(gan_epochs=15, gan_batch_size=1, gan_learning_rate=2e-4)}, {}),
        ({"method": "dscsi-gan", "gan": GanTraining(gan_epochs=15, gan_log_every=5)}, {"gan_epochs": "15"}),
        ({"method": "dscsi-gan", "gan": GanTraining(gan_weights=Path("w/resnet34.pth"))}, {"gan_weights": "resnet34.pth"}),
    ],
)  # fmt: skip
def test_options_are_what_departs_from_the_methods_defaults(changes, found):
    assert Train(RUN, PATCHES, **changes).options == found
