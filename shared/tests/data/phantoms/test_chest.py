from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from dart_core.data.datalist import Datalist
from dart_core.data.images import read_image
from dart_core.data.phantoms import CHEST_SITES, chest_xray, write_chest_xrays
from dart_core.errors import SettingError

HEALTHY = {"No Finding", "No finding", "Normal"}
FINDINGS = sorted({name for site in CHEST_SITES.values() for name in site.labels} - HEALTHY)


def difference(finding: str, subject: int, site: str = "chestxray14", shape: tuple[int, int] = (96, 96)) -> np.ndarray:
    """Grey levels by which the finding changes an otherwise equal picture."""
    healthy, ill = (chest_xray(subject, site, names, shape).astype(int) for names in ((), (finding,)))
    return ill - healthy


class TestPicture:
    def test_type_shape_and_seed(self):
        picture = chest_xray(3, "chexpert", shape=(48, 64))
        assert (picture.shape, picture.dtype) == ((48, 64), np.uint8)
        assert_array_equal(picture, chest_xray(3, "chexpert", ["No Finding"], (48, 64)))
        for other in (
            chest_xray(4, "chexpert", shape=(48, 64)),
            chest_xray(3, "chexpert", shape=(48, 64), seed=1),
            chest_xray(3, "chexpert", shape=(48, 64), visit=1),
            chest_xray(3, "chestxray14", shape=(48, 64)),
        ):
            assert not np.array_equal(other, picture)

    def test_lungs_are_dark_and_the_middle_is_bright(self):
        for site in CHEST_SITES:
            picture = np.mean([chest_xray(subject, site, shape=(64, 64)) for subject in range(6)], axis=0)
            lungs = np.concatenate([picture[22:40, 12:22], picture[22:40, 42:52]])
            assert lungs.mean() < 0.5 * picture[22:40, 29:35].mean()
            assert picture[50:60, 20:44].mean() > 1.5 * lungs.mean()  # below the diaphragm

    @pytest.mark.parametrize("finding", FINDINGS)
    def test_every_finding_can_be_seen(self, finding):
        for subject in range(4):
            changed = np.abs(difference(finding, subject)) > 12
            # A small nodule covers about 0.15 per cent of the picture; none of them covers all of it.
            assert 0.001 < changed.mean() < 0.6

    def test_findings_are_where_they_belong(self):
        rows = np.arange(96)[:, None]
        for subject in range(4):
            fluid = np.abs(difference("Effusion", subject)) > 12
            assert (fluid * rows).sum() / fluid.sum() > 50  # the lower half of the picture
            heart = np.argwhere(difference("Cardiomegaly", subject) > 12)
            assert abs(heart[:, 1].mean() - 48) < 20
            assert difference("Consolidation", subject).sum() > 0
            air = difference("Emphysema", subject)
            assert air[:40].sum() < 0  # darker lungs
        collapsed = [difference("Pneumothorax", subject) for subject in range(4)]
        assert all((change < -12).sum() > 40 for change in collapsed)  # black air

    def test_tuberculosis_is_in_the_upper_half(self):
        rows = np.arange(96)[:, None]
        for subject in range(4):
            changed = np.abs(difference("Tuberculosis", subject)) > 12
            assert (changed * rows).sum() / changed.sum() < 45

    def test_some_labels_stand_for_others(self):
        assert_array_equal(difference("Normal", 1), 0)
        kinds = {tuple(np.flatnonzero(np.abs(difference("Other diseases", k)).sum(0) > 50)) for k in range(3)}
        assert len(kinds) == 3

    def test_sites_differ_in_grey_values(self):
        def grey(site: str) -> float:
            return float(np.mean([chest_xray(k, site, shape=(48, 48))[8:-8, 8:-8].std() for k in range(6)]))

        assert grey("chexpert") > 1.2 * grey("chestxray14")

    def test_mistakes(self):
        with pytest.raises(SettingError, match=r"'nih'.*chexpert, chestxray14"):
            chest_xray(0, "nih")
        with pytest.raises(SettingError, match=r"'Effussion'.*did you mean 'Effusion'"):
            chest_xray(0, "chexpert", ["Effussion"])
        with pytest.raises(SettingError, match="at least 16"):
            chest_xray(0, "chexpert", shape=(8, 64))


class TestWriting:
    @pytest.mark.parametrize("site", sorted(CHEST_SITES))
    def test_files_labels_and_datalist(self, tmp_path, site):
        path = write_chest_xrays(tmp_path, site, 45, shape=(24, 24), seed=3)
        labels = CHEST_SITES[site].labels
        assert path.read_text().splitlines()[0] == ",".join(["image", "subject", "site", "split", *labels])
        datalist = Datalist.read(path, required=("image", "subject", "site", "split", *labels))
        assert len(datalist) == 45
        assert datalist.sites == (site,)
        assert datalist.splits == ("train", "val", "test")
        assert max(Counter(row.subject for row in datalist).values()) == 2
        exclusive = CHEST_SITES[site].exclusive
        findings = [name for name in labels if name not in HEALTHY or exclusive]
        for row in datalist:
            assert set(row.labels) == set(labels)
            shown = [name for name in findings if row.labels[name] == "1"]
            assert len(shown) <= 3
            for name in HEALTHY & set(labels) - set(findings):
                assert row.labels[name] == str(int(not shown))
            assert len(shown) == 1 or not exclusive
            subject, visit = (int(part) for part in row.image.stem.split("_"))
            assert row.subject == f"phantom{subject}"
            assert_array_equal(read_image(row.image, "L"), chest_xray(subject, site, shown, (24, 24), 3, visit))
        # No label is rare: in three dozen pictures each is there at least twice.
        counts = Counter(name for row in datalist for name in findings if row.labels[name] == "1")
        assert min(counts[name] for name in findings) >= 2
        assert max(counts.values()) - min(counts[name] for name in findings) <= 3

    def test_classes_are_equally_frequent(self, tmp_path):
        datalist = Datalist.read(write_chest_xrays(tmp_path, "rsna-pneumonia", 30, shape=(16, 16)))
        counts = Counter(name for row in datalist for name, cell in row.labels.items() if cell == "1")
        assert counts == dict.fromkeys(CHEST_SITES["rsna-pneumonia"].labels, 10)

    def test_one_label_is_there_in_half_of_the_pictures(self, tmp_path):
        datalist = Datalist.read(write_chest_xrays(tmp_path, "shenzhen", 60, shape=(16, 16)))
        assert 20 <= sum(row.labels["Tuberculosis"] == "1" for row in datalist) <= 40

    def test_chosen_labels(self, tmp_path):
        path = write_chest_xrays(tmp_path, "chexpert", 4, ["Effusion", "Nodule"], (16, 16))
        assert path.read_text().startswith("image,subject,site,split,Effusion,Nodule\n")

    def test_mistakes(self, tmp_path):
        for arguments, pattern in (
            (("nih",), "no data set 'nih'"),
            (("chexpert", 0), "no picture or no label"),
            (("chexpert", 3, ["No Finding"]), "no picture or no label"),
            (("chexpert", 3, ["Oedema"]), "'Edema'"),
        ):
            with pytest.raises(SettingError, match=pattern):
                write_chest_xrays(tmp_path / "x", *arguments)
        assert not (tmp_path / "x").exists()
