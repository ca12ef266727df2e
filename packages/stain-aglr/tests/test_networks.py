"""Shapes, numbers of parameters, order of patches, and the pass of raw and altered patches together (specification 3, 9)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stain_aglr import FeatureExtractor, StainClassifier, StainGenerator, consistency_loss
from stain_aglr.networks import PatchClassifier, StainAgLr


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_numbers_of_parameters():
    assert parameters(FeatureExtractor()) == 4_714_208
    assert parameters(StainClassifier()) == 131_842
    assert parameters(StainGenerator()) == 7_073_507
    assert parameters(PatchClassifier()) == 4_846_050
    for halving in ("first", "second", "pool"):
        assert parameters(FeatureExtractor(halving=halving)) == 4_714_208


@pytest.mark.parametrize("halving", ["first", "second", "pool"])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (128, 128), (96, 32)])
def test_shapes(halving, height, width):
    features = FeatureExtractor(halving=halving)(torch.rand(2, 3, height, width))
    assert features.shape == (2, 512, height // 32, width // 32)
    assert StainClassifier()(features).shape == (2, 2)
    assert StainGenerator(upsampling="bilinear")(features).shape == (2, 3, height, width)


def test_sides_of_the_paper():
    with torch.no_grad():
        features = FeatureExtractor(width=1)(torch.rand(1, 3, 256, 256))
    assert features.shape == (1, 16, 8, 8)
    assert StainGenerator(width=1)(features).shape == (1, 3, 256, 256)


def test_generator_stays_in_range():
    regenerated = StainGenerator(width=2)(torch.randn(2, 32, 1, 1) * 100)
    assert regenerated.min() >= 0
    assert regenerated.max() <= 1


def test_parts_come_in_the_order_of_table_3():
    kinds = [type(layer) for layer in FeatureExtractor().stages]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * 10
    strides = [layer.stride for layer in FeatureExtractor().stages if isinstance(layer, nn.Conv2d)]
    assert strides == [(1, 1), (2, 2)] * 5
    filters = [layer.out_channels for layer in FeatureExtractor().stages if isinstance(layer, nn.Conv2d)]
    assert filters == [f for f in (32, 64, 128, 256, 512) for _ in range(2)]
    mirror = [layer.out_channels for layer in StainGenerator().stages if isinstance(layer, nn.Conv2d)]
    assert mirror == [f for f in (512, 256, 128, 64, 32) for _ in range(2)]


def test_relu_on_the_logits_is_an_option():
    features = torch.randn(50, 512, 1, 1)
    torch.manual_seed(0)
    plain = StainClassifier().eval()
    literal = StainClassifier(relu_logits=True).eval()
    literal.load_state_dict(plain.state_dict())
    assert torch.equal(literal(features), plain(features).relu())
    assert (plain(features) < 0).any()


def test_order_of_patches_does_not_matter_in_evaluation():
    network, x = PatchClassifier(width=4).eval(), torch.rand(6, 3, 32, 32)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(network(x[order]), network(x)[order])


def test_one_pass_updates_the_running_statistics_once_with_all_patches():
    """Two passes would update them twice and normalise raw and altered patches apart (specification 8.5)."""
    torch.manual_seed(0)
    network = StainAgLr(width=2)
    raw, altered = torch.rand(2, 4, 3, 32, 32)
    norm = network.patch_classifier.features.stages[1]
    first = network.patch_classifier.features.stages[0]
    network(raw, altered * 0.2)
    assert int(norm.num_batches_tracked) == 1
    expected = first(torch.cat([raw, altered * 0.2])).mean((0, 2, 3))
    torch.testing.assert_close(norm.running_mean, 0.1 * expected)


def test_generator_sees_altered_patches_only():
    network = StainAgLr(width=2).eval()
    raw, altered = torch.rand(2, 4, 3, 32, 32)
    logits_raw, logits_altered, regenerated = network(raw, altered)
    torch.testing.assert_close(regenerated, network.generator(network.patch_classifier.features(altered)))
    torch.testing.assert_close(logits_raw, network.patch_classifier(raw))
    torch.testing.assert_close(logits_altered, network.patch_classifier(altered))


def test_only_what_is_given_is_computed():
    network = StainAgLr(width=2, regenerate=False)
    raw = torch.rand(4, 3, 32, 32)
    logits_raw, *rest = network(raw, None)
    assert logits_raw.shape == (4, 2)
    assert rest == [None, None]
    nothing, logits_altered, regenerated = network(None, raw)
    assert nothing is None
    assert regenerated is None
    assert logits_altered.shape == (4, 2)


def test_equal_views_are_consistent_in_evaluation_only():
    """In training, the two halves pass through dropout masks of their own (specification 8.7)."""
    torch.manual_seed(0)
    network = StainAgLr(width=4)
    raw = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        assert float(consistency_loss(*network(raw, raw)[:2])) > 0
        assert float(consistency_loss(*network.eval()(raw, raw)[:2])) == pytest.approx(0, abs=1e-7)
