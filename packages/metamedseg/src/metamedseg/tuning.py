"""The command `fine-tune`: few-shot and full-data training on a target organ, and its test (specification 2.6, 6)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dart_core import figures
from dart_core.checkpoint import WEIGHTS, load_weights, save_model, weights_file
from dart_core.cli import say
from dart_core.errors import InputError, SettingError
from dart_core.files import write_csv
from dart_core.report import Report
from dart_core.run import CONFIG, Run
from metamedseg import settings as of
from metamedseg.baselines import Pooled, train_supervised
from metamedseg.commands import device_of
from metamedseg.datasets import SliceSet, find_set, read_channel, read_slices, read_slicing
from metamedseg.figures import overlay_figure
from metamedseg.measures import iou_score
from metamedseg.method import draw_slices
from metamedseg.models import PACKAGE, Model, load_model
from metamedseg.networks import MetaUNet

SCORES = "scores.csv"
COLUMNS = ("slice", "volume", "iou")
SHOWN = 6


def fine_tune_command(command: of.FineTune) -> None:
    """Fine-tune once for each selection, test each on the same slices; write networks, scores and report.html."""
    sets = read_slices(command.slices)
    slices = find_set(sets, command.target, command.slices)
    train, test = slices.split("train"), slices.split("test")
    for part, name in ((train, "training"), (test, "test")):
        if not len(part):
            raise InputError(
                f"{command.target} has no {name} slice", where=command.slices, remedy="prepare more volumes"
            )
    if command.shots > len(train):
        raise InputError(
            f"{command.target} has {len(train)} training slices, {command.shots} are asked for",
            where=command.slices,
            remedy="give fewer --shots (0 = all)",
        )
    init = None
    if command.init is not None:
        _, init = load_model(command.init, "initialisation")
        own = of.Network(**init.network)
        for flag, given in dataclasses.asdict(command.network).items():
            if given not in (getattr(of.Network(), flag), getattr(own, flag)):
                raise SettingError(
                    f"--{flag} is {given}, and {getattr(own, flag)} in {command.init}", remedy=f"leave out --{flag}"
                )
        # What acts shall stand in config.yaml and in the report.
        command = dataclasses.replace(command, network=own)
        if command.target in init.sources:
            raise SettingError(
                f"{command.init} was trained on {command.target}", remedy="give an initialisation that excluded it"
            )
    slicing, channel = read_slicing(command.slices), read_channel(command.slices, command.target)
    selections = command.selections if command.shots else command.selections[:1]
    name = command.name or ("supervised" if init is None else init.name)
    scores: dict[int, NDArray[np.float64]] = {}
    counts: dict[int, int] = {}
    with Run(command.run, command) as run:
        kin = [] if init is None else [one for one in init.sources if one in sets and sets[one].organ == slices.organ]
        if run.is_main and kin:
            say(
                f"warning: {command.init} learnt from {', '.join(kin)}, of the same organ as {command.target}: pictures of its "
                "test patients may be among them; --exclude them from meta-train for a test on new patients"
            )
        for selection in selections:
            folder = run.out / f"selection-{selection}"
            chosen = select(train, command, selection)
            counts[selection] = len(chosen)
            model = Model(
                "target", name, dataclasses.asdict(command.network), () if init is None else init.sources,
                command.target, len(chosen) if command.shots else 0, selection,
                {} if slicing is None else dataclasses.asdict(slicing), channel,
            )  # fmt: skip
            if not (folder / WEIGHTS).is_file():
                settings = dataclasses.replace(
                    command.run, out=folder, resume=(folder / CONFIG).is_file(), overwrite=False
                )
                with Run(settings, command) as selected:
                    _train(selected, command, chosen, model)
            run.mean(torch.zeros(()))  # the others wait until the main process has written the network
            if run.is_main:
                network, _ = load_model(folder, "target", run.device)
                scores[selection] = test_slices(network, test, folder)
                say(f"{name}, {command.target}, selection {selection}: IoU {100 * scores[selection].mean():.2f} %")
        if not run.is_main:
            return
        content = summary(model, slices, scores, counts)
        run.finish(content)
        _report(run, command, content, test, scores)
    say(f"{name} on {command.target}: IoU {text_of(content)} %   report: {run.out / 'report.html'}")


def text_of(content: dict[str, Any]) -> str:
    """Mean and standard deviation of a summary, in per cent."""
    spread = "" if content["std"] is None else f" ± {100 * content['std']:.2f}"
    return f"{100 * content['mean']:.2f}{spread}"


def select(train: SliceSet, command: of.FineTune, selection: int) -> SliceSet:
    """The training slices of one selection."""
    if not command.shots:
        return train
    rng = np.random.default_rng(selection)
    kind = of.Tasks("volumetric" if command.shots_from == "volume" else "standard", command.shots)
    places = sorted(draw_slices(train, kind, rng))
    return dataclasses.replace(train, rows=tuple(train.rows[place] for place in places))


def _train(run: Run, command: of.FineTune, chosen: SliceSet, model: Model) -> None:
    network = MetaUNet(command.network.depth, command.network.norm, command.network.width)
    if command.init is not None:
        network.load_state_dict(load_weights(weights_file(command.init))[0])
    rate = (command.rate, command.decay, command.every)
    train_supervised(
        run, network, Pooled([chosen]), command.loss, command.epochs, rate, command.weight_decay, command.batch_size,
        command.log_every,
    )  # fmt: skip
    if run.is_main:
        run.finish({"name": model.name, "target": model.target, "selection": model.selection, "steps": run.step})
        save_model(run.out, network, PACKAGE, model)


def test_slices(network: MetaUNet, test: SliceSet, folder: Path) -> NDArray[np.float64]:
    """IoU of each test slice (n,), also written to scores.csv."""
    values = segment_slices(network, test)[1]
    rows = [(row.name, row.volume, round(float(value), 6)) for row, value in zip(test.rows, values, strict=True)]
    write_csv(folder / SCORES, COLUMNS, rows)
    return values


@torch.no_grad()
def segment_slices(
    network: MetaUNet, slices: SliceSet, batch_size: int = 16
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Masks (n, h, w) and IoU (n,) of slices."""
    masks, values = [], []
    for start in range(0, len(slices), batch_size):
        images, truth = slices.stack(range(start, min(start + batch_size, len(slices))))
        logits = network(images.to(device_of(network))).float().cpu()
        masks.append((torch.sigmoid(logits) > 0.5)[:, 0].numpy())
        values.append(iou_score(logits, truth).double().numpy())
    return np.concatenate(masks), np.concatenate(values)


