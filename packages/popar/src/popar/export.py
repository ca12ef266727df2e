"""The command `export`: a backbone in timm's names."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from dart_core.checkpoint import save_tensors
from dart_core.cli import say
from dart_core.errors import OutputError, SettingError
from dart_core.export import check_file
from popar import settings as of
from popar.models import Pretrained, Tuned, describe, load_pretrained, load_tuned
from popar.networks import NAMES, POPAR, Classifier, parse_options, patch_tokens
from popar.weights import load_popar_weights, timm_state


def export(command: of.Export) -> None:
    """Write the backbone, and a single linear classifier with it, so that timm loads it without any renaming."""
    path = command.out
    check_file(path, ".safetensors", command.overwrite)
    about = describe(command.model)
    network: POPAR | Classifier
    if about is not None and command.networks != of.NetworkSettings():
        raise SettingError(
            f"{command.model} says itself what its network is",
            remedy="leave --backbone, --image-size and --network out",
        )
    if isinstance(about, Pretrained):
        network, _ = load_pretrained(command.model)
    elif isinstance(about, Tuned):
        network, _ = load_tuned(command.model)
    else:
        given = command.networks
        network = POPAR(given.name, given.image_size, **parse_options(given.network))
        load_popar_weights(command.model, network)
    if about is None:
        backbone, side, options = command.networks.name, network.image_size, parse_options(command.networks.network)
    else:
        backbone, side, options = about.backbone, about.image_size, about.network
    state = timm_state(network)
    classes = next((len(value) for name, value in state.items() if name in ("head.weight", "head.fc.weight")), 0)
    words: dict[str, Any] = {"img_size": side, "num_classes": classes, **options}
    architecture = NAMES.get(backbone, backbone)
    worst = _difference(network, state, architecture, words)
    if worst > 0:
        raise OutputError(f"timm's network differs by {worst:.1e}", where=path, remedy="use the tested version of timm")
    save_tensors(path, state, {"timm": json.dumps({"architecture": architecture, **words})})
    listed = "".join(f", {name}={value}" for name, value in words.items())
    say(f"{path}: timm.create_model({architecture!r}, checkpoint_path={str(path)!r}{listed})")


@torch.no_grad()
def _difference(
    network: POPAR | Classifier, state: dict[str, Tensor], architecture: str, words: dict[str, Any]
) -> float:
    """Largest difference of the features (with a classifier of the logits) to timm's own network."""
    import timm

    model = timm.create_model(architecture, pretrained=False, **words)
    model.load_state_dict(state)
    side = network.image_size
    x = torch.rand((1, 3, side, side), generator=torch.Generator().manual_seed(0))
    network.eval()
    if words["num_classes"]:
        return float((network(x) - model.eval()(x)).abs().max())
    reference: Any = model.eval()
    return float((patch_tokens(network.backbone, x) - patch_tokens(reference, x)).abs().max())
