"""The command `predict`: masks of prepared slices with their IoU, or masks of whole volumes on their own grid."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dart_core.checkpoint import WEIGHTS
from dart_core.cli import say
from dart_core.data.datalist import Datalist
from dart_core.data.volumes import Volume, read_volume, write_volume
from dart_core.errors import InputError
from dart_core.files import write_atomic, write_csv
from dart_core.report import Report
from dart_core.run import METRICS, claim_folder, find_device, flat_settings
from metamedseg import settings as of
from metamedseg.commands import device_of
from metamedseg.datasets import find_set, read_slices
from metamedseg.figures import slices_figure
from metamedseg.models import PACKAGE, Model, load_model
from metamedseg.networks import MetaUNet
from metamedseg.preparing import finished_slice, normalised_volume
from metamedseg.tuning import SHOWN, picture, segment_slices

MASKS, PREDICTIONS = "masks.npz", "predictions.csv"
COLUMNS = ("slice", "volume", "iou", "predicted_pixels", "true_pixels")
_ENDINGS = (".nii.gz", ".nii")


def predict(command: of.Predict) -> None:
    """Segment slices or volumes."""
    network, model = load_model(_selection(command.model), "target", find_device(command.device))
    if command.slices is not None:
        _predict_slices(command, network, model)
    else:
        _predict_volumes(command, network, model)


def _selection(path: Path) -> Path:
    """The first selection of a run with several, else the path itself."""
    if path.is_dir() and not (path / WEIGHTS).is_file():
        found = sorted(path.glob(f"selection-*/{WEIGHTS}"), key=lambda file: int(file.parent.name.partition("-")[2]))
        if found:
            return found[0].parent
    return path


def _predict_slices(command: of.Predict, network: MetaUNet, model: Model) -> None:
    assert command.slices is not None
    slices = find_set(read_slices(command.slices), model.target, command.slices)
    part = slices if command.split == "all" else slices.split(command.split)
    if not len(part):
        raise InputError(
            f"{model.target} has no slice of split {command.split}", where=command.slices, remedy="give another --split"
        )
    masks, values = segment_slices(network, part, command.batch_size)
    out = command.output.out
    claim_folder(out, flat_settings(command), overwrite=command.output.overwrite)
    rows = [
        (row.name, row.volume, round(float(value), 6), int(mask.sum()), row.pixels)
        for row, mask, value in zip(part.rows, masks, values, strict=True)
    ]
    write_csv(out / PREDICTIONS, COLUMNS, rows)
    with_names = {"masks": masks.astype(np.uint8), "names": np.array([row.name for row in part.rows])}
    _save_arrays(out / MASKS, with_names)
    content = {
        "model": dataclasses.asdict(model),
        "split": command.split,
        "slices": len(part),
        "iou": float(values.mean()),
    }
    write_atomic(out / METRICS, json.dumps(content, indent=2) + "\n")
    report = Report(f"{model.target} by {model.name}", f"{len(part)} slices", package=PACKAGE)
    report.text(f"Mean IoU {100 * values.mean():.2f} %. Masks are in {MASKS}, one row per slice in {PREDICTIONS}.")
    order = np.argsort(values)
    places = [int(order[i]) for i in np.linspace(0, len(order) - 1, min(SHOWN, len(order))).round().astype(int)]
    report.picture(
        picture(network, part, places, model.name), "From the worst to the best: found green, missed red, wrong yellow",
        "slices with the prediction",
    )  # fmt: skip
    report.section("Settings")
    report.settings(command)
    report.write(out / "report.html")
    say(f"{len(part)} slices of {model.target}: IoU {100 * values.mean():.2f} %   {out}")


def _predict_volumes(command: of.Predict, network: MetaUNet, model: Model) -> None:
    assert command.volumes is not None
    if not model.slicing:
        raise InputError(
            "the network does not know how slices like its own are made from volumes", where=command.model,
            remedy="fine-tune it on what `metamedseg prepare` made from volumes (not from .npz files), or predict --slices",
        )  # fmt: skip
    slicing = of.Slicing(**model.slicing)
    modality = model.channel if command.modality is None else command.modality
    files = volume_files(command.volumes)
    names = {_stem(file): file for file in files}
    if len(names) < len(files):
        raise InputError("two volumes have the same name", where=command.volumes, remedy="rename one of them")
    for file in files:  # a broken last file must not waste the work on the others
        _channel(file, modality)
    out = command.output.out
    claim_folder(out, flat_settings(command), overwrite=command.output.overwrite)
    rows, shown = [], []
    for name, file in names.items():
        volume = _channel(file, modality)
        mask = segment_volume(network, volume.array, slicing, command.batch_size)
        write_volume(out / f"{name}.nii.gz", mask, volume)
        rows.append((name, int(mask.sum()), round(float(mask.sum() * np.prod(volume.spacing)) / 1000, 3)))
        z = int(mask.sum((0, 1)).argmax())
        shown.append((name, [(f"slice {z}", volume.array[..., z], mask[..., z])]))
    write_csv(out / PREDICTIONS, ("volume", "voxels", "millilitres"), rows)
    content = {"model": dataclasses.asdict(model), "volumes": len(rows)}
    write_atomic(out / METRICS, json.dumps(content, indent=2) + "\n")
    report = Report(f"{model.target} by {model.name}", f"{len(rows)} volumes", package=PACKAGE)
    report.table(("volume", "voxels", "ml"), rows, f"Size of the {model.target} found")
    report.picture(slices_figure(shown[:SHOWN]), "The slice with the largest mask", "slices with outlines")
    report.section("Settings")
    report.settings(command)
    report.write(out / "report.html")
    say(f"{len(rows)} volumes: {out}")


@torch.no_grad()
def segment_volume(
    network: MetaUNet, volume: NDArray[Any], slicing: of.Slicing, batch_size: int = 16
) -> NDArray[np.bool_]:
    """Mask (H, W, Z) of a volume: each slice is made as in training, segmented, and its probabilities resized back."""
    from skimage.transform import resize

    whole = normalised_volume(volume, slicing)
    mask = np.zeros(volume.shape, dtype=bool)
    for start in range(0, volume.shape[2], batch_size):
        numbers = range(start, min(start + batch_size, volume.shape[2]))
        images = np.stack([finished_slice(whole[..., z], slicing) for z in numbers])
        logits = network(torch.from_numpy(images)[:, None].to(device_of(network)))
        for z, p in zip(numbers, torch.sigmoid(logits.float())[:, 0].cpu().numpy(), strict=True):
            mask[..., z] = resize(p, volume.shape[:2], order=1, preserve_range=True) > 0.5
    return mask


def volume_files(path: Path) -> list[Path]:
    """The volumes that a path means: a file, those of a folder, or those of a datalist.

    Raises:
        InputError: there is none.
    """
    if path.is_dir() and not (path / "dataset.json").is_file():
        found = sorted(
            file for file in path.iterdir() if file.name.endswith(_ENDINGS) and not file.name.startswith(".")
        )
        if not found:
            raise InputError("holds no NIfTI file", where=path, remedy="give a folder with .nii.gz files")
        return found
    if path.name.lower().endswith(_ENDINGS):
        return [path]
    return [row.image for row in Datalist.read(path)]


def _channel(file: Path, modality: int) -> Volume:
    return read_volume(file, None, frame=modality)


def _stem(file: Path) -> str:
    return file.name.removesuffix(".gz").removesuffix(".nii")


def _save_arrays(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_atomic(path, buffer.getvalue())
