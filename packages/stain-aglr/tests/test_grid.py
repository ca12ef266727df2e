from __future__ import annotations

import colorsys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from matplotlib.path import Path as Polygon

from dart_core.data.catalog.camelyon17 import Outlines
from stain_aglr.grid import (
    CELLS,
    NEITHER,
    NORMAL,
    TUMOUR,
    Grid,
    assign_splits,
    choose_patches,
    cut_points,
    label_patches,
    otsu_threshold,
    outline_mask,
    saturation,
    tissue_mask,
)

RNG = np.random.default_rng(0)


def square(left, top, right, bottom):
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)], dtype=float)


class TestTissue:
    @given(arrays.arrays(np.uint8, (4, 3)))
    def test_saturation_is_that_of_hsv(self, pixels):
        expected = [255 * colorsys.rgb_to_hsv(*(pixel / 255.0))[1] for pixel in pixels]
        assert np.abs(saturation(pixels) - np.array(expected)).max() <= 0.5 + 1e-9

    @given(arrays.arrays(np.uint8, 50, elements=st.integers(0, 255)))
    def test_otsu_makes_the_variance_within_the_classes_least(self, values):
        def within(threshold):
            parts = [values[values <= threshold].astype(float), values[values > threshold].astype(float)]
            return sum(part.var() * len(part) for part in parts if len(part))

        threshold = otsu_threshold(values)
        if np.ptp(values) == 0:
            assert threshold == values[0]
        else:
            assert within(threshold) <= min(within(t) for t in range(256)) + 1e-6

    def test_otsu_as_scikit_image(self):
        filters = pytest.importorskip("skimage.filters")
        values = np.concatenate([RNG.normal(20, 8, 5000), RNG.normal(120, 30, 3000)]).clip(0, 255).astype(np.uint8)
        expected = filters.threshold_otsu(values)
        assert ((values > otsu_threshold(values)) == (values > expected)).all()

    def test_glass_is_no_tissue(self):
        # Otsu alone would call half of it tissue.
        glass = RNG.integers(0, 12, (60, 60), dtype=np.uint8)
        assert 0 < (glass > otsu_threshold(glass)).mean() < 1
        assert not tissue_mask(glass).any()
        assert not tissue_mask(np.zeros((5, 5), np.uint8)).any()
        glass[:20] = 90
        assert (tissue_mask(glass) == (glass == 90)).all()


class TestOutlines:
    def test_squares_on_cells(self):
        outlines = Outlines((square(20, 30, 80, 60),), (square(40, 40, 50, 50),))
        mask = outline_mask(outlines, (10, 12), 10.0)
        expected = np.zeros((10, 12), bool)
        expected[3:6, 2:8] = True
        expected[4, 4] = False
        assert (mask == expected).all()

    @given(st.integers(0, 10_000), st.integers(3, 30))
    def test_middles_inside(self, seed, corners):
        rng = np.random.default_rng(seed)
        angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
        polygon = rng.uniform(20, 220, 2) + rng.uniform(5, 120, (corners, 1)) * np.stack(
            [np.cos(angles), np.sin(angles)], 1
        )
        y, x = np.mgrid[:20, :24] * 10.0 + 5
        expected = Polygon(polygon).contains_points(np.stack([x.ravel(), y.ravel()], axis=1)).reshape(20, 24)
        mask = outline_mask(Outlines((polygon,), ()), (20, 24), 10.0)
        assert (mask == expected).all() or not expected.any()

    def test_crossing_itself(self):
        bow = np.array([(0, 0), (100, 100), (100, 0), (0, 100)], float)
        mask = outline_mask(Outlines((bow,), ()), (10, 10), 10.0)
        assert mask[5, 0]
        assert mask[5, 9]
        assert not mask[0, 5]

    @given(st.floats(60, 400), st.floats(60, 400), st.integers(5, 40), st.floats(3, 12))
    def test_area_of_polygons(self, x, y, corners, cell):
        angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
        polygon = np.stack([x + 50 * np.cos(angles), y + 50 * np.sin(angles)], axis=1)
        area = 0.5 * corners * 50**2 * np.sin(2 * np.pi / corners)
        perimeter = corners * 2 * 50 * np.sin(np.pi / corners)
        found = outline_mask(Outlines((polygon,), ()), (200, 200), cell).sum() * cell**2
        assert abs(found - area) <= perimeter * cell

    def test_holes_are_cleared_whatever_comes_first(self):
        outlines = Outlines((square(0, 0, 100, 100), square(30, 30, 70, 70)), (square(40, 40, 60, 60),))
        assert not outline_mask(outlines, (10, 10), 10.0)[4:6, 4:6].any()

    def test_smaller_than_a_cell(self):
        mask = outline_mask(Outlines((square(43, 52, 44, 53),), ()), (10, 10), 10.0)
        assert mask.sum() == 1
        assert mask[5, 4]

    def test_beyond_the_slide(self):
        assert outline_mask(Outlines((square(-500, -500, 1000, 1000),), ()), (4, 5), 10.0).all()


