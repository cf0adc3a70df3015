"""Floor: how far scores differ when nothing differs but luck. A smaller difference is a TIE."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student

from bench.scoring.metrics import METRICS, Score
from bench.scoring.statistics import ALPHA

POWER = 0.8
Scores = Mapping[str, Score]
Drawing = tuple[Scores, Mapping[str, Sequence[float]]]
"""Scores of a model's images, and for each paired metric one value a prompt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricFloor:
    """The luck in one metric, in the metric's unit."""

    seed_spread: float
    """Standard deviation between trainings of one configuration that differ in nothing but their seed,
    scored on the same prompts with the same image seeds."""
    image_spread: float | None
    """Standard deviation of the base's score between disjoint sets of image seeds; None if not measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Floor:
    """The noise floor of one base, data set, set of prompts and default configuration."""

    num_seeds: int
    """Trainings of the default configuration that were compared, at least two."""
    num_prompts: int
    metrics: dict[str, MetricFloor]

    def smallest(self, metric: str, seeds_a: float, seeds_b: float) -> float | None:
        """The difference between means over `seeds_a` and `seeds_b` trainings that luck alone exceeds in
        5 % of comparisons: t(0.975, k − 1) · s · √(1/a + 1/b), with s the spread between k trainings.
        `math.inf` is the number of the base model, which no training changes.

        All trainings draw the same prompts from the same noise, so that only their seed tells two of one
        configuration apart: s holds all of that. None for a metric that was not measured.
        """
        return self._times(metric, seeds_a, seeds_b, float(student.ppf(1 - ALPHA / 2, self.num_seeds - 1)))

    def detectable(self, metric: str, seeds_a: float, seeds_b: float) -> float | None:
        """The true difference that exceeds `smallest` in 80 % of such comparisons: t(0.975) + t(0.8)."""
        quantiles = student.ppf([1 - ALPHA / 2, POWER], self.num_seeds - 1)
        return self._times(metric, seeds_a, seeds_b, float(quantiles.sum()))

    def _times(self, metric: str, seeds_a: float, seeds_b: float, factor: float) -> float | None:
        found = self.metrics.get(metric)
        return factor * found.seed_spread * math.sqrt(1 / seeds_a + 1 / seeds_b) if found else None


def measure_floor(trainings: Sequence[Scores], drawings: Sequence[Drawing] = ()) -> Floor:
    """From the scores of at least two trainings of one configuration, and of two drawings of the base.

    Between drawings, a metric that is a mean over P prompts varies by √(Σ d²/2P)/√P, where d are the
    prompts' differences; for the others |difference|/√2 is all that one pair of drawings tells.
    Raises ValueError with fewer than two trainings.
    """
    if len(trainings) < 2:
        raise ValueError(f"a floor needs at least 2 trainings, got {len(trainings)}")
    names = [name for name in METRICS if all(name in scores for scores in trainings)]
    return Floor(
        num_seeds=len(trainings),
        num_prompts=max((trainings[0][name].num_prompts for name in names), default=0),
        metrics={
            name: MetricFloor(
                seed_spread=float(np.std([scores[name].value for scores in trainings], ddof=1)),
                image_spread=_image_spread(name, *drawings) if len(drawings) == 2 else None,
            )
            for name in names
        },
    )


def _image_spread(name: str, first: Drawing, second: Drawing) -> float | None:
    if name in first[1] and name in second[1]:
        differences = np.subtract(first[1][name], second[1][name])
        return float(np.sqrt(np.square(differences).mean() / 2 / len(differences)))
    if name in first[0] and name in second[0]:
        return abs(first[0][name].value - second[0][name].value) / math.sqrt(2)
    return None


def floor_of(data: dict[str, Any]) -> Floor:
    """The inverse of `dataclasses.asdict`."""
    return Floor(**{**data, "metrics": {name: MetricFloor(**m) for name, m in data["metrics"].items()}})
