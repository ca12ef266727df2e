"""What the segmentation packages' commands share: problems, source sites, networks that fit, pictures."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from dart_core.data.datalist import Datalist, Row
from dart_core.data.phantoms import write_head_mr
from dart_core.data.scans import load_scan
from dart_core.errors import InputError, SettingError
from dart_core.scan_commands import check_data, check_settings, panel, rows_to_predict, source_sites, spacing_of
from dart_core.settings import ScanSettings


@dataclass
class Network:
    """What a network says of its training."""

    preprocessing: str = "plain"
    channels: int = 1
    spacing: list[float] | None = None


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_head_mr(tmp_path_factory.mktemp("heads"), ("sm15", "ge3"), 3, (24, 24, 8))


def listed(*sites: str, source: Path = Path("list.csv")) -> Datalist:
    rows = tuple(Row(Path(f"{site}.nii"), None, f"s{site}", site, "train") for site in sites)
    return Datalist(rows, source=source)


def test_check_data(heads: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ScanSettings(heads, "plain")
    assert check_data(settings, True) == 0
    assert capsys.readouterr().out.splitlines() == [
        "site sm15: 1 train, 1 val, 1 test", "site ge3: 1 train, 1 val, 1 test", "6 scans: no problems",
    ]  # fmt: skip
    rows = [dataclasses.replace(row, mask=None) if row.site == "ge3" else row for row in Datalist.read(heads)]
    broken = Datalist(tuple(rows)).write(heads.parent / "broken.csv")
    assert check_data(dataclasses.replace(settings, datalist=broken), True) == 2
    *problems, _, _, total = capsys.readouterr().out.splitlines()
    assert len(problems) == 3
    assert problems[0].startswith(f"{broken}, row 5, column mask: ")
    assert total == "6 scans: 3 problems"
    assert check_data(dataclasses.replace(settings, datalist=broken), False) == 0


def test_source_sites() -> None:
    three = listed("a", "b", "c")
    assert source_sites(three, ("c", "a", "c"), "b") == ("c", "a")
    assert source_sites(three, (), "b") == ("a", "c")
    assert source_sites(listed("a"), (), "") == ("a",)
    with pytest.raises(SettingError, match="b is both source and target; leave it out of --source"):
        source_sites(three, ("a", "b"), "b")
    with pytest.raises(SettingError, match=r"holds 3 sites; name the source: --source a; or the one to leave out"):
        source_sites(three, (), "")
    with pytest.raises(InputError, match="'d'"):
        source_sites(three, (), "d")
    with pytest.raises(InputError, match="holds no site but a; add a source site"):
        source_sites(listed("a"), (), "a")


def test_rows_to_predict() -> None:
    two = listed("a", "b")
    assert [row.site for row in rows_to_predict(two, "b", "train")] == ["b"]
    assert len(rows_to_predict(listed("a"), "", "all")) == 1
    with pytest.raises(SettingError, match="a source network has no target site; name one: --site a"):
        rows_to_predict(two, "", "test")
    with pytest.raises(InputError, match="site a has no row with split test"):
        rows_to_predict(two, "a", "test")


def test_check_settings() -> None:
    where, plain = Path("run"), ScanSettings(Path("list.csv"), "plain")
    check_settings(Network(), plain, where)
    check_settings(Network("cc359", 1, [1.0, 0.95, 0.95]), ScanSettings(Path("list.csv")), where)
    assert spacing_of(ScanSettings(Path("list.csv"))) == [1.0, 0.95, 0.95]
    with pytest.raises(SettingError, match=r"run: --preprocessing was prostate when .* and is plain now; give the"):
        check_settings(Network("prostate", 3), plain, where)
    with pytest.raises(SettingError, match="number of channels was 3 when this network was trained and is 1 now"):
        check_settings(Network(channels=3), plain, where)
    with pytest.raises(SettingError, match=r"--spacing was that of the files when .* is 2 2 3 now"):
        check_settings(Network(), dataclasses.replace(plain, spacing=(2.0, 2.0, 3.0)), where)


def test_panel_shows_the_slice_with_the_largest_mask(heads: Path) -> None:
    row = next(iter(Datalist.read(heads)))
    scan = load_scan(row, ScanSettings(heads, "plain"))
    z = int(scan.truth.sum((0, 1)).argmax())
    predicted = np.zeros_like(scan.truth)
    predicted[4, 4, 1] = True
    shown = panel(scan, predicted, "title")
    assert (shown.title, shown.image.min(), shown.image.max()) == ("title", 0, 1)
    np.testing.assert_array_equal(shown.truth, scan.truth[..., z])
    np.testing.assert_array_equal(shown.prediction, predicted[..., z])
    unknown = dataclasses.replace(scan, mask=None)
    np.testing.assert_array_equal(panel(unknown, predicted, "").prediction, predicted[..., 1])
    assert panel(unknown, predicted & False, "").truth is None
