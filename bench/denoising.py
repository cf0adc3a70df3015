"""The loss that training lowers, and that memorisation is measured by."""

from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler

from bench.base import BaseModel, TextEmbedding

NUM_TIMESTEPS = 1000  # of every base: `load_base` sees to it


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step trains on, ordered by slot."""

    latents: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    text: TextEmbedding


class DenoisingLoss:
    """Mean squared error of the predicted noise (or velocity, as the base's scheduler says), per sample.

    Ho et al. 2020 (arXiv 2006.11239), eq. 14; velocity: Salimans & Ho 2022 (arXiv 2202.00512).
    """

    def __init__(self, base: BaseModel) -> None:
        self._base = base
        self._scheduler = DDPMScheduler.from_config(base.scheduler_config)

    def __call__(self, batch: Batch) -> torch.Tensor:
        noisy = self._scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
        prediction = self._base.predict(noisy, batch.timesteps, batch.text)
        target = batch.noise
        if self._scheduler.config.prediction_type == "v_prediction":
            target = self._scheduler.get_velocity(batch.latents, batch.noise, batch.timesteps)
        return (prediction - target).square().flatten(1).mean(dim=1)
