"""Images for scoring: the same prompts, seeds and sampler for the base and for every adapter."""

import gc
from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler
from numpy.typing import NDArray

from bench.base import BaseModel, TextEmbedding, concatenate
from bench.blocks import TextProjections, keep_text, project_text
from bench.graphs import Compute, captured
from bench.space import Sampler

MAX_BATCH = {"cpu": 96, "mps": 128, "cuda": 512}
"""Samples in one forward of the UNet, guidance included, by kind of device."""
MAX_PIXELS = 16 * 1024**2
"""Pixels of the images in one forward: larger images go in smaller batches."""
Reading = tuple[TextEmbedding, TextEmbedding]
"""Conditioning of n prompts, and of the empty prompt (1)."""


@torch.no_grad()
def generate(
    base: BaseModel,
    text: TextEmbedding,
    empty: TextEmbedding,
    seeds: Sequence[int],
    sampler: Sampler,
    num_slots: int = 1,
    on_progress: Callable[[float], None] = lambda fraction: None,
    own: Mapping[int, Reading] | None = None,
) -> NDArray[np.uint8]:
    """Draw n images through each of the `num_slots` adapters attached to the base (or the bare base: 1).

    `text` holds n prompts and `seeds` their n seeds; `own` holds, by number, what adapters draw instead of
    `text` and `empty` that read prompts otherwise. Initial noise is drawn on the CPU, so that a seed
    means the same noise on every machine. Sampler: DPM-Solver++ (2M), Lu et al. 2022 (arXiv 2211.01095),
    classifier-free guidance in the same forward. Returns (num_slots, n, height, width, 3).
    """
    noise = torch.stack([_noise(base, seed) for seed in seeds])
    most = images_at_once(base)
    size = min(len(seeds), most)
    together = min(num_slots, most // size)
    artists: dict[Hashable, _Artist] = base.attached.graphs if base.attached else {}
    images: list[list[NDArray[np.uint8]]] = [[] for _ in range(num_slots)]
    parts = [(slots, rows) for slots in _parts(num_slots, together) for rows in _parts(len(seeds), size)]
    for number, (slots, part) in enumerate(parts):
        rows = slice(part.start, part.stop)
        if base.attached and part.start == 0:
            base.attached.focus(slots)
        key = (len(slots), len(noise[rows]), base.attached.shape if base.attached else None)
        if key not in artists:
            artists[key] = _Artist(base, text[rows], len(slots))
        readings = [(own or {}).get(slot, (text, empty)) for slot in slots]
        latents = _drawn(base, artists[key], (_rows(readings, rows), noise[rows], sampler))
        for slot, drawn in zip(slots, np.split(base.decode(latents), len(slots)), strict=True):
            images[slot].append(drawn)
        on_progress((number + 1) / len(parts))
    return np.stack([np.concatenate(chunks) for chunks in images])


def _drawn(
    base: BaseModel,
    artist: "_Artist",
    asked: tuple[list[Reading], torch.Tensor, Sampler],
) -> torch.Tensor:
    """Latents; once again with what others can spare where memory runs out."""
    try:
        return artist.draw(*asked)
    except torch.OutOfMemoryError:
        if not base.attached:
            raise
    base.attached.spare()  # out of the handler, whose traceback holds tensors
    gc.collect()
    torch.cuda.empty_cache()
    return artist.draw(*asked)


def images_at_once(base: BaseModel) -> int:
    """Of all adapters together, in one forward with guidance."""
    return max(1, min(MAX_BATCH[base.device.type], MAX_PIXELS // base.resolution**2) // 2)


def _parts(number: int, size: int) -> list[range]:
    return [range(start, min(start + size, number)) for start in range(0, number, size)]


def _rows(readings: Sequence[Reading], rows: slice) -> list[Reading]:
    return [(text[rows], empty) for text, empty in readings]


def _noise(base: BaseModel, seed: int) -> torch.Tensor:
    return torch.randn(base.latent_shape, generator=torch.Generator().manual_seed(seed))


class _Artist:
    """Draws n prompts through each of K adapters in focus; on a GPU as a graph, captured at the first."""

    def __init__(self, base: BaseModel, text: TextEmbedding, num_slots: int) -> None:
        self._base, self._num_slots = base, num_slots
        size = 2 * len(text) * num_slots
        self._latents = torch.zeros(size, *base.latent_shape, device=base.device)
        self._timesteps = torch.zeros(size, dtype=torch.long, device=base.device)
        self._text = concatenate([text] * (2 * num_slots))
        self._projections: TextProjections = {}
        self._predict: Compute | None = None

    def draw(self, readings: Sequence[Reading], noise: torch.Tensor, sampler: Sampler) -> torch.Tensor:
        """Latents (K · n, …), ordered by slot, from K readings of n prompts and noise (n, …)."""
        self._read(readings)
        scheduler = DPMSolverMultistepScheduler.from_config(self._base.scheduler_config)
        scheduler.set_timesteps(sampler.steps, device=self._base.device)
        scheduler.set_begin_index(0)  # else it searches, and waits for the device
        start = noise.to(self._base.device) * scheduler.init_noise_sigma
        latents: torch.Tensor = start.repeat(self._num_slots, 1, 1, 1)
        for timestep in scheduler.timesteps:
            scaled = scheduler.scale_model_input(latents, timestep)
            prediction = self._guided(scaled, timestep, sampler.guidance)
            latents = scheduler.step(prediction, timestep, latents).prev_sample
        return latents

    def _read(self, readings: Sequence[Reading]) -> None:
        """In each slot first the n empty prompts, then the n prompts."""
        parts = []
        for text, empty in readings:
            unguided = TextEmbedding(empty.hidden.expand_as(text.hidden), empty.pooled.expand_as(text.pooled))
            parts += [unguided, text]
        both = concatenate(parts)
        self._text.hidden.copy_(both.hidden)
        self._text.pooled.copy_(both.pooled)
        found = project_text(self._base.unet, self._text.hidden)
        if not self._projections:
            self._projections = found
        for module, projections in self._projections.items():
            for here, there in zip(projections, found[module], strict=True):
                here.copy_(there)

    def _guided(self, latents: torch.Tensor, timestep: torch.Tensor, guidance: float) -> torch.Tensor:
        """Classifier-free guidance: Ho & Salimans 2022 (arXiv 2207.12598)."""
        pairs = torch.unflatten(latents, 0, (self._num_slots, 1, -1)).expand(-1, 2, *[-1] * latents.ndim)
        self._latents.copy_(pairs.flatten(0, 2))
        self._timesteps.copy_(timestep)
        if self._predict is None:
            pool = self._base.attached.pool if self._base.attached else None
            self._predict = captured(self._compute, self._base.device, pool)
        output = self._predict()[0]
        without, guided = torch.unflatten(output, 0, (self._num_slots, 2, -1)).unbind(1)
        return (without + guidance * (guided - without)).flatten(0, 1)

    def _compute(self) -> tuple[torch.Tensor, ...]:
        with keep_text(self._projections):
            return (self._base.predict(self._latents, self._timesteps, self._text),)
