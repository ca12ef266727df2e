from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from torch import nn

from dart_core.data.slices import all_zero_slices, crop_or_pad, pad_to_multiple, predict_slices
from dart_core.errors import InputError


class TestPadding:
    def test_closed_form(self):
        x = np.array([[[5.0, 6, 7]], [[-1, 0, 3]]])  # two images of 1 x 3
        padded, crop = pad_to_multiple(x, 4)
        # Rows: 3 missing, 1 before and 2 behind; columns: 1 missing, none before.
        first = [[5, 5, 5, 5], [5, 6, 7, 5], [5, 5, 5, 5], [5, 5, 5, 5]]
        second = [[-1, -1, -1, -1], [-1, 0, 3, -1], [-1, -1, -1, -1], [-1, -1, -1, -1]]
        assert_array_equal(padded, [first, second])
        assert_array_equal(padded[crop], x)

    @given(
        leading=st.lists(st.integers(1, 3), max_size=3),
        height=st.integers(1, 20),
        width=st.integers(1, 20),
        multiple=st.integers(1, 9),
    )
    @settings(deadline=None)
    def test_properties_and_same_for_tensors_and_arrays(self, leading, height, width, multiple):
        x = np.random.default_rng(0).normal(size=(*leading, height, width)).astype(np.float32)
        before = x.copy()
        padded, crop = pad_to_multiple(x, multiple)
        assert padded.shape[:-2] == x.shape[:-2]
        for new, old in zip(padded.shape[-2:], x.shape[-2:], strict=True):
            assert new % multiple == 0
            assert 0 <= new - old < multiple
        assert_array_equal(padded[crop], x)
        assert_array_equal(padded.min((-2, -1)), x.min((-2, -1)))
        outside = np.ones(padded.shape, bool)
        outside[crop] = False
        assert_array_equal(padded[outside], np.broadcast_to(x.min((-2, -1), keepdims=True), padded.shape)[outside])
        assert (crop[1].start, crop[2].start) == ((padded.shape[-2] - height) // 2, (padded.shape[-1] - width) // 2)
        tensor, tensor_crop = pad_to_multiple(torch.from_numpy(x), multiple)
        assert_array_equal(tensor.numpy(), padded)
        assert tensor_crop == crop
        assert_array_equal(x, before)

    def test_nothing_to_do_gives_the_input_itself(self):
        x = torch.zeros(2, 16, 8)
        assert pad_to_multiple(x)[0] is x

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
    def test_keeps_type_and_gradient(self, dtype):
        x = torch.ones(1, 3, 3, dtype=dtype, requires_grad=True)
        padded, crop = pad_to_multiple(x)
        assert padded.dtype == dtype
        padded[crop].sum().backward()
        assert_array_equal(x.grad.float(), np.ones((1, 3, 3)))

    @pytest.mark.parametrize(("shape", "multiple"), [((0, 3), 8), ((3, 0), 8), ((3, 3), 0)])
    def test_empty(self, shape, multiple):
        with pytest.raises(InputError):
            pad_to_multiple(np.zeros(shape), multiple)


class TestCrop:
    @given(
        shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
        size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
        seed=st.integers(0, 1000),
    )
    def test_image_and_mask_are_cut_alike_and_short_sides_centred(self, shape, size, seed):
        # Every voxel names its own place; the mask is the image's own value, so that both can be compared.
        image = 100.0 + np.arange(shape[0] * shape[1], dtype=np.float32).reshape(shape)
        mask = image.astype(np.int32)
        new_image, new_mask = crop_or_pad(image, mask, size, np.random.default_rng(seed))
        assert new_image.shape == new_mask.shape == size
        assert (new_image.dtype, new_mask.dtype) == (np.float32, np.int32)
        inside = new_mask > 0
        assert_array_equal(new_image[inside], new_mask[inside])
        assert_array_equal(new_image[~inside], image.min())
        first = int(new_mask[inside][0]) - 100
        rows, columns = min(shape[0], size[0]), min(shape[1], size[1])
        top, left = max(size[0] - shape[0], 0) // 2, max(size[1] - shape[1], 0) // 2
        row, column = divmod(first, shape[1])
        expected = np.zeros(size, np.int32)
        expected[top : top + rows, left : left + columns] = mask[row : row + rows, column : column + columns]
        assert_array_equal(new_mask, expected)

    def test_all_places_are_drawn_equally_often(self):
        image = np.arange(20.0).reshape(4, 5)
        rng = np.random.default_rng(0)
        corners = [crop_or_pad(image, image, (2, 3), rng)[0][0, 0] for _ in range(9000)]
        values, counts = np.unique(corners, return_counts=True)
        assert_array_equal(values, [0, 1, 2, 5, 6, 7, 10, 11, 12])
        assert (np.abs(counts - 1000) < 150).all()  # five standard deviations

    def test_one_number_is_a_square(self):
        image = np.zeros((9, 9))
        assert crop_or_pad(image, image, 4, np.random.default_rng(0))[0].shape == (4, 4)

    @pytest.mark.parametrize("mask_shape", [(4, 5), (5, 4, 1), (5,)])
    def test_shapes_that_do_not_fit(self, mask_shape):
        with pytest.raises(InputError, match=r"\(5, 4\)"):
            crop_or_pad(np.zeros((5, 4)), np.zeros(mask_shape), 2, np.random.default_rng(0))

    def test_not_a_slice(self):
        with pytest.raises(InputError, match="2-D"):
            crop_or_pad(np.zeros((5, 4, 3)), np.zeros((5, 4, 3)), 2, np.random.default_rng(0))


class Recorder(nn.Module):
    """Doubles its input and notes what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))
        self.norm = nn.BatchNorm2d(1)
        self.frozen = nn.BatchNorm2d(1).eval()
        self.seen: list[torch.Tensor] = []
        self.modes: list[bool] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x.clone())
        self.modes.append(self.training or self.norm.training)
        assert torch.is_inference_mode_enabled()
        return self.factor * x


class TestPredict:
    @pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
    @pytest.mark.parametrize("shape", [(5, 11, 7), (8, 16, 1), (1, 1, 4)])
    def test_slices_go_in_padded_and_come_back_in_place(self, shape, batch_size):
        volume = torch.randn(shape)
        network = Recorder()
        logits = predict_slices(network, volume, batch_size)
        torch.testing.assert_close(logits, 2 * volume)
        seen = torch.cat(network.seen)
        expected, _ = pad_to_multiple(volume.permute(2, 0, 1))
        assert_array_equal(seen[:, 0], expected)
        assert max(len(x) for x in network.seen) <= batch_size

    def test_modes_are_put_back_and_gradients_are_off(self):
        network = Recorder()
        network.train()
        network.frozen.eval()
        logits = predict_slices(network, torch.randn(4, 4, 3))
        assert network.modes == [False]
        assert [m.training for m in network.modules()] == [True, True, False]
        assert not logits.requires_grad
        logits.sigmoid_()  # an ordinary tensor, no inference tensor
        (logits * network.factor).sum().backward()
        assert network.factor.grad is not None

    def test_modes_are_put_back_after_an_error(self):
        class Broken(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                raise RuntimeError("no")

        network = Broken().train()
        with pytest.raises(RuntimeError, match="no"):
            predict_slices(network, torch.zeros(2, 2, 2))
        assert network.training

    def test_float64_and_autocast(self):
        volume = torch.randn(8, 8, 2, dtype=torch.float64)
        assert_array_equal(predict_slices(Recorder().double(), volume), 2 * volume)
        network = nn.Conv2d(1, 1, 3, padding=1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert predict_slices(network, volume.float()).dtype == torch.float32

    def test_the_volume_may_be_a_view(self):
        volume = torch.randn(3, 8, 8).permute(1, 2, 0)
        torch.testing.assert_close(predict_slices(Recorder(), volume), 2 * volume)

    def test_a_network_of_other_output(self):
        with pytest.raises(InputError, match="one output channel"):
            predict_slices(nn.Conv2d(1, 2, 1), torch.zeros(8, 8, 2))
        with pytest.raises(InputError, match="one output channel"):
            predict_slices(nn.Conv2d(1, 1, 3), torch.zeros(8, 8, 2))

    def test_not_a_volume(self):
        with pytest.raises(InputError, match="3-D"):
            predict_slices(Recorder(), torch.zeros(1, 8, 8, 2))

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    def test_on_a_gpu(self):
        volume = torch.randn(13, 9, 5)
        logits = predict_slices(Recorder().cuda(), volume, batch_size=2)
        assert logits.device.type == "cpu"
        torch.testing.assert_close(logits, 2 * volume)
        on_device = predict_slices(Recorder().cuda(), volume.cuda())
        assert on_device.device.type == "cuda"
        torch.testing.assert_close(on_device.cpu(), 2 * volume)


def test_all_zero_slices():
    volume = np.zeros((3, 4, 6), np.float32)
    volume[1, 2, 1] = 1e-30
    volume[0, 0, 3] = -1
    volume[2, 3, 4] = np.nan
    assert all_zero_slices(volume) == [0, 2, 5]
    assert all_zero_slices(torch.from_numpy(volume)) == [0, 2, 5]
    assert all_zero_slices(np.ones((2, 2, 2))) == []
