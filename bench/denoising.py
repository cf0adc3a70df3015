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
    gamma: torch.Tensor | None = None
    """`min_snr_gamma` of each sample, (n)."""


class DenoisingLoss:
    """Mean squared error of the predicted noise (or velocity, as the base's scheduler says), per sample.

    Ho et al. 2020 (arXiv 2006.11239), eq. 14; velocity: Salimans & Ho 2022 (arXiv 2202.00512); weighted by
    the signal-to-noise ratio where samples say so: Hang et al. 2023 (arXiv 2303.09556).
    """

    def __init__(self, base: BaseModel) -> None:
        self._base = base
        self._scheduler = DDPMScheduler.from_config(base.scheduler_config)
        kept = self._scheduler.alphas_cumprod.to(base.device)
        self._snr = kept / (1 - kept)

    def __call__(self, batch: Batch) -> torch.Tensor:
        noisy = self._scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
        prediction = self._base.predict(noisy, batch.timesteps, batch.text)
        target = batch.noise
        if self._predicts_velocity:
            target = self._scheduler.get_velocity(batch.latents, batch.noise, batch.timesteps)
        loss = (prediction - target).square().flatten(1).mean(dim=1)
        return loss if batch.gamma is None else loss * self._weights(batch.timesteps, batch.gamma)

    @property
    def _predicts_velocity(self) -> bool:
        return bool(self._scheduler.config.prediction_type == "v_prediction")

    def _weights(self, timesteps: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
        """min(SNR, γ) / SNR, or / (SNR + 1) for the velocity; 1 where γ is 0."""
        snr = self._snr[timesteps]
        weights = torch.minimum(snr, gamma) / (snr + self._predicts_velocity)
        return torch.where(gamma > 0, weights, 1.0)
