"""Coverage of the nominal 95 % intervals where the truth is known: python tests/validation/coverage.py

Prints one row a case. Means over prompts: values a prompt of several shapes, and cosines of synthetic
features through `alignment.cosines`; the intervals are Student's t, the BCa bootstrap and the studentised
bootstrap, each over prompts. Kernel distances, to real pictures and as a gain over the base: value ±
t·jackknife error. Takes about three minutes on two cores.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from scipy.stats import bootstrap  # noqa: E402

from bench.scoring.alignment import cosines  # noqa: E402
from bench.scoring.distance import KernelSums, linear  # noqa: E402
from bench.scoring.statistics import interval, jackknife_stderr, mean_stderr  # noqa: E402

Array = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int, int], Array]
"""Generator, prompts, seeds -> values a prompt."""
MEANS, DISTANCES = 2000, 400
"""Repetitions."""
RESAMPLES = 999
DIM = 64
SPECTRUM = 1 / np.sqrt(np.arange(1, DIM + 1))
"""Deviations of the features' axes: a few matter, as in features of real images."""
CENTRE = np.r_[0.8, 0.5, np.zeros(DIM - 2)]


# Means over prompts


def normal(rng: np.random.Generator, prompts: int, seeds: int) -> Array:
    """Differences of cosines: 0.03 between prompts, 0.015 between seeds; mean 0.01."""
    values = rng.normal(0.01, 0.03, (prompts, 1)) + rng.normal(0, 0.015, (prompts, seeds))
    return np.asarray(values.mean(axis=1))


def skewed(rng: np.random.Generator, prompts: int, seeds: int) -> Array:
    """As exponential: most prompts gain little, few gain much; mean 0.03."""
    values = rng.exponential(0.03, (prompts, 1)) + rng.normal(0, 0.015, (prompts, seeds))
    return np.asarray(values.mean(axis=1))


def heavy(rng: np.random.Generator, prompts: int, seeds: int) -> Array:
    """Student's with 4 degrees of freedom between prompts; mean 0."""
    values = 0.02 * rng.standard_t(4, (prompts, 1)) + rng.normal(0, 0.015, (prompts, seeds))
    return np.asarray(values.mean(axis=1))


def rare(rng: np.random.Generator, prompts: int, seeds: int) -> Array:
    """Shares of images, such as those above τ: one image in ten; mean 0.1."""
    chance = rng.beta(1, 9, (prompts, 1))
    return np.asarray((rng.random((prompts, seeds)) < chance).mean(axis=1))


def features(rng: np.random.Generator, prompts: int, seeds: int) -> Array:
    """Cosines of an adapter's images to the true pictures."""
    topics = _topics(rng, prompts)
    return cosines(_images(rng, topics, seeds, 0.5), _images(rng, topics, 1, 0.0))


def gains(rng: np.random.Generator, prompts: int, seeds: int) -> Array:
    """The same minus the base's."""
    topics = _topics(rng, prompts)
    true = _images(rng, topics, 1, 0.0)
    return cosines(_images(rng, topics, seeds, 0.5), true) - cosines(_images(rng, topics, seeds, 1.0), true)


def _topics(rng: np.random.Generator, prompts: int) -> Array:
    return np.asarray(CENTRE + rng.normal(size=(prompts, DIM)) * SPECTRUM)


def _images(rng: np.random.Generator, topics: Array, seeds: int, off: float) -> Any:
    """Unit features of `seeds` images a topic, displaced along one axis by `off`."""
    rows = np.repeat(topics, seeds, axis=0)
    rows = rows + 0.6 * rng.normal(size=rows.shape) * SPECTRUM
    rows[:, 2] += off
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


TRUTHS: dict[Draw, float] = {normal: 0.01, skewed: 0.03, heavy: 0.0, rare: 0.1}
"""Exact where they can be; else the mean over many prompts."""


def student(values: Array, rng: np.random.Generator) -> tuple[float, float]:
    return interval(*mean_stderr(values), len(values))


