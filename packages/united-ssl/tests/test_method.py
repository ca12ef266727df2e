"""Steps: carry-over, who trains what, schedules (specification 2.2, 9.7)."""

from __future__ import annotations

import pytest
import torch

from dart_core.batches import Batches
from dart_core.errors import SettingError
from dart_core.run import Run
from dart_core.settings import RunSettings
from dart_core.testing import logged
from united_ssl import method
from united_ssl.cubes import read_cubes
from united_ssl.method import _Adversarial, _Losses, carry_over, make_optimizer, train_step, validate
from united_ssl.networks import Critic3d, UnitedUNet3d
from united_ssl.settings import Adversary, Network, Pretext, Training
from united_ssl.tasks import Task


def equal(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_carry_over_is_bitwise():
    earlier, network = UnitedUNet3d(8, width=1), UnitedUNet3d(8, width=1)
    before = {k: v.clone() for k, v in network.decoder.state_dict().items()}
    assert carry_over(network, earlier.state_dict(), restores=False) == ("encoder", "head")
    assert equal(network.encoder, earlier.encoder)
    assert equal(network.head, earlier.head)
    assert all(torch.equal(before[k], v) for k, v in network.decoder.state_dict().items())
    assert carry_over(network, earlier.state_dict(), restores=True) == ("encoder", "decoder", "head")
    assert equal(network, earlier)
    other = UnitedUNet3d(9, width=1)
    assert carry_over(other, earlier.state_dict(), True) == ("encoder", "decoder")
    with pytest.raises(ValueError, match="give the same --width"):
        carry_over(UnitedUNet3d(8, width=2), earlier.state_dict(), False)


@pytest.mark.parametrize("adversarial", ["wgan-gp", "wgan-gp-as-coded", "log"])
def test_network_and_critic_leave_each_other_alone(adversarial, cubes, tmp_path):
    parts = read_cubes(cubes)
    task, training = Task(Pretext("rotation")), Training(batch_size=4)
    adversary = Adversary(adversarial, critic_norm="batch" if "coded" in adversarial else "instance")
    with Run(RunSettings(tmp_path / "run", device="cpu", seed=0)) as run:
        network, critic = task.network(Network(width=1), parts.shape), Critic3d(adversary.critic_norm, 1)
        player = _Adversarial(run, critic, task, training, adversary)
        losses = _Losses(run, task, network, training, True, player)
        optimizer = make_optimizer(network.parameters(), training, 1e-2)
        generator = torch.Generator().manual_seed(0)
        views = task.views({"cube": parts.stack(range(4)), "index": torch.arange(4)}, True, generator)

        def parameters(module):
            return [p.detach().clone() for p in module.parameters()]

        def same(a, b):
            return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))

        own, theirs = parameters(network), parameters(critic)
        terms = player.step(network, views, generator)
        assert same(own, parameters(network))
        assert not same(theirs, parameters(critic))
        assert ("penalty" in terms) == (adversarial != "log")
        theirs, buffers = parameters(critic), [p.grad for p in critic.parameters()]
        terms = losses.step(optimizer, views)
        assert same(theirs, parameters(critic))
        assert all(a is p.grad for a, p in zip(buffers, critic.parameters(), strict=True))
        assert not same(own, parameters(network))
        assert all(p.requires_grad for p in critic.parameters())
        expected = terms["loss_d"] + 100 * terms["loss_r"] + terms["loss_a"]
        assert torch.allclose(terms["loss"], expected, rtol=1e-5)


def test_five_steps_of_the_critic_for_one_of_the_network(cubes, tmp_path, monkeypatch):
    counts = {"critic": 0, "network": 0}
    for kind, name in ((_Adversarial, "critic"), (_Losses, "network")):
        original = kind.step

        def counted(self, *arguments, _original=original, _name=name):
            counts[_name] += 1
            return _original(self, *arguments)

        monkeypatch.setattr(kind, "step", counted)
    run_step("joint", cubes, tmp_path, Training(batch_size=4, max_epochs=4, log_every=1))
    assert counts == {"critic": 12, "network": 2}


