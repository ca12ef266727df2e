"""Inference of the Stain-AgLr classifier against the vanilla network's: 100 patches of 128 pixels, as in the paper's Table 2.

Both are the same network: the generator and the second half of the batch exist in training only. So the check before the
timing is that the trained files hold the same tensors and that a classifier with the generator's training behind it gives what
a plain network with its weights gives; the ratio that is timed must then be 1 up to noise.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from compare import alternate, record

from dart_core.checkpoint import save_model
from stain_aglr.models import PACKAGE, Model, load_model
from stain_aglr.networks import PatchClassifier, StainAgLr

PATCHES, SIDE, PARAMETERS = 100, 128, 4_846_050


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    made = {"vanilla": StainAgLr(regenerate=False), "stain-aglr": StainAgLr(regenerate=True)}
    networks = {}
    with tempfile.TemporaryDirectory() as folder:
        for method, network in made.items():
            save_model(Path(folder), network.patch_classifier, PACKAGE, Model(method, "RUMC", 32, SIDE, False, 0))
            networks[method], _ = load_model(Path(folder), arguments.device)
    images = torch.rand(PATCHES, 3, SIDE, SIDE, device=arguments.device)

    def forward(method: str) -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = networks[method](images)
        if logits.is_cuda:
            torch.cuda.synchronize()
        return logits

    counts = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
    plain = PatchClassifier().to(arguments.device).eval()
    plain.load_state_dict(networks["stain-aglr"].state_dict())
    with torch.no_grad():
        difference = float((plain(images) - forward("stain-aglr")).abs().max())
    if set(counts.values()) != {PARAMETERS} or difference:
        raise SystemExit(f"not the same network: {counts} parameters, logits differ by {difference:.1e}; not timed")
    seconds = alternate({name: lambda name=name: forward(name) for name in networks}, arguments.rounds)  # type: ignore[misc]
    about = {"patches": PATCHES, "side": SIDE, "threads": arguments.threads, "parameters": PARAMETERS}
    record(f"stain-inference-{arguments.device}", seconds, about, arguments.out, arguments.device)


if __name__ == "__main__":
    main()