def bca(values: Array, rng: np.random.Generator) -> tuple[float, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = bootstrap((values,), np.mean, n_resamples=RESAMPLES, method="BCa", rng=rng, axis=-1)
    return tuple(result.confidence_interval)


def studentised(values: Array, rng: np.random.Generator) -> tuple[float, float]:
    mean, stderr = mean_stderr(values)
    drawn = values[rng.integers(len(values), size=(RESAMPLES, len(values)))]
    errors = drawn.std(axis=1, ddof=1) / np.sqrt(len(values))
    pivots = (drawn.mean(axis=1) - mean) / np.where(errors > 0, errors, np.inf)
    low, high = np.quantile(pivots, [0.975, 0.025])
    return mean - low * stderr, mean - high * stderr


INTERVALS = (student, bca, studentised)


@dataclass(frozen=True, kw_only=True, slots=True)
class Means:
    """One row of the first table."""

    draw: Draw
    prompts: int
    seeds: int

    def row(self) -> str:
        rng = np.random.default_rng([self.prompts, self.seeds])
        truth = TRUTHS.get(self.draw)
        if truth is None:
            truth = float(self.draw(rng, 300_000, self.seeds).mean())
        covered, widths = np.zeros(len(INTERVALS)), np.zeros(len(INTERVALS))
        for _ in range(MEANS):
            values = self.draw(rng, self.prompts, self.seeds)
            ends = np.array([method(values, rng) for method in INTERVALS])
            covered += (ends[:, 0] <= truth) & (truth <= ends[:, 1])
            widths += ends[:, 1] - ends[:, 0]
        shares = "  ".join(f"{share:6.1%}" for share in covered / MEANS)
        relative = "  ".join(f"{width:5.2f}" for width in widths / widths[0])
        return f"{self.draw.__name__:9} {self.prompts:4} x {self.seeds}   {shares}     {relative}"


# Kernel distances


@dataclass(frozen=True, kw_only=True, slots=True)
class Distances:
    """One row of the second table."""

    prompts: int
    seeds: int
    extra: int
    """Real pictures that belong to no prompt, beside the one of each prompt."""
    off: float
    """Displacement of the adapter's images; the base's are displaced by 1."""

    def row(self) -> str:
        rng = np.random.default_rng([self.prompts, self.seeds, self.extra, int(10 * self.off)])
        truth, truth_base = _truth(self.off), _truth(1.0)
        hits = np.array([self._hits(rng, truth, truth - truth_base) for _ in range(DISTANCES)])
        shares = "  ".join(f"{share:10.1%}" for share in hits.mean(axis=0))
        size = f"{self.prompts:4} x {self.seeds} against {self.prompts + self.extra:3}"
        return f"{size}  {self.off:4.1f}  {truth:8.2f}  {shares}"

    def _hits(self, rng: np.random.Generator, truth: float, gain: float) -> list[bool]:
        """Of the value and of the gain, each by leaving out prompts alone, and pictures too."""
        topics = _topics(rng, self.prompts)
        real = _images(rng, np.concatenate([topics, _topics(rng, self.extra)]), 1, 0.0)
        groups, pictures = np.repeat(np.arange(self.prompts), self.seeds), np.arange(len(real))
        own, base = (
            KernelSums.of(_images(rng, topics, self.seeds, off), real, groups, pictures)
            for off in (self.off, 1.0)
        )
        hits = []
        for count in (self.prompts, own.num_groups):
            leave_outs = own.leave_outs(count), own.leave_outs(count) - base.leave_outs(count)
            for value, wanted, values in zip(
                (own.distance(), own.distance() - base.distance()), (truth, gain), leave_outs, strict=True
            ):
                low, high = interval(value, jackknife_stderr(values), self.prompts)
                hits.append(low <= wanted <= high)
        return hits


@lru_cache
def _truth(off: float, rows: int = 6000, repetitions: int = 12) -> float:
    """From independent images and pictures, far more than any case has; 0 where both are drawn alike."""
    if off == 0:
        return 0.0
    rng = np.random.default_rng(int(10 * off))
    estimates = []
    for _ in range(repetitions):
        x, y = (_images(rng, _topics(rng, rows), 1, shift) for shift in (off, 0.0))
        estimates.append(_mmd(x, y))
    return float(np.mean(estimates))


def _mmd(x: Array, y: Array) -> float:
    n = len(x)
    xx, yy, xy = (((linear(a, b) + 1) ** 3).sum() for a, b in ((x, x), (y, y), (x, y)))
    return float(1000 * ((xx + yy - 16 * n) / (n * (n - 1)) - 2 * xy / n**2))


# The tables


SIZES = ((12, 2), (24, 2), (48, 2), (48, 4), (96, 2))
MEAN_CASES = [
    Means(draw=draw, prompts=prompts, seeds=seeds)
    for draw in (normal, skewed, heavy, rare, features, gains)
    for prompts, seeds in SIZES
]
DISTANCE_CASES = [
    Distances(prompts=prompts, seeds=2, extra=extra, off=off)
    for prompts, extra in ((24, 0), (48, 0), (48, 48), (24, 96), (96, 96))
    for off in (0.0, 0.5, 1.5)
]


def _row(case: Means | Distances) -> str:
    return case.row()


def main() -> None:
    with ProcessPoolExecutor(max_workers=2) as pool:
        print(f"means over prompts, {MEANS} repetitions each: coverage, width relative to Student's t")
        print("values    prompts    Student     BCa  student.b.   t     BCa    s.b.")
        _print(pool.map(_row, MEAN_CASES))
        print(f"\nkernel distance ± t·jackknife, {DISTANCES} repetitions each; jackknife over prompts alone,")
        print("and over prompts and pictures; gain: minus the base's, whose images are displaced by 1")
        print("images      pictures   off     truth    P: value    P: gain  all: value   all: gain")
        _print(pool.map(_row, DISTANCE_CASES))


def _print(rows: Iterator[str]) -> None:
    for row in rows:
        print(row, flush=True)


if __name__ == "__main__":
    main()
