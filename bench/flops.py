"""Floating-point operations of training and drawing, counted on the base's own layers without computing."""

from typing import Any

import torch
from peft import LoraConfig
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench.base import BaseModel, adaptable_names, target_names
from bench.config import TrialConfig
from bench.space import Sampler


def sample_flops(base: BaseModel, config: TrialConfig) -> int:
    """Of one sample of a LoRA step: forward and backward of the UNet with the adapter that `config` asks for.

    As plain PEFT computes it: padding of packed adapters is no work. Gradients of frozen weights are not
    computed, nor is anything below the first adapter.
    """
    unet = _empty(base.unet)
    modules = target_names(adaptable_names(unet), config)
    unet.requires_grad_(False).add_adapter(LoraConfig(r=config.rank, target_modules=modules))
    return _count(lambda: torch.autograd.backward(_predict(base, unet).sum()))


@torch.no_grad()
def image_flops(base: BaseModel, sampler: Sampler) -> int:
    """Of one image: two forwards of the UNet a step, with and without the prompt, and the decoder."""
    unet, vae = _empty(base.unet), _empty(base.vae)
    latents = torch.zeros(1, *base.latent_shape, device="meta")
    return 2 * sampler.steps * _count(lambda: _predict(base, unet)) + _count(lambda: vae.decode(latents))


def _empty(model: Any) -> Any:
    """The same layers without weights: shapes alone pass through them."""
    with torch.device("meta"):
        return type(model).from_config(model.config)


def _predict(base: BaseModel, unet: Any) -> torch.Tensor:
    tokens, width, pooled = base.text_shape
    num_ids = len(base.family.time_ids(base.resolution, base.resolution))
    with torch.device("meta"):
        texts = torch.zeros(1, tokens, width), torch.zeros(1, pooled)
        conditions = base.family.conditions(*texts, torch.zeros(1, num_ids))
        latents, timesteps = torch.zeros(1, *base.latent_shape), torch.zeros(1, dtype=torch.long)
    output: torch.Tensor = unet(latents, timesteps, return_dict=False, **conditions)[0]
    return output


def _count(work: Any) -> int:
    # The plain attention is the one whose products are all seen.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())
