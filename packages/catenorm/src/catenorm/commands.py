"""The commands `check-data`, `align` and `export`."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from catenorm import figures
from catenorm import settings as of
from catenorm.alignment import align_class_statistics, aligned_moments, class_moments
from catenorm.baselines import MSNet, SiteNetwork, site_number
from catenorm.cases import Case, all_names, check_organs, check_sizes, load_case
from catenorm.models import CHANNELS, PACKAGE, Model, check_sides, load_model
from catenorm.rows import label_sets, open_cases, open_divided, ordered_sites
from dart_core.cli import say
from dart_core.data.datalist import Datalist, Row, check
from dart_core.data.scans import frame_of, unique_names
from dart_core.data.volumes import read_labels, read_volume, write_volume
from dart_core.errors import DartError, InputError, SettingError
from dart_core.export import check_file, export_onnx
from dart_core.files import write_atomic
from dart_core.report import Report
from dart_core.run import METRICS, claim_folder, flat_settings

# --- check-data -------------------------------------------------------------------------------------------------------


def check_data(command: of.CheckData) -> int:
    """Print every problem of the cases, and how many each site has of which split; 0 if there is none, else 2."""
    cases = command.cases
    datalist = open_cases(cases)
    first: list[Case] = []

    def open_row(row: Row) -> list[tuple[str, DartError]]:
        try:
            case = load_case(row, cases, need_mask=command.require_mask)
        except DartError as error:
            return [("image" if row.mask is None or str(row.mask) not in str(error) else "mask", error)]
        first[:] = first or [case]
        found: list[tuple[str, DartError]] = []
        for column, look in (
            ("mask", lambda: check_organs(case, cases)),
            ("image", lambda: check_sizes(first[0], case)),
        ):
            try:
                if case.label is not None or column == "image":
                    look()
            except DartError as error:
                found.append((column, error))
        return found

    problems = check(datalist, open_row)
    for problem in problems:
        print(problem)
    for site in ordered_sites(datalist):
        splits = [row.split or "no split" for row in datalist if row.site == site]
        print(
            f"site {site or '(none)'}: "
            + ", ".join(f"{splits.count(name)} {name}" for name in dict.fromkeys(splits))
            + "".join(f", labels {name}" for name in label_sets(datalist, site))
        )
    print(f"{len(datalist)} cases: {len(problems) or 'no'} problem{'s' * (len(problems) != 1)}")
    return 2 if problems else 0


# --- align (Appendix A) -----------------------------------------------------------------------------------------------


def align(command: of.Align) -> None:
    """Write the training cases with the class intensities of the target site, and a datalist of all cases."""
    cases = command.cases
    datalist, training, _ = open_divided(cases, command.fold)
    sites = tuple(training)
    target = command.target or sites[0]
    datalist.select(site=target) if any(sites) else None
    if len(sites) < 2:
        raise InputError("holds one site", where=datalist.source, remedy="alignment needs several")
    rows = [row for own in training.values() for row in own]
    volumes = [(read_volume(row.image, frame=frame_of(row)), _labels(row, cases)) for row in rows]
    images, labels = [volume.array for volume, _ in volumes], [label for _, label in volumes]
    domains = [row.site for row in rows]
    if target not in domains:
        raise InputError(f"site {target} has no training case", where=datalist.source, remedy="choose another --target")
    names = ("background", *all_names(cases))
    _check_classes(rows, labels, target, names)
    aligned = align_class_statistics(images, labels, domains, target, clamp_negative=command.clamp_negative)
    out = command.output.out
    claim_folder(out, flat_settings(command), overwrite=command.output.overwrite)
    (out / "images").mkdir()
    written: dict[int, Row] = {}
    for row, name, (volume, _), new in zip(rows, unique_names(rows), volumes, aligned, strict=True):
        file = write_volume(out / "images" / f"{name}.nii.gz", new, volume)
        columns = {key: text for key, text in row.labels.items() if key != "frame"}
        written[id(row)] = Row(file, row.mask, row.subject, row.site, "train", columns)
    # The split is the one that was aligned: with a fold the column of the list read says something else.
    listed = [
        written.get(id(row)) or dataclasses.replace(row, split=row.split if command.fold is None else "test")
        for row in datalist
    ]
    file = Datalist(tuple(listed)).write(out / "datalist.csv")
    pictures = [_pixels(images, labels, domains, names), _pixels(aligned, labels, domains, names)]
    _align_report(command, target, rows, images, labels, names, pictures)
    say(f"aligned: {file}   report: {out / 'report.html'}   next: {PACKAGE} train --datalist {file} ...")


def _labels(row: Row, cases: of.Cases) -> NDArray[np.int16]:
    if row.mask is None:
        raise InputError("no mask", where=row.where("mask"), remedy="alignment needs the mask of every training case")
    found = read_labels(row.mask, read_volume(row.image, frame=frame_of(row)), frame_of(row))
    if cases.preprocessing == "prostate":
        return (found > 0).astype(np.int16)
    names, highest = all_names(cases), int(found.max(initial=0))
    if highest > len(names):
        raise InputError(
            f"has label {highest}, and the names are {', '.join(names)}",
            where=row.mask,
            remedy="name them with --labels",
        )
    return found


def _check_classes(rows: list[Row], labels: list[NDArray[np.int16]], target: str, names: tuple[str, ...]) -> None:
    """A class that no case of the target has cannot be aligned."""
    there: dict[bool, set[int]] = {True: set(), False: set()}
    for row, label in zip(rows, labels, strict=True):
        there[row.site == target] |= set(np.unique(label).tolist())
    if missing := sorted(there[False] - there[True]):
        raise InputError(
            f"no case of {target} has {names[missing[0]]}", where=rows[0].source, remedy="choose another --target"
        )


def _pixels(
    images: list[NDArray[np.float32]], labels: list[NDArray[np.int16]], domains: list[str], names: tuple[str, ...]
) -> dict[str, NDArray[np.float32]]:
    """ "site, class" -> a sample of its pixels."""
    found: dict[str, list[NDArray[np.float32]]] = {}
    for image, label, site in zip(images, labels, domains, strict=True):
        for number in np.unique(label):
            pixels = image[label == number]
            found.setdefault(f"{site}, {names[number]}", []).append(pixels[:: max(len(pixels) // 5000, 1)])
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _align_report(
    command: of.Align,
    target: str,
    rows: list[Row],
    images: list[NDArray[np.float32]],
    labels: list[NDArray[np.int16]],
    names: tuple[str, ...],
    pictures: list[dict[str, NDArray[np.float32]]],
) -> None:
    out, domains = command.output.out, [row.site for row in rows]
    table = []
    for number, name in enumerate(names):
        moments = {
            case: class_moments(image[label == number])
            for case, (image, label) in enumerate(zip(images, labels, strict=True))
            if (label == number).any()
        }
        new = aligned_moments(moments, domains, target)
        for case, (mean, deviation) in moments.items():
            after = new.get(case, (mean, deviation))
            table.append((rows[case].site, rows[case].subject or rows[case].image.name, name, mean, deviation, *after))
    report = Report("Alignment", f"classes of {len(rows)} cases as at site {target}", package=PACKAGE)
    report.text(
        "Every class of every case of the other sites keeps its place among the cases of its site, and gets the mean and the"
        f" spread that this place has at site {target}. The labels are used for that, so that it is for training cases only."
    )
    report.picture(
        figures.histograms(*pictures),
        "Intensities of the classes at each site (after Fig. 1 of the paper)",
        "histograms",
    )
    report.table(
        ("site", "case", "class", "mean", "std", "mean after", "std after"), table, "Statistics of the classes"
    )
    report.section("Settings")
    report.settings(command)
    report.write(out / "report.html")
    content = {"target": target, "aligned": len(rows), "negative": sum(bool(row[6] < 0) for row in table)}
    write_atomic(out / METRICS, json.dumps(content, indent=2) + "\n")


# --- export -----------------------------------------------------------------------------------------------------------


class BothPasses(nn.Module):
    """A network of two passes as one of an image: logits of the second and of the first."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W) -> two of (N, K, H, W)."""
        first = self.network(x)
        return self.network(x, first.softmax(1)), first


