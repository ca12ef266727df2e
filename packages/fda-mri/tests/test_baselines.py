from __future__ import annotations

import copy
import functools
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dart_core.checkpoint import save_weights
from dart_core.data.slices import predict_slices
from dart_core.errors import CheckpointError, InputError, SettingError
from dart_core.run import Run
from dart_core.settings import RunSettings
from fda_mri import baselines
from fda_mri.baselines import (
    CycleGANNetworks,
    CycleGANTransform,
    ImagePool,
    Optimizers,
    Pools,
    cyclegan_batches,
    cyclegan_losses,
    cyclegan_step,
    discriminator_loss,
    learning_rate_factor,
    predict_transformed,
    printed_table,
    train_cyclegan,
)
from fda_mri.method import normalise_volume
from fda_mri.settings import CycleGAN

TINY = CycleGAN(generator_width=4, blocks=1, image_size=64, steps=6)
PAIRS = ("severe_1", "severe_2", "medium_1", "medium_2", "subtle_1", "subtle_2")


def head(seed: int, shape: tuple[int, int, int] = (40, 48, 6)) -> np.ndarray:
    """A bright ellipsoid with texture; the last slice is blank."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape[:2]), indexing="ij")
    inside = (axes[0] ** 2 + axes[1] ** 2) < 0.6
    volume = inside[..., None] * (0.6 + 0.4 * rng.random(shape))
    volume[..., -1] = 0
    return normalise_volume(torch.from_numpy(volume)).numpy()


class Scale(nn.Module):
    """x times a learnable number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


# Printed numbers


@pytest.mark.parametrize(("name", "rows"), [("table1", 6), ("table2", 11), ("table3", 6), ("selected_betas", 30)])
def test_printed_tables_are_packaged(name: str, rows: int) -> None:
    table = printed_table(name)
    assert len(table) == rows
    for row in table:
        numbers = [value for key, value in row.items() if key not in ("method", "target_domain", "pair", "mode")]
        assert all(isinstance(number, float) for number in numbers)


def test_printed_averages_agree_with_the_pairs_to_rounding() -> None:
    for row in printed_table("table2") + printed_table("table3"):
        assert np.mean([float(row[pair]) for pair in PAIRS]) == pytest.approx(float(row["average"]), abs=0.0101)


def test_table_3_repeats_the_2d_rows_of_table_2() -> None:
    table2 = {str(row["method"]): row for row in printed_table("table2")}
    for row in printed_table("table3"):
        policy, _, ablation = str(row["method"]).partition(" / ")
        if ablation == "SR-SIM + MST":
            assert [row[pair] for pair in PAIRS] == [table2[f"FDA 2D {policy}"][pair] for pair in PAIRS]


def test_methods_known_only_in_print_are_in_table_2() -> None:
    methods = {row["method"] for row in printed_table("table2")}
    assert set(baselines.PRINTED_ONLY) < methods


def test_averaged_betas_do_not_depend_on_the_pair() -> None:
    chosen = {(row["mode"], row["beta_averaged_optimal"]) for row in printed_table("selected_betas")}
    assert chosen == {("2d", 0.01), ("2.5d", 0.01), ("3d", 0.015), ("mst", 0.005), ("none", 0.005)}


def test_unknown_table() -> None:
    with pytest.raises(SettingError, match="no printed table 'table9'; give one of table1"):
        printed_table("table9")


# Harness


def test_no_change_gives_the_plain_prediction() -> None:
    torch.manual_seed(0)
    network = nn.Conv2d(1, 1, 3, padding=1)
    target = torch.from_numpy(head(0))
    result = predict_transformed(network, target, lambda volume, sources: volume)
    torch.testing.assert_close(result, predict_slices(network, target).sigmoid())


def test_transformed_volume_is_normalised_again() -> None:
    target = torch.from_numpy(head(0))
    result = predict_transformed(nn.Identity(), target, lambda volume, sources: 300 * volume - 20)
    torch.testing.assert_close(result, target.sigmoid(), rtol=1e-4, atol=1e-4)


def test_transformed_volume_is_resized_to_the_target() -> None:
    target = torch.from_numpy(head(0))
    ramp = torch.linspace(0, 1, 80)[:, None, None].expand(80, 96, 6)
    seen = predict_transformed(nn.Identity(), target, lambda volume, sources: ramp).logit()
    assert seen.shape == target.shape
    expected = torch.linspace(0, 1, 80).reshape(40, 2).mean(1)
    inner = slice(4, 36)  # away from the percentiles and the border
    slope = (seen[inner, 0, 0].diff() / expected[inner].diff()).mean()
    torch.testing.assert_close(seen[inner, 5, 3].diff(), slope * expected[inner].diff(), rtol=1e-3, atol=1e-4)


