"""Rates: what training and drawing take here, from a short rehearsal of a configuration."""

from dataclasses import dataclass
from statistics import median

import torch

from bench.config import TrialConfig
from bench.errors import BenchError
from bench.packs import Packs
from bench.rehearsal import rehearse
from bench.space import Sampler

SECONDS = 0.5
"""That each part of the rehearsal is timed for, at least."""
STEPS = 6
"""Of the sampler, at most: decoding then weighs a little more than it will."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """Of a device with all its trials side by side, divided by their number."""

    sample_seconds: float
    """Of a trained sample."""
    forward_seconds: float
    """Of one forward of the UNet while an image is drawn."""


def measure(packs: Packs, config: TrialConfig, sampler: Sampler) -> Rates | None:
    """By trials like `config`, as many as go side by side; None if they give no finite loss or do not fit."""
    short = sampler.model_copy(update={"steps": min(STEPS, sampler.steps)})
    try:
        packs.progress.status("finding out how long it will take")
        found = rehearse(packs.base, packs.trainer, config, packs.num_slots, short, SECONDS, least=1)
    except (BenchError, torch.OutOfMemoryError):
        return None
    finally:
        packs.progress.status("")
    return Rates(
        sample_seconds=median(found.step_seconds) / (found.num_slots * config.batch_size),
        forward_seconds=median(found.draw_seconds) / (found.num_images * short.steps * 2),
    )
