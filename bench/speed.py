"""Speed: what a base does on this machine, alone and packed, against what the machine can do."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from bench.base import BaseModel
from bench.fit import find_fit
from bench.flops import image_flops, sample_flops
from bench.packs import Trainer
from bench.rehearsal import Rehearsal, rehearse, timed
from bench.space import SearchSpace

SQUARE = {"cpu": 2048, "mps": 4096, "cuda": 8192}
"""Rows and columns of the matrices whose product is the limit, by kind of device."""
PRODUCTS = {"cpu": 2, "mps": 8, "cuda": 64}
"""Between two readings of the clock."""
SECONDS = {"cpu": 3.0, "mps": 3.0, "cuda": 5.0}
"""That each part of a rehearsal is timed for."""
NUM_IMAGES = 60
"""To train on, of the study that is estimated."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """A number a second: the median of a few readings."""

    median: float
    spread: float
    """Of the fastest and the slowest reading, as a part of the median."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mode:
    """What some trials side by side do, all together."""

    slots: int
    samples: Rate
    """Trained a second."""
    images: Rate
    """Drawn a second."""
    samples_share: float
    """Part of the limit that training reaches, counting the work that plain PEFT and diffusers do for it.

    More than 1 is possible: what a text gives is kept over the steps, and the libraries that compute
    convolutions may be faster than those of products, by Winograd's method (Lavin & Gray 2016, arXiv
    1509.09308) on a GPU, or because a processor's maker is another.
    """
    images_share: float
    memory: int
    """Bytes at the peak: of tensors on a GPU, else of the whole process."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """Of a search of the space, training and drawing alone: measuring and writing come on top."""

    num_images: int
    """To train on."""
    trial_seconds: float
    """A trial's share of its pack."""
    study_seconds: float
    """Trials, noise floor, confirmation and the base's images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """All that `bench speed` finds; `--json` prints it by these names."""

    base: str
    device: str
    dtype: str
    resolution: int
    """Pixels of a side."""
    config: str
    """What is trained."""
    steps: int
    """Of the sampler."""
    product_flops: Rate
    """Floating-point operations a second in a large matrix product: the limit."""
    sample_flops: int
    """Floating-point operations of one trained sample."""
    image_flops: int
    """Of one drawn image."""
    alone: Mode
    packed: Mode
    slots_reason: str
    """Why so many are packed."""
    study: Estimate


def measure_speed(
    base: BaseModel,
    space: SearchSpace,
    trainer: Trainer,
    *,
    device: str,
    config: str,
    say: Callable[[str], None],
) -> Speed:
    """Measure the default configuration of a space; `device` and `config` are described in these words.

    Says what is measured now. Raises torch.OutOfMemoryError, and BenchError where `rehearse` does.
    """
    say("a large matrix product")
    limit = product_rate(base.device, base.dtype)
    flops = sample_flops(base, space.default), image_flops(base, space.sampler)
    slots, reason = space.slots, "as the space says"
    if slots == "auto":
        say("how many trials fit side by side")
        fit = find_fit(base, space, trainer)
        slots, reason = fit.slots, fit.reason
    modes = []
    for number in (1, slots):
        say("one trial alone" if number == 1 else f"{number} trials side by side")
        rehearsal = rehearse(base, trainer, space.default, number, space.sampler, SECONDS[base.device.type])
        modes.append(_mode(rehearsal, space.default.batch_size, flops, limit.median))
    return Speed(
        base=base.name,
        device=device,
        dtype=str(base.dtype).removeprefix("torch."),
        resolution=base.resolution,
        config=config,
        steps=space.sampler.steps,
        product_flops=limit,
        sample_flops=flops[0],
        image_flops=flops[1],
        alone=modes[0],
        packed=modes[1],
        slots_reason=reason,
        study=estimate(space, modes[1], NUM_IMAGES),
    )


def product_rate(device: torch.device, dtype: torch.dtype) -> Rate:
    """Floating-point operations a second of the product of two large square matrices."""
    size, number = SQUARE[device.type], PRODUCTS[device.type]
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)

    def several() -> None:
        for _ in range(number):
            torch.mm(a, b, out=out)

    several()
    return rate(timed(several, device, 1.0), number * 2 * size**3)


def rate(seconds: Sequence[float], count: float) -> Rate:
    """Of readings that each did `count`."""
    median = count / statistics.median(seconds)
    return Rate(median=median, spread=(count / min(seconds) - count / max(seconds)) / median)


def estimate(space: SearchSpace, mode: Mode, num_images: int) -> Estimate:
    """How long a search takes on so many images to train on, at the rates of `mode`."""
    rungs, prompts, confirm = space.rungs, space.prompts, space.confirm
    samples = sum(rungs) / len(rungs) * num_images
    # In images of all steps: the dev prompts may be drawn with fewer.
    dev = prompts.dev * prompts.seeds * space.sampler.at_rungs.steps / space.sampler.steps
    test = prompts.test * prompts.seeds
    probes = prompts.training + prompts.altered + prompts.style + prompts.unrelated
    probe = probes * prompts.probe_seeds
    trial = samples / mode.samples.median + dev * (len(rungs) + 1) / 2 / mode.images.median
    of_default = max(confirm.seeds, space.floor)
    retrained = confirm.finalists * confirm.seeds + of_default
    probed = confirm.seeds + of_default
    of_base = dev + test * (2 if space.floor else 1) + probe
    confirmed = (retrained * test + probed * probe + of_base) / mode.images.median
    return Estimate(
        num_images=num_images,
        trial_seconds=trial,
        study_seconds=(space.trials + retrained) * trial + confirmed,
    )


def _mode(rehearsal: Rehearsal, batch_size: int, flops: tuple[int, int], limit: float) -> Mode:
    samples = rate(rehearsal.step_seconds, rehearsal.num_slots * batch_size)
    images = rate(rehearsal.draw_seconds, rehearsal.num_images)
    return Mode(
        slots=rehearsal.num_slots,
        samples=samples,
        images=images,
        samples_share=samples.median * flops[0] / limit,
        images_share=images.median * flops[1] / limit,
        memory=rehearsal.allocated,
    )
