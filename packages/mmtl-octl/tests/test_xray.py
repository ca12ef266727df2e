"""The X-ray classifier and its fine-tunings (specification 3, 4 and 5.3)."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import densenet121, resnet50

from dart_core.checkpoint import load_checkpoint, load_weights
from dart_core.data.datalist import Row
from dart_core.data.images import write_image
from dart_core.errors import CheckpointError, InputError
from dart_core.run import Run
from dart_core.settings import RunSettings
from mmtl_octl import save_history
from mmtl_octl.method import make_optimizer
from mmtl_octl.pictures import Pictures
from mmtl_octl.settings import SOURCE_CLASSIFIER, TARGET_CLASSIFIER, Adaptation, Training
from mmtl_octl.xray import (
    MEAN,
    STD,
    ChestNet,
    SpotTuneChestNet,
    adapt_classifier,
    freeze_first,
    freeze_unused,
    label_loss,
    load_imagenet,
    pretrain_classifier,
    switches,
    task_of,
)

SIZE: tuple[int, tuple[int, ...], int] = (4, (1, 2, 1, 1), 8)
FOURTEEN = tuple(f"l{i}" for i in range(14))
LABELS = {"one": ("a", "b"), "two": ("c",)}
TRAINING = Training(
    epochs=2, batches=2, batch_size=4, learning_rate=1e-3, drop_epoch=None, optimizer="adam", log_every=1
)


def small(label_sets: dict[str, tuple[str, ...]] = LABELS, seed: int = 0) -> ChestNet:
    torch.manual_seed(seed)
    network = ChestNet(label_sets, *SIZE)
    network(torch.rand(8, 1, 32, 32))  # running statistics that are not those of a fresh network
    return network


class Policy(nn.Module):
    """Logits from the mean of the picture."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.layer = nn.Linear(3, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x.mean((2, 3)))
        return out


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pictures]:
    """Six pictures of each data set; the brightness tells the labels."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    found = {}
    for name, labels in LABELS.items():
        truth = np.array([[i // (k + 1) % 2 for k in range(len(labels))] for i in range(6)], dtype=np.float32)
        rows = []
        for i in range(6):
            grey = rng.integers(0, 60, (40, 36)) + 150 * int(truth[i, 0])
            rows.append(Row(write_image(folder / f"{name}{i}.png", grey.astype(np.uint8)), subject=str(i), site=name))
        found[name] = Pictures(name, labels, tuple(rows), truth)
    return found


# --- the network -----------------------------------------------------------------------------------------------------


def test_numbers_of_the_paper_s_network() -> None:
    network = ChestNet({"chexpert": FOURTEEN, "chestxray14": FOURTEEN})
    assert sum(p.numel() for p in network.parameters()) == 6_982_556
    assert sum(p.numel() for p in network.heads.parameters()) == 28_700
    assert switches(network) == 62
    freeze_first(network)
    trained = [(name, p.numel()) for name, p in network.named_parameters() if p.requires_grad]
    features = [(name, n) for name, n in trained if name.startswith("features.")]
    assert len(features) == 42
    assert sum(n for _, n in features) == 377_856
    assert features[-1][0] == "features.transition1.conv.weight"
    assert sum(n for name, n in trained if name.startswith("heads.")) == 28_700
    assert network.eval()(torch.zeros(1, 1, 32, 32)).shape == (1, 28)


def test_agrees_with_torchvision_s_densenet() -> None:
    torch.manual_seed(0)
    reference = densenet121(num_classes=5).eval()
    network = ChestNet({"x": tuple("abc"), "y": tuple("de")}).eval()
    network.features.load_state_dict(reference.features.state_dict())
    with torch.no_grad():
        for head, rows in zip(network.heads, (slice(0, 3), slice(3, 5)), strict=True):
            head.weight.copy_(reference.classifier.weight[rows])
            head.bias.copy_(reference.classifier.bias[rows])
    grey = torch.rand(2, 1, 64, 64)
    colour = (grey.expand(-1, 3, -1, -1) - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(network(grey), reference(colour), rtol=1e-4, atol=1e-5)
    assert network.columns("x") == slice(0, 3)
    assert network.columns("y") == slice(3, 5)


def test_a_new_label_set_leaves_the_others_alone() -> None:
    network = small({"one": ("a", "b")}).eval()
    x = torch.rand(2, 1, 32, 32)
    before, state = network(x), copy.deepcopy(network.state_dict())
    network.add_label_set("two", ("c", "d", "e"))
    assert torch.equal(network(x)[:, :2], before)
    assert network(x).shape == (2, 5)
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in state.items())
    with pytest.raises(InputError, match="has a head for two already"):
        network.add_label_set("two", ("c",))
    with pytest.raises(InputError, match="cannot label three with nothing"):
        network.add_label_set("three", ())


# --- the loss --------------------------------------------------------------------------------------------------------


def test_loss_by_hand() -> None:
    nan = float("nan")
    logits = torch.tensor([[0.3, -1.0, 2.0], [1.0, 0.5, -0.7], [9.0, 9.0, 0.2]], dtype=torch.float32)
    labels = torch.tensor([[1.0, 0.0, nan], [0.0, nan, nan], [nan, nan, 1.0]])

    def bce(z: float, y: float) -> float:
        return float(np.log1p(np.exp(-z)) if y else np.log1p(np.exp(z)))

    expected = ((bce(0.3, 1) + bce(-1.0, 0)) / 2 + bce(1.0, 0) + bce(0.2, 1)) / 3
    assert label_loss(logits, {"label": labels}).item() == pytest.approx(expected, rel=1e-6)


def test_a_mixed_batch_is_weighted_by_its_shares() -> None:
    """alpha L'_source + (1 - alpha) L'_target, though source and target have different numbers of labels."""
    torch.manual_seed(0)
    logits = torch.randn(8, 15)
    labels = torch.full((8, 15), torch.nan)
    labels[:3, 14:] = torch.randint(2, (3, 1)).float()
    labels[3:, :14] = torch.randint(2, (5, 14)).float()
    target = F.binary_cross_entropy_with_logits(logits[:3, 14:], labels[:3, 14:])
    source = F.binary_cross_entropy_with_logits(logits[3:, :14], labels[3:, :14])
    torch.testing.assert_close(label_loss(logits, {"label": labels}), 5 / 8 * source + 3 / 8 * target)


def test_other_outputs_get_no_gradient() -> None:
    logits = torch.randn(4, 3, requires_grad=True)
    labels = torch.tensor([[1.0, 0.0, torch.nan]] * 4)
    label_loss(logits, {"label": labels}).backward()
    assert logits.grad is not None
    assert logits.grad[:, :2].all()
    assert not logits.grad[:, 2].any()


# --- SpotTUNet for the DenseNet --------------------------------------------------------------------------------------


def spottune() -> SpotTuneChestNet:
    """Two copies that differ."""
    source = small()
    network = SpotTuneChestNet(source, Policy(2 * switches(source)))
    torch.manual_seed(1)
    with torch.no_grad():
        for p in network.fine_tuned.features.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return network


def test_switches_of_the_paper_s_variant() -> None:
    network = SpotTuneChestNet(ChestNet({"x": ("a",)}))
    assert network.switches == 62
    assert network.policy.fc.out_features == 124  # type: ignore[union-attr, operator]
    names = {name for name, p in network.named_parameters() if not p.requires_grad}
    assert names == {name for name, _ in network.named_parameters() if name.startswith("frozen.")}
    assert {id(p) for p in network.unet_parameters()} == {id(p) for p in network.fine_tuned.parameters()}
    assert {id(p) for p in network.policy_parameters()} == {id(p) for p in network.policy.parameters()}


@pytest.mark.parametrize("choice", [0.0, 1.0])
def test_constant_policies_are_one_of_the_copies(choice: float) -> None:
    network = spottune().eval()
    x = torch.rand(3, 1, 32, 32)
    reference = copy.deepcopy(network.fine_tuned)
    if choice:  # the last norm and the heads are not switched
        for name, part in list(copy.deepcopy(network.frozen).named_children())[:-1]:
            setattr(reference.features, name, part)
    policy = torch.full((3, network.switches), choice)
    torch.testing.assert_close(network(x, policy), reference(x), rtol=1e-5, atol=1e-6)
    mixed = network(x, torch.tensor([choice, 1 - choice, choice])[:, None].expand(3, network.switches))
    torch.testing.assert_close(mixed[::2], reference(x)[::2], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(mixed[1], reference(x)[1], atol=1e-4)


def test_order_of_the_switches() -> None:
    """Stem, then the layers and the transition of each block: only the switched layer's parameters get a gradient."""
    network = spottune().eval()
    expected = ["conv0|norm0", "denseblock1.denselayer1", "transition1", "denseblock2.denselayer1",
                "denseblock2.denselayer2", "transition2", "denseblock3.denselayer1", "transition3",
                "denseblock4.denselayer1"]  # fmt: skip
    assert network.switches == len(expected)
    x = torch.rand(2, 1, 32, 32)
    for index, name in enumerate(expected):
        network.zero_grad()
        policy = torch.ones(2, network.switches)
        policy[:, index] = 0
        network(x, policy).sin().sum().backward()
        moved = {n for n, p in network.fine_tuned.features.named_parameters() if p.grad is not None and p.grad.any()}
        wanted = {n for n, _ in network.fine_tuned.features.named_parameters()
                  if n.startswith(tuple(f"{part}." for part in (*name.split("|"), "norm5")))}  # fmt: skip
        assert moved == wanted
        assert all(p.grad is None for p in network.frozen.parameters())


