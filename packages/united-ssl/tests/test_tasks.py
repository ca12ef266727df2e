"""Views of the pretext tasks, pseudo labels and batches (specification 2.3)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from united_ssl import permutation_set, rotate_cube, shuffle_blocks
from united_ssl.blocks import JIGSAW_GAP, RUBIK_GAP, gap_for, split_blocks, turn_blocks, with_gap
from united_ssl.cubes import read_cubes
from united_ssl.settings import Network, Pretext
from united_ssl.tasks import Task, WeightedBatches, pooled_features

CPU = torch.device("cpu")


def batch(n: int = 6, side: int = 16) -> dict[str, torch.Tensor]:
    cube = torch.rand((n, 1, side, side, side), generator=torch.Generator().manual_seed(5))
    return {"cube": cube, "index": torch.arange(n), "pseudo": torch.arange(n), "word": torch.arange(n)}


def views(settings: Pretext, given: dict[str, torch.Tensor], restoring: bool = True):
    task = Task(settings, 6)
    return task, task.views(given, restoring, torch.Generator().manual_seed(0))


def test_rotation():
    given = batch()
    _, (seen, target, (labels,)) = views(Pretext("rotation"), given)
    assert torch.equal(target, given["cube"])
    assert torch.equal(seen, rotate_cube(given["cube"], labels))


def test_jigsaw_restores_the_cube_without_gap():
    given = batch()
    _, (seen, target, (numbers,)) = views(Pretext("jigsaw"), given)
    assert torch.equal(target, given["cube"])
    assert torch.equal(seen, shuffle_blocks(target, permutation_set()[numbers], gap_for(JIGSAW_GAP, (16, 16, 16))))


def test_rubik_flags_are_those_of_the_blocks_shown():
    given = batch()
    _, (seen, target, (flags, numbers)) = views(Pretext("rubik"), given)
    assert torch.equal(target, given["cube"])
    shown = split_blocks(shuffle_blocks(target, permutation_set()[numbers], gap_for(RUBIK_GAP, (16, 16, 16))))
    untouched = (split_blocks(seen) == shown).flatten(3).all(-1)[:, 0]
    assert torch.equal(untouched, flags == 0)


def test_rubik_siamese_restores_blocks_where_they_are_shown():
    given = batch()
    _, (_seen, target, (_, numbers)) = views(Pretext("rubik", siamese=True), given)
    assert torch.equal(target, shuffle_blocks(given["cube"], permutation_set()[numbers]))


def test_rubik_as_coded_has_its_flaws():
    given = batch()
    task, (seen, target, (flags, numbers)) = views(Pretext("rubik", form="as-coded"), given)
    gap = gap_for(RUBIK_GAP, (16, 16, 16))
    assert torch.equal(target, with_gap(given["cube"], gap))  # with the gap, in original order
    back = split_blocks(shuffle_blocks(seen, task.permutations[numbers].argsort(1)))
    assert torch.equal((back == split_blocks(target)).flatten(3).all(-1)[:, 0], flags == 0)  # flags in original order
    _, (distorted, _, (again, _)) = views(Pretext("rubik", form="as-coded", genesis=True), given)
    assert torch.equal(flags, again)
    blocks = split_blocks(shuffle_blocks(distorted, task.permutations[numbers].argsort(1)))[:, 0]
    rests = [turn_blocks(split_blocks(target), torch.full((8,), k))[:, 0] for k in range(4)]
    plain = torch.stack([(blocks == rest).flatten(2).all(-1) for rest in rests]).any(0)
    assert plain[flags == 0].all()  # what is distorted was turned


def test_masking_hides_one_or_two_blocks_of_half_of_the_cubes():
    given = batch(400, 4)
    given["cube"] += 1
    _, (seen, _, _) = views(Pretext("rubik", masking=True), given)
    hidden = (split_blocks(seen) == 0).flatten(3).all(-1).sum((1, 2))
    counts = torch.bincount(hidden, minlength=3)
    assert len(counts) == 3
    assert ((counts - torch.tensor([200, 100, 100])).abs() < 45).all()


def test_deep_clustering_sees_a_crop():
    given = batch(6, 16)
    _, (seen, target, (labels,)) = views(Pretext("deep-clustering"), given)
    assert torch.equal(target, given["cube"])
    assert torch.equal(labels, given["pseudo"])
    assert seen.shape == target.shape
    flat = {**given, "cube": torch.full((6, 1, 16, 16, 16), 0.3)}
    assert torch.allclose(views(Pretext("deep-clustering"), flat)[1].seen, flat["cube"])


def test_genesis_changes_the_target_only_by_flips():
    given = batch(12)
    for name in ("rotation", "jigsaw", "rubik", "deep-clustering", "transvw"):
        _, found = views(Pretext(name, genesis=True, permutations=20), given)
        flips = [given["cube"], *(given["cube"].flip(axes) for axes in ((2,), (3,), (2, 3)))]
        same = torch.stack([(found.target == cube).flatten(1).all(1) for cube in flips]).any(0)
        assert same.all(), name


@pytest.mark.parametrize("name", ["rotation", "jigsaw", "rubik", "deep-clustering", "transvw"])
def test_the_same_draws_give_the_same_views(name):
    given, settings = batch(), Pretext(name, permutations=20)
    _, one = views(settings, given)
    _, other = views(settings, given)
    assert torch.equal(one.seen, other.seen)
    assert all(torch.equal(a, b) for a, b in zip(one.labels, other.labels, strict=True))


def test_pseudo_labels(cubes):
    parts = {name: read_cubes(cubes).split(name) for name in ("train", "val")}
    train = parts["train"]
    task = Task(Pretext("deep-clustering", clusters=3, components=4), seed=1)
    network = task.network(Network(width=1), train.shape)
    before = network.head.outputs[0].weight.detach().clone()
    assert task.relabel(network, parts, 0, 4, CPU)
    labels = task.clusters.labels.clone()
    assert not torch.equal(before, network.head.outputs[0].weight)
    assert not network.head.outputs[0].bias.any()
    kept = network.head.outputs[0].weight.detach().clone()
    assert not task.relabel(network, parts, 0, 4, CPU)  # done already
    assert torch.equal(kept, network.head.outputs[0].weight)
    other = Task(Pretext("deep-clustering", clusters=3, components=4), seed=1)
    other.load_state_dict(task.state_dict())
    assert torch.equal(other.clusters.labels, labels)
    assert other.labelled_epoch == 0
    assert torch.equal(task.clusters.assign(pooled_features(network, train, 4, CPU, centre_crop=True)), labels)


def test_validation_cubes_are_labelled_with_the_network_that_made_the_clusters(cubes):
    parts = {name: read_cubes(cubes).split(name) for name in ("train", "val")}
    parts["val"] = parts["train"].take(range(4, 12))  # whose clusters are known
    task = Task(Pretext("deep-clustering", clusters=4, components=4), seed=1)
    network = task.network(Network(width=1), parts["train"].shape)
    task.relabel(network, parts, 0, 4, CPU)
    with torch.no_grad():
        for parameter in network.encoder.parameters():  # an epoch of training
            parameter.copy_(torch.rand(parameter.shape, generator=torch.Generator().manual_seed(3)) - 0.5)
    other = Task(Pretext("deep-clustering", clusters=4, components=4), seed=1)
    other.load_state_dict(task.state_dict())
    for one in (task, other):
        assert torch.equal(one.validation_labels(parts["val"])["pseudo"], task.clusters.labels[4:])
    now = task.clusters.assign(pooled_features(network, parts["val"], 4, CPU, centre_crop=True))
    assert not torch.equal(now, task.clusters.labels[4:])


def test_features_are_pooled_in_evaluation_mode(cubes):
    train = read_cubes(cubes).split("train")
    network = Task(Pretext("rotation")).network(Network(width=1), train.shape)
    found = pooled_features(network, train, 5, CPU)
    network.eval()
    with torch.no_grad():
        expected = network.encoder(train.stack(range(len(train))))[-1].mean((2, 3, 4))
    assert torch.allclose(found, expected, atol=1e-6)


def test_weighted_batches_draw_clusters_equally_often():
    weights = np.array([0.5, 0.25, 0.25, 0.0])
    batches = WeightedBatches(lambda i, rng: {"i": i}, 8, 0, weights)
    drawn = np.array([sample for step in range(500) for _, sample in batches.plan(step)])
    counts = np.bincount(drawn, minlength=4)
    assert counts[3] == 0
    assert abs(counts[0] - 2000) < 4 * (4000 * 0.25) ** 0.5
    assert torch.equal(batches.batch(3)["i"], batches.batch(3)["i"])


def test_state_brings_the_orders_back():
    task = Task(Pretext("jigsaw", form="as-coded", permutations=5), seed=1)
    other = Task(Pretext("jigsaw", form="as-coded", permutations=5), seed=2)
    assert not torch.equal(task.permutations, other.permutations)
    other.load_state_dict(task.state_dict())
    assert torch.equal(task.permutations, other.permutations)
