"""`stain-aglr normalise`: pictures of a folder or datalist with the stains of a reference, file by file (Fig. 4)."""

from __future__ import annotations

import dataclasses
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from dart_core.cli import say
from dart_core.data.datalist import Datalist, Row
from dart_core.data.images import ENDINGS, find_pictures, read_image, write_image
from dart_core.errors import DartError, InputError
from dart_core.files import write_csv
from dart_core.log import Log
from dart_core.report import Report
from dart_core.run import claim_folder, find_device, flat_settings
from stain_aglr import settings as of
from stain_aglr.commands import NORMALISER
from stain_aglr.models import PACKAGE, load_generator, load_model
from stain_aglr.networks import PatchClassifier
from stain_aglr.normalisation import Normaliser, load_normaliser, unmixing_of
from stain_aglr.normalisers import as_batch, nearest_to_mean, remixed
from stain_aglr.timing import Timing, hundred_patches, seconds_per_hundred

COLUMNS = ("image", "site", "method", "output", "status", "reason", "h_red", "h_green", "h_blue", "e_red", "e_green",
           "e_blue", "h_strength", "e_strength", "seconds")  # fmt: skip
UNCHANGED = "no stained tissue, or tissue of one colour: left as it is"
CLOSE_REDS = 0.02
"""Difference of the stains' red components below which the rule "more red is haematoxylin" (specification 4.2) is not to be
trusted: a picture with swapped stains looks inverted."""
UNSURE = "the two stains are about equally red, and may be swapped: look at the picture"
SHOWN = 8
"""Columns of the contact sheet."""


