"""The table of initialisations against timm's registry (specification 3, 4, 8.16)."""

from __future__ import annotations

import pytest
import timm
import torch

from benchmark_transformers import INITIALISATIONS
from benchmark_transformers.initialisations import find_initialisation
from benchmark_transformers.networks import Architecture, architecture_of
from benchmark_transformers.settings import Network
from benchmark_transformers.tables import printed_table


def test_the_nine_of_the_paper_come_first() -> None:
    nine = INITIALISATIONS[:9]
    assert [row.backbone for row in nine] == [
        "ViT-B",
        "Swin-B",
        "Swin-B",
        "ViT-B",
        "Swin-B",
        "ViT-B",
        *["ResNet-50"] * 3,
    ]
    assert all(row.in_paper and row.pretrained for row in nine)
    assert {row.backbone for row in INITIALISATIONS if not row.pretrained} == {"ViT-B", "Swin-B", "ResNet-50"}
    assert len({row.key for row in INITIALISATIONS}) == len(INITIALISATIONS)


def test_every_tag_is_in_the_registry_and_names_its_weights() -> None:
    registry = set(timm.list_pretrained())
    for row in INITIALISATIONS:
        assert timm.is_model(row.architecture)
        if row.tag is not None:
            assert "." in row.tag
            assert row.tag in registry
            assert row.tag.split(".")[0] == row.architecture


def test_rows_without_weights_in_the_registry_say_whose_file_they_need() -> None:
    for row in INITIALISATIONS:
        assert row.tag is None or row.source is None
    assert {row.source for row in INITIALISATIONS} == {None, "simmim", "moco_v3", "moby"}


def test_rows_of_the_printed_tables_are_all_there() -> None:
    first = {(row["initialization"], row["backbone"]) for row in printed_table("table1")}
    assert {row.table1 for row in INITIALISATIONS} - {None} == first
    assert {row.table2 for row in INITIALISATIONS} - {None} == {
        row["initialization"] for row in printed_table("table2")
    }


@pytest.mark.parametrize(
    ("key", "count"),
    [
        ("scratch-swin-b", 86_743_224),
        ("scratch-vit-b", 85_798_656),
        ("vit-b-simmim", 85_772_750 - 14 * 769),
        ("scratch-resnet50", 23_508_032),
    ],
)
def test_backbone_parameters(key: str, count: int) -> None:
    architecture, _ = architecture_of(find_initialisation(key), None, Network())
    with torch.device("meta"):
        network = architecture.build(14, 224)
    head = network.get_classifier()  # type: ignore[operator]
    assert sum(p.numel() for p in network.parameters()) - sum(p.numel() for p in head.parameters()) == count
    assert sum(p.numel() for p in head.parameters()) == 14 * (head.in_features + 1)


def test_stochastic_depth_of_the_protocol() -> None:
    depth = {row.key: row.drop_path for row in INITIALISATIONS}
    assert {k for k, v in depth.items() if v == 0.1} >= {
        "scratch-vit-b",
        "scratch-swin-b",
        "vit-b-simmim",
        "swin-b-simmim",
        "swin-b-in1k",
    }
    assert depth["vit-b-in21k"] == depth["vit-b-moco-v3"] == depth["scratch-resnet50"] == 0


def test_another_size_of_network() -> None:
    architecture, _ = architecture_of(find_initialisation("scratch-swin-b"), None, Network(2, 8, (1, 1), (1, 2), 2))
    assert architecture == Architecture(
        "swin_base_patch4_window7_224",
        {"patch_size": 2, "embed_dim": 8, "window_size": 2, "depths": (1, 1), "num_heads": (1, 2)},
    )
    assert architecture.build(3, 16)(torch.zeros(1, 3, 16, 16)).shape == (1, 3)
    with pytest.raises(ValueError, match="one size"):
        architecture_of(find_initialisation("scratch-resnet50"), None, Network(patch_size=2))


def test_unknown_key() -> None:
    with pytest.raises(ValueError, match="no initialisation 'vit'"):
        find_initialisation("vit")
