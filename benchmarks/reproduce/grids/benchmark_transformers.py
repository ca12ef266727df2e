"""The runs of benchmark-transformers's tables: pre-training where the paper did its own, fine-tuning, ten-crop test."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sets import SMALL_RADIOGRAPHS, radiographs
from table import Cell, Row, Scale, config, csv_mean

from dart_core.experiment import Job, Output, Word

PACKAGE = "benchmark-transformers"
SEEDS = tuple(range(10))
SIMMIM = "simmim"
FILES = {
    "table1_vit-b-in21k": "weights/vit_base_patch16_224.augreg_in21k.safetensors",
    "table1_swin-b-in21k": "weights/swin_base_patch4_window7_224.ms_in22k.safetensors",
    "table1_vit-b-simmim": "weights/simmim_pretrain__vit_base.pth",
    "table1_swin-b-simmim": "weights/simmim_pretrain__swin_base.pth",
}
"""Settings of a row -> file with its weights: timm's (supervised) and SimMIM's."""
MANY = "xrays926k"
"""Folder with the thirteen collections of X-rays(926K)."""
SCALES = {
    "paper": f"DATA holds the sets as their owners publish them, the thirteen collections in {MANY}/, and the weights as "
    f"{', '.join(FILES.values())}. Each seed chooses its learning rate on validation, where the paper chooses once for all.",
    "small": "pictures of 64 pixels; Swin of 3 stages and ViT of 4 blocks; SimMIM about 700 steps of 32 pictures, with 704 photographs "
    "of skin (ham10000_sites) in place of ImageNet, nih_cxr_1000 of ChestX-ray14, and the two sets of radiographs together of "
    "X-rays(926K); seven epochs of fine-tuning on nih_cxr_1000 and on 300 pictures of pneumoniamnist (children, pneumonia or not), "
    "which stands for Shenzhen. There are no supervised weights of this size.",
    "smoke": "phantom radiographs, networks of two stages, one epoch; random weights in files stand for those of others.",
}  # fmt: skip
PAPER_SPREAD = "that of the runs as a population (divisor n)"
HOURS = {"pretrain": 9.0, "fine-tune": 3.5, "predict": 0.3, "evaluate": 0.01}
HOURS_FROM = (
    "about 1,500 pictures a second in SimMIM (100 epochs of 75,000 or 926,000), 1,000 in fine-tuning: some 30 epochs with each of "
    "three learning rates, of sets of 463 to 1.4 million pictures"
)
NETWORKS: dict[str, dict[str, tuple[Word, ...]]] = {
    "small": {
        "swin_b": (
            *("--patch-size", 4, "--embed-dim", 48, "--depths", 2, 2, 4, "--num-heads", 3, 6, 12),
            *("--window-size", 4),
        ),
        "vit_b": ("--patch-size", 8, "--embed-dim", 192, "--depths", 4, "--num-heads", 3),
    },
    "smoke": {
        "swin_b": ("--patch-size", 4, "--embed-dim", 32, "--depths", 2, 2, "--num-heads", 2, 4, "--window-size", 3),
        "vit_b": ("--patch-size", 8, "--embed-dim", 48, "--depths", 2, "--num-heads", 2),
    },
}
PRETRAINING: dict[str, tuple[Word, ...]] = {
    "small": (
        *("--size", 64, "--batch-size", 32, "--base-lr", 8e-3, "--min-lr", 1e-4, "--warmup-lr", 1e-5, "--cell", 16),
        *("--schedule", "cosine"),
    ),
    "smoke": (*("--size", 48, "--batch-size", 16, "--epochs", 2, "--warmup", 1, "--cell", 16, "--schedule", "cosine"),),
}
TUNING: dict[str, tuple[Word, ...]] = {
    "small": (
        *("--image-size", 64, "--resize", 73, "--epochs", 7, "--batch-size", 32, "--learning-rate", 0.01, 0.1),
        *("--patience", 7, "--drop-path", 0),
    ),
    "smoke": ("--image-size", 48, "--resize", 54, "--epochs", 1, "--batch-size", 16, "--learning-rate", 0.01),
}


def backbone_of(row: str) -> str:
    """swin_b or vit_b."""
    return "vit_b" if "vit-b" in row else "swin_b"


def others_weights(scale: Scale, row: str) -> Path | Job:
    """Weights of others; small: pre-trained here on photographs; smoke: random ones."""
    if scale.name == "paper":
        return scale.set(FILES[row])
    if row.endswith(SIMMIM):
        if scale.name == "small":
            pictures: tuple[Path, ...] = (scale.set("ham10000_sites") / "images",)
        else:
            pictures = (radiographs(scale, "ChestX-ray14"),)
        return pretrained(scale, f"pretrain_{backbone_of(row).replace('_', '-')}_800", pictures, 32)
    return _random_weights(scale, backbone_of(row))


def _random_weights(scale: Scale, backbone: str) -> Path:
    file = scale.work / "data" / f"random_{backbone}.safetensors"
    if not file.is_file():
        import timm
        import torch
        from safetensors.torch import save_file

        torch.manual_seed(0)
        architectures: dict[str, tuple[str, dict[str, Any]]] = {
            "vit_b": ("vit_base_patch16_224", {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 2}),
            "swin_b": (
                "swin_base_patch4_window7_224",
                {"embed_dim": 32, "depths": (2, 2), "num_heads": (2, 4), "window_size": 3},
            ),
        }
        name, sizes = architectures[backbone]
        network = timm.create_model(name, img_size=48, num_classes=3, **sizes)
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(network.state_dict(), file)
    return file


def pretrained(
    scale: Scale, settings: str, pictures: tuple[Path, ...], epochs: int, start: Path | Job | None = None
) -> Job:
    """SimMIM on pictures, from random weights or continued; `epochs` is for small."""
    words: list[Word] = ["pretrain", "--config", config(PACKAGE, settings), "--pictures", *pictures]
    words += ["--init-from", start] if start is not None else []
    if scale.name != "paper":
        words += PRETRAINING[scale.name]
        words += ["--epochs", epochs, "--warmup", max(1, epochs // 10)] if scale.name == "small" else []
        words += NETWORKS[scale.name][backbone_of(settings)]
    return Job(PACKAGE, tuple(words), settings)


def own_weights(scale: Scale, row: str) -> Job:
    """A pre-training of Table 2 on radiographs."""
    first = radiographs(scale, "ChestX-ray14")
    pictures: tuple[Path, ...] = (first,)
    if row.endswith(MANY) and scale.name == "paper":
        pictures = (scale.set(MANY),)
    elif row.endswith(MANY) and scale.name == "small":
        pictures = (first, radiographs(scale, "Shenzhen", whole=True))
    start = others_weights(scale, "table1_swin-b-simmim") if "in1k" in row else None
    settings = f"pretrain_{row.removeprefix('table2_swin-b-')}"
    return pretrained(scale, settings, pictures, 4 if len(pictures) > 1 else 32, start)


def scored(scale: Scale, row: str, weights: Path | Job | Output | None, name: str, seed: int) -> Job:
    """A row's network on a data set: fine-tuned, tested."""
    data = radiographs(scale, name)
    words: list[Word] = [
        "fine-tune",
        "--config",
        config(PACKAGE, row),
        "--datalist",
        data,
        "--trials",
        1,
        "--seed",
        seed,
    ]
    words += ["--weights", weights] if weights is not None else []
    if scale.name != "paper":
        words += TUNING[scale.name]
        words += NETWORKS[scale.name][backbone_of(row)] if not isinstance(weights, Job) else []
    network = Job(PACKAGE, tuple(words), f"{row} {name} seed {seed}")
    words = ["predict", "--config", config(PACKAGE, "predict"), "--model", network, "--datalist", data]
    words += ["--crops", 1] if scale.name == "small" and name == "Shenzhen" else []
    predicted = Job(PACKAGE, tuple(words), f"{network.name}, predicted")
    return Job(PACKAGE, ("evaluate", "--predictions", predicted), f"{network.name}, scored")


def row_cells(
    scale: Scale, key: Row, row: str, weights: Path | Job | None, columns: Mapping[str, str] | tuple[str, ...]
) -> list[Cell]:
    """The cells of a row, as far as the scale has their data; a repetition is a seed."""
    there = scale.pick(paper=columns, small=[name for name in columns if name in SMALL_RADIOGRAPHS], smoke=columns[:1])
    read = csv_mean("scores.csv", "value")
    return [
        Cell(key, name, [[scored(scale, row, weights, name, seed)] for seed in scale.seeds(SEEDS)], read)
        for name in there
    ]
