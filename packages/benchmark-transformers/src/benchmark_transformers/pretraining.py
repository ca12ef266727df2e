"""The command `pretrain`: SimMIM on unlabelled pictures, from random weights or continued from others (specification 2.2)."""

from __future__ import annotations

import csv
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmark_transformers import settings as of
from benchmark_transformers.cases import SPLIT_SEED, TEST_SHARE, CaseFiles
from benchmark_transformers.conversion import Converted, convert_simmim
from benchmark_transformers.networks import PACKAGE, PRETRAINED, Pretrained, statistics_of
from benchmark_transformers.schedules import simmim_lr
from benchmark_transformers.simmim import CLIP_NORM, DROP_PATH, SimMIM, masked_cells, parameter_groups, simmim_mask
from dart_core import figures
from dart_core.batches import Batches
from dart_core.checkpoint import WEIGHTS, save_tensors, weights_file
from dart_core.cli import say
from dart_core.data.catalog import radiographs
from dart_core.data.datalist import Datalist, Row
from dart_core.data.images import find_pictures, write_image
from dart_core.data.picture_views import ViewRanges, crop_view, draw_view, normalise, resize_to, turn_views
from dart_core.data.pictures import Pictures, SplitBy, site_rows, sites_of, split_pictures
from dart_core.errors import InputError, SettingError
from dart_core.fine_tuning import clip_gradients, refuse_divergence
from dart_core.report import Report
from dart_core.run import Run

VIEWS = ViewRanges(area=(0.67, 1.0), degrees=0.0)
"""Specification 2.2.5."""
SHOWN = 6
"""Pictures of which restorations are shown."""
PIXELS = 128
"""Side at which they are shown, at least about."""
RESTORED = "restored"
"""Folder of those pictures."""


# --- Pictures --------------------------------------------------------------------------------------------------------


def unlabelled_pictures(paths: Sequence[Path], exclude: Path | None = None) -> list[Row]:
    """The pictures of folders, datalists and data sets, each once.

    Args:
        paths: folders, or what `dart_core.data.catalog.radiographs` opens; of its rows see `training_rows`.
        exclude: file with names (with or without folder and ending) to leave out, each at the beginning of a line, before a comma.

    Raises:
        InputError: no picture, a missing file, or an exclusion list that names none of the pictures.
    """
    rows: dict[Path, Row] = {}
    for path in paths:
        folder = path.is_dir() and radiographs.recognise(path) is None and not (path / "dataset.json").is_file()
        if folder:
            listed = [Row(file, source=path) for file in find_pictures(path)]
        else:
            listed = training_rows(radiographs.open_radiographs(path))
        for row in listed:
            rows.setdefault(row.image, row)
    if exclude is not None:
        names = _names(exclude)
        kept = {file: row for file, row in rows.items() if not {file.name, file.stem} & names}
        if len(kept) == len(rows):
            raise InputError("names none of the pictures", where=exclude, remedy="write one file name per line")
        say(f"{len(rows) - len(kept)} pictures left out ({exclude})")
        rows = kept
    if not rows:
        raise InputError("no training picture", where=paths[0] if paths else None, remedy="name folders of pictures")
    for row in rows.values():
        if not row.image.is_file():
            raise InputError(f"{row.image} is not there", where=row.where("image"), remedy="check the path")
    return list(rows.values())


def training_rows(datalist: Datalist) -> list[Row]:
    """The rows that no test has a claim to: those of train, and those without a split.

    Of a data set with labels that names no test, the pictures that a fine-tuning draws for it are left out, and said. Labels are
    all further columns: a list without any is of no fine-tuning.
    """
    drawn: set[int] = set()
    for site in sites_of(datalist):
        rows = site_rows(datalist, site)
        if not any(row.labels for row in rows):
            continue
        by: SplitBy = "patient" if all(row.subject or row.split for row in rows) else "image"
        pictures = Pictures(site, (), rows, np.zeros((len(rows), 0), np.float32))
        test = split_pictures(pictures, by, TEST_SHARE, 0.0, SPLIT_SEED)["test"]
        found = [id(row) for row in test.rows if not row.split]
        if found:
            say(
                f"{datalist.source}: {len(found)} of {len(rows)} pictures left out, which `fine-tune` draws for the test of {site} "
                f"(--split-by {by}); a column split chooses otherwise"
            )
        drawn.update(found)
    return [row for row in datalist if row.split in ("", "train") and id(row) not in drawn]


