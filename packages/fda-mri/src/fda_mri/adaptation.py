"""The commands `adapt` and `predict`: read and check everything, then claim the output folder, then work and write."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dart_core.checkpoint import load_weights, read_metadata, weights_file
from dart_core.cli import say
from dart_core.data.datalist import Row
from dart_core.data.scans import unique_names
from dart_core.data.slices import predict_slices
from dart_core.errors import CheckpointError, InputError, SettingError
from dart_core.evaluation import PREDICTIONS, relative
from dart_core.figures import Panel, comparison
from dart_core.files import write_atomic, write_csv
from dart_core.nets import ResidualUNet2d
from dart_core.report import Report
from dart_core.run import METRICS, claim_folder, find_device, flat_settings
from fda_mri import figures
from fda_mri import settings as of
from fda_mri.baselines import CycleGANTransform, predict_transformed
from fda_mri.donors import DonorBank, random_donors
from fda_mri.evaluation import COLUMNS, SETTINGS
from fda_mri.fourier import fourier_transfer
from fda_mri.method import multi_source_predict, select_beta
from fda_mri.scans import Grid, Scan, load, select, usual_slices

TUNING = "tuning.json"


# --- adapt -----------------------------------------------------------------------------------------------------------


def adapt(command: of.Adapt) -> None:
    """Write transferred scans."""
    transfer = command.transfer
    rows = select(command.scans, command.role)
    if transfer.mode == "none":
        raise SettingError("--mode none changes nothing", remedy="choose a donor search, or cyclegan")
    donors, grid, scans, generator = _adaptation(command.scans, transfer, command.bank, command.generator)
    check_all(rows, scans, grid)
    check_roles(rows, scans, command.role, {command.bank: donors.metadata} if command.bank and donors else {})
    out = command.output.out
    claim_folder(out, flat_settings(command), overwrite=command.output.overwrite)
    report = Report("Adapted scans", f"{len(rows)} scans, {_describe(transfer)}", package="fda-mri")
    table: list[tuple[object, ...]] = []
    for scan, name in _loaded(rows, scans, grid):
        target = torch.from_numpy(scan.volume)
        if generator is not None:
            scan.write(out / f"{name}_cyclegan.nii.gz", generator(target, ()).numpy())
            continue
        assert donors is not None  # `_adaptation` gave a bank or a generator
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
        write_csv(out / "donors.csv", ("scan", "slice", "rank", "donor", "offset", "sr_sim"), table)
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
        options: dict[str, Any] = {
            "output": transfer.output,
            "average": transfer.average,
            "batch_size": self.batch_size,
        }
        return multi_source_predict(self.network, target.to(device), styles, transfer.beta, **options).cpu()


def predict(command: of.Predict) -> None:
    """Segment target scans."""
    transfer = tuned(command.transfer, command.tuned)
    command = dataclasses.replace(command, transfer=transfer)  # config.yaml and the report name the beta that was used
    rows = select(command.scans, command.role)
    device = find_device(command.device)
    network, metadata = load_network(command.model, device)
    donors, grid, scans, generator = _adaptation(
        command.scans, transfer, command.bank, command.generator, device, metadata
    )
    if donors is not None:
        transfer = dataclasses.replace(transfer, n=_donors_used(donors, transfer, transfer.mode))
    check_all(rows, scans, grid)
    trained = {command.model: metadata} | ({command.bank: donors.metadata} if command.bank and donors else {})
    check_roles(rows, scans, command.role, trained)
    out = command.output.out
    claim_folder(out, flat_settings(command), overwrite=command.output.overwrite)
    adaptation = Adaptation(network, transfer, donors, generator, command.batch_size)
    settings = vars(transfer) | {"generator": _folder(command.generator) if generator and command.generator else ""}
    table: list[tuple[object, ...]] = []
    panels: list[Panel] = []
    cut: list[str] = []
    for scan, name in _loaded(rows, scans, grid):
        probabilities = adaptation.probabilities(torch.from_numpy(scan.volume)).numpy()
        scan.write(out / f"{name}_mask.nii.gz", probabilities, threshold=0.5)
        if command.probabilities:
            scan.write(out / f"{name}_probability.nii.gz", probabilities)
        row, kept = scan.row, scan.volume.shape[-1]
        usual = usual_slices(scan.grid.shape) or scan.grid.shape[-1]
        settings["keep_slices"] = "" if kept == usual else kept
        cut += [name] if scan.mask_above else []
        table.append(
            (
                relative(row.image, out),
                "" if row.mask is None else relative(row.mask, out),
                f"{name}_mask.nii.gz",
                row.subject or name,
                row.site,
                metadata.get("site", ""),
                transfer.mode,
                transfer.n,
                transfer.beta,
                *(settings[name] for name in SETTINGS),
            )
        )
        if len(panels) < 6:
            z = scan.volume.shape[-1] // 2
            truth_slice = None if scan.mask is None else scan.mask[..., z]
            panels.append(Panel(name, scan.volume[..., z], truth_slice, probabilities[..., z] > 0.5))
    write_csv(out / PREDICTIONS, (*COLUMNS, *SETTINGS), table)
    if cut:
        say(
            f"warning: the masks of {len(cut)} scans, such as {cut[0]}, reach above the kept slices, where evaluate counts "
            f"them as missed; {'make the bank' if donors else 'predict'} with --keep-slices 0"
        )
    write_atomic(out / METRICS, json.dumps({"scans": len(rows)}) + "\n")
    report = Report("Predictions", f"{len(rows)} scans, {_describe(transfer)}", package="fda-mri")
    report.picture(comparison([("", panels)]), "Middle slices: prediction red, mask green", "slices with outlines")
    report.section("Settings")
    report.settings(command)
    report.write(out / "report.html")
    say(f"masks: {out}   report: {out / 'report.html'}   next: fda-mri evaluate --predictions {out} --out ...")


def tuned(transfer: of.Transfer, folders: Sequence[Path]) -> of.Transfer:
    """The same with the beta that runs of tune-beta choose together; unchanged where there are none.

    Raises:
        SettingError: a mode without beta.
        InputError: a folder that cannot be read, or that does not fit the others or the mode.
    """
    if not folders:
        return transfer
    if transfer.mode in ("none", "cyclegan"):
        raise SettingError(f"--mode {transfer.mode} has no beta", remedy="leave out --tuned")
    same: dict[str, Any] = {"transfer": vars(transfer)}
    results = [read_tuning(folders[0], (transfer.mode,), same)]
    betas, same = results[0]["betas"], results[0] | same
    results += [read_tuning(folder, (transfer.mode,), same) for folder in folders[1:]]
    curves = np.array([result["curves"][transfer.mode] for result in results])
    return dataclasses.replace(transfer, beta=float(select_beta(curves, betas, "averaged")))


def read_tuning(path: Path, modes: Collection[str], same: Mapping[str, Any]) -> dict[str, Any]:
    """What a run of tune-beta wrote.

    Args:
        path: its folder.
        modes: searches of which it must have a curve.
        same: what it must share, as far as both have it: betas, tolerance, surface, and of transfer what decides the
            modes.

    Raises:
        InputError: it cannot be read, has no such curve, or differs.
    """
    file = path / TUNING
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot be read ({error})", where=file, remedy="give the folder of a tune-beta run"
        ) from error
    if not isinstance(result, dict) or not {"pair", "betas", "curves"} <= result.keys():
        raise InputError("holds no curves", where=file, remedy="give the folder of a tune-beta run")
    other_grid = "betas" in same and result["betas"] != list(same["betas"])
    if other_grid or (missing := set(modes) - set(result["curves"])):
        what = "another grid of betas" if other_grid else f"no curve for {', '.join(missing)}"
        raise InputError(f"has {what}", where=file, remedy="run it again with the same --betas and --modes")
    settings = {name for mode in modes for name in ("n", *of.DECIDING[mode])}
    for found, wanted, names in (
        (result, same, {"tolerance", "surface"}),
        (result.get("transfer", {}), same.get("transfer", {}), settings),
    ):
        for name in sorted(names & found.keys() & wanted.keys()):
            if found[name] != wanted[name]:
                flag = "--" + name.replace("_", "-")
                raise InputError(
                    f"was made with {flag} {found[name]}, not {wanted[name]}",
                    where=file,
                    remedy=f"run it again with the same {flag}",
                )
    return result


def load_network(model: Path, device: torch.device) -> tuple[nn.Module, dict[str, str]]:
    """The network of a run folder or weight file, and what its file says of it.

    Raises:
        CheckpointError: no such file, a damaged one, or weights of another network.
    """
    path = weights_file(model)
    metadata = read_metadata(path)
    if metadata.get("network") != "ResidualUNet2d" or not metadata.get("width", "").isdigit():
        raise CheckpointError("is not a network of `fda-mri train`", where=path, remedy="give its run folder")
    network = ResidualUNet2d(width=int(metadata["width"]))
    load_weights(path, network)
    return network.eval().to(device), metadata


def _adaptation(
    scans: of.Scans,
    transfer: of.Transfer,
    bank: Path | None,
    generator: Path | None,
    device: torch.device | str = "cpu",
    metadata: Mapping[str, str] | None = None,
) -> tuple[DonorBank | None, Grid | None, of.Scans, CycleGANTransform | None]:
    """What a mode needs: a bank, or a generator, or nothing; and the source's grid.

    Without a bank the grid comes from the metadata of the network (else of the generator), and only --resample asks for
    it: a network takes scans of any grid.
    """
    if transfer.mode == "cyclegan":
        if generator is None:
            raise SettingError(
                "--mode cyclegan needs --generator", remedy="give the run folder of train --method cyclegan"
            )
        transform = CycleGANTransform.load(generator, device)
        return None, _trained_grid(scans, {**transform.metadata, **(metadata or {})}), scans, transform
    if transfer.mode == "none":
        return None, _trained_grid(scans, metadata or {}), scans, None
    if bank is None:
        raise SettingError(f"--mode {transfer.mode} needs --bank", remedy="give the file that `fda-mri bank` wrote")
    donors, grid, scans = open_bank(bank, transfer, scans, (transfer.mode,))
    return donors, grid, scans, None


def _trained_grid(scans: of.Scans, metadata: Mapping[str, str]) -> Grid | None:
    return Grid.from_json(metadata["grid"]) if scans.resample and "grid" in metadata else None


def _folder(generator: Path) -> str:
    """The run folder of a generator, which may be given by its file."""
    return str((generator if generator.is_dir() else generator.parent).resolve())


def check_roles(rows: Sequence[Row], scans: of.Scans, role: str, trained: Mapping[Path, Mapping[str, str]]) -> None:
    """Warn where scans may be among those that a network or bank was made of (specification 5.4).

    Args:
        rows: of one site.
        scans: says which fold.
        role: of the rows.
        trained: file or folder -> metadata of the network and the bank.

    Raises:
        SettingError: network or bank come from this site, but from another fold.
    """
    site, fold = rows[0].site, "" if scans.fold is None else str(scans.fold)
    here = {path: metadata for path, metadata in trained.items() if site and metadata.get("site") == site}
    for path, metadata in here.items():
        if (other := metadata.get("fold", fold)) != fold:
            raise SettingError(
                f"{path} was made of site {site} {f'with --fold {other}' if other else 'without --fold'}",
                remedy=f"give --fold {other} here too" if other else "leave out --fold here too",
            )
    mixed = role == "all" if fold else any(row.split in ("", "train") for row in rows)
    if here and mixed:
        say(
            f"warning: site {site} is also that of {' and '.join(map(str, here))}, and some of these scans may have been "
            "used there; a split column, or --fold, with --role test keeps them apart"
        )


def check_all(rows: Sequence[Row], scans: of.Scans, grid: Grid | None, need_mask: bool = False) -> None:
    """Read every scan once before anything is written: a broken last file must not waste the work on the others."""
    for row in rows:
        for _ in load([row], scans, grid, need_mask):
            pass


def _loaded(rows: Sequence[Row], scans: of.Scans, grid: Grid | None) -> Iterator[tuple[Scan, str]]:
    """Scans one by one with a name that no other has."""
    names = unique_names(rows)
    for row, name in zip(rows, names, strict=True):
        for scan in load([row], scans, grid):
            yield scan, name


# --- what both need --------------------------------------------------------------------------------------------------


def open_bank(
    path: Path, transfer: of.Transfer, scans: of.Scans, modes: Collection[str]
) -> tuple[DonorBank, Grid, of.Scans]:
    """A bank, its grid, and the scan settings with its number of slices; warns where a search finds fewer than n donors."""
    donors = DonorBank.load(path)
    if not {"grid", "keep_slices"} <= donors.metadata.keys():
        raise InputError("does not say on which grid its scans lie", where=path, remedy="write it with `fda-mri bank`")
    if any(_donors_used(donors, transfer, mode) < transfer.n for mode in modes):
        held = "1 scan; it is" if len(donors) == 1 else f"{len(donors)} scans; all of them are"
        say(f"warning: {path} holds {held} used instead of --n {transfer.n}")
    grid, held_slices = bank_grid(donors), int(donors.metadata["keep_slices"])
    if scans.keep_slices is not None and min(scans.keep_slices or grid.shape[-1], grid.shape[-1]) != held_slices:
        raise SettingError(
            f"--keep-slices is {scans.keep_slices}, and the bank holds {held_slices} slices of {grid.shape[-1]}",
            where=path,
            remedy="leave out --keep-slices, or make the bank with it",
        )
    return donors, grid, dataclasses.replace(scans, keep_slices=held_slices)


def _donors_used(donors: DonorBank, transfer: of.Transfer, mode: str) -> int:
    """n, or all donors that there are for a slice (specification 2.4); random ones are drawn with replacement."""
    there = {"3d": len(donors), "2d": len(donors), "2.5d": len(donors) * (2 * transfer.neighbours + 1)}
    return min(transfer.n, there.get(mode, transfer.n))


def bank_grid(donors: DonorBank) -> Grid:
    """The voxel grid of a bank that `bank` wrote."""
    return Grid.from_json(donors.metadata["grid"])


def _describe(transfer: of.Transfer) -> str:
    if transfer.mode in ("none", "cyclegan"):
        return {"none": "no adaptation", "cyclegan": "CycleGAN stand-in"}[transfer.mode]
    search = "random donors" if transfer.mode == "random" else f"{transfer.mode.upper()} donors"
    return f"{search}, n {transfer.n}, beta {transfer.beta:g}"
