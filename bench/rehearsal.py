"""Rehearsal: a few steps and images through the real trainer and sampler, on random data; nothing is kept."""

import gc
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import psutil
import torch

from bench.base import BaseModel, Bucket, TextEmbedding, TrainingData
from bench.config import TrialConfig
from bench.errors import BenchError
from bench.packs import Rung, Trainer
from bench.scoring.generate import generate, images_at_once
from bench.space import Sampler
from bench.variants import AS_THEY_ARE, Variants

STEPS = {"cpu": 2, "mps": 2, "cuda": 8}
"""Between two readings of the clock, by kind of device: a GPU runs ahead of the host."""
IMAGES = {"cpu": 16, "mps": 16, "cuda": 512}
"""Drawn at once, at most."""
REPEATS = (2, 6)
"""Readings of the clock, at least and at most."""
RATE = 1e-7
"""Learning rate: what is measured does not depend on it, and nothing diverges."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rehearsal:
    """What some trials side by side took. The first readings of each, which warm up, are not among them."""

    num_slots: int
    step_seconds: tuple[float, ...]
    """Of one step of all trials."""
    draw_seconds: tuple[float, ...]
    """Of drawing `num_images`."""
    num_images: int
    """Of all trials together; 0 if none were drawn."""
    allocated: int
    """Bytes at the peak: of tensors on a GPU, else of the process."""
    reserved: int
    """Bytes taken from the device while training; on a GPU more than is allocated."""
    drawing: int
    """Bytes that drawing took on top."""


def rehearse(
    base: BaseModel,
    trainer: Trainer,
    config: TrialConfig,
    num_slots: int,
    sampler: Sampler,
    seconds: float,
    least: int = REPEATS[0],
) -> Rehearsal:
    """Train `num_slots` trials like `config` side by side, then draw through them.

    Each part repeats its reading `least` times, and until it took `seconds`, but no more often than REPEATS
    says. Raises BenchError if the base gives no finite loss, torch.OutOfMemoryError.
    """
    peak = Peak(base.device)
    size = STEPS[base.device.type] * config.batch_size
    data = random_data(base, size, config.variants)
    if config.prior_weight:
        data = replace(data, prior=data.buckets[0][:])
    most = REPEATS[1] + 1  # the first warms up
    rates = {
        "learning_rate": RATE,
        "text_encoder_learning_rate": min(config.text_encoder_learning_rate, RATE),
    }
    trial = config.model_copy(update={"epochs": most, "lr_scheduler": "constant", **rates})
    clock = _Clock(base.device, STEPS[base.device.type])
    readings: list[float] = []
    draws: tuple[float, ...] = ()
    reserved, count = 0, images_of_each(base, num_slots)
    clock.start()
    trials, epochs = iter([trial] * num_slots), range(1, most + 1)
    with closing(trainer(base, data, trials, epochs, num_slots, lambda number: clock.step())) as rungs:
        for rung in rungs:
            readings.append(clock.seconds)
            if len(rung.alive) != num_slots:
                raise BenchError(f"{base.name}: its loss on random data is not a finite number")
            if _is_enough(readings[1:], seconds, least):
                reserved = peak.look().reserved
                draws = _draws(base, data.empty, count, sampler, num_slots, seconds, least)
                peak.look()
                _stop(rung)
            clock.start()
    return Rehearsal(
        num_slots=num_slots,
        step_seconds=tuple(reading / STEPS[base.device.type] for reading in readings[1:]),
        draw_seconds=draws,
        num_images=count * num_slots,
        allocated=peak.allocated,
        reserved=reserved,
        drawing=peak.reserved - reserved,
    )


def images_of_each(base: BaseModel, num_slots: int) -> int:
    """Images of each of `num_slots` trials that fill one batch of `generate`."""
    return max(1, min(images_at_once(base), IMAGES[base.device.type]) // num_slots)


def random_data(base: BaseModel, count: int, variants: Variants = AS_THEY_ARE) -> TrainingData:
    """Latents and texts of `count` images, of the base's shapes."""
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(base.device)

    def text(number: int) -> TextEmbedding:
        tokens, width, pooled = base.text_shape
        hidden = numbers(number, tokens, width).to(base.dtype)
        return TextEmbedding(hidden, numbers(number, pooled).to(base.dtype))

    mean = numbers(count * len(variants.views), *base.latent_shape)
    texts = text(count * variants.num_wordings)
    images = Bucket(
        mean=mean,
        std=torch.zeros_like(mean),
        text=texts,
        captions=("a red apple",) * len(texts),
        variants=variants,
    )
    return TrainingData(buckets=(images,), empty=text(1))


def timed(
    work: Callable[[], object], device: torch.device, seconds: float, least: int = REPEATS[0]
) -> tuple[float, ...]:
    """Seconds of each call of `work`, until they took `seconds`; `least` calls, and at most of REPEATS."""
    clock = _Clock(device, steps=1)
    readings: list[float] = []
    while not _is_enough(readings, seconds, least):
        clock.start()
        work()
        clock.step()
        readings.append(clock.seconds)
    return tuple(readings)


def _draws(
    base: BaseModel,
    text: TextEmbedding,
    count: int,
    sampler: Sampler,
    num_slots: int,
    seconds: float,
    least: int,
) -> tuple[float, ...]:
    texts = text[np.zeros(count, int)]

    def draw(steps: int) -> None:
        short = sampler.model_copy(update={"steps": steps})
        generate(base, texts, text, range(count), short, num_slots)

    draw(2)  # captures and compiles, so that only whole drawings are timed
    return timed(lambda: draw(sampler.steps), base.device, seconds, least)


def _is_enough(readings: Sequence[float], seconds: float, least: int) -> bool:
    return len(readings) >= least and (sum(readings) >= seconds or len(readings) >= REPEATS[1])


def _stop(rung: Rung) -> None:
    for index in rung.alive:
        rung.stop(index)


class _Clock:
    """Wall-clock seconds from `start` until the last of some steps is done on the device."""

    def __init__(self, device: torch.device, steps: int) -> None:
        self._device, self._steps = device, steps
        self.seconds = 0.0

    def start(self) -> None:
        self._wait()
        self._left, self._begun = self._steps, time.perf_counter()

    def step(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._wait()
            self.seconds = time.perf_counter() - self._begun

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


class Peak:
    """Memory at its highest since it was made: as the device says, or as it was whenever it was looked at."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.allocated = self.reserved = 0
        if device.type == "cuda":
            gc.collect()  # the graphs of adapters that are no longer attached
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        self.look()

    def look(self) -> "Peak":
        if self._device.type == "cuda":
            self.allocated = torch.cuda.max_memory_allocated(self._device)
            self.reserved = torch.cuda.max_memory_reserved(self._device)
            return self
        self.allocated = self.reserved = max(self.allocated, psutil.Process().memory_info().rss)
        return self
