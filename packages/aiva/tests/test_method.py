"""The adaptation loop against the authors' way of doing it: every graph kept, one plain loop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from aiva import Clustering, bottleneck_features, cluster_sites, epoch, train_aiva
from aiva.alignment import AlignmentAccumulator, LambdaNormaliser, alignment_loss
from aiva.bottleneck import statistics_kept
from aiva.epoch import Clusters, clusterings
from aiva.method import align
from aiva.settings import Alignment, Training
from aiva.slices import SitePair, Slices
from aiva.training import Selection
from dart_core.errors import InputError, SettingError
from dart_core.nets import ResidualUNet2d
from dart_core.run import Run
from dart_core.settings import RunSettings, ScanSettings

Pair = tuple[Slices, Slices]
SETTINGS = Alignment(clusters=3, perplexity=8, iterations_per_epoch=8, acc_amount=6)
TRAINING = Training(steps=36, batch_size=4, learning_rate=2e-3, log_every=1, checkpoint="last")


def make_network(seed: int = 0) -> ResidualUNet2d:
    torch.manual_seed(seed)
    network = ResidualUNet2d(out_channels=2, width=2)
    with torch.no_grad():  # statistics and scales as of a trained network, not 0 and 1
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.1)
        for name, parameter in network.named_parameters():
            if "norm" in name:
                parameter += 0.1 * torch.randn_like(parameter)
    return network


class DoubleSlices(Slices):
    """In float64: the loops compared here step often, and batch norms of nearly blank slices magnify rounding errors."""

    def load(self, index: int, rng: np.random.Generator | None = None) -> Any:
        sample = super().load(index, rng)
        return {**sample, "image": np.asarray(sample["image"], np.float64)}


@pytest.fixture
def double_pair(pair: Pair, datalist: Path) -> Pair:
    settings = ScanSettings(datalist, "plain")
    return DoubleSlices(pair[0].scans, settings, 48), DoubleSlices(pair[1].scans, settings, 48, labelled=False)


def adapted(out: Path, pair: Pair, settings: Alignment = SETTINGS, training: Training = TRAINING, **run: Any) -> Any:
    network = make_network()
    network = network.double() if isinstance(pair[0], DoubleSlices) else network
    selection = Selection("last", None, 100, training.steps or 0)
    with Run(RunSettings(out, device="cpu", seed=1, **run)) as entered:
        train_aiva(entered, network, *pair, training, settings, selection, milestones=(20,))
    return network


def lines(out: Path, key: str) -> dict[int, float]:
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[key] for line in found if key in line}


def by_position(source: Any, target: Any, k: int, positions: Any, *_: Any, **__: Any) -> Clustering:
    """A clustering that does not magnify rounding errors, as t-SNE does: thirds of the scans."""
    of_source, of_target = (np.floor(k * place).astype(np.int64) for place in positions)
    rows = np.asarray(source[0 : len(of_source)], np.float32)
    means = np.stack([rows[of_source == cluster].mean(0) for cluster in range(k)])
    plane = np.zeros((len(of_source) + len(of_target), 2))
    return Clustering(of_source, of_target, np.array([1, 2, 0]), means, plane, np.zeros((k, 2)), np.zeros((k, 2)))


def plain_loop(pair: Pair) -> tuple[ResidualUNet2d, dict[int, float]]:
    """Specification 2.2 to 2.6 as one reads them: features with graph wait in a list until there are enough."""
    network = make_network().double()
    trainable = [
        name
        for name, _ in network.named_parameters()
        if not name.startswith(("up", "shortcut", "bottleneck.4", "bottleneck.3.second"))
    ]
    parameters = [parameter for name, parameter in network.named_parameters() if name in trainable]
    optimizer = torch.optim.SGD(parameters, 2e-3, momentum=0.9, nesterov=True, weight_decay=5e-4)
    batches = SitePair(*pair, 4, 1, 8)
    stores: list[dict[int, Any]] = [{}, {}]
    waiting: list[tuple[torch.Tensor, int]] = []
    values: list[float] = []
    alignments: dict[int, float] = {}
    for step in range(1, 36):
        batch = batches.batch(step)
        if step < 8:
            network.eval()
            with torch.no_grad():
                for store, site in zip(stores, ("source", "target"), strict=True):
                    _, v = network(batch[f"{site}_image"], return_bottleneck=True)
                    store.update(zip(batch[f"{site}_index"].tolist(), v.half().numpy(), strict=True))
            continue
        if step % 8 == 0:
            keys = [sorted(store) for store in stores]
            features = [np.stack([store[key] for key in order]) for store, order in zip(stores, keys, strict=True)]
            positions = [slices.positions[order] for slices, order in zip(pair, keys, strict=True)]
            found = by_position(features[0], features[1], 3, positions)
            cluster_of = dict(zip(keys[1], found.target_assignment.tolist(), strict=True))
            stores, waiting = [{}, {}], []
        network.train()
        optimizer.param_groups[0]["lr"] = 2e-3 if step < 28 else 2e-4
        logits, v = network(batch["source_image"], return_bottleneck=True)
        loss = nn.functional.cross_entropy(logits, batch["source_mask"])
        stores[0].update(zip(batch["source_index"].tolist(), v.detach().half().numpy(), strict=True))
        _, v = network(batch["target_image"], return_bottleneck=True)
        stores[1].update(zip(batch["target_index"].tolist(), v.detach().half().numpy(), strict=True))
        for index, feature in zip(batch["target_index"].tolist(), v, strict=True):
            if index in cluster_of:
                waiting.append((feature, cluster_of[index]))
        if len(waiting) > 6:
            total = torch.zeros((), dtype=torch.float64)
            for cluster in range(3):
                members = [feature for feature, own in waiting if own == cluster]
                if members:
                    goal = torch.from_numpy(found.source_means[found.match[cluster]])
                    distance = (torch.stack(members).mean(0) - goal).square().mean()
                    total = total + len(members) / len(waiting) * distance
            alignments[step] = float(total.detach())
            if len(values) == 6:
                total = total * 0.9 / np.mean(values)
            else:
                values.append(alignments[step])
            (loss + total).backward()
            optimizer.step()
            optimizer.zero_grad()
            waiting = []
        else:
            loss.backward()
    return network, alignments


def test_loop_equals_the_plain_one(double_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epoch, "cluster_sites", by_position)
    network = adapted(tmp_path / "run", double_pair)
    expected, alignments = plain_loop(double_pair)
    found = lines(tmp_path / "run", "alignment")
    assert list(found) == list(alignments)
    assert len(found) > 6  # beyond the warm-up of lambda
    np.testing.assert_allclose(list(found.values()), list(alignments.values()), rtol=1e-9)
    for (name, value), other in zip(network.state_dict().items(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-9, atol=1e-10, msg=name)


def test_what_moves_and_what_does_not(pair: Pair, tmp_path: Path) -> None:
    network, start = adapted(tmp_path / "run", pair), make_network().state_dict()
    frozen = ("up1", "up2", "shortcut", "bottleneck.4", "bottleneck.3.second")
    weights = {name for name, _ in network.named_parameters()}
    for name, value in network.state_dict().items():
        # All weights of the encoder and of out_path move, and the statistics of all batch norms.
        same = name in weights and name.startswith(frozen)
        assert torch.equal(value, start[name]) == same, name
    assert list(lines(tmp_path / "run", "matched_distance")) == [8, 16, 24, 32]
    assert list(lines(tmp_path / "run", "loss")) == list(range(8, 36))
    rates = lines(tmp_path / "run", "learning_rate")
    assert [step for step, rate in rates.items() if rate == pytest.approx(2e-4)] == list(range(28, 36))
    assert not (tmp_path / "run" / "features").exists()


def test_collecting_changes_nothing(pair: Pair, tmp_path: Path) -> None:
    network = adapted(tmp_path / "run", pair, training=Training(steps=8, batch_size=4, learning_rate=1e-2))
    start = make_network().state_dict()
    assert all(torch.equal(value, start[name]) for name, value in network.state_dict().items())


def test_clusters_are_written(pair: Pair, tmp_path: Path) -> None:
    adapted(tmp_path / "run", pair)
    first, *others = clusterings(tmp_path / "run")
    assert [int(found["step"]) for found in (first, *others)] == [8, 16, 24, 32]
    # Seven steps of four slices without repetition; a later epoch has eight.
    assert first["source_places"].shape == first["target_places"].shape == (28, 2)
    assert [found["source_places"].shape for found in others] == [(32, 2)] * 3
    assert len({tuple(place) for place in first["target_places"].tolist()}) == 28
    assert first["embedding"].shape == (56, 2)
    assert set(first["target_assignment"].tolist()) <= {0, 1, 2}
    with pytest.raises(InputError, match="holds no clusters"):
        next(clusterings(tmp_path))
    path = tmp_path / "run" / "clusters" / "step-000000016.npz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"step-000000016\.npz: cannot be read"):
        list(clusterings(tmp_path / "run"))


def test_step_every_iteration(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = [0]
    step = torch.optim.SGD.step

    def counting(*arguments: Any, **keywords: Any) -> Any:
        count[0] += 1
        return step(*arguments, **keywords)

    monkeypatch.setattr(torch.optim.SGD, "step", counting)
    adapted(tmp_path / "often", pair, Alignment(**{**vars(SETTINGS), "step_every_iteration": True}))
    assert count[0] == 28
    often = len(lines(tmp_path / "often", "alignment"))
    count[0] = 0
    adapted(tmp_path / "seldom", pair)
    assert count[0] == often == len(lines(tmp_path / "seldom", "alignment"))
    assert often < 28


def test_recomputed_features(pair: Pair, tmp_path: Path) -> None:
    """All slices, by the network as it is; training starts at once."""
    settings = Alignment(**{**vars(SETTINGS), "embedding": "recompute"})
    adapted(tmp_path / "run", pair, settings, Training(steps=9, batch_size=4, learning_rate=1e-3, log_every=1))
    first, second = clusterings(tmp_path / "run")
    assert [int(first["step"]), int(second["step"])] == [0, 8]
    network = make_network().eval()
    features = []
    for slices in pair:
        images = torch.stack([torch.from_numpy(np.asarray(slices.load(i)["image"])) for i in range(len(slices))])
        with torch.no_grad():
            features.append(bottleneck_features(network, images).half().numpy())
    found = cluster_sites(*features, 3, (pair[0].positions, pair[1].positions), perplexity=8)
    assert np.array_equal(found.source_assignment, first["source_assignment"])
    assert np.array_equal(found.match, first["match"])
    assert list(lines(tmp_path / "run", "loss")) == list(range(9))


# Parts


@pytest.mark.parametrize("form", ["count_weighted_mean", "paper_sum", "per_sample_l1"])
@pytest.mark.parametrize("refresh", [False, True])
def test_gradient_of_an_alignment(form: Any, refresh: bool, tmp_path: Path) -> None:
    """That of all batches' graphs together, added to what is there."""
    network = make_network().train()
    draws = torch.Generator().manual_seed(2)
    images = [torch.randn(4, 1, 24, 24, generator=draws) for _ in range(3)]
    assignments = [torch.tensor(values) for values in ([0, -1, 1, 2], [2, 2, -1, -1], [1, 0, 0, 0])]
    clusters = Clusters(1, 1)
    clusters.source_means = torch.randn(3, 16, 3, 3, generator=draws)
    clusters.match = torch.tensor([2, 0, 1])
    normaliser = LambdaNormaliser(0.9, 1)
    normaliser(0.5)

    with statistics_kept(network):
        features = torch.cat([bottleneck_features(network, batch) for batch in images])
    loss = alignment_loss(features, torch.cat(assignments), clusters.source_means, clusters.match, form)
    expected = torch.autograd.grad(1.8 * loss, list(network.init_path.parameters()), allow_unused=True)

    accumulator = AlignmentAccumulator(3)
    for batch, assignment in zip(images, assignments, strict=True):
        with statistics_kept(network), torch.no_grad():
            held = bottleneck_features(network, batch)
        accumulator.hold(batch, torch.zeros_like(held) if refresh else held, assignment)
    before = torch.ones_like(network.init_path[0].weight)
    network.init_path[0].weight.grad = before.clone()
    with Run(RunSettings(tmp_path / "run", device="cpu")) as run:
        value, scaled = align(run, network, accumulator, clusters, normaliser, form, refresh)
    assert value == pytest.approx(float(loss.detach()), rel=1e-5)
    assert scaled == pytest.approx(1.8 * value, rel=1e-5)
    for parameter, gradient in zip(network.init_path.parameters(), expected, strict=True):
        assert parameter.grad is not None
        found = parameter.grad - before if parameter is network.init_path[0].weight else parameter.grad
        torch.testing.assert_close(found, gradient, rtol=1e-3, atol=1e-4 * float(expected[0].abs().max()))
    assert accumulator.pending == []
    assert all(parameter.grad is None for parameter in network.up1.parameters())


def test_alignment_that_is_not_finite(tmp_path: Path) -> None:
    network, accumulator, clusters = make_network(), AlignmentAccumulator(0), Clusters(1, 1)
    clusters.source_means, clusters.match = torch.zeros(1, 16, 1, 1), torch.tensor([0])
    accumulator.hold(torch.zeros(1, 1, 8, 8), torch.full((1, 16, 1, 1), torch.nan), torch.tensor([0]))
    with Run(RunSettings(tmp_path / "run", device="cpu")) as run, pytest.raises(InputError, match="loss is not finite"):
        align(run, network, accumulator, clusters, LambdaNormaliser(), "paper_sum")


def test_divided_batches_are_refused(pair: Pair, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="leave out --accumulate"):
        adapted(tmp_path / "run", pair, accumulate=2)