def test_transformation_sees_target_and_sources() -> None:
    target, sources = torch.from_numpy(head(0)), [torch.from_numpy(head(1))]
    seen: list[Any] = []

    def transform(volume: Tensor, others: Any) -> Tensor:
        seen.extend([volume, others])
        return volume

    predict_transformed(nn.Identity(), target, transform, sources)
    assert seen[0] is target
    assert seen[1] is sources


def test_bad_transformations() -> None:
    target = torch.from_numpy(head(0))
    with pytest.raises(InputError, match=r"shape \(40, 48, 5\) out of \(40, 48, 6\)"):
        predict_transformed(nn.Identity(), target, lambda volume, sources: volume[..., :5])
    with pytest.raises(InputError, match="nan or infinite"):
        predict_transformed(nn.Identity(), target, lambda volume, sources: volume / 0)


# CycleGAN: losses and pool


def test_generator_losses_in_closed_form() -> None:
    a, b, c, d = 0.5, 3.0, 2.0, -1.0
    networks = CycleGANNetworks(Scale(a), Scale(b), Scale(c), Scale(d))
    source, target = torch.full((1, 1, 4, 4), 0.6), torch.full((1, 1, 4, 4), -0.2)
    losses = cyclegan_losses(networks, source, target)
    torch.testing.assert_close(losses.fake_source, a * target)
    torch.testing.assert_close(losses.fake_target, b * source)
    adversarial = (c * a * -0.2 - 1) ** 2 + (d * b * 0.6 - 1) ** 2
    cycle = 10 * abs(a * b - 1) * (0.6 + 0.2)
    identity = 5 * (abs(a - 1) * 0.6 + abs(b - 1) * 0.2)
    assert losses.adversarial.item() == pytest.approx(adversarial, rel=1e-5)
    assert losses.cycle.item() == pytest.approx(cycle, rel=1e-5)
    assert losses.identity.item() == pytest.approx(identity, rel=1e-5)
    assert losses.total.item() == pytest.approx(adversarial + cycle + identity, rel=1e-5)


def test_discriminator_loss_in_closed_form() -> None:
    real, fake = torch.full((1, 1, 4, 4), 0.5), torch.full((1, 1, 4, 4), 0.25)
    loss = discriminator_loss(Scale(3.0), real, fake)
    assert loss.item() == pytest.approx(0.5 * ((1.5 - 1) ** 2 + 0.75**2))


def test_pool_passes_slices_through_until_it_is_full_and_then_mixes() -> None:
    pool = ImagePool(size=3, seed=0)
    numbers = [float(pool.exchange(torch.full((1, 1, 2, 2), float(i)))[0, 0, 0, 0]) for i in range(400)]
    assert numbers[:3] == [0, 1, 2]
    exchanged = [i for i in range(3, 400) if numbers[i] != i]
    assert all(numbers[i] < i for i in exchanged)
    # Half of 397 draws; six standard deviations.
    assert abs(len(exchanged) - 397 / 2) < 6 * math.sqrt(397) / 2
    # A kept slice leaves the pool when it is given out: besides passing through at first, none comes twice.
    counts = Counter(numbers)
    assert all(count == 1 for number, count in counts.items() if number > 2)
    assert all(counts[number] <= 2 for number in (0.0, 1.0, 2.0))


def test_pool_keeps_copies_without_gradient() -> None:
    pool = ImagePool(size=1)
    image = torch.zeros(1, 1, 2, 2, requires_grad=True)
    out = pool.exchange(image)
    assert not out.requires_grad
    with torch.no_grad():
        image += 1
    kept = pool.state_dict()["images"]
    assert not kept[0].any()


def test_pool_continues_from_its_state() -> None:
    images = torch.arange(60.0).view(60, 1, 1, 1)
    pool = ImagePool(size=4, seed=3)
    pool.exchange(images[:20])
    resumed = ImagePool(size=4, seed=99)
    resumed.load_state_dict(copy.deepcopy(pool.state_dict()))
    assert torch.equal(pool.exchange(images[20:]), resumed.exchange(images[20:]))


# CycleGAN: step and loop


def test_learning_rate_falls_in_the_second_half() -> None:
    assert [learning_rate_factor(step, 8) for step in range(9)] == [1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0]


