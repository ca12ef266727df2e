"""The command `benchmark-transformers`."""

from __future__ import annotations

from benchmark_transformers import __version__
from benchmark_transformers import settings as of
from dart_core.cli import leave
from dart_core.cli import main as run_command

DESCRIPTION = (
    "Compares initial weights of vision transformers (and ResNet-50) on medical classification under one fine-tuning protocol, "
    "with several seeds and t-tests, and pre-trains transformers further on unlabelled pictures of the own domain (SimMIM). "
    "Research software, not a medical device. The content of the paper is covered by patents pending."
)

COMMANDS = {
    "demo": (of.Demo, "benchmark_transformers.demo:demo"),
    "check-data": (of.CheckData, "benchmark_transformers.cases:check_data"),
    "pretrain": (of.Pretrain, "benchmark_transformers.pretraining:pretrain"),
    "fine-tune": (of.FineTune, "benchmark_transformers.training:fine_tune"),
    "predict": (of.Predict, "benchmark_transformers.prediction:predict"),
    "evaluate": (of.Evaluate, "benchmark_transformers.evaluation:evaluate"),
    "compare": (of.Compare, "benchmark_transformers.comparison:compare"),
    "export": (of.Export, "benchmark_transformers.export:export"),
}


def main() -> None:
    """Entry point of the console script and of `python -m benchmark_transformers` (which torchrun starts)."""
    leave(run_command("benchmark-transformers", COMMANDS, __version__, DESCRIPTION))
