"""The speed page: what the packages promise, what was measured on which hardware, and how cost grows with the work.

    python benchmarks/speed/promises.py [--results benchmarks/results]

Reads the newest record of each task and hardware, and writes speed.html beside them. `nox -s speed` and `nox -s gpu` end with it.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dart_core.report import Report

Value = Callable[[Mapping[str, Any]], float]
CAPABILITY = re.compile(r" (?:DEFAULT|NO AVX|AVX2|AVX512|VSX|Z VECTOR|SVE\d*)(?=, )")
"""In a name of `compare.hardware`, which earlier records lack."""


def faster(name: str) -> Value:
    """How many times as fast as the first of the record."""
    return lambda record: float(record["times_as_fast"][name]["ratio"])


def best_name(record: Mapping[str, Any]) -> str:
    """Which of those called ours is the fastest."""
    ours = [name for name in record["times_as_fast"] if name.startswith("ours")]
    return max(ours, key=lambda name: faster(name)(record))


def best_ours(record: Mapping[str, Any]) -> float:
    """The largest ratio of those called ours."""
    return faster(best_name(record))(record)


def noted(*keys: str) -> Value:
    """A number among the notes."""

    def read(record: Mapping[str, Any]) -> float:
        value: Any = record
        for key in keys:
            value = value[key]
        return float(value)

    return read


def against_the_authors(place: int) -> Value:
    """Of reptile's ratios to the faster of the authors' loops, which carry the number of processes in their names."""
    return lambda record: list(record["times_as_fast_as_the_faster_authors"].values())[place]


def seconds(name: str) -> Value:
    """The fastest round."""
    return lambda record: min(record["rounds"][name])


@dataclass(frozen=True)
class Promise:
    """A number that a package promises."""

    package: str
    task: str
    """Of the record, without "-cpu" or "-cuda"."""
    what: str
    aim: float
    value: Value
    at_least: bool = True
    needs_gpu: bool = False
    """Without a record it says so, since `nox -s speed` cannot write one."""


PROMISES = (
    Promise("core", "core-loop", "overhead of the training loop over bare PyTorch", 0.02, noted("overhead_in_processor_time"), at_least=False),
    Promise("core", "surface-dice", "times as fast as DeepMind's surface-distance", 2, faster("ours")),
    Promise("core", "surface-dice", "surface Dice: times as fast as MONAI", 1, lambda r: faster("ours")(r) / faster("MONAI")(r)),
    Promise("core", "zoom", "times as fast as SciPy's zoom", 1, faster("ours")),
    Promise("core", "coco-summary", "times faster-coco-eval's time", 2, lambda r: 1 / (faster("ours")(r) / faster("faster-coco-eval")(r)), at_least=False),
    Promise("core", "genesis", "Genesis transforms: times as fast as the authors' NumPy", 30, best_ours),
    Promise("fda-mri", "fda-mri-search", "donor search: times as fast as piq, further targets", 10, faster("ours, further target")),
    Promise("fda-mri", "fda-mri-search", "donor search: the same for the first target, maps of the bank included", 10, faster("ours, maps of the bank included")),
    Promise("fda-mri", "fda-mri-transfer", "Fourier transfer: times as fast as NumPy slice by slice", 5, faster("ours")),
    Promise("aiva", "aiva-clustering", "clustering: share of an epoch", 0.02, noted("extrapolated share of an epoch"), at_least=False),
    Promise("mmtl-octl", "spottunet-inference", "SpotTUNet: times the plain network's time", 2.3, lambda r: 1 / faster("SpotTUNet, policy given")(r), at_least=False),
    Promise("adagrad-unet", "avagrad-30m", "AvaGrad: times as fast as a loop over tensors", 5, faster("AvaGrad")),
    Promise("adagrad-unet", "avagrad-30m", "AvaGrad: times foreach Adam's time", 1.5, noted("time_in_Adams", "AvaGrad"), at_least=False),
    Promise("skintone-debias", "skintone-label", "labels: times the authors' pictures per second", 4, best_ours),
    Promise("stain-aglr", "hed-jitter", "HED jitter: times as fast as scikit-image", 15, faster("ours, space skimage")),
    Promise("stain-aglr", "macenko", "Macenko: times as fast as torchstain's NumPy form", 3, faster("ours")),
    Promise("stain-aglr", "stain-inference", "Stain-AgLr classifier: times the vanilla network's time", 1.01, lambda r: 1 / faster("stain-aglr")(r), at_least=False),
    Promise("popar", "popar-pipeline-tiny", "share of a step that waits for pictures", 0.02, noted("waiting", "files, 1 loading processes", "share_waiting"), at_least=False),
    Promise("popar", "popar-pipeline-swin_b", "Swin-B at 448 on a GPU: share of a step that waits for pictures", 0.02, noted("waiting", "files, 1 loading processes", "share_waiting"), at_least=False, needs_gpu=True),
    Promise("benchmark-transformers", "simmim-vit-b-small", "SimMIM step: times backbone and decoder alone", 1.05, lambda r: 1 / faster("simmim")(r), at_least=False),
    Promise("benchmark-transformers", "simmim-swin-b-small", "SimMIM step: times backbone and decoder alone", 1.05, lambda r: 1 / faster("simmim")(r), at_least=False),
    Promise("odex", "odex-overhead", "share that ODEx adds to sequential training", 0.05, noted("added_share"), at_least=False),
    Promise("odex", "mahalanobis", "seconds for 10,000 features and 20 Gaussians", 0.05, seconds("odex, at once"), at_least=False),
    Promise("catenorm", "catenorm-step", "CateNorm step: times batch norm's", 2.3, noted("times_the_batch_norm_step"), at_least=False),
    Promise("catenorm", "catenorm-step", "CateNorm's parameters: times the plain U-Net's", 1.0913, noted("parameter_ratio"), at_least=False),
    Promise("metamedseg", "reptile", "Reptile: times as fast as the authors' loop, single precision", 1.3, against_the_authors(0)),
    Promise("metamedseg", "reptile", "Reptile: the same with --precision bf16", 1.3, against_the_authors(1)),
    Promise("sissi", "sissi-fusion", "box fusion: times as fast as ensemble-boxes", 10, faster("ours")),
    Promise("sissi", "sissi-clone", "synthetic picture: times as fast as cv2.seamlessClone", 2, faster("ours")),
)  # fmt: skip


def newest(results: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """(task without device, hardware) -> the newest record."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for path in sorted(results.glob("*.json"), key=lambda path: path.stem.rpartition("_")[2]):
        record = json.loads(path.read_text(encoding="utf-8"))
        task = record["task"].removesuffix("-cpu").removesuffix("-cuda")
        found[task, record.get("hardware", "")] = record
    return found


