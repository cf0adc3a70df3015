"""Preservation: what has an adapter changed in images of prompts that have nothing to do with its training?

The images are compared with the base model's of the same prompts and seeds.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from bench.errors import UsageError
from bench.scoring.distance import KernelSums
from bench.scoring.metrics import Score
from bench.scoring.statistics import satterthwaite

MARGIN = 0.005
"""A mean fall of the CLIP score's raw cosine by less than this counts as none."""

Verdict = Literal["kept", "not shown", "lost"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Preservation:
    """Whether a mean change stays within a margin."""

    verdict: Verdict
    """kept: `low` is above −margin. lost: not kept, and `high` is below 0. Else not shown: either may hold,
    as when there are too few prompts."""
    change: float
    low: float
    high: float
    """95 % interval by prompts."""
    margin: float


def shift(features: NDArray[np.float32], base: NDArray[np.float32], num_seeds: int) -> NDArray[np.float64]:
    """Mean 1 − cosine of each prompt's images to the base's of the same seeds, shape (prompts,), in [0, 2].

    Both are unit features, shape (prompts × seeds, dim), prompt by prompt. Lower is less change; 0 only for
    equal images: even a harmless adapter changes each image a little. Its standard error is that of a mean
    over prompts.
    """
    cosines = np.einsum("nd,nd->n", features.astype(np.float64), base.astype(np.float64))
    means: NDArray[np.float64] = (1 - cosines).reshape(-1, num_seeds).mean(axis=1)
    return means


def shift_sums(features: NDArray[np.float32], base: NDArray[np.float32], num_seeds: int) -> KernelSums:
    """Kernel sums of the images and the base's, unit features of shape (prompts × seeds, dim).

    Their `distance()` is the paired MMD² × 1000 with the kernel of KID, a U-statistic that drops the pairs
    of one prompt (Gretton et al. 2012): 0 in expectation when the adapter draws what the base draws, where
    the standard form is biased below 0. Lower is less change; its error is the jackknife over prompts.
    """
    prompts = np.repeat(np.arange(len(features) // num_seeds), num_seeds)
    return KernelSums.of(features, base, prompts, prompts)


def preserved(score: Score, spread: float, num_trainings: int, margin: float = MARGIN) -> Preservation:
    """Non-inferiority of a mean change over prompts, such as that of the CLIP score (ICH E9, 1998).

    A test for a difference cannot show that there is none; this asks whether the lower end of the 95 %
    interval stays above −margin. `spread` is the standard deviation between trainings (NaN if not known),
    whose part in `score.stderr` has trainings − 1 degrees of freedom; that of prompts has prompts − 1.
    """
    if score.num_prompts < 2:
        raise UsageError(f"a standard error needs at least 2 prompts, got {score.num_prompts}")
    of_seeds = spread**2 / num_trainings if num_trainings > 1 and math.isfinite(spread) else 0.0
    of_prompts = max(score.stderr**2 - of_seeds, 0.0)
    parts = [(of_prompts, score.num_prompts - 1.0), (of_seeds, max(num_trainings - 1.0, 1.0))]
    half = float(student.ppf(0.975, satterthwaite(parts))) * score.stderr
    change, low, high = score.value, score.value - half, score.value + half
    verdict: Verdict = "kept" if low > -margin else "lost" if high < 0 else "not shown"
    return Preservation(verdict=verdict, change=change, low=low, high=high, margin=margin)
