"""The command `export`: a fine-tuned network as ONNX, or a pre-trained encoder in timm's names."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from benchmark_transformers import settings as of
from benchmark_transformers.conversion import convert
from benchmark_transformers.initialisations import BEIT, SWIN
from benchmark_transformers.networks import Architecture, Pretrained, read_pretrained, weights_file
from benchmark_transformers.training import load_model, trial_folders
from dart_core.checkpoint import save_weights
from dart_core.cli import say
from dart_core.errors import OutputError, SettingError

TOLERANCE = 1e-4
"""Of the largest logit."""


def export(command: of.Export) -> None:
    """Write the file that the model's kind allows."""
    path = command.out
    if path.exists() and not command.overwrite:
        raise OutputError("is there already", where=path, remedy="--overwrite replaces it")
    if not path.resolve().parent.is_dir():
        raise OutputError("the folder is not there", where=path, remedy=f"make {path.parent} first")
    about = None
    if not command.model.is_dir() or (command.model / "model.safetensors").is_file():
        about = read_pretrained(command.model)
    wanted = ".onnx" if about is None else ".safetensors"
    if path.suffix != wanted:
        raise OutputError(f"the file name must end in {wanted}", where=path, remedy="rename --out")
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
    import onnxruntime

    network, model = load_model(folder)
    size = model.image_size
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        program = torch.onnx.export(
            network, (torch.zeros(2, 3, size, size),), dynamo=True, input_names=["image"], output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False, external_data=False, optimize=False,
        )  # fmt: skip
        assert program is not None  # only the older exporter answers None
        program.save(temporary)
        session = onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])
        worst = _difference(network, session, size)
        if worst > TOLERANCE:
            raise OutputError(f"ONNX and PyTorch differ by {worst:.1e} of the largest logit", where=path)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    count = sum(parameter.numel() for parameter in network.parameters())
    say(
        f"{path}: {count:,} parameters, {len(model.labels)} labels ({', '.join(model.labels)}); largest difference to "
        f"PyTorch {worst:.1e} of the largest logit. Views have {size} pixels, normalised by {model.statistics or 'nothing'}"
    )


@torch.no_grad()
def _difference(network: nn.Module, session: object, size: int) -> float:
    worst = 0.0
    for count in (1, 3):
        x = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(count))
        expected = network(x)
        (found,) = session.run(None, {"image": x.numpy()})  # type: ignore[attr-defined]
        worst = max(worst, float((expected - torch.from_numpy(found)).abs().max() / expected.abs().max()))
    return worst