class TestGrid:
    def test_middles_lie_on_the_slide(self):
        assert Grid.over((1000, 512), 256) == Grid(2, 4, 256)
        assert Grid.over((1024, 640), 256) == Grid(3, 4, 256)
        assert Grid.over((1151, 639), 256) == Grid(2, 4, 256)
        assert Grid.over((10, 10), 256) == Grid(1, 1, 256)
        assert Grid(2, 4, 256).cells == (24, 48)

    def test_corners(self):
        assert Grid(2, 4, 256.25).corners(np.array([0, 3, 5])).tolist() == [[0, 0], [769, 0], [256, 256]]


class TestLabels:
    @pytest.mark.parametrize(
        ("rows", "columns", "tissue", "label"),
        [
            (slice(4, 5), slice(4, 5), 0.0, TUMOUR),  # corners of the central third
            (slice(7, 8), slice(7, 8), 0.0, TUMOUR),
            (slice(3, 4), slice(4, 8), 1.0, NEITHER),  # beside it
            (slice(8, 9), slice(7, 8), 1.0, NEITHER),
            (slice(0, 12), slice(0, 12), 1.0, TUMOUR),
            (slice(0, 0), slice(0, 0), 1.0, NORMAL),
            (slice(0, 0), slice(0, 0), 0.2, NORMAL),
            (slice(0, 0), slice(0, 0), 0.19, NEITHER),
        ],
    )
    def test_rule(self, rows, columns, tissue, label):
        tumour = np.zeros((CELLS, CELLS), bool)
        tumour[rows, columns] = True
        cells = np.zeros(CELLS * CELLS, bool)
        cells[: int(np.ceil(tissue * CELLS * CELLS)) if tissue != 0.19 else 28] = True
        assert label_patches(tumour, cells.reshape(CELLS, CELLS), 0.2).tolist() == [[label]]

    @given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 1000), st.floats(0.05, 0.9))
    def test_patch_by_patch(self, rows, columns, seed, share):
        rng = np.random.default_rng(seed)
        tumour = rng.random((rows * CELLS, columns * CELLS)) < 0.01
        tissue = rng.random(tumour.shape) < rng.random((rows, columns)).repeat(CELLS, 0).repeat(CELLS, 1)
        labels = label_patches(tumour, tissue, share)
        for i in range(rows):
            for j in range(columns):
                part = (slice(i * CELLS, (i + 1) * CELLS), slice(j * CELLS, (j + 1) * CELLS))
                expected = NORMAL if tissue[part].mean() >= share and not tumour[part].any() else NEITHER
                assert labels[i, j] == (TUMOUR if tumour[part][4:8, 4:8].any() else expected)


