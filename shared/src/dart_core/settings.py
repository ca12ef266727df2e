"""Settings that every training command shares. Free of torch so that `--help` stays fast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class RunSettings:
    """How and where a run executes; what it computes is in the method's own settings."""

    out: Path
    """Folder that receives config.yaml, metrics, report.html and checkpoints/."""
    resume: bool = False
    """Continue the run in --out from its newest good checkpoint."""
    overwrite: bool = False
    """Replace the run that lies in --out."""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto (CUDA where there is one)."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the forward and backward pass; weights stay fp32."""
    channels_last: bool = False
    """Keep images channels-last in memory (often faster)."""
    compile: bool = False
    """Compile the network with torch.compile."""
    accumulate: int = 1
    """Split each batch into this many parts and add up their gradients (less memory, same step)."""
    workers: int = 0
    """Processes that load batches; 0 loads in the main process. The result does not depend on it."""
    seed: int = 0xBADCAFE
    """Seed of initial weights, batches and augmentation."""
    checkpoint_every: int = 500
    """Steps between checkpoints; the two newest are kept."""
    track: Literal["none", "tensorboard", "mlflow", "wandb"] = "none"
    """Also send the metrics to this tracker."""

    def __post_init__(self) -> None:
        from dart_core.errors import SettingError

        for name, low in (("accumulate", 1), ("workers", 0), ("checkpoint_every", 1)):
            if getattr(self, name) < low:
                raise SettingError(
                    f"--{name.replace('_', '-')} is {getattr(self, name)}", remedy=f"give at least {low}"
                )
        if self.resume and self.overwrite:
            raise SettingError("--resume and --overwrite contradict each other", remedy="give one of them")
