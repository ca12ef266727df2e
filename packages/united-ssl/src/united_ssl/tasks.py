"""The five pretext tasks: from a batch of cubes to what the network sees, restores and answers (specification 2.3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dart_core.batches import Batches
from dart_core.errors import InputError, SettingError
from united_ssl import blocks as cut
from united_ssl.clustering import Clusters, cluster_sampling_weights, fit_clusters
from united_ssl.cubes import Cubes, load_cube
from united_ssl.distortions import (
    genesis_appearance,
    genesis_flip,
    local_shuffle,
    nonlinear,
    one_of,
    paint_inside,
    paint_outside,
    transvw_distort,
)
from united_ssl.networks import Critic3d, SiameseUNet3d, UnitedUNet3d
from united_ssl.rotation import CLASSES, RotationForm, rotate_cube
from united_ssl.settings import Network, Pretext

CROP = (7, 8)
"""Deep clustering: a crop's share of the cube (56 of 64 voxels)."""
_CLUSTERING, _OUTPUTS = 11, 12
"""Keys of random numbers, beside those of `dart_core.batches` and `dart_core.fine_tuning`."""

AnyUNet = UnitedUNet3d | SiameseUNet3d


class Views(NamedTuple):
    """A batch as the losses see it."""

    seen: Tensor
    """T(x): (N, 1, H, W, D)."""
    target: Tensor
    """What is to be restored, of the same shape."""
    labels: tuple[Tensor, ...]
    """(N,) classes; for Rubik's Cube flags (N, 8) and orders (N,)."""


