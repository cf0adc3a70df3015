"""Images for scoring: the same prompts, seeds and sampler for the base and for every adapter."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler
from numpy.typing import NDArray

from bench.base import BaseModel, TextEmbedding, concatenate
from bench.space import Sampler

MAX_BATCH = {"cpu": 128, "mps": 128, "cuda": 512}
"""Samples in one forward of the UNet, guidance included, by kind of device."""
MAX_PIXELS = 16 * 1024**2
"""Pixels of the images in one forward: larger images go in smaller batches."""


@torch.no_grad()
def generate(
    base: BaseModel,
    text: TextEmbedding,
    empty: TextEmbedding,
    seeds: Sequence[int],
    sampler: Sampler,
    num_slots: int = 1,
    on_progress: Callable[[float], None] = lambda fraction: None,
) -> NDArray[np.uint8]:
    """Draw n images through each of `num_slots` adapters attached to the base (or the bare base: 1).

    `text` holds n prompts and `seeds` their n seeds. Initial noise is drawn on the CPU, so that a seed
    means the same noise on every machine. Sampler: DPM-Solver++ (2M), Lu et al. 2022 (arXiv 2211.01095),
    classifier-free guidance in the same forward. Returns (num_slots, n, height, width, 3).
    """
    noise = torch.stack([_noise(base, seed) for seed in seeds])
    samples = min(MAX_BATCH[base.device.type], MAX_PIXELS // base.resolution**2)
    size = max(1, samples // (2 * num_slots))
    starts = range(0, len(seeds), size)
    parts = []
    for number, start in enumerate(starts):
        chunk = slice(start, start + size)
        latents = _denoise(base, text[chunk], empty, noise[chunk], sampler, num_slots)
        images = base.decode(latents)
        parts.append(images.reshape(num_slots, -1, *images.shape[1:]))
        on_progress((number + 1) / len(starts))
    return np.concatenate(parts, axis=1)


def _noise(base: BaseModel, seed: int) -> torch.Tensor:
    return torch.randn(base.latent_shape, generator=torch.Generator().manual_seed(seed))


def _denoise(
    base: BaseModel,
    text: TextEmbedding,
    empty: TextEmbedding,
    noise: torch.Tensor,
    sampler: Sampler,
    num_slots: int,
) -> torch.Tensor:
    """Latents (num_slots · n, …) of n prompts, ordered by slot."""
    n = len(noise)
    scheduler = DPMSolverMultistepScheduler.from_config(base.scheduler_config)
    scheduler.set_timesteps(sampler.steps, device=base.device)
    # In each slot first the n empty prompts, then the n prompts.
    unguided = TextEmbedding(empty.hidden.expand_as(text.hidden), empty.pooled.expand_as(text.pooled))
    both = concatenate([unguided, text] * num_slots)
    latents: torch.Tensor = (noise.to(base.device) * scheduler.init_noise_sigma).repeat(num_slots, 1, 1, 1)
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(latents, timestep)
        pairs = scaled.view(num_slots, 1, n, *base.latent_shape).expand(-1, 2, -1, -1, -1, -1)
        output = base.predict(pairs.flatten(0, 2), timestep.expand(len(both)), both)
        without, guided = output.view(num_slots, 2, n, *base.latent_shape).unbind(1)
        prediction = without + sampler.guidance * (guided - without)
        latents = scheduler.step(prediction.flatten(0, 1), timestep, latents).prev_sample
    return latents
