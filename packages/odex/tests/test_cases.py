"""From files to what the network sees and back: a network that knows the answer must give the mask back, voxel by voxel."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from dart_core.data.datalist import Row
from dart_core.errors import InputError
from dart_core.nets.nnunet import GenericUNet
from odex import settings as of
from odex.cases import Case, coarse_axis, read_case, resample, resample_map
from odex.patch_dice import patch_dice
from odex.plan import Plan
from odex.prediction import predict
from odex.store import StageRecord, Stored, write_pool
from odex.training import training_batches

TWO = ((2, 2, 2), (2, 2, 2))


def plan(spacing=(1.0, 1.0, 1.0), patch=(8, 12, 8)) -> Plan:
    """Two halvings and two feature maps."""
    return Plan(spacing, patch, 2, TWO, ((3, 3, 3),) * 3, (2, 2, 2), False, ("foreground",), True, "RAS", "batch")


def oracle(of_plan: Plan) -> GenericUNet:
    """Foreground where the normalised image is above 0: every voxel's value goes through the uppermost skip connection alone."""
    network = of_plan.network()
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    blocks = [
        *network.conv_blocks_context[0].blocks,
        *(part.blocks[0] for part in network.conv_blocks_localization[-1]),
    ]
    for number, block in enumerate(blocks):
        block.instnorm.weight.data[:] = 1
        for channel, sign in enumerate((1.0, -1.0)):
            # Value and negative value, so that the activations' slopes cancel in their difference. The decoder's first convolution
            # gets what comes from below in front of what the encoder hands over.
            source = {0: 0, 2: of_plan.features[0] + channel}.get(number, channel)
            block.conv.weight.data[channel, source, 1, 1, 1] = 1.0 if number else sign
    network.seg_outputs[-1].weight.data[1, :, 0, 0, 0] = torch.tensor([1.0, -1.0])
    return network.eval()


def save(path: Path, array: np.ndarray, affine: np.ndarray, kind: type) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array.astype(kind), affine), path)
    return path


def segmented(tmp_path: Path, image: np.ndarray, affine: np.ndarray, of_plan: Plan, mirror: bool = False) -> np.ndarray:
    """What `predict` makes of an image (x, y, z) with a pool of the oracle alone."""
    save(tmp_path / "stage" / "image.nii.gz", image, affine, np.float32)
    (tmp_path / "stage" / "datalist.csv").write_text("image,mask,subject,split\nimage.nii.gz,,a,test\n")
    pool = Stored("sequential", of_plan, of.Pool(), of.Baselines(), [tmp_path])
    pool.stages.append(StageRecord("one", "expand", 0, None))
    write_pool(tmp_path / "pool", pool, oracle(of_plan), 0)
    output = of.OutputSettings(tmp_path / "out")
    predict(of.Predict(output, tmp_path / "pool", (tmp_path / "stage",), device="cpu", mirror=mirror))
    return np.asarray(nib.load(tmp_path / "out" / "image_mask.nii.gz").dataobj)


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("size", [(15, 12, 9), (21, 30, 13), (7, 9, 6)], ids=["patch", "larger", "smaller"])
def test_the_mask_comes_back(tmp_path, size, mirror):
    """Windows, padding to the patch, the crop to the non-zero box, stored axes in another order and direction."""
    rng = np.random.default_rng(0)
    truth = ndimage.gaussian_filter(rng.normal(size=size), 1) > 0.05
    image = np.zeros(tuple(side + 7 for side in size))
    inside = tuple(slice(first, first + side) for first, side in zip((1, 4, 6), size, strict=True))
    image[inside] = 100 + 50 * truth
    whole = np.zeros(image.shape)
    whole[inside] = truth
    # from right to left, x and z exchanged
    affine = np.array([[0, 0, -1, 3], [0, 1, 0, 5], [1.0, 0, 0, -7], [0, 0, 0, 1]])
    found = segmented(tmp_path, image, affine, plan(), mirror)
    np.testing.assert_array_equal(found, whole)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("step", [0.5, 2.0, 4.0], ids=["finer", "coarser", "coarse slices"])
def test_resampling_does_not_shift(tmp_path, axis, step):
    """One half of the image is bright: the face between the halves lies in the middle on every grid, and there it must return."""
    size = [16, 16, 16]
    size[axis] = round(16 / step)
    truth = np.zeros(size)
    half = [slice(None)] * 3
    half[axis] = slice(size[axis] // 2, None)
    truth[tuple(half)] = 1
    steps = np.ones(3)
    steps[axis] = step
    found = segmented(tmp_path, 100 + 50 * truth, np.diag([*steps, 1]), plan())
    np.testing.assert_array_equal(found, truth)


@pytest.mark.parametrize("forced", [False, True])
def test_patches_and_their_labels_lie_on_each_other(forced):
    truth = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(10, 20, 7)), 1.5) > 0.02
    labels = truth.astype(np.int8)
    case = Case(Row(Path("a")), np.where(truth, 3.0, -3.0)[None].astype(np.float32), labels, {1: np.argwhere(truth)})
    batches = training_batches([case], plan(patch=(8, 12, 8)), 0, (8, 12, 8) if forced else (12, 16, 10))
    for step in range(4):
        batch = batches.batch(step)
        image, found = batch["image"][:, 0], batch["labels"]
        inside = image != 0
        assert inside.any()
        torch.testing.assert_close(found[inside] > 0, image[inside] > 0)
        assert (found[~inside] == -1).all()
        assert batch["case"].tolist() == [0, 0]