def plain_step(nets: CycleGANNetworks, optimizers: Optimizers, batch: dict[str, Tensor]) -> None:
    """The step as its authors' code does it, one forward pass per term, first the generators, then the discriminators."""
    real_s, real_t = batch["source"], batch["target"]
    mse, l1 = nn.MSELoss(), nn.L1Loss()
    fake_s, fake_t = nets.to_source(real_t), nets.to_target(real_s)
    score_s, score_t = nets.judge_source(fake_s), nets.judge_target(fake_t)
    loss = mse(score_s, torch.ones_like(score_s)) + mse(score_t, torch.ones_like(score_t))
    loss = loss + 10 * l1(nets.to_source(fake_t), real_s) + 10 * l1(nets.to_target(fake_s), real_t)
    loss = loss + 0.5 * 10 * l1(nets.to_source(real_s), real_s) + 0.5 * 10 * l1(nets.to_target(real_t), real_t)
    optimizers.generators.zero_grad()
    torch.autograd.backward(loss)
    optimizers.generators.step()
    optimizers.discriminators.zero_grad()
    for judge, real, fake in ((nets.judge_source, real_s, fake_s), (nets.judge_target, real_t, fake_t)):
        score, fake_score = judge(real), judge(fake.detach())
        torch.autograd.backward(
            (mse(score, torch.ones_like(score)) + mse(fake_score, torch.zeros_like(fake_score))) * 0.5
        )
    optimizers.discriminators.step()


def optimizers_of(nets: CycleGANNetworks) -> Optimizers:
    # Not Adam: the biases in front of InstanceNorm have gradients of pure rounding, which it would blow up.
    pairs = nn.ModuleList(nets[:2]), nn.ModuleList(nets[2:])
    return Optimizers(*(torch.optim.SGD(pair.parameters(), 0.05, momentum=0.9) for pair in pairs))