class TestChoice:
    labels = np.array([1, 0, 0, 0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0], np.int8)
    sites = np.array([0] * 7 + [1] * 4 + [2] * 3)

    def counts(self, chosen):
        return [
            tuple(int((chosen & (self.sites == site) & (self.labels == label)).sum()) for label in (1, 0))
            for site in range(3)
        ]

    def test_as_many_of_both_in_each_site(self):
        chosen = choose_patches(self.labels, self.sites, True, 0, 0)
        assert self.counts(chosen) == [(2, 2), (2, 2), (0, 0)]

    def test_all(self):
        assert choose_patches(self.labels, self.sites, False, 0, 0).all()

    def test_limit(self):
        assert self.counts(choose_patches(self.labels, self.sites, True, 1, 0)) == [(1, 1), (1, 1), (0, 0)]
        assert self.counts(choose_patches(self.labels, self.sites, False, 3, 0)) == [(2, 3), (2, 2), (0, 3)]

    def test_a_draw_of_its_seed(self):
        draws = [choose_patches(self.labels, self.sites, True, 0, seed) for seed in (*range(12), 0)]
        assert (draws[0] == draws[-1]).all()
        assert len({draw.tobytes() for draw in draws}) > 3
        # Every tumour-free patch is drawn by some seed.
        many = np.any([choose_patches(self.labels, self.sites, True, 0, seed) for seed in range(60)], axis=0)
        assert many[self.sites < 2].all()


class TestSplits:
    def test_by_subject_in_one_laboratory(self):
        subjects = [f"s{i % 10}" for i in range(40)] + ["t1", "t2"]
        sites = ["RUMC"] * 40 + ["CWZ", "CWZ"]
        splits = assign_splits(subjects, sites, "RUMC", 0)
        assert splits[40:] == ["test", "test"]
        by_subject = dict(zip(subjects[:40], splits, strict=False))
        assert sorted(by_subject.values()) == ["train"] * 8 + ["val"] * 2
        assert all(by_subject[subject] == split for subject, split in zip(subjects[:40], splits, strict=False))
        assert assign_splits(subjects, sites, "RUMC", 1) != splits

    def test_few_subjects(self):
        assert assign_splits(["a", "a"], ["x", "x"], "x", 0) == ["train", "train"]
        assert sorted(assign_splits(["a", "b"], ["x", "x"], "x", 0)) == ["train", "val"]


class TestPoints:
    image = RNG.integers(0, 256, (90, 120, 3), dtype=np.uint8)

    def test_inside(self):
        (patch,) = cut_points(self.image, np.array([[50, 40]]), 32)
        assert (patch == self.image[24:56, 34:66]).all()

    @given(st.integers(0, 119), st.integers(0, 89), st.sampled_from([16, 31, 64, 128]))
    def test_mirrored_at_the_border(self, x, y, size):
        def mirrored(places, length):
            period = 2 * (length - 1)
            places = np.abs(places) % period
            return np.where(places >= length, period - places, places)

        (patch,) = cut_points(self.image, np.array([[x, y]]), size)
        rows = mirrored(np.arange(size) + y - size // 2, 90)
        columns = mirrored(np.arange(size) + x - size // 2, 120)
        assert (patch == self.image[np.ix_(rows, columns)]).all()

    def test_many_and_none(self):
        points = np.stack([RNG.integers(0, 120, 30), RNG.integers(0, 90, 30)], axis=1)
        patches = cut_points(self.image, points, 33)
        assert patches.shape == (30, 33, 33, 3)
        assert (patches[:, 16, 16] == self.image[points[:, 1], points[:, 0]]).all()
        assert cut_points(self.image, points[:0], 33).shape == (0, 33, 33, 3)

    @pytest.mark.parametrize("point", [(-1, 5), (120, 5), (5, 90)])
    def test_outside(self, point):
        with pytest.raises(ValueError, match="outside the picture of 120 x 90"):
            cut_points(self.image, np.array([point]), 16)
