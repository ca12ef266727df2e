"""Normalisers as the commands use them: fitted on the training laboratory alone, stored, and read again (8.11)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from dart_core.batches import Batches
from dart_core.checkpoint import load_state, load_weights, read_metadata, save_tensors
from dart_core.data.images import read_image
from dart_core.errors import CheckpointError, InputError, SettingError
from dart_core.run import Run
from stain_aglr import dscsi, stst
from stain_aglr.datasets import PatchFiles
from stain_aglr.method import BalancedBatches, batches_per_epoch
from stain_aglr.normalisers import MacenkoNormalizer, Unmixing, VahadaneNormalizer, check_batch, nearest_to_mean
from stain_aglr.settings import GanTraining

FILE = "normaliser.safetensors"
UNMIXING: Mapping[str, Callable[[], Unmixing]] = {"macenko": MacenkoNormalizer, "vahadane": VahadaneNormalizer}
BETAS = {"stst-gan": (0.5, 0.999), "dscsi-gan": (0.5, 0.999)}
DROPOUT_SEED = 0
"""Of the noise that the STST generator always gets: one draw for all patches."""
_PATCHES_AT_ONCE = 16
_CANDIDATES = 20


@dataclass(eq=False)
class Normaliser:
    """Gives patches the training laboratory's colours; call it with uint8 (N, 3, H, W).

    Args:
        method: macenko, vahadane, stst-gan or dscsi-gan.
        how: the unmixing normaliser, or the generator in evaluation mode.
        size: side that the generator works at; 0 for unmixing.
        reference: uint8 (3, H, W), the patch that unmixing aims at; None for a generator.
        width: of the generator.
    """

    method: str
    how: Unmixing | nn.Module
    size: int = 0
    reference: Tensor | None = None
    width: int = 0

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise uint8 (N, 3, H, W) to the same shape on the same device. Patches do not influence each other.

        Raises:
            ValueError: other images.
        """
        if isinstance(self.how, nn.Module):
            check_batch(images)
            parts = images.split(_PATCHES_AT_ONCE)
            return torch.cat([self._generated(part) for part in parts]) if len(images) else images.clone()
        return self.how.normalise_batch(images)

    def normalise_batch(self, images: Tensor) -> Tensor:
        """The same as calling it."""
        return self(images)

    def to(self, device: torch.device | str) -> Normaliser:
        """Move a generator to a device; unmixing works wherever the patches are."""
        if isinstance(self.how, nn.Module):
            self.how.to(device)
        return self

    @torch.no_grad()
    def _generated(self, images: Tensor) -> Tensor:
        assert isinstance(self.how, nn.Module)
        sides = images.shape[2:]
        x = resized(images, (self.size, self.size))
        if self.method == "stst-gan":
            made = stst.levels_of(self.how(stst.luma(x).contiguous(), seed=DROPOUT_SEED))
        else:
            made = dscsi.levels_of(self.how(dscsi.shifted(x)))
        return resized(made, (sides[0], sides[1]))


def resized(images: Tensor, sides: tuple[int, int]) -> Tensor:
    """uint8 (N, 3, H, W) at another size (bilinear, antialiased); the same tensor where it has that size."""
    if tuple(images.shape[2:]) == sides:
        return images
    return F.interpolate(images.float(), sides, mode="bilinear", antialias=True).round().clamp(0, 255).to(torch.uint8)


# --- Fitting ---------------------------------------------------------------------------------------------------------


def fit_normaliser(
    run: Run, method: str, patches: PatchFiles, labels: NDArray[np.int64], gan: GanTraining, seed: int,
    unmixing: Normaliser | None = None,
) -> Normaliser:  # fmt: skip
    """Fit a normaliser on the training patches of the training laboratory.

    Args:
        run: an entered run with a folder of its own; a GAN resumes where it was stopped.
        method: macenko, vahadane, stst-gan or dscsi-gan.
        patches: the training patches.
        labels: (n,) their classes, 0 or 1.
        gan: recipe of the GANs.
        seed: of the batches.
        unmixing: for macenko and vahadane, from `unmixing_of`; it is returned if it has a reference picture. None: the
            method's defaults.

    Raises:
        InputError: a patch that cannot be read, or none near the mean colour that shows tissue.
        SettingError: several processes for a GAN.
    """
    if method in UNMIXING:
        unmixing = unmixing_of(method) if unmixing is None else unmixing
        assert not isinstance(unmixing.how, nn.Module)
        return unmixing if unmixing.reference is not None else fit_unmixing(unmixing.how, patches)
    if run.world_size > 1:
        raise SettingError(f"{method} takes batches that cannot be shared", remedy="start it without torchrun")
    return _train_gan(run, method, patches, labels, gan, seed)


