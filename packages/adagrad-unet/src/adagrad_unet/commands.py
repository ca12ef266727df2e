"""The commands `check-data`, `plan`, `train` and `layer-speed`: read and check everything, claim the output, then work."""

from __future__ import annotations

import collections
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from adagrad_unet import settings as of
from adagrad_unet.analysis import FORMS, by_group, levelness
from adagrad_unet.cases import Recipe, load_case, make_recipe, read_case
from adagrad_unet.figures import rates_figure, update_figure
from adagrad_unet.method import run_name, train_network
from adagrad_unet.network import GenericUNet2d
from adagrad_unet.plan import Plan
from adagrad_unet.rows import channel_files, check_channels, label_names, read_datalist, training_rows
from dart_core.checkpoint import WEIGHTS, save_weights
from dart_core.cli import say
from dart_core.data.datalist import Row, check
from dart_core.errors import DartError, InputError, OutputError, SettingError
from dart_core.figures import training_curves
from dart_core.files import write_atomic, write_csv
from dart_core.report import Report
from dart_core.run import METRICS, Run, claim_folder, flat_settings

PLAN = "plan.json"
NEAR = 0.05
"""Learning rates within this share of each other count as equal."""


# --- check-data ------------------------------------------------------------------------------------------------------


def check_data(command: of.CheckData) -> int:
    """Print every problem of a datalist; 0 if there is none, else 2."""
    datalist = read_datalist(command.cases)
    names = label_names(command.cases, datalist)
    expected = _usual_channels(list(datalist))

    def open_row(row: Row) -> Iterator[tuple[str, DartError]]:
        try:
            check_channels([row], expected)
            raw = read_case(row, command.cases, expected, need_mask=command.require_mask)
            if raw.labels is not None and names and raw.labels.max() > len(names):
                raise InputError(
                    f"has label {raw.labels.max()}, and the labels are {', '.join(names)}",
                    where=row.mask,
                    remedy="correct the mask, or name all labels with --labels",
                )
        except DartError as error:
            yield "mask" if row.mask is not None and str(error).startswith(str(row.mask)) else "image", error

    found = [str(problem) for problem in check(datalist, open_row)]
    for line in found:
        print(line)
    sites = {site: sum(row.site == site for row in datalist) for site in datalist.sites}
    counts = ", ".join(f"{site} {count}" for site, count in sites.items()) or "no site column"
    print(f"{len(datalist)} images ({counts}): {len(found) or 'no'} problem{'s' * (len(found) != 1)}")
    return 2 if found else 0


def _usual_channels(rows: Sequence[Row]) -> int:
    """The number of channels that most rows have."""
    counts = collections.Counter(len(channel_files(row)) for row in rows)
    return counts.most_common(1)[0][0]


# --- plan ------------------------------------------------------------------------------------------------------------


def make_plan(command: of.MakePlan) -> None:
    """Write the plan of a training set and print it."""
    if command.out.suffix != ".json":
        raise OutputError("the file name must end in .json", where=command.out, remedy="rename --out")
    if command.out.exists() and not command.overwrite:
        raise OutputError("is there already", where=command.out, remedy="--overwrite replaces it")
    datalist = read_datalist(command.cases)
    rows = training_rows(command.cases, datalist)
    recipe = make_recipe(rows, command.cases, command.planning, label_names(command.cases, datalist))
    write_atomic(command.out, json.dumps(json.loads(recipe.as_text()), indent=2) + "\n")
    for name, value in plan_rows(recipe, len(rows)):
        print(f"{name:<24}{value}")
    say(f"plan: {command.out}")


def plan_rows(recipe: Recipe, cases: int) -> list[tuple[str, str]]:
    """What the planner decided, for people."""
    plan: Plan = recipe.plan
    network = GenericUNet2d(recipe.channels, recipe.classes, plan.pool, plan.conv, plan.features)
    x, y = recipe.spacing[1:]
    return [
        ("training images", str(cases)),
        ("channels, labels", f"{recipe.channels}, {' '.join(recipe.labels)}"),
        ("slices along", "zyx"[recipe.slice_axis]),
        ("pixels", f"{x:.4g} x {y:.4g} mm"),
        ("normalisation", "inside the non-zero mask" if recipe.nonzero else "whole image"),
        ("patch", f"{plan.patch_size[0]} x {plan.patch_size[1]}"),
        ("batch", str(plan.batch_size)),
        ("halvings", " ".join(f"{rows}x{columns}" for rows, columns in plan.pool)),
        ("feature maps", " ".join(str(width) for width in plan.features)),
        ("parameters", f"{sum(parameter.numel() for parameter in network.parameters()):,}"),
    ]