def test_the_generators_losses_are_logged_at_the_default_ratio(cubes, tmp_path):
    """Lines are due at steps 0, 10, 20, the generator steps at 4, 9, 14, 19."""
    assert (Adversary().critic_steps, Training().log_every) == (5, 10)
    run_step("joint", cubes, tmp_path, Training(batch_size=4, max_epochs=8))
    lines = [line for line in logged(tmp_path / "run") if "epoch" not in line]
    assert [line["step"] for line in lines] == [0, 10, 20]
    names = {"loss", "loss_d", "loss_r", "loss_a"}
    assert [names & line.keys() for line in lines] == [set(), names, names]
    for line in lines[1:]:
        assert line["loss"] == pytest.approx(line["loss_d"] + 100 * line["loss_r"] + line["loss_a"], rel=1e-5)
    assert lines[1]["loss"] != lines[2]["loss"]


def test_losses_that_wait_for_a_line_outlive_a_stop(cubes, tmp_path):
    with Run(RunSettings(tmp_path / "run", device="cpu")) as run:
        losses = _Losses(run, Task(Pretext("rotation")), torch.nn.Identity(), Training(), True, None)
        losses.terms = {"loss": torch.tensor(1.1), "loss_a": torch.tensor(-0.3)}
        other = _Losses(run, Task(Pretext("rotation")), torch.nn.Identity(), Training(), True, None)
        other.load_state_dict(losses.state_dict())
    assert other.terms == losses.terms


def test_a_loss_of_the_generator_that_is_no_number_is_found_at_once(cubes, tmp_path, monkeypatch):
    original = method.generator_loss
    monkeypatch.setattr(method, "generator_loss", lambda *arguments: original(*arguments) * float("nan"))
    training = Training(batch_size=4, max_epochs=8, log_every=1000)
    with pytest.raises(SettingError, match="loss of step 4 is no number; lower --learning-rate"):
        run_step("joint", cubes, tmp_path, training)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_terms_are_those_of_the_whole_batch(accumulate, cubes, tmp_path):
    """Batch normalisation sees the parts, but the mean of what it gives is what was optimised."""
    parts = read_cubes(cubes)
    task, training = Task(Pretext("rotation")), Training(batch_size=4)
    with Run(RunSettings(tmp_path / "run", device="cpu", seed=0, accumulate=accumulate)) as run:
        network, critic = task.network(Network(width=1), parts.shape), Critic3d("instance", 1)
        player = _Adversarial(run, critic, task, training, Adversary())
        losses = _Losses(run, task, network, training, True, player)
        views = task.views(
            {"cube": parts.stack(range(4)), "index": torch.arange(4)}, True, torch.Generator().manual_seed(0)
        )
        with torch.no_grad():
            pair = [player.values(cube, views.seen) for cube in (views.target, network(views.seen)[1])]
        found = player.step(network, views, torch.Generator().manual_seed(0))
        # The critic looks at each cube by itself.
        assert float(found["critic_loss"]) == pytest.approx(float(pair[1].mean() - pair[0].mean()), rel=1e-3, abs=1e-5)
        terms = losses.step(make_optimizer(network.parameters(), training, 1e-3), views)
        expected = terms["loss_d"] + 100 * terms["loss_r"] + terms["loss_a"]
        assert torch.allclose(terms["loss"], expected, rtol=1e-5)


