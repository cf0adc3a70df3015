"""The kernels that run on a GPU, in Triton's interpreter: each gives what its plain counterpart gives."""

import importlib
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from bench.config import TrialConfig
from trainers.dropout import mixed
from trainers.optimizer import BETAS, EPSILON, RowOptimizer, _numbers

pytest.importorskip("triton")


@pytest.fixture(scope="module")
def kernels() -> ModuleType:
    if torch.cuda.is_available():
        pytest.skip("Triton's interpreter is for machines without a GPU")
    torch.manual_seed(0)
    return importlib.import_module("bench.kernels")


def assert_same(
    ours: tuple[torch.Tensor, ...], plain: tuple[torch.Tensor, ...], inputs: tuple[torch.Tensor, ...]
) -> None:
    """Values, and gradients for random ones of the outputs."""
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-5)
    ahead = tuple(torch.randn_like(output) for output in ours)
    gradients = zip(
        torch.autograd.grad(ours, inputs, ahead), torch.autograd.grad(plain, inputs, ahead), strict=True
    )
    for a, b in gradients:
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_gated_gelu(kernels: ModuleType) -> None:
    x = torch.randn(3, 5, 140, requires_grad=True)
    value, gate = x.chunk(2, dim=-1)
    assert_same((kernels.gated_gelu(x),), (value * F.gelu(gate),), (x,))


def test_add_layer_norm(kernels: ModuleType) -> None:
    x, update = (torch.randn(4, 7, 48, requires_grad=True) for _ in range(2))
    weight, bias = torch.randn(2, 48)
    plain = (x + update, F.layer_norm(x + update, (48,), weight, bias, 1e-5))
    assert_same(kernels.add_layer_norm(x, update, weight, bias, 1e-5), plain, (x, update))


@pytest.mark.parametrize(("channels", "groups", "side"), [(48, 8, 9), (96, 32, 16), (130, 13, 5)])
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("shifted", [True, False])
def test_group_norm(
    kernels: ModuleType, channels: int, groups: int, side: int, silu: bool, shifted: bool
) -> None:
    x = (torch.randn(3, channels, side, side) * 2 + 1).requires_grad_()
    shift = torch.randn(3, channels, requires_grad=True)
    weight, bias = torch.randn(2, channels)
    ours = kernels.group_norm(x, shift if shifted else None, groups, weight, bias, 1e-5, silu=silu)
    plain = F.group_norm(x + shift[:, :, None, None] if shifted else x, groups, weight, bias, 1e-5)
    assert_same((ours,), (F.silu(plain) if silu else plain,), (x, shift) if shifted else (x,))


def test_add(kernels: ModuleType) -> None:
    x, update = (torch.randn(2, 7, 3, 5, requires_grad=True) for _ in range(2))
    bias = torch.randn(7)
    assert_same((kernels.add(x, update, bias),), (x + update + bias[:, None, None],), (x, update))


def test_adamw(kernels: ModuleType) -> None:
    ours = [torch.randn(3, 50), torch.zeros(3, 50), torch.zeros(3, 50)]
    plain, begin_B, factors = ours[0].clone(), 20, torch.tensor([[1.0], [0.5], [4.0]])
    optimizer = RowOptimizer(plain, begin_B, factors, num_text=(3, 7))
    one = TrialConfig(rank=1, alpha=1, epochs=1, learning_rate=1e-3)
    changes: list[dict[str, float]] = [
        {},
        {"learning_rate": 1e-2, "max_grad_norm": 100, "lora_plus": 4, "text_encoder_learning_rate": 1e-4},
        {"learning_rate": 0.1, "max_grad_norm": 5, "text_encoder_learning_rate": 0.2},
    ]
    configs = [one.model_copy(update=each) for each in changes]
    rates = [config.learning_rate for config in configs]
    for step in range(3):
        gradient = torch.randn(3, 50)
        pairs = zip(configs, rates, strict=True)
        numbers = torch.tensor([_numbers(config, rate, step) for config, rate in pairs])
        norms = torch.cat([gradient[:, :begin_B], gradient[:, begin_B:] * factors], dim=1).norm(dim=1)
        kernels.adamw(*ours, gradient, (17, begin_B, 43, 50), factors, norms, numbers, BETAS, EPSILON)
        optimizer.update(plain, gradient, configs, rates, [step] * 3)
    for a, b in zip(ours, (plain, *optimizer.rows.values()), strict=True):
        torch.testing.assert_close(a, b)


def test_dropout_keeps_each_element_by_its_own_hash(kernels: ModuleType) -> None:
    x, keys = torch.ones(3, 8, 500), torch.randint(-(2**31), 2**31, (3, 4)).int()
    rates = torch.tensor([0.0, 0.1, 0.5])
    kept = kernels.keep(x, keys, (rates * 2**31).int())
    torch.testing.assert_close((kept == 0).float().mean((1, 2)), rates, atol=0.03, rtol=0)
    alone = kernels.keep(x[1:2], keys[1:2], (rates[1:2] * 2**31).int())
    assert torch.equal(alone[0], kept[1])
    places = torch.arange(2 * 500, dtype=torch.int32)
    hashed = mixed(mixed(places ^ keys[1, 0]) + keys[1, 0]) & 0x7FFFFFFF
    assert torch.equal(kept[1, :2].flatten() != 0, hashed >= int(0.1 * 2**31))


def test_masks_of_two_samples_agree_only_by_chance(kernels: ModuleType) -> None:
    keys = torch.tensor([[1, 2, 3, 2**30]], dtype=torch.int32)
    kept = kernels.keep(torch.ones(1, 4, 4096), keys, torch.tensor([2**30], dtype=torch.int32))[0]
    centred = kept - kept.mean(dim=1, keepdim=True)
    correlation = torch.corrcoef(centred)
    assert (correlation - torch.eye(4)).abs().max() < 0.07  # 4.5 standard errors of no correlation