def test_sampled_in_training_and_argmax_in_inference() -> None:
    network = spottune()
    x = torch.rand(16, 1, 32, 32)
    out, policy = network(x, return_policy=True)
    assert ((policy == 0) | (policy == 1)).all()
    assert len(policy.unique(dim=0)) > 1
    out.sum().backward()
    assert network.policy.layer.weight.grad is not None  # type: ignore[union-attr]
    network.eval()
    out, policy = network(x, return_policy=True)
    logits = network.policy(network.fine_tuned.normalised(x)).reshape(16, network.switches, 2)
    assert torch.equal(policy, logits.argmax(-1).float())
    assert torch.equal(network(x), out)  # no noise
    with pytest.raises(InputError, match=r"policy has shape \(16, 3\)"):
        network(x, torch.ones(16, 3))


def test_frozen_stem_is_a_copy_of_its_own() -> None:
    """The authors mix the stem with itself (8.9)."""
    network = spottune().eval()
    x = torch.rand(2, 1, 32, 32)
    policy = torch.zeros(2, network.switches)
    other = policy.clone()
    other[:, 0] = 1
    assert not torch.allclose(network(x, policy), network(x, other), atol=1e-4)


# --- training --------------------------------------------------------------------------------------------------------


@pytest.fixture
def tune(pools: dict[str, Pictures], tmp_path: Path) -> Callable[..., Any]:
    """Fine-tune `small()` from one to two; gives the network before and after, and the run folder."""
    runs = 0

    def run(training: Training = TRAINING, history: Path | None = None, policy: bool = False, **adaptation: Any) -> Any:
        nonlocal runs
        runs += 1
        network = small()
        before = copy.deepcopy(network)
        out = tmp_path / f"run{runs}"
        chooser = Policy(2 * switches(network)) if policy else None
        with Run(RunSettings(out, device="cpu", seed=3)) as entered:
            after = adapt_classifier(
                entered, network, pools["two"], [pools["one"]], training, Adaptation(**adaptation), 32, history,
                policy=chooser,
            )  # fmt: skip
        return before, after, out

    return run


