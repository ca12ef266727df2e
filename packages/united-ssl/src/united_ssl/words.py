"""TransVW's visual words by self-discovery: `prepare --words` (specification 2.3).

An auto-encoder learns whole scans; a word is a place in a reference scan, cut in the scans that look most like it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from dart_core.batches import Batches
from dart_core.checkpoint import load_weights, save_weights
from dart_core.cli import say
from dart_core.data.datalist import Row
from dart_core.data.volumes import read_volume
from dart_core.errors import InputError
from dart_core.fine_tuning import FineTuning, fine_tune
from dart_core.run import CONFIG, Run
from united_ssl import settings as of
from united_ssl.cubes import CubeRow, Cubes, crop_accepted, load_cube, write_cubes, write_index
from united_ssl.networks import Decoder, Encoder
from united_ssl.preparing import (
    CT_MARGIN,
    ORIENTATION,
    SPARE,
    check_headers,
    file_names,
    open_source,
    removed_on_failure,
    resized,
    scaled,
    split_for_pretraining,
    starts,
    write_report,
)
from united_ssl.schedules import Plateau, bad_epochs_allowed
from united_ssl.tasks import pooled_features

PLACES = 200
"""Places tried in a reference scan."""
AWAY = 5
"""Voxels that places of words lie apart along one axis at least."""
SIDES, JITTER = (50, 80), 10
"""In-plane sides of further cubes at 64 voxels, upper end left out, and how far they are moved."""
FURTHER = 2
LEARNING_RATE, PLATEAU = 1e-3, 20
AUTOENCODER = "autoencoder.safetensors"
_WORD, _CROP = 22, 23


class AutoEncoder(nn.Module):
    """The U-Net without head: scans (N, 1, x, y, z) in, scans out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder = Encoder(1, width)
        self.decoder = Decoder(width)

    def forward(self, x: Tensor) -> Tensor:
        """Restored scans."""
        restored: Tensor = self.decoder(self.encoder(x))
        return restored


def prepare_words(command: of.Prepare) -> None:
    """Train the auto-encoder, find the words, cut them; resumes in each of these."""
    scans, kind = open_source(command.data, "none", command.run.seed, command.validation)
    scans = [dataclasses.replace(row, split=split_for_pretraining(row, kind, command.train_on_test)) for row in scans]
    scans = [row for row in scans if row.split in ("train", "val")]
    check_headers(scans, command, kind)
    hu = kind == "luna16" and command.intensity is None
    with Run(command.run, command) as run, removed_on_failure(run):
        command = dataclasses.replace(command, intensity="hu") if hu else command
        small = _small_scans(run, command, scans)
        features = _features(run, command, small)
        rows = _cut_words(run, command, scans, features)
        write_index(run.out, rows)
        counts = {split: sum(row.split == split for row in rows) for split in ("train", "val", "test")}
        run.finish({"cubes": len(rows), "words": command.words, **counts})
        write_report(run, command, counts, [])
    say(f"cubes: {', '.join(f'{count} {split}' for split, count in counts.items())} in {command.run.out}")


def _small_scans(run: Run, command: of.Prepare, scans: list[Row]) -> Cubes:
    """Whole scans on the grid of the auto-encoder."""
    rows = []
    for row, name in zip(scans, file_names(scans), strict=True):
        file = run.out / "scans" / f"{name}.npy"
        if not file.is_file():
            grey, _ = scaled(read_volume(row.image, ORIENTATION), command.intensity)
            write_cubes(file, resized(grey, command.scan_size, smooth=True)[None])
        rows.append(CubeRow(file, 0, row.split, row.subject))
    return Cubes(tuple(rows), command.scan_size, run.out)


def _features(run: Run, command: of.Prepare, scans: Cubes) -> NDArray[np.float64]:
    """Pooled features (n, 16 width) of the scans by an auto-encoder that is trained on them."""
    folder = run.out / "autoencoder"
    network = AutoEncoder(command.width)
    if not (folder / AUTOENCODER).is_file():
        settings = dataclasses.replace(command.run, out=folder, resume=(folder / CONFIG).is_file(), overwrite=False)
        parts = {name: scans.split(name) for name in ("train", "val")}
        with Run(settings, {"width": command.width, "batch_size": command.batch_size}) as own:
            prepared = own.prepare(network)
            optimizer = torch.optim.Adam(prepared.parameters(), LEARNING_RATE, foreach=True)
            plateau = Plateau(LEARNING_RATE, PLATEAU)
            batches = Batches(load_cube(parts["train"]), len(parts["train"]), command.batch_size, settings.seed)

            def validate(net: nn.Module) -> dict[str, float]:
                errors = [
                    float(F.mse_loss(net(x := parts["val"].stack([i]).to(own.device)), x))
                    for i in range(len(parts["val"]))
                ]
                return {"validation_loss": float(np.mean(errors))}

            fine_tune(
                own, prepared, optimizer, batches, FineTuning(command.max_epochs, bad_epochs_allowed(command.patience)),
                loss=lambda net, batch: F.mse_loss(net(batch["cube"]), batch["cube"]), learning_rate=plateau,
                validate=validate, stateful={"plateau": plateau},
            )  # fmt: skip
            if own.is_main:
                own.finish({"scans": len(scans)})
                save_weights(folder / AUTOENCODER, network, {"width": str(command.width)})
            own.mean(torch.zeros(()))
    load_weights(folder / AUTOENCODER, network)
    network = network.to(run.device)
    return pooled_features(network, scans, command.batch_size, run.device).double().numpy()


