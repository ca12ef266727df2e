"""The networks of the specification: parameters, heads, equality with timm (3; 9.4, 9.9, 9.11)."""

from __future__ import annotations

import pytest
import timm
import torch
from torch.nn import functional as F

from popar import POPAR, patchify, permute_patches
from popar.networks import Classifier, build_backbone, parse_options, patch_tokens

VIT = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
SWIN = {"patch_size": 2, "embed_dim": 8, "depths": (1, 1, 2), "num_heads": (1, 2, 2), "window_size": 4}


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("backbone", "size", "n", "own", "order", "restoration", "total"),
    [
        ("swin_b", None, 196, 86_743_224, 200_900, 3_148_800, 90_092_924),
        ("swin_b", 224, 49, 86_743_224, 1024 * 49 + 49, 3_148_800, 86_743_224 + 50_225 + 3_148_800),
        ("vit_b", None, 196, 85_798_656, 150_724, 590_592, 86_539_972),
    ],
)
def test_the_papers_networks(backbone, size, n, own, order, restoration, total):
    with torch.device("meta"):
        network = POPAR(backbone, size)
    assert network.grid**2 == n
    counts = [parameters(part) for part in (network.backbone, network.order_head, network.restoration_head)]
    assert [*counts, parameters(network)] == [own, order, restoration, total]
    assert list(dict(network.named_children())) == ["backbone", "order_head", "restoration_head"]


def test_drop_path_rises_over_the_blocks_of_swin_b():
    with torch.device("meta"):
        backbone = build_backbone("swin_b", 224)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for stage in backbone.layers for block in stage.blocks]
    assert rates == pytest.approx([0.1 * i / 23 for i in range(24)])


def test_shifted_windows_in_the_last_stage_of_448_only():
    with torch.device("meta"):
        large, small = build_backbone("swin_b", 448), build_backbone("swin_b", 224)
    assert large.layers[3].blocks[1].shift_size == (3, 3)
    assert small.layers[3].blocks[1].shift_size == (0, 0)


@pytest.mark.parametrize(("backbone", "options"), [("vit_b", VIT), ("swin_b", SWIN)])
def test_outputs(backbone, options):
    network = POPAR(backbone, 32, **options).eval()
    x = torch.randn(2, 3, 32, 32)
    logits, restored = network(x)
    assert logits.shape == (2, 16, 16)
    assert restored.shape == x.shape
    # The heads by hand: one linear layer each, in the order channel, row, column.
    tokens = patch_tokens(network.backbone, x)
    assert torch.allclose(logits, F.linear(tokens, network.order_head.weight, network.order_head.bias), atol=1e-5)
    head = network.restoration_head
    values = F.linear(tokens, head.weight.flatten(1), head.bias)
    assert torch.allclose(patchify(restored, 8).flatten(2), values, atol=1e-5)


def test_heads_start_as_the_specification_says():
    torch.manual_seed(0)
    network = POPAR("vit_b", 32, patch_size=8, embed_dim=192, depth=1, num_heads=2)
    for layer in (network.order_head, network.restoration_head):
        assert float(layer.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
        assert not layer.bias.any()
    assert isinstance(POPAR("swin_b", 32, **SWIN).restoration_head, torch.nn.Conv2d)


def test_order_logits_move_with_the_patches():
    """Without position embeddings a ViT cannot tell positions apart (specification 9.9)."""
    network = POPAR("vit_b", 32, **VIT).eval()
    with torch.no_grad():
        network.backbone.pos_embed.zero_()
    x, permutation = torch.randn(2, 3, 32, 32), torch.stack([torch.randperm(16) for _ in range(2)])
    shown, _ = permute_patches(x, 8, permutation)
    moved = network(x)[0].gather(1, permutation[:, :, None].expand(-1, -1, 16))
    assert torch.allclose(network(shown)[0], moved, atol=1e-5)


@pytest.mark.parametrize(("backbone", "options"), [("vit_b", VIT), ("swin_b", SWIN)])
def test_classifier_is_timms(backbone, options):
    name = {"vit_b": "vit_base_patch16_224", "swin_b": "swin_base_patch4_window7_224"}[backbone]
    network = Classifier(backbone, 3, 32, **options).eval()
    model = timm.create_model(name, img_size=32, num_classes=3, **options).eval()
    head = "head" if backbone == "vit_b" else "head.fc"
    state = {f"{head}.{key}": value for key, value in network.head.state_dict().items()}
    model.load_state_dict({**network.backbone.state_dict(), **state})
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(network(x), model(x))


def test_head_with_hidden_layers():
    head = Classifier("vit_b", 3, 32, "mlp", **VIT).head
    kinds = [type(layer).__name__ for layer in head]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear"]
    assert [(layer.in_features, layer.out_features) for layer in head if isinstance(layer, torch.nn.Linear)] == [(16, 512), (512, 256), (256, 3)]  # fmt: skip
    assert all(not layer.affine and layer.eps == 1e-6 for layer in head if isinstance(layer, torch.nn.BatchNorm1d))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ("swin_b", 450),
            r"a side of 450 pixels cannot be divided into patches of 32; give a multiple of 32 such as 448",
        ),
        (("vit_b", 225), r"a side of 225 .* patches of 16; give a multiple of 16 such as 224"),
        (("resnet18", 64), r"resnet18 is a ResNet; give swin_b, vit_b"),
        (("vit_bb", 64), r"timm has no network 'vit_bb'"),
    ],
)
def test_refused(arguments, line):
    with torch.device("meta"), pytest.raises(ValueError, match=line):
        POPAR(*arguments)


def test_refused_options():
    with pytest.raises(ValueError, match="drop path is 1"):
        POPAR("vit_b", 32, 1.0)
    with pytest.raises(ValueError, match=r"give \(B, 3, 32, 32\)"):
        POPAR("vit_b", 32, **VIT)(torch.zeros(1, 3, 40, 40))
    assert parse_options(("embed_dim=192", "depths=2,2,6")) == {"embed_dim": 192, "depths": (2, 2, 6)}
    for word in ("embed_dim", "embed_dim=", "=3", "embed_dim=a"):
        with pytest.raises(ValueError, match="--network has"):
            parse_options((word,))
