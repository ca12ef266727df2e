"""The command `export`: the classifier as ONNX, compared with PyTorch."""

from __future__ import annotations

import torch
from torch import nn

from dart_core.cli import say
from dart_core.errors import OutputError
from stain_aglr import settings as of
from stain_aglr.models import load_model

TOLERANCE = 1e-4
"""Of the largest logit."""


def export(command: of.Export) -> None:
    """Write the classifier as ONNX, without the generator, and compare it with PyTorch at two sizes."""
    import onnx
    import onnxruntime

    path = command.out
    if path.suffix != ".onnx":
        raise OutputError("the file name must end in .onnx", where=path, remedy="rename --out")
    if path.exists() and not command.overwrite:
        raise OutputError("is there already", where=path, remedy="--overwrite replaces it")
    if not path.resolve().parent.is_dir():
        raise OutputError("the folder is not there", where=path, remedy=f"make {path.parent} first")
    network, model = load_model(command.model)
    if model.method in of.NORMALISED:
        say(
            f"warning: patches must be normalised before they reach this network ({model.method}); that is not exported"
        )
    sides = {2: 32 * torch.export.Dim("rows", min=1), 3: 32 * torch.export.Dim("columns", min=1)}
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        program = torch.onnx.export(
            network, (torch.zeros(2, 3, 64, 64),), dynamo=True, input_names=["image"], output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch"), **sides},), verbose=False, external_data=False, optimize=False,
        )  # fmt: skip
        assert program is not None  # only the older exporter answers None
        program.save(temporary)
        worst = _difference(network, onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"]))
        if worst > TOLERANCE:
            raise OutputError(f"ONNX and PyTorch differ by {worst:.1e} of the largest logit", where=path)
        held = exported_parameters(onnx.load(temporary), network)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    say(f"{path}: {held:,} parameters; largest difference to PyTorch {worst:.1e} of the largest logit at two sizes")


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


@torch.no_grad()
def _difference(network: nn.Module, session: object) -> float:
    worst = 0.0
    for shape in ((1, 3, 64, 64), (3, 3, 96, 128)):
        x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        expected = network(x)
        (found,) = session.run(None, {"image": x.numpy()})  # type: ignore[attr-defined]
        worst = max(worst, float((expected - torch.from_numpy(found)).abs().max() / expected.abs().max()))
    return worst
