from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from scipy import ndimage

from dart_core.data.datalist import Datalist, problems
from dart_core.data.phantoms import HIPPOCAMPUS_SOURCES, hippocampus_mr, write_hippocampus, write_hippocampus_stream
from dart_core.data.volumes import read_labels, read_volume
from dart_core.errors import SettingError

SOURCES = tuple(HIPPOCAMPUS_SOURCES)


@given(subject=st.integers(0, 10_000), source=st.sampled_from(SOURCES), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=12)
def test_a_hippocampus_is_a_plausible_hippocampus(subject, source, seed):
    image, labels, spacing = hippocampus_mr(subject, source, (36, 52, 36), seed)
    assert image.shape == labels.shape == (36, 52, 36)
    assert (image.dtype, labels.dtype) == (np.float32, np.uint8)
    assert np.isfinite(image).all()
    assert image.min() >= 0
    assert spacing == (1, 1, 1)
    # 1 to 5 ml, mostly in one piece, longer from back to front than wide or high
    whole = labels > 0
    assert 1000 < whole.sum() < 5000
    pieces, _ = ndimage.label(whole)
    assert np.bincount(pieces.ravel())[1:].max() > 0.97 * whole.sum()
    extent = [np.ptp(where) for where in np.nonzero(whole)]
    assert extent[1] > max(extent[0], extent[2])
    assert set(np.unique(labels)) == {0, 1, 2}
    assert 0.2 < (labels == 1).sum() / whole.sum() < 0.75
    assert np.argwhere(labels == 1)[:, 1].mean() > np.argwhere(labels == 2)[:, 1].mean()


def test_the_same_call_gives_the_same_crop_and_the_anatomy_is_the_subjects_own():
    image, labels, _ = hippocampus_mr(3, "HarP", (20, 28, 20))
    again, labels_again, _ = hippocampus_mr(3, "HarP", (20, 28, 20))
    assert_array_equal(image, again)
    other, same_labels, _ = hippocampus_mr(3, "Decathlon", (20, 28, 20))
    assert_array_equal(labels, labels_again)
    assert_array_equal(labels, same_labels)
    assert (image != other).any()
    assert (hippocampus_mr(4, "HarP", (20, 28, 20))[1] != labels).any()


def test_sources_differ_in_contrast():
    """The hippocampus is darker than white matter in one source, and brighter in another."""
    ratios = {}
    for source in SOURCES:
        image, labels, _ = hippocampus_mr(1, source)
        ratios[source] = np.median(image[labels > 0]) / np.median(image[labels == 0])
    assert ratios["HarP"] < 0.85
    assert ratios["Decathlon"] > 1.3


def test_files_and_datalist(tmp_path):
    path = write_hippocampus(tmp_path / "files", subjects_per_source=3, shape=(12, 16, 12))
    listed = Datalist.read(path, ("image", "mask"))
    assert listed.sites == SOURCES
    assert [row.split for row in listed][:3] == ["train", "val", "test"]
    assert problems(listed, require_mask=True) == []
    row = listed[0]
    image = read_volume(row.image)
    labels = read_labels(row.mask, image)
    made, truth, _ = hippocampus_mr(1000, "HarP", (12, 16, 12))
    assert_array_equal(image.array, np.rint(made))
    assert_array_equal(labels, truth)


def test_a_stream_shifts_from_one_source_to_the_other(tmp_path):
    lists = [Datalist.read(path) for path in write_hippocampus_stream(tmp_path, 3, 4, (12, 16, 12))]
    assert [[row.site for row in listed].count("Decathlon") for listed in lists] == [0, 2, 4]
    assert len({row.subject for listed in lists for row in listed}) == 12
    assert lists[0].splits == ("train", "val", "test")


def test_what_cannot_be_made(tmp_path):
    with pytest.raises(SettingError, match="no scanner 'ADNI'"):
        hippocampus_mr(0, "ADNI")
    with pytest.raises(SettingError, match="three sides"):
        hippocampus_mr(0, "HarP", (4, 16, 16))
    with pytest.raises(SettingError, match="2 cases"):
        write_hippocampus_stream(tmp_path, 3, 2)