def test_the_critic_of_the_best_epoch_comes_back(cubes, tmp_path, monkeypatch):
    errors, seen = iter([3.0, 1.0, 2.0]), []

    def stand_in(run, task, network, *rest):
        seen.append([p.detach().clone() for p in critics[0].parameters()])
        return {"validation_loss": 0.0, "validation_restoration": next(errors)}

    critics = []
    original = Task.critic
    monkeypatch.setattr(Task, "critic", lambda self, *a: critics.append(original(self, *a)) or critics[0])
    monkeypatch.setattr(method, "validate", stand_in)
    training = Training(batch_size=4, max_epochs=3)
    *_, best, _ = run_step("joint", cubes, tmp_path, training, adversary=Adversary(critic_steps=1))
    assert best.epoch == 2
    assert not all(torch.equal(a, b) for a, b in zip(seen[1], seen[2], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(seen[1], critics[0].parameters(), strict=True))


def test_a_rate_of_0_changes_nothing(cubes, tmp_path):
    training = Training(batch_size=4, max_epochs=1, learning_rate=0.0, log_every=1)
    network, first, *_ = run_step("joint", cubes, tmp_path, training, adversary=Adversary(critic_steps=1))
    assert all(torch.equal(value, first[name]) for name, value in network.named_parameters())


@pytest.mark.parametrize(
    ("critic_lr", "rates"), [(None, [0.01, 0.005, 0.005]), (0.5, [0.5, 0.25, 0.25]), (0.0, [0.0, 0.0, 0.0])]
)
def test_the_critics_rate_is_halved_with_the_networks(critic_lr, rates, cubes, tmp_path, monkeypatch):
    seen = []
    original = _Adversarial.step

    def spied(self, *arguments):
        seen.append(self.optimizer.param_groups[0]["lr"])
        return original(self, *arguments)

    monkeypatch.setattr(_Adversarial, "step", spied)
    training = Training(batch_size=12, max_epochs=3, learning_rate=0.01, halve_every=2)
    run_step("joint", cubes, tmp_path, training, adversary=Adversary(critic_lr=critic_lr))
    assert seen == rates


def test_the_redrawn_outputs_of_deep_clustering_have_no_moments(cubes, tmp_path, monkeypatch):
    """Three batches an epoch: after two epochs the outputs have been stepped three times, all else six times."""
    made = []
    original = method.make_optimizer
    monkeypatch.setattr(method, "make_optimizer", lambda *a: made.append(original(*a)) or made[-1])
    training = Training(batch_size=4, max_epochs=2, patience=0)
    network, *_ = run_step("D", cubes, tmp_path, training, Pretext("deep-clustering", clusters=3, components=3))
    outputs = set(network.head.outputs.parameters())
    steps = {p: int(state["step"]) for p, state in made[0].state.items()}
    assert {steps[p] for p in outputs} == {3}
    assert {count for p, count in steps.items() if p not in outputs} == {6}


def run_step(step, folder, out, training, settings=None, adversary=None, seed=0):
    parts = read_cubes(folder)
    cubes = {name: parts.split(name) for name in ("train", "val")}
    task = Task(settings or Pretext("rotation"), seed=seed)
    with Run(RunSettings(out / "run", device="cpu", seed=seed)) as run:
        network = task.network(Network(width=1), parts.shape)
        first = {k: v.clone() for k, v in network.state_dict().items()}
        critic = task.critic("instance", 1) if step in ("DRA", "joint") else None
        best = train_step(run, step, task, network, critic, cubes, training, adversary or Adversary())
        found = validate(run, task, network, cubes["val"], training, step != "D", seed)
        again = validate(run, task, network, cubes["val"], training, step != "D", seed)
    assert found == again  # fixed distortions
    return network, first, best, found


def test_step_d_leaves_the_decoder_alone_and_the_best_weights_come_back(cubes, tmp_path):
    training = Training(batch_size=4, max_epochs=3, learning_rate=1e-2, log_every=1)
    network, first, best, found = run_step("D", cubes, tmp_path, training)
    for name, value in network.state_dict().items():
        if name.startswith("decoder"):
            assert torch.equal(value, first[name])
    assert found["validation_loss"] == pytest.approx(best.value)
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_patience_ends_a_step(cubes, tmp_path):
    training = Training(batch_size=4, max_epochs=50, learning_rate=0.0, patience=2, log_every=1)
    *_, best, _ = run_step("joint-DR", cubes, tmp_path, training)
    assert best.epoch + 2 <= 12  # running statistics still move for a while
    assert best.bad_epochs == 2


def test_optimisers():
    parameters = [torch.nn.Parameter(torch.zeros(2))]
    nadam = make_optimizer(iter(parameters), Training(), 1e-4)
    group = nadam.param_groups[0]
    assert type(nadam) is torch.optim.NAdam
    assert (group["lr"], group["betas"], group["eps"], group["momentum_decay"]) == (1e-4, (0.5, 0.999), 1e-7, 0.004)
    assert type(make_optimizer(iter(parameters), Training(optimizer="adam"), 1)) is torch.optim.Adam
    assert make_optimizer(iter(parameters), Training(optimizer="sgd"), 1).param_groups[0]["momentum"] == 0.9


def test_rates_by_step():
    assert Training().halving_of("D") == Training().halving_of("DR") == 32
    assert Training().halving_of("DRA") == Training().halving_of("joint") == 0
    assert Training(halve_every=10).halving_of("joint") == 10
    assert Adversary().penalty_of("rotation") == 10
    assert Adversary().penalty_of("transvw") == 100
    assert Adversary("log").penalty_of("transvw") == 0


def test_batches_are_the_cores(cubes):
    parts = read_cubes(cubes).split("train")
    assert type(Task(Pretext("rotation")).batches(parts, 4, 0)) is Batches
