"""Masks, loss and network of SimMIM (specification 2.2, properties 9.1 to 9.3)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmark_transformers import SimMIM, simmim_loss, simmim_mask
from benchmark_transformers.simmim import parameter_groups, visible

SWIN = {"patch_size": 2, "embed_dim": 8, "depths": (1, 2), "num_heads": (1, 2), "window_size": 4}
VIT = {"patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 2}
SIZES = {"swin_b": SWIN, "vit_b": VIT}


def small(backbone: str) -> SimMIM:
    torch.manual_seed(0)
    return SimMIM(backbone, 16, **SIZES[backbone]).eval()


def pictures(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Masks


@pytest.mark.parametrize(("size", "patch", "cells", "count"), [(192, 4, 6, 22), (224, 16, 7, 30)])
def test_mask_has_the_published_number_of_cells_in_blocks(size: int, patch: int, cells: int, count: int) -> None:
    permutation = torch.stack([torch.randperm(cells**2) for _ in range(3)])
    mask = simmim_mask(permutation, size // patch, cells)
    assert mask.shape == (3, size // patch, size // patch)
    factor = size // patch // cells
    blocks = mask.unfold(1, factor, factor).unfold(2, factor, factor).flatten(3)
    assert torch.equal(blocks.amin(-1), blocks.amax(-1))
    assert blocks[..., 0].sum((1, 2)).tolist() == [count] * 3


def test_first_cells_of_the_permutation_are_masked() -> None:
    mask = simmim_mask(torch.tensor([3, 0, 2, 1]), 4, 2, ratio=0.5)
    assert mask.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]


def test_cells_are_masked_equally_often() -> None:
    rng = np.random.default_rng(0)
    masks = simmim_mask(np.stack([rng.permutation(36) for _ in range(4000)]), 6, 6)
    assert isinstance(masks, np.ndarray)
    assert abs(masks.mean(0) - 22 / 36).max() < 4.5 * np.sqrt(22 / 36 * 14 / 36 / 4000)


@given(st.integers(1, 8), st.floats(0, 1))
def test_masked_share_is_rounded_up(cells: int, ratio: float) -> None:
    count = int(simmim_mask(torch.randperm(cells**2), cells, cells, ratio).sum())
    assert ratio * cells**2 - 1e-6 <= count < ratio * cells**2 + 1


def test_ratio_is_not_raised_by_a_rounding() -> None:
    assert int(simmim_mask(torch.randperm(25), 5, 5, 0.6).sum()) == 15  # 0.6 * 25 is 15.000000000000002 in some orders


@pytest.mark.parametrize(
    ("permutation", "grid", "cells", "ratio", "match"),
    [(35, 6, 6, 0.6, "permutation of 35"), (36, 8, 6, 0.6, "do not divide 8"), (36, 6, 6, 1.5, "ratio is 1.5")],
)
def test_masks_that_do_not_fit(permutation: int, grid: int, cells: int, ratio: float, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        simmim_mask(torch.arange(permutation), grid, cells, ratio)


# Loss


def test_loss_is_the_mean_over_masked_pixels_and_channels() -> None:
    image, found = pictures(2, 3, 8, 8), pictures(2, 3, 8, 8, seed=1)
    mask = torch.randint(0, 2, (2, 4, 4), generator=torch.Generator().manual_seed(0))
    total, pixels = 0.0, 0
    for n in range(2):
        for y in range(8):
            for x in range(8):
                if mask[n, y // 2, x // 2]:
                    pixels += 1
                    total += float((image[n, :, y, x] - found[n, :, y, x]).abs().sum())
    for kind in (mask, mask.bool(), mask.double()):
        assert float(simmim_loss(image, found, kind, 2)) == pytest.approx(total / (pixels + 1e-5) / 3, rel=1e-12)


def test_loss_in_closed_form() -> None:
    image, mask = pictures(2, 3, 8, 8), torch.ones(2, 2, 2)
    mask[:, 0, 0] = 0
    assert float(simmim_loss(image, image, mask, 4)) == 0
    assert float(simmim_loss(image, image - 0.7, mask, 4)) == pytest.approx(0.7, rel=1e-6)
    other = image.clone()
    other[:, :, :4, :4] += 100  # not masked
    assert float(simmim_loss(image, other, mask, 4)) == 0
    found = pictures(2, 3, 8, 8, seed=1)
    assert float(simmim_loss(2 * image, 2 * found, mask, 4)) == pytest.approx(
        2 * float(simmim_loss(image, found, mask, 4)), rel=1e-12
    )
    assert float(simmim_loss(image, found, torch.zeros(2, 2, 2), 4)) == 0


def test_loss_has_no_gradient_at_visible_pixels() -> None:
    found = pictures(1, 3, 4, 4).requires_grad_()
    simmim_loss(pictures(1, 3, 4, 4, seed=1), found, torch.tensor([[[1, 0], [0, 0]]]), 2).backward()
    assert found.grad is not None
    assert found.grad[:, :, :2, :2].abs().min() > 0
    assert found.grad[:, :, 2:].abs().max() == found.grad[:, :, :, 2:].abs().max() == 0


def test_shapes_must_fit() -> None:
    with pytest.raises(ValueError, match="picture and reconstruction"):
        simmim_loss(pictures(1, 3, 4, 4), pictures(1, 3, 8, 8), torch.ones(1, 2, 2), 2)
    with pytest.raises(ValueError, match="mask of shape"):
        simmim_loss(pictures(1, 3, 4, 4), pictures(1, 3, 4, 4), torch.ones(1, 3, 3), 2)


# Network


@pytest.mark.parametrize(
    ("backbone", "encoder", "whole"), [("swin_b", 86_725_304, 89_874_104), ("vit_b", 85_666_128, 86_256_720)]
)
def test_parameters_of_the_published_networks(backbone: str, encoder: int, whole: int) -> None:
    with torch.device("meta"):
        network = SimMIM(backbone)
    assert sum(p.numel() for p in network.encoder.parameters()) == encoder
    assert sum(p.numel() for p in network.parameters()) == whole
    assert (network.image_size, network.grid) == {"swin_b": (192, 48), "vit_b": (224, 14)}[backbone]


def test_names_are_those_of_simmim_files() -> None:
    swin, vit = ({name for name, _ in small(backbone).named_parameters()} for backbone in SIZES)
    for name in (
        "mask_token",
        "patch_embed.norm.weight",
        "layers.0.blocks.0.attn.relative_position_bias_table",
        "norm.bias",
    ):
        assert f"encoder.{name}" in swin
    for name in (
        "mask_token",
        "cls_token",
        "rel_pos_bias.relative_position_bias_table",
        "blocks.1.attn.q_bias",
        "blocks.0.gamma_1",
    ):
        assert f"encoder.{name}" in vit
    assert {"decoder.0.weight", "decoder.0.bias"} <= swin & vit
    assert not any("k_bias" in name or "pos_embed" in name or "head" in name for name in swin | vit)


@pytest.mark.parametrize("backbone", SIZES)
def test_without_mask_it_is_the_plain_encoder(backbone: str) -> None:
    network, image = small(backbone), pictures(2, 3, 16, 16).float()
    found = network.encode(image, torch.zeros(2, network.grid, network.grid, dtype=torch.int64))
    plain = network.encoder.forward_features(image)
    plain = plain.permute(0, 3, 1, 2) if backbone == "swin_b" else plain[:, 1:].transpose(1, 2).reshape(2, -1, 4, 4)
    assert found.shape == (2, 16 if backbone == "swin_b" else 12, 4, 4)
    assert torch.allclose(found, plain, atol=1e-6)


@pytest.mark.parametrize("backbone", SIZES)
def test_fully_masked_the_picture_does_not_matter(backbone: str) -> None:
    network, mask = small(backbone), torch.ones(1, small(backbone).grid, small(backbone).grid)
    found = [network.encode(pictures(1, 3, 16, 16, seed=seed).float(), mask) for seed in (0, 1)]
    assert torch.equal(*found)


@pytest.mark.parametrize("backbone", SIZES)
def test_what_is_masked_cannot_be_seen(backbone: str) -> None:
    """The reconstruction of a masked cell does not depend on its own pixels."""
    network = small(backbone)
    mask = torch.zeros(1, network.grid, network.grid)
    mask[:, : network.grid // 2] = 1
    image = pictures(1, 3, 16, 16).float()
    other = image.clone()
    other[:, :, :8] = 0
    assert torch.equal(network(image, mask)[1], network(other, mask)[1])
    assert visible(image, mask, network.patch)[:, :, :8].abs().max() == 0


def test_decoder_orders_pixels_as_pixel_shuffle() -> None:
    network = small("vit_b")
    with torch.no_grad():
        network.decoder[0].weight.zero_()
        network.decoder[0].bias.copy_(torch.arange(3 * 16))
    _, found = network(pictures(1, 3, 16, 16).float(), torch.zeros(1, 4, 4))
    assert found[0, 2, 4 + 1, 8 + 3] == 2 * 16 + 1 * 4 + 3


def test_weight_decay_spares_what_the_code_spares() -> None:
    for backbone, spared in (("swin_b", True), ("vit_b", False)):
        network = small(backbone)
        names = {id(p): name for name, p in network.named_parameters()}
        groups = parameter_groups(network, 0.05)
        assert [group["weight_decay"] for group in groups] == [0.05, 0.0]
        decayed, free = ({names[id(p)] for p in group["params"]} for group in groups)
        assert len(decayed) + len(free) == len(names)
        tables = {name for name in names.values() if name.endswith("bias_table")}
        assert tables
        assert (tables | {"encoder.mask_token"}) <= (free if spared else decayed)
        assert "decoder.0.weight" in decayed
        assert "decoder.0.bias" in free
    assert "encoder.cls_token" in free


@pytest.mark.parametrize(
    ("backbone", "size", "match"),
    [("swin_b", 30, "multiple such as 32"), ("vit_b", 18, "multiple such as 16"), ("resnet", 32, "swin_b or vit_b")],
)
def test_sizes_that_cannot_be(backbone: str, size: int, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        SimMIM(backbone, size, **SIZES.get(backbone, {}))
