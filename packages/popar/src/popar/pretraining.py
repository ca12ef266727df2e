"""The command `pretrain`: read and check everything, then claim the output folder, then work and write."""

from __future__ import annotations

import time

import numpy as np
import torch

from dart_core import figures
from dart_core.cli import say
from dart_core.data.images import write_image
from dart_core.report import Report
from dart_core.run import Run
from popar import settings as of
from popar.figures import examples_figure, examples_sheet, throughput
from popar.method import FixedDistortions, Objective, pretrain_network
from popar.models import PACKAGE, Pretrained, save_pretrained
from popar.networks import POPAR, parse_options
from popar.radiographs import (
    STATISTICS,
    Radiographs,
    excluded,
    open_datalist,
    picture_batches,
    pretraining_rows,
    three_channels,
)
from popar.recipes import with_drawn_test

EXAMPLES = "examples"
MEASURES = {
    "order_accuracy": "order of permuted patches: accuracy",
    "identity_accuracy": "order of untouched pictures: accuracy",
    "mse_permuted": "restoration of permuted pictures: mean squared error",
    "mse_appearance": "restoration of appearance: mean squared error",
}
"""Of fixed distortions, as tables call them."""


def pretrain(command: of.Pretrain) -> None:
    """Pretrain a backbone; write its weights, and as it goes examples and report.html."""
    given = command.networks
    options = parse_options(given.network)
    with torch.device("meta"):  # whether it can be built, and its sizes
        plan = POPAR(given.name, given.image_size, command.pretraining.drop_path, **options)
    datalist, drawn = open_datalist(command.data, of.LabelSettings(split_seed=command.split_seed)), 0
    if "test" not in command.splits:
        datalist, drawn = with_drawn_test(datalist, command.split_seed)
    left_out = excluded(command.exclude, datalist)
    training, held_out = pretraining_rows(
        datalist, command.splits, left_out, command.pretraining.held_out, command.run.seed
    )
    colour = command.data.colour
    pictures = Radiographs(training, plan.image_size, colour, command.data.memory)
    batches = picture_batches(pictures, command.pretraining.batch_size, command.run.seed)
    about = Pretrained(
        given.name, plan.image_size, options, command.distortions.normalisation, command.distortions.subtasks,
        command.distortions.order_loss_on_appearance, command.pretraining.epochs_of(given.name), command.run.seed,
        len(training),
    )  # fmt: skip
    objective = objective_of(command.distortions)
    fixed = None
    if held_out:
        shown = Radiographs(held_out, plan.image_size, colour)
        fixed = FixedDistortions(three_channels(shown.stack(range(len(shown)))), plan.patch, objective)
    pictures.read_all()
    with Run(command.run, command) as run:
        if run.is_main and left_out:
            say(f"{len(left_out)} pictures left out ({command.exclude})")
        if run.is_main and drawn:
            say(
                f"{drawn} pictures not trained on: no split names a test, and fine-tune --split-seed {command.split_seed} draws "
                "these for it"
            )
        network = POPAR(given.name, given.image_size, command.pretraining.drop_path, **options)
        progress = _Progress(run, command, network, about, fixed)
        weights = pretrain_network(
            run, network, batches, objective, command.pretraining, about.epochs, progress.epoch_ended
        )
        if not run.is_main:
            return
        # The one that was trained may be spread over the processes.
        progress.network = POPAR(given.name, given.image_size, **options).to(run.device).eval()
        progress.network.load_state_dict(weights)
        save_pretrained(run.out, progress.network, about)
        found = {} if fixed is None else fixed.measure(progress.network, run.device)
        run.finish({
            "subtasks": list(about.subtasks), "pictures": len(training), "measured_pictures": len(held_out),
            "excluded": len(left_out), "epochs": about.epochs, "steps": run.step, **found,
        })  # fmt: skip
        progress.report(about.epochs, found)
    say(f"network: {run.out}   report: {run.out / 'report.html'}   next: {PACKAGE} fine-tune --init {run.out} ...")


