"""The runs of popar's tables: pretraining, fine-tuning from it or from other weights, ten-crop test."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sets import SMALL_RADIOGRAPHS, radiographs
from table import Cell, Row, Scale, config, csv_mean

from dart_core.experiment import Job, Word

PACKAGE = "popar"
SEEDS = tuple(range(10))
COLUMNS = {
    "ChestX-ray14": "ChestX-ray14",
    "CheXpert": "CheXpert",
    "ShenZhen": "Shenzhen",
    "RSNA Pneumonia": "RSNA Pneumonia",
}
"""Column -> data set."""
TARGETS = {
    "ChestX-ray14": "chestxray14", "CheXpert": "chexpert", "Shenzhen": "shenzhen", "RSNA Pneumonia": "rsna-pneumonia",
}  # fmt: skip
FREQUENT = ("Atelectasis", "Edema", "Effusion", "Infiltration", "Pneumonia")
"""Findings of nih_cxr_1000 with 90 or more positive pictures."""
FILES = {
    "table2_dino": "weights/vit_base_patch16_224.dino.safetensors",
    "table2_mae": "weights/vit_base_patch16_224.mae.safetensors",
    "table2_moco-v3": "weights/moco-v3-vit-b-300ep.pth.tar",
    "table4_imagenet21k_vit-b": "weights/vit_base_patch16_224.augreg_in21k.safetensors",
    "table4_imagenet21k_swin-b": "weights/swin_base_patch4_window7_224.ms_in22k.safetensors",
}
"""Settings of a row -> file with its weights: timm's, and MoCo v3's own."""
PRETRAININGS = {
    "table1_popar": "pretrain_swin-b_448",
    "table1_popar-1": "pretrain_swin-b_448",
    "table1_popar-2": "pretrain_swin-b_224",
    "table1_popar-3": "pretrain_vit-b_224",
}
"""Settings of a row -> those of its pretraining."""
HALF, FULL = 96, 192
"""Pixels of small, for 224 and 448."""
SCALES = {
    "paper": f"DATA holds the sets as their owners publish them, and the weights as {', '.join(FILES.values())}.",
    "small": f"nih_cxr_1000 for ChestX-ray14 (findings with 90 or more positives) and 300 pictures of pneumoniamnist (children, "
    f"pneumonia or not) for Shenzhen; {HALF} pixels instead of 224 and {FULL} instead of 448; a ViT of 4 blocks and a Swin of three "
    "stages that see patches of 16 pixels; pretraining of 30, 12 and 6 epochs (ViT, Swin, Swin at the larger size), fine-tuning of 6 "
    "with AdamW at 0.0003. Weights of others are of no such size.",
    "smoke": "phantom radiographs, networks of two blocks or stages, two epochs of pretraining (the rate of the last is 0) and two of "
    "fine-tuning; random weights in files stand for those of others.",
}  # fmt: skip
PAPER_SPREAD = "most likely that of the runs as a population (divisor n), as in the benchmark code of the same group"
HOURS = {"pretrain": 22.0, "fine-tune": 1.5, "predict": 0.2, "evaluate": 0.01}
HOURS_FROM = (
    "pretraining on 86,524 pictures: Swin-B 300 times at 448 pixels (about 300 pictures a second) or ViT-B 1,000 times at 224 (1,200); "
    "fine-tuning some 40 epochs of up to 220,000 pictures at 500 to 1,000 a second"
)
NETWORKS: dict[str, dict[str, tuple[Word, ...]]] = {
    "small": {
        "swin": ("patch_size=4", "window_size=6", "embed_dim=48", "depths=2,2,4", "num_heads=2,4,8"),
        "vit": ("patch_size=16", "embed_dim=192", "depth=4", "num_heads=3"),
    },
    "smoke": {
        "swin": ("patch_size=4", "window_size=3", "embed_dim=24", "depths=2,2", "num_heads=2,4"),
        "vit": ("patch_size=16", "embed_dim=48", "depth=2", "num_heads=2"),
    },
}
TUNING: tuple[Word, ...] = (
    "--patience",
    6,
    "--batch-size",
    16,
    "--optimizer",
    "adamw",
    "--learning-rate",
    3e-4,
    "--memory",
)


def backbone_of(row: str) -> str:
    """vit or swin."""
    return "swin" if "swin" in row or row in ("table1_popar", "table1_popar-1", "table1_popar-2") else "vit"


def _side(scale: Scale, large: bool) -> int:
    return scale.pick(paper=0, small=FULL if large else HALF, smoke=96 if large else 48)


def pretrained(scale: Scale, settings: str) -> Job:
    """POPAR on the training pictures of ChestX-ray14."""
    words: list[Word] = ["pretrain", "--config", config(PACKAGE, settings)]
    words += ["--datalist", radiographs(scale, "ChestX-ray14")]
    if scale.name != "paper":
        large, backbone = settings.endswith("448"), backbone_of(settings)
        epochs = scale.pick(paper=0, small={"vit": 30, "swin": 6 if large else 12}[backbone], smoke=2)
        words += ["--image-size", _side(scale, large), "--network", *NETWORKS[scale.name][backbone]]
        words += ["--epochs", epochs, "--warmup", min(5, epochs // 4), "--measure-every", max(1, epochs // 3)]
        batch, held_out = scale.pick(paper=(0, 0), small=(32, 128), smoke=(8, 8))
        words += ["--batch-size", batch, "--held-out", held_out, "--memory"]
    return Job(PACKAGE, tuple(words), settings)


def others_weights(scale: Scale, row: str) -> Path:
    """Weights of others; smoke: random ones."""
    if scale.name == "paper":
        return scale.set(FILES[row])
    file = scale.work / "data" / f"random_popar_{backbone_of(row)}.safetensors"
    if not file.is_file():
        import timm
        import torch
        from safetensors.torch import save_file

        torch.manual_seed(0)
        if backbone_of(row) == "vit":
            network = timm.create_model("vit_base_patch16_224", img_size=48, embed_dim=48, depth=2, num_heads=2)
        else:
            sizes = {"embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4), "window_size": 3}
            network = timm.create_model("swin_base_patch4_window7_224", img_size=48, **sizes)
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(network.state_dict(), file)
    return file


def tuned(scale: Scale, row: str, init: Path | Job | None, name: str, seed: int) -> Job:
    """A row's network on a data set."""
    words: list[Word] = ["fine-tune", "--config", config(PACKAGE, row), "--datalist", radiographs(scale, name)]
    words += ["--seed", seed, *(("--init", init) if init is not None else ())]
    if scale.name == "paper":
        words += ["--target", TARGETS[name]]
    else:
        words += [*TUNING, "--image-size", _side(scale, row == "table1_popar")]
        words += ["--epochs", scale.pick(paper=0, small=6, smoke=2)]
        words += ["--network", *NETWORKS[scale.name][backbone_of(row)]] if not isinstance(init, Job) else []
        words += ["--labels", *FREQUENT] if scale.name == "small" and name == "ChestX-ray14" else []
    return Job(PACKAGE, tuple(words), f"{row} {name} seed {seed}")


