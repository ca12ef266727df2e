"""The commands `check-data`, `train`, `bank` and `export`: read and check everything, then claim the output, then work."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from dart_core.checkpoint import WEIGHTS, save_weights
from dart_core.cli import say
from dart_core.data.datalist import Row, problems
from dart_core.data.scans import open_datalist, report_missing, unique_names
from dart_core.data.slices import predict_slices
from dart_core.errors import DartError, InputError, SettingError
from dart_core.evaluation import score
from dart_core.export import check_file, export_onnx
from dart_core.figures import Panel, comparison, training_curves
from dart_core.nets import ResidualUNet2d
from dart_core.report import Report
from dart_core.run import Run
from fda_mri import settings as of
from fda_mri.adaptation import load_network
from fda_mri.baselines import CycleGANTransform, train_cyclegan
from fda_mri.donors import DonorBank
from fda_mri.method import train_source
from fda_mri.scans import Scan, load, select

# --- check-data ------------------------------------------------------------------------------------------------------


def check_data(command: of.CheckData) -> int:
    """Print every problem of a datalist; 0 if there is none, else 2."""
    datalist = open_datalist(command.scans.datalist, published_splits=False)
    datalist = datalist.select(site=command.scans.site) if command.scans.site else datalist
    found = [str(problem) for problem in problems(datalist, require_mask=command.require_mask)]
    if not found:
        found = _grid_problems(list(datalist), command.scans)
    for line in found:
        print(line)
    for line in report_missing(command.scans.datalist):
        print(f"note: {line}")
    sites = {site: sum(row.site == site for row in datalist) for site in datalist.sites}
    counts = ", ".join(f"{site} {count}" for site, count in sites.items()) or "no site column"
    print(f"{len(datalist)} scans ({counts}): {len(found) or 'no'} problem{'s' * (len(found) != 1)}")
    return 2 if found else 0


def _grid_problems(rows: Sequence[Row], scans: of.Scans) -> list[str]:
    """Scans that do not lie on the first one's grid, or that have an empty slice between others."""
    lines, grid = [], None
    for row in rows:
        try:
            (scan,) = load([row], scans, grid)
            grid = grid or scan.grid
        except DartError as error:
            lines.append(f"{row.where('image')}: {error}")
    return lines


# --- train -----------------------------------------------------------------------------------------------------------


def train(command: of.Train) -> None:
    """Train the source network or the CycleGAN baseline."""
    if command.method == "cyclegan":
        _train_cyclegan(command)
        return
    if command.target_site:
        raise SettingError("--target-site is for --method cyclegan", remedy="leave it out")
    # Rows of both roles are looked up before any file is opened, so that a wrong split fails at once.
    rows, validation_rows = select(command.scans, "train"), select(command.scans, "source_val")
    training = list(load(rows, command.scans, need_mask=True))
    validation = list(load(validation_rows, command.scans, training[0].grid, need_mask=True))
    _check_crop(training, command)
    with Run(command.run, command) as run:
        network = ResidualUNet2d(width=command.training.width)
        train_source(
            run,
            network,
            [scan.volume for scan in training],
            [scan.truth for scan in training],
            command.training,
            ([scan.volume for scan in validation], [scan.truth for scan in validation]),
        )
        if not run.is_main:
            return
        metadata = {"network": "ResidualUNet2d", "width": str(command.training.width)}
        save_weights(run.out / WEIGHTS, network, metadata | _origin(training, command.scans))
        scores = []
        for scan in validation:
            probabilities = predict_slices(network, torch.from_numpy(scan.volume)).sigmoid().numpy()
            scores.append(score(probabilities > 0.5, scan.truth, scan.grid.spacing))
        means = {name: float(np.mean([row[name] for row in scores])) for name in ("surface_dice", "dice")}
        run.finish(
            {"validation_scans": len(validation), **{f"validation_{name}": value for name, value in means.items()}}
        )
        report = Report("Source network", f"Site {_site(training)}, {len(training)} training scans", package="fda-mri")
        training_curves(
            report,
            run.out,
            {"loss": "training batch", "validation_loss": "validation scans"},
            "0.4 BCE + 0.6 Dice loss",
            "Loss during training",
        )
        report.table(
            ("validation scan", "surface Dice (1 mm)", "Dice"),
            [(scan.name, row["surface_dice"], row["dice"]) for scan, row in zip(validation, scores, strict=True)],
            "Validation scans of the source site",
        )
        report.picture(_overview(validation[0], network), "Middle slice of a validation scan", "slice with outlines")
        report.section("Settings")
        report.settings(command)
        report.write(run.out / "report.html")
    say(f"network: {run.out / WEIGHTS}   report: {run.out / 'report.html'}")