def _names(path: Path) -> set[str]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            return {Path(cells[0].strip()).name for cells in csv.reader(file) if cells and cells[0].strip()}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot be read ({error})", where=path, remedy="give a text file of names") from error


def simmim_batches(files: CaseFiles, size: int, cells: int, batch_size: int, seed: int) -> Batches:
    """Batches of "image" uint8 (B, 3, size, size), "view" (B, 6) for `turn_views`, "permutation" int64 (B, cells²)."""

    def load(sample: int, rng: np.random.Generator) -> dict[str, Any]:
        image = files[sample]
        view = draw_view(rng, image.shape[-2], image.shape[-1], VIEWS)
        return {"image": crop_view(image, view, size), "view": view, "permutation": rng.permutation(cells**2)}

    return Batches(load, len(files), batch_size, seed)


# --- Training --------------------------------------------------------------------------------------------------------


def pretrain(command: of.Pretrain) -> None:
    """Train; write the weights, and as it goes pictures of restored examples and report.html."""
    recipe = command.recipe
    rows = unlabelled_pictures(command.pictures, command.exclude)
    files = CaseFiles(rows)
    files.read_all()
    keywords = command.network.keywords(command.backbone == "swin_b")
    keywords["drop_path_rate"] = DROP_PATH[command.backbone] if recipe.drop_path is None else recipe.drop_path
    # A network that does not fit is found out before the output folder is made.
    torch.manual_seed(command.run.seed)
    network = SimMIM(command.backbone, command.size, **keywords)
    cells = cells_of(network, recipe.cell)
    loaded = None
    if command.init_from is not None:
        loaded = convert_simmim(weights_file(command.init_from), network)
        network.load_state_dict(loaded.state, strict=False)
    with Run(command.run, command) as run:
        if loaded is not None and run.is_main:
            say(f"{command.init_from}: {loaded}")
        batches = simmim_batches(files, network.image_size, cells, recipe.batch_size, run.settings.seed)
        examples = Examples(files, network, cells, recipe)
        weights = train(run, network, batches, cells, command, examples)
        if not run.is_main:
            return
        about = Pretrained(
            command.backbone, network.image_size, keywords, recipe.normalization, recipe.epochs, len(files),
            "" if command.init_from is None else command.init_from.name,
        )  # fmt: skip
        save_tensors(run.out / WEIGHTS, weights, {PRETRAINED: json.dumps(dataclasses.asdict(about))})
        lines = logged(run.out)
        last = [line["loss"] for line in lines[-10:]]
        speed = [line["images_per_second"] for line in lines if line.get("images_per_second")]
        content = {
            "loss": float(np.mean(last)) if last else None, "steps": run.step, "epochs": recipe.epochs, "images": len(files),
            "images_per_second": float(np.median(speed)) if speed else None,
            "loaded": None if loaded is None else str(loaded),
        }  # fmt: skip
        run.finish(content)
        write_report(run, command, len(files), loaded)
    say(f"network: {run.out}   report: {run.out / 'report.html'}")


def cells_of(network: SimMIM, cell: int) -> int:
    """Cells per side.

    Raises:
        SettingError: they do not fit the picture and the tokens.
    """
    if network.image_size % cell or cell % network.patch:
        raise SettingError(
            f"--cell is {cell}, the picture's side {network.image_size}, a token {network.patch} pixels",
            remedy="give a multiple of the token that divides the side",
        )
    return network.image_size // cell


