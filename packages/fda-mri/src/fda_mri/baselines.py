"""What the paper compares with: its printed numbers, a harness for image-to-image baselines, and a CycleGAN.

The CycleGAN here is a stand-in. The paper's is a StyleGAN2-type network that needs a GPU for days; this one is the standard
CycleGAN of Zhu et al. 2017 (specification section 4). StyleSegor, StyleGAN and Fast are there as printed numbers only.

Slices are (B, 1, h, w). Networks see them at a square size with intensities in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dart_core.batches import Batches
from dart_core.checkpoint import load_weights, read_metadata, save_weights, weights_file
from dart_core.data.slices import predict_slices
from dart_core.errors import CheckpointError, InputError, SettingError
from dart_core.files import packaged_table
from dart_core.fine_tuning import refuse_divergence
from dart_core.nets import PatchDiscriminator, ResnetGenerator
from fda_mri.method import normalise_volume

if TYPE_CHECKING:
    from dart_core.run import Run
    from fda_mri.settings import CycleGAN

Transform = Callable[[Tensor, Sequence[Tensor]], Tensor]
"""Maps a normalised target volume (H, W, Z) and the source volumes to a volume (H', W', Z)."""

CYCLEGAN_NOTE = (
    "CycleGAN is a stand-in (standard ResNet generators and PatchGAN discriminators); "
    "the paper's is a StyleGAN2-type network, and its printed numbers belong to that one."
)
"""Goes beside every number of ours that is called CycleGAN."""

PRINTED_TABLES = ("table1", "table2", "table3", "selected_betas")
PRINTED_ONLY = ("StyleSegor", "StyleGAN", "Fast")
"""Methods of Table 2 that this package does not run."""

CYCLE_WEIGHT = 10.0
IDENTITY_WEIGHT = 5.0
POOL_SIZE = 50
LOG_EVERY = 50
GENERATOR = "generator.safetensors"


# --- Printed numbers -------------------------------------------------------------------------------------------------


def printed_table(name: str) -> list[dict[str, str | float]]:
    """One of the paper's tables as printed: surface Dice at 1 mm on CC359, not measured here.

    Args:
        name: "table1" (transfer matrix), "table2" (no adaptation, baselines, FDA), "table3" (ablation), or
            "selected_betas" (from the authors' notebook; not in the paper).

    Returns:
        A dict for each row; columns of numbers are floats.

    Raises:
        ValueError: no such table.
    """
    return packaged_table("fda_mri", name, PRINTED_TABLES)


# --- Harness ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def predict_transformed(
    network: Callable[[Tensor], Tensor],
    target: Tensor,
    transform: Transform,
    sources: Sequence[Tensor] = (),
    batch_size: int = 16,
) -> Tensor:
    """Segment a target scan after any image-to-image transformation towards the source.

    As in the published evaluation of GANs the result is resized to the target's slices, normalised again and segmented
    (specification section 4); unlike there it does not pass through 8 bits.

    Args:
        network: maps (B, 1, h, w) to logits of the same shape.
        target: (H, W, Z) normalised target scan.
        transform: gets the target and `sources`; its volume (H', W', Z) may have slices of another size.
        sources: normalised source scans, for transformations that look at them.
        batch_size: slices per forward pass.

    Returns:
        (H, W, Z) foreground probabilities.

    Raises:
        ValueError: the transformation gave another number of slices, or nan or infinite values.
    """
    result = transform(target, sources)
    if result.ndim != 3 or result.shape[-1] != target.shape[-1]:
        raise InputError(
            f"the transformation made shape {tuple(result.shape)} out of {tuple(target.shape)}",
            remedy="it must return a volume (h, w, Z) with as many slices",
        )
    if not torch.isfinite(result).all():
        raise InputError("the transformation gave nan or infinite values", remedy="check its weights")
    resized = _resize(result.to(target).movedim(-1, 0)[:, None], target.shape[0], target.shape[1])
    return predict_slices(network, normalise_volume(resized[:, 0].movedim(0, -1)), batch_size=batch_size).sigmoid()


def _resize(slices: Tensor, height: int, width: int) -> Tensor:
    """Bilinear, without aliasing where it shrinks; slices of the wanted size stay as they are."""
    if slices.shape[-2:] == (height, width):
        return slices
    return F.interpolate(slices, (height, width), mode="bilinear", align_corners=False, antialias=True)


# --- CycleGAN stand-in: networks and losses --------------------------------------------------------------------------


class CycleGANNetworks(NamedTuple):
    """Two generators and two discriminators; `to_source` makes target slices look like source slices."""

    to_source: nn.Module
    to_target: nn.Module
    judge_source: nn.Module
    judge_target: nn.Module

    @classmethod
    def build(cls, settings: CycleGAN) -> CycleGANNetworks:
        """Networks with fresh weights for slices of one channel."""
        width = settings.generator_width
        return cls(
            ResnetGenerator(width=width, blocks=settings.blocks),
            ResnetGenerator(width=width, blocks=settings.blocks),
            PatchDiscriminator(width=width),
            PatchDiscriminator(width=width),
        )


class GeneratorLosses(NamedTuple):
    """Weighted terms of the generators' loss, and the translated slices for the discriminators."""

    adversarial: Tensor
    cycle: Tensor
    identity: Tensor
    fake_source: Tensor
    fake_target: Tensor

    @property
    def total(self) -> Tensor:
        """What the generators minimise."""
        return self.adversarial + self.cycle + self.identity


def cyclegan_losses(networks: CycleGANNetworks, source: Tensor, target: Tensor) -> GeneratorLosses:
    """The generators' losses: least squares GAN, cycle consistency (weight 10), identity (weight 5).

    Args:
        networks: the four networks; the discriminators' parameters get gradients too unless they are switched off.
        source: (B, 1, size, size) in [-1, 1].
        target: (B, 1, size, size) in [-1, 1], not paired with `source`.
    """
    # Every layer works on each sample alone, so translation and identity share one pass.
    fake_source, same_source = networks.to_source(torch.cat([target, source])).chunk(2)
    fake_target, same_target = networks.to_target(torch.cat([source, target])).chunk(2)
    back_source, back_target = networks.to_source(fake_target), networks.to_target(fake_source)
    adversarial = _least_squares(networks.judge_source(fake_source), 1.0)
    adversarial = adversarial + _least_squares(networks.judge_target(fake_target), 1.0)
    cycle = _mean_distance(back_source, source) + _mean_distance(back_target, target)
    identity = _mean_distance(same_source, source) + _mean_distance(same_target, target)
    return GeneratorLosses(adversarial, CYCLE_WEIGHT * cycle, IDENTITY_WEIGHT * identity, fake_source, fake_target)


def discriminator_loss(discriminator: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    """Half of the least squares losses: real patches towards 1, fake ones towards 0.

    Args:
        discriminator: maps (B, 1, size, size) to patch logits.
        real: (B, 1, size, size).
        fake: (B, 1, size, size), without gradient.
    """
    real_logits, fake_logits = discriminator(torch.cat([real, fake])).chunk(2)
    return 0.5 * (_least_squares(real_logits, 1.0) + _least_squares(fake_logits, 0.0))


def _least_squares(logits: Tensor, wanted: float) -> Tensor:
    # Under autocast the networks give half precision, too coarse for a mean over thousands of patches.
    return (logits.to(torch.promote_types(logits.dtype, torch.float32)) - wanted).square().mean()


def _mean_distance(made: Tensor, real: Tensor) -> Tensor:
    return (made - real).abs().mean()


class ImagePool:
    """The last generated slices, of which the discriminator sees a mixture with new ones (Shrivastava et al. 2017).

    Until it is full, slices pass through and are kept. Then each slice is, with probability one half, exchanged for a
    random kept one. Its state, with that of its own random generator, belongs into the checkpoint.

    Args:
        size: slices kept.
        seed: of the exchange.
    """

    def __init__(self, size: int = POOL_SIZE, seed: int = 0) -> None:
        self.size = size
        self._generator = torch.Generator().manual_seed(seed)
        self._images: list[Tensor] = []

    def exchange(self, images: Tensor) -> Tensor:
        """Put slices (B, ...) in, get as many out, without gradient."""
        mixed = []
        for image in images.detach():
            if len(self._images) < self.size:
                self._images.append(image.clone())
            elif torch.rand((), generator=self._generator) < 0.5:
                index = int(torch.randint(self.size, (), generator=self._generator))
                kept, self._images[index] = self._images[index], image.clone()
                image = kept.to(image)
            mixed.append(image)
        return torch.stack(mixed)

    def state_dict(self) -> dict[str, Any]:
        """The kept slices and the state of the random generator."""
        return {"images": [image.cpu() for image in self._images], "generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a state on."""
        self._images = list(state["images"])
        self._generator.set_state(state["generator"])


# --- CycleGAN stand-in: step and loop --------------------------------------------------------------------------------


class Optimizers(NamedTuple):
    """One optimiser for both generators, one for both discriminators."""

    generators: torch.optim.Optimizer
    discriminators: torch.optim.Optimizer


class Pools(NamedTuple):
    """Generated slices that the two discriminators have seen."""

    source: ImagePool
    target: ImagePool


def cyclegan_step(
    run: Run, networks: CycleGANNetworks, optimizers: Optimizers, batch: Mapping[str, Tensor], pools: Pools
) -> dict[str, Tensor]:
    """One step of all four networks.

    Args:
        run: gives precision and gradient scaling.
        networks: prepared networks.
        optimizers: of the generators and of the discriminators.
        batch: "source" and "target", each (B, 1, size, size) in [-1, 1].
        pools: changed in place.

    Returns:
        Losses by name (adversarial, cycle, identity, discriminator), without gradient.
    """
    source, target = batch["source"], batch["target"]
    judges = (networks.judge_source, networks.judge_target)
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    for judge in judges:
        judge.requires_grad_(False)  # the generators learn from them, they do not
    with run.autocast():
        losses = cyclegan_losses(networks, source, target)
    run.backward(losses.total)
    for judge in judges:
        judge.requires_grad_(True)
    fakes = pools.source.exchange(losses.fake_source), pools.target.exchange(losses.fake_target)
    with run.autocast():
        judged = [discriminator_loss(*one) for one in zip(judges, (source, target), fakes, strict=True)]
        loss = judged[0] + judged[1]
    run.backward(loss)
    # The discriminators' loss does not depend on the generators' new weights, so that one call steps all of them.
    run.step_optimizers(*optimizers)
    return {
        "adversarial": losses.adversarial.detach(),
        "cycle": losses.cycle.detach(),
        "identity": losses.identity.detach(),
        "discriminator": loss.detach(),
    }


def cyclegan_batches(
    source_volumes: Sequence[np.ndarray], target_volumes: Sequence[np.ndarray], image_size: int, seed: int
) -> Batches:
    """Unpaired batches of one: {"source", "target"}, each (1, 1, image_size, image_size) in [-1, 1].

    The source slices come in a new random order in each epoch, each with a random target slice; blank slices are left
    out.

    Args:
        source_volumes: normalised (H, W, Z) scans; sizes may differ.
        target_volumes: likewise.
        image_size: side to which slices are resized.
        seed: of the batches.

    Raises:
        InputError: one of the sites has no slice with content.
    """
    source_slices, target_slices = _filled_slices(source_volumes, "source"), _filled_slices(target_volumes, "target")

    def load(index: int, generator: np.random.Generator) -> dict[str, Tensor]:
        other = target_slices[int(generator.integers(len(target_slices)))]
        return {
            "source": _to_network(source_volumes, source_slices[index], image_size),
            "target": _to_network(target_volumes, other, image_size),
        }

    return Batches(load, size=len(source_slices), batch_size=1, seed=seed)


def _filled_slices(volumes: Sequence[np.ndarray], role: str) -> list[tuple[int, int]]:
    found = [(scan, int(z)) for scan, volume in enumerate(volumes) for z in np.flatnonzero(volume.any((0, 1)))]
    if not found:
        raise InputError(f"the {role} scans hold no slice with content", remedy="check the datalist")
    return found


def _to_network(volumes: Sequence[np.ndarray], place: tuple[int, int], image_size: int) -> Tensor:
    """One slice as (1, image_size, image_size) in [-1, 1]."""
    scan, z = place
    image = torch.from_numpy(np.ascontiguousarray(volumes[scan][..., z], dtype=np.float32))
    return _resize(image[None, None], image_size, image_size)[0] * 2 - 1


def learning_rate_factor(step: int, steps: int) -> float:
    """1 in the first half of the steps, then linearly to 0."""
    return min(1.0, 2 * (1 - step / steps))


def train_cyclegan(
    run: Run,
    source_volumes: Sequence[np.ndarray],
    target_volumes: Sequence[np.ndarray],
    settings: CycleGAN,
    metadata: Mapping[str, str] | None = None,
) -> CycleGANNetworks:
    """Train the CycleGAN stand-in between two sites; resumes where the run was stopped.

    Adam with betas (0.5, 0.999), batch 1, learning rate constant in the first half and then linearly to 0. The generator
    towards the source is written to generator.safetensors in the run's folder.

    Args:
        run: an entered run; says where, how, and from which step.
        source_volumes: normalised (H, W, Z) source scans, without masks.
        target_volumes: normalised (H, W, Z) target scans.
        settings: networks, slice size, steps and learning rate.
        metadata: strings to store with the generator (the source's grid).

    Returns:
        The trained networks on the run's device; `to_source` is what `CycleGANTransform` takes.

    Raises:
        SettingError: there are several processes.
        InputError: a site without any slice with content.
    """
    if run.world_size > 1:
        raise SettingError("CycleGAN takes batches of 1 and cannot share them", remedy="start it without torchrun")
    batches = cyclegan_batches(source_volumes, target_volumes, settings.image_size, run.settings.seed)
    networks = CycleGANNetworks(*(run.prepare(network) for network in CycleGANNetworks.build(settings)))
    generators, discriminators = nn.ModuleList(networks[:2]), nn.ModuleList(networks[2:])
    optimizers = Optimizers(
        torch.optim.Adam(generators.parameters(), settings.gan_learning_rate, betas=(0.5, 0.999), foreach=True),
        torch.optim.Adam(discriminators.parameters(), settings.gan_learning_rate, betas=(0.5, 0.999), foreach=True),
    )
    pools = Pools(ImagePool(seed=run.settings.seed), ImagePool(seed=run.settings.seed + 1))
    run.restore(
        **networks._asdict(),
        optimizer_of_generators=optimizers.generators,
        optimizer_of_discriminators=optimizers.discriminators,
        pool_of_source=pools.source,
        pool_of_target=pools.target,
    )
    for network in networks:
        network.train()
    for step, batch in run.steps(batches, settings.steps):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = settings.gan_learning_rate * learning_rate_factor(step, settings.steps)
        losses = cyclegan_step(run, networks, optimizers, batch, pools)
        if step % LOG_EVERY == 0 or step + 1 == settings.steps:
            found = {name: float(loss) for name, loss in losses.items()}
            for name, value in found.items():
                refuse_divergence(value, f"{name} of step {step}")
            run.log.write(step, **found)
    size = {"width": settings.generator_width, "blocks": settings.blocks, "image_size": settings.image_size}
    stored = {**(metadata or {}), "network": "ResnetGenerator", **{key: str(value) for key, value in size.items()}}
    save_weights(run.out / GENERATOR, networks.to_source, stored)
    return networks


class CycleGANTransform:
    """A trained generator as a transformation for `predict_transformed`.

    Args:
        generator: `to_source` of `train_cyclegan`.
        image_size: side at which it was trained.
        batch_size: slices per forward pass.
    """

    def __init__(self, generator: nn.Module, image_size: int = 256, batch_size: int = 4) -> None:
        self.generator = generator
        self.image_size = image_size
        self.batch_size = batch_size
        self.metadata: dict[str, str] = {}
        """Strings that are stored with the weights (grid)."""

    @classmethod
    def load(cls, path: Path, device: torch.device | str = "cpu", batch_size: int = 4) -> CycleGANTransform:
        """Read the generator that `train_cyclegan` wrote.

        Args:
            path: the file, or the folder of the run that trained it.
            device: where the generator works.
            batch_size: slices per forward pass.

        Raises:
            CheckpointError: missing or damaged file, or one that holds something else.
        """
        path = weights_file(path, GENERATOR)
        metadata = read_metadata(path)
        try:
            if metadata["network"] != "ResnetGenerator":
                raise KeyError("network")
            width, blocks, image_size = (int(metadata[key]) for key in ("width", "blocks", "image_size"))
        except (KeyError, ValueError) as error:
            raise CheckpointError(
                "holds no CycleGAN generator", where=path, remedy="give the run folder of `train --method cyclegan`"
            ) from error
        generator = ResnetGenerator(width=width, blocks=blocks)
        load_weights(path, generator)
        transform = cls(generator.to(device), image_size, batch_size)
        transform.metadata = metadata
        return transform

    @torch.no_grad()
    def __call__(self, target: Tensor, sources: Sequence[Tensor] = ()) -> Tensor:
        """Translate a normalised target scan (H, W, Z), slice by slice; the result is (H, W, Z) in [0, 1]."""
        device = next(self.generator.parameters()).device
        slices = target.movedim(-1, 0)[:, None]
        translated = []
        for part in torch.split(slices, self.batch_size):
            image = _resize(part.to(device, torch.float32), self.image_size, self.image_size)
            image = (self.generator(image * 2 - 1) + 1) / 2
            translated.append(_resize(image, target.shape[0], target.shape[1]).to(target))
        return torch.cat(translated)[:, 0].movedim(0, -1)
