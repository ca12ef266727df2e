"""Eight views of a picture and their mean score."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from skintone_debias.views import score_images, tta_variants

ORDER = [
    [[1, 2], [3, 4]], [[3, 4], [1, 2]], [[2, 1], [4, 3]], [[4, 3], [2, 1]],
    [[1, 3], [2, 4]], [[2, 4], [1, 3]], [[3, 1], [4, 2]], [[4, 2], [3, 1]],
]  # fmt: skip


def test_views_come_in_the_paper_s_order():
    assert tta_variants(torch.tensor([[1, 2], [3, 4]])).tolist() == ORDER
    found = tta_variants(np.array([[1, 2], [3, 4]]))
    assert isinstance(found, np.ndarray)
    assert found.tolist() == ORDER


def test_views_of_a_batch_stand_in_front():
    x = torch.randn(3, 2, 5, 5, dtype=torch.float64)
    views = tta_variants(x)
    assert views.shape == (8, 3, 2, 5, 5)
    assert views.dtype == x.dtype
    for i in range(3):
        assert torch.equal(views[:, i, 1], tta_variants(x[i, 1]))


@pytest.mark.parametrize("shape", [(2, 3), (4,)])
def test_pictures_that_are_not_square_are_refused(shape):
    with pytest.raises(ValueError, match="not square"):
        tta_variants(torch.zeros(shape))


class Corner(nn.Module):
    """A score that depends on where things are."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3 * x[:, 0, 0, 0] - x[:, 1, 0, -1]


def test_score_is_the_mean_of_sigmoids_not_the_sigmoid_of_the_mean():
    x = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    scores, logits = score_images(Corner(), x, batch_size=5)
    each = torch.stack([Corner()(view) for view in tta_variants(x)])
    assert torch.allclose(scores, torch.sigmoid(each).mean(0))
    assert torch.allclose(logits, each.mean(0))
    assert not torch.allclose(scores, torch.sigmoid(each.mean(0)), atol=1e-3)


def test_a_symmetric_picture_has_the_score_of_one_view():
    y = torch.arange(5.0) - 2
    x = (y[:, None] ** 2 + y[None] ** 2).expand(1, 3, 5, 5)
    assert torch.allclose(score_images(Corner(), x)[0], score_images(Corner(), x, views=1)[0])