def nearest_scans(features: NDArray[np.float64], reference: int, candidates: list[int], count: int) -> list[int]:
    """The `count` candidates nearest to the reference in feature space (L2), nearest first."""
    distance = ((features[candidates] - features[reference]) ** 2).sum(1)
    return [candidates[i] for i in np.argsort(distance, kind="stable")[:count]]


def _cut_words(run: Run, command: of.Prepare, scans: list[Row], features: NDArray[np.float64]) -> list[CubeRow]:
    """All words, a file for each split and word."""
    train = [i for i, row in enumerate(scans) if row.split == "train"]
    val = [i for i, row in enumerate(scans) if row.split == "val"]
    if command.words > len(train):
        raise InputError(
            f"{command.words} words need as many training scans to refer to, there are {len(train)}", where=command.data,
            remedy="give fewer --words",
        )  # fmt: skip
    references = np.random.default_rng(np.random.SeedSequence(command.run.seed, spawn_key=(_WORD,))).permutation(train)
    rows: list[CubeRow] = []
    taken: list[tuple[int, int, int]] = []
    queue = list(references)
    for word in range(command.words):
        place, reference = _place(command, scans, queue, taken, word)
        taken.append(place)
        groups = {
            "train": nearest_scans(features, reference, train, command.instances[0]),
            "val": nearest_scans(features, reference, val, command.instances[1]),
        }
        for split, members in groups.items():
            file = run.out / "cubes" / f"{split}-word{word:03d}.npy"
            each = 1 + (FURTHER if split == "train" else 0)
            if not file.is_file():
                key = np.random.SeedSequence(command.run.seed, spawn_key=(_CROP, word, split == "train"))
                rng = np.random.default_rng(key)
                write_cubes(file, np.concatenate([_instance(scans[i], place, command, each, rng) for i in members]))
            rows += [
                CubeRow(
                    file, n * each + k, split, scans[i].subject, scans[i].site, str(word), str(scans[i].image),
                    (str(place[0]), str(place[1]), str(place[2])),
                )
                for n, i in enumerate(members) for k in range(each)
            ]  # fmt: skip
        say(f"word {word + 1} of {command.words}: {scans[reference].image.name} at {', '.join(map(str, place))}")
    return rows


def _place(
    command: of.Prepare, scans: list[Row], queue: list[Any], taken: list[tuple[int, int, int]], word: int
) -> tuple[tuple[int, int, int], int]:
    """A place that passes the crop rule and lies apart from earlier ones, in the next reference scan that has one."""
    while queue:
        reference = int(queue.pop(0))
        volume = read_volume(scans[reference].image, ORIENTATION)
        _, is_ct = scaled(volume, command.intensity)
        genesis = (command.acceptance or ("genesis" if is_ct else "none")) == "genesis"
        margin = command.margin or (CT_MARGIN if is_ct else (0, 0, 0))
        rng = np.random.default_rng(np.random.SeedSequence(command.run.seed, spawn_key=(_WORD, word, reference)))
        try:
            bounds = starts(volume.array.shape, command.size, margin, genesis, volume.path)
        except InputError as error:
            say(f"left out: {error}")
            continue
        for _ in range(PLACES):
            x, y, z = (int(rng.integers(low, high + 1)) for low, high in bounds)
            if any(max(abs(x - a), abs(y - b), abs(z - c)) < AWAY for a, b, c in taken):
                continue
            h, w, d = command.size
            if genesis and not crop_accepted(volume.array[x : x + h, y : y + w, z : z + d + SPARE], d)[0]:
                continue
            return (x, y, z), reference
    raise InputError(
        f"no scan is left for word {word + 1}", where=command.data, remedy="give fewer --words, or lower --margin"
    )


def _instance(
    row: Row, place: tuple[int, int, int], command: of.Prepare, count: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """The cube at a place in one scan, and further ones of other sides around it, all resized to one size."""
    grey, _ = scaled(read_volume(row.image, ORIENTATION), command.intensity)
    cubes = [_at(grey, place, command.size)]
    scale = command.size[0] / 64
    for _ in range(count - 1):
        side = max(4, round(int(rng.integers(*SIDES)) * scale))
        other = max(4, round(side * command.size[1] / command.size[0]))
        moved = [round(int(rng.integers(-JITTER, JITTER)) * scale) for _ in range(2)]
        corner = (place[0] + moved[0], place[1] + moved[1], place[2])
        cubes.append(resized(_at(grey, corner, (side, other, command.size[2])), command.size, smooth=True))
    return np.stack(cubes)


def _at(grey: NDArray[np.float32], corner: tuple[int, int, int], size: tuple[int, ...]) -> NDArray[np.float32]:
    """A part of a scan; where it would reach beyond the border it is moved inside."""
    cut = []
    for c, side, part in zip(corner, grey.shape, size, strict=True):
        first = min(max(0, c), max(0, side - part))
        cut.append(slice(first, first + part))
    found = grey[tuple(cut)]
    rooms = [(0, part - side) for part, side in zip(size, found.shape, strict=True)]
    return np.pad(found, rooms) if any(room for _, room in rooms) else found