def scored(scale: Scale, network: Job, name: str) -> Job:
    """Its score on the test pictures."""
    words: list[Word] = ["predict", "--config", config(PACKAGE, "tables_predict"), "--model", network]
    words += ["--datalist", radiographs(scale, name)]
    words += ["--crops", "middle"] if scale.name == "small" and name == "Shenzhen" else []
    predicted = Job(PACKAGE, tuple(words), f"{network.name}, predicted")
    return Job(PACKAGE, ("evaluate", "--predictions", predicted), f"{network.name}, scored")


def sets_of(scale: Scale) -> Mapping[str, str]:
    """Columns that a scale has data for."""
    small = {column: name for column, name in COLUMNS.items() if name in SMALL_RADIOGRAPHS}
    found: Mapping[str, str] = scale.pick(paper=COLUMNS, small=small, smoke=dict(list(COLUMNS.items())[:1]))
    return found


def row_cells(scale: Scale, key: Row, row: str) -> list[Cell]:
    """The cells of a row, from its own weights; a repetition is a seed."""
    found = []
    for column, name in sets_of(scale).items():
        supervised = "table4_chestxray14" in row
        if supervised and name == "ChestX-ray14" and scale.name != "smoke":
            continue  # its weights come from there
        runs = []
        for seed in scale.seeds(SEEDS):
            init: Path | Job | None = None
            if supervised:
                init = tuned(scale, row.replace("chestxray14", "random"), None, "ChestX-ray14", seed)
            elif row in PRETRAININGS:
                init = pretrained(scale, PRETRAININGS[row])
            elif row in FILES:
                init = others_weights(scale, row)
            runs.append([scored(scale, tuned(scale, row, init, name, seed), name)])
        found.append(Cell(key, column, runs, csv_mean("scores.csv", "score")))
    return found
