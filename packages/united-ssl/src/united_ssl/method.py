"""One step of the pretraining (specification 2.2): D, (D)+R, ((D)+R)+A, D+R+A or D+R.

A step starts from random weights or takes components of the step before over; optimisers and the critic always start anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dart_core.checkpoint import unwrap
from dart_core.errors import SettingError
from dart_core.fine_tuning import BestEpoch, step_generator
from dart_core.run import Run
from united_ssl.cubes import Cubes
from united_ssl.losses import (
    critic_loss,
    discriminative_loss,
    generator_loss,
    gradient_penalty,
    restorative_loss,
    united_loss,
)
from united_ssl.networks import Critic3d, Logits
from united_ssl.schedules import Plateau, halving_lr
from united_ssl.settings import ADVERSARIAL, RESTORING, Adversary, Training
from united_ssl.tasks import AnyUNet, Task, Views

NADAM_BETAS, NADAM_DECAY, KERAS_EPSILON = (0.5, 0.999), 0.004, 1e-7
_VALIDATION = 13
"""Key of random numbers, beside those of `dart_core.batches` and `dart_core.fine_tuning`."""


# --- Carry-over ------------------------------------------------------------------------------------------------------


def carry_over(network: nn.Module, state: Mapping[str, Tensor], restores: bool) -> tuple[str, ...]:
    """Copy what an earlier step has trained into the network of the next one, bit for bit.

    Args:
        network: of the next step, with random weights; changed in place.
        state: tensors of the earlier step by name.
        restores: the earlier step has trained its decoder too.

    Returns:
        Components taken over: encoder, decoder where it was trained, head where all its shapes agree.

    Raises:
        SettingError: the encoder (or the decoder) has another shape.
    """
    own = network.state_dict()
    taken: dict[str, Tensor] = {}
    components = []
    for component in ("encoder", "decoder", "head"):
        keys = [key for key in own if key.startswith(component + ".")]
        fits = all(key in state and state[key].shape == own[key].shape for key in keys)
        if component == "decoder" and not restores:
            continue
        if not fits and component != "head":
            raise SettingError(
                f"the {component} of the earlier step has other layers", remedy="give the same --width and --up"
            )
        if fits:
            taken |= {key: state[key] for key in keys}
            components.append(component)
    network.load_state_dict({**own, **taken})
    return tuple(components)


# --- Optimisers and rates --------------------------------------------------------------------------------------------


def make_optimizer(parameters: Iterator[nn.Parameter], training: Training, lr: float) -> torch.optim.Optimizer:
    """The optimiser of a row of the table in specification 2.2."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if training.optimizer == "nadam":
        return torch.optim.NAdam(
            trained, lr, NADAM_BETAS, KERAS_EPSILON, momentum_decay=NADAM_DECAY, foreach=True
        )  # fmt: skip
    if training.optimizer == "adam":
        return torch.optim.Adam(trained, lr, eps=KERAS_EPSILON, foreach=True)
    return torch.optim.SGD(trained, lr, momentum=0.9, foreach=True)


def _share_gradients(run: Run, module: nn.Module) -> None:
    """Let each parameter's gradient be its mean over the processes as soon as it is there.

    The critic is run three times for one gradient, once with a second derivative, which DistributedDataParallel does not do.
    """
    if run.world_size > 1:
        for parameter in module.parameters():
            parameter.register_post_accumulate_grad_hook(_averaged(run))


def _averaged(run: Run) -> Callable[[Tensor], None]:
    def average(parameter: Tensor) -> None:
        assert parameter.grad is not None
        parameter.grad.copy_(run.mean(parameter.grad))

    return average


def _share_statistics(run: Run, module: nn.Module) -> None:
    """Let the running statistics of batch normalisation be their means over the processes, which have seen other cubes."""
    if run.world_size > 1:
        for buffer in module.buffers():
            if buffer.is_floating_point():
                buffer.copy_(run.mean(buffer))


# --- The step --------------------------------------------------------------------------------------------------------