def read_plan(path: Path) -> Recipe:
    """The recipe in a file that `plan` wrote.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"cannot be read ({reason})", where=path, remedy="check --plan") from error
    return Recipe.from_text(text, path)


# --- train -----------------------------------------------------------------------------------------------------------


def train(command: of.Train) -> None:
    """Train the network of one site."""
    datalist = read_datalist(command.cases)
    rows = training_rows(command.cases, datalist)
    validation_rows = [row for row in datalist if row.split == "val"]
    check_channels([*rows, *validation_rows])
    if command.plan is None:
        recipe = make_recipe(rows, command.cases, command.planning, label_names(command.cases, datalist))
    elif command.planning != of.Planning():
        raise SettingError("--plan leaves nothing to plan", remedy="give the planner's flags to `plan` instead")
    else:
        recipe = read_plan(command.plan)
    cases = [load_case(row, recipe, command.cases.cache) for row in rows]
    validation = [load_case(row, recipe, command.cases.cache) for row in validation_rows]
    settings, name = command.training, run_name(command.training)
    if settings.optimisation.decoupled and settings.optimisation.initial_rate >= 1:
        factor = 1 - settings.optimisation.initial_rate * settings.optimisation.weight_decay
        say(
            f"warning: --decoupled at --learning-rate {settings.optimisation.initial_rate:g} multiplies all weights by"
            f" {factor:.6g} in every step at first"
        )
    site = command.cases.site or next(iter(datalist.sites), "") if len(datalist.sites) <= 1 else ""
    with Run(command.run, command) as run:
        plan = recipe.plan
        network = GenericUNet2d(recipe.channels, recipe.classes, plan.pool, plan.conv, plan.features)
        updates, rates = train_network(run, network, cases, validation, recipe, settings)
        if not run.is_main:
            return
        metadata = {
            "package": "adagrad-unet", "network": "GenericUNet2d", "recipe": recipe.as_text(), "method": name,
            "site": site, "mirror": "yes" if settings.augmentation else "no",
        }  # fmt: skip
        save_weights(run.out / WEIGHTS, network, metadata)
        write_atomic(run.out / PLAN, json.dumps(json.loads(recipe.as_text()), indent=2) + "\n")
        means = updates.means() if updates.recorded else {}
        content = {"method": name, "training_images": len(cases), "updates": means, "rates": rates}
        run.finish(content | {"levelness": {form: levelness(layers) for form, layers in means.items()}})
        report = Report(name, f"Site {site or '(all)'}, {len(cases)} training images", package="adagrad-unet")
        _curves(report, run.out)
        report.section("Plan")
        report.table(("", "planned"), plan_rows(recipe, len(cases)), "What nnU-Net's rules make of the training images")
        _speed_sections(report, {name: content}, "mean_abs")
        report.section("Settings")
        report.settings(command)
        report.write(run.out / "report.html")
    say(f"network: {run.out / WEIGHTS}   report: {run.out / 'report.html'}")


def _curves(report: Report, out: Path) -> None:
    training_curves(
        report,
        out,
        {"loss": "training batch", "validation_loss": "validation, full resolution"},
        "loss",
        "Dice and cross-entropy loss (-1 is perfect; in training with deep supervision)",
    )
    training_curves(report, out, {"validation_dice": "validation"}, "foreground Dice", "Over all pixels of the batches")


# --- layer-speed -----------------------------------------------------------------------------------------------------


def layer_speed(command: of.LayerSpeed) -> None:
    """Draw the layers' update magnitudes of several runs side by side, and say whether their optimisers were adaptive."""
    runs: dict[str, dict[str, Any]] = {}
    for folder in command.runs:
        content = _read_metrics(folder)
        name = str(content["method"])
        runs[name if name not in runs else f"{name} ({folder.name})"] = content
    claim_folder(command.output.out, flat_settings(command), overwrite=command.output.overwrite)
    out = command.output.out
    forms = {name: content["updates"][command.form] for name, content in runs.items()}
    layers = list(dict.fromkeys(layer for values in forms.values() for layer in values))
    write_csv(
        out / "layers.csv",
        ("layer", *forms),
        [
            (layer, *(f"{values[layer]:.9g}" if layer in values else "" for values in forms.values()))
            for layer in layers
        ],
    )
    spread = {name: _defined(levelness(values)) for name, values in forms.items()}
    rates = {name: content["rates"] for name, content in runs.items()}
    write_atomic(
        out / METRICS, json.dumps({"form": command.form, "levelness": spread, "rates": rates}, indent=2) + "\n"
    )
    report = Report("Speed of the layers", ", ".join(runs), package="adagrad-unet")
    _speed_sections(report, runs, command.form)
    report.section("Settings")
    report.settings(command)
    report.write(out / "report.html")
    for name, values in spread.items():
        text = ", ".join(f"{part} {'–' if value is None else f'{value:.3g}'}" for part, value in values.items())
        print(f"{name:<16} largest / smallest layer: {text}")
    say(f"report: {out / 'report.html'}")