def unmixing_of(method: str, standardise_luminosity: bool = False, reference: Path | None = None) -> Normaliser:
    """An unmixing normaliser, fitted to a picture file where one is given.

    Args:
        method: macenko or vahadane.
        standardise_luminosity: see `VahadaneNormalizer`.
        reference: the picture.

    Raises:
        InputError: the picture cannot be read or shows no stained tissue.
    """
    how = VahadaneNormalizer(standardise_luminosity) if method == "vahadane" else UNMIXING[method]()
    if reference is None:
        return Normaliser(method, how)
    picture = read_image(reference)
    try:
        how.fit(picture)
    except ValueError as error:
        raise InputError("shows no stained tissue", where=reference, remedy="give another") from error
    return Normaliser(method, how, reference=torch.from_numpy(picture).permute(2, 0, 1))


def fit_unmixing(normaliser: Unmixing, patches: PatchFiles) -> Normaliser:
    """Take the patch whose mean colour is nearest to the mean of all as the reference; the next one if it shows no tissue.

    Raises:
        InputError: none of the first twenty has stains.
    """
    colours = torch.cat([images.float().mean((2, 3)) for images in patches.in_batches(64)])
    for index in nearest_to_mean(colours)[:_CANDIDATES]:
        reference = patches[index]
        try:
            normaliser.fit(reference.permute(1, 2, 0).numpy())
        except ValueError:
            continue
        return Normaliser(normaliser.method, normaliser, reference=reference)
    raise InputError("none of the patches near the mean colour shows stained tissue", remedy="check the datalist")


def _gan_batches(method: str, patches: PatchFiles, labels: NDArray[np.int64], gan: GanTraining, seed: int) -> Batches:
    """Batches of "image" uint8 (B, 3, size, size) and "label"; mirrored, for DSCSI also turned and half from each class."""

    def load(sample: int, rng: np.random.Generator) -> dict[str, Any]:
        image = resized(patches[sample][None], (gan.gan_size, gan.gan_size))[0]
        if rng.random() < 0.5:
            image = image.flip(2)
        if method == "dscsi-gan":
            image = torch.rot90(image.flip(1) if rng.random() < 0.5 else image, int(rng.integers(4)), (1, 2))
        return {"image": image.contiguous(), "label": labels[sample]}

    if method == "dscsi-gan":
        return BalancedBatches(load, labels, gan.batch_of(method), seed)
    return Batches(load, len(patches), gan.batch_of(method), seed)


