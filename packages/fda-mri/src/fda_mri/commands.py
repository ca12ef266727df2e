"""What the commands do: read and check everything first, then claim the output folder, then work and write."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dart_core.checkpoint import load_weights, read_metadata, save_weights, write_atomic
from dart_core.data.datalist import Row, problems
from dart_core.errors import CheckpointError, DartError, InputError, OutputError, SettingError
from dart_core.nets import ResidualUNet2d
from dart_core.report import Report
from dart_core.run import METRICS, Run, claim_folder, find_device, flat_settings
from fda_mri import figures
from fda_mri import settings as of
from fda_mri.baselines import CycleGANTransform, predict_transformed, train_cyclegan
from fda_mri.donors import DonorBank, random_donors
from fda_mri.evaluation import score
from fda_mri.method import (
    fourier_transfer,
    multi_source_predict,
    predict_per_donor,
    predict_slices,
    select_beta,
    train_source,
)
from fda_mri.scans import Grid, Scan, load, open_datalist, select

WEIGHTS = "model.safetensors"
PREDICTIONS = "predictions.csv"
TUNING = "tuning.json"
NOTE = "Research software, not a medical device."


def say(line: str) -> None:
    """One line for the person at the terminal."""
    print(line, file=sys.stderr, flush=True)


# --- check-data ------------------------------------------------------------------------------------------------------


def check_data(command: of.CheckData) -> int:
    """Print every problem of a datalist; 0 if there is none, else 2."""
    datalist = open_datalist(command.scans.datalist)
    datalist = datalist.select(site=command.scans.site) if command.scans.site else datalist
    found = [str(problem) for problem in problems(datalist, require_mask=command.require_mask)]
    if not found:
        found = _grid_problems(list(datalist), command.scans)
    for line in found:
        print(line)
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
            [scan.mask for scan in training],
            command.training,
            ([scan.volume for scan in validation], [scan.mask for scan in validation]),
        )
        if not run.is_main:
            return
        metadata = {"network": "ResidualUNet2d", "width": str(command.training.width), "site": _site(training)}
        save_weights(run.out / WEIGHTS, network, metadata)
        scores = []
        for scan in validation:
            probabilities = predict_slices(network, torch.from_numpy(scan.volume)).sigmoid().numpy()
            scores.append(score(probabilities > 0.5, scan.mask, scan.grid.spacing))
        means = {name: float(np.mean([row[name] for row in scores])) for name in ("surface_dice", "dice")}
        run.finish(
            {"validation_scans": len(validation), **{f"validation_{name}": value for name, value in means.items()}}
        )
        report = Report("Source network", f"Site {_site(training)}, {len(training)} training scans", package="fda-mri")
        _training_curves(report, run.out)
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


def _training_curves(report: Report, out: Path) -> None:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    series = {}
    for key, name in (("loss", "training batch"), ("validation_loss", "validation scans")):
        points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
        if points:
            series[name] = tuple(np.array(points).T)
    if series:
        report.curves(series, "step", "0.4 BCE + 0.6 Dice loss", "Loss during training")


def _overview(scan: Scan, network: nn.Module) -> object:
    z = scan.volume.shape[-1] // 2
    image = scan.volume[..., z]
    logits = predict_slices(network, torch.from_numpy(scan.volume[..., z : z + 1]))
    prediction = logits[..., 0].numpy() > 0
    panels = [
        figures.Panel("scan", image),
        figures.Panel("mask (green), prediction (red)", image, scan.mask[..., z], prediction),
    ]
    return figures.comparison([(scan.name, panels)])


def _train_cyclegan(command: of.Train) -> None:
    if not command.target_site or command.target_site == command.scans.site:
        raise SettingError("--method cyclegan needs --target-site", remedy="name the site to translate from")
    target_scans = of.Scans(
        command.scans.datalist, command.target_site, command.scans.keep_slices, command.scans.resample
    )
    source_rows, target_rows = select(command.scans, "train"), select(target_scans, "train")
    source = list(load(source_rows, command.scans))
    target = list(load(target_rows, target_scans, source[0].grid))
    with Run(command.run, command) as run:
        train_cyclegan(run, [scan.volume for scan in source], [scan.volume for scan in target], command.gan)
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
        panels = [figures.Panel(command.target_site, image), figures.Panel(f"as {command.scans.site}", translated)]
        report.picture(
            figures.comparison([(target[0].name, panels)]), "Middle slice, translated", "slice before and after"
        )
        report.section("Settings")
        report.settings(command)
        report.write(run.out / "report.html")
    say(f"generator: {run.out}   report: {run.out / 'report.html'}")


# --- bank ------------------------------------------------------------------------------------------------------------


def bank(command: of.Bank) -> None:
    """Collect the source training scans of a site into one file."""
    _check_file(command.out, ".safetensors", command.overwrite)
    scans = list(load(select(command.scans, "train"), command.scans))
    grid = scans[0].grid
    donors = DonorBank.build([torch.from_numpy(scan.volume) for scan in scans], _names(scans))
    donors.metadata = {
        "site": _site(scans),
        "grid": json.dumps({"shape": grid.shape, "affine": grid.affine.tolist()}),
        "keep_slices": str(scans[0].volume.shape[-1]),
    }
    donors.save(command.out)
    say(
        f"donor bank: {command.out} ({len(donors)} scans of site {_site(scans)}, {command.out.stat().st_size / 1e6:.0f} MB)"
    )


def _check_file(path: Path, ending: str, overwrite: bool) -> None:
    if path.suffix != ending:
        raise OutputError(f"the file name must end in {ending}", where=path, remedy="rename --out")
    if path.exists() and not overwrite:
        raise OutputError("is there already", where=path, remedy="--overwrite replaces it")
    if not path.resolve().parent.is_dir():
        raise OutputError("the folder is not there", where=path, remedy=f"make {path.parent} first")


def _open_bank(path: Path, transfer: of.Transfer, scans: of.Scans) -> tuple[DonorBank, Grid, of.Scans]:
    """A bank, its grid, and the scan settings with its number of slices."""
    donors = DonorBank.load(path)
    if len(donors) == 1 and transfer.n > 1:
        raise InputError(
            f"holds one donor only, and --n is {transfer.n}",
            where=path,
            remedy="collect more source scans, or give --n 1 to go on with one",
        )
    if len(donors) < transfer.n and transfer.mode != "2.5d":
        say(f"warning: {path} holds {len(donors)} scans; all of them are used instead of --n {transfer.n}")
    keep = scans.keep_slices if scans.keep_slices is not None else int(donors.metadata["keep_slices"])
    settings = of.Scans(scans.datalist, scans.site, keep, scans.resample)
    return donors, bank_grid(donors), settings


def bank_grid(donors: DonorBank) -> Grid:
    """The voxel grid of a bank that `bank` wrote."""
    stored = json.loads(donors.metadata["grid"])
    return Grid(tuple(stored["shape"]), np.array(stored["affine"]))


# --- adapt -----------------------------------------------------------------------------------------------------------


def adapt(command: of.Adapt) -> None:
    """Write transferred scans."""
    transfer = command.transfer
    rows = select(command.scans, command.role)
    if transfer.mode == "none":
        raise SettingError("--mode none changes nothing", remedy="choose a donor search, or cyclegan")
    donors, grid, scans, generator = _adaptation(command.scans, transfer, command.bank, command.generator)
    _check_all(rows, scans, grid)
    out = command.output.out
    claim_folder(out, flat_settings(command), overwrite=command.output.overwrite)
    report = Report("Adapted scans", f"{len(rows)} scans, {_describe(transfer)}", package="fda-mri")
    table = []
    for scan, name in _loaded(rows, scans, grid):
        target = torch.from_numpy(scan.volume)
        if generator is not None:
            scan.write(out / f"{name}_cyclegan.nii.gz", generator(target, ()).numpy())
            continue
        chosen, offsets, scores = choose_donors(donors, target, transfer)
        styles = donors.gather(chosen, offsets)
        for j, style in enumerate(styles):
            adapted = _transferred(target, style, transfer)
            scan.write(out / f"{name}_donor{j + 1}.nii.gz", adapted)
        for z in range(len(chosen)):
            for j in range(chosen.shape[1]):
                donor = donors.names[chosen[z, j]] if chosen[z, j] >= 0 else ""
                table.append((name, z, j + 1, donor, int(offsets[z, j]), float(scores[z, j])))
        if len(table) == chosen.numel():  # the first scan
            z = target.shape[-1] // 2
            report.picture(
                figures.scheme(styles[0, ..., z].numpy(), scan.volume[..., z], transfer.beta),
                f"Middle slice of {name} with its best donor, beta {transfer.beta:g}",
                "spectra of source and target slice, the exchanged window, and the result",
            )
    if table:
        _write_csv(out / "donors.csv", ("scan", "slice", "rank", "donor", "offset", "sr_sim"), table)
    write_atomic(out / METRICS, json.dumps({"scans": len(rows)}) + "\n")
    report.section("Settings")
    report.settings(command)
    report.write(out / "report.html")
    say(f"adapted scans: {out}   report: {out / 'report.html'}")


def _transferred(target: Tensor, style: Tensor, transfer: of.Transfer) -> np.ndarray:
    """One transferred volume; slices without this donor stay as they are."""
    slices, styles = target.movedim(-1, 0), style.movedim(-1, 0)
    present = torch.isfinite(styles).flatten(1).all(1)
    result = slices.clone()
    result[present] = fourier_transfer(slices[present], styles[present], transfer.beta, transfer.output)
    return result.movedim(0, -1).numpy()


def choose_donors(donors: DonorBank, target: Tensor, transfer: of.Transfer) -> tuple[Tensor, Tensor, Tensor]:
    """Donors (Z, n) of every slice by the search that the settings name: positions, offsets, scores."""
    if transfer.mode == "random":
        chosen = random_donors(len(donors), target.shape[-1], transfer.n, transfer.donor_seed)
        return chosen, torch.zeros_like(chosen), torch.full(chosen.shape, torch.nan)
    assert transfer.mode in ("3d", "2d", "2.5d")
    return donors.rank(target, transfer.mode, transfer.n, transfer.neighbours, transfer.crop or None)


# --- predict ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Adaptation:
    """How a target scan is segmented."""

    network: nn.Module
    transfer: of.Transfer
    donors: DonorBank | None
    generator: CycleGANTransform | None
    batch_size: int

    def probabilities(self, target: Tensor) -> Tensor:
        """(H, W, Z) normalised scan -> foreground probabilities."""
        transfer = self.transfer
        device = next(self.network.parameters()).device
        if transfer.mode == "none":
            return predict_slices(self.network, target, self.batch_size).sigmoid()
        if self.generator is not None:
            return predict_transformed(self.network, target, self.generator, (), self.batch_size)
        assert self.donors is not None
        chosen, offsets, _ = choose_donors(self.donors, target, transfer)
        styles = self.donors.gather(chosen, offsets).to(device)
        options = {"output": transfer.output, "average": transfer.average, "batch_size": self.batch_size}
        return multi_source_predict(self.network, target.to(device), styles, transfer.beta, **options).cpu()


def predict(command: of.Predict) -> None:
    """Segment target scans."""
    transfer = command.transfer
    rows = select(command.scans, command.role)
    device = find_device(command.device)
    network, metadata = load_network(command.model, device)
    donors, grid, scans, generator = _adaptation(command.scans, transfer, command.bank, command.generator)
    _check_all(rows, scans, grid)
    out = command.output.out
    claim_folder(out, flat_settings(command), overwrite=command.output.overwrite)
    adaptation = Adaptation(network, transfer, donors, generator, command.batch_size)
    table, panels = [], []
    for scan, name in _loaded(rows, scans, grid):
        probabilities = adaptation.probabilities(torch.from_numpy(scan.volume)).numpy()
        scan.write(out / f"{name}_mask.nii.gz", probabilities, threshold=0.5)
        if command.probabilities:
            scan.write(out / f"{name}_probability.nii.gz", probabilities)
        row = scan.row
        truth = "" if row.mask is None else os.path.relpath(row.mask.resolve(), out.resolve())
        image = os.path.relpath(row.image.resolve(), out.resolve())
        table.append(
            (
                image,
                truth,
                f"{name}_mask.nii.gz",
                row.subject or name,
                row.site,
                metadata.get("site", ""),
                transfer.mode,
                transfer.n,
                transfer.beta,
            )
        )
        if len(panels) < 6:
            z = scan.volume.shape[-1] // 2
            truth_slice = None if scan.mask is None else scan.mask[..., z]
            panels.append(figures.Panel(name, scan.volume[..., z], truth_slice, probabilities[..., z] > 0.5))
    columns = ("image", "mask", "prediction", "subject", "site", "source_site", "mode", "n", "beta")
    _write_csv(out / PREDICTIONS, columns, table)
    write_atomic(out / METRICS, json.dumps({"scans": len(rows)}) + "\n")
    report = Report("Predictions", f"{len(rows)} scans, {_describe(transfer)}", package="fda-mri")
    report.picture(
        figures.comparison([("", panels)]), "Middle slices: prediction red, mask green", "slices with outlines"
    )
    report.section("Settings")
    report.settings(command)
    report.write(out / "report.html")
    say(f"masks: {out}   report: {out / 'report.html'}   next: fda-mri evaluate --predictions {out} --out ...")


def load_network(model: Path, device: torch.device) -> tuple[nn.Module, dict[str, str]]:
    """The network of a run folder or weight file, and what its file says of it.

    Raises:
        CheckpointError: no such file, a damaged one, or weights of another network.
    """
    path = model / WEIGHTS if model.is_dir() else model
    if model.is_dir() and not path.is_file():
        raise CheckpointError(f"holds no {WEIGHTS}", where=model, remedy="finish the training run (train --resume)")
    metadata = read_metadata(path)
    if metadata.get("network") != "ResidualUNet2d" or not metadata.get("width", "").isdigit():
        raise CheckpointError("is not a network of `fda-mri train`", where=path, remedy="give its run folder")
    network = ResidualUNet2d(width=int(metadata["width"]))
    load_weights(path, network)
    return network.eval().to(device), metadata


def _adaptation(
    scans: of.Scans, transfer: of.Transfer, bank: Path | None, generator: Path | None
) -> tuple[DonorBank | None, Grid | None, of.Scans, CycleGANTransform | None]:
    """What a mode needs: a bank with its grid, or a generator, or nothing."""
    if transfer.mode == "cyclegan":
        if generator is None:
            raise SettingError(
                "--mode cyclegan needs --generator", remedy="give the run folder of train --method cyclegan"
            )
        return None, None, scans, CycleGANTransform.load(generator)
    if transfer.mode == "none":
        return None, None, scans, None
    if bank is None:
        raise SettingError(f"--mode {transfer.mode} needs --bank", remedy="give the file that `fda-mri bank` wrote")
    donors, grid, scans = _open_bank(bank, transfer, scans)
    return donors, grid, scans, None


def _check_all(rows: Sequence[Row], scans: of.Scans, grid: Grid | None) -> None:
    """Read every scan once before anything is written: a broken last file must not waste the work on the others."""
    for row in rows:
        for _ in load([row], scans, grid):
            pass


def _loaded(rows: Sequence[Row], scans: of.Scans, grid: Grid | None) -> list[tuple[Scan, str]]:
    """Scans one by one with a name that no other has."""
    names = unique_names(rows)
    for row, name in zip(rows, names, strict=True):
        for scan in load([row], scans, grid):
            yield scan, name


def unique_names(rows: Sequence[Row]) -> list[str]:
    """A file stem for each scan; scans of the same file name get their subject or a number in front."""
    stems = [row.image.name.removesuffix(".gz").removesuffix(".nii") for row in rows]
    if len(set(stems)) < len(stems):
        stems = [
            f"{row.subject or index:0>3}_{stem}" for index, (row, stem) in enumerate(zip(rows, stems, strict=True))
        ]
    if len(set(stems)) < len(stems):
        stems = [f"{index:03d}_{stem}" for index, stem in enumerate(stems)]
    return stems


# --- tune-beta -------------------------------------------------------------------------------------------------------


def tune_beta(command: of.TuneBeta) -> None:
    """Mean surface Dice of the target validation scans for every beta, and the beta that each policy chooses."""
    rows = select(command.scans, "val")
    device = find_device(command.device)
    network, metadata = load_network(command.model, device)
    donors, grid, scans = _open_bank(command.bank, command.transfer, command.scans)
    others = [_read_tuning(path, command) for path in command.curves_of]
    _check_all(rows, scans, grid)
    out = command.output.out
    claim_folder(out, flat_settings(command), overwrite=command.output.overwrite)
    curves, counts = _tuning_scores(command, rows, scans, grid, network, donors)
    pair = f"{metadata.get('site') or 'source'} -> {command.scans.site or 'target'}"
    chosen = {}
    for mode, values in curves.items():
        table = np.array([values, *(other["curves"][mode] for other in others)])
        chosen[mode] = {
            "per_pair": float(np.asarray(select_beta(table[:1], command.betas, "per_pair"))[0]),
            "averaged": float(select_beta(table, command.betas, "averaged")),
        }
    result = {
        "pair": pair,
        "scans": len(rows),
        "tolerance": command.tolerance,
        "surface": command.surface,
        "betas": list(command.betas),
        "curves": curves,
        "chosen": chosen,
        "averaged_over_pairs": [pair, *(other["pair"] for other in others)],
        "counts": counts,
    }
    write_atomic(out / TUNING, json.dumps(result, indent=2) + "\n")
    write_atomic(out / METRICS, json.dumps({"chosen": chosen}, indent=2) + "\n")
    report = Report("Choice of beta", f"{pair}, {len(rows)} validation scans", package="fda-mri")
    tuning_section(report, result)
    report.section("Settings")
    report.settings(command)
    report.write(out / "report.html")
    for mode, values in chosen.items():
        say(
            f"{mode}: beta {values['per_pair']:g} for this pair, {values['averaged']:g} averaged over {1 + len(others)} pairs"
        )
    say(f"report: {out / 'report.html'}")


def tuning_section(report: Report, result: dict) -> None:
    """Curves of surface Dice against beta and against n, with the chosen values marked."""
    betas = result["betas"]
    marks = {}
    for mode, values in result["chosen"].items():
        beta = values["per_pair"]
        marks[f"chosen, {mode}"] = (beta, result["curves"][mode][betas.index(beta)])
    report.curves(
        {mode: (betas, values) for mode, values in result["curves"].items()},
        "beta",
        f"mean surface Dice at {result['tolerance']:g} mm",
        f"{result['pair']}: surface Dice of {result['scans']} validation scans against beta. Where the maximum is at 0 (no "
        "swap) the next value is taken.",
        marks,
    )
    if result["counts"]:
        series = {f"beta {beta}": tuple(zip(*points, strict=True)) for beta, points in result["counts"].items()}
        ns = [n for n, _ in next(iter(result["counts"].values()))]
        series["mean"] = (ns, np.mean([[value for _, value in points] for points in result["counts"].values()], axis=0))
        report.curves(
            series, "n, donors per slice", "mean surface Dice", f"{result['pair']}: surface Dice against n, 3-D search"
        )


def _tuning_scores(
    command: of.TuneBeta, rows: Sequence[Row], scans: of.Scans, grid: Grid, network: nn.Module, donors: DonorBank
) -> tuple[dict[str, list[float]], dict[str, list[tuple[int, float]]]]:
    """Mean surface Dice by mode and beta, and by beta and n."""
    device = next(network.parameters()).device
    by_mode: dict[str, list[list[float]]] = {mode: [] for mode in command.modes}
    by_count: dict[float, list[list[float]]] = {
        beta: [] for beta in command.betas if command.counts and 0 < beta <= 0.02
    }
    for scan in load(rows, scans, grid, need_mask=True):
        target = torch.from_numpy(scan.volume)

        def surface(probabilities: Tensor, scan: Scan = scan) -> float:
            mask = probabilities.cpu().numpy() > 0.5
            return score(mask, scan.mask, scan.grid.spacing, command.tolerance, command.surface)["surface_dice"]

        for mode in command.modes:
            transfer = of.Transfer(**{**vars(command.transfer), "mode": mode})
            chosen, offsets, _ = choose_donors(donors, target, transfer)
            styles = donors.gather(chosen, offsets).to(device)
            options = {"output": transfer.output, "average": transfer.average, "batch_size": command.batch_size}
            by_mode[mode].append(
                [
                    surface(multi_source_predict(network, target.to(device), styles, beta, **options))
                    for beta in command.betas
                ]
            )
        if command.counts:
            chosen, offsets, _ = donors.rank(target, "3d", max(command.counts), crop=command.transfer.crop or None)
            styles = donors.gather(chosen, offsets).to(device)
            for beta, table in by_count.items():
                # Donors are ranked once: the mean over n donors is a running mean over ranks.
                total, values = torch.zeros_like(target, device=device), {}
                terms = predict_per_donor(
                    network, target.to(device), styles, beta, command.transfer.output, command.batch_size
                )
                for rank, (logits, _) in enumerate(terms, 1):
                    total += logits.sigmoid()
                    values[rank] = surface(total / rank) if rank in command.counts or rank == len(styles) else np.nan
                table.append([values[min(n, len(styles))] for n in command.counts])
    curves = {mode: np.nanmean(table, axis=0).tolist() for mode, table in by_mode.items()}
    counts = {
        f"{beta:g}": list(zip(command.counts, np.nanmean(table, axis=0).tolist(), strict=True))
        for beta, table in by_count.items()
    }
    return curves, counts


def _read_tuning(path: Path, command: of.TuneBeta) -> dict:
    file = path / TUNING
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot be read ({error})", where=file, remedy="give the folder of a tune-beta run"
        ) from error
    if result["betas"] != list(command.betas) or (missing := set(command.modes) - set(result["curves"])):
        what = (
            "another grid of betas" if result["betas"] != list(command.betas) else f"no curve for {', '.join(missing)}"
        )
        raise InputError(f"has {what}", where=file, remedy="run it again with the same --betas and --modes")
    return result


# --- export ----------------------------------------------------------------------------------------------------------


def export(command: of.Export) -> None:
    """Write the network as ONNX and compare it with PyTorch at two sizes."""
    import onnxruntime

    _check_file(command.out, ".onnx", command.overwrite)
    network, _ = load_network(command.model, torch.device("cpu"))
    sides = {2: 8 * torch.export.Dim("rows", min=2), 3: 8 * torch.export.Dim("columns", min=2)}
    shapes = ({0: torch.export.Dim("batch"), **sides},)
    temporary = command.out.with_name(f".{command.out.name}.tmp")
    try:
        program = torch.onnx.export(
            network, (torch.zeros(2, 1, 64, 64),), dynamo=True, dynamic_shapes=shapes, input_names=["image"],
            output_names=["logits"], verbose=False, external_data=False,
        )  # fmt: skip
        program.save(temporary)
        session = onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])
        worst = 0.0
        for shape in ((1, 1, 64, 64), (3, 1, 184, 224)):
            x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
            with torch.no_grad():
                expected = network(x)
            (found,) = session.run(None, {"image": x.numpy()})
            worst = max(worst, float((expected - torch.from_numpy(found)).abs().max() / expected.abs().max()))
        if worst > 1e-4:
            raise OutputError(f"ONNX and PyTorch differ by {worst:.1e} of the largest logit", where=command.out)
        temporary.replace(command.out)
    finally:
        temporary.unlink(missing_ok=True)
    say(f"{command.out}: written; largest difference to PyTorch {worst:.1e} of the largest logit at two sizes")


# --- shared ----------------------------------------------------------------------------------------------------------


def _site(scans: Sequence[Scan]) -> str:
    return scans[0].row.site


def _names(scans: Sequence[Scan]) -> list[str]:
    return unique_names([scan.row for scan in scans])


def _describe(transfer: of.Transfer) -> str:
    if transfer.mode in ("none", "cyclegan"):
        return {"none": "no adaptation", "cyclegan": "CycleGAN stand-in"}[transfer.mode]
    search = "random donors" if transfer.mode == "random" else f"{transfer.mode.upper()} donors"
    return f"{search}, n {transfer.n}, beta {transfer.beta:g}"


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    import io

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_atomic(path, text.getvalue())
