"""One meta-epoch of Reptile: metamedseg's, with tasks in processes, against the loop of the authors' program.

    python benchmarks/speed/reptile.py [--size 128] [--inner-epochs 2] [--processes 5] [--rounds 5]

The same work on the same CPU: five tasks, each a copy of the meta-model trained by Adam on 15 slices, batch size 1, then the average
update (Eq. 1). The authors' loop is written here as their program has it (specification 2.4): one process; for each task a new network
that gets a deep copy of the meta-model's state; a DataLoader that opens each slice again in every epoch; Adam and a StepLR; loss and
IoU of each step read as numbers; state dicts copied and added up. Left out on both sides: validation. In the authors' favour: the slices
are the arrays that metamedseg reads instead of PNG pictures, and the faster of one and all threads counts.

First both train a task in double precision with the slices in the same order, and must end with the same weights. Biases in front
of a norm are not compared: they change nothing, their gradient is zero, and Adam moves them by the noise of rounding.

Three quarters of a step are convolutions, which run at the speed of the processor's matrix product, theirs as ours. In single precision
processes can thus win only what their threads lose. There is a process for each task, more than cores: with one for each core, five tasks on
two cores would take three rounds. `--precision bf16` halves the work where the processor knows bfloat16; its losses
are compared with those of single precision, which differ as much between two orders of the slices.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compare import alternate, record
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from metamedseg import MetaUNet, losses
from metamedseg.datasets import SliceRow, SliceSet, write_slice
from metamedseg.measures import iou_score
from metamedseg.method import Hardware, ReptileTrainer, cpu_state, reptile_update, train_on
from metamedseg.parallel import results_of
from metamedseg.settings import Inner, Network, Tasks

TASKS, SHOTS = 5, 15
State = dict[str, Tensor]


# --- The authors' loop -----------------------------------------------------------------------------------------------


class Slices(Dataset[tuple[Tensor, Tensor]]):
    """Opens a slice each time it is asked for."""

    def __init__(self, source: SliceSet, kind: torch.dtype) -> None:
        self.source, self.kind = source, kind

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = self.source.image(index), self.source.mask(index)
        return torch.from_numpy(image).to(self.kind), torch.from_numpy(mask).to(self.kind)


class Order:
    """Gives out one order of the slices after the other."""

    def __init__(self, orders: Sequence[Sequence[int]]) -> None:
        self.orders = iter(orders)
        self.count = len(orders[0])

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Any:
        return iter(next(self.orders))


def authors_network(kind: torch.dtype) -> nn.Module:
    """Theirs has the layer that PyTorch names after instance norm; the weights are the same."""
    network = MetaUNet().to(kind)
    for block in (*network.down, *network.up):
        for name, layer in block.named_children():
            if isinstance(layer, nn.GroupNorm):
                setattr(block, name, nn.InstanceNorm2d(layer.num_channels))
    return network


def authors_task(
    meta_model: nn.Module, source: SliceSet, orders: Sequence[Sequence[int]], inner: Inner, kind: torch.dtype
) -> State:
    """The inner loop."""
    model = authors_network(kind)
    model.load_state_dict(deepcopy(meta_model.state_dict()))
    loader = DataLoader(Slices(source, kind), batch_size=1, sampler=Order(orders))
    optimizer = torch.optim.Adam(model.parameters(), lr=inner.inner_lr, weight_decay=inner.weight_decay)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=inner.every, gamma=inner.factor)
    for _ in range(inner.inner_epochs):
        loss, iou, count = 0.0, 0.0, 0
        model.train()
        for image, mask in loader:
            optimizer.zero_grad()
            count += len(image)
            output = model(image)
            current = losses.LOSSES[inner.loss](output, mask)
            iou += iou_score(output, mask).mean().item() * len(image)
            loss += current.item() * len(image)
            current.backward()
            optimizer.step()
        scheduler.step()
    deepcopy(model.state_dict())
    return model.state_dict()


def authors_epoch(meta_model: nn.Module, trainer: ReptileTrainer, beta: float) -> State:
    """The outer loop's body: the new state of the meta-model, which is left as it was."""
    before = deepcopy(meta_model.state_dict())
    accumulator = {name: 0 * value for name, value in deepcopy(meta_model.state_dict()).items()}
    for step in range(TASKS):
        source, places, rng = trainer.draw(step)
        orders = [[places[i] for i in rng.permutation(len(places))] for _ in range(trainer.inner.inner_epochs)]
        state = authors_task(meta_model, source, orders, trainer.inner, torch.float32)
        for name in accumulator:
            accumulator[name] += deepcopy(state[name]) - deepcopy(before[name])
    return {name: before[name] + beta * accumulator[name] / TASKS for name in before}


# --- Comparison ------------------------------------------------------------------------------------------------------