def _train_gan(
    run: Run, method: str, patches: PatchFiles, labels: NDArray[np.int64], gan: GanTraining, seed: int
) -> Normaliser:
    batches = _gan_batches(method, patches, labels, gan, seed)
    epoch = batches_per_epoch(len(patches), gan.batch_of(method))
    first = gan.feature_epochs * epoch if method == "dscsi-gan" else 0
    total = first + gan.epochs_of(method) * epoch
    generator, discriminator = (run.prepare(network) for network in _networks(method, gan))
    rate = gan.rate_of(method)
    optimizers: dict[str, torch.optim.Optimizer] = {
        "generator": torch.optim.Adam(generator.parameters(), rate, BETAS[method]),
        "discriminator": torch.optim.Adam(discriminator.parameters(), rate, BETAS[method]),
    }
    stateful: dict[str, Any] = {"generator": generator, "discriminator": discriminator}
    stateful |= {f"optimizer_of_{name}": optimizer for name, optimizer in optimizers.items()}
    if method == "dscsi-gan":
        keeper = run.prepare(dscsi.FeatureKeeper(gan.gan_backbone, gan.gan_weights, gan.gan_size))
        teaching = torch.optim.SGD(keeper.parameters(), 2e-4, momentum=0.9, weight_decay=1e-5)
        stateful |= {"classifier": keeper, "optimizer_of_classifier": teaching}
    run.restore(**stateful)
    for step, batch in run.steps(batches, total, method):
        if method == "stst-gan":
            assert isinstance(discriminator, stst.STSTDiscriminator)
            losses = stst.stst_step(run, generator, discriminator, optimizers, batch["image"])
        elif step < first:
            losses = dscsi.classifier_step(run, keeper.train(), teaching, batch)
        else:
            assert isinstance(discriminator, dscsi.DSCSIDiscriminator)
            assert isinstance(keeper, dscsi.FeatureKeeper)
            keeper.requires_grad_(False).eval()
            losses = dscsi.dscsi_step(run, generator, discriminator, keeper, optimizers, batch["image"])
        if step % gan.gan_log_every == 0 or step == total - 1:
            run.log.write(step, **losses)
    return Normaliser(method, generator.eval(), gan.gan_size, width=gan.gan_width)


def _networks(method: str, gan: GanTraining) -> tuple[nn.Module, nn.Module]:
    if method == "stst-gan":
        levels = gan.gan_size.bit_length() - 1
        return stst.STSTGenerator(levels, gan.gan_width), stst.STSTDiscriminator(gan.gan_width)
    return dscsi.DSCSIGenerator(gan.gan_width), dscsi.DSCSIDiscriminator(gan.gan_size, max(1, gan.gan_width // 2))


# --- Files -----------------------------------------------------------------------------------------------------------


def save_normaliser(folder: Path, normaliser: Normaliser) -> Path:
    """Write normaliser.safetensors.

    Raises:
        OutputError: the file cannot be written.
    """
    how = normaliser.how
    if isinstance(how, nn.Module):
        tensors = {name: value.detach().cpu().clone() for name, value in how.state_dict().items()}
    else:
        assert normaliser.reference is not None
        tensors = {
            "stain_matrix": torch.tensor(how.stain_matrix),
            "max_concentrations": torch.tensor(how.max_concentrations),
            "reference": normaliser.reference.clone(),
        }
    metadata = {"normaliser": normaliser.method, "size": str(normaliser.size), "width": str(normaliser.width)}
    if isinstance(how, VahadaneNormalizer):
        metadata["luminosity"] = str(int(how.standardise_luminosity))
    save_tensors(folder / FILE, tensors, metadata)
    return folder / FILE


def load_normaliser(path: Path, device: torch.device | str = "cpu") -> Normaliser:
    """Read what `save_normaliser` wrote.

    Args:
        path: the file or its folder.
        device: where a generator works.

    Raises:
        CheckpointError: missing or damaged file, or one that holds something else.
    """
    file = path / FILE if path.is_dir() else path
    metadata = read_metadata(file)
    try:
        method, size, width = metadata["normaliser"], int(metadata["size"]), int(metadata["width"])
        kind: Literal["unmixing", "gan"] = "unmixing" if method in UNMIXING else "gan"
        if kind == "gan" and method not in BETAS:
            raise KeyError(method)
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            "holds no normaliser",
            where=file,
            remedy="give the folder `normaliser` of a run of `stain-aglr train`",
        ) from error
    tensors, _ = load_weights(file)
    if kind == "unmixing":
        how = UNMIXING[method]()
        how.stain_matrix = tensors["stain_matrix"].numpy()
        how.max_concentrations = tensors["max_concentrations"].numpy()
        if isinstance(how, VahadaneNormalizer):
            how.standardise_luminosity = metadata.get("luminosity") == "1"
        return Normaliser(method, how, reference=tensors["reference"])
    if method == "stst-gan":
        generator: nn.Module = stst.STSTGenerator(size.bit_length() - 1, width)
    else:
        generator = dscsi.DSCSIGenerator(width)
    load_state(generator, tensors, file)
    return Normaliser(method, generator.to(device).eval(), size, width=width)