def machine(hardware: str, everywhere: Iterable[str]) -> str:
    """Name of the hardware of a record; marked where others of the same name know which vector instructions they had."""
    without = {CAPABILITY.sub("", name) for name in everywhere if CAPABILITY.search(name)}
    return f"{hardware} (capability not recorded)" if hardware in without else hardware


def rows_of(
    records: Mapping[tuple[str, str], Mapping[str, Any]],
) -> list[tuple[str, str, str, float | None, str, str, str]]:
    """Package, what, aim, measured, whether it holds, hardware, date; promises without a record too."""
    rows: list[tuple[str, str, str, float | None, str, str, str]] = []
    everywhere = {hardware for _, hardware in records}
    for promise in PROMISES:
        aim = f"{'≥' if promise.at_least else '≤'} {promise.aim:g}"
        own = [(hardware, record) for (task, hardware), record in records.items() if task == promise.task]
        for hardware, record in own:
            value = promise.value(record)
            what = f"{promise.what} ({best_name(record)})" if promise.value is best_ours else promise.what
            holds = value >= promise.aim if promise.at_least else value <= promise.aim
            rows.append(
                (
                    promise.package,
                    what,
                    aim,
                    round(value, 4),
                    "yes" if holds else "NO",
                    machine(hardware, everywhere),
                    record["date"],
                )
            )
        if not own:
            missing = "needs a GPU" if promise.needs_gpu else "not measured"
            rows.append((promise.package, promise.what, aim, None, missing, "", ""))
    return rows


def write(results: Path) -> Path:
    """Write speed.html."""
    records = newest(results)
    page = Report("Speed", "What the packages promise, and what was measured", command="nox -s speed")
    rows = rows_of(records)
    missed = sum(row[4] == "NO" for row in rows)
    page.text(
        f"{sum(row[4] == 'yes' for row in rows)} of {len(rows)} numbers keep what was promised, {missed} do not. Ours and the peer ran in turns in the "
        "same process, and were timed only after their results had been compared. A share or a ratio that is to stay small says ≤."
    )
    page.section("Promises")
    page.table(("package", "what", "aim", "measured", "holds", "hardware", "date"), rows)
    for (task, hardware), record in records.items():
        if task != "growth":
            continue
        page.section(f"Growth of cost: {machine(hardware, {name for _, name in records})}")
        for series in record["series"]:
            curves = {
                name: ([float(size) for size in times], list(times.values()))
                for name, times in series["seconds"].items()
            }
            page.curves(curves, series["unit"], "seconds", f"{series['title']}, {record['date']}")
            sizes = list(next(iter(series["seconds"].values())))
            table = [(int(size), *(times.get(size) for times in series["seconds"].values())) for size in sizes]
            page.table((series["unit"], *series["seconds"]), table)
    return page.write(results / "speed.html")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results")
    path = write(parser.parse_args().results)
    for package, what, aim, value, holds, hardware, _ in rows_of(newest(path.parent)):
        print(f"{holds:>12}  {package}: {what}: {value} ({aim}) {hardware}")
    print(path)


if __name__ == "__main__":
    main()
