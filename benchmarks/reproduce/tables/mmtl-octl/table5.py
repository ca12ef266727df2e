"""Table 5: mean AUC on chest radiographs of another hospital after fine-tuning a DenseNet-121 on 128 to 1,024 of them."""

from __future__ import annotations

from collections.abc import Iterator

from sets import radiographs
from table import Cell, Claim, Scale, Table, config, csv_mean

from dart_core.experiment import Job, Word

PACKAGE = "mmtl-octl"
METHODS = {"FTA": "fta", "FTF": "ftf", "L2SP": "l2sp", "ST": "spottune", "OCTL": "octl", "MMTL": "mmtl"}
AMOUNTS = ("128", "256", "512", "1024")
SEEDS = (11, 42)
"""Those that the authors' programs show."""
CHEXPERT, NIH = "CheXpert", "ChestX-ray14"
DIRECTIONS = {f"{CHEXPERT}_to_{NIH}": (CHEXPERT, NIH), f"{NIH}_to_{CHEXPERT}": (NIH, CHEXPERT)}
SITES = {
    "paper": {CHEXPERT: "chexpert", NIH: "chestxray14"},
    "small": {CHEXPERT: "pneumoniamnist", NIH: "nih_cxr_1000"},
    "smoke": {CHEXPERT: "chexpert", NIH: "chestxray14"},
}
DENSENET, RESNET = "weights/densenet121.pth", "weights/resnet50.pth"


def _data(scale: Scale, name: str) -> list[Word]:
    """A data set; small: pneumoniamnist, whole, in place of CheXpert."""
    small = scale.name == "small" and name == CHEXPERT
    return [radiographs(scale, "Shenzhen", whole=True) if small else radiographs(scale, name)]


def source_network(scale: Scale, source: str, seed: int) -> Job:
    """Trained on one data set, with its gradient history."""
    words: list[Word] = ["pretrain", "--config", config(PACKAGE, "table5_source"), "--datalist", *_data(scale, source)]
    words += ["--source", SITES[scale.name][source], "--seed", seed]
    words += scale.pick(
        paper=["--imagenet", scale.set(DENSENET)] if scale.name == "paper" else [],
        small=["--image-size", 48, "--epochs", 5, "--batches", 90, "--batch-size", 16, "--learning-rate", 0.001],
        smoke=["--image-size", 32, "--epochs", 1, "--batches", 2, "--batch-size", 4],
    )
    return Job(PACKAGE, tuple(words), f"source {source} seed {seed}")


def scored(scale: Scale, amount: str, method: str, source: str, target: str, seed: int) -> Job:
    """Fine-tuned on some target pictures, scored on the target's test pictures."""
    words: list[Word] = ["adapt", "--config", config(PACKAGE, f"table5_{amount}"), "--datalist", *_data(scale, target)]
    words += ["--method", method, "--target", SITES[scale.name][target], "--seed", seed]
    words += ["--source-model", source_network(scale, source, seed)]
    words += ["--source-datalist", *_data(scale, source)] if method == "mmtl" else []
    words += scale.pick(
        paper=["--policy-imagenet", scale.set(RESNET)] if scale.name == "paper" and method == "spottune" else [],
        small=["--epochs", 6, "--batches", 12, "--batch-size", 16, "--learning-rate", 0.001],
        smoke=["--epochs", 1, "--batches", 2, "--batch-size", 4, "--images", 8],
    )
    network = Job(PACKAGE, tuple(words), f"{method} {source}->{target} {amount} seed {seed}")
    words = [
        "predict",
        "--config",
        config(PACKAGE, "table5_test"),
        "--datalist",
        *_data(scale, target),
        "--model",
        network,
    ]
    predicted = Job(PACKAGE, tuple(words), f"{network.name}, predicted")
    return Job(PACKAGE, ("evaluate", "--task", "classification", "--predictions", predicted), f"{network.name}, scored")


def cells(scale: Scale) -> Iterator[Cell]:
    """A repetition is a seed. The value is the mean over the labels of which the test pictures hold both kinds."""
    for direction, (source, target) in DIRECTIONS.items():
        for method, flag in METHODS.items():
            for amount in scale.pick(paper=AMOUNTS, small=("128", "512"), smoke=AMOUNTS[:1]):
                runs = [[scored(scale, amount, flag, source, target, seed)] for seed in scale.seeds(SEEDS)]
                yield Cell((method, direction), amount, runs, csv_mean("scores.csv", "auc"))


def _claims() -> Iterator[Claim]:
    """MMTL against all others (except where the paper prints L2-SP above it), OCTL against plain fine-tuning."""
    for direction in DIRECTIONS:
        for other in ("FTA", "FTF", "L2SP", "ST", "OCTL"):
            reverse = other == "L2SP" and direction.startswith(NIH)
            yield Claim(("MMTL", direction), (other, direction), AMOUNTS[1:] if reverse else AMOUNTS)
        yield Claim(("OCTL", direction), ("FTA", direction))


TABLE = Table(
    package=PACKAGE,
    name="table5",
    title="mean AUC on the target's radiographs, per cent, by number of labelled target pictures",
    keys=("method", "direction"),
    columns=AMOUNTS,
    cells=cells,
    claims=tuple(_claims()),
    scales={
        "paper": f"DATA holds CheXpert-v1.0 and ChestX-ray14 as published, and torchvision's ImageNet weights as {DENSENET} and {RESNET} "
        "(policy network of ST).",
        "small": "pneumoniamnist (children, one label) for CheXpert and nih_cxr_1000 (adults, 14 labels) for ChestX-ray14, 48 pixels; from "
        "random weights; 450 steps of 16 for the source and 72 for fine-tuning instead of 2,500 and 2,400 of 32; three seeds.",
        "smoke": "phantom radiographs, eight target pictures, two steps.",
    },
    hours={"pretrain": 0.15, "adapt": 0.15, "predict": 0.05, "evaluate": 0.01},
    hours_from="2,400 steps of 32 pictures of 256 pixels through DenseNet-121 at about 0.15 s; ST and MMTL up to twice that",
    factor=100,
)
