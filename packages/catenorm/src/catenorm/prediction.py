"""The command `predict`: both passes over every slice, largest components, files on the scan's own grid (specification 2.4, 6)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from catenorm import figures
from catenorm import settings as of
from catenorm.baselines import MSNet, SiteNetwork, site_number
from catenorm.cases import Case, load_case
from catenorm.losses import one_hot
from catenorm.method import CateNorm2d, largest_component, two_pass
from catenorm.models import PACKAGE, Model, check_sides, load_model
from catenorm.networks import NAMES
from catenorm.rows import marks, open_cases, open_divided
from dart_core.cli import say
from dart_core.data.datalist import Datalist, Row
from dart_core.data.scans import unique_names
from dart_core.data.slices import evaluating
from dart_core.data.volumes import Volume, write_volume
from dart_core.errors import InputError, SettingError
from dart_core.evaluation import write_predictions
from dart_core.files import relative, write_atomic
from dart_core.report import Report
from dart_core.run import METRICS, claim_folder, find_device, flat_settings

FIRST = " (BN pass)"
"""Behind a method's name: what its first pass alone says (Table 3b)."""
SHOWN = 6


@dataclass(frozen=True)
class Classes:
    """What a network says of one case; slices without two neighbours are background."""

    first: NDArray[np.uint8] | None
    """(Z, H, W) of the first pass; None where there is one pass."""
    final: NDArray[np.uint8]
    """(Z, H, W)."""


def segment(network: nn.Module, model: Model, case: Case, site: int | None = None, batch_size: int = 8) -> Classes:
    """Segment the slices 1 to Z - 2 of a case, and keep the largest component of each class.

    Args:
        network: of `build`.
        model: what it is.
        case: preprocessed.
        site: number of its site, for networks with parameters per site.
        batch_size: slices per forward pass.
    """
    device = next(network.parameters()).device
    depth = len(case.image)
    passes: list[list[NDArray[np.uint8]]] = [[] for _ in range(model.network.passes)]
    with evaluating(network), torch.inference_mode():
        for start in range(1, depth - 1, batch_size):
            middle = np.arange(start, min(start + batch_size, depth - 1))
            x = torch.from_numpy(case.image[middle[:, None] + np.array([-1, 0, 1])]).to(device)
            for found, logits in zip(passes, _logits(network, model, case, x, middle, site), strict=True):
                found.append(logits.argmax(1).to(torch.uint8).cpu().numpy())
    volumes = []
    for found in passes:
        classes = np.zeros((depth, *case.image.shape[1:]), np.uint8)
        classes[1:-1] = np.concatenate(found)
        volumes.append(keep_largest(classes, model.classes))
    return Classes(volumes[0] if len(volumes) > 1 else None, volumes[-1])


def _logits(
    network: nn.Module, model: Model, case: Case, x: Tensor, middle: NDArray[Any], site: int | None
) -> Sequence[Tensor]:
    if isinstance(network, SiteNetwork | MSNet):
        return (network(x, torch.full((len(x),), -1 if site is None else site, device=x.device)),)
    if model.network.passes == 1:
        return (network(x),)
    mask = None
    if model.network.mask_source == "truth":
        mask = one_hot(torch.from_numpy(case.truth[middle]).to(x.device).long(), model.classes).to(x.dtype)
    return two_pass(network, x, mask)