def changed(one: nn.Module, other: nn.Module) -> set[str]:
    others = dict(other.named_parameters())
    return {name for name, p in one.named_parameters() if not torch.equal(p, others[name])}


def test_recipes_of_the_paper() -> None:
    for recipe, epochs, batches in ((SOURCE_CLASSIFIER, 5, 500), (TARGET_CLASSIFIER, 16, 150)):
        assert (recipe.epochs, recipe.batches, recipe.batch_size) == (epochs, batches, 32)
        assert (recipe.learning_rate, recipe.drop_epoch, recipe.optimizer) == (1e-4, None, "adam")
    task = task_of(small())
    assert (task.weight_decay, task.start_step, task.missing, task.k) == (1e-5, "keep", "zeros", 0)
    optimizer = make_optimizer(small(), task, TARGET_CLASSIFIER, Adaptation(method="fta"))
    assert isinstance(optimizer, torch.optim.Adam)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (1e-4, (0.9, 0.999), 1e-5)


@pytest.mark.parametrize("method", ["fta", "l2sp", "target"])
def test_heads_that_nobody_uses_stay_as_they_are(tune: Callable[..., Any], method: str) -> None:
    before, after, _ = tune(method=method)
    everything = {name for name, _ in before.named_parameters()}
    assert changed(before, after) == everything - {"heads.0.weight", "heads.0.bias"}


