"""What settings make of each other."""

from __future__ import annotations

import pytest

from skintone_debias.settings import Training, Unlearning


@pytest.mark.parametrize(
    ("settings", "side"),
    [
        (Training(), 256),
        (Training(encoder="inception_v3"), 299),
        (Training(encoder="inception_v3.tv_in1k"), 299),
        (Training(encoder="inception_v4"), 256),
        (Training(encoder="inception_v3.tv_in1k", image_size=128), 128),
    ],
)
def test_side(settings, side):
    assert settings.side == side


def test_names_say_what_departs_from_the_defaults():
    assert Unlearning("none").name == "none"
    assert Unlearning("none", encoder_lr=0.0033).name == "lr-control (encoder lr 0.0033)"
    assert Unlearning("tabe", confusion_target="noise", aux_first=True, aux_updates_encoder=False).name == (
        "tabe (confusion target noise, aux first, no aux updates encoder)"
    )