def export(command: of.Export) -> None:
    """Write a network as ONNX for images of one size, any number at once, and compare it with PyTorch."""
    check_file(command.out, ".onnx", command.overwrite)
    network, model = load_model(command.model)
    check_sides(model.network, (command.side, command.side))
    network, outputs = exported(network, model, command.as_site)
    shape = (3, CHANNELS, command.side, command.side)
    worst = export_onnx(network.eval(), command.out, [shape], "image", outputs, optimize=False)
    say(f"{command.out}: image -> {', '.join(outputs)}; largest difference to PyTorch {worst:.1e} of the largest value")


def exported(network: nn.Module, model: Model, as_site: str) -> tuple[nn.Module, list[str]]:
    """What is exported, and the names of its outputs."""
    if model.network.mask_source == "truth":
        raise SettingError("a network that is shown the true labels is not exported", remedy="export another")
    if isinstance(network, SiteNetwork | MSNet):
        if not as_site:
            raise SettingError(
                "its batch norms are those of several sites", remedy=f"give --as-site {network.sites[0]}"
            )
        number = site_number(network.sites, as_site)
        inner = network.network if isinstance(network, SiteNetwork) else network.universal
        return _of_site(inner, number), ["logits"]
    if as_site:
        raise SettingError("--as-site is for dsbn and ms-net", remedy="leave it out")
    return (BothPasses(network), ["logits", "logits_first"]) if model.network.passes == 2 else (network, ["logits"])


def _of_site(network: nn.Module, number: int) -> nn.Module:
    """The plain network of one site, in place."""
    from catenorm.baselines import SiteBatchNorm2d

    for name, child in network.named_children():
        if isinstance(child, SiteBatchNorm2d):
            setattr(network, name, child.norms[number])
        else:
            _of_site(child, number)
    return network
