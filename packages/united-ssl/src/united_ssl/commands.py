"""The command `pretrain`: the trainings of a strategy one after the other, each from where the one before has come to."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from dart_core import figures
from dart_core.checkpoint import WEIGHTS, load_weights, save_model, save_weights, weights_file
from dart_core.cli import say
from dart_core.errors import CheckpointError, SettingError
from dart_core.files import atomic_write
from dart_core.report import Report
from dart_core.run import CONFIG, Run, find_device
from united_ssl import settings as of
from united_ssl.cubes import Cubes, read_cubes
from united_ssl.figures import SHOWN, restored_figure
from united_ssl.method import carry_over, fixed_views, train_step
from united_ssl.models import CRITIC, PACKAGE, Pretrained, read_model
from united_ssl.networks import set_momentum
from united_ssl.tasks import AnyUNet, Task

PICTURE = "restored.png"


def pretrain(command: of.Pretrain) -> None:
    """Pretrain; write the weights of the best epoch, those of the critic, pictures and report.html."""
    every = read_cubes(command.cubes)
    cubes = {name: every.split(name) for name in ("train", "val")}
    words = 0
    if command.pretext.pretext == "transvw":
        words = max(int(part.labels().max()) for part in cubes.values()) + 1
    chain, before = _chain(command)
    _check_parts(command)
    task = Task(command.pretext, words, command.run.seed)
    for part in cubes.values():
        task.extra(part)
    if task.relabels and len(cubes["train"]) < 2:
        raise SettingError("clusters need more than one cube", remedy="prepare more cubes")
    # A network that does not fit the cubes or the earlier step must not cost the output folder.
    network = task.network(command.network, cubes["train"].shape)
    if before is not None:
        _take_over(network, before)
    del network
    with Run(command.run, command) as run:
        for step in chain[:-1]:
            folder = run.out / f"step-{step}"
            if not (folder / WEIGHTS).is_file():
                settings = dataclasses.replace(
                    command.run, out=folder, resume=(folder / CONFIG).is_file(), overwrite=False
                )  # fmt: skip
                with Run(settings, command) as own:
                    _train(own, command, step, cubes, words, before)
                run.mean(torch.zeros(()))  # the others wait until the main process has written the network
            before = folder
        torch.manual_seed(command.run.seed)
        _train(run, command, chain[-1], cubes, words, before)
        if not run.is_main:
            return
    say(f"network: {run.out}   report: {run.out / 'report.html'}")


def _chain(command: of.Pretrain) -> tuple[tuple[str, ...], Path | None]:
    """The trainings still to do, and the run they go on from."""
    chain = of.CHAINS[command.steps]
    if command.init_from is None:
        return chain, None
    model = read_model(command.init_from)
    if not isinstance(model, Pretrained) or model.step not in chain[:-1]:
        found = model.step if isinstance(model, Pretrained) else "a fine-tuned network"
        raise CheckpointError(
            f"is {found}, no earlier step of {command.steps}", where=command.init_from,
            remedy=f"give a run of --steps {' or '.join(chain[:-1])}",
        )  # fmt: skip
    _same_pretext(command, model)
    return chain[chain.index(model.step) + 1 :], command.init_from


def _same_pretext(command: of.Pretrain, earlier: Pretrained) -> None:
    """Refuse to go on from another pretext task, whose answers the head has learnt.

    Raises:
        SettingError: a setting that differs.
    """
    there = of.Pretext(**earlier.pretext)
    differences = [
        (field.name, old, new)
        for field in dataclasses.fields(there)
        if (old := getattr(there, field.name)) != (new := getattr(command.pretext, field.name))
    ]
    if there.draws_orders and earlier.seed != command.run.seed:
        differences.append(("seed", earlier.seed, command.run.seed))  # the orders of the blocks come from it
    if differences:
        name, old, new = differences[0]
        raise SettingError(
            f"--{name.replace('_', '-')} was {old} there and is {new} here", where=command.init_from,
            remedy="give the pretext task of the earlier step",
        )  # fmt: skip


def _check_parts(command: of.Pretrain) -> None:
    """Dense layers with batch normalisation need two cubes at once.

    Raises:
        SettingError: a part of a batch has one.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    # On CUDA, processes normalise together.
    if command.network.head != "fully_connect" or (
        processes > 1 and find_device(command.run.device, True).type == "cuda"
    ):
        return
    share = command.training.batch_size // processes
    if share // min(command.run.accumulate, max(share, 1)) < 2:
        raise SettingError(
            "--head fully_connect normalises over the cubes of a part of a batch, and there is but one",
            remedy="give a larger --batch-size, or a smaller --accumulate",
        )


def _take_over(network: AnyUNet, before: Path) -> tuple[str, ...]:
    """`carry_over` from the run of an earlier step."""
    earlier = read_model(before)
    assert isinstance(earlier, Pretrained)
    return carry_over(network, load_weights(weights_file(before))[0], earlier.restores)