def test_mmtl_trains_both_heads_in_the_x_ray_schedule(tune: Callable[..., Any]) -> None:
    training = Training(epochs=3, batches=2, batch_size=6, learning_rate=1e-3, drop_epoch=None, log_every=1)
    before, after, out = tune(training, method="mmtl")
    assert changed(before, after) == {name for name, _ in before.named_parameters()}
    lines = (out / "metrics.jsonl").read_text().splitlines()
    assert ['"target_samples": 4' in line for line in lines] == [True] * 4 + [False] * 2


def test_ftf_trains_the_front_and_the_head(tune: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmtl_octl.xray.FTF_TENSORS", 5)
    before, after, _ = tune(method="ftf")
    names = [name for name, _ in before.named_parameters()]
    assert changed(before, after) == {*names[:5], "heads.1.weight", "heads.1.bias"}
    statistics = [
        name for name, b in after.named_buffers() if "running" in name and torch.equal(b, before.get_buffer(name))
    ]
    assert statistics == []  # they adapt all the same


def test_l2sp_pulls_back(tune: Callable[..., Any]) -> None:
    def distance(pair: Any) -> float:
        one, other = pair[0], pair[1]
        return sum((p - q).square().sum().item() for p, q in zip(one.parameters(), other.parameters(), strict=True))

    training = Training(epochs=2, batches=10, batch_size=4, learning_rate=1e-3, drop_epoch=None, optimizer="sgd")
    free, held = (distance(tune(training, method="l2sp", alpha=alpha)) for alpha in (0.0, 50.0))
    assert held < 0.5 * free
    heads = distance(tune(training, method="l2sp", l2sp="li2018", alpha=0.0, beta=0.0))
    assert heads == pytest.approx(free)


def test_octl_goes_on_with_the_history_and_gives_the_new_head_none(
    pools: dict[str, Pictures], tmp_path: Path, tune: Callable[..., Any]
) -> None:
    with Run(RunSettings(tmp_path / "source", device="cpu", seed=1)) as run:
        network = small({"one": ("a", "b")})
        optimizer = pretrain_classifier(run, network, [pools["one"]], TRAINING, 32)
        save_history(optimizer, network, tmp_path / "history.safetensors")
    target = copy.deepcopy(network)
    target.add_label_set("two", ("c",))
    freeze_unused(target, ["two"])
    made = make_optimizer(
        target, task_of(target), TRAINING, Adaptation(method="octl"), tmp_path / "history.safetensors"
    )
    saved, _ = load_weights(tmp_path / "history.safetensors")
    assert made.param_groups[0]["betas"] == (0.99, 0.999)
    for name, p in target.named_parameters():
        if name.startswith("heads.0."):
            assert p not in made.state
        elif name.startswith("heads.1."):
            assert made.state[p]["step"] == 0
            assert not made.state[p]["exp_avg"].any()
        else:
            assert made.state[p]["step"] == 4  # the saved counter, not 100
            assert torch.equal(made.state[p]["exp_avg"], saved[f"exp_avg/{name}"])
            assert torch.equal(made.state[p]["exp_avg_sq"], saved[f"exp_avg_sq/{name}"])
    numbered = make_optimizer(
        target, task_of(target), TRAINING, Adaptation(method="octl", start_step=100), tmp_path / "history.safetensors"
    )
    assert {float(state["step"]) for state in numbered.state.values()} == {100.0}
    before, after, _ = tune(method="octl", history=tmp_path / "history.safetensors")
    assert "heads.1.weight" in changed(before, after)


def test_spottune_trains_two_optimisers_and_drops_the_policy_s_rate(tune: Callable[..., Any]) -> None:
    training = Training(epochs=6, batches=1, batch_size=4, learning_rate=1e-4, drop_epoch=None, optimizer="adam")
    before, after, out = tune(training, policy=True, method="spottune")
    assert isinstance(after, SpotTuneChestNet)
    assert changed(after.frozen, before.features) == set()
    assert changed(before, after.fine_tuned) >= {"features.norm5.weight", "heads.1.weight"}
    assert not changed(before, after.fine_tuned) & {"heads.0.weight", "heads.0.bias"}
    state = load_checkpoint(max((out / "checkpoints").iterdir()))["state"]
    assert state["optimizer"]["param_groups"][0]["lr"] == 1e-4
    assert state["policy_optimizer"]["param_groups"][0]["lr"] == pytest.approx(1e-3)
    assert state["policy_optimizer"]["param_groups"][0]["weight_decay"] == 1e-3
    assert state["policy_statistics"]["samples"] == 24


def test_source_training_uses_all_sources(pools: dict[str, Pictures], tmp_path: Path) -> None:
    with Run(RunSettings(tmp_path / "run", device="cpu", seed=1)) as run:
        network, before = small(), small()
        pretrain_classifier(run, network, list(pools.values()), TRAINING, 32)
    assert changed(before, network) == {name for name, _ in network.named_parameters()}


def test_overfits_one_batch(pools: dict[str, Pictures], tmp_path: Path) -> None:
    training = Training(epochs=1, batches=100, batch_size=12, learning_rate=3e-3, drop_epoch=None, log_every=1)
    with Run(RunSettings(tmp_path / "run", device="cpu", seed=1)) as run:
        network = small()
        adapt_classifier(run, network, pools["two"], [], training, Adaptation(method="fta"), 32)
    losses = [float(line.split('"loss": ')[1].split(",")[0])
              for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]  # fmt: skip
    assert np.mean(losses[-10:]) < 0.4 * np.log(2)  # random crops do not let it vanish


# --- ImageNet's weights ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def imagenet() -> dict[str, Tensor]:
    """A state dict as published."""
    torch.manual_seed(5)
    return {name: tensor + 1 for name, tensor in densenet121().state_dict().items()}


@pytest.mark.parametrize("kind", ["pth", "old names", "old archive", "safetensors"])
def test_published_weights(tmp_path: Path, imagenet: dict[str, Tensor], kind: str) -> None:
    state, path = dict(imagenet), tmp_path / f"weights.{'safetensors' if kind == 'safetensors' else 'pth'}"
    if kind == "old names":
        state = {name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2.") if "denselayer" in name else name: value
                 for name, value in state.items()}  # fmt: skip
        assert "features.denseblock1.denselayer1.norm.1.weight" in state
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind != "old archive")
    network = ChestNet({"x": ("a",)})
    head = copy.deepcopy(network.heads.state_dict())
    load_imagenet(network.features, path, "features.")
    for name, tensor in network.features.state_dict().items():
        assert torch.equal(tensor, imagenet[f"features.{name}"])
    assert all(torch.equal(network.heads.state_dict()[name], tensor) for name, tensor in head.items())


