"""Images for scoring: the same prompts, seeds and sampler for the base and for every adapter."""

import copy
import gc
import math
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler
from numpy.typing import NDArray

from bench.base import BaseModel, Leaving, TextEmbedding, concatenate
from bench.blocks import TextProjections, keep_text, project_text
from bench.graphs import Compute, captured
from bench.lanes import each, lanes_of
from bench.space import Sampler

MAX_BATCH = {"cpu": 96, "mps": 128, "cuda": 512}
"""Samples in one forward of the UNet, guidance included, by kind of device."""
MAX_PIXELS = 16 * 1024**2
"""Pixels of the images in one forward: larger images go in smaller batches."""
Reading = tuple[TextEmbedding, TextEmbedding]
"""Conditioning of n prompts, and of the empty prompt (1)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Asked:
    """What each adapter draws: n prompts, what stands for none, n initial noises on the device."""

    text: TextEmbedding
    empty: TextEmbedding
    noise: torch.Tensor
    scheduler: DPMSolverMultistepScheduler
    """With its timesteps on the device; a copy of it for every drawing."""
    guidance: float
    own: Mapping[int, Reading]
    """By slot, what adapters draw instead that read prompts otherwise."""

    def reading(self, slot: int, rows: slice) -> Reading:
        """Some of the prompts, as a slot reads them."""
        text, empty = self.own.get(slot, (self.text, self.empty))
        return text[rows], empty


@dataclass(frozen=True, slots=True)
class _Part:
    """What is drawn in one forward."""

    slots: range
    rows: range


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
    """`drawings` of all slots, (num_slots, n, height, width, 3)."""
    return np.stack(list(drawings(base, text, empty, seeds, sampler, num_slots, on_progress, own)))


def drawings(
    base: BaseModel,
    text: TextEmbedding,
    empty: TextEmbedding,
    seeds: Sequence[int],
    sampler: Sampler,
    num_slots: int = 1,
    on_progress: Callable[[float], None] = lambda fraction: None,
    own: Mapping[int, Reading] | None = None,
) -> Iterator[NDArray[np.uint8]]:
    """Draw n images through each of the `num_slots` adapters attached to the base (or the bare base: 1).

    `text` holds n prompts and `seeds` their n seeds; `own` holds, by number, what adapters draw instead of
    `text` and `empty` that read prompts otherwise. Initial noise is drawn on the CPU, so that a seed
    means the same noise on every machine. Sampler: DPM-Solver++ (2M), Lu et al. 2022 (arXiv 2211.01095),
    classifier-free guidance in the same forward. Gives each slot's (n, height, width, 3), in order, as soon
    as they are there: while the caller looks at them, a GPU and the lanes of a processor draw on.
    """
    scheduler = DPMSolverMultistepScheduler.from_config(base.scheduler_config)
    scheduler.set_timesteps(sampler.steps, device=base.device)
    scheduler.set_begin_index(0)  # else it searches, and waits for the device
    noise = torch.stack([_noise(base, seed) for seed in seeds]).to(base.device)
    asked = _Asked(
        text=text,
        empty=empty,
        noise=noise,
        scheduler=scheduler,
        guidance=sampler.guidance,
        own=own or {},
    )
    parts = _planned(base, num_slots, len(seeds))
    chunks: list[list[NDArray[np.uint8]]] = [[] for _ in range(num_slots)]
    drawn = _in_lanes(base, asked, parts) if base.twins else _in_turn(base, asked, parts)
    for number, (part, images) in enumerate(zip(parts, drawn, strict=True)):
        on_progress((number + 1) / len(parts))
        for slot, of_slot in zip(part.slots, np.split(images, len(part.slots)), strict=True):
            chunks[slot].append(of_slot)
            if part.rows.stop == len(seeds):
                yield np.concatenate(chunks[slot])
                chunks[slot].clear()


def _in_turn(base: BaseModel, asked: _Asked, parts: Sequence[_Part]) -> Iterator[NDArray[np.uint8]]:
    """Images of each part. A GPU has the next part to do before the host waits for one."""
    studio, leaving = _Studio(base, asked), deque[Leaving]()
    for part in parts:
        leaving.append(studio.draw(part))
        if len(leaving) > (base.device.type == "cuda"):
            yield leaving.popleft().arrived()
    yield from (images.arrived() for images in leaving)


def _in_lanes(base: BaseModel, asked: _Asked, parts: Sequence[_Part]) -> Iterator[NDArray[np.uint8]]:
    """The same, several parts at a time."""
    with lanes_of(base) as lanes:
        studios = [_Studio(lane, asked) for lane in lanes]
        yield from each(studios, lambda studio, part: studio.draw(part).arrived(), parts)


def _planned(base: BaseModel, num_slots: int, number: int) -> list[_Part]:
    """In the order of slots: as many images at once as may be, or something to do for every lane.

    In lanes a slot's images lie as they would without the others: batches of another size round otherwise.
    """
    most, lanes = images_at_once(base), len(base.twins)
    if lanes:
        size = max(1, min(most // lanes, math.ceil(number / lanes)))
        slots = _parts(num_slots, 1)
    else:
        size = min(number, most)
        slots = _parts(num_slots, most // size)
    return [_Part(some, rows) for some in slots for rows in _parts(number, size)]


def images_at_once(base: BaseModel) -> int:
    """Of all adapters together, in one forward with guidance, or in those of all lanes."""
    return max(1, min(MAX_BATCH[base.device.type], MAX_PIXELS // base.resolution**2) // 2)


def _parts(number: int, size: int) -> list[range]:
    """As few as there can be, as equal as they can be."""
    size = math.ceil(number / math.ceil(number / size))
    return [range(start, min(start + size, number)) for start in range(0, number, size)]


def _rows(readings: Sequence[Reading], rows: slice) -> list[Reading]:
    return [(text[rows], empty) for text, empty in readings]


def _noise(base: BaseModel, seed: int) -> torch.Tensor:
    return torch.randn(base.latent_shape, generator=torch.Generator().manual_seed(seed))


class _Studio:
    """Draws parts of what is asked through one base and its adapters."""

    def __init__(self, base: BaseModel, asked: _Asked) -> None:
        self._base, self._asked = base, asked
        self._artists: dict[Hashable, _Artist] = base.attached.graphs if base.attached else {}
        self._slots: range | None = None
        """In focus."""

    @torch.no_grad()
    def draw(self, part: _Part) -> Leaving:
        """Ordered by slot, (slots · rows, …)."""
        attached, rows = self._base.attached, slice(part.rows.start, part.rows.stop)
        if attached and part.slots != self._slots:
            attached.focus(part.slots)
        self._slots = part.slots
        key = (len(part.slots), len(part.rows), attached.shape if attached else None)
        if key not in self._artists:
            self._artists[key] = _Artist(self._base, self._asked.text[rows], len(part.slots))
        return self._base.send(self._latents(self._artists[key], part))

    def _latents(self, artist: "_Artist", part: _Part) -> torch.Tensor:
        """Once again with what others can spare where memory runs out."""
        try:
            return artist.draw(self._asked, part)
        except torch.OutOfMemoryError:
            if not self._base.attached:
                raise
        self._base.attached.spare()  # out of the handler, whose traceback holds tensors
        gc.collect()
        torch.cuda.empty_cache()
        return artist.draw(self._asked, part)


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

    def draw(self, asked: _Asked, part: _Part) -> torch.Tensor:
        """Latents (K · n, …), ordered by slot."""
        rows = slice(part.rows.start, part.rows.stop)
        self._read([asked.reading(slot, rows) for slot in part.slots])
        scheduler = copy.deepcopy(asked.scheduler)
        start = asked.noise[rows] * scheduler.init_noise_sigma
        latents: torch.Tensor = start.repeat(self._num_slots, 1, 1, 1)
        for timestep in scheduler.timesteps:
            scaled = scheduler.scale_model_input(latents, timestep)
            prediction = self._guided(scaled, timestep, asked.guidance)
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