def test_a_coarse_axis():
    assert coarse_axis((1, 1, 1), (1, 1, 1)) is None
    assert coarse_axis((4, 1, 1), (1, 1, 1)) == 0
    assert coarse_axis((1, 1, 1), (1, 3.5, 1)) == 1
    assert coarse_axis((3, 1, 1), (1, 1, 1)) is None  # more than three times
    assert coarse_axis((4, 4, 1), (1, 1, 1)) is None  # two such axes
    assert coarse_axis((4, 4, 1), (1, 1, 9)) is None  # the first voxel size decides


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_coarse_slices_are_resampled_one_by_one(axis):
    """Cubic within a slice, the nearest slice along the coarse axis: against SciPy."""
    rng = np.random.default_rng(0)
    old = [6, 7, 8]
    new = [9, 11, 12]
    old[axis], new[axis] = 4, 10
    image = rng.normal(size=(1, *old))
    found = resample(image, new, axis, 3)
    assert found.shape == (1, *new)
    nearest = np.clip(np.floor((np.arange(10) + 0.5) * 0.4), 0, 3).astype(int)
    for j in range(10):
        plane = np.take(image[0], nearest[j], axis)
        factors = [n / o for n, o in zip(np.delete(new, axis), plane.shape, strict=True)]
        expected = ndimage.zoom(plane, factors, order=3, mode="nearest", grid_mode=True)
        expected = np.clip(expected, plane.min(), plane.max())
        np.testing.assert_allclose(np.take(found[0], j, axis), expected, rtol=1e-4, atol=1e-4)
    labels = rng.integers(0, 3, old).astype(np.int8)
    mapped = resample_map(labels, new, axis)
    for j in range(10):
        first = np.flatnonzero(nearest == nearest[j])[0]
        np.testing.assert_array_equal(np.take(mapped, j, axis), np.take(mapped, first, axis))
    same = resample_map(labels, [n if i == axis else o for i, (n, o) in enumerate(zip(new, old, strict=True))], axis)
    np.testing.assert_array_equal(same, np.take(labels, nearest, axis))


def test_stray_negative_labels_are_background(tmp_path):
    """Specification 5: volume 243 of the Decathlon has labels of -2."""
    labels = np.zeros((5, 6, 7))
    labels[1:3, 2, 3], labels[3, 2, 3], labels[0, 0, 0] = 1, 2, -2
    image = save(tmp_path / "image.nii.gz", np.ones(labels.shape), np.eye(4), np.float32)
    mask = save(tmp_path / "mask.nii.gz", labels, np.eye(4), np.int16)
    names = {0: "background", 1: "Anterior", 2: "Posterior"}
    raw = read_case(Row(image, mask), of.Data(merge_labels=False), names)
    np.testing.assert_array_equal(raw.labels, np.maximum(labels, 0).T)
    np.testing.assert_array_equal(read_case(Row(image, mask), of.Data()).labels, (labels > 0).T)
    save(mask, labels / 2 + 0.5, np.eye(4), np.float32)
    with pytest.raises(InputError, match="hold no label"):
        read_case(Row(image, mask), of.Data())


def test_dice_of_patches():
    """With an oracle 1, with its contrary the share of voxels; a patch of the whole case gives the Dice of the whole case."""
    of_plan = plan()
    truth = np.zeros((8, 12, 8), dtype=bool)
    truth[:, :3] = True
    signs = (1, -1)  # of the second case the image is reversed: the oracle finds its background
    cases = [
        Case(Row(Path(str(i))), np.where(truth, sign * 3.0, sign * -3.0)[None].astype(np.float32), truth.astype(np.int8),
             {1: np.argwhere(truth)})
        for i, sign in enumerate(signs)
    ]  # fmt: skip
    networks = [oracle(of_plan)] * 2
    assert patch_dice(networks, [0, 1], cases, of_plan, batches=12) == [1.0, 0.0]
    empty = Case(Row(Path("e")), np.full((1, 8, 12, 8), -1, np.float32), np.zeros((8, 12, 8), np.int8), {})
    assert patch_dice(networks, [0], [empty], of_plan, batches=1) == [1.0]
    assert patch_dice(networks, [0, 0], cases, of_plan, batches=1).count(None) == 1
    half = [Case(c.row, np.where(np.arange(12)[None, None, :, None] < 6, 3, -3).astype(np.float32) * np.ones((1, 8, 12, 8), np.float32),
                 c.labels, c.classes) for c in cases[:1]]  # fmt: skip
    assert patch_dice(networks, [0], half, of_plan, batches=2)[0] == pytest.approx(2 * 3 / (3 + 6))


def test_damaged_plans_are_refused():
    content = json.loads(json.dumps(plan().content()))
    assert Plan.read(content) == plan()
    for change in ({"patch_size": [8, 8]}, {"batch_size": 0}, {"orientation": "LPS"}, {"features": [2]}):
        with pytest.raises(ValueError, match="damaged"):
            Plan.read({**content, **change})
