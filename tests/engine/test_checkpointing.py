"""Gradient checkpointing saves memory and changes no gradient: what is computed again is the same."""

from collections.abc import Iterator

import pytest
import torch

from bench.base import BaseModel, TrainingData
from bench.config import TrialConfig
from bench.denoising import DenoisingLoss
from trainers.lora import Slots
from trainers.samples import batch, draw, together

CONFIGS = [
    TrialConfig(rank=4, alpha=8, learning_rate=1e-3, epochs=1, seed=1, batch_size=2, target_modules="all"),
    TrialConfig(rank=2, alpha=4, learning_rate=1e-3, epochs=1, seed=2, batch_size=2),
]


@pytest.fixture
def checkpointing(base: BaseModel) -> Iterator[None]:
    base.unet.enable_gradient_checkpointing()
    yield
    base.unet.disable_gradient_checkpointing()


def step(
    base: BaseModel, data: TrainingData, dropout: float, dora: bool = False
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Losses (K,), gradient (K, P) and the bytes that were saved for the backward pass, of one step."""
    configs = [config.model_copy(update={"dropout": dropout, "dora": dora}) for config in CONFIGS]
    drawn = together([draw(data, config, 3) for config in configs]).to(base.device)
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with Slots(base.unet, configs, configs[0].batch_size) as slots:
        with torch.no_grad():  # B is zero at the start, and so would be all gradients of A
            noise = torch.randn(slots.weights.shape, generator=torch.Generator().manual_seed(4))
            slots.weights += 0.02 * noise.to(base.device)
        slots.train(drawn.keys.view(len(configs), -1))
        samples = batch(data.buckets[0], data.empty, drawn)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            losses = DenoisingLoss(base)(samples).view(len(configs), -1).mean(dim=1)
        return losses.detach(), slots.gradient(losses.sum()), sum(saved.values())


def is_same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """To the bit on a CPU; a GPU adds in an order of its own."""
    return torch.equal(a, b) if a.device.type == "cpu" else torch.allclose(a, b, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_are_the_same_for_less_memory(
    base: BaseModel, data: TrainingData, dropout: float, dora: bool, request: pytest.FixtureRequest
) -> None:
    losses, gradient, memory = step(base, data, dropout, dora)
    request.getfixturevalue("checkpointing")
    again, of_less, less_memory = step(base, data, dropout, dora)
    assert is_same(again, losses)
    assert is_same(of_less, gradient)
    assert gradient.norm() > 0
    assert less_memory < 0.5 * memory


@pytest.mark.usefixtures("checkpointing")
def test_the_mode_of_the_unet_does_not_matter(base: BaseModel, data: TrainingData) -> None:
    """Nothing of it acts otherwise in training, and the base must stay as it is while images are drawn."""
    losses, gradient, memory = step(base, data, 0.3)
    base.unet.train()
    try:
        again, same, as_little = step(base, data, 0.3)
    finally:
        base.unet.eval()
    assert is_same(again, losses) and is_same(same, gradient)
    assert as_little == memory