def _defined(values: Mapping[str, float]) -> dict[str, float | None]:
    """None for nan, which JSON does not know: a run in which nothing has moved."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _read_metrics(folder: Path) -> dict[str, Any]:
    file = folder / METRICS
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if not content["updates"] or set(FORMS) - set(content["updates"]) or "rates" not in content:
            raise KeyError("updates")
    except OSError as error:
        raise InputError(
            f"cannot be read ({error.strerror})", where=file, remedy="give a run folder of `adagrad-unet train`"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            "says nothing about the layers' updates",
            where=file,
            remedy="give a finished run of `adagrad-unet train` with --record-every above 0",
        ) from error
    return content


def _speed_sections(report: Report, runs: Mapping[str, Mapping[str, Any]], form: str) -> None:
    """Fig. 2, how level the layers are, and whether the optimiser is adaptive at all."""
    updates = {name: content["updates"][form] for name, content in runs.items() if content["updates"]}
    if updates:
        report.section("Speed of the layers")
        report.picture(
            update_figure(updates, form),
            "Mean update of each convolution per step, in forward order within each group (Fig. 2 of the paper). Convolutions in "
            "front of a norm do not care how large their weights are: only the relative form can be compared between layers.",
            "update magnitude of every layer by group, one panel per run",
        )
        rows = []
        for name, values in updates.items():
            ratios, groups = levelness(values), by_group(values)
            means = [sum(group) / len(group) if group else None for group in groups.values()]
            rows.append((name, ratios["all"], ratios["context"], *means))
        report.table(
            ("run", "largest / smallest", "in the encoder", *(f"mean {group}" for group in by_group({}))),
            rows,
            "How level the layers are: nearer to 1 = they move at more similar speeds",
        )
    rates = {name: content["rates"] for name, content in runs.items() if content["rates"]}
    if rates:
        report.section("Is the optimiser adaptive here?")
        for name, values in rates.items():
            report.text(adaptivity_text(name, values))
        report.picture(
            rates_figure(rates),
            "eta / rms(eta) after the last step: extremes (grey), 1st to 99th percentile (blue), median (black)",
            "spread of the relative learning rates of single weights",
        )


def adaptivity_text(name: str, rates: Mapping[str, float]) -> str:
    """One sentence on whether single weights had learning rates of their own."""
    low, high = rates["rate_p1"], rates["rate_p99"]
    spread = f"98 % of the weights have between {low:.4g} and {high:.4g} times the same learning rate"
    if low >= 1 - NEAR and high <= 1 + NEAR:
        return f"{name} does not adapt: {spread}; the steps are those of SGD with averaged momentum."
    if high / low < 2:
        return f"{name} hardly adapts: {spread}."
    return f"{name} adapts: {spread}."
