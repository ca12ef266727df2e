"""Images as rows of patches, and patches in another order (specification 2.5).

Patches are numbered row by row from the top left, from 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dart_core.errors import InputError


def patchify(images: Tensor, patch: int) -> Tensor:
    """Cut images into patches.

    Args:
        images: (B, C, H, W).
        patch: side k of a patch in pixels; divides both sides of the image.

    Returns:
        (B, n, C, k, k) with n = H/k W/k.

    Raises:
        ValueError: another number of axes, or k does not divide a side.
    """
    if images.dim() != 4:
        raise InputError(f"the images have shape {tuple(images.shape)}", remedy="give (B, C, H, W)")
    batch, channels, height, width = images.shape
    check_sides((height, width), patch)
    cells = images.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels, patch, patch)


def unpatchify(patches: Tensor, grid: int | tuple[int, int]) -> Tensor:
    """Put patches together again: the inverse of `patchify`.

    Args:
        patches: (B, n, C, k, k).
        grid: rows and columns of patches, or one number for a square.

    Returns:
        (B, C, rows k, columns k).

    Raises:
        ValueError: another number of axes, patches that are not square, or n is not rows times columns.
    """
    rows, columns = (grid, grid) if isinstance(grid, int) else grid
    if patches.dim() != 5 or patches.shape[-1] != patches.shape[-2]:
        raise InputError(f"the patches have shape {tuple(patches.shape)}", remedy="give (B, n, C, k, k)")
    batch, count, channels, patch, _ = patches.shape
    if count != rows * columns:
        raise InputError(f"{count} patches do not fill {rows} rows of {columns}", remedy="give the grid they came from")
    cells = patches.reshape(batch, rows, columns, channels, patch, patch)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, rows * patch, columns * patch)


def permute_patches(images: Tensor, patch: int, permutation: Tensor) -> tuple[Tensor, Tensor]:
    """Show at each position another patch of the same image: position j shows the original patch `permutation[j]`.

    Args:
        images: (B, C, H, W); stays as it is.
        patch: side of a patch in pixels.
        permutation: (B, n) int64, each row a permutation of 0 to n-1; stays as it is.

    Returns:
        Images (B, C, H, W), and labels (B, n) int64: where the patch at each position comes from, which is `permutation`
        and not its inverse.

    Raises:
        ValueError: `patch` does not divide a side, or `permutation` is none of these patches.
    """
    patches = patchify(images, patch)
    batch, count = patches.shape[:2]
    if permutation.shape != (batch, count) or permutation.dtype != torch.int64:
        raise InputError(
            f"the permutation is {permutation.dtype} of shape {tuple(permutation.shape)}",
            remedy=f"give int64 of shape {(batch, count)}",
        )
    permutation = permutation.to(images.device)
    numbers = torch.arange(count, device=images.device)
    if not bool((permutation.sort(1).values == numbers).all()):
        raise InputError("a row is no permutation", remedy=f"it must hold each number from 0 to {count - 1} once")
    return show_patches(patches, permutation, images.shape[-2] // patch), permutation.clone()


def show_patches(patches: Tensor, permutation: Tensor, rows: int) -> Tensor:
    """The image (B, C, H, W) whose position j shows `patches[permutation[j]]`; nothing is checked.

    Args:
        patches: (B, n, C, k, k).
        permutation: (B, n) int64.
        rows: of patches.
    """
    # Out of place: what the caller holds must not change whatever memory `patches` shares with it.
    shown = patches.gather(1, permutation[:, :, None, None, None].expand_as(patches))
    return unpatchify(shown, (rows, patches.shape[1] // rows))


def check_sides(sides: tuple[int, int], patch: int) -> None:
    """Refuse an image whose sides are no multiples of the patch.

    Raises:
        ValueError: names a side that would fit.
    """
    if patch < 1:
        raise InputError(f"patches of {patch} pixels", remedy="give at least 1")
    for side in sides:
        if side < patch or side % patch:
            nearest = max(patch, round(side / patch) * patch)
            raise InputError(
                f"a side of {side} pixels cannot be divided into patches of {patch}",
                remedy=f"give a multiple of {patch} such as {nearest}",
            )