def keep_largest(classes: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """Of each class but the background, its largest component in 3-D."""
    kept = np.zeros_like(classes)
    for number in range(1, count):
        kept[largest_component(classes == number)] = number
    return kept


# --- The command ------------------------------------------------------------------------------------------------------


def predict(command: of.Predict) -> None:
    """Segment cases and write labels on the grids of their files, and on the grid that scores are taken on."""
    device = find_device(command.device)
    network, model = load_model(command.model, device)
    cases = dataclasses.replace(model.cases, missing_organs="allow", cache=command.cache)
    if command.datalist:
        cases = dataclasses.replace(cases, datalist=command.datalist, sites=())
    rows = _rows(command, cases, model)
    for row in rows:  # a broken last file must not waste the work on the others
        _site(network, row, command.as_site)
        case = load_case(row, cases, need_mask=model.network.mask_source == "truth")
        check_sides(model.network, case.image.shape[1:], where=row.image)
    base = cases.datalist[0] if cases.datalist[0].is_dir() else cases.datalist[0].parent
    block = _maps_block(command, model)
    out = command.output.out
    claim_folder(out, flat_settings(command), overwrite=command.output.overwrite)
    report = Report(f"Predictions: {model.name}", f"{len(rows)} cases", package=PACKAGE)
    table: list[dict[str, object]] = []
    shown: list[tuple[Case, Classes]] = []
    for row, name in zip(rows, unique_names(rows), strict=True):
        case = load_case(row, cases)
        # Not by its file name, which may be that of other cases, in this fold or another.
        subject = row.subject or relative(row.image, base)
        found = segment(network, model, case, _site(network, row, command.as_site), command.batch_size)
        for method, classes in ((model.name + FIRST, found.first), (model.name, found.final)):
            if classes is not None:
                stem = f"{name}_first" if method.endswith(FIRST) else name
                table.append(_write(out, case, subject, stem, classes, model, method))
        if len(shown) < SHOWN:
            shown.append((case, found))
    write_predictions(out, table)
    content = {
        "labels": {organ: number for number, organ in enumerate(model.organs, 1)},
        "cases": len(rows), "model": json.loads(model.as_text()),
    }  # fmt: skip
    write_atomic(out / METRICS, json.dumps(content, indent=2) + "\n")
    report.picture(
        figures.overlays([(case, found.final) for case, found in shown], model.organs),
        "The slice with the most labels of each case: labels where known (left), prediction (right)",
        "slices with coloured organs",
    )
    if block:
        _show_maps(report, network, model, shown[0][0], block, command.maps)
    report.section("Settings")
    report.settings(command)
    report.write(out / "report.html")
    say(f"labels: {out}   report: {out / 'report.html'}   next: {PACKAGE} evaluate --predictions {out} --out ...")


def _rows(command: of.Predict, cases: of.Cases, model: Model) -> list[Row]:
    if command.split == "all" or command.datalist:
        datalist = open_cases(cases)
        if command.split != "all" and not datalist.splits:
            raise InputError(
                "no case has a split", where=datalist.source, remedy="give --split all, or add a column split"
            )
        rows = [row for row in datalist if command.split in ("all", row.split)]
    else:
        datalist, training, test = open_divided(cases, model.fold)
        rows = test if command.split == "test" else [row for own in training.values() for row in own]
    rows = list(Datalist(tuple(rows), datalist.source).select(site=command.site)) if command.site and rows else rows
    if not rows:
        raise InputError(
            f"no case has split {command.split}",
            where=datalist.source,
            remedy="give another --split, or fill the column",
        )
    if command.split == "test" and (known := [row for row in rows if marks(row) & set(model.seen)]):
        raise InputError(
            f"the network was trained on {len(known)} of these {len(rows)} cases, such as {known[0].image.name}",
            where=datalist.source,
            remedy="give the datalist as it was for train, or --split all",
        )
    return rows


def _site(network: nn.Module, row: Row, as_site: str) -> int | None:
    if not isinstance(network, SiteNetwork | MSNet):
        if as_site:
            raise SettingError("--as-site is for dsbn and ms-net", remedy="leave it out")
        return None
    try:
        return site_number(network.sites, as_site or row.site)
    except InputError as error:
        raise InputError(error.problem, where=row.where("site"), remedy=error.remedy) from error


def _write(
    out: Path, case: Case, subject: str, stem: str, classes: NDArray[np.uint8], model: Model, method: str
) -> dict[str, object]:
    """Label files of one case, and its row of predictions.csv."""
    file = write_volume(out / f"{stem}_labels.nii.gz", case.to_file(classes), case.file)
    row: dict[str, object] = {
        "image": relative(case.row.image, out),
        "mask": "" if case.row.mask is None else relative(case.row.mask, out),
        "prediction": file.name,
        "subject": subject,
        "site": case.row.site,
        "source_site": "+".join(model.sites) or "training",
        "method": method,
        "blocks": " ".join(map(str, model.network.categorical)) if model.network.passes == 2 else "",
        "warmup_steps": model.warmup_steps,
    }
    if frame := case.row.labels.get("frame"):
        row["frame"] = frame
    if case.label is not None:
        z, y, x = case.spacing
        depth, rows, columns = classes.shape
        grid = np.broadcast_to(np.float32(0), (columns, rows, depth))
        like = Volume(grid, np.diag([x, -y if case.reversed_rows else y, z, 1.0]))
        predicted = write_volume(out / f"{stem}_scored.nii.gz", np.ascontiguousarray(classes.T), like)
        truth = write_volume(out / f"{stem}_truth.nii.gz", np.ascontiguousarray(case.label.T), like)
        row["preprocessed_prediction"], row["preprocessed_mask"] = predicted.name, truth.name
        row["preprocessed_spacing"] = f"{x:.9g} {y:.9g} {z:.9g}"
    return row


# --- Maps of gamma and beta (Fig. 6) ----------------------------------------------------------------------------------


def _maps_block(command: of.Predict, model: Model) -> int:
    """The block whose maps are shown; 0 for none."""
    if not command.maps:
        return 0
    if model.network.method != "catenorm":
        raise SettingError(f"{model.network.method} has no maps of gamma and beta", remedy="leave out --maps")
    block = command.maps_block or min(model.network.categorical)
    if block not in model.network.categorical:
        raise SettingError(
            f"block {block} is not categorical", remedy=f"give one of {' '.join(map(str, model.network.categorical))}"
        )
    return block


def modulation_maps(network: nn.Module, layer: CateNorm2d, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """gamma and beta (N, C, H, W) of one CN layer in the second pass over x (N, 3, H, W) with a mask (N, K, H, W)."""
    found: list[tuple[Tensor, Tensor]] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, Tensor], __: Tensor) -> None:
        found.append(layer.modulation(inputs[1], inputs[0].shape[-2:]))

    handle = layer.register_forward_hook(keep)
    try:
        with evaluating(network), torch.inference_mode():
            network(x, mask)
    finally:
        handle.remove()
    return found[0]


