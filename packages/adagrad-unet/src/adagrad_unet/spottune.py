"""SpotTUNet as the paper uses it (sections 2.4 and 3.4): a baseline on the source, then layers chosen per slice on a target.

Network, policy and penalties are in `dart_core.adapt`; the recipe is that of the specification sheet spottunet.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Optimizer

from adagrad_unet import settings as of
from adagrad_unet.avagrad import AvaGrad
from dart_core.adapt import LAYERS, PolicyNet, PolicyStatistics, SpotTUNet, policy_figure, policy_penalty
from dart_core.batches import Batches
from dart_core.checkpoint import WEIGHTS, load_weights, read_metadata, save_weights, weights_file
from dart_core.cli import say
from dart_core.data.catalog import mms
from dart_core.data.datalist import Datalist, Row
from dart_core.data.scans import (
    Scan,
    centre_patch,
    frame_of,
    load_scan,
    open_datalist,
    require_subjects,
    rows_of,
    slice_stack,
)
from dart_core.data.volumes import Volume, read_grid, read_labels, zoom
from dart_core.errors import CheckpointError, InputError, SettingError
from dart_core.figures import training_curves
from dart_core.files import write_csv
from dart_core.nets import ResidualUNet2d
from dart_core.report import Report
from dart_core.run import Run
from dart_core.settings import ScanSettings

POLICY = "policy.csv"
PACKAGE = "adagrad-unet"


@dataclass(frozen=True, eq=False)
class Labelled:
    """A preprocessed scan with whole-numbered labels."""

    scan: Scan
    labels: NDArray[np.int16]
    """(H, W, Z) on the grid of the scan."""


@dataclass(frozen=True)
class Network:
    """What has to be known to build a network of `spottune` again and to use it; goes with the weights."""

    network: str
    """ResidualUNet2d or SpotTUNet."""
    width: int
    labels: tuple[str, ...]
    """Names of the labels 1, 2, ...; empty = one mask."""
    preprocessing: str
    spacing: tuple[float, ...] | None
    site: str
    method: str
    policy_backbone: str = "small"
    frozen_bn_eval: bool = False

    @property
    def outputs(self) -> int:
        """Output channels: one logit for a mask, else one per label and background."""
        return 1 + len(self.labels) if self.labels else 1

    @property
    def channels(self) -> int:
        """Input channels."""
        return ScanSettings(Path(), preprocessing=self.preprocessing).channels  # type: ignore[arg-type]

    def build(self) -> ResidualUNet2d | SpotTUNet:
        """The network with initial weights."""
        unet = ResidualUNet2d(self.channels, self.outputs, self.width)
        return unet if self.network == "ResidualUNet2d" else self.around(unet)

    def around(self, source: ResidualUNet2d) -> SpotTUNet:
        """SpotTUNet on a source network."""
        policy = PolicyNet(self.channels, self.policy_backbone)  # type: ignore[arg-type]
        return SpotTUNet(source, policy, frozen_bn_eval=self.frozen_bn_eval)

    def metadata(self) -> dict[str, str]:
        """As strings, for the weight file."""
        return {"package": PACKAGE, "network": self.network, "spottune": json.dumps(dataclasses.asdict(self))}

    @classmethod
    def of(cls, metadata: dict[str, str], where: Path) -> Network:
        """From the strings of a weight file.

        Raises:
            CheckpointError: it is not from `adagrad-unet spottune`.
        """
        try:
            values = json.loads(metadata["spottune"])
            spacing = None if values["spacing"] is None else tuple(values["spacing"])
            return cls(**{**values, "labels": tuple(values["labels"]), "spacing": spacing})
        except (KeyError, ValueError, TypeError) as error:
            raise CheckpointError(
                "is not a network of `adagrad-unet spottune`", where=where, remedy="give its run folder"
            ) from error


# --- Data ------------------------------------------------------------------------------------------------------------


def load_labelled(row: Row, settings: ScanSettings, labels: Sequence[str]) -> Labelled:
    """A scan with its labels: one mask, or several labels, each resampled as a mask is and the largest one kept.

    Raises:
        InputError: anything `load_scan` finds wrong, no mask, or a label without name.
    """
    if not labels:
        scan = load_scan(row, settings, need_mask=True)
        return Labelled(scan, scan.truth.astype(np.int16))
    if row.mask is None:
        raise InputError("no mask", where=row.where("mask"), remedy="give the mask of every scan")
    frame = frame_of(row)
    file = read_grid(row.image, frame=frame)
    found = read_labels(row.mask, file, frame)
    if found.max(initial=0) > len(labels):
        raise InputError(
            f"has label {found.max()}, and the labels are {', '.join(labels)}",
            where=row.mask,
            remedy="name all with --labels",
        )
    scan = dataclasses.replace(load_scan(dataclasses.replace(row, mask=None), settings), row=row)
    if settings.target_spacing is not None:
        found = _zoomed(file, found, settings.target_spacing, 1 + len(labels))
    return Labelled(scan, found)


def _zoomed(grid: Volume, labels: NDArray[np.int16], spacing: Sequence[float], classes: int) -> NDArray[np.int16]:
    parts = [
        zoom(dataclasses.replace(grid, array=(labels == c).astype(np.float32)), spacing).array for c in range(classes)
    ]
    return np.asarray(np.argmax(parts, axis=0), dtype=np.int16)


def slices_of(scans: Sequence[Labelled], count: int, interval: int) -> list[tuple[int, int]]:
    """The first `count` (scan, slice) pairs, every `interval`-th slice of one scan after the other.

    A scan of S slices has the slices 0, interval, ..., interval (S // interval - 1).

    Raises:
        InputError: the scans do not hold so many.
    """
    pairs = [
        (number, interval * j) for number, scan in enumerate(scans) for j in range(scan.labels.shape[-1] // interval)
    ]
    if len(pairs) < count:
        raise InputError(
            f"{len(scans)} training scans hold {len(pairs)} slices at --interval {interval}, {count} are asked for",
            where=scans[0].scan.row.source,
            remedy=f"give --slices {len(pairs)} or add scans",
        )
    return pairs[:count]


def patch_batches(
    scans: Sequence[Labelled], pairs: Sequence[tuple[int, int]], channels: int, settings: of.Spottuning, seed: int
) -> Batches:
    """Batches of {"image" (B, C, p, p), "labels" (B, p, p)}: a random scan, a random one of its slices, a patch (5.1)."""
    by_scan: dict[int, list[int]] = {}
    for number, z in pairs:
        by_scan.setdefault(number, []).append(z)

    def load(index: int, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
        number = list(by_scan)[index]
        z = by_scan[number][int(rng.integers(len(by_scan[number])))]
        scan = scans[number]
        image = slice_stack(scan.scan.volume, z, channels)
        patch, labels = centre_patch(image, scan.labels[..., z], settings.patch, rng)
        assert labels is not None  # there is a mask
        return {"image": patch, "labels": labels}

    return Batches(load, size=len(by_scan), batch_size=settings.batch_size, seed=seed, replacement=True)


# --- Training --------------------------------------------------------------------------------------------------------


def segmentation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of one logit, or cross-entropy of several; mean over pixels (the paper does not say more).

    Args:
        logits: (B, K, H, W).
        labels: (B, H, W) whole numbers.
    """
    if logits.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(logits[:, 0], labels.to(logits.dtype))
    return F.cross_entropy(logits, labels.long())


def make_unet_optimizer(parameters: Any, name: str, lr: float, weight_decay: float = 0.0) -> Optimizer:
    """SGD with Nesterov momentum 0.9, or AvaGrad with eps 0.1."""
    if name == "sgd":
        return SGD(parameters, lr, momentum=0.9, nesterov=True, weight_decay=weight_decay, foreach=True)
    return AvaGrad(parameters, lr, weight_decay=weight_decay)


def train_baseline(run: Run, network: ResidualUNet2d, batches: Batches, settings: of.Spottuning) -> None:
    """Train the baseline network; resumes where the run was stopped."""
    prepared = run.prepare(network)
    optimizer = make_unet_optimizer(prepared.parameters(), settings.optimizer, settings.rate)
    run.restore(network=prepared, optimizer=optimizer)

    def loss_of(batch: dict[str, Tensor]) -> Tensor:
        return segmentation_loss(prepared(batch["image"]), batch["labels"])

    prepared.train()
    for step, batch in run.steps(batches, settings.total_epochs * settings.batches):
        _set_rate(optimizer, settings.rate, step, settings)
        loss = run.optimise(optimizer, loss_of, batch, prepared)
        if step % settings.log_every == 0:
            run.log.write(step, loss=float(loss))


def train_spottuned(run: Run, network: SpotTUNet, batches: Batches, settings: of.Spottuning) -> PolicyStatistics:
    """Train SpotTUNet: one backward pass, one optimiser for the U-Net and one for the policy (spottunet 2.7, 2.9).

    Returns:
        How often each layer was fine-tuned over all training samples.

    Raises:
        SettingError: --accumulate, which splits a batch whose norms belong together.
    """
    if run.settings.accumulate > 1:
        raise SettingError("--accumulate has no meaning for --stage spottuned", remedy="leave it out")
    unet, policy = list(network.unet_parameters()), list(network.policy_parameters())
    prepared = run.prepare(network)
    optimizers = {
        "unet": make_unet_optimizer(unet, settings.optimizer, settings.rate),
        "policy": make_unet_optimizer(policy, settings.policy_optimizer, settings.policy_rate, weight_decay=1e-3),
    }
    statistics = PolicyStatistics()
    run.restore(network=prepared, **optimizers, statistics=statistics)
    prepared.train()
    for step, batch in run.steps(batches, settings.total_epochs * settings.batches):
        _set_rate(optimizers["unet"], settings.rate, step, settings)
        _set_rate(optimizers["policy"], settings.policy_rate, step, settings)
        for optimizer in optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        with run.autocast():
            logits, chosen = prepared(batch["image"], return_policy=True)
            penalty = policy_penalty(chosen, settings.regularisation)
            loss = segmentation_loss(logits, batch["labels"]) + penalty
        run.backward(loss)
        run.step_optimizers(*optimizers.values())
        statistics.update(chosen)
        if step % settings.log_every == 0:
            share = float(1 - chosen.detach().mean())
            run.log.write(step, loss=float(run.mean(loss.detach())), fine_tuned=share)
    return statistics


def _set_rate(optimizer: Optimizer, rate: float, step: int, settings: of.Spottuning) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * (0.1 if step // settings.batches >= settings.drop else 1.0)


# --- The command -----------------------------------------------------------------------------------------------------


def spottune(command: of.Spottune) -> None:
    """Train the baseline, or spottune it to a target site."""
    settings = command.spottuning
    datalist = open_datalist(command.scans.datalist)
    site = _site(datalist, command.site)
    rows = _training_rows(datalist, site)
    source, model = _source(command)
    if model is None:  # a target may be one patient: the paper's has seven slices
        require_subjects(rows, 2, f"site {site}, split train" if site else "split train")
    labels = model.labels if model is not None else settings.labels or _known_labels(datalist)
    scans = [load_labelled(row, command.scans, labels) for row in rows]
    if model is None:
        pairs = [(number, z) for number, scan in enumerate(scans) for z in range(scan.labels.shape[-1])]
    else:
        pairs = slices_of(scans, settings.slices, settings.interval)
    name = "SGD" if settings.optimizer == "sgd" else "AvaGrad"
    description = Network(
        network="ResidualUNet2d" if model is None else "SpotTUNet",
        width=settings.width if model is None else model.width,
        labels=tuple(labels),
        preprocessing=command.scans.preprocessing,
        spacing=command.scans.target_spacing,
        site=site if model is None else model.site,
        method=f"baseline {name}" if model is None else f"spottuned {name}, {len(pairs)} slices",
        policy_backbone=settings.policy_backbone,
        frozen_bn_eval=settings.frozen_bn_eval,
    )
    with Run(command.run, command) as run:
        batches = patch_batches(scans, pairs, description.channels, settings, command.run.seed)
        network: nn.Module = description.build() if source is None else description.around(source)
        statistics = None
        if isinstance(network, SpotTUNet):
            statistics = train_spottuned(run, network, batches, settings)
        else:
            assert isinstance(network, ResidualUNet2d)
            train_baseline(run, network, batches, settings)
        if not run.is_main:
            return
        save_weights(run.out / WEIGHTS, network, description.metadata())
        metrics: dict[str, Any] = {"scans": len({number for number, _ in pairs}), "slices": len(pairs)}
        report = Report(description.method, f"Site {site or '(all)'}, {len(pairs)} slices", package=PACKAGE)
        training_curves(report, run.out, {"loss": "training batch"}, "loss", "Loss during training")
        if statistics is not None:
            fractions = statistics.fine_tuned()
            metrics["fine_tuned_in_training"] = dict(zip(LAYERS, fractions.tolist(), strict=True))
            write_policy(run.out / POLICY, {"training": fractions})
            report.section("Policy")
            report.picture(
                policy_figure({"training": fractions}),
                "Share of training samples for which each layer was fine-tuned (Fig. 5 of the paper is about inference: `predict`)",
                "U-Net coloured by the share of samples that fine-tuned each layer",
            )
        run.finish(metrics)
        report.section("Settings")
        report.settings(command)
        report.write(run.out / "report.html")
    say(f"network: {run.out / WEIGHTS}   report: {run.out / 'report.html'}")


def _site(datalist: Datalist, site: str) -> str:
    if not site and len(datalist.sites) > 1:
        raise InputError(
            f"holds {len(datalist.sites)} sites", where=datalist.source, remedy=f"name one: --site {datalist.sites[0]}"
        )
    return site or next(iter(datalist.sites), "")


def _training_rows(datalist: Datalist, site: str) -> list[Row]:
    """The training scans of a site.

    Raises:
        InputError: no such site, no splits, or none for train at this site, as at C and D of M&Ms.
    """
    trained = [row.site for row in datalist if row.split == "train"]
    if trained and site in datalist.sites and site not in trained:
        raise InputError(
            f"site {site} has no scan for train",
            where=datalist.source,
            remedy=f"name one that has (there: {', '.join(dict.fromkeys(trained))}), or give a CSV of your own whose column split"
            " says train of its annotated subjects and test of the others",
        )
    return rows_of(datalist, [site] if site else [], "train")


def _source(command: of.Spottune) -> tuple[ResidualUNet2d | None, Network | None]:
    """The baseline network to spottune, for that stage."""
    stage = command.spottuning.stage
    if (command.model is None) != (stage == "baseline"):
        problem = "needs --model" if command.model is None else "takes no --model"
        raise SettingError(
            f"--stage {stage} {problem}", remedy="give the baseline's run folder to --stage spottuned only"
        )
    if command.model is None:
        return None, None
    network, model = load_network(command.model)
    if not isinstance(network, ResidualUNet2d):
        raise CheckpointError("is no baseline", where=command.model, remedy="give a run of --stage baseline")
    spacing = command.scans.target_spacing
    if (model.preprocessing, model.spacing) != (command.scans.preprocessing, spacing):
        raise SettingError(
            f"--preprocessing {command.scans.preprocessing} at {spacing} mm is not what the baseline had,"
            f" {model.preprocessing} at {model.spacing} mm",
            remedy="give the same --preprocessing and --spacing",
        )
    return network, model


def load_network(model: Path) -> tuple[ResidualUNet2d | SpotTUNet, Network]:
    """A network of `spottune` with its weights, and what its file says of it.

    Raises:
        CheckpointError: no such file, a damaged one, or of another command.
    """
    path = weights_file(model)
    description = Network.of(read_metadata(path), path)
    network = description.build()
    load_weights(path, network)
    return network, description


def _known_labels(datalist: Datalist) -> tuple[str, ...]:
    several = any("phase" in row.labels and "vendor" in row.labels for row in datalist)
    return tuple(mms.LABELS.values()) if several else ()


def write_policy(path: Path, fractions: dict[str, Tensor]) -> None:
    """Share of samples that fine-tuned each layer, one column per name."""
    columns = [values.tolist() for values in fractions.values()]
    rows = [(index, layer, *(f"{column[index]:.6f}" for column in columns)) for index, layer in enumerate(LAYERS)]
    write_csv(path, ("index", "layer", *fractions), rows)


def policy_recorder(network: SpotTUNet, statistics: PolicyStatistics) -> Callable[[Tensor], Tensor]:
    """The network as a function that adds every policy it uses to the statistics."""

    def forward(x: Tensor) -> Tensor:
        logits: Tensor
        logits, chosen = network(x, return_policy=True)
        statistics.update(chosen)
        return logits

    return forward


def segment(logits: Tensor) -> NDArray[Any]:
    """Logits (K, H, W, Z) of a scan to a bool mask (K = 1, p > 0.5) or labels (argmax)."""
    if logits.shape[0] == 1:
        return np.asarray((logits[0] > 0).numpy())
    return np.asarray(logits.argmax(0).to(torch.int16).numpy())
