"""fda-mri on real scans: lgg_multisite, four large hospitals as sources, all others as targets, and T1 -> FLAIR.

    python benchmarks/reproduce/fda_mri_lgg.py --data-root DATA --work FOLDER [--seeds 3] [--processes 2]

For every source and seed: train the U-Net, score the target validation scans for every beta and method, choose beta by
both policies, score the target test scans. Writes a record to benchmarks/results. Stops and resumes at any point.

Scale (the paper trains width 16 for 10,000 steps of 16 crops): see SCALE. Ten slices a scan with gaps of about 12 mm, so
surface Dice is the mean over slices (2-D), at a tolerance of one pixel (nominally 1.8 mm).
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from lgg_multisite import PIXEL, convert
from study import origin, study_arguments, study_options, write_record

from dart_core import metrics
from dart_core.checkpoint import load_weights, save_weights
from dart_core.evaluation import score
from dart_core.nets import ResidualUNet2d
from dart_core.run import Run
from dart_core.settings import RunSettings
from fda_mri import DonorBank, fourier_transfer, random_donors, select_beta, select_pairs
from fda_mri.method import predict_slices, train_source
from fda_mri.scans import Scan, load, select
from fda_mri.settings import BETAS, Scans, Training

SOURCES = ("CS", "DU", "FG", "HT")
SCALE = Training(
    width=4, epochs=8, iterations=50, batch_size=8, learning_rate=0.01, drop_epoch=6, crop_size=128, log_every=25
)
VALIDATION_SCANS = 3
METHODS = ("single", "MST", "2d", "2.5d", "3d")
N, NEIGHBOURS = 7, 2


def pairs_of(source: str) -> list[tuple[str, str]]:
    """(contrast, site) of the targets of a source: the other sites' T1, and the next site's FLAIR."""
    following = SOURCES[(SOURCES.index(source) + 1) % len(SOURCES)]
    return [("t1", site) for site in SOURCES if site != source] + [("flair", following)]


def scans_of(lists: dict[str, Path], contrast: str, site: str, role: str) -> list[Scan]:
    """Normalised scans of a site that play a role."""
    settings = Scans(lists[contrast], site, keep_slices=0)
    return list(load(select(settings, role), settings, need_mask=True))


def train(work: Path, lists: dict[str, Path], source: str, seed: int) -> ResidualUNet2d:
    """The source network, trained or read back."""
    folder = work / f"{source}-seed{seed}"
    network = ResidualUNet2d(width=SCALE.width)
    weights = folder / "model.safetensors"
    if not weights.is_file():
        scans = scans_of(lists, "t1", source, "train")
        resume = (folder / "config.yaml").is_file()
        settings = RunSettings(folder, seed=seed, channels_last=True, device="cpu", checkpoint_every=100, resume=resume)
        with Run(settings, SCALE) as run:
            torch.manual_seed(seed)
            network = ResidualUNet2d(width=SCALE.width)
            train_source(run, network, [s.volume for s in scans], [s.mask for s in scans], SCALE)
        save_weights(weights, network, {"site": source})
    load_weights(weights, network)
    return network.eval().to(memory_format=torch.channels_last)


def surface(mask: np.ndarray, scan: Scan) -> dict[str, float]:
    """Scores of one scan, slice by slice."""
    return score(mask, scan.mask, scan.grid.spacing, PIXEL, "2d")


def unadapted(network: torch.nn.Module, scan: Scan) -> dict[str, float]:
    """Scores without adaptation."""
    return surface(predict_slices(network, torch.from_numpy(scan.volume)).numpy() > 0, scan)


def adapted(
    network: torch.nn.Module, bank: DonorBank, scan: Scan, betas: dict[str, Sequence[float]]
) -> dict[str, dict[float, dict[str, float]]]:
    """Scores of one scan by method and beta.

    Methods share donors: each (slice, scan, offset) that any of them chose is transferred and segmented once.
    """
    target = torch.from_numpy(scan.volume)
    slices = target.shape[-1]
    chosen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for method in betas:
        if method in ("single", "MST"):
            positions = random_donors(len(bank), slices, 1 if method == "single" else N)
            chosen[method] = positions, torch.zeros_like(positions)
        else:
            chosen[method] = bank.rank(target, method, N, NEIGHBOURS)[:2]
    results: dict[str, dict[float, dict[str, float]]] = {method: {} for method in betas}
    for beta in sorted({beta for grid in betas.values() for beta in grid}):
        needed: dict[tuple[int, int, int], int] = {}
        for method, (positions, offsets) in chosen.items():
            if beta in betas[method]:
                for z, j in np.ndindex(*positions.shape):
                    if positions[z, j] >= 0:
                        needed.setdefault((z, int(positions[z, j]), int(offsets[z, j])), len(needed))
        key = torch.tensor(list(needed))
        styles = torch.stack([bank.scan(k)[..., z + d] for z, k, d in needed])
        moved = fourier_transfer(target.movedim(-1, 0)[key[:, 0]], styles, beta)
        probabilities = predict_slices(network, moved.movedim(0, -1)).sigmoid()
        for method, (positions, offsets) in chosen.items():
            if beta not in betas[method]:
                continue
            mask = np.zeros(scan.volume.shape, bool)
            for z in range(slices):
                places = [needed[z, int(k), int(d)] for k, d in zip(positions[z], offsets[z], strict=True) if k >= 0]
                mask[..., z] = probabilities[..., places].mean(-1).numpy() > 0.5
            results[method][beta] = surface(mask, scan)
    return results


def first_stage(work: Path, lists: dict[str, Path], source: str, seed: int) -> None:
    """Train; score source validation scans, unadapted test scans, and validation curves of every pair."""
    file = work / f"{source}-seed{seed}" / "validation.json"
    if file.is_file():
        return
    torch.set_num_threads(1)
    started = time.time()
    network = train(work, lists, source, seed)
    trained = time.time() - started
    bank = DonorBank.build([torch.from_numpy(s.volume) for s in scans_of(lists, "t1", source, "train")])
    record: dict = {"in_domain": [unadapted(network, s) for s in scans_of(lists, "t1", source, "source_val")]}
    record |= {"train_seconds": trained, "none": {}, "curves": {}}
    for contrast, site in pairs_of(source):
        name = f"{contrast}:{site}"
        tests = scans_of(lists, contrast, site, "test")
        record["none"][name] = {s.row.subject: unadapted(network, s) for s in tests}
        table: dict[str, list[list[float]]] = {method: [] for method in METHODS}
        for scan in scans_of(lists, contrast, site, "val")[:VALIDATION_SCANS]:
            results = adapted(network, bank, scan, dict.fromkeys(METHODS, BETAS))
            for method in METHODS:
                table[method].append([results[method][beta]["surface_dice"] for beta in BETAS])
        record["curves"][name] = {method: np.mean(rows, axis=0).tolist() for method, rows in table.items()}
    for scan in scans_of(lists, "t1", "EZ", "all"):
        record["none"]["t1:EZ"] = {scan.row.subject: unadapted(network, scan)}
    file.write_text(json.dumps(record))
    print(
        f"{source} seed {seed}: trained {trained:.0f} s, validated {time.time() - started - trained:.0f} s", flush=True
    )


def second_stage(
    work: Path, lists: dict[str, Path], source: str, seed: int, betas: dict[str, dict[str, list[float]]]
) -> None:
    """Score the test scans at the chosen betas: betas[pair][method] = [averaged, per pair]."""
    file = work / f"{source}-seed{seed}" / "test.json"
    if file.is_file():
        return
    torch.set_num_threads(1)
    started = time.time()
    network = train(work, lists, source, seed)
    bank = DonorBank.build([torch.from_numpy(s.volume) for s in scans_of(lists, "t1", source, "train")])
    record: dict = {}
    for contrast, site in [*pairs_of(source), ("t1", "EZ")]:
        name = f"{contrast}:{site}"
        record[name] = {}
        for scan in scans_of(lists, contrast, site, "all" if site == "EZ" else "test"):
            results = adapted(network, bank, scan, betas[name])
            record[name][scan.row.subject] = {
                f"{method} {policy}": results[method][beta]
                for method, pair in betas[name].items()
                for policy, beta in zip(("averaged", "per pair"), pair, strict=False)
            }
    file.write_text(json.dumps(record))
    print(f"{source} seed {seed}: tested in {time.time() - started:.0f} s", flush=True)


def chosen_betas(validation: dict[tuple[str, int], dict], seeds: Sequence[int]) -> dict[int, dict]:
    """By seed, source and pair: beta of both policies for every method. FLAIR pairs have an average of their own."""
    chosen: dict[int, dict] = {}
    for seed in seeds:
        chosen[seed] = {source: {} for source in SOURCES}
        for contrast in ("t1", "flair"):
            for method in METHODS:
                pairs = [
                    (s, name) for s in SOURCES for name in validation[s, seed]["curves"] if name.startswith(contrast)
                ]
                curves = np.array([validation[s, seed]["curves"][name][method] for s, name in pairs])
                averaged = float(select_beta(curves, BETAS, "averaged"))
                for (source, name), beta in zip(pairs, np.asarray(select_beta(curves, BETAS, "per_pair")), strict=True):
                    chosen[seed][source].setdefault(name, {})[method] = [averaged, float(beta)]
                    if contrast == "t1":
                        chosen[seed][source].setdefault("t1:EZ", {})[method] = [averaged]
    return chosen


def main() -> None:
    """Command line."""
    parser = study_options(__doc__, "fda_mri_lgg")
    parser.add_argument("--processes", type=int, default=2)
    arguments = study_arguments(parser)
    work, seeds = arguments.work, range(arguments.seeds)
    lists = convert(arguments.data_root, work / "nifti")
    jobs = [(source, seed) for seed in seeds for source in SOURCES]
    started = time.time()
    with ProcessPoolExecutor(arguments.processes) as pool:
        for future in [pool.submit(first_stage, work, lists, *job) for job in jobs]:
            future.result()
        validation = {(s, k): json.loads((work / f"{s}-seed{k}" / "validation.json").read_text()) for s, k in jobs}
        betas = chosen_betas(validation, seeds)
        for future in [pool.submit(second_stage, work, lists, s, k, betas[k][s]) for s, k in jobs]:
            future.result()
    tests = {(s, k): json.loads((work / f"{s}-seed{k}" / "test.json").read_text()) for s, k in jobs}
    record = summarise(validation, tests, betas, seeds)
    record["minutes"] = round((time.time() - started) / 60, 1)
    file = write_record(record, arguments.out, "fda-mri-lgg-multisite")
    print(table_text(record))
    print(file)


def summarise(validation: dict, tests: dict, betas: dict, seeds: Sequence[int]) -> dict:
    """Mean over test scans and seeds, with the spread over scans (seeds averaged first) and over seeds."""
    columns = ["none", *(f"{method} {policy}" for policy in ("averaged", "per pair") for method in METHODS)]
    pairs: dict[str, dict] = {}
    for source in SOURCES:
        for name in tests[source, 0]:
            entry: dict = {"scans": {}, "betas": {}}
            for column in columns:
                rows = []
                for seed in seeds:
                    scans = validation[source, seed]["none"][name] if column == "none" else tests[source, seed][name]
                    values = {k: v if column == "none" else v.get(column) for k, v in scans.items()}
                    if None in values.values():
                        break
                    rows.append([[v["surface_dice"], v["dice"]] for v in values.values()])
                else:
                    table = np.array(rows)  # (seeds, scans, 2)
                    per_scan, per_seed = table.mean(0), table.mean(1)
                    entry["scans"][column] = dict(zip(scans, per_scan[:, 0].round(4).tolist(), strict=True))
                    entry[column] = {
                        "surface_dice": float(table[..., 0].mean()),
                        "std_scans": float(per_scan[:, 0].std()),
                        "std_seeds": float(per_seed[:, 0].std()),
                        "dice": float(table[..., 1].mean()),
                    }
            if name in betas[0][source]:
                entry["betas"] = {method: [betas[k][source][name][method] for k in seeds] for method in METHODS}
            pairs[f"{source} -> {name}"] = entry
    main_pairs = [name for name in pairs if "t1:" in name and "EZ" not in name]
    tests_against_none = {}
    for column in columns[1:]:
        ours = [v for name in main_pairs for v in pairs[name]["scans"][column].values()]
        none = [v for name in main_pairs for v in pairs[name]["scans"]["none"].values()]
        statistic, p = metrics.wilcoxon_signed_rank(ours, none)
        tests_against_none[column] = {
            "statistic": statistic,
            "p": p,
            "p_bonferroni": metrics.bonferroni(p, len(columns) - 1),
        }
    matrix = np.full((len(SOURCES), len(SOURCES)), np.nan)
    for i, target in enumerate(SOURCES):
        for j, source in enumerate(SOURCES):
            if i == j:
                values = [s["surface_dice"] for k in seeds for s in validation[source, k]["in_domain"]]
                matrix[i, j] = np.mean(values)
            else:
                matrix[i, j] = pairs[f"{source} -> t1:{target}"]["none"]["surface_dice"]
    clusters = select_pairs(matrix, 2)
    return {
        **origin("fda-mri on lgg_multisite, brain masks (silver standard)", ""),
        "scale": vars(SCALE)
        | {"seeds": len(seeds), "n": N, "neighbours": NEIGHBOURS, "validation_scans": VALIDATION_SCANS},
        "metric": f"surface Dice, mean over slices (2-D), tolerance {PIXEL} mm = 1 pixel; std over scans of the seed means",
        "betas": list(BETAS),
        "columns": columns,
        "pairs": pairs,
        "average": {c: float(np.mean([pairs[name][c]["surface_dice"] for name in main_pairs])) for c in columns},
        "wilcoxon_over_scans_of_the_12_pairs": tests_against_none,
        "transfer_matrix_target_by_source": {"sites": SOURCES, "matrix": matrix.round(4).tolist()},
        "clusters_severe_medium_subtle": [f"{SOURCES[s]} -> t1:{SOURCES[t]}" for s, t in clusters],
        "train_minutes": round(sum(v["train_seconds"] for v in validation.values()) / 60, 1),
    }


def table_text(record: dict) -> str:
    """The table as Markdown."""
    columns = record["columns"]
    lines = ["| pair | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, entry in record["pairs"].items():
        cells = [f"{entry[c]['surface_dice']:.3f} ± {entry[c]['std_scans']:.3f}" if c in entry else "" for c in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines.append("| average of the T1 pairs | " + " | ".join(f"{record['average'][c]:.3f}" for c in columns) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
