"""What networks are called: all that tells them apart but the seed, and nothing where all is as usual."""

from __future__ import annotations

import dataclasses

import pytest

from popar.models import Pretrained, Tuned, tuned_of, version_of

TUNED = Tuned(
    "vit_b", 224, {}, "linear", ("a",), True, "imagenet", False, "multi-label", "here", "POPAR-3", seed=0, split_seed=0
)
SHRUNKEN = {"num_heads": 2, "depth": 4}


def pretrained(backbone, size, network):
    return Pretrained(backbone, size, network, "chestxray14", ("poc", "mpr", "mgr"), True, 300, 0, 100)


@pytest.mark.parametrize(
    ("backbone", "size", "tuned_at", "version"),
    [
        ("swin_b", 448, 448, "POPAR"),
        ("swin_b", 448, 224, "POPAR-1"),
        ("swin_b", 224, 224, "POPAR-2"),
        ("vit_b", 224, 224, "POPAR-3"),
        ("vit_b", 96, 96, "POPAR"),
    ],
)
def test_versions_are_of_the_papers_networks(backbone, size, tuned_at, version):
    assert version_of(pretrained(backbone, size, {}), tuned_at) == version
    assert version_of(pretrained(backbone, size, SHRUNKEN), tuned_at) == "POPAR"


def test_names():
    assert TUNED.name == "POPAR-3, vit_b at 224"
    others = [
        {"network": SHRUNKEN}, {"network": {"depths": (2, 2), "depth": 4}}, {"head": "mlp"}, {"normalisation": "none"},
    ]  # fmt: skip
    names = [dataclasses.replace(TUNED, **changes).name for changes in others]
    assert [name.removeprefix(f"{TUNED.name}, ") for name in names] == [
        "depth=4, num_heads=2", "depth=4, depths=2,2", "mlp head", "normalisation none",
    ]  # fmt: skip
    turned = dict(reversed(SHRUNKEN.items()))
    assert dataclasses.replace(TUNED, network=turned).name == names[0]
    assert dataclasses.replace(TUNED, seed=1, split_seed=1, epoch=3).name == TUNED.name


def test_fields_survive_json():
    import json

    about = dataclasses.replace(TUNED, network={"depths": (2, 2)}, lists={"test": ("a", "b")})
    assert tuned_of(json.loads(json.dumps(dataclasses.asdict(about)))) == about
    old = dataclasses.asdict(TUNED)
    del old["lists"]
    assert tuned_of(old) == TUNED
