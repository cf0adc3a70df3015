"""DoRA on slots against PEFT's own layers, with dropout too, beside slots without."""

import copy
import math

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from bench.base import BaseModel
from bench.config import TrialConfig
from trainers.dora import frozen_norms, norms
from trainers.lora import Slots

DORA = TrialConfig(
    rank=4, alpha=8, learning_rate=1e-3, epochs=1, target_modules="all", dora=True, dropout=0.25, seed=3
)
LORA = DORA.model_copy(update={"dora": False, "rank": 3, "alpha": 3})
MODULES = {
    "linear": "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0",
    "one of three": "mid_block.attentions.0.transformer_blocks.0.attn1.to_k",
    "convolution": "mid_block.resnets.0.conv1",
}


class Kept(nn.Module):
    """Dropout by a mask that is given."""

    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.mask


@pytest.mark.parametrize("dropouts", [(0.0, 0.0), (0.25, 0.0), (0.0, 0.5)], ids=str)
@pytest.mark.parametrize("module", MODULES)
def test_a_slot_gives_what_pefts_layer_gives(
    base: BaseModel, module: str, dropouts: tuple[float, float]
) -> None:
    """Outputs, and gradients of x and of all that is trained."""
    pairs = zip((DORA, LORA), dropouts, strict=True)
    configs = [config.model_copy(update={"dropout": dropout}) for config, dropout in pairs]
    generator = torch.Generator().manual_seed(0)
    with Slots(base.unet, configs, num_samples=2) as slots:
        for slot in range(2):
            adapter = slots.adapter(slot)
            for key, tensor in adapter.items():
                spread = 1 + torch.rand(tensor.shape, generator=generator)
                adapter[key] = tensor * spread if "magnitude" in key else spread - 1.5
            slots.load(slot, adapter)
        slots.train(torch.arange(4, dtype=torch.int32, device=base.device).view(2, 2))
        slotted = slots.modules[MODULES[module]]
        frozen = copy.deepcopy(slotted.frozen)
        shape = (frozen.in_channels, 6, 6) if isinstance(frozen, nn.Conv2d) else (5, frozen.in_features)  # type: ignore[union-attr]
        x = torch.randn(4, *shape, generator=generator).to(base.device).requires_grad_()
        kept = torch.ones_like(x)
        if slotted.group.mask:  # which is of x as a linear sees it: the samples of a slot in one
            laid = kept if kept.ndim == 4 else kept.view(2, -1, kept.shape[-1])
            kept = slotted.group.mask(laid).view(kept.shape)
        y = slotted(x)
        ahead = torch.randn(y.shape, generator=generator).to(y.device)
        rows = slots.gradient((y * ahead).sum()).clone().float()
        (of_x,) = torch.autograd.grad((slotted(x) * ahead).sum(), x)
        for slot, config in enumerate(configs):
            part = slice(2 * slot, 2 * slot + 2)
            gradients = slots.read(rows, slot)
            ours = {key: gradients[key] for key in gradients if key.startswith(f"{MODULES[module]}.lora_")}
            values = {key: slots.adapter(slot)[key] for key in ours}
            scaled = kept[part] / (1 - config.dropout)
            theirs = by_peft(frozen, config, values, x[part].detach(), scaled, ahead[part])
            output, gradient_of_x, others = theirs
            torch.testing.assert_close(y[part], output, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(of_x[part], gradient_of_x, rtol=1e-4, atol=1e-4)
            assert ours.keys() == others.keys() and len(ours) == 2 + config.dora
            for key, gradient in ours.items():
                factor = float(slots.factor[slot]) if "lora_B" in key else 1
                torch.testing.assert_close(gradient * factor, others[key], rtol=1e-3, atol=1e-3)


def by_peft(
    frozen: nn.Module,
    config: TrialConfig,
    values: dict[str, torch.Tensor],
    x: torch.Tensor,
    kept: torch.Tensor,
    ahead: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Output, gradient of x, and gradients of the values, of one layer with an adapter."""
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=["layer"],
        use_dora=config.dora,
        lora_dropout=config.dropout,
    )
    holder = inject_adapter_in_model(lora, nn.ModuleDict({"layer": copy.deepcopy(frozen)})).train()
    layer = holder["layer"]
    if config.dropout:
        layer.lora_dropout["default"] = Kept(kept)
    trained = {}
    for name, parameter in layer.named_parameters():
        kind = next((kind for kind in ("lora_A", "lora_B", "lora_magnitude") if kind in name), None)
        if kind:
            key = next(key for key in values if kind in key)
            parameter.data.copy_(values[key])
            trained[key] = parameter
    x = x.clone().requires_grad_()
    output = layer(x)
    of_x, *gradients = torch.autograd.grad((output * ahead).sum(), [x, *trained.values()])
    return output.detach(), of_x, {k: g.cpu() for k, g in zip(trained, gradients, strict=True)}


def test_norms_are_those_of_the_sum() -> None:
    generator = torch.Generator().manual_seed(0)
    slots, modules, outputs, rank, inputs = 3, 2, 5, 4, (7, 3, 3)
    weight = torch.randn(modules * outputs, *inputs, generator=generator)
    A = torch.randn(slots, modules * rank, math.prod(inputs), generator=generator)
    B = torch.randn(slots, modules, outputs, rank, generator=generator)
    update = (B @ A.unflatten(1, (modules, rank))).flatten(1, 2)
    expected = (weight.flatten(1) + update).norm(dim=2)
    torch.testing.assert_close(norms(weight, frozen_norms(weight).square(), A, B), expected)


def test_a_pack_without_it_has_no_place_for_it(base: BaseModel) -> None:
    with Slots(base.unet, [LORA, LORA]) as slots:
        assert slots.begin_B == slots.num_A
        assert not slots.fits(DORA)
        slots.train(torch.zeros(2, 1, dtype=torch.int32, device=base.device))
        assert all(group.gain is None for group in slots.groups)
    with Slots(base.unet, [DORA, LORA]) as slots:
        assert slots.fits(DORA) and slots.begin_B > slots.num_A
        assert all("magnitude" not in key for key in slots.adapter(1))