def first_layer(network: nn.Module, model: Model, block: int) -> CateNorm2d:
    """The first CN layer of a categorical block, or of a DeepLabV3+ stage."""
    name = f"layer{block}" if model.network.architecture == "deeplabv3plus" else NAMES[block - 1]
    return next(module for module in network.get_submodule(name).modules() if isinstance(module, CateNorm2d))


def _show_maps(report: Report, network: nn.Module, model: Model, case: Case, block: int, channels: int) -> None:
    z = figures.fullest(case.label) if case.label is not None else len(case.image) // 2
    z = min(max(z, 1), len(case.image) - 2)
    device = next(network.parameters()).device
    x = torch.from_numpy(np.array(case.image[z - 1 : z + 2])[None]).to(device)
    with evaluating(network), torch.inference_mode():
        mask = network(x).softmax(1)
    if model.network.mask_source == "truth":
        mask = one_hot(torch.from_numpy(case.truth[z : z + 1]).to(device).long(), model.classes).to(x.dtype)
    gamma, beta = modulation_maps(network, first_layer(network, model, block), x, mask)
    report.section("Scale and shift")
    report.picture(
        figures.maps(case, gamma[0].cpu().numpy(), beta[0].cpu().numpy(), z, channels),
        f"gamma (top) and beta (bottom) of the first CN layer of block {block} in the second pass, those {channels} channels whose"
        " gamma varies most, each on its own scale (after Fig. 6 of the paper)",
        "maps of gamma and beta",
    )
