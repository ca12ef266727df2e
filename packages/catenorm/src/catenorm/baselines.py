"""What the paper compares with: DSBN, MS-Net, W-Net, and its printed tables (specification 4). BN, IN, GN: `CateNormUNet(norm=)`."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from catenorm.losses import one_hot
from catenorm.method import CLIP, Form, MaskMode, descend_with
from catenorm.networks import CateNormUNet, decode
from dart_core.errors import InputError
from dart_core.files import packaged_table

DICE_EPSILON = 1e-7
PRINTED_TABLES = tuple(
    f"table{name}" for name in ("1", "2", "3a", "3b", "4", "5", "6", "7", "8", "9", "10", "11", "12")
)


def printed_table(name: str) -> list[dict[str, str | float]]:
    """One of the paper's tables as printed; not measured here.

    Args:
        name: "table1" to "table12", with "table3a" and "table3b".

    Returns:
        A dict for each row; columns of numbers are floats.

    Raises:
        ValueError: no such table.
    """
    return packaged_table("catenorm", name, PRINTED_TABLES)


# --- DSBN (Chang et al. 2019) -----------------------------------------------------------------------------------------


class SiteBatchNorm2d(nn.Module):
    """A batch norm for each site; each image of a batch is normalised among those of its own site.

    `SiteNetwork` says which image is from where before every pass.

    Args:
        norm: what every site starts as.
        sites: how many.
    """

    def __init__(self, norm: nn.BatchNorm2d, sites: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(copy.deepcopy(norm) for _ in range(sites))
        self.site: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        if self.site is None or len(self.site) != len(x):
            raise InputError("the batch norms do not know the sites of the images", remedy="call it by SiteNetwork")
        out = torch.empty_like(x)
        for number, norm in enumerate(self.norms):
            own = self.site == number
            if own.any():
                out[own] = norm(x[own])
        return out


def to_site_norms(network: nn.Module, sites: int) -> nn.Module:
    """Replace every batch norm of a network, in place, by one for each site that starts as it is."""
    for name, child in network.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(network, name, SiteBatchNorm2d(child, sites))
        else:
            to_site_norms(child, sites)
    return network


class SiteNetwork(nn.Module):
    """DSBN: a network with shared convolutions and a batch norm for each site.

    Args:
        network: with plain batch norms; changed.
        sites: names of the sites.
    """

    def __init__(self, network: nn.Module, sites: Sequence[str]) -> None:
        super().__init__()
        self.sites = tuple(sites)
        self.network = to_site_norms(network, len(self.sites))

    def forward(self, x: Tensor, site: Tensor) -> Tensor:
        """Logits (N, K, H, W) of images (N, C, H, W) with the numbers (N,) of their sites.

        Raises:
            InputError: a number that is none of a site.
        """
        with_sites(self.network, site, len(self.sites))
        logits: Tensor = self.network(x)
        return logits

    def number(self, site: str) -> int:
        """The number of a site.

        Raises:
            InputError: the network was not trained on it.
        """
        return site_number(self.sites, site)


def site_number(sites: Sequence[str], site: str) -> int:
    """The place of a site among those that a network has batch norms for.

    Raises:
        InputError: it is not one of them.
    """
    if site not in sites:
        raise InputError(
            f"the network has batch norms for the sites {', '.join(sites)}, and none for {site or 'an unnamed one'}",
            remedy="choose scans of these sites, give --as-site, or use a method without norms per site",
        )
    return list(sites).index(site)


def with_sites(network: nn.Module, site: Tensor, sites: int) -> None:
    """Tell every batch norm of a network the sites of the next pass's images.

    Args:
        network: with `SiteBatchNorm2d`.
        site: (N,) numbers.
        sites: how many there are.

    Raises:
        InputError: a number that is none of a site.
    """
    wrong = site[(site < 0) | (site >= sites)]
    if len(wrong):
        raise InputError(
            f"an image is said to be of site {int(wrong[0])}",
            remedy=f"give numbers from 0 to {sites - 1}, as `number` does",
        )
    for module in network.modules():
        if isinstance(module, SiteBatchNorm2d):
            module.site = site


# --- MS-Net (Liu et al. 2020) -----------------------------------------------------------------------------------------


class MSNet(nn.Module):
    """A universal encoder and decoder with batch norms for each site, and a further decoder for each site.

    The U-Net of 3.1 without biases, with first and last convolutions of 3 x 3. At test only the universal decoder is used.

    Args:
        in_channels: neighbouring slices.
        classes: K, with the background.
        sites: names of the sites.
        width: channels of the first level.
    """

    def __init__(self, in_channels: int, classes: int, sites: Sequence[str], width: int = 32) -> None:
        super().__init__()
        self.sites = tuple(sites)

        def unet() -> CateNormUNet:
            return CateNormUNet(in_channels, classes, (), width=width, kernel=3, bias=False)

        self.universal = to_site_norms(unet(), len(self.sites))
        # A site's own decoder sees that site alone, so that its batch norms are plain ones.
        self.auxiliary = nn.ModuleList(_decoder(unet()) for _ in self.sites)

    def forward(self, x: Tensor, site: Tensor) -> Tensor:
        """Logits (N, K, H, W) of the universal network, of images (N, C, H, W) with the numbers (N,) of their sites."""
        with_sites(self.universal, site, len(self.sites))
        logits: Tensor = self.universal(x)
        return logits

    def auxiliary_logits(self, x: Tensor, site: Tensor) -> Tensor:
        """Logits (N, K, H, W) of each image by its own site's decoder."""
        with_sites(self.universal, site, len(self.sites))
        features = self._encoder.encode(x)
        parts = []
        for number, decoder in enumerate(self.auxiliary):
            own = (site == number).nonzero()[:, 0]
            if len(own):
                parts.append((own, decode(decoder, [feature[own] for feature in features])))
        order = torch.cat([own for own, _ in parts]).argsort()
        return torch.cat([logits for _, logits in parts])[order]

    @property
    def _encoder(self) -> CateNormUNet:
        assert isinstance(self.universal, CateNormUNet)
        return self.universal

    def parameter_sets(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """What stage (a) updates (encoder and auxiliary decoders), and what stage (b) does (encoder and universal decoder)."""
        universal = list(self.universal.named_parameters())
        decoder = ("up1.", "up2.", "up3.", "up4.", "out.")
        encoder = [parameter for name, parameter in universal if not name.startswith(decoder)]
        return [*encoder, *self.auxiliary.parameters()], [parameter for _, parameter in universal]


def _decoder(network: CateNormUNet) -> nn.ModuleDict:
    return nn.ModuleDict({name: network.get_submodule(name) for name in ("up1", "up2", "up3", "up4", "out")})


def site_dice(logits: Tensor, truth: Tensor, site: Tensor) -> Tensor:
    """Sum over the sites of 1 - mean over classes of 2 sum p y / (sum p + sum y + 1e-7), sums over the site's images.

    Args:
        logits: (N, K, H, W).
        truth: (N, K, H, W) one-hot.
        site: (N,) numbers.
    """
    p, y = logits.softmax(1), truth.to(logits.dtype)
    losses = []
    for number in site.unique():
        own = site == number
        overlap, size = 2 * (p[own] * y[own]).sum((0, 2, 3)), (p[own] + y[own]).sum((0, 2, 3))
        losses.append(1 - (overlap / (size + DICE_EPSILON)).mean())
    return torch.stack(losses).sum()


def ms_net_step(
    network: MSNet,
    optimizers: Sequence[torch.optim.Optimizer],
    x: Tensor,
    y: Tensor,
    site: Tensor,
    universal: bool = True,
    clip: float = CLIP,
) -> dict[str, Tensor]:
    """One iteration: (a) the auxiliary decoders learn from the labels, (b) the universal one from these and from them.

    Args:
        network: put into training mode.
        optimizers: of the two sets of `parameter_sets`.
        x: (N, C, H, W).
        y: (N, H, W) labels.
        site: (N,) numbers of the sites.
        universal: False: (a) alone, as in the first 500 iterations.
        clip: limit of every element of the gradients, as for the other methods.

    Returns:
        "loss_auxiliary", "loss_universal" (nan without b), scalars without gradient; "logits" of the universal network, or
        without (b) of the auxiliary decoders.
    """
    network.train()
    logits = network.auxiliary_logits(x, site)
    truth = one_hot(y, logits.shape[1])
    first = site_dice(logits, truth, site)
    descend_with(optimizers[0])(first, clip)
    second = first.new_tensor(float("nan"))
    if universal:
        taught = one_hot(logits.detach().argmax(1), logits.shape[1])
        logits = network(x, site)
        second = 0.5 * site_dice(logits, truth, site) + 0.5 * site_dice(logits, taught, site)
        descend_with(optimizers[1])(second, clip)
    return {"loss_auxiliary": first.detach(), "loss_universal": second.detach(), "logits": logits.detach()}


# --- W-Net (Table 3a) -------------------------------------------------------------------------------------------------


class WNet(nn.Module):
    """Two networks without common weights: a BN U-Net, and one with categorical blocks that gets the first one's classes.

    As a network of two passes it goes through `two_stage_step` and `two_pass`, where the mask carries no gradient.

    Args:
        in_channels: neighbouring slices.
        classes: K, with the background.
        blocks: categorical blocks of the second network.
        width: channels of the first level.
        mask_mode: see `CateNorm2d`.
        form: see `CateNorm2d`.
        reduction: see `CateNorm2d`.
    """

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 2,
        blocks: Sequence[int] = (1, 2, 3, 4),
        *,
        width: int = 32,
        mask_mode: MaskMode = "soft",
        form: Form = "one_plus_gamma",
        reduction: int = 2,
    ) -> None:
        super().__init__()
        self.first = CateNormUNet(in_channels, classes, (), width=width)
        self.second = CateNormUNet(
            in_channels, classes, blocks, width=width, mask_mode=mask_mode, form=form, reduction=reduction
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (N, K, H, W): of the first network without mask, of the second with one."""
        logits: Tensor = self.first(x) if mask is None else self.second(x, mask)
        return logits
