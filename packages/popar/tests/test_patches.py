"""Patches and their order (specification 9.1, 9.4)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from popar import patchify, permute_patches, unpatchify

sizes = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5))


def images(batch, channels, rows, columns, patch, seed=0):
    return torch.rand(
        batch,
        channels,
        rows * patch,
        columns * patch,
        generator=torch.Generator().manual_seed(seed),
        dtype=torch.float64,
    )


@given(sizes)
def test_patchify_and_back(size):
    batch, channels, rows, columns, patch = size
    x = images(*size)
    patches = patchify(x, patch)
    assert patches.shape == (batch, rows * columns, channels, patch, patch)
    assert torch.equal(unpatchify(patches, (rows, columns)), x)
    row, column = rows - 1, columns - 1
    window = x[:, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
    assert torch.equal(patches[:, row * columns + column], window)


@given(sizes, st.randoms())
def test_permutation_is_undone_by_its_inverse(size, random):
    batch, _, rows, columns, patch = size
    x = images(*size)
    permutation = torch.tensor([random.sample(range(rows * columns), rows * columns) for _ in range(batch)])
    before, given_permutation = x.clone(), permutation.clone()
    shown, labels = permute_patches(x, patch, permutation)
    assert torch.equal(x, before)
    assert torch.equal(permutation, given_permutation)
    assert torch.equal(labels, permutation)
    assert labels.data_ptr() != permutation.data_ptr()
    back, _ = permute_patches(shown, patch, labels.argsort(1))
    assert torch.equal(back, x)


def test_label_says_where_the_patch_comes_from():
    """A cycle of three tells the permutation from its inverse."""
    x = torch.arange(4.0).repeat_interleave(2).expand(1, 1, 2, 8)
    shown, labels = permute_patches(x, 2, torch.tensor([[1, 2, 0, 3]]))
    assert shown[0, 0, 0, ::2].tolist() == [1.0, 2.0, 0.0, 3.0]
    assert labels.tolist() == [[1, 2, 0, 3]]
    assert torch.equal(permute_patches(x, 2, torch.arange(4)[None])[0], x)


def test_one_patch_does_not_share_memory():
    """With a 1 x 1 grid a rearrangement copies nothing (specification 8.9)."""
    x = torch.rand(1, 3, 4, 4)
    shown, _ = permute_patches(x, 4, torch.tensor([[0]]))
    shown.zero_()
    assert bool((x > 0).any())


def test_pixel_shuffle_is_the_inverse_of_patchify():
    x = torch.rand(2, 3, 12, 12)
    patches = patchify(x, 4)
    cells = patches.reshape(2, 9, -1).transpose(1, 2).reshape(2, 3 * 16, 3, 3)
    assert torch.equal(F.pixel_shuffle(cells, 4), x)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: patchify(torch.zeros(1, 3, 30, 32), 16), r"a side of 30 .* patches of 16; give a multiple of 16 such as 32"),
        (lambda: patchify(torch.zeros(1, 3, 32, 33), 16), "a side of 33"),
        (lambda: patchify(torch.zeros(3, 32, 32), 16), "have shape"),
        (lambda: patchify(torch.zeros(1, 3, 32, 32), 0), "patches of 0 pixels"),
        (lambda: unpatchify(torch.zeros(1, 6, 3, 2, 2), (2, 2)), "6 patches do not fill 2 rows of 2"),
        (lambda: unpatchify(torch.zeros(1, 4, 3, 2, 3), 2), "have shape"),
        (lambda: permute_patches(torch.zeros(1, 3, 4, 4), 2, torch.zeros(1, 4, dtype=torch.int64)), "no permutation"),
        (lambda: permute_patches(torch.zeros(1, 3, 4, 4), 2, torch.arange(3)[None]), "of shape"),
        (lambda: permute_patches(torch.zeros(1, 3, 4, 4), 2, torch.arange(4.0)[None]), "float32"),
    ],
)  # fmt: skip
def test_refused(call, line):
    with pytest.raises(ValueError, match=line):
        call()
