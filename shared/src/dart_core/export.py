"""Networks as ONNX files (extra `export`), compared with PyTorch before they appear."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dart_core.errors import OutputError
from dart_core.files import atomic_write

TOLERANCE = 1e-4
"""Largest difference to PyTorch, of the largest value of an output."""


def check_file(path: Path, ending: str, overwrite: bool) -> None:
    """Refuse to write a single file before any work is done for it.

    Args:
        path: the file.
        ending: of its name, such as ".onnx".
        overwrite: an existing file may be replaced.

    Raises:
        OutputError: another ending, a file that is there already, or no such folder.
    """
    if path.suffix != ending:
        raise OutputError(f"the file name must end in {ending}", where=path, remedy="rename --out")
    if path.exists() and not overwrite:
        raise OutputError("is there already", where=path, remedy="--overwrite replaces it")
    if not path.resolve().parent.is_dir():
        raise OutputError("the folder is not there", where=path, remedy=f"make {path.parent} first")


def export_onnx(
    network: nn.Module,
    path: Path,
    shapes: Sequence[Sequence[int]],
    name: str = "image",
    outputs: Sequence[str] = ("logits",),
    sides: Mapping[int, Any] | None = None,
    optimize: bool = True,
    check: Callable[[Any], None] | None = None,
) -> float:
    """Write a network of one input as ONNX; the file appears once it answers as PyTorch does.

    Args:
        network: in evaluation mode, on the CPU.
        path: the file; see `check_file`.
        shapes: of inputs to compare at, batch first. The first is also what the network is traced with (its batch is made 2).
        name: of the input.
        outputs: names of the outputs.
        sides: axes that may vary beside the batch, such as {2: 8 * torch.export.Dim("rows", min=2)}.
        optimize: let the exporter fold constants, which may merge or rename parameters.
        check: gets the written model (onnx.ModelProto); raises if it is not to be kept.

    Returns:
        Largest difference to PyTorch, of the largest value of an output.

    Raises:
        OutputError: they differ by more than 1e-4.
    """
    import onnx
    import onnxruntime

    with atomic_write(path) as temporary:
        with warnings.catch_warnings():
            # What the exporter of the one PyTorch calls deprecated in the other is none of the user's business.
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network, (torch.zeros(2, *shapes[0][1:]),), dynamo=True, input_names=[name], output_names=list(outputs),
                dynamic_shapes=({0: torch.export.Dim("batch"), **(sides or {})},), verbose=False, external_data=False,
                optimize=optimize,
            )  # fmt: skip
        assert program is not None  # only the older exporter answers None
        program.save(temporary)
        session = onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])
        worst = max(_difference(network, session, name, shape) for shape in shapes)
        if not worst <= TOLERANCE:
            raise OutputError(f"ONNX and PyTorch differ by {worst:.1e} of the largest value", where=path)
        if check is not None:
            check(onnx.load(temporary))
    return worst


@torch.no_grad()
def _difference(network: nn.Module, session: Any, name: str, shape: Sequence[int]) -> float:
    x = torch.rand(*shape, generator=torch.Generator().manual_seed(shape[0]))
    expected = network(x)
    expected = (expected,) if isinstance(expected, Tensor) else expected
    found = session.run(None, {name: x.numpy()})
    return max(
        float((a - torch.from_numpy(b)).abs().max() / a.abs().max().clamp(min=1e-12))
        for a, b in zip(expected, found, strict=True)
    )
