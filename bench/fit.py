"""How many trials fit side by side: `slots: auto` of a space."""

import math
from dataclasses import dataclass

import psutil
import torch

from bench.base import BaseModel, adaptable_names, target_names
from bench.config import TrialConfig
from bench.packs import Trainer
from bench.rehearsal import Rehearsal, rehearse
from bench.space import IntChoices, IntRange, ModuleChoices, SearchSpace, modules_to_text

HEADROOM = 0.1
"""Of the memory, left free."""
WORTH = 0.1
"""Part of the time of a trial's own work that its share of a pack's fixed time may be: below, no more pay."""
MOST = 32
PER_CORE = 4
"""Trials that a processor core trains in turns: enough that all cores end at about the same time."""
PER_WEIGHTS = 2
"""Memory of a trial on a processor, in sizes of the UNet; a rule of thumb."""
SECONDS = 2.0
"""Of steps that each part of the preflight times."""
ROUNDS = 3
"""Of trials that a search has at least: the second learns from the first."""
GIGABYTE = 1e9


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """The number of trials side by side, and why."""

    slots: int
    reason: str


def find_fit(
    base: BaseModel, space: SearchSpace, trainer: Trainer, num_devices: int = 1, num_pictures: int = 0
) -> Fit:
    """Of the heaviest configuration of a space, on each of several devices that are like the base's.

    Each will hold so many pictures, encoded. Takes two rehearsals on a GPU, nothing elsewhere.
    """
    data = data_bytes(base, space, num_pictures)
    rounds = max(1, space.trials // (ROUNDS * num_devices))
    if base.device.type != "cuda":
        weights = sum(parameter.nbytes for parameter in base.unet.parameters())
        available = max(0, psutil.virtual_memory().available // num_devices - data)
        return fit_processor(torch.get_num_threads(), available, weights, rounds)
    config = heaviest(base, space)
    one = _rehearsed(base, trainer, config, space, 1)
    two = _rehearsed(base, trainer, config, space, 2) if one else None
    if not one or not two:
        return Fit(slots=1, reason="two trials side by side do not fit in memory")
    return fit_measured(one, two, max(0, _available(base.device) - data), rounds)


def data_bytes(base: BaseModel, space: SearchSpace, num_pictures: int) -> int:
    """Of pictures and captions, encoded, in all the variants that any trial may draw, and of the class's."""
    latents = 2 * 4 * math.prod(base.latent_shape)  # mean and standard deviation in float32
    tokens, width, pooled = base.text_shape
    text = (tokens * width + pooled) * base.dtype.itemsize
    variants = space.variants
    each = len(variants.views) * latents + variants.num_wordings * text
    of_class = space.class_images if space.has_prior else 0
    return num_pictures * each + of_class * (latents + text)


def fit_processor(cores: int, available: int, weights: int, rounds: int) -> Fit:
    """By rules: cores, bytes of memory beside the data, bytes of the UNet, and the rounds of the search."""
    room = max(1, math.floor((1 - HEADROOM) * available / (PER_WEIGHTS * weights)))
    limits = {
        f"{PER_CORE} on each of {cores} processor cores": PER_CORE * cores,
        f"{available / GIGABYTE:.0f} GB of memory": room,
    }
    return _least(limits, rounds)


def fit_measured(one: Rehearsal, two: Rehearsal, available: int, rounds: int) -> Fit:
    """From rehearsals of one and of two trials: memory and time of a step are linear in their number.

    What drawing takes on top does not depend on it, as it goes in batches of one size. `available` is the
    device's memory in bytes beside the data, `rounds` the most that the search leaves.
    """
    drawing = max(one.drawing, two.drawing)
    fit = slots_that_fit(one.reserved + drawing, two.reserved + drawing, available)
    pay = slots_that_pay(min(one.step_seconds), min(two.step_seconds))
    each = (two.reserved - one.reserved) / GIGABYTE
    memory = f"{available / GIGABYTE:.0f} GB of memory at {each:.1f} GB a trial"
    limits = {memory: fit, "more would hardly be faster": pay}
    return _least(limits, rounds)


def slots_that_fit(one: int, two: int, available: int) -> int:
    """How many trials leave HEADROOM free where 1 and 2 take so many bytes; 1 at least."""
    each = two - one
    left = (1 - HEADROOM) * available - one
    return MOST if each <= 0 else max(1, 1 + math.floor(left / each))


def slots_that_pay(one: float, two: float) -> int:
    """How many trials are worth having in one step, where steps of 1 and 2 take so many seconds.

    A step of K takes a + b · K; a trial's share of a is small beside its own b from some K on.
    """
    each = two - one
    fixed = one - each
    if fixed <= 0:
        return 1
    return MOST if each <= 0 else max(1, min(MOST, math.ceil(fixed / (WORTH * each))))


def heaviest(base: BaseModel, space: SearchSpace) -> TrialConfig:
    """The default at the highest rank, with the most modules, DoRA and text encoders, as far as a space may
    sample them."""
    point = space.parameters_of(space.default)
    if "text_encoder_learning_rate" in point:
        point["text_encoder_learning_rate"] = space.highest("text_encoder_learning_rate")
    rank, modules, dora = space.parameters.rank, space.parameters.target_modules, space.parameters.dora
    if isinstance(rank, IntChoices):
        point["rank"] = max(rank.choices)
    elif isinstance(rank, IntRange):
        point["rank"] = rank.high
    if dora:
        point["dora"] = max(dora.choices)
    configs = [space.config_of(point)]
    if isinstance(modules, ModuleChoices):
        texts = [modules_to_text(choice) for choice in modules.choices]
        configs = [space.config_of({**point, "target_modules": text}) for text in texts]
    names = adaptable_names(base.unet)
    return max(configs, key=lambda config: len(target_names(names, config)))


def _rehearsed(
    base: BaseModel, trainer: Trainer, config: TrialConfig, space: SearchSpace, number: int
) -> Rehearsal | None:
    """None if so many do not fit in memory."""
    sampler = space.sampler.model_copy(update={"steps": 2})
    try:
        return rehearse(base, trainer, config, number, sampler, SECONDS)
    except torch.OutOfMemoryError:
        return None


def _available(device: torch.device) -> int:
    """Bytes that this process has or may take, other processes and its own limit considered."""
    free, total = torch.cuda.mem_get_info(device)
    limit = int(total * torch.cuda.get_per_process_memory_fraction(device))
    return min(free + torch.cuda.memory_reserved(device), limit)


def _least(limits: dict[str, int], rounds: int) -> Fit:
    limits = {**limits, f"a search of at least {ROUNDS} rounds": rounds, "at most": MOST}
    listed = ", ".join(f"{number} ({why})" for why, number in limits.items())
    return Fit(slots=min(limits.values()), reason=f"the least of {listed}")
