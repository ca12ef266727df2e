from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from scipy import ndimage

from dart_core.data.datalist import Datalist
from dart_core.data.images import read_image
from dart_core.data.phantoms import LABORATORIES, histology_field, histology_patch, write_histology
from dart_core.errors import SettingError
from dart_core.metrics import roc_auc


def density(picture: np.ndarray, laboratory: str) -> np.ndarray:
    """Optical density (H, W, 3) against the white of the laboratory."""
    light = np.maximum(picture / 255, 1 / 255)
    return -np.log(light / np.array(LABORATORIES[laboratory].white))


def amounts(picture: np.ndarray, laboratory: str) -> np.ndarray:
    """Haematoxylin and eosin (2, H, W) by least squares with the laboratory's own stain vectors."""
    model = LABORATORIES[laboratory]
    vectors = np.array([model.haematoxylin, model.eosin])
    return np.linalg.lstsq(vectors.T, density(picture, laboratory).reshape(-1, 3).T, rcond=None)[0].reshape(
        2, *picture.shape[:2]
    )


class TestPatch:
    def test_type_shape_and_seed(self):
        patch = histology_patch(3, "RUMC", True, 32)
        assert (patch.shape, patch.dtype) == ((32, 32, 3), np.uint8)
        assert_array_equal(patch, histology_patch(3, "RUMC", True, 32))
        for other in (
            histology_patch(4, "RUMC", True, 32),
            histology_patch(3, "RUMC", False, 32),
            histology_patch(3, "RUMC", True, 32, seed=1),
            histology_patch(3, "RUMC", True, 32, number=1),
            histology_patch(3, "RUMC", True, 32, pixel=0.5),
            histology_patch(3, "CWZ", True, 32),
        ):
            assert not np.array_equal(other, patch)

    def test_one_tissue_in_the_stains_of_every_laboratory(self):
        stains = {name: amounts(histology_patch(5, name, True), name) for name in LABORATORIES}
        for first, second in combinations(LABORATORIES, 2):
            for stain in range(2):
                a, b = (ndimage.gaussian_filter(stains[name][stain], 1.5).ravel() for name in (first, second))
                assert np.corrcoef(a, b)[0, 1] > 0.85

    def test_colours_lie_in_a_plane_of_optical_density(self):
        for name in LABORATORIES:
            picture = ndimage.gaussian_filter(histology_patch(1, name, True, 96).astype(float), (1, 1, 0))
            values = np.linalg.svd(density(picture, name).reshape(-1, 3), compute_uv=False)
            assert values[2] < 0.25 * values[1]

    def test_laboratories_differ_more_than_slides_do(self):
        colours = {
            name: np.array([histology_patch(k, name, bool(k % 2)).mean((0, 1)) for k in range(8)])
            for name in LABORATORIES
        }
        for first, second in combinations(colours.values(), 2):
            between = np.linalg.norm(first.mean(0) - second.mean(0))
            assert between > 10  # grey levels

    def test_tumour_is_coarser(self):
        def coarseness(patch: np.ndarray, name: str) -> float:
            """Variance of haematoxylin at the scale of large nuclei, relative to that at the scale of small ones."""
            blue = amounts(patch, name)[0]
            fine, middle, coarse = (ndimage.gaussian_filter(blue, sigma) for sigma in (1.5, 3, 6))
            return float((middle - coarse)[8:-8, 8:-8].var() / (fine - middle)[8:-8, 8:-8].var())

        for name in LABORATORIES:
            labels = np.arange(24) % 2
            scores = [coarseness(histology_patch(k, name, bool(label)), name) for k, label in enumerate(labels)]
            assert roc_auc(labels[:, None], np.array(scores)[:, None])[0] > 0.9

    def test_mistakes(self):
        with pytest.raises(SettingError, match=r"'AMC'.*RUMC, CWZ"):
            histology_patch(0, "AMC", True)
        with pytest.raises(SettingError, match="at least 16"):
            histology_patch(0, "RUMC", True, 8)
        with pytest.raises(SettingError, match="above 0"):
            histology_patch(0, "RUMC", True, pixel=0)


class TestField:
    def test_mask_and_tissue(self):
        shares = []
        for subject in range(4):
            field, tumour = histology_field(subject, "RST", (160, 192))
            assert (field.shape, field.dtype, tumour.shape, tumour.dtype) == (
                (160, 192, 3),
                np.uint8,
                (160, 192),
                np.bool_,
            )
            shares.append(tumour.mean())
            blue = amounts(field, "RST")[0]
            assert blue[~tumour].std() > blue[tumour].std()  # crowded dark lymphocytes and gaps around it
        assert 0.1 < np.mean(shares) < 0.9

    def test_the_mask_is_that_of_every_laboratory(self):
        masks = [histology_field(2, name, (48, 48))[1] for name in LABORATORIES]
        for mask in masks[1:]:
            assert_array_equal(mask, masks[0])

    def test_a_pixel_has_its_size(self):
        """At half the size of a pixel the picture shows half the length: nuclei are twice as wide."""

        def width(pixel: float) -> float:
            values = amounts(histology_field(1, "RUMC", (256, 256), pixel=pixel)[0], "RUMC")[0]
            power = np.abs(np.fft.rfft(values - values.mean(1, keepdims=True), axis=1)) ** 2
            mean = power.mean(0)
            return float((mean * np.arange(len(mean))).sum() / mean.sum())

        assert 1.5 < width(1.0) / width(0.5) < 2.5


class TestWriting:
    def test_files_labels_and_datalist(self, tmp_path):
        path = write_histology(tmp_path, ("CWZ", "RUMC"), 22, 16, seed=3)
        assert path.read_text().splitlines()[0] == "image,subject,site,split,label"
        datalist = Datalist.read(path, required=("image", "subject", "site", "split", "label"))
        assert len(datalist) == 44
        assert datalist.sites == ("CWZ", "RUMC")
        assert len(datalist.subjects) == 12
        for site in datalist.sites:
            part = datalist.select(site=site)
            assert part.splits == ("train", "val", "test")
            for split in part.splits:
                assert {row.labels["label"] for row in part.select(split=split)} == {"0", "1"}
        for row in datalist:
            _, subject, number = row.image.stem.split("_")
            assert row.subject == f"phantom{subject}"
            patch = histology_patch(int(subject), row.site, row.labels["label"] == "1", 16, 3, int(number))
            assert_array_equal(read_image(row.image), patch)

    def test_a_patch_does_not_depend_on_what_else_is_written(self, tmp_path):
        for name, laboratories in (("a", ("RST",)), ("b", ("RUMC", "RST"))):
            write_histology(tmp_path / name, laboratories, 4, 16)
        for picture in (tmp_path / "a/images").iterdir():
            assert picture.read_bytes() == (tmp_path / "b/images" / picture.name).read_bytes()

    def test_mistakes(self, tmp_path):
        for arguments, pattern in (
            ((("AMC",),), "no laboratory 'AMC'"),
            (((),), "no laboratory or no patch"),
            ((("RST",), 0), "no laboratory or no patch"),
            ((("RST",), 4, 8), "at least 16"),
        ):
            with pytest.raises(SettingError, match=pattern):
                write_histology(tmp_path / "x", *arguments)
        assert not (tmp_path / "x").exists()
