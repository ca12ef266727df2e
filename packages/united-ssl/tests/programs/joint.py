"""Steps of a pretraining that must not depend on the number of processes; run alone, or with torchrun."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from unittest import mock

import torch
from torch import nn

from dart_core.checkpoint import save_weights
from dart_core.run import Run
from dart_core.settings import RunSettings
from united_ssl import method
from united_ssl.cubes import read_cubes
from united_ssl.losses import gradient_penalty
from united_ssl.rotation import rotate_cube
from united_ssl.settings import Adversary, Network, Pretext, Training
from united_ssl.tasks import Task, Views

STEPS = ("D", "joint")


class FixedRotation(Task):
    """Turns each cube by its number, so that the views do not depend on which process draws them."""

    def views(self, batch, restoring, generator):
        labels = batch["index"] % 8
        return Views(rotate_cube(batch["cube"], labels), batch["cube"], (labels,))


def per_sample(module: nn.Module) -> None:
    """Instance normalisation for batch normalisation, which looks at the share of a process (on CUDA it is exchanged)."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm3d):
            setattr(module, name, nn.InstanceNorm3d(child.num_features, affine=True))
        else:
            per_sample(child)


def fixed_alpha(critic, real, fake, condition, alpha, adversarial, generator):
    """The gradient penalty with the same alpha for all cubes of all processes."""
    return gradient_penalty(critic, real, fake, condition, torch.full((len(real), 1, 1, 1, 1), 0.3), adversarial)


def train(step: str, folder: Path, out: Path) -> None:
    parts = read_cubes(folder)
    cubes = {name: parts.split(name) for name in ("train", "val")}
    training = Training(batch_size=4, max_epochs=2, optimizer="sgd", learning_rate=1e-3, log_every=1)
    with Run(RunSettings(out, device="cpu", seed=3)) as run:
        task = FixedRotation(Pretext("rotation"))
        network = task.network(Network(width=1), parts.shape)
        per_sample(network)
        critic = task.critic("instance", 1) if step == "joint" else None
        with mock.patch.object(method, "gradient_penalty", fixed_alpha):
            best = method.train_step(run, step, task, network, critic, cubes, training, Adversary(critic_steps=2))
        if run.is_main:
            run.finish(best.numbers)
            save_weights(out / "network.safetensors", network, {"processes": str(run.world_size)})
            if critic is not None:
                save_weights(out / "critic.safetensors", critic, {})


def cluster(folder: Path, out: Path) -> None:
    """Deep clustering with batch normalisation: every process writes down what it has come to."""
    parts = read_cubes(folder)
    cubes = {name: parts.split(name) for name in ("train", "val")}
    training = Training(batch_size=4, max_epochs=3, learning_rate=1e-2, log_every=1, patience=1)
    with Run(RunSettings(out, device="cpu", seed=3)) as run:
        task = Task(Pretext("deep-clustering", clusters=3, components=3))
        network = task.network(Network(width=1, norm_momentum=0.5), parts.shape)
        best = method.train_step(run, "joint-DR", task, network, None, cubes, training, Adversary())
        found = {"step": run.step, "best": best.state_dict(), "labels": task.clusters.labels.tolist()}
        found["best"]["weights"] = {name: value.tolist() for name, value in found["best"]["weights"].items()}
        (out.parent / f"process{run.rank}.json").write_text(json.dumps(found))


def main(folder: Path, out: Path) -> None:
    for step in STEPS:
        train(step, folder, out / step)
    cluster(folder, out / "clusters")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
