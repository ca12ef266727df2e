"""Pooling, Gram matrices, and features of whole images against closed forms of the normalisation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from odex import build_unet, gram_distance, gram_matrix, pool_features
from odex.features import FeatureExtractor

SMALL = ((4, 8, 16), ((2, 2, 2), (2, 2, 2)))


def network(norm="batch"):
    torch.manual_seed(0)
    return build_unet(*SMALL, norm=norm)


def test_channel_means_and_grids():
    x = torch.randn(2, 3, 4, 6, 8)
    torch.testing.assert_close(pool_features(x), x.mean((2, 3, 4)))
    assert pool_features(x, 2).shape == (2, 24)
    torch.testing.assert_close(pool_features(x, 2)[:, 0], x[:, 0, :2, :3, :4].mean((1, 2, 3)))
    assert isinstance(pool_features(x.numpy()), np.ndarray)


def test_the_authors_pooling_of_the_decathlon_patch():
    """Specification 2.1: 32 x 40 x 56 x 40 -> 32 x 5 x 7 x 5."""
    assert pool_features(torch.zeros(1, 32, 40, 56, 40), "authors").shape == (1, 5600)
    x = torch.randn(1, 2, 4, 4, 4)
    torch.testing.assert_close(pool_features(x, "authors", 16)[0, 0], x[0, 0, :2, :2, :2].mean())
    assert pool_features(torch.zeros(1, 9, 2, 2, 2), "authors", 1).shape == (1, 9)  # the last that can be pooled
    assert pool_features(torch.zeros(1, 1, 8, 8), "authors", 10).shape == (1, 4)  # 5 x 5, stride 3
    with pytest.raises(ValueError, match="activations have shape"):
        pool_features(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="pooling is 0"):
        pool_features(torch.zeros(1, 1, 2, 2), 0)


def test_gram_by_hand():
    f = torch.tensor([[[1.0, 2.0], [3.0, 0.0]]])  # two channels at two positions
    torch.testing.assert_close(gram_matrix(f), torch.tensor([[[2.5, 1.5], [1.5, 4.5]]]))
    assert gram_distance(f, torch.zeros(2, 2)).item() == pytest.approx((2.5**2 + 2 * 1.5**2 + 4.5**2) / 4)
    with pytest.raises(ValueError, match="do not compare"):
        gram_distance(f, torch.zeros(3, 3))


def test_batch_norm_features_in_closed_form():
    """gamma (mean(x) - rm) / sqrt(rv + 1e-5) + beta of the first convolution's output."""
    own = network().eval()
    norm = own.conv_blocks_context[0].blocks[0].instnorm
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
        tensor.uniform_(0.5, 2)
    image = torch.randn(1, 8, 8, 8)
    mean = own.conv_blocks_context[0].blocks[0].conv(image[None]).mean((0, 2, 3, 4))
    expected = norm.weight * (mean - norm.running_mean) / (norm.running_var + 1e-5).sqrt() + norm.bias
    torch.testing.assert_close(FeatureExtractor(own, (8, 8, 8))(image), expected.detach(), rtol=1e-5, atol=1e-5)


def test_channel_means_behind_instance_norm_are_its_shift():
    own = network("instance")
    layer = own.conv_blocks_context[0].blocks[0].instnorm
    layer.bias.data.uniform_(-1, 1)
    out = layer(torch.randn(2, 4, 8, 8, 8, dtype=torch.float64).float())
    torch.testing.assert_close(pool_features(out), layer.bias.detach().expand(2, 4), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="the same for every image"):
        FeatureExtractor(own, (8, 8, 8))
    z = FeatureExtractor(own, (8, 8, 8), "statistics")
    image = torch.randn(1, 8, 8, 8)
    x = own.conv_blocks_context[0].blocks[0].conv(image[None])
    std, mean = torch.std_mean(x, (0, 2, 3, 4), correction=0)
    torch.testing.assert_close(z(image), torch.cat([mean, std]).detach(), rtol=1e-4, atol=1e-5)


def test_an_image_is_the_mean_of_its_patches():
    own = network().eval()
    image = torch.randn(1, 8, 8, 12)
    z = FeatureExtractor(own, (8, 8, 8))
    torch.testing.assert_close(z(image), (z(image[..., :8]) + z(image[..., 4:])) / 2, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(FeatureExtractor(own, (8, 8, 8), batch_size=1)(image), z(image))
    # padded to the patch
    padded = torch.nn.functional.pad(image[..., :6], (1, 1))
    torch.testing.assert_close(z(image[..., :6]), z(padded))


def test_layers_gram_and_mode():
    own = network().train()
    image = torch.randn(1, 8, 8, 8)
    before = own.conv_blocks_context[0].blocks[0].instnorm.running_mean.clone()
    assert FeatureExtractor(own, (8, 8, 8), layers="first_stage")(image).shape == (8,)
    assert FeatureExtractor(own, (8, 8, 8), gram=True)(image).shape == (16,)
    assert FeatureExtractor(own, (8, 8, 8), "authors")(image).shape == (4 * 8**3,)
    assert own.training  # as it was, and its statistics too
    torch.testing.assert_close(own.conv_blocks_context[0].blocks[0].instnorm.running_mean, before)
    assert not own.conv_blocks_context[0].blocks[0].instnorm._forward_hooks
