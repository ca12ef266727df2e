"""The stand-in refuses what CUDA refuses, and computes what the CPU computes (`nox -s cuda_stand_in`)."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.gpu


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 2))


def test_tensors_of_two_devices() -> None:
    x = torch.rand(4, 3, device="cuda")
    assert x.is_cuda
    for wrong in (
        lambda: x + torch.ones(3),
        lambda: torch.ones(3) * x,
        lambda: torch.cat([x, torch.ones(1, 3)]),
        lambda: x @ torch.ones(3),
        lambda: x.mean(1).add_(torch.ones(4)),
        lambda: torch.ones(4, 3).add_(x),
        lambda: torch.ones(4, 3)[x > 0.5],
        lambda: x.gather(1, torch.zeros(4, 1, dtype=torch.long)),
        lambda: nn.Linear(3, 2)(x),
        lambda: torch.stack([x[0, 0], torch.tensor(1.0)]),
    ):
        with pytest.raises(RuntimeError, match="same device"):
            wrong()
    # What CUDA allows: numbers, indices and masks of the CPU, and copies.
    torch.testing.assert_close((x + torch.tensor(1.0)).cpu(), x.cpu() + 1)
    assert x[torch.tensor([0, 2])].shape == (2, 3)
    x[0] = torch.tensor(7.0)
    assert x[0].tolist() == [7, 7, 7]
    assert x.copy_(torch.zeros(4, 3)).sum().item() == 0


def test_numpy_and_generators() -> None:
    with pytest.raises(TypeError, match="can't convert cuda"):
        torch.rand(2, device="cuda").numpy()
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(2, device="cuda", generator=torch.Generator().manual_seed(0))
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(2, device="cuda").uniform_(generator=torch.Generator())
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(2, generator=torch.Generator("cuda"))
    drawn = [torch.rand(2, device="cuda", generator=torch.Generator("cuda").manual_seed(3)).tolist() for _ in range(2)]
    assert drawn[0] == drawn[1]


def test_operations_without_a_kernel() -> None:
    x = torch.rand(4, 4, device="cuda")
    with pytest.raises(NotImplementedError, match=r"for_cpu.*CUDA"):
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(x[None, None], x[None, None], x[None, None])


def test_training_is_that_of_the_cpu() -> None:
    x, y = torch.rand(8, 1, 8, 8), torch.arange(8) % 2
    losses = {}
    for device in ("cpu", "cuda"):
        net = network()
        optimizer = torch.optim.Adam(net.parameters())  # before the module moves: it keeps its parameters
        net.to(device)
        assert all(parameter.device.type == device for parameter in net.parameters())
        losses[device] = []
        for _ in range(4):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x.to(device)), y.to(device))
            loss.backward()
            optimizer.step()
            losses[device].append(loss.item())
    assert losses["cpu"] == losses["cuda"]
    assert losses["cuda"][-1] < losses["cuda"][0]


def test_half_precision() -> None:
    net = network().cuda()
    with torch.autocast("cuda", torch.float16):
        logits = net(torch.rand(8, 1, 8, 8, device="cuda"))
    assert logits.dtype == torch.float16
    scaler = torch.amp.GradScaler("cuda")
    scaler.scale(logits.float().mean()).backward()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = [parameter.tolist() for parameter in net.parameters()]
    scaler.step(optimizer)
    scaler.update()
    assert before != [parameter.tolist() for parameter in net.parameters()]


def test_memory_of_tensors() -> None:
    before = torch.cuda.memory_allocated()
    x = torch.zeros(1000, device="cuda", requires_grad=True)
    view = x.detach()[:10]
    assert torch.cuda.memory_allocated() - before == 4000
    torch.cuda.reset_peak_memory_stats()
    y = x.exp()  # its backward pass needs the result
    loss = y.sum()
    del y
    assert torch.cuda.memory_allocated() - before == 8004
    loss.backward()
    del loss
    gradient = x.grad
    assert torch.cuda.memory_allocated() - before == 8000
    del x, gradient
    assert torch.cuda.memory_allocated() - before == 4000
    del view
    assert torch.cuda.memory_allocated() == before
    assert torch.cuda.max_memory_allocated() - before >= 12004
    torch.cuda.reset_peak_memory_stats()
    assert torch.cuda.max_memory_allocated() == before


def test_files_and_copies() -> None:
    net = network().cuda()
    other = copy.deepcopy(net)
    assert all(isinstance(parameter, nn.Parameter) and parameter.is_cuda for parameter in other.parameters())
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    loaded = torch.load(file, map_location="cpu", weights_only=True)
    assert {name: value.tolist() for name, value in loaded.items()} == {
        n: v.tolist() for n, v in net.state_dict().items()
    }
