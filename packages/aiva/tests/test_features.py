"""The store of features: exact rows, the latest wins, little memory, a full disk."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aiva import FeatureStore, cluster_sites, features
from dart_core.errors import CheckpointError, OutputError


def test_rows_come_back_in_the_order_of_the_slices(tmp_path: Path) -> None:
    with FeatureStore(tmp_path / "a" / "f.f16", 10, (2, 3)) as store:
        first, second = torch.randn(3, 2, 3), torch.randn(2, 2, 3)
        store.put(torch.tensor([7, 2, 4]), first)
        store.put(torch.tensor([2, 9]), second)
        rows = store.rows()
        assert rows.index.tolist() == [2, 4, 7, 9]
        assert rows.shape == (4, 2, 3)
        expected = torch.stack([second[0], first[2], first[0], second[1]]).half().numpy()
        assert np.array_equal(rows[0:4], expected)
        assert np.array_equal(rows[1:3], expected[1:3])
        assert rows[4:9].shape == (0, 2, 3)
        store.clear()
        assert store.rows().shape == (0, 2, 3)
    assert (tmp_path / "a" / "f.f16").stat().st_size == store.nbytes == 10 * 6 * 2
    store.remove()
    assert not (tmp_path / "a" / "f.f16").exists()


def test_a_slice_twice_in_a_batch(tmp_path: Path) -> None:
    with FeatureStore(tmp_path / "f.f16", 3, (1,)) as store:
        store.put(torch.tensor([1, 1]), torch.tensor([[1.0], [2.0]]))
        assert store.rows()[0:1].item() == 2


def test_values_beyond_float16_are_limited(tmp_path: Path) -> None:
    with FeatureStore(tmp_path / "f.f16", 2, (2,)) as store:
        store.put(torch.tensor([0]), torch.tensor([[1e6, -1e6]]))
        assert store.rows()[0:1].tolist() == [[65504, -65504]]


def test_state_goes_through_a_checkpoint(tmp_path: Path) -> None:
    with FeatureStore(tmp_path / "f.f16", 5, (2,)) as store:
        store.put(torch.tensor([3, 0]), torch.tensor([[1.0, 2], [3, 4]]))
        state = store.state_dict()
        store.put(torch.tensor([1]), torch.tensor([[9.0, 9]]))  # after the checkpoint
    with FeatureStore(tmp_path / "f.f16", 5, (2,)) as store:
        store.load_state_dict(state)
        assert store.rows().index.tolist() == [0, 3]
        assert store.rows()[0:2].tolist() == [[3, 4], [1, 2]]
        with pytest.raises(CheckpointError, match="holds features of 4 slices, the scans have 5"):
            store.load_state_dict({"seen": torch.zeros(4, dtype=torch.bool)})


def test_wrong_shape(tmp_path: Path) -> None:
    with FeatureStore(tmp_path / "f.f16", 5, (2,)) as store, pytest.raises(ValueError, match="the store holds"):
        store.put(torch.tensor([0]), torch.zeros(1, 3))


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(FileIO):
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(features, "FileIO", Full)
    with (
        FeatureStore(tmp_path / "f.f16", 5, (2,)) as store,
        pytest.raises(OutputError, match=r"f\.f16: the disk is full"),
    ):
        store.put(torch.tensor([0]), torch.zeros(1, 2))


def test_room_is_checked_beforehand(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "features" / "f.f16", 10**9, (1000, 1000))
    with pytest.raises(OutputError, match=r"the features of all slices take 2000000\.0 GB, and .* GB are free; free"):
        features.check_room([store])
    features.check_room([FeatureStore(tmp_path / "features" / "f.f16", 10, (2,))])


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the memory as Linux does")
def test_memory_stays_small(tmp_path: Path) -> None:
    """180 MB of features on disk, 370 MB as float32, are clustered by a process that may take 350 MB more, not twice 370."""
    program = f"""
import re, resource, numpy as np, torch
from pathlib import Path
from aiva import FeatureStore, cluster_sites, clustering
small = np.random.default_rng(0).normal(size=(80, 40))
cluster_sites(small, small, 3)  # imports
x = torch.randn(50, 128, 32, 32, generator=torch.Generator().manual_seed(0))
stores = [FeatureStore(Path({str(tmp_path)!r}) / name, 350, (128, 32, 32)) for name in ("a", "b")]
for store in stores:
    store.__enter__()
    for first in range(0, 350, 50):
        store.put(torch.arange(first, first + 50), x * (1 + first / 350))
del x
def taken():
    return 1024 * int(re.search(r"VmData:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
limit = taken() + 350 * 2**20
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
clustering._embed = lambda points, *_: points[:, :2]  # t-SNE needs no memory to speak of, but time
found = cluster_sites(stores[0].rows(), stores[1].rows(), 12)
assert found.source_means.shape == (12, 128, 32, 32)
try:
    # More than is left below the limit, however much has been given back in between.
    np.ones(limit - taken() + 64 * 2**20, np.uint8)
except MemoryError:
    print("limited")
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment, timeout=280
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "limited\n"


def test_rows_of_a_store_are_clustered(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(25, 8)) + 8 * np.eye(3, 8)[i] for i in range(3)]).astype(np.float16)
    with FeatureStore(tmp_path / "a", 100, (8,)) as source, FeatureStore(tmp_path / "b", 75, (8,)) as target:
        source.put(torch.arange(20, 95), torch.from_numpy(x))
        target.put(torch.arange(75), torch.from_numpy(x))
        found = cluster_sites(source.rows(), target.rows(), 3)
    plain = cluster_sites(x, x, 3)
    assert np.array_equal(found.source_assignment, plain.source_assignment)
    assert np.array_equal(found.embedding, plain.embedding)
    assert found.source_means.dtype == np.float32
