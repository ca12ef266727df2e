from __future__ import annotations

import errno
import functools
import hashlib
import io
import os
import stat
import tarfile
import threading
import warnings
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dart_core import fetch
from dart_core.errors import InputError, OutputError, SettingError

CONTENT = bytes(range(256)) * 9000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder; /short promises more than it sends."""

    def log_message(self, format: str, *args: Any) -> None: ...

    def do_GET(self) -> None:
        self.server.requests.append(self.path)  # type: ignore[attr-defined]
        if self.path == "/short":
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT) + 1))
            self.end_headers()
            self.wfile.write(CONTENT)
        else:
            super().do_GET()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadingHTTPServer]:
    folder = tmp_path_factory.mktemp("served")
    (folder / "a file.bin").write_bytes(CONTENT)
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as running:
        running.requests = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def address(server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server.requests.clear()  # type: ignore[attr-defined]
    return f"http://127.0.0.1:{server.server_port}"


def test_download(address: str, server: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = fetch.download(f"{address}/a%20file.bin?version=2", SHA256.upper(), tmp_path / "new")
    assert path == tmp_path / "new" / "a file.bin"
    assert path.read_bytes() == CONTENT
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert fetch.download(f"{address}/a%20file.bin?version=2", SHA256, tmp_path / "new") == path
    assert len(server.requests) == 1
    assert fetch.download(f"{address}/a%20file.bin", SHA256, tmp_path / "new", name="b").name == "b"
    assert sorted(os.listdir(tmp_path / "new")) == ["a file.bin", "b"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("sha256", ["", "abc", "g" * 64, f"sha256:{SHA256}", f"{SHA256}\n", f"{SHA256} "])
def test_a_checksum_is_mandatory(sha256: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="64 hexadecimal digits"):
        fetch.download("http://127.0.0.1:9/a", sha256, tmp_path)


@pytest.mark.parametrize("url", ["a.zip", "ftp://host/a", "file:///etc/passwd", "http:///a", "doi:10.1/2/a", ""])
def test_only_web_addresses(url: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="http or https"):
        fetch.download(url, SHA256, tmp_path)


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "a/b", "/a", "a\\b", "a\0b"])
def test_names_stay_in_the_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="plain file name"):
        fetch.download("http://127.0.0.1:9/a", SHA256, tmp_path / "in", name=name)
    with pytest.raises(SettingError, match="plain file name"):
        fetch.download("http://127.0.0.1:9/%2e%2e%2fa", SHA256, tmp_path / "in")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("path", "sha256", "problem"),
    [
        ("/none.bin", SHA256, "the server answers 404 File not found; check the address"),
        ("/a%20file.bin", "0" * 64, f"the file has another SHA-256 than {'0' * 64}; try again"),
        ("/short", SHA256, r"cannot be downloaded \(\w+\); check the network"),
    ],
)
def test_a_failed_download_leaves_nothing(path: str, sha256: str, problem: str, address: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"^{address}{path}: {problem}"):
        fetch.download(address + path, sha256, tmp_path)
    assert os.listdir(tmp_path) == []


def test_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as unused:
        port = unused.server_port
    with pytest.raises(InputError, match=r"cannot be downloaded \(ConnectionError\); check the network") as caught:
        fetch.download(f"http://127.0.0.1:{port}/a", SHA256, tmp_path)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_another_file_of_that_name_is_not_replaced(address: str, server: Any, tmp_path: Path) -> None:
    (tmp_path / "a file.bin").write_text("mine")
    with pytest.raises(OutputError, match=r"a file\.bin: is there already, with another checksum"):
        fetch.download(f"{address}/a%20file.bin", SHA256, tmp_path)
    assert (tmp_path / "a file.bin").read_text() == "mine"
    assert server.requests == []


def test_disk_full_while_downloading(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pooch

    def full_disk(self: object, url: str, output_file: str, *rest: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", full_disk)
    with pytest.raises(OutputError, match="the disk is full"):
        fetch.download(f"{address}/a%20file.bin", SHA256, tmp_path)
    assert os.listdir(tmp_path) == []


# Archives

FILES = {"readme.txt": b"hello", "images/a.nii": CONTENT, "images/deep/er/b.nii": b"", "ü/漢 字.txt": b"x"}


def write_zip(path: Path, entries: dict[str, bytes], mode: int = 0, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = compression
            info.external_attr = mode << 16
            archive.writestr(info, data)
    return path


def write_tar(path: Path, entries: dict[str, bytes], kind: str = "", entry: bytes = tarfile.REGTYPE) -> Path:
    with tarfile.open(path, f"w:{kind}") as archive:  # type: ignore[call-overload]
        for name, data in entries.items():
            info = tarfile.TarInfo(name)
            info.type = entry
            if entry == tarfile.REGTYPE:
                info.size = len(data)
                info.mode = 0o4777
            else:
                info.linkname = data.decode()
            archive.addfile(info, io.BytesIO(data))
    return path


def write(path: Path, entries: dict[str, bytes]) -> Path:
    kind = path.suffix.removeprefix(".")
    return write_zip(path, entries) if kind == "zip" else write_tar(path, entries, "" if kind == "tar" else kind)


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz", "tar.xz", "tar.bz2"])
@pytest.mark.parametrize("existing", [False, True])
def test_extract(suffix: str, existing: bool, tmp_path: Path) -> None:
    archive = write(tmp_path / f"a.{suffix}", FILES)
    folder = tmp_path / "new" / "out"
    if existing:
        folder.mkdir(parents=True)
    files = fetch.extract(archive, folder)
    assert files == sorted(folder / name for name in FILES)
    assert tree(folder) == FILES
    (tmp_path / "plain").touch()
    assert {path.stat().st_mode for path in files} == {(tmp_path / "plain").stat().st_mode}
    assert os.listdir(tmp_path / "new") == ["out"]


def test_the_format_is_read_from_the_content(tmp_path: Path) -> None:
    inner = write_zip(tmp_path / "inner.zip", FILES)
    outer = write_tar(tmp_path / "outer.tar", {"inner.zip": inner.read_bytes()})
    outer = outer.rename(tmp_path / "outer.zip")
    assert tree_of(outer, tmp_path / "out") == {"inner.zip": inner.read_bytes()}


def tree_of(archive: Path, folder: Path) -> dict[str, bytes]:
    fetch.extract(archive, folder)
    return tree(folder)


def test_folders_and_dots(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in (".", "./images", "./images/empty"):
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE
            info.mode = 0
            archive.addfile(info)
        info = tarfile.TarInfo("./images/a")
        archive.addfile(info)
    assert fetch.extract(tmp_path / "a.tar", tmp_path / "tar") == [tmp_path / "tar" / "images" / "a"]
    assert (tmp_path / "tar" / "images" / "empty").is_dir()
    write_zip(tmp_path / "a.zip", {"images/": b"", "images/a": b""})
    assert fetch.extract(tmp_path / "a.zip", tmp_path / "zip") == [tmp_path / "zip" / "images" / "a"]


def test_an_empty_archive_gives_an_empty_folder(tmp_path: Path) -> None:
    for suffix in ("zip", "tar"):
        assert fetch.extract(write(tmp_path / f"a.{suffix}", {}), tmp_path / suffix) == []
        assert (tmp_path / suffix).is_dir()


def refused(archive: Path, match: str, **options: Any) -> None:
    """Check that it is refused in one line, and that nothing was written beside it."""
    folder = archive.parent / "deep" / "er" / "out"
    before = {path for path in archive.parent.rglob("*") if path.name not in ("deep", "er")}
    with pytest.raises(InputError, match=match) as caught:
        fetch.extract(archive, folder, **options)
    assert str(caught.value).startswith(f"{archive}: ")
    assert "\n" not in str(caught.value)
    assert {path for path in archive.parent.rglob("*") if path.name not in ("deep", "er")} == before
    assert not folder.exists()


@pytest.mark.parametrize("suffix", ["zip", "tar.gz"])
@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("/evil", "an absolute path"),
        ("//host/evil", "an absolute path"),
        ("C:/evil", "an absolute path"),
        ("C:evil", "an absolute path"),
        ("..\\evil", "an absolute path"),
        ("\\evil", "an absolute path"),
        ("..", "a path that leads outside"),
        ("../evil", "a path that leads outside"),
        ("a/../../evil", "a path that leads outside"),
        ("a/b/../c", "a path that leads outside"),
    ],
)
def test_paths_that_lead_outside(suffix: str, name: str, what: str, tmp_path: Path) -> None:
    refused(write(tmp_path / f"a.{suffix}", {"good": b"x", name: b"evil"}), f"entry .* is {what}; unpack it by hand")


@given(name=st.text(st.sampled_from("ab./\\:~ "), min_size=1, max_size=12), suffix=st.sampled_from(["zip", "tar"]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_name_leads_outside(name: str, suffix: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    base = tmp_path_factory.mktemp("name")
    archive = write(base / f"a.{suffix}", {name: b"x"})
    try:
        files = fetch.extract(archive, base / "out")
    except (InputError, OutputError):
        assert os.listdir(base) == [archive.name]
    else:
        assert all(file.resolve().is_relative_to((base / "out").resolve()) for file in files)
        assert sorted(os.listdir(base)) == sorted([archive.name, "out"])


@pytest.mark.parametrize("entry", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("target", [b"/etc/passwd", b"../../evil", b"good"])
def test_links_in_a_tar(entry: bytes, target: bytes, tmp_path: Path) -> None:
    refused(write_tar(tmp_path / "a.tar", {"link": target}, entry=entry), "entry 'link' is a link")


@pytest.mark.parametrize("entry", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_devices_in_a_tar(entry: bytes, tmp_path: Path) -> None:
    refused(write_tar(tmp_path / "a.tar", {"device": b""}, entry=entry), "entry 'device' is no plain file")


@pytest.mark.parametrize(
    ("mode", "what"), [(stat.S_IFLNK, "a link"), (stat.S_IFIFO, "no plain file"), (stat.S_IFCHR, "no plain file")]
)
def test_links_and_devices_in_a_zip(mode: int, what: str, tmp_path: Path) -> None:
    refused(write_zip(tmp_path / "a.zip", {"odd": b"/etc/passwd"}, mode | 0o777), f"entry 'odd' is {what}")


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.xz"])
def test_the_size_limit_is_on_all_files_together(suffix: str, tmp_path: Path) -> None:
    archive = write(tmp_path / f"a.{suffix}", {"a": bytes(600), "b": bytes(401)})
    refused(archive, "holds more than 1000 bytes", max_bytes=1000)
    assert len(fetch.extract(archive, tmp_path / "out", max_bytes=1001)) == 2


def test_a_zip_that_lies_about_its_size(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "a.zip", {"a": bytes(100_000)})
    data = archive.read_bytes()
    archive.write_bytes(data.replace((100_000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    refused(archive, "damaged")


@pytest.mark.parametrize("suffix", ["zip", "tar"])
@pytest.mark.parametrize("names", [["a", "a"], ["a", "./a"], ["a", "a/b"], ["a/b", "a"]])
def test_the_same_name_twice(suffix: str, names: list[str], tmp_path: Path) -> None:
    archive = tmp_path / f"a.{suffix}"
    if suffix == "tar":
        with tarfile.open(archive, "w") as tar:
            for name in names:
                tar.addfile(tarfile.TarInfo(name))
    else:
        with warnings.catch_warnings(), zipfile.ZipFile(archive, "w") as opened:
            warnings.simplefilter("ignore")
            for name in names:
                opened.writestr(name, b"")
    refused(archive, "twice")


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz", "tar.xz", "tar.bz2"])
def test_truncated_archives(suffix: str, tmp_path: Path) -> None:
    archive = write(tmp_path / f"a.{suffix}", FILES)
    data = archive.read_bytes()
    archive.write_bytes(data[: len(data) // 2])
    refused(archive, r"not a zip or tar archive, or damaged .*; download it again")


@pytest.mark.parametrize("suffix", ["zip", "tar.gz", "tar.xz", "tar.bz2"])
def test_flipped_bits(suffix: str, tmp_path: Path) -> None:
    archive = write(tmp_path / f"a.{suffix}", {"noise": os.urandom(5000)})
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 16
    archive.write_bytes(data)
    refused(archive, "damaged")


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\x03\x04", b"<html>not found</html>", bytes(100)])
def test_files_that_are_no_archives(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    refused(tmp_path / "a.zip", "not a zip or tar archive")


def test_an_encrypted_zip(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "a.zip", {"a": b"x"})
    data = bytearray(archive.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(data)
    refused(archive, "is encrypted")


def test_missing_archive(tmp_path: Path) -> None:
    refused(tmp_path / "none.zip", "no such archive")


def test_a_folder_with_content_is_not_touched(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "a.zip", FILES)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    for folder in (tmp_path / "out", tmp_path / "out" / "mine"):
        with pytest.raises(OutputError, match="is there already and not empty"):
            fetch.extract(archive, folder)
    assert tree(tmp_path / "out") == {"mine": b"mine"}


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_stopped_extraction_leaves_nothing(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = write_zip(tmp_path / "a.zip", FILES)
    real = open

    def failing(file: Any, mode: str = "r") -> IO[Any]:
        if mode == "xb" and Path(file).name == "a.nii":
            raise error
        return real(file, mode)

    monkeypatch.setattr(fetch, "open", failing, raising=False)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else OutputError):
        fetch.extract(archive, tmp_path / "out")
    assert os.listdir(tmp_path) == ["a.zip"]