def test_weights_for_the_policy(tmp_path: Path) -> None:
    state = resnet50().state_dict()
    torch.save(state, tmp_path / "resnet.pth")
    policy = resnet50(num_classes=124)
    load_imagenet(policy, tmp_path / "resnet.pth", leave=("fc.",))
    assert torch.equal(policy.layer4[2].conv3.weight, state["layer4.2.conv3.weight"])
    assert policy.fc.weight.shape == (124, 2048)


class Hostile:
    """Runs something when it is unpickled."""

    def __reduce__(self) -> Any:
        return (print, ("unpickled",))


def test_weights_that_do_not_fit(
    tmp_path: Path, imagenet: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    network = ChestNet({"x": ("a",)})
    before = copy.deepcopy(network.features.state_dict())

    def refused(path: Path, message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            load_imagenet(network.features, path, "features.")
        assert all(torch.equal(before[name], tensor) for name, tensor in network.features.state_dict().items())

    refused(tmp_path / "absent.pth", "no such file")
    torch.save(resnet50(num_classes=2).state_dict(), tmp_path / "resnet.pth")
    refused(tmp_path / "resnet.pth", r"has nothing for 'conv0.weight', the network \(64, 3, 7, 7\)")
    torch.save({**imagenet, "features.conv0.weight": torch.zeros(2)}, tmp_path / "shape.pth")
    refused(tmp_path / "shape.pth", r"has \(2,\) for 'conv0.weight'")
    torch.save(imagenet, tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:100_000])
    refused(tmp_path / "cut.pth", "cannot be read")
    (tmp_path / "hostile.pth").write_bytes(pickle.dumps(Hostile()))
    refused(tmp_path / "hostile.pth", "cannot be read")
    torch.save([1, 2], tmp_path / "list.pth")
    refused(tmp_path / "list.pth", "holds no weights by name")
    assert "unpickled" not in capsys.readouterr().out