def _check_crop(scans: Sequence[Scan], command: of.Train) -> None:
    size = command.training.crop_size
    for scan in scans:
        h, w, _ = scan.volume.shape
        if min(h, w) < size and not command.training.pad_small:
            raise InputError(
                f"slices of {h} x {w} pixels are smaller than the crop of {size}",
                where=scan.row.image,
                remedy=f"give --crop-size {min(h, w) // 8 * 8}, or --pad-small to pad them with their minimum",
            )


def _overview(scan: Scan, network: nn.Module) -> Figure:
    z = scan.volume.shape[-1] // 2
    image = scan.volume[..., z]
    logits = predict_slices(network, torch.from_numpy(scan.volume[..., z : z + 1]))
    prediction = logits[..., 0].numpy() > 0
    panels = [
        Panel("scan", image),
        Panel("mask (green), prediction (red)", image, scan.truth[..., z], prediction),
    ]
    return comparison([(scan.name, panels)])


def _train_cyclegan(command: of.Train) -> None:
    if not command.target_site or command.target_site == command.scans.site:
        raise SettingError("--method cyclegan needs --target-site", remedy="name the site to translate from")
    target_scans = dataclasses.replace(command.scans, site=command.target_site)
    source_rows, target_rows = select(command.scans, "train"), select(target_scans, "target_train")
    source = list(load(source_rows, command.scans))
    target = list(load(target_rows, target_scans, source[0].grid))
    with Run(command.run, command) as run:
        volumes = [scan.volume for scan in source], [scan.volume for scan in target]
        train_cyclegan(run, *volumes, command.gan, {"grid": source[0].grid.to_json()})
        if not run.is_main:
            return
        run.finish({"source_scans": len(source), "target_scans": len(target), "steps": command.gan.steps})
        report = Report("CycleGAN stand-in", f"From {command.target_site} to {command.scans.site}", package="fda-mri")
        report.text(
            "A standard CycleGAN (ResNet generators, 70 x 70 PatchGAN, least squares). The paper's baseline was built on "
            "StyleGAN2 and trained for days on a GPU; this one stands in for it and its numbers are not the paper's."
        )
        transform = CycleGANTransform.load(run.out)
        image = target[0].volume[..., target[0].volume.shape[-1] // 2]
        translated = transform(torch.from_numpy(image[..., None]), ())[..., 0].numpy()
        panels = [Panel(command.target_site, image), Panel(f"as {command.scans.site}", translated)]
        report.picture(comparison([(target[0].name, panels)]), "Middle slice, translated", "slice before and after")
        report.section("Settings")
        report.settings(command)
        report.write(run.out / "report.html")
    say(f"generator: {run.out}   report: {run.out / 'report.html'}")


# --- bank ------------------------------------------------------------------------------------------------------------


def bank(command: of.Bank) -> None:
    """Collect the source training scans of a site into one file."""
    file = command.file
    if file == command.out or file.exists():
        check_file(file, ".safetensors", command.overwrite)
    scans = list(load(select(command.scans, "train"), command.scans))
    donors = DonorBank.build(
        [torch.from_numpy(scan.volume) for scan in scans], unique_names([scan.row for scan in scans])
    )
    donors.metadata = {**_origin(scans, command.scans), "keep_slices": str(scans[0].volume.shape[-1])}
    file.parent.mkdir(parents=True, exist_ok=True)
    donors.save(file)
    say(f"donor bank: {file} ({len(donors)} scans of site {_site(scans)}, {file.stat().st_size / 1e6:.0f} MB)")


# --- export ----------------------------------------------------------------------------------------------------------


def export(command: of.Export) -> None:
    """Write the network as ONNX and compare it with PyTorch at two sizes."""
    check_file(command.out, ".onnx", command.overwrite)
    network, _ = load_network(command.model, torch.device("cpu"))
    sides = {2: 8 * torch.export.Dim("rows", min=2), 3: 8 * torch.export.Dim("columns", min=2)}
    worst = export_onnx(network, command.out, [(1, 1, 64, 64), (3, 1, 184, 224)], sides=sides)
    say(f"{command.out}: written; largest difference to PyTorch {worst:.1e} of the largest logit at two sizes")


# --- shared ----------------------------------------------------------------------------------------------------------


def _site(scans: Sequence[Scan]) -> str:
    return scans[0].row.site


def _origin(training: Sequence[Scan], scans: of.Scans) -> dict[str, str]:
    """What weights and bank say of the scans they come from: site, fold (empty: none), grid."""
    fold = "" if scans.fold is None else str(scans.fold)
    return {"site": _site(training), "fold": fold, "grid": training[0].grid.to_json()}
