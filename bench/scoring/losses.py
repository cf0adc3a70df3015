"""Denoising losses of adapters on fixed pictures, timesteps and noises: the same chance for all of them."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from bench.base import BaseModel, Bucket, TextEmbedding, concatenate
from bench.denoising import Batch, DenoisingLoss
from bench.lanes import each, lanes_of
from bench.scoring import memorization
from bench.scoring.metrics import Score
from bench.scoring.statistics import mean_stderr

TIMESTEPS = (100, 300, 500, 700)
NUM_PICTURES = 32
"""Of each set, at most."""
NOISE_SEED = 20240229
MAX_BATCH = {"cpu": 64, "mps": 64, "cuda": 256}
MAX_PIXELS = 8 * 1024**2


class Denoising(Protocol):
    """A score of the losses of an adapter."""

    @property
    def name(self) -> str:
        """Of the metric."""

    def losses(self, num_slots: int) -> NDArray[np.float64]:
        """Of each picture through each of the attached adapters, (num_slots, pictures)."""

    def score(self, losses: NDArray[np.float64]) -> Score:
        """Of one adapter's losses."""


class FixedLosses:
    """The same pictures, timesteps and noises for the base and for every adapter."""

    def __init__(self, base: BaseModel, *pictures: Bucket) -> None:
        """Of one size, as they are, one bucket after the other."""
        self._base = base
        self._latents = torch.cat([part.mean for part in pictures])
        self._text = concatenate([part.text for part in pictures])
        self._captions = [caption for part in pictures for caption in part.captions]
        generator = torch.Generator().manual_seed(NOISE_SEED)
        shape = (len(TIMESTEPS), *self._latents.shape)
        self._noise = torch.randn(shape, generator=generator).to(base.device)

    def losses(self, num_slots: int) -> NDArray[np.float64]:
        """Loss of each picture, the mean over timesteps, through the attached adapters (num_slots, n)."""
        own = self._base.own_readings(self._captions)
        texts = [own[slot][0] if slot in own else self._text for slot in range(num_slots)]
        if not self._base.twins:
            return self._losses(self._base, range(num_slots), texts)
        slots = [range(slot, slot + 1) for slot in range(num_slots)]

        def of_one(lane: BaseModel, slots: range) -> NDArray[np.float64]:
            return self._losses(lane, slots, texts[slots.start : slots.stop])

        with lanes_of(self._base) as lanes:
            return np.concatenate(list(each(lanes, of_one, slots)))

    @torch.no_grad()
    def _losses(self, base: BaseModel, slots: range, texts: Sequence[TextEmbedding]) -> NDArray[np.float64]:
        """`texts` of each slot."""
        if base.attached:
            base.attached.focus(slots)
        objective, num_slots = DenoisingLoss(base), len(slots)
        samples = min(MAX_BATCH[base.device.type], MAX_PIXELS // base.resolution**2)
        size = max(1, samples // num_slots)
        of_timestep = []
        for timestep, noise in zip(TIMESTEPS, self._noise, strict=True):
            parts = [
                objective(self._batch(slice(start, start + size), timestep, noise, texts))
                for start in range(0, len(self._latents), size)
            ]
            of_timestep.append(torch.cat([part.view(num_slots, -1) for part in parts], dim=1))
        mean: NDArray[np.float64] = torch.stack(of_timestep).double().mean(dim=0).cpu().numpy()
        return mean

    def _batch(
        self, rows: slice, timestep: int, noise: torch.Tensor, texts: Sequence[TextEmbedding]
    ) -> Batch:
        latents, num_slots = self._latents[rows], len(texts)
        ones = (1,) * (latents.ndim - 1)
        return Batch(
            latents=latents.repeat(num_slots, *ones),
            noise=noise[rows].repeat(num_slots, *ones),
            timesteps=torch.full((num_slots * len(latents),), timestep, device=latents.device),
            text=concatenate([text[rows] for text in texts]),
        )


class LossGap:
    """Does an adapter predict the noise on its training pictures better than on held-out ones?"""

    name = "loss_gap"

    def __init__(self, base: BaseModel, train: Bucket, held_out: Bucket) -> None:
        """Pictures of one size, of which the first are taken."""
        self._num_train = min(len(train), NUM_PICTURES)
        self._fixed = FixedLosses(base, train[:NUM_PICTURES], held_out[:NUM_PICTURES])
        self._base_losses = self.losses(1)[0]

    def losses(self, num_slots: int) -> NDArray[np.float64]:
        """Of train + held-out pictures, through the attached adapters."""
        return self._fixed.losses(num_slots)

    def score(self, losses: NDArray[np.float64]) -> Score:
        """The gap of one adapter, beyond the base's own."""
        n = self._num_train
        value, stderr = memorization.loss_gap(
            losses[:n], losses[n:], self._base_losses[:n], self._base_losses[n:]
        )
        return Score(
            value=value, stderr=stderr, num_images=len(losses), num_prompts=len(losses), extractor="UNet"
        )


class HeldOutLoss:
    """How well does an adapter predict the noise on pictures that it was not trained on?"""

    name = "held_out_loss"

    def __init__(self, base: BaseModel, held_out: Bucket) -> None:
        """Pictures of which the first are taken."""
        self._fixed = FixedLosses(base, held_out[:NUM_PICTURES])
        self._base_losses = self.losses(1)[0]

    def losses(self, num_slots: int) -> NDArray[np.float64]:
        """Of the held-out pictures, through the attached adapters."""
        return self._fixed.losses(num_slots)

    def score(self, losses: NDArray[np.float64]) -> Score:
        """The mean loss of one adapter; the gain is beyond the base's, picture by picture."""
        value, stderr = mean_stderr(losses)
        gain, gain_stderr = mean_stderr(losses - self._base_losses)
        return Score(
            value=value,
            stderr=stderr,
            num_images=len(losses),
            num_prompts=len(losses),
            extractor="UNet",
            gain=gain,
            gain_stderr=gain_stderr,
        )
