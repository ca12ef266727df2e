"""The command `export`: the classifier as ONNX, compared with PyTorch."""

from __future__ import annotations

import torch
from torch import nn

from dart_core.cli import say
from dart_core.errors import OutputError
from dart_core.export import check_file, export_onnx
from stain_aglr import settings as of
from stain_aglr.models import load_model


def export(command: of.Export) -> None:
    """Write the classifier as ONNX, without the generator, and compare it with PyTorch at two sizes."""
    path = command.out
    check_file(path, ".onnx", command.overwrite)
    network, model = load_model(command.model)
    if model.method in of.NORMALISED:
        say(
            f"warning: patches must be normalised before they reach this network ({model.method}); that is not exported"
        )
    sides = {2: 32 * torch.export.Dim("rows", min=1), 3: 32 * torch.export.Dim("columns", min=1)}
    held: list[int] = []
    # Optimised, the file would not hold the parameters under their names, which are counted.
    worst = export_onnx(
        network, path, [(1, 3, 64, 64), (3, 3, 96, 128)], sides=sides, optimize=False,
        check=lambda written: held.append(exported_parameters(written, network)),
    )  # fmt: skip
    say(f"{path}: {held[0]:,} parameters; largest difference to PyTorch {worst:.1e} of the largest logit at two sizes")


def exported_parameters(model: object, network: nn.Module) -> int:
    """Values of the network's parameters in an ONNX file.

    Raises:
        OutputError: one of them is not in the file.
    """
    there = {tensor.name: tensor for tensor in model.graph.initializer}  # type: ignore[attr-defined]
    count = 0
    for name, parameter in network.named_parameters():
        if name not in there or tuple(there[name].dims) != tuple(parameter.shape):
            raise OutputError(
                f"the exported file has no parameter {name}", remedy="use the tested versions of torch and onnx"
            )
        count += parameter.numel()
    return count
