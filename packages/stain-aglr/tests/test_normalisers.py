"""Macenko and Vahadane: closed forms, independent implementations, properties (specification 4.2, 4.3, 8.8 to 8.12)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from stain_aglr import MacenkoNormalizer, VahadaneNormalizer
from stain_aglr import normalisers as nm
from stain_aglr.lab import tissue_mask

STAINS = np.array([[0.65, 0.70, 0.29], [0.25, 0.85, 0.46]])
STAINS /= np.linalg.norm(STAINS, axis=1, keepdims=True)
Normaliser = MacenkoNormalizer | VahadaneNormalizer
BOTH = pytest.mark.parametrize("kind", [MacenkoNormalizer, VahadaneNormalizer])


def patch(
    seed: int = 0, size: int = 64, stains: NDArray[Any] = STAINS, strength: tuple[float, float] = (1.0, 1.0)
) -> Any:
    """Nuclei and stroma by Beer and Lambert, with glass at the left."""
    rng = np.random.default_rng(seed)
    nuclei = rng.random((size, size)) < 0.35
    haematoxylin = np.where(nuclei, rng.uniform(0.7, 1.6, (size, size)), rng.uniform(0, 0.15, (size, size)))
    eosin = np.where(nuclei, rng.uniform(0, 0.2, (size, size)), rng.uniform(0.3, 1.2, (size, size)))
    amounts = np.stack([haematoxylin, eosin], 2) * strength
    amounts[:, : size // 8] = 0
    return np.clip(np.rint(255 * np.exp(-amounts @ stains)), 0, 255).astype(np.uint8)


def batch(*images: NDArray[np.uint8]) -> Tensor:
    return torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image in images])


def levels(a: Any, b: Any) -> int:
    return int(np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).max())


# --- Macenko ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fitted", [False, True])
def test_macenko_equals_torchstain(fitted: bool) -> None:
    peer = pytest.importorskip("torchstain.numpy.normalizers.macenko").NumpyMacenkoNormalizer()
    ours = MacenkoNormalizer()
    if fitted:
        peer.fit(patch(1))
        ours.fit(patch(1))
    np.testing.assert_allclose(ours.stain_matrix, peer.HERef.T, atol=1e-9)
    np.testing.assert_allclose(ours.max_concentrations, peer.maxCRef, rtol=1e-9)
    for seed in (2, 3):
        expected = peer.normalize(patch(seed), stains=False)[0]
        assert levels(ours.transform(patch(seed)), expected) <= 1
        assert levels(ours.normalise_batch(batch(patch(seed)))[0].permute(1, 2, 0), expected) <= 1


def test_macenko_by_the_formulas() -> None:
    image = patch(4)
    od = -np.log((image.reshape(-1, 3).astype(float) + 1) / 240)
    tissue = od[(od >= 0.15).all(1)]
    _, axes = np.linalg.eigh(np.cov(tissue.T))
    angle = np.arctan2(tissue @ axes[:, 2], tissue @ axes[:, 1])
    ends = np.percentile(angle, [1, 99])
    matrix = np.stack([np.cos(ends), np.sin(ends)], 1) @ axes[:, 1:].T
    matrix = matrix[np.argsort(-matrix[:, 0])]
    amounts = np.linalg.lstsq(matrix.T, od.T, rcond=None)[0]
    fitted = MacenkoNormalizer().fit(image)
    np.testing.assert_allclose(fitted.stain_matrix, matrix, atol=1e-9)
    np.testing.assert_allclose(fitted.max_concentrations, np.percentile(amounts, 99, axis=1), rtol=1e-9)


def test_unfitted_macenko_has_the_default_reference() -> None:
    reference = MacenkoNormalizer()
    assert reference.stain_matrix.tolist() == [[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]]
    assert reference.max_concentrations.tolist() == [1.9705, 1.0308]


@pytest.mark.parametrize("signs", [(1, -1, 1), (1, 1, -1), (-1, -1, -1)])
def test_signs_of_eigenvectors_do_not_matter(signs: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = MacenkoNormalizer().fit(patch(1))
    eigh = torch.linalg.eigh

    def flipped(matrix: Tensor) -> Any:
        values, vectors = eigh(matrix)
        return torch.return_types.linalg_eigh((values, vectors * torch.tensor(signs).to(vectors)))

    monkeypatch.setattr(torch.linalg, "eigh", flipped)
    again = MacenkoNormalizer().fit(patch(1))
    np.testing.assert_allclose(again.stain_matrix, expected.stain_matrix, atol=1e-12)
    np.testing.assert_allclose(again.max_concentrations, expected.max_concentrations, atol=1e-12)


# --- Vahadane --------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), sparsity=st.sampled_from([0.01, 0.1]))
def test_unmixing_is_scikit_learns_lasso(seed: int, sparsity: float) -> None:
    from sklearn.linear_model import Lasso

    rng = np.random.default_rng(seed)
    matrix = rng.random((2, 3))
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    od = rng.random((3, 6)) * rng.choice([0.05, 0.3, 2.0], 6)
    c = nm.unmix(torch.from_numpy(od)[None], torch.from_numpy(matrix)[None], sparsity)[0].numpy()
    lasso = Lasso(alpha=sparsity / 3, positive=True, fit_intercept=False, tol=1e-14, max_iter=100_000)
    np.testing.assert_allclose(c, lasso.fit(matrix.T, od).coef_.T, atol=1e-6)


def test_unmixing_meets_the_optimality_conditions() -> None:
    image = batch(patch(0))
    od = (image.flatten(2).double().clamp(min=1) / 255).log().neg().clamp(min=1e-6)
    matrix = torch.from_numpy(STAINS)[None]
    c = nm.unmix(od, matrix, 0.1)
    slope = matrix @ (matrix.mT @ c - od) + 0.1
    assert (c >= 0).all()
    assert (slope >= -1e-12).all()
    assert (slope * c).abs().max() < 1e-12
    assert all((c[0] > 0).sum(0).eq(active).any() for active in (0, 1, 2))


def test_parallel_atoms_share_nothing() -> None:
    matrix = torch.tensor([[[0.6, 0.8, 0.0], [0.6, 0.8, 0.0]]], dtype=torch.float64)
    c = nm.unmix(torch.tensor([[[0.6], [0.8], [0.3]]], dtype=torch.float64), matrix, 0.1)
    assert (c.sum(1) - 0.9).abs().max() < 1e-12  # W od - 0.1 = 1 - 0.1, on one of them or on both


def test_dictionary_equals_scikit_learns() -> None:
    from sklearn.decomposition import dict_learning

    image = patch(5, 24)
    pixels = image.reshape(-1, 3)[tissue_mask(batch(image)).flatten().numpy()]
    od = np.maximum(-np.log(np.maximum(pixels, 1) / 255), 1e-6)
    start = np.array([[0.5, 0.8, 0.3], [0.2, 0.9, 0.3]])
    start /= np.linalg.norm(start, axis=1, keepdims=True)
    _, rows, _ = dict_learning(
        od, 2, alpha=0.1, max_iter=3000, tol=1e-13, method="cd", positive_dict=True, positive_code=True,
        dict_init=start, code_init=np.ones((len(od), 2)), method_max_iter=3000, random_state=0,
    )  # fmt: skip
    rows = rows[np.argsort(-rows[:, 0])]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    ours = nm.vahadane_stains(batch(image), torch.float64).matrix[0].numpy()
    np.testing.assert_allclose(ours, rows, atol=1e-4)


def test_dictionary_cannot_be_bettered() -> None:
    """SciPy, free to choose rows of any length up to 1, finds nothing lower near by or far away."""
    from scipy.optimize import minimize

    image = batch(patch(6, 16))
    od = (image.flatten(2).double().clamp(min=1) / 255).log().neg().clamp(min=1e-6)[:, :, tissue_mask(image).flatten()]

    def objective(values: NDArray[np.float64]) -> float:
        rows = torch.from_numpy(values.reshape(1, 2, 3)).clamp(min=0)
        rows = rows / rows.norm(dim=2, keepdim=True).clamp(min=1)
        c = nm.unmix(od, rows, 0.1)
        return float((0.5 * (od - rows.mT @ c).square().sum(1) + 0.1 * c.sum(1)).mean())

    ours = nm.stain_dictionary(od, torch.ones(1, od.shape[2], dtype=torch.bool))[0].numpy()
    lowest = objective(ours.ravel())
    rng = np.random.default_rng(0)
    for start in (ours.ravel(), rng.random(6), rng.random(6)):
        result = minimize(
            objective, start, method="Nelder-Mead", options={"maxiter": 800, "xatol": 1e-9, "fatol": 1e-13}
        )
        assert result.fun >= lowest - 1e-9


@pytest.mark.parametrize("seed", range(4))
def test_dictionary_does_not_depend_on_the_start(seed: int) -> None:
    image = batch(patch(7))
    od = (image.flatten(2).double().clamp(min=1) / 255).log().neg().clamp(min=1e-6)
    tissue = tissue_mask(image).flatten(1)
    start = torch.rand(2, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = nm.stain_dictionary(od, tissue)
    assert (nm.stain_dictionary(od, tissue, start) - expected).abs().max() < 1e-6


def test_order_of_pixels_does_not_matter_to_vahadane() -> None:
    image = patch(8)
    shuffled = np.random.default_rng(0).permutation(image.reshape(-1, 3)).reshape(image.shape)
    one, other = VahadaneNormalizer().fit(image), VahadaneNormalizer().fit(shuffled)
    np.testing.assert_allclose(one.stain_matrix, other.stain_matrix, atol=1e-6)
    np.testing.assert_allclose(one.max_concentrations, other.max_concentrations, rtol=1e-6)


def test_strength_of_one_stain_hardly_moves_vahadanes_matrix() -> None:
    weak, strong = VahadaneNormalizer().fit(patch(9)), VahadaneNormalizer().fit(patch(9, strength=(1.0, 1.5)))
    assert np.abs(weak.stain_matrix - strong.stain_matrix).max() < 0.02
    assert strong.max_concentrations[1] / weak.max_concentrations[1] == pytest.approx(1.5, abs=0.06)


def test_luminosity_makes_the_glass_white_and_is_an_option() -> None:
    dark = (patch(10) * 0.7).astype(np.uint8)
    plain, bright = VahadaneNormalizer().fit(dark), VahadaneNormalizer(standardise_luminosity=True).fit(dark)
    assert np.abs(plain.stain_matrix - bright.stain_matrix).max() > 0.01
    white = nm.luminosity_standardised(batch(dark))[0].permute(1, 2, 0).numpy()
    assert white[:, 0].min() >= 250
    cv2 = pytest.importorskip("cv2")
    lab = cv2.cvtColor(dark, cv2.COLOR_RGB2LAB)
    lab[..., 0] = np.clip(255 * lab[..., 0].astype(float) / np.percentile(lab[..., 0].astype(float), 95), 0, 255)
    # OpenCV rounds L, a and b to 8 bits on the way.
    assert levels(white, cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)) <= 8
    assert np.abs(white.astype(float) - cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)).mean() < 1.5


# --- Both ------------------------------------------------------------------------------------------------------------


@BOTH
def test_known_stains_are_found(kind: type[Normaliser]) -> None:
    fitted = kind().fit(patch(11, 128))
    assert fitted.stain_matrix is not None
    assert fitted.stain_matrix.shape == (2, 3)
    np.testing.assert_allclose(np.linalg.norm(fitted.stain_matrix, axis=1), 1, atol=1e-9)
    assert np.abs(fitted.stain_matrix - STAINS).max() < 0.12
    assert fitted.stain_matrix[0, 0] > fitted.stain_matrix[1, 0]


@BOTH
def test_a_patch_normalised_to_itself_hardly_changes(kind: type[Normaliser]) -> None:
    image = patch(12)
    result = kind().fit(image).transform(image)
    assert result.shape == image.shape
    assert result.dtype == np.uint8
    tissue = image.max(2) < 200
    # Vahadane's lasso shrinks every concentration by up to 0.01 / (1 - cosine of the stains).
    assert np.abs(result[tissue].astype(int) - image[tissue]).mean() < 4


@BOTH
def test_another_laboratorys_patch_gets_the_references_stains(kind: type[Normaliser]) -> None:
    other = np.array([[0.50, 0.70, 0.51], [0.22, 0.80, 0.56]])
    normaliser = kind().fit(patch(13))
    result = normaliser.transform(patch(13, stains=other, strength=(0.7, 1.4)))
    before = np.abs(patch(13, stains=other, strength=(0.7, 1.4)).astype(float) - patch(13)).mean()
    assert np.abs(result.astype(float) - patch(13)).mean() < 0.35 * before
    again = kind().fit(result)
    assert np.abs(again.stain_matrix - normaliser.stain_matrix).max() < 0.05  # type: ignore[operator]


@BOTH
@pytest.mark.parametrize(
    "image",
    [
        np.full((32, 32, 3), 255, np.uint8),
        np.full((32, 32, 3), 230, np.uint8),
        np.full((1, 1, 3), 250, np.uint8),
        np.full((5, 7, 3), (236, 240, 244), np.uint8),
    ],
    ids=["white", "glass", "one pixel", "tinted"],
)
def test_a_blank_patch_comes_back_unchanged(kind: type[Normaliser], image: NDArray[np.uint8]) -> None:
    normaliser = kind().fit(patch(0))
    assert np.array_equal(normaliser.transform(image), image)
    with pytest.raises(ValueError, match="no stained tissue"):
        kind().fit(image)


@BOTH
@pytest.mark.parametrize("colour", [0, 120, (150, 100, 170)], ids=["black", "grey", "violet"])
@pytest.mark.parametrize("size", [1, 2, 16])
def test_one_colour_is_left_alone(kind: type[Normaliser], colour: Any, size: int) -> None:
    image = np.full((size, size, 3), colour, np.uint8)
    assert np.array_equal(kind().fit(patch(0)).transform(image), image)


def test_vahadane_leaves_grey_alone() -> None:
    """Shades of one colour are one stain."""
    shades = np.repeat(np.arange(10, 202, 3, dtype=np.uint8).reshape(8, 8, 1), 3, axis=2)
    assert np.array_equal(VahadaneNormalizer().fit(patch(0)).transform(shades), shades)


@BOTH
def test_a_batch_is_its_patches(kind: type[Normaliser]) -> None:
    images = [patch(0), np.full((64, 64, 3), 255, np.uint8), patch(1), np.zeros((64, 64, 3), np.uint8), patch(2)]
    normaliser = kind().fit(patch(3))
    together = normaliser.normalise_batch(batch(*images))
    assert together.dtype == torch.uint8
    for image, result in zip(images, together, strict=True):
        assert levels(result.permute(1, 2, 0), normaliser.transform(image)) <= 1
    assert normaliser.normalise_batch(together[:0]).shape == (0, 3, 64, 64)


@BOTH
def test_the_glass_does_not_wrap_around(kind: type[Normaliser]) -> None:
    result = kind().fit(patch(0)).transform(patch(1))
    assert result[:, :4].min() >= 230


@BOTH
def test_the_input_is_not_written_to(kind: type[Normaliser]) -> None:
    image = patch(0)
    image[0, :9] = 0
    image.flags.writeable = False
    kept, images = image.copy(), batch(image.copy())
    normaliser = kind().fit(image)
    normaliser.transform(image)
    normaliser.normalise_batch(images)
    assert np.array_equal(image, kept)
    assert np.array_equal(images[0].permute(1, 2, 0).numpy(), kept)


@BOTH
@pytest.mark.parametrize(
    "image",
    [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3)), np.zeros((0, 8, 3), np.uint8)],
)
def test_other_pictures_are_refused(kind: type[Normaliser], image: Any) -> None:
    with pytest.raises(ValueError, match=r"give uint8 \(H, W, 3\)"):
        MacenkoNormalizer().transform(image)
    with pytest.raises(ValueError, match=r"give uint8 \(H, W, 3\)"):
        kind().fit(image)
    with pytest.raises(ValueError, match=r"give uint8 \(N, 3, H, W\)"):
        MacenkoNormalizer().normalise_batch(torch.from_numpy(image))


def test_vahadane_needs_a_reference() -> None:
    with pytest.raises(ValueError, match="no reference yet"):
        VahadaneNormalizer().transform(patch(0))


@settings(deadline=None)
@given(
    values=st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=80),
    tail=st.sampled_from([0.01, 0.05, 0.3]),
    left_out=st.integers(0, 30),
)
def test_tail_percentile_is_numpys(values: list[float], tail: float, left_out: int) -> None:
    padded = torch.tensor([*values, *[-float("inf")] * left_out], dtype=torch.float64)
    result = nm.tail_percentile(padded, tail, torch.tensor(len(values)))
    assert float(result) == pytest.approx(np.percentile(values, 100 - 100 * tail), abs=1e-9)


def test_reference_is_nearest_to_the_mean() -> None:
    assert nm.nearest_to_mean(torch.tensor([[0.0, 0, 0], [4, 4, 4], [9, 9, 9], [1, 9, 0]]))[0] == 1


@pytest.mark.gpu
@BOTH
def test_on_a_gpu(kind: type[Normaliser]) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    images = batch(patch(0), patch(1))
    normaliser = kind().fit(patch(3))
    assert levels(normaliser.normalise_batch(images.cuda()).cpu(), normaliser.normalise_batch(images)) <= 1


LONG = nm.SAMPLE_EVERY * nm.SAMPLE_EVERY + 7


@pytest.mark.parametrize("count", [1, 12, 40, LONG])
def test_largest_values_of_any_row(count: int) -> None:
    """Also where the sample, every 32nd value, says nothing or the wrong thing about the row."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(8, LONG, generator=generator)
    rows[1] = rows[1].sort().values
    rows[2] = 1.0
    rows[3, nm.SAMPLE_EVERY :] = -torch.inf
    rows[4] = -torch.inf
    rows[5, :: nm.SAMPLE_EVERY] += 100
    rows[6, :: nm.SAMPLE_EVERY] -= 100
    rows[7] = rows[7].round()
    found = nm.largest(rows.view(2, 4, LONG), count)
    assert torch.equal(found, rows.topk(count).values.view(2, 4, count))
