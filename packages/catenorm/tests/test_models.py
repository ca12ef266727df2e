"""What networks are called and made of, what their files say, and which slices they can take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from catenorm import CateNorm2d
from catenorm.models import Model, build, check_sides
from catenorm.settings import Cases, Network

# The blocks (3.1, 3.2)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "catenorm 1-4"),
        ({"blocks": (1,)}, "catenorm 1"),
        ({"blocks": (3, 1)}, "catenorm 1 3"),
        ({"method": "w-net"}, "w-net"),
        ({"method": "w-net", "blocks": (1,)}, "w-net 1"),
        ({"method": "gn"}, "gn"),
        ({"architecture": "deeplabv3plus"}, "deeplab catenorm"),
        ({"architecture": "deeplabv3plus", "blocks": (2, 1)}, "deeplab catenorm"),
        ({"architecture": "deeplabv3plus", "blocks": (1, 2, 3, 4)}, "deeplab catenorm 1-4"),
        ({"architecture": "deeplabv3plus", "method": "bn"}, "deeplab bn"),
    ],
)
def test_names(options: dict[str, Any], name: str) -> None:
    assert Network(**options).name == name


@pytest.mark.parametrize(
    ("architecture", "parts"),
    [("unet", {"inc", "down1", "down2", "down3"}), ("deeplabv3plus", {"layer1", "layer2"})],
)
def test_default_blocks_are_those_of_the_architecture(architecture: Any, parts: set[str]) -> None:
    with torch.device("meta"):
        network = build(Network(architecture=architecture), 2, ())
    assert {name.split(".")[0] for name, part in network.named_modules() if isinstance(part, CateNorm2d)} == parts


def test_a_file_says_what_it_holds() -> None:
    cases = Cases((Path("/data/list.csv"),))
    model = Model(Network(blocks=(1, 7)), "x", ("liver",), ("a", "b"), cases, 2, seen=("0f", "1e"))
    assert Model.of(json.loads(model.as_text())) == model
    older = json.loads(model.as_text())
    del older["seen"]
    assert Model.of(json.loads(json.dumps(older))).seen == ()


# Slices and batches


@pytest.mark.parametrize("side", [15, 16, 31, 32])
@pytest.mark.parametrize(
    ("method", "width", "images"),
    [("bn", 4, 1), ("bn", 4, 2), ("catenorm", 4, 1), ("in", 4, 2), ("gn", 4, 1), ("gn", 1, 1), ("dsbn", 4, 1)],
)
def test_slices_are_refused_where_a_network_cannot_take_them(side: int, method: Any, width: int, images: int) -> None:
    """In training, with as many images at once for every batch norm."""
    settings = Network(method, width=width)
    network = build(settings, 2, ("a",)).train()
    more = (torch.zeros(images),) if method == "dsbn" else ()
    fails = False
    try:
        network(torch.randn(images, 3, side, side), *more)
    except (ValueError, RuntimeError):
        fails = True
    if fails:
        with pytest.raises(ValueError, match=f"slices of {side} x {side} pixels"):
            check_sides(settings, (side, side), images)
    else:
        check_sides(settings, (side, side), images)


def test_deeplab_learns_from_two_slices_or_more() -> None:
    settings = Network("bn", architecture="deeplabv3plus")
    network = build(settings, 2, ()).train()
    with pytest.raises(ValueError, match="more than 1 value"):
        network(torch.randn(1, 3, 48, 48))
    with pytest.raises(ValueError, match="one slice at a time; raise --batch-size"):
        check_sides(settings, (48, 48), 1)
    network(torch.randn(2, 3, 16, 16))
    check_sides(settings, (16, 16), 2)
