from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage

from dart_core.data.datalist import Datalist
from dart_core.data.images import read_image
from dart_core.data.phantoms import SKIN_SITES, skin_ita, skin_lesion, write_skin_lesions
from dart_core.errors import SettingError
from dart_core.metrics import roc_auc

# skintone-debias, A4: eight spots of 20 x 20 pixels along the border of 256 x 256 pixels.
SPOTS = (
    (slice(230, 250), slice(115, 135)),
    (slice(5, 25), slice(115, 135)),
    (slice(115, 135), slice(5, 25)),
    (slice(115, 135), slice(230, 250)),
    (slice(216, 236), slice(216, 236)),
    (slice(216, 236), slice(20, 40)),
    (slice(20, 40), slice(20, 40)),
    (slice(20, 40), slice(216, 236)),
)
BOUNDS = (55, 41, 28, 19, 10)


def lab(picture: np.ndarray) -> np.ndarray:
    """sRGB (..., 3) of 0 to 255 to CIELAB of D65, from the definitions of IEC 61966-2-1 and CIE 15."""
    value = picture / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    xyz = (
        linear
        @ np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]).T
        / np.array([0.95047, 1.0, 1.08883])
    )
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def border_ita(picture: np.ndarray) -> float:
    means = [lab(picture)[spot].reshape(-1, 3).mean(0) for spot in SPOTS]
    return max(float(np.degrees(np.arctan((lightness - 50) / yellow))) for lightness, _, yellow in means)


class TestPicture:
    def test_oracle(self):
        # skintone-debias, section 9.
        lightness, _, yellow = lab(np.array([210, 170, 140]))
        assert_allclose((lightness, yellow), (72.460, 21.005), atol=2e-3)

    def test_type_shape_and_seed(self):
        picture = skin_lesion(3, 2, True, 48)
        assert (picture.shape, picture.dtype) == ((48, 48, 3), np.uint8)
        assert_array_equal(picture, skin_lesion(3, 2, True, 48))
        for other in (
            skin_lesion(4, 2, True, 48),
            skin_lesion(3, 5, True, 48),
            skin_lesion(3, 2, False, 48),
            skin_lesion(3, 2, True, 48, seed=1),
            skin_lesion(3, 2, True, 48, site="B"),
        ):
            assert not np.array_equal(other, picture)

    @pytest.mark.parametrize("site", sorted(SKIN_SITES))
    @pytest.mark.parametrize("fitzpatrick", range(1, 7))
    def test_the_lightest_spot_of_the_border_has_the_true_tone(self, site, fitzpatrick):
        for subject in range(3):
            truth = skin_ita(subject, fitzpatrick)
            assert 6 - sum(truth > bound for bound in BOUNDS) == fitzpatrick
            measured = border_ita(skin_lesion(subject, fitzpatrick, subject % 2 == 0, site=site))
            # Hairs are not removed here; they darken a spot by up to about three degrees.
            assert -3 < measured - truth < 0.5
            assert 6 - sum(measured > bound for bound in BOUNDS) == fitzpatrick

    def test_the_tone_does_not_depend_on_the_lesion(self):
        tones = [border_ita(skin_lesion(7, 4, malignant)) for malignant in (False, True)]
        assert_allclose(tones[0], tones[1], atol=1)

    def test_malignant_lesions_have_more_colours(self):
        """Hue and lightness vary more within the lesion, on every skin type and at both sites."""

        def variety(picture: np.ndarray) -> float:
            size = len(picture)
            values = ndimage.gaussian_filter(lab(picture)[..., 1:], (size / 48, size / 48, 0))
            y, x = np.mgrid[:size, :size] - (size - 1) / 2
            return float(values[np.hypot(y, x) < 0.17 * size].std(0).sum())

        labels = np.arange(48) % 2
        scores = [
            variety(skin_lesion(k, 1 + k // 2 % 6, bool(label), 96, site="AB"[k // 24]))
            for k, label in enumerate(labels)
        ]
        assert roc_auc(labels[:, None], np.array(scores)[:, None])[0] > 0.85

    def test_lesions_are_darker_than_the_skin_around(self):
        for site in SKIN_SITES:
            for subject in range(4):
                grey = skin_lesion(subject, 3, False, 96, site=site).mean(-1)
                assert grey[42:54, 42:54].mean() < grey[[20, 76], 44:52].mean() - 5

    def test_the_same_lesion_at_any_size(self):
        large = skin_lesion(2, 3, True, 256).astype(float)
        small = skin_lesion(2, 3, True, 64).astype(float)
        assert np.abs(large.reshape(64, 4, 64, 4, 3).mean((1, 3)) - small).mean() < 4

    def test_mistakes(self):
        with pytest.raises(SettingError, match=r"'C'.*A, B"):
            skin_lesion(0, 1, True, site="C")
        for kind in (0, 7):
            with pytest.raises(SettingError, match="1 to 6"):
                skin_lesion(0, kind, True)
        with pytest.raises(SettingError, match="at least 32"):
            skin_lesion(0, 1, True, 16)


class TestWriting:
    def test_files_labels_and_datalist(self, tmp_path):
        path = write_skin_lesions(tmp_path, ("A", "B"), 24, 32, seed=5)
        assert path.read_text().splitlines()[0] == "image,subject,site,split,label,fitzpatrick,ita"
        datalist = Datalist.read(path, required=("subject", "site", "split", "label", "fitzpatrick", "ita"))
        assert len(datalist) == len(datalist.subjects) == 48
        assert datalist.sites == ("A", "B")
        assert Counter(row.split for row in datalist) == {"train": 24, "val": 8, "test": 16}
        for row in datalist:
            label, kind = row.labels["label"] == "1", int(row.labels["fitzpatrick"])
            subject = int(row.subject.removeprefix("phantom"))
            assert_array_equal(read_image(row.image), skin_lesion(subject, kind, label, 32, 5, row.site))
            assert float(row.labels["ita"]) == pytest.approx(skin_ita(subject, kind, 5), abs=0.01)
        assert {row.labels["fitzpatrick"] for row in datalist.select(split="test")} == set("123456")

    @pytest.mark.parametrize("seed", range(4))
    def test_skin_type_tells_the_label_in_training_alone(self, tmp_path, seed, monkeypatch):
        monkeypatch.setattr("dart_core.data.phantoms.skin.skin_lesion", lambda *_: np.zeros((4, 4, 3), np.uint8))
        datalist = Datalist.read(write_skin_lesions(tmp_path, pictures_per_site=36, seed=seed))
        for split, low, high in (("train", 0.75, 1.0), ("test", 0.5, 0.5)):
            rows = datalist.select(split=split)
            labels = np.array([int(row.labels["label"]) for row in rows])
            light = np.array([-float(row.labels["fitzpatrick"]) for row in rows])
            assert labels.mean() == 0.5
            assert low <= roc_auc(labels[:, None], light[:, None])[0] <= high
            assert set(light) == {-1, -2, -3, -4, -5, -6}
        pairs = Counter(((int(row.labels["fitzpatrick"]) + 1) // 2, row.labels["label"]) for row in rows)
        assert set(pairs.values()) == {4}  # 24 test pictures: every group and label alike

    def test_mistakes(self, tmp_path):
        for arguments, pattern in (
            ((("C",),), "no site 'C'"),
            (((),), "no site or no picture"),
            ((("A",), 0), "no site or no picture"),
            ((("A",), 3, 16), "at least 32"),
        ):
            with pytest.raises(SettingError, match=pattern):
                write_skin_lesions(tmp_path / "x", *arguments)
        assert not (tmp_path / "x").exists()