def make_sources(folder: Path, size: int) -> list[SliceSet]:
    """Three data sets of discs in noise."""
    sources = []
    for number, name in enumerate(("a", "b", "c")):
        rng = np.random.default_rng(number)
        rows = []
        for z in range(SHOTS):
            y, x = np.mgrid[:size, :size] - rng.uniform(size / 3, 2 * size / 3, (2, 1, 1))
            mask = np.hypot(y, x) < size / 8
            write_slice(folder / name, f"v_slice{z}", rng.normal(size=(size, size)) + 2 * mask, mask)
            rows.append(SliceRow(f"v_slice{z}", "v", z, "train", int(mask.sum())))
        sources.append(SliceSet(name, name, tuple(rows), folder / name))
    return sources


def difference(source: SliceSet, inner: Inner) -> float:
    """Largest difference of what matters in the weights after one task in double precision."""
    torch.manual_seed(0)
    meta_model = MetaUNet().double()
    images, masks = (part.double() for part in source.stack(range(len(source))))
    ours = MetaUNet().double()
    ours.load_state_dict(meta_model.state_dict())
    train_on(ours, images, masks, inner, inner.inner_lr, np.random.default_rng(1), Hardware())
    rng = np.random.default_rng(1)
    orders = [rng.permutation(len(source)).tolist() for _ in range(inner.inner_epochs)]
    theirs = authors_task(meta_model, source, orders, inner, torch.float64)
    matters = [name for name in theirs if name.endswith("weight") or name.startswith("last")]
    return max(float((ours.state_dict()[name] - theirs[name]).abs().max()) for name in matters)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="all work on the CPU; other devices are skipped")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--inner-epochs", type=int, default=2)
    parser.add_argument("--processes", type=int, default=TASKS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--note", default="", help="what else is to be said of the machine")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    arguments = parser.parse_args()
    if arguments.device != "cpu":
        print("meta-epochs are measured on the CPU")
        return
    inner = Inner(inner_epochs=arguments.inner_epochs).resolved()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        sources = make_sources(Path(folder), arguments.size)
        found = difference(SliceSet("a", "a", sources[0].rows[:4], sources[0].folder), Inner(inner_epochs=4).resolved())
        print(f"largest difference of weights after one task in double precision: {found:.2g}")
        if found > 1e-6:
            raise SystemExit("the loops do not agree")
        torch.manual_seed(0)
        meta_model = MetaUNet()
        theta = cpu_state(meta_model)
        trainer = ReptileTrainer(sources, Tasks(shots=SHOTS, per_epoch=TASKS), inner, Network(), 0)
        device = torch.device("cpu")
        threads = os.cpu_count() or 1
        short = replace(trainer, hardware=Hardware(precision="bf16"))
        others = replace(trainer, seed=1)
        with (
            results_of(trainer, device, 1, 1) as alone,
            results_of(trainer, device, arguments.processes, 1) as several,
            results_of(short, device, arguments.processes, 1) as shorter,
        ):

            def authors(count: int) -> State:
                torch.set_num_threads(count)
                state = authors_epoch(meta_model, trainer, 0.01)
                torch.set_num_threads(1)
                return state

            def ours(results: Any) -> State:
                states = [result.state for result in results(range(TASKS), theta, {})]
                state: State = reptile_update(theta, states, 0.01, "average")
                return state

            def losses_of(results: Any) -> list[float]:
                return [result.losses[-1] for result in results(range(TASKS), theta, {})]

            first, second = ours(alone), ours(several)
            same = all(torch.equal(value, second[name]) for name, value in first.items())
            print(f"several processes give the result of one bit for bit: {same}")
            losses_found = {"single precision": losses_of(several), "bf16": losses_of(shorter)}
            with results_of(others, device, arguments.processes, 1) as reordered:
                losses_found["single precision, other slices and orders"] = losses_of(reordered)
            for name, values in losses_found.items():
                print(f"loss of the last inner epoch, {name}: " + ", ".join(f"{value:.4f}" for value in values))
            seconds = alternate(
                {
                    "authors, 1 thread": lambda: authors(1),
                    f"authors, {threads} threads": lambda: authors(threads),
                    "metamedseg, 1 process": lambda: ours(alone),
                    f"metamedseg, {arguments.processes} processes": lambda: ours(several),
                    f"metamedseg, {arguments.processes} processes, bf16": lambda: ours(shorter),
                },
                arguments.rounds,
            )
    fastest = min((name for name in seconds if name.startswith("authors")), key=lambda name: np.median(seconds[name]))
    ratios = {}
    for name in list(seconds)[-2:]:
        ratios[name] = float(np.median(seconds[fastest]) / np.median(seconds[name]))
        print(f"  {name}: {ratios[name]:.3g} times as fast as the faster of the authors' ({fastest})")
    notes = {
        "size": arguments.size, "inner_epochs": arguments.inner_epochs, "tasks": TASKS, "slices": SHOTS,
        "largest_difference_in_double_precision": found, "processes_equal_bit_for_bit": same,
        "losses": losses_found, "times_as_fast_as_the_faster_authors": ratios,
        "note": "starting the processes, once per training, is not timed. " + arguments.note,
    }  # fmt: skip
    record("reptile", seconds, notes, arguments.out)


if __name__ == "__main__":
    main()
