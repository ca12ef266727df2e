"""The command `export`: a fine-tuned network as ONNX, or a pre-trained encoder in timm's names."""

from __future__ import annotations

import json
from pathlib import Path

from benchmark_transformers import settings as of
from benchmark_transformers.conversion import convert
from benchmark_transformers.initialisations import BEIT, SWIN
from benchmark_transformers.networks import Architecture, Pretrained, read_pretrained
from benchmark_transformers.training import load_model, trial_folders
from dart_core.checkpoint import save_weights, weights_file
from dart_core.cli import say
from dart_core.errors import SettingError
from dart_core.export import check_file, export_onnx


def export(command: of.Export) -> None:
    """Write the file that the model's kind allows."""
    path = command.out
    about = None
    if not command.model.is_dir() or (command.model / "model.safetensors").is_file():
        about = read_pretrained(command.model)
    check_file(path, ".onnx" if about is None else ".safetensors", command.overwrite)
    if about is not None:
        _export_encoder(command.model, about, path)
        return
    folders = trial_folders(command.model)
    if len(folders) > 1:
        raise SettingError(
            f"{command.model} holds {len(folders)} trials", remedy=f"give one of them, such as {folders[0]}"
        )
    _export_onnx(folders[0], path)


def _export_encoder(model: Path, about: Pretrained, path: Path) -> None:
    """The encoder with timm's names, for `timm.create_model` and `load_state_dict`."""
    swin = about.backbone == "swin_b"
    options = {key: value for key, value in about.network.items() if key != "drop_path_rate"}
    if swin:
        options.setdefault("window_size", 6)
    architecture = Architecture(SWIN if swin else BEIT, options)
    network = architecture.build(0, about.image_size)
    converted = convert(weights_file(model), network, "simmim")
    network.load_state_dict(converted.state, strict=False)
    keywords = {**options, "img_size": about.image_size}
    save_weights(path, network, {"architecture": architecture.name, "keywords": json.dumps(keywords)})
    text = ", ".join(f"{key}={value}" for key, value in keywords.items())
    say(f"{path}: {converted}; timm.create_model('{architecture.name}', num_classes=0, {text})")


def _export_onnx(folder: Path, path: Path) -> None:
    """Logits of normalised views; compared with PyTorch at two batch sizes."""
    network, model = load_model(folder)
    size = model.image_size
    worst = export_onnx(network, path, [(n, 3, size, size) for n in (1, 3)], optimize=False)
    count = sum(parameter.numel() for parameter in network.parameters())
    say(
        f"{path}: {count:,} parameters, {len(model.labels)} labels ({', '.join(model.labels)}); largest difference to "
        f"PyTorch {worst:.1e} of the largest logit. Views have {size} pixels, normalised by {model.statistics or 'nothing'}"
    )