class Task:
    """A pretext task on one set of cubes.

    Args:
        settings: which, with its options.
        classes: of the labels that come with the cubes (TransVW).
        seed: of what is drawn once (the random orders of the as-coded jigsaw, clustering).

    Attributes:
        classes: what the head answers.
        clusters: the pseudo labels of deep clustering, once there are any.
        validation: those of the validation cubes.
        labelled_epoch: the epoch they were made for.

    It is part of the checkpoints: orders of blocks and pseudo labels come back as they were.
    """

    def __init__(self, settings: Pretext, classes: int = 0, seed: int = 0) -> None:
        self.settings, self.seed = settings, seed
        self.name = settings.pretext
        self.permutations = torch.empty(0, cut.BLOCKS, dtype=torch.int64)
        self.clusters: Clusters | None = None
        self.validation: Tensor | None = None
        self.labelled_epoch = -1
        if self.name in ("jigsaw", "rubik"):
            self.permutations = (
                cut.random_permutations(settings.permutations, seed)
                if settings.draws_orders
                else cut.permutation_set(settings.permutations)
            )
        self.form: RotationForm = (
            "as_coded" if settings.form == "as-coded" else "all24" if settings.rotations == 24 else "proper"
        )
        answers: dict[str, int | tuple[int, int]] = {
            "rotation": CLASSES[self.form],
            "jigsaw": settings.permutations,
            "rubik": (cut.BLOCKS, settings.permutations),
            "deep-clustering": settings.clusters,
            "transvw": classes,
        }
        self.classes = answers[self.name]
        if self.name == "transvw" and classes < 2:
            raise SettingError(
                "the cubes have no visual words", remedy="make them with `united-ssl prepare --words 44`"
            )

    # --- Networks ----------------------------------------------------------------------------------------------------

    def network(self, network: Network, shape: tuple[int, int, int]) -> AnyUNet:
        """A network for this task, with random weights."""
        least = 32 if self.settings.is_siamese else 16
        if min(shape) < least or any(side % (least // 2) for side in shape):
            whose = "the siamese network" if self.settings.is_siamese else "pretraining"
            raise InputError(
                f"cubes of {' x '.join(map(str, shape))} voxels are too small or uneven for {whose}",
                remedy=f"give sides from {least} on that are multiples of {least // 2}",
            )
        if self.settings.is_siamese:
            return SiameseUNet3d(self.classes, network.up, network.width)
        return UnitedUNet3d(self.classes, network.head, network.up, network.width, shape)

    def critic(self, norm: Any, width: int) -> Critic3d:
        """A critic for it."""
        return Critic3d(norm, width, 2 * cut.BLOCKS if self.settings.is_siamese else 2)

    def as_critic_sees(self, x: Tensor) -> Tensor:
        """Cubes as the critic takes them: of the siamese network, the blocks beside each other as channels."""
        return cut.split_blocks(x)[:, 0] if self.settings.is_siamese else x

    # --- Views -------------------------------------------------------------------------------------------------------

    def views(self, batch: Mapping[str, Tensor], restoring: bool, generator: torch.Generator | None) -> Views:
        """Distort a batch.

        Args:
            batch: "cube" (N, 1, H, W, D) in [0, 1], "index" (N,), and "word" (N,) for TransVW.
            restoring: the step restores as well (TransVW distorts more then).
            generator: on the device of the cubes.
        """
        cube = batch["cube"]
        if self.settings.genesis and self.settings.form == "corrected":
            cube = genesis_flip(cube, generator)
        views = getattr(self, "_" + self.name.replace("-", "_"))(cube, batch, restoring, generator)
        assert isinstance(views, Views)
        if self.settings.genesis and self.settings.form == "corrected":
            return views._replace(seen=genesis_appearance(views.seen, generator))
        return views

    def _rotation(self, x: Tensor, batch: Mapping[str, Tensor], restoring: bool, g: torch.Generator | None) -> Views:
        labels = torch.randint(CLASSES[self.form], (len(x),), generator=g, device=x.device)
        return Views(rotate_cube(x, labels, self.form), x, (labels,))

    def _jigsaw(self, x: Tensor, batch: Mapping[str, Tensor], restoring: bool, g: torch.Generator | None) -> Views:
        numbers, orders = cut.draw_permutations(len(x), self.permutations, g, x.device)
        seen = cut.shuffle_blocks(x, orders, cut.gap_for(cut.JIGSAW_GAP, x.shape[-3:]))
        return Views(seen, x, (numbers,))

    def _rubik(self, x: Tensor, batch: Mapping[str, Tensor], restoring: bool, g: torch.Generator | None) -> Views:
        numbers, orders = cut.draw_permutations(len(x), self.permutations, g, x.device)
        axes = cut.draw_axes(len(x), g, x.device)
        gap = cut.gap_for(cut.RUBIK_GAP, x.shape[-3:])
        if self.settings.form == "as-coded":
            return self._rubik_as_coded(x, numbers, orders, axes, gap, g)
        seen, flags = cut.rubik(x, axes, orders, gap)
        target = cut.shuffle_blocks(x, orders) if self.settings.siamese else x
        if self.settings.masking:
            seen = _masked(seen, g)
        return Views(seen, target, (flags, numbers))

    def _rubik_as_coded(
        self, x: Tensor, numbers: Tensor, orders: Tensor, axes: Tensor, gap: cut.Gap, g: torch.Generator | None
    ) -> Views:
        """Flags and targets in original block order, the gap in the target too, and distortions that give the flags away."""
        spaced = cut.with_gap(x, gap)
        blocks = cut.turn_blocks(cut.split_blocks(spaced), axes)
        if self.settings.genesis:
            flat = blocks.flatten(0, 2)[:, None]
            turned = torch.nonzero((axes != 0).flatten()).ravel()
            if len(turned):
                flat = flat.clone()
                flat[turned] = one_of(flat[turned], (local_shuffle, nonlinear, paint_inside, paint_outside), g)
            blocks = flat[:, 0].reshape(blocks.shape)
        seen = cut.shuffle_blocks(cut.join_blocks(blocks), orders)
        return Views(seen, spaced, ((axes != 0).to(torch.int64), numbers))

    def _deep_clustering(
        self, x: Tensor, batch: Mapping[str, Tensor], restoring: bool, g: torch.Generator | None
    ) -> Views:
        seen = x
        for axis in (-3, -2, -1):
            flipped = torch.rand(len(x), generator=g, device=x.device) < 0.5
            seen = torch.where(flipped.reshape(-1, 1, 1, 1, 1), seen.flip(axis), seen)
        sides = [side * CROP[0] // CROP[1] for side in x.shape[-3:]]
        rooms = [side - small for side, small in zip(x.shape[-3:], sides, strict=True)]
        drawn = [torch.randint(room + 1, (len(x),), generator=g, device=x.device) for room in rooms]
        crops = [
            part[:, i : i + sides[0], j : j + sides[1], k : k + sides[2]]
            for part, (i, j, k) in zip(seen, torch.stack(drawn, 1).tolist(), strict=True)
        ]
        seen = F.interpolate(torch.stack(crops), x.shape[-3:], mode="trilinear", align_corners=False)
        return Views(seen, x, (batch["pseudo"],))

    def _transvw(self, x: Tensor, batch: Mapping[str, Tensor], restoring: bool, g: torch.Generator | None) -> Views:
        # With --genesis its transforms stand in for TransVW's own.
        own = self.settings
        seen = x if own.genesis else transvw_distort(x, restoring, g, own.shuffled_blocks, own.painting)
        return Views(seen, x, (batch["word"],))

    # --- Batches and pseudo labels -----------------------------------------------------------------------------------

    @property
    def relabels(self) -> bool:
        """New pseudo labels are made before each epoch."""
        return self.name == "deep-clustering"

    def relabel(
        self, network: AnyUNet, cubes: Mapping[str, Cubes], epoch: int, batch_size: int, device: torch.device
    ) -> bool:
        """Make the pseudo labels of an epoch, and draw the last layer anew.

        Args:
            network: whose features are clustered.
            cubes: "train", which make the clusters, and "val", which get the nearest ones.
            epoch: from 0.
            batch_size: cubes per forward pass.
            device: of the network.

        Returns:
            False if it was done already.
        """
        if self.labelled_epoch == epoch:
            return False
        features, others = (
            pooled_features(network, cubes[part], batch_size, device, centre_crop=True) for part in ("train", "val")
        )
        count = min(self.settings.clusters, len(features))
        seed = int(np.random.SeedSequence(self.seed, spawn_key=(_CLUSTERING, epoch)).generate_state(1)[0])
        self.clusters = fit_clusters(features, count, self.settings.components, seed=seed)
        # Now, as clusters are those of this network's features, not of what the epoch makes of it.
        self.validation = self.clusters.assign(others)
        self.labelled_epoch = epoch
        generator = torch.Generator().manual_seed(
            int(np.random.SeedSequence(self.seed, spawn_key=(_OUTPUTS, epoch)).generate_state(1)[0])
        )
        network.head.reset_outputs(generator)
        return True

    def batches(self, cubes: Cubes, batch_size: int, seed: int) -> Batches:
        """Training batches; for deep clustering those of the epoch that was labelled last."""
        if not self.relabels:
            return Batches(load_cube(cubes, self.extra(cubes)), len(cubes), batch_size, seed)
        assert self.clusters is not None
        labels = self.clusters.labels.cpu().numpy()
        return WeightedBatches(load_cube(cubes, {"pseudo": labels}), batch_size, seed, cluster_sampling_weights(labels))

    def extra(self, cubes: Cubes) -> dict[str, Any]:
        """What comes with the cubes: the words of TransVW."""
        if self.name != "transvw":
            return {}
        words = cubes.labels()
        if (words < 0).any():
            raise InputError(
                "some cubes have no visual word",
                where=cubes.source,
                remedy="make them with `united-ssl prepare --words 44`",
            )
        return {"word": words}

    def validation_labels(self, cubes: Cubes) -> dict[str, Tensor]:
        """Labels that the validation cubes need beside the task's own: words, or the clusters that `relabel` found."""
        if self.relabels:
            assert self.validation is not None
            return {"pseudo": self.validation}
        return {name: torch.as_tensor(values) for name, values in self.extra(cubes).items()}

    # --- State -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: orders of blocks, pseudo labels."""
        clusters = None if self.clusters is None else self.clusters._asdict()
        return {
            "permutations": self.permutations,
            "clusters": clusters,
            "validation": self.validation,
            "labelled_epoch": self.labelled_epoch,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take on what `state_dict` gave."""
        self.permutations = state["permutations"]
        self.clusters = None if state["clusters"] is None else Clusters(**state["clusters"])
        self.validation, self.labelled_epoch = state["validation"], state["labelled_epoch"]


class WeightedBatches(Batches):
    """Samples drawn with replacement by given probabilities (n,)."""

    def __init__(self, load: Any, batch_size: int, seed: int, weights: Any) -> None:
        super().__init__(load, len(weights), batch_size, seed, replacement=True)
        self.weights = np.asarray(weights, dtype=np.float64)

    def plan(self, step: int) -> list[tuple[int, int]]:
        """The (epoch, sample) pairs of one step."""
        drawn = self._generator(step).choice(self.size, self.batch_size, p=self.weights / self.weights.sum())
        return [(step, int(sample)) for sample in drawn]


def _masked(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """One or two of the eight blocks set to 0, in half of the cubes."""
    n = len(x)
    scores = torch.rand((n, cut.BLOCKS), generator=generator, device=x.device)
    count = torch.randint(1, 3, (n, 1), generator=generator, device=x.device)
    chosen = torch.rand((n, 1), generator=generator, device=x.device) < 0.5
    hidden = (scores.argsort(1).argsort(1) < count) & chosen
    blocks = cut.split_blocks(x).masked_fill(hidden.reshape(n, 1, cut.BLOCKS, 1, 1, 1), 0)
    return cut.join_blocks(blocks)


@torch.no_grad()
def pooled_features(
    network: nn.Module, cubes: Cubes, batch_size: int, device: torch.device, centre_crop: bool = False
) -> Tensor:
    """Mean of the encoder's last activation over its positions (n, 16 width), in evaluation mode, on the CPU.

    Args:
        network: with an encoder; of the siamese network that of whole cubes.
        cubes: n of them.
        batch_size: cubes per forward pass.
        device: where the network lies.
        centre_crop: the middle 7/8 of each cube, resized.
    """
    training = network.training
    network.eval()
    found = []
    for start in range(0, len(cubes), batch_size):
        x = cubes.stack(range(start, min(start + batch_size, len(cubes)))).to(device)
        if centre_crop:
            shape = x.shape[-3:]
            small = [side * CROP[0] // CROP[1] for side in shape]
            i, j, k = ((side - part) // 2 for side, part in zip(shape, small, strict=True))
            x = x[..., i : i + small[0], j : j + small[1], k : k + small[2]]
            x = F.interpolate(x, shape, mode="trilinear", align_corners=False)
        encoder = network.encoder
        assert isinstance(encoder, nn.Module)
        found.append(encoder(x)[-1].flatten(2).mean(2).cpu())
    network.train(training)
    return torch.cat(found)