def summary(
    model: Model, slices: SliceSet, scores: dict[int, NDArray[np.float64]], counts: dict[int, int]
) -> dict[str, Any]:
    """What metrics.json says: IoU over slices and over volumes, mean and sample standard deviation over selections.

    Args:
        model: of any selection.
        slices: of the target.
        scores: selection -> IoU of the test slices (n,).
        counts: selection -> how many training slices it has. "shots" is the most of them, and 0 for all slices.
    """
    test = slices.split("test")
    means = [float(values.mean()) for values in scores.values()]
    groups = test.volumes().values()
    by_volume = [float(np.mean([values[places].mean() for places in groups])) for values in scores.values()]
    return {
        "name": model.name,
        "target": model.target,
        "shots": max(counts.values()) if model.shots else 0,
        "training_slices": {str(selection): count for selection, count in counts.items()},
        "test_slices": len(test),
        "test_volumes": len(test.volumes()),
        "mean": float(np.mean(means)),
        "std": float(np.std(means, ddof=1)) if len(means) > 1 else None,
        "volume_mean": float(np.mean(by_volume)),
        "selections": {str(selection): mean for selection, mean in zip(scores, means, strict=True)},
        "volume_means": {str(selection): mean for selection, mean in zip(scores, by_volume, strict=True)},
    }


def _report(
    run: Run, command: of.FineTune, content: dict[str, Any], test: SliceSet, scores: dict[int, NDArray[np.float64]]
) -> None:
    used = content["training_slices"].values()
    shots = "all training slices"
    if command.shots:  # of one volume there may be fewer, in each selection another number
        shots = f"{max(used)} slices" if min(used) == max(used) else f"{min(used)} to {max(used)} slices"
    report = Report(f"{content['name']} on {command.target}", f"fine-tuned on {shots}", package=PACKAGE)
    report.text(
        f"Mean IoU of {len(test)} test slices of {content['test_volumes']} volumes: {text_of(content)} %"
        f" ({len(scores)} selection{'s' * (len(scores) > 1)}; ± is the standard deviation over them). "
        f"Volume by volume it is {100 * content['volume_mean']:.2f} %. The weights are those of the last epoch."
    )
    report.table(
        ("selection (seed)", "training slices", "IoU in %", "IoU by volume in %"),
        [
            (key, content["training_slices"][key], 100 * mean, 100 * content["volume_means"][key])
            for key, mean in content["selections"].items()
        ],
        "Each selection of training slices is a training of its own; all have the same test slices",
    )
    first = next(iter(scores))
    folder = run.out / f"selection-{first}"
    figures.training_curves(report, folder, {"loss": "training"}, "loss", f"Loss of selection {first}")
    network, _ = load_model(folder, "target", run.device)
    order = np.argsort(scores[first])
    places = [int(order[i]) for i in np.linspace(0, len(order) - 1, min(SHOWN, len(order))).round().astype(int)]
    report.picture(
        picture(network, test, places, content["name"]),
        f"Test slices of selection {first} from the worst to the best: found green, missed red, wrong yellow",
        "slices with the prediction",
    )
    report.section("Settings")
    report.settings(command)
    report.write(run.out / "report.html")


def picture(network: MetaUNet, slices: SliceSet, places: Sequence[int], name: str) -> Any:
    """Slices with the truth and what a network finds."""
    part = dataclasses.replace(slices, rows=tuple(slices.rows[place] for place in places))
    masks, values = segment_slices(network, part)
    rows = []
    for place, (mask, value) in enumerate(zip(masks, values, strict=True)):
        image, truth = part.image(place)[0], part.mask(place)[0] > 0
        rows.append((part.rows[place].name, image, truth, [(f"{name}: {100 * value:.0f} %", mask)]))
    return overlay_figure(rows)


def read_summary(folder: Path) -> dict[str, Any]:
    """metrics.json of a run of `fine-tune`.

    Raises:
        InputError: there is none, or one of something else.
    """
    file = folder / "metrics.json"
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        for key in ("name", "target", "shots", "mean", "std", "volume_mean", "selections"):
            content[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"cannot be read ({error.strerror})" if isinstance(error, OSError) else "is of something else"
        raise InputError(problem, where=file, remedy="give a finished run of `metamedseg fine-tune`") from error
    return content