def _train(run: Run, command: of.Pretrain, step: str, cubes: dict[str, Cubes], words: int, before: Path | None) -> None:
    """One training in a run of its own."""
    shape = cubes["train"].shape
    task = Task(command.pretext, words, command.run.seed)
    network = task.network(command.network, shape)
    set_momentum(network, command.network.norm_momentum)
    carried: tuple[str, ...] = ()
    if before is not None:
        carried = _take_over(network, before)
        if run.is_main:
            say(f"step {step}: {', '.join(carried)} from {before}")
    elif run.is_main:
        say(f"step {step}: from random weights")
    critic = task.critic(command.adversary.critic_norm, command.network.width) if step in of.ADVERSARIAL else None
    command = dataclasses.replace(command, run=run.settings)

    def show(epoch: int, current: AnyUNet) -> None:
        _picture(run, task, current, cubes["val"], step)
        _report(run, command, step, carried, f"after epoch {epoch}; the training goes on")
        last = _lines(run)[-12:]
        texts = []
        for key, form in (
            ("loss", "loss {:.4g}"), ("validation_loss", "validation {:.4g}"), ("validation_mse", "restoration MSE {:.4g}"),
            ("validation_accuracy", "accuracy {:.3f}"),
        ):  # fmt: skip
            values = [line[key] for line in last if line.get(key) is not None]
            texts += [form.format(values[-1])] if values else []
        _, speeds = throughput(last, command.training.batch_size)
        texts += [f"{speeds[-1]:.1f} cubes/s"] if speeds else []
        say(f"step {step}, epoch {epoch}: {', '.join(texts)}")

    best = train_step(run, step, task, network, critic, cubes, command.training, command.adversary, show)
    if not run.is_main:
        return
    network.eval()
    if critic is not None:
        save_weights(run.out / CRITIC, critic, {"step": step})
    _picture(run, task, network, cubes["val"], step)
    model = Pretrained(
        step, dataclasses.asdict(command.pretext), dataclasses.asdict(command.network), shape, command.run.seed, words,
        best.epoch, best.numbers,
    )  # fmt: skip
    content = {
        "name": model.name, "step": step, "carried_over": list(carried), "training_cubes": len(cubes["train"]),
        "validation_cubes": len(cubes["val"]), "steps": run.step, "best_epoch": best.epoch, **best.numbers,
    }  # fmt: skip
    run.finish(content)
    _report(run, command, step, carried, f"weights of epoch {best.epoch}, the best one; {run.step} steps in all")
    save_model(run.out, network, PACKAGE, model)  # last: a folder that has it is finished


@torch.no_grad()
def _picture(run: Run, task: Task, network: AnyUNet, cubes: Cubes, step: str) -> None:
    """restored.png: validation cubes, what the network sees of them, and what it makes of that."""
    shown, extra = cubes.take(range(min(SHOWN, len(cubes)))), task.validation_labels(cubes)
    training = network.training
    network.eval()
    restoring = step in of.RESTORING
    (views,) = fixed_views(task, shown, extra, len(shown), restoring, run.settings.seed, run.device)
    rows = {"target": views.target, "seen": views.seen}
    if restoring:
        rows["restored"] = network(views.seen)[1]
    network.train(training)
    figure = restored_figure({name: cube.float().cpu().numpy() for name, cube in rows.items()})
    with atomic_write(run.out / PICTURE) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _report(run: Run, command: of.Pretrain, step: str, carried: tuple[str, ...], state: str) -> None:
    name = Pretrained(step, dataclasses.asdict(command.pretext), {}, (0, 0, 0), 0).name
    report = Report(f"Pretraining: {name}", state, package=PACKAGE)
    came = f"{', '.join(carried)} of the step before" if carried else "random weights"
    report.text(
        f"Step {step} began with {came}. The weights kept are those of the epoch with the lowest validation "
        + ("restoration error" if step in of.ADVERSARIAL else "loss")
        + "; validation cubes are distorted in the same way every time."
    )
    if step in of.RESTORING:
        report.section("Restored cubes")
        caption = (
            "Middle slices of validation cubes: what is to be restored, what the network sees, and what it restores"
        )
    else:
        report.section("Cubes")
        caption = "Middle slices of validation cubes, and what the network sees of them"
    report.picture(run.out / PICTURE, caption, "rows of slices")
    report.section("Curves")
    figures.training_curves(report, run.out, {"loss": "training batch"}, "loss", "Loss of encoder, decoder and head")
    figures.training_curves(
        report,
        run.out,
        {"loss_d": "discriminative", "validation_d": "the same, validation"},
        "L_d",
        "Discriminative loss",
    )
    figures.training_curves(
        report, run.out, {"loss_r": "restorative", "validation_restoration": "the same, validation"}, "L_r",
        f"Restorative loss ({command.training.norm}, without its weight)",
    )  # fmt: skip
    figures.training_curves(
        report, run.out, {"critic_loss": "critic", "loss_a": "generator", "penalty": "gradient penalty"}, "value",
        "Adversarial losses (the penalty without its weight)",
    )  # fmt: skip
    figures.training_curves(
        report, run.out, {"validation_accuracy": "validation cubes"}, "share of right answers", "Pretext accuracy"
    )
    steps, speeds = throughput(_lines(run), command.training.batch_size)
    if speeds:
        report.curves({"training": (steps, speeds)}, "step", "cubes per second", "Throughput, without validations")
    report.section("Settings")
    report.settings(command)
    report.write(run.out / "report.html")


def _lines(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def throughput(lines: Sequence[Mapping[str, Any]], batch_size: int) -> tuple[list[int], list[float]]:
    """Cubes per second between neighbouring lines of metrics.jsonl, where no validation lies between them.

    The file holds the time of each line, and no speed: what two runs log must be the same.

    Args:
        lines: of metrics.jsonl.
        batch_size: cubes of a step.

    Returns:
        Steps, and the cubes per second up to each.
    """
    steps, speeds = [], []
    for before, line in pairwise(lines):
        seconds = line["time"] - before["time"]
        if "epoch" not in before and "epoch" not in line and seconds > 0 and line["step"] > before["step"]:
            steps.append(int(line["step"]))
            speeds.append((line["step"] - before["step"]) * batch_size / seconds)
    return steps, speeds