def train_step(
    run: Run,
    step_name: str,
    task: Task,
    network: AnyUNet,
    critic: Critic3d | None,
    cubes: Mapping[str, Cubes],
    training: Training,
    adversary: Adversary,
    show: Callable[[int, AnyUNet], None] | None = None,
) -> BestEpoch:
    """Train one step until its epochs are over or it gets no better; resumes where the run was stopped.

    Args:
        run: an entered run.
        step_name: D, DR, DRA, joint or joint-DR.
        task: the pretext task.
        network: trained in place; holds the weights of the best epoch afterwards.
        critic: likewise, in adversarial steps; else None.
        cubes: "train" and "val".
        training: recipe.
        adversary: that of the critic.
        show: called with (epoch, network) every `training.show_every` epochs, in the main process.

    Returns:
        The best epoch: of D the lowest validation loss, of DR the lowest total of both losses, with a critic the lowest
        validation restoration error.

    Raises:
        SettingError: a loss that is no number.
    """
    restoring = step_name in RESTORING
    if not restoring:
        network.decoder.requires_grad_(False)
    prepared = run.prepare(network)
    optimizer = make_optimizer(prepared.parameters(), training, training.learning_rate)
    plateau = Plateau(1.0, training.halve_on_plateau, 0.0, 0.0)
    best = BestEpoch()
    stateful: dict[str, Any] = {
        "network": prepared,
        "optimizer": optimizer,
        "best": best,
        "task": task,
        "plateau": plateau,
    }
    player: _Adversarial | None = None
    if step_name in ADVERSARIAL:
        assert critic is not None
        player = _Adversarial(run, critic, task, training, adversary)
    losses = _Losses(run, task, prepared, training, restoring, player)
    if player is not None:
        stateful |= {
            "critic": critic,
            "critic_optimizer": player.optimizer,
            "best_critic": player.best,
            "losses": losses,
        }
    run.restore(**stateful)
    epoch_batches = training.epoch_batches or -(-len(cubes["train"]) // training.batch_size)
    prepared.train()
    for step, batch in _steps(run, task, network, optimizer, cubes, training, epoch_batches):
        epoch, place = divmod(step, epoch_batches)
        factor = (
            plateau(epoch, best.validation_loss)
            if training.halve_on_plateau
            else halving_lr(epoch, 1.0, training.halving_of(step_name))
        )
        _set_rate(optimizer, training.learning_rate * factor)
        generator = step_generator(run, step)
        with torch.no_grad():
            views = task.views(batch, restoring, generator)
        numbers: dict[str, Tensor] = {}
        if player is not None:
            _set_rate(player.optimizer, player.learning_rate * factor)
            numbers |= player.step(prepared, views, generator)
        if player is None or (step + 1) % adversary.critic_steps == 0:
            losses.step(optimizer, views)
            if player is not None:  # the next line of the log may be some steps away
                _must_be_finite(float(losses.terms["loss"]), f"loss of step {step}")
        if step % training.log_every == 0:
            # The generator seldom steps where a line is due; its losses are those of the last time.
            numbers |= losses.terms
            losses.terms = {}
            joined = run.mean(torch.stack([value.double() for value in numbers.values()]))
            shown = dict(zip(numbers, joined.tolist(), strict=True))
            for name, value in shown.items():
                _must_be_finite(value, f"{name} of step {step}")
            run.log.write(step, **shown, learning_rate=training.learning_rate * factor)
        if place + 1 == epoch_batches:
            _share_statistics(run, network)
            found = validate(run, task, network, cubes["val"], training, restoring, run.settings.seed)
            run.log.write(step, epoch=epoch + 1, **found)
            measure = "validation_restoration" if player is not None else "validation_loss"
            _must_be_finite(found[measure], f"{measure} of epoch {epoch + 1}")
            best.offer(found[measure], epoch + 1, prepared, found)
            if player is not None:
                player.best.offer(found[measure], epoch + 1, player.critic, found)
            if show is not None and run.is_main and training.show_every and (epoch + 1) % training.show_every == 0:
                show(epoch + 1, network)
            if training.patience and best.bad_epochs >= training.patience:
                break
    best.restore(prepared)
    if player is not None:
        player.best.restore(player.critic)
    network.requires_grad_(True)
    return best


def _steps(
    run: Run,
    task: Task,
    network: AnyUNet,
    optimizer: torch.optim.Optimizer,
    cubes: Mapping[str, Cubes],
    training: Training,
    epoch_batches: int,
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Steps and batches; deep clustering makes its labels anew before each epoch, so that its batches are those of one."""
    seed = run.settings.seed
    if not task.relabels:
        batches = task.batches(cubes["train"], training.batch_size, seed)
        yield from run.steps(batches, training.max_epochs * epoch_batches)
        return
    for epoch in range(run.step // epoch_batches, training.max_epochs):
        _share_statistics(run, network)
        if task.relabel(network, cubes, epoch, training.batch_size, run.device):
            # The moments belong to the outputs before; DeepCluster makes the optimiser of its last layer anew as well.
            for parameter in network.head.outputs.parameters():
                optimizer.state.pop(parameter, None)
        # A cube between two clusters may fall to either where processes round differently; they must draw the same batches.
        task.load_state_dict(run.from_main(task.state_dict()))
        batches = task.batches(cubes["train"], training.batch_size, seed)
        yield from run.steps(batches, (epoch + 1) * epoch_batches, f"epoch {epoch + 1}")


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def _must_be_finite(value: float, what: str) -> None:
    if not np.isfinite(value):
        raise SettingError(f"{what} is no number", remedy="lower --learning-rate")


def _parts(views: Views) -> dict[str, Tensor]:
    return {"seen": views.seen, "target": views.target, **{f"label{i}": y for i, y in enumerate(views.labels)}}


def _labels(part: Mapping[str, Tensor], logits: Logits) -> Tensor | list[Tensor]:
    return part["label0"] if isinstance(logits, Tensor) else [part[f"label{i}"] for i in range(len(logits))]


def _add(terms: dict[str, Tensor], share: float, **found: Tensor) -> None:
    """Add the terms of a part of a batch (--accumulate), weighted by its share of the batch."""
    for name, value in found.items():
        terms[name] = terms.get(name, 0.0) + share * value.detach()


class _Losses:
    """Loss and optimiser step of encoder, head and decoder (Eq. 4).

    Attributes:
        terms: losses of the last step by name, until a line of the log has taken them; part of the checkpoints.
    """

    def __init__(
        self, run: Run, task: Task, network: nn.Module, training: Training, restoring: bool, player: _Adversarial | None
    ) -> None:
        self.run, self.task, self.network, self.training = run, task, network, training
        self.restoring, self.player = restoring, player
        self.terms: dict[str, Tensor] = {}
        self._size = 0

    def step(self, optimizer: torch.optim.Optimizer, views: Views) -> dict[str, Tensor]:
        """One step of the optimiser; gives the losses by name."""
        self.terms, self._size = {}, len(views.seen)
        critic = None if self.player is None else self.player.critic
        if critic is not None:
            critic.requires_grad_(False)
        loss = self.run.optimise(optimizer, self._loss, _parts(views), self.network)
        if critic is not None:
            critic.requires_grad_(True)
        self.terms = {"loss": loss, **self.terms}
        return self.terms

    def _loss(self, part: dict[str, Tensor]) -> Tensor:
        t, share = self.training, len(part["seen"]) / self._size
        if not self.restoring:
            logits, _ = self.network(part["seen"], False)
            loss = discriminative_loss(logits, _labels(part, logits))
            _add(self.terms, share, loss_d=loss)
            return t.lambda_d * loss
        logits, restored = self.network(part["seen"])
        labels, target = _labels(part, logits), part["target"]
        adversarial: Tensor | float = 0.0
        if self.player is not None:
            adversarial = self.player.generator_term(restored, part["seen"])
            _add(self.terms, share, loss_a=adversarial)
        loss = united_loss(
            logits, labels, restored, target, adversarial, (t.lambda_d, t.lambda_r, t.lambda_a), t.norm
        )  # fmt: skip
        with torch.no_grad():
            loss_d, loss_r = discriminative_loss(logits, labels), restorative_loss(restored, target, t.norm)
        _add(self.terms, share, loss_d=loss_d, loss_r=loss_r)
        return loss

    def state_dict(self) -> dict[str, float]:
        """For a checkpoint."""
        return {name: float(value) for name, value in self.terms.items()}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Take on what `state_dict` gave."""
        self.terms = {name: torch.tensor(value, device=self.run.device) for name, value in state.items()}


class _Adversarial:
    """The critic and its optimiser step (Eq. 3).

    Attributes:
        learning_rate: of the critic, before it is halved.
        best: the critic of the network's best epoch.
    """

    def __init__(self, run: Run, critic: Critic3d, task: Task, training: Training, adversary: Adversary) -> None:
        self.run, self.task, self.settings = run, task, adversary
        self.critic = critic.to(run.device).train()
        _share_gradients(run, self.critic)
        self.learning_rate = training.learning_rate if adversary.critic_lr is None else adversary.critic_lr
        self.optimizer = make_optimizer(self.critic.parameters(), training, self.learning_rate)
        self.weight = adversary.penalty_of(task.name)
        self.best = BestEpoch()

    def values(self, cube: Tensor, seen: Tensor) -> Tensor:
        """The critic's map of cubes under the condition of what the network saw."""
        values: Tensor = self.critic(torch.cat([self.task.as_critic_sees(cube), self.task.as_critic_sees(seen)], 1))
        return values

    def generator_term(self, restored: Tensor, seen: Tensor) -> Tensor:
        """L_a."""
        return generator_loss(self.values(restored, seen), self.settings.adversarial, self.settings.minimax)

    def step(self, network: nn.Module, views: Views, generator: torch.Generator) -> dict[str, Tensor]:
        """One step of the critic's optimiser; the network gets no gradient."""
        module = unwrap(network)
        if self.settings.fake_in_evaluation:
            module.eval()
        with torch.no_grad(), self.run.autocast():
            _, fake = module(views.seen)
        module.train()
        terms: dict[str, Tensor] = {}

        def loss_of(part: dict[str, Tensor]) -> Tensor:
            # Second derivatives are taken in full precision, whatever that of the network.
            with torch.autocast(self.run.device.type, enabled=False):
                share = len(part["seen"]) / len(views.seen)
                real, seen, restored = (part[name].float() for name in ("target", "seen", "fake"))
                loss = critic_loss(self.values(real, seen), self.values(restored, seen), self.settings.adversarial)
                _add(terms, share, critic_loss=loss)
                if self.weight:
                    look = self.task.as_critic_sees
                    penalty = gradient_penalty(
                        self.critic, look(real), look(restored), look(seen), None, self.settings.adversarial, generator
                    )  # fmt: skip
                    _add(terms, share, penalty=penalty)
                    loss = loss + self.weight * penalty
                return loss

        self.run.optimise(self.optimizer, loss_of, {"target": views.target, "seen": views.seen, "fake": fake})
        return terms


# --- Validation ------------------------------------------------------------------------------------------------------


def fixed_views(
    task: Task,
    cubes: Cubes,
    extra: Mapping[str, Tensor],
    batch_size: int,
    restoring: bool,
    seed: int,
    device: torch.device,
) -> Iterator[Views]:
    """Cubes with distortions that are the same every time: they follow from the seed and the place in the set."""
    for number, start in enumerate(range(0, len(cubes), batch_size)):
        places = range(start, min(start + batch_size, len(cubes)))
        index = torch.tensor(list(places))
        key = np.random.SeedSequence(seed, spawn_key=(_VALIDATION, number)).generate_state(1, np.uint64)[0]
        generator = torch.Generator(device).manual_seed(int(key >> np.uint64(1)))
        batch = {"cube": cubes.stack(places).to(device), "index": index.to(device)}
        batch |= {name: values[index].to(device) for name, values in extra.items()}
        yield task.views(batch, restoring, generator)


@torch.no_grad()
def validate(
    run: Run, task: Task, network: AnyUNet, cubes: Cubes, training: Training, restoring: bool, seed: int
) -> dict[str, float]:
    """Losses on the validation cubes in evaluation mode, with fixed distortions.

    Returns:
        validation_loss (lambda_d L_d + lambda_r L_r), validation_d, validation_accuracy (share of right answers; of Rubik's
        Cube the mean over flags and orders), and with restoration validation_restoration (L_r) and validation_mse.
    """
    extra = task.validation_labels(cubes)
    network.eval()
    sums = {"d": 0.0, "accuracy": 0.0, "restoration": 0.0, "mse": 0.0}
    for views in fixed_views(task, cubes, extra, training.batch_size, restoring, seed, run.device):
        n = len(views.seen)
        with run.autocast():
            logits, restored = network(views.seen) if restoring else (network.classify(views.seen), None)
        labels = views.labels[0] if isinstance(logits, Tensor) else list(views.labels)
        answers = logits if isinstance(logits, Tensor) else tuple(part.float() for part in logits)
        sums["d"] += n * float(discriminative_loss(answers, labels))
        sums["accuracy"] += n * accuracy(logits, views.labels)
        if restored is not None:
            sums["restoration"] += n * float(restorative_loss(restored.float(), views.target, training.norm))
            sums["mse"] += n * float(restorative_loss(restored.float(), views.target))
    network.train()
    means = {name: value / len(cubes) for name, value in sums.items()}
    found = {"validation_loss": training.lambda_d * means["d"], "validation_d": means["d"]}
    found["validation_accuracy"] = means["accuracy"]
    if restoring:
        found["validation_loss"] += training.lambda_r * means["restoration"]
        found |= {"validation_restoration": means["restoration"], "validation_mse": means["mse"]}
    # All processes must come to the same verdict; joined on the CPU, where the numbers are float64.
    joined = run.mean(torch.tensor(list(found.values()), dtype=torch.float64))
    return dict(zip(found, joined.tolist(), strict=True))


def accuracy(logits: Logits, labels: tuple[Tensor, ...]) -> float:
    """Share of right answers; for Rubik's Cube the mean of that of the flags and of the orders."""
    if isinstance(logits, Tensor):
        return float((logits.argmax(1) == labels[0]).double().mean())
    flags = float(((logits[0] > 0) == (labels[0] > 0)).double().mean())
    return (flags + accuracy(logits[1], labels[1:])) / 2