def objective_of(distortions: of.Distortions) -> Objective:
    """The settings as the method takes them."""
    statistics = STATISTICS[distortions.normalisation]
    return Objective(distortions.subtasks, distortions.order_loss_on_appearance, statistics, distortions.channels)


class _Progress:
    """Measures after some epochs, and shows it: a line, a sheet of examples, a fresh report."""

    def __init__(
        self, run: Run, command: of.Pretrain, network: POPAR, about: Pretrained, fixed: FixedDistortions | None
    ) -> None:
        self.run, self.command, self.network, self.about, self.fixed = run, command, network, about, fixed
        self.since, self.step = time.monotonic(), run.step

    def epoch_ended(self, epoch: int, step: int) -> dict[str, float]:
        """Numbers to log, after every `measure_every`-th epoch and the last one."""
        recipe = self.command.pretraining
        if epoch % recipe.measure_every and epoch != self.about.epochs:
            return {}
        seconds, steps = time.monotonic() - self.since, step + 1 - self.step
        found = {} if self.fixed is None else self.fixed.measure(self.network, self.run.device)
        texts = [f"{name.replace('_', ' ')} {value:.4f}" for name, value in found.items()]
        rate = steps * recipe.batch_size / seconds
        say(", ".join([f"epoch {epoch} of {self.about.epochs}: {rate:.1f} pictures/s", *texts]))
        if self.fixed is not None:
            rows = self.fixed.examples(self.network, self.run.device, recipe.examples)
            write_image(self.run.out / EXAMPLES / f"epoch-{epoch:04d}.png", examples_sheet(rows))
        if epoch < self.about.epochs:
            self.report(epoch, found)
        self.since, self.step = time.monotonic(), step + 1
        return found

    def report(self, epoch: int, found: dict[str, float]) -> None:
        """Write report.html as it stands after an epoch."""
        about, out = self.about, self.run.out
        report = Report(f"Pretraining: {about.name}", f"{about.backbone} at {about.image_size} pixels", package=PACKAGE)
        report.text(
            f"{about.pictures} pictures without labels; epoch {epoch} of {about.epochs}. Each picture is cut into "
            f"{self.network.grid} x {self.network.grid} patches of {self.network.patch} pixels. Guessing would name "
            f"{1 / self.network.grid**2:.2%} of the positions."
        )
        curves = {"loss": "sum", "order_loss": "order", "restoration_loss": "restoration"}
        figures.training_curves(report, out, curves, "loss", "Loss of the training batches")
        if self.fixed is not None:
            report.section("Fixed distortions")
            report.text(f"{len(self.fixed)} pictures that are not trained on, always under the same distortions.")
            names = {"order_accuracy": "permuted", "identity_accuracy": "untouched"}
            figures.training_curves(report, out, names, "accuracy", "Share of positions named rightly")
            names = {"mse_permuted": "permuted", "mse_appearance": "appearance distorted"}
            figures.training_curves(report, out, names, "mean squared error", "Restoration, in normalised values")
            if found:
                report.table(
                    ("what", "value"),
                    [(MEASURES[name], value) for name, value in found.items()],
                    f"After epoch {epoch}",
                )
            report.picture(
                examples_figure(self.fixed.examples(self.network, self.run.device, self.command.pretraining.examples)),
                "Pictures that are not trained on, what the network sees, and what it restores",
                "rows of radiographs: original, distorted, restored",
            )
        report.section("Speed")
        rates = throughput(out, self.command.pretraining.batch_size)
        if rates:
            steps, values = np.array(rates).T
            report.curves({"training": (steps, values)}, "step", "pictures per second", "Throughput, loading included")
        figures.training_curves(report, out, {"learning_rate": "learning rate"}, "learning rate", "Learning rate")
        report.section("Settings")
        report.settings(self.command)
        report.write(out / "report.html")