def train(
    run: Run, network: SimMIM, batches: Batches, cells: int, command: of.Pretrain, examples: Examples
) -> dict[str, Tensor]:
    """The loop of SimMIM (specification 2.2.6); resumes where the run was stopped.

    Args:
        run: an entered run.
        network: trained in place.
        batches: of `simmim_batches`.
        cells: per side.
        command: recipe; and what the report shows.
        examples: pictures of which restorations are shown as it goes.

    Returns:
        Parameters and buffers by name, on the CPU.

    Raises:
        Diverged: the loss is no number.
    """
    recipe = command.recipe
    statistics = statistics_of(recipe.normalization, None, None)
    per_epoch = -(-batches.size // recipe.batch_size)
    prepared = run.prepare(network)
    # From the network without its wrapper, whose names tell what is decayed; the parameters are the same.
    groups = parameter_groups(network, recipe.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=recipe.base_lr, betas=(0.9, 0.999), eps=1e-8)
    clip_gradients(optimizer, CLIP_NORM)
    run.restore(network=prepared, optimizer=optimizer)
    prepared.train()
    meter, speed = Meter(recipe.batch_size), 0.0
    for step, batch in run.steps(batches, recipe.epochs * per_epoch, "pre-training"):
        rate = simmim_lr(
            step, per_epoch, recipe.epochs, recipe.warmup, recipe.batch_size, recipe.base_lr, recipe.min_lr,
            recipe.warmup_lr, recipe.schedule, recipe.drop_epoch,
        )  # fmt: skip
        for group in optimizer.param_groups:
            group["lr"] = rate
        seen = {
            "image": normalise(turn_views(batch["image"], batch["view"]), statistics),
            "mask": simmim_mask(batch["permutation"], network.grid, cells, recipe.mask_ratio),
        }
        loss = run.optimise(optimizer, lambda part: reconstruct(prepared, part), seen, prepared)
        meter.step()
        if step % recipe.log_every == 0:
            refuse_divergence(float(loss), f"the loss of step {step}", "lower --base-lr")
            speed = meter.rate()
            run.log.write(step, loss=loss, learning_rate=rate, images_per_second=speed)
        epoch, place = divmod(step + 1, per_epoch)
        if place == 0 and (epoch % recipe.show_every == 0 or epoch == recipe.epochs):
            with run.gathered(prepared):
                if run.is_main:
                    file = examples.write(run.out, network, epoch)
                    write_report(run, command, batches.size)
                    pace = f", {speed:.1f} pictures/s" if speed else ""
                    say(f"epoch {epoch} of {recipe.epochs}: loss {float(loss):.4f}{pace}, restored examples: {file}")
            meter.pause()
    return run.weights(prepared)


def reconstruct(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The loss of a batch."""
    loss: Tensor = network(batch["image"], batch["mask"])[0]
    return loss


class Meter:
    """Pictures per second since the last line that was logged."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self._steps, self._since = 0, time.monotonic()

    def step(self) -> None:
        """One batch is done."""
        self._steps += 1

    def rate(self) -> float:
        """Pictures per second; starts the next measurement."""
        now = time.monotonic()
        found = self._steps * self.batch_size / max(now - self._since, 1e-9)
        self._steps, self._since = 0, now
        return found

    def pause(self) -> None:
        """Leave out what has passed since the last batch, with the batches before it."""
        self._steps, self._since = 0, time.monotonic()


# --- What is shown ---------------------------------------------------------------------------------------------------


class Examples:
    """The first pictures with fixed masks, and what a network makes of them.

    Args:
        files: pictures.
        network: for its sizes.
        cells: per side.
        recipe: share of masked cells, normalisation.
    """

    def __init__(self, files: CaseFiles, network: SimMIM, cells: int, recipe: of.PretrainRecipe) -> None:
        count, size = min(SHOWN, len(files)), network.image_size
        self.images = torch.stack([resize_to(files[place], size) for place in range(count)])
        self.statistics = statistics_of(recipe.normalization, None, None)
        generator = np.random.default_rng(0)
        permutations = np.stack([generator.permutation(cells**2) for _ in range(count)])
        self.mask = simmim_mask(torch.from_numpy(permutations), network.grid, cells, recipe.mask_ratio)

    @torch.no_grad()
    def restore(self, network: SimMIM) -> NDArray[np.uint8]:
        """Pictures, what the network sees of them, and what it paints into the holes, as three rows: (3 K, n K, 3)."""
        device = next(network.parameters()).device
        training = network.training
        network.eval()
        images = normalise(self.images.to(device), self.statistics)
        mask = self.mask.to(device)
        _, found = network(images, mask)
        network.train(training)
        hidden = mask.repeat_interleave(network.patch, 1).repeat_interleave(network.patch, 2)[:, None].bool()
        grey = torch.zeros_like(images)
        rows = (images, torch.where(hidden, grey, images), torch.where(hidden, found, images))
        mean, std = self.statistics or ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        shift, scale = (images.new_tensor(v)[:, None, None] for v in (mean, std))
        painted = [torch.cat(list((row * scale + shift).clamp(0, 1)), -1) for row in rows]
        picture = (torch.cat(painted, -2) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        larger = max(1, round(PIXELS / network.image_size))  # small views would be postage stamps
        return np.asarray(picture.repeat(larger, 0).repeat(larger, 1))

    def write(self, out: Path, network: SimMIM, epoch: int) -> Path:
        """Write the picture of an epoch into a run folder."""
        return write_image(out / RESTORED / f"epoch-{epoch:04d}.png", self.restore(network))


def logged(out: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    file = out / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


def write_report(run: Run, command: of.Pretrain, images: int, loaded: Converted | None = None) -> None:
    """Loss, throughput and restored examples so far; written anew as the training goes on."""
    run.log.flush()
    report = Report(
        f"SimMIM pre-training of {command.backbone}",
        f"{images} pictures, {command.recipe.epochs} epochs",
        package=PACKAGE,
    )
    lines = logged(run.out)
    start = "random weights" if command.init_from is None else f"the weights of {command.init_from}"
    if lines:
        speed = [line["images_per_second"] for line in lines if line.get("images_per_second")]
        report.text(
            f"Started from {start}{'' if loaded is None else f' ({loaded})'}. After step {lines[-1]['step']} the loss "
            f"is {lines[-1]['loss']:.4f}; the training does {np.median(speed):.1f} pictures a second. Of "
            f"{masked_ratio(command):.0%} of each picture the network sees nothing but the place."
        )
    figures.training_curves(
        report, run.out, {"loss": "training batch"}, "mean absolute error", "Loss over the masked pixels"
    )
    figures.training_curves(report, run.out, {"learning_rate": "learning rate"}, "learning rate", "Learning rate")
    figures.training_curves(
        report, run.out, {"images_per_second": "throughput"}, "pictures per second", "Throughput, loading included"
    )
    shown = sorted((run.out / RESTORED).glob("epoch-*.png"))
    if shown:
        report.section("Restored examples")
        for file in dict.fromkeys((shown[0], shown[len(shown) // 2], shown[-1])):
            epoch = int(file.stem.split("-")[1])
            report.picture(
                file, f"Epoch {epoch}: pictures, what the network sees of them, and its reconstruction of the holes",
                f"rows of pictures at epoch {epoch}: original, masked, restored",
            )  # fmt: skip
    report.section("Settings")
    report.settings(command)
    report.write(run.out / "report.html")


def masked_ratio(command: of.Pretrain) -> float:
    """The share of cells that is masked, rounded up to whole cells."""
    size = command.size or {"swin_b": 192, "vit_b": 224}[command.backbone]
    cells = max(1, size // command.recipe.cell)
    return masked_cells(cells, command.recipe.mask_ratio) / cells**2