@dataclass(eq=False)
class Regenerator:
    """What Stain-AgLr's generator makes of a patch: M_gen(M_ft(patch)), a row of Fig. 4."""

    method: str
    network: PatchClassifier
    generator: torch.nn.Module
    reference: None = None

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (N, 3, H, W) -> the same."""
        if any(side % 32 for side in images.shape[2:]):
            raise InputError(
                f"the picture has {images.shape[2]} x {images.shape[3]} pixels", remedy="give sides divisible by 32"
            )
        made: Tensor = self.generator(self.network.features(images.float() / 255))
        return (made * 255).round().to(torch.uint8)


Way = Normaliser | Regenerator


@dataclass
class Done:
    """What became of one picture."""

    row: Row
    results: list[dict[str, Any]] = field(default_factory=list)
    """A line of stains.csv for each way, in their order."""

    @property
    def written(self) -> bool:
        """At least one way gave a picture."""
        return any(line["output"] for line in self.results)


def normalise(command: of.Normalise) -> int:
    """Normalise pictures; write them, stains.csv, a contact sheet and report.html. 2 if no picture could be read."""
    device = find_device(command.device)
    rows = _rows(command.pictures)
    ways, classifiers = _ways(command, rows, device)
    out = command.output.out
    claim_folder(out, flat_settings(command), overwrite=command.output.overwrite)
    names = _names(command.pictures, rows)
    workers = command.workers or os.cpu_count() or 1
    threads = torch.get_num_threads()
    log = Log(out)
    try:
        # One picture a thread: several at once that each take all cores would only get into each other's way.
        torch.set_num_threads(max(1, threads // workers))
        with ThreadPoolExecutor(workers) as pool:
            jobs = pool.map(lambda row, name: _one(row, name, ways, out, device), rows, names)
            try:
                done = list(log.progress(jobs, "normalising", len(rows)))
            except BaseException:
                pool.shutdown(cancel_futures=True)  # after Ctrl-C nobody waits for what has not begun
                raise
    finally:
        torch.set_num_threads(threads)
        log.close()
    lines = [line for one in done for line in one.results]
    for line in lines:
        line["place"] = line["output"] and line["output"].relative_to(out).as_posix()
    names_there = ["place" if name == "output" else name for name in COLUMNS]
    write_csv(out / "stains.csv", COLUMNS, [[line.get(name) for name in names_there] for line in lines])
    for name in ways:
        _datalist(out, name, done)
    timings = _timings(command, ways, classifiers, done, device)
    _report(command, ways, done, timings)
    failed = [one for one in done if not one.written]
    for one in failed[:5]:
        say(f"left out: {one.row.image}: {one.results[0]['reason']}")
    if len(failed) > 5:
        say(f"left out: {len(failed) - 5} more, see stains.csv")
    for name in ways:
        unsure = sum(line["method"] == name and line["reason"] == UNSURE for line in lines)
        if unsure:
            say(f"{name}: in {unsure} pictures {UNSURE} (column reason of stains.csv)")
    say(f"{len(done) - len(failed)} of {len(done)} pictures: {out}   report: {out / 'report.html'}")
    return 2 if len(failed) == len(done) else 0


def _rows(pictures: Path) -> list[Row]:
    if pictures.is_dir():
        return [Row(path) for path in find_pictures(pictures)]
    if pictures.suffix.lower() in ENDINGS:
        read_image(pictures)  # the only one
        return [Row(pictures)]
    return list(Datalist.read(pictures))


def _names(pictures: Path, rows: Sequence[Row]) -> list[str]:
    """A name ending in .png for each picture: its place below the folder (or datalist), made unique."""
    base = (pictures if pictures.is_dir() else pictures.parent).resolve()
    names: list[str] = []
    taken: set[str] = set()
    for number, row in enumerate(rows):
        path = row.image.parent.resolve() / row.image.name
        inside = path.relative_to(base) if path.is_relative_to(base) else Path(f"{number:06d}-{path.name}")
        for name in (inside.with_suffix(".png"), inside.with_name(f"{inside.name}.png"), Path(f"{number:06d}.png")):
            if name.as_posix() not in taken:
                break
        taken.add(name.as_posix())
        names.append(name.as_posix())
    return names


# --- What normalises -------------------------------------------------------------------------------------------------


def _ways(
    command: of.Normalise, rows: Sequence[Row], device: torch.device
) -> tuple[dict[str, Way], dict[str, PatchClassifier]]:
    """The normalisers by name, and the classifiers of --model by the same name.

    A way is called by its method; a run whose method is there twice by its folder.
    """
    ways: dict[str, Way] = {}
    classifiers: dict[str, PatchClassifier] = {}
    for method in dict.fromkeys(command.method or (() if command.model else ("macenko",))):
        normaliser = unmixing_of(method, command.standardise_luminosity, command.reference)
        if command.reference is None and (method == "vahadane" or command.reference_from_mean):
            normaliser.reference = _fit_to_mean(normaliser.how, rows)
        ways[method] = normaliser
    runs: list[tuple[Path, PatchClassifier, Way]] = []
    for path in command.model:
        network, model = load_model(path, device)
        folder = path if path.is_dir() else path.parent
        if model.method in of.NORMALISED:
            runs.append((folder, network, load_normaliser(folder / NORMALISER, device)))
        elif model.method in of.REGENERATING:
            runs.append((folder, network, Regenerator(model.method, network, load_generator(path, device))))
        else:
            raise InputError(
                f"--method {model.method} leaves colours as they are", where=path, remedy="give a run that normalises"
            )
    often = Counter([*ways, *(way.method for _, _, way in runs)])
    for folder, network, way in runs:
        name = way.method if often[way.method] == 1 else folder.resolve().name
        if name in ways:
            raise InputError(
                f"its pictures would go to the folder {name}, as others do",
                where=folder,
                remedy="rename the run's folder",
            )
        ways[name], classifiers[name] = way, network
    return ways, classifiers


def _fit_to_mean(how: Any, rows: Sequence[Row]) -> Tensor:
    """Take the picture whose mean colour is nearest to the mean of all as the reference."""
    colours, readable = [], []
    for row in rows:
        try:
            colours.append(torch.from_numpy(read_image(row.image).mean((0, 1))))
            readable.append(row)
        except DartError:
            continue  # has its line in stains.csv
    for index in nearest_to_mean(torch.stack(colours))[:20] if colours else []:
        picture = read_image(readable[index].image)
        try:
            how.fit(picture)
        except ValueError:
            continue
        return torch.from_numpy(picture).permute(2, 0, 1)
    raise InputError("no picture can serve as the reference: none is readable and shows stained tissue",
                     remedy="give --reference FILE")  # fmt: skip


# --- One picture -----------------------------------------------------------------------------------------------------


def _one(row: Row, file: str, ways: Mapping[str, Way], out: Path, device: torch.device) -> Done:
    done = Done(row)
    try:
        images = as_batch(read_image(row.image))
    except DartError as error:
        reason = error.problem if error.remedy is None else f"{error.problem}; {error.remedy}"
        done.results = [_line(row, name, "failed", reason) for name in ways]
        return done
    for name, way in ways.items():
        started = time.perf_counter()
        try:
            result, line = _normalised(row, name, way, images, device)
        except InputError as error:
            done.results.append(_line(row, name, "failed", error.problem))
            continue
        path = out / name / file
        write_image(path, result[0].permute(1, 2, 0).contiguous().numpy())
        done.results.append({**line, "output": path, "seconds": round(time.perf_counter() - started, 4)})
    return done


def _normalised(row: Row, name: str, way: Way, images: Tensor, device: torch.device) -> tuple[Tensor, dict[str, Any]]:
    """A picture uint8 (1, 3, H, W) normalised, on the CPU, and its line of the table."""
    line = _line(row, name, "ok", "")
    if isinstance(way, Regenerator) or isinstance(way.how, torch.nn.Module):
        return way(images.to(device)).cpu(), line
    how = way.how
    stains = how.stains(images)
    assert how.stain_matrix is not None
    assert how.max_concentrations is not None
    target = torch.from_numpy(how.stain_matrix).float(), torch.from_numpy(how.max_concentrations).float()
    if not stains.found[0]:
        return images, {**line, "status": "unchanged", "reason": UNCHANGED}
    numbers = [*stains.matrix[0].flatten().tolist(), *stains.strength[0].tolist()]
    found = {key: round(value, 6) for key, value in zip(COLUMNS[6:14], numbers, strict=True)}
    if found["h_red"] - found["e_red"] < CLOSE_REDS:
        line["reason"] = UNSURE
    return remixed(images, stains, *target, how.light), {**line, **found}


def _line(row: Row, method: str, status: str, reason: str) -> dict[str, Any]:
    return {
        "image": row.image,
        "site": row.site,
        "method": method,
        "output": None,
        "status": status,
        "reason": " ".join(reason.split()),
    }


def _datalist(out: Path, method: str, done: Sequence[Done]) -> None:
    """A datalist of the normalised pictures with all that was known about the raw ones."""
    rows = [
        dataclasses.replace(one.row, image=line["output"])
        for one in done
        for line in one.results
        if line["method"] == method and line["output"] is not None
    ]
    if rows:
        Datalist(tuple(rows)).write(out / method / "datalist.csv")


# --- What is shown ---------------------------------------------------------------------------------------------------


def _timings(
    command: of.Normalise, ways: Mapping[str, Way], classifiers: Mapping[str, PatchClassifier], done: Sequence[Done],
    device: torch.device,
) -> list[Timing]:  # fmt: skip
    if not command.time_repeats:
        return []
    readable = [one for one in done if one.written][:100]
    if not readable:
        return []
    patches = hundred_patches([as_batch(read_image(one.row.image))[0] for one in readable]).to(device)
    functions: dict[str, Any] = {}
    for name, way in ways.items():
        if isinstance(way, Regenerator):
            functions[f"{name}, classification"] = _after(None, classifiers[name])
            functions[f"{name}, generator (not needed to classify)"] = way
        else:
            functions[name] = way
            if name in classifiers:
                functions[f"{name} and classification"] = _after(way, classifiers[name])
    found = seconds_per_hundred(functions, patches, command.time_repeats)
    columns = [f.name for f in dataclasses.fields(Timing)]
    write_csv(command.output.out / "timing.csv", columns, [dataclasses.astuple(one) for one in found])
    return found


def _after(way: Normaliser | None, classifier: PatchClassifier) -> Any:
    """Classification of uint8 patches, after a normaliser where there is one."""

    @torch.no_grad()
    def both(images: Tensor) -> Tensor:
        logits: Tensor = classifier((images if way is None else way(images)).float() / 255)
        return logits

    return both


def _examples(done: Sequence[Done]) -> list[Done]:
    """One picture of each site, or some evenly spaced."""
    written = [one for one in done if one.written]
    sites = {one.row.site: one for one in reversed(written) if one.row.site}
    if len(sites) > 1:
        return [sites[site] for site in dict.fromkeys(one.row.site for one in written) if site in sites][:SHOWN]
    places = np.unique(np.linspace(0, len(written) - 1, min(SHOWN, len(written))).round().astype(int))
    return [written[i] for i in places]


def contact_sheet(ways: Mapping[str, Way], examples: Sequence[Done]) -> Figure:
    """Rows: raw and each way, below the reference pictures; columns: laboratories or pictures (Fig. 4)."""
    pictures: list[tuple[str, list[NDArray[np.uint8] | None]]] = [
        ("raw", [read_image(one.row.image) for one in examples])
    ]
    for name in ways:
        files = [{line["method"]: line["output"] for line in one.results}.get(name) for one in examples]
        pictures.append((name, [None if file is None else read_image(file) for file in files]))
    references = [
        (name, way.reference.permute(1, 2, 0).numpy()) for name, way in ways.items() if way.reference is not None
    ]
    if references:
        shown: list[NDArray[np.uint8] | None] = [picture for _, picture in references]
        pictures.append(("reference", shown[: len(examples)]))
    width = max(3, len(examples))
    figure = Figure(figsize=(1.5 * width + 0.4, 1.6 * len(pictures) + 0.3), layout="constrained")
    axes = figure.subplots(len(pictures), width, squeeze=False)
    for (label, row), cells in zip(pictures, axes, strict=True):
        for cell, picture in zip(cells, [*row, *[None] * (width - len(row))], strict=True):
            cell.set_xticks([])
            cell.set_yticks([])
            cell.axis("off") if picture is None and cell is not cells[0] else None
            cell.spines[:].set_visible(False)
            if picture is not None:
                cell.imshow(picture)
        cells[0].set_ylabel(label, fontsize=9, parse_math=False)
    for one, cell in zip(examples, axes[0], strict=False):
        cell.set_title(one.row.site or one.row.image.stem[:18], fontsize=8, parse_math=False)
    for (method, _), cell in zip(references, axes[-1] if references else [], strict=False):
        cell.set_title(method, fontsize=8, parse_math=False)
    return figure


def _report(command: of.Normalise, ways: Mapping[str, Way], done: Sequence[Done], timings: Sequence[Timing]) -> None:
    methods = ", ".join(ways)
    report = Report("Normalised pictures", f"{len(done)} pictures; {methods}", package=PACKAGE)
    examples = _examples(done)
    out = command.output.out
    if examples:
        figure = contact_sheet(ways, examples)
        figure.savefig(out / "contact.png", dpi=110)
        report.picture(
            figure,
            "Pictures as they are (raw) and as each method gives them; below, the picture whose stains they are given, where "
            "a method has one (macenko's default is a published matrix)",
            "rows of pictures: raw, normalised, reference",
        )
    report.section("Counts")
    report.table(
        ["method", "normalised", "of these perhaps swapped", "unchanged", "failed"],
        list(_counts(ways, done)),
        "Pictures. Perhaps swapped: the two stains are about equally red, so that haematoxylin may have been taken for eosin, "
        "which makes a picture look inverted; stains.csv names them",
    )
    problems = [line for one in done for line in one.results if line["status"] != "ok"]
    if problems:
        report.table(
            ["picture", "method", "status", "reason"],
            [[str(line["image"]), line["method"], line["status"], line["reason"]] for line in problems[:100]],
            f"The first of {len(problems)} pictures that were not normalised; all are in stains.csv",
        )
    if timings:
        report.section("Time")
        report.table(
            ["what", "seconds for 100 patches", "fastest", "slowest", "repeats", "threads", "machine"],
            [[t.name, t.seconds, t.fastest, t.slowest, t.repeats, t.threads, t.machine] for t in timings],
            "Median time for 100 patches of 128 x 128 that lie in memory (Table 2 of the paper: NVIDIA A100). The time of Table 2 is "
            "that of normalisation and classification for methods that normalise, and of classification alone for all others: "
            "vanilla, hed, hed-reg, hed-cons and stain-aglr classify with the same network",
        )
    report.section("Settings")
    report.settings(command)
    report.write(out / "report.html")


def _counts(ways: Iterable[str], done: Sequence[Done]) -> Iterator[list[Any]]:
    for name in ways:
        states = [line["status"] for one in done for line in one.results if line["method"] == name]
        unsure = sum(line["method"] == name and line["reason"] == UNSURE for one in done for line in one.results)
        yield [name, states.count("ok"), unsure, states.count("unchanged"), states.count("failed")]