def test_step_agrees_with_the_plain_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    nets = CycleGANNetworks(*(network.double() for network in CycleGANNetworks.build(TINY)))
    twins = copy.deepcopy(nets)
    batches = [{name: torch.rand(1, 1, 32, 32).double() * 2 - 1 for name in ("source", "target")} for _ in range(2)]
    optimizers, plain_optimizers = optimizers_of(nets), optimizers_of(twins)
    run = Run(RunSettings(out=tmp_path / "run", device="cpu"))
    with run:
        for batch in batches:
            # Pools that are not full let everything through.
            losses = cyclegan_step(run, nets, optimizers, batch, Pools(ImagePool(), ImagePool()))
            plain_step(twins, plain_optimizers, batch)
    assert set(losses) == {"adversarial", "cycle", "identity", "discriminator"}
    assert not any(loss.requires_grad for loss in losses.values())
    for network, twin in zip(nets, twins, strict=True):
        for one, other in zip(network.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_discriminators_see_the_pool(tmp_path: Path) -> None:
    torch.manual_seed(0)
    nets = CycleGANNetworks.build(TINY)
    batch = {name: torch.rand(1, 1, 32, 32) for name in ("source", "target")}
    old = torch.full((1, 32, 32), 0.25)
    pools = Pools(ImagePool(size=1), ImagePool(size=1))
    seen: list[Tensor] = []
    nets.judge_source.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    with Run(RunSettings(out=tmp_path / "run", device="cpu")) as run:
        for _ in range(12):
            for pool in pools:
                pool._images = [old]
            seen.clear()
            cyclegan_step(run, nets, optimizers_of(nets), batch, pools)
            if torch.equal(seen[-1][1], old):
                break
    assert torch.equal(seen[-1][0], batch["source"][0])
    assert torch.equal(seen[-1][1], old)


def test_batches_hold_every_filled_source_slice_once_per_epoch() -> None:
    sources, targets = [head(0), head(1, (50, 30, 4))], [head(2, (64, 64, 3))]
    batches = cyclegan_batches(sources, targets, 64, seed=1)
    assert batches.size == 5 + 3
    seen = []
    for step in range(batches.size):
        batch = batches.batch(step)
        assert batch["source"].shape == batch["target"].shape == (1, 1, 64, 64)
        assert float(batch["source"].min()) >= -1 - 1e-6
        assert float(batch["source"].max()) <= 1 + 1e-6
        assert float(batch["target"].max()) > -1  # blank slices are left out
        seen.append(float(batch["source"].double().sum()))
    assert len(set(seen)) == batches.size
    # A slice that has the size already is only shifted to [-1, 1].
    own = [torch.from_numpy(targets[0][..., z]) * 2 - 1 for z in range(2)]
    assert any(torch.equal(batches.batch(0)["target"][0, 0], slice_) for slice_ in own)


def test_site_without_content() -> None:
    with pytest.raises(InputError, match="target scans hold no slice with content"):
        cyclegan_batches([head(0)], [np.zeros((8, 8, 2), np.float32)], 64, seed=0)


def trained_state(run: Run, settings: CycleGAN = TINY) -> dict[str, Tensor]:
    networks = train_cyclegan(run, [head(0), head(1)], [1 - head(2)], settings)
    return {
        f"{name}.{key}": value.clone()
        for name, network in networks._asdict().items()
        for key, value in network.state_dict().items()
    }


def test_training_resumes_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A pool of one, so that exchanges happen within the few steps.
    monkeypatch.setattr(baselines, "ImagePool", functools.partial(ImagePool, size=1))

    def run_settings(name: str, resume: bool = False) -> RunSettings:
        return RunSettings(out=tmp_path / name, device="cpu", checkpoint_every=2, resume=resume)

    with Run(run_settings("whole"), TINY) as run:
        whole = trained_state(run)

    step, calls = baselines.cyclegan_step, []

    def breaking_step(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("power cut")
        return step(*arguments)

    monkeypatch.setattr(baselines, "cyclegan_step", breaking_step)
    with pytest.raises(RuntimeError, match="power cut"), Run(run_settings("broken"), TINY) as run:
        trained_state(run)
    monkeypatch.setattr(baselines, "cyclegan_step", step)
    with Run(run_settings("broken", resume=True), TINY) as run:
        resumed = trained_state(run)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_training_brings_the_sites_together(tmp_path: Path) -> None:
    settings = CycleGAN(generator_width=8, blocks=1, image_size=64, steps=60, gan_learning_rate=1e-3)
    source, target = head(0), head(2) * 0.3
    with Run(RunSettings(out=tmp_path / "run", device="cpu")) as run:
        networks = train_cyclegan(run, [source], [target], settings)
    translated = CycleGANTransform(networks.to_source, 64)(torch.from_numpy(target))
    inside = source > 0.5
    before = abs(target[inside].mean() - source[inside].mean())
    after = abs(translated.numpy()[inside].mean() - source[inside].mean())
    assert after < 0.5 * before
    saved = CycleGANTransform.load(tmp_path / "run")
    assert saved.image_size == 64
    assert torch.equal(saved(torch.from_numpy(target)), translated)


def test_training_in_bfloat16(tmp_path: Path) -> None:
    settings = CycleGAN(generator_width=4, blocks=1, image_size=64, steps=2)
    with Run(RunSettings(out=tmp_path / "run", device="cpu", precision="bf16", channels_last=True)) as run:
        state = trained_state(run, settings)
    assert all(torch.isfinite(value).all() for value in state.values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_training_on_gpu(tmp_path: Path, precision: Any) -> None:
    with Run(RunSettings(out=tmp_path / "run", device="cuda", precision=precision)) as run:
        state = trained_state(run)
    assert all(value.is_cuda and torch.isfinite(value).all() for value in state.values())


def test_bad_settings(tmp_path: Path) -> None:
    with (
        Run(RunSettings(out=tmp_path / "run", device="cpu")) as run,
        pytest.raises(SettingError, match="--image-size is 66; give a multiple of 4"),
    ):
        trained_state(run, CycleGAN(image_size=66))


def test_several_processes_are_refused(tmp_path: Path) -> None:
    run = Run(RunSettings(out=tmp_path / "run", device="cpu"))
    run.world_size = 2
    with pytest.raises(SettingError, match="without torchrun"):
        trained_state(run)


# CycleGAN: use


def test_transform_with_an_identity_generator_gives_the_target_back() -> None:
    target = torch.rand(64, 64, 5)
    torch.testing.assert_close(CycleGANTransform(Scale(1.0), 64, batch_size=2)(target), target)
    negated = CycleGANTransform(Scale(-1.0), 64)(target)
    torch.testing.assert_close(negated, 1 - target)


def test_transform_resizes_there_and_back() -> None:
    target = torch.from_numpy(head(0))
    result = CycleGANTransform(Scale(1.0), 96)(target)
    assert result.shape == target.shape
    assert float((result - target).abs().mean()) < 0.06
    assert result.dtype == target.dtype
    assert CycleGANTransform(Scale(1.0), 96)(target.double()).dtype == torch.float64


def test_transform_does_not_depend_on_the_batch_size() -> None:
    torch.manual_seed(0)
    generator = CycleGANNetworks.build(TINY).to_source
    target = torch.from_numpy(head(0))
    one, all_at_once = (CycleGANTransform(generator, 64, size)(target) for size in (1, 6))
    torch.testing.assert_close(one, all_at_once, rtol=1e-4, atol=1e-5)
    assert not one.requires_grad


def test_files_that_hold_no_generator(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no generator\.safetensors; finish"):
        CycleGANTransform.load(tmp_path)
    other = tmp_path / "model.safetensors"
    for metadata in ({"network": "ResidualUNet2d", "width": "16"}, {"network": "ResnetGenerator", "width": "wide"}):
        save_weights(other, Scale(1.0), metadata)
        with pytest.raises(CheckpointError, match="holds no CycleGAN generator; give the run folder"):
            CycleGANTransform.load(other)
    save_weights(other, Scale(1.0), {"network": "ResnetGenerator", "width": "4", "blocks": "1", "image_size": "64"})
    with pytest.raises(CheckpointError):
        CycleGANTransform.load(other)
