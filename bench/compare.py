"""Compare: two finished runs -> Comparison, from their folders alone. Pure.

What is compared are the two winners, on the test prompts, as they were retrained on fresh seeds.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from bench.errors import MismatchError, MissingError
from bench.run import Candidate, Evaluation, Result, Run, has_evaluation, read_evaluation
from bench.scoring.distance import frechet, kernel_difference
from bench.scoring.metrics import METRICS, Score
from bench.scoring.statistics import PairedTest, SwapStatistic, holm, paired_test, swap_test

ALPHA = 0.05
FRECHET_RESAMPLES = 499
"""Each swap costs two Fréchet distances a training; enough for p = 0.002."""
SWAPPED = ("kd", "fid", "drift")
"""Distances between the features that an Evaluation holds."""
SHORT = 24

Outcome = Literal["WIN", "TIE", "LOSS"]
Groups = NDArray[np.intp]
Features = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricComparison:
    """A's winner minus B's winner in one metric, and what may be said about it."""

    metric: str
    a: Score
    b: Score
    mean: float
    stderr: float
    low: float
    high: float
    """95 % interval; like `stderr` and `p_value` it covers training seeds where there are several."""
    p_value: float
    p_adjusted: float
    """Holm's, over all metrics of the comparison."""
    verdict: Outcome
    """From A's point of view, in the metric's direction; TIE unless `p_adjusted` < 0.05."""
    num_prompts: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Two winners on the same test prompts."""

    name_a: str
    name_b: str
    winner_a: Candidate
    winner_b: Candidate
    select_by: str
    """A's; the metric of the overall verdict."""
    metrics: tuple[MetricComparison, ...]
    differences: dict[str, tuple[float, ...]]
    """For each paired metric, A minus B for every test prompt, averaged over seeds."""
    seed_noise: bool
    """Both winners were trained on several seeds, so that errors hold the noise between trainings."""
    untested: tuple[str, ...]
    """Metrics that both runs scored and whose features are not in the folders."""

    @property
    def verdict(self) -> Outcome:
        return self.main.verdict

    @property
    def main(self) -> MetricComparison:
        """The row of `select_by`."""
        return next(row for row in self.metrics if row.metric == self.select_by)


class _Reference(NamedTuple):
    """What a distance is measured to."""

    features: Features
    prompts: Groups
    """The prompt that each row belongs to; a number of its own if to none."""


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class _Side:
    """One winner with its retrainings."""

    run: Run
    winner: Candidate
    evaluations: tuple[Evaluation, ...]

    def per_prompt(self, metric: str) -> NDArray[np.float64]:
        """One value a prompt, averaged over training seeds."""
        values = np.array([evaluation.per_prompt[metric] for evaluation in self.evaluations], np.float64)
        means: NDArray[np.float64] = values.mean(axis=0)
        return means


def compare(run_a: Run, run_b: Run) -> Comparison:
    """Paired differences of the two winners; raises MismatchError for unlike runs, MissingError.

    A WIN or LOSS needs more than luck with prompts: where both winners were trained on several seeds,
    the noise between trainings is part of every error, interval and p-value.
    """
    result_a, result_b = _result(run_a), _result(run_b)
    check_comparable(run_a, run_b)
    a, b = _side(run_a, result_a), _side(run_b, result_b)
    tests, untested = _tests(a, b)
    if result_a.select_by not in tests:
        raise MissingError(f"{run_b.path}: not scored by {result_a.select_by}, which {run_a.path} selects by")
    adjusted = holm([test.p_value for test in tests.values()])
    rows = [
        _row(name, test, p_adjusted, a, b)
        for (name, test), p_adjusted in zip(tests.items(), adjusted, strict=True)
    ]
    paired = [name for name in tests if METRICS[name].paired]
    return Comparison(
        name_a=run_a.metadata.name,
        name_b=run_b.metadata.name,
        winner_a=a.winner,
        winner_b=b.winner,
        select_by=result_a.select_by,
        metrics=tuple(rows),
        differences={name: tuple((a.per_prompt(name) - b.per_prompt(name)).tolist()) for name in paired},
        seed_noise=min(len(a.evaluations), len(b.evaluations)) > 1,
        untested=untested,
    )


def check_comparable(run_a: Run, run_b: Run) -> None:
    """Raises MismatchError naming each thing that must be the same and is not."""
    a, b = _conditions(run_a), _conditions(run_b)
    unlike = [f"{name} ({_short(a[name])} and {_short(b[name])})" for name in a if a[name] != b[name]]
    if unlike:
        raise MismatchError(f"these runs cannot be compared, they differ in {', '.join(unlike)}")


def _conditions(run: Run) -> dict[str, Any]:
    metadata, space = run.metadata, run.space
    return {
        "base_fingerprint": metadata.base_fingerprint,
        "data_fingerprint": metadata.data_fingerprint,
        "scorer_fingerprint": metadata.scorer_fingerprint,
        "prompts_fingerprint": metadata.prompts_fingerprint,
        "sampler.steps": space.sampler.steps,
        "sampler.guidance": space.sampler.guidance,
        "resolution": space.resolution,
        "dtype": space.dtype,
    }


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= SHORT else text[: SHORT - 1] + "…"


def _result(run: Run) -> Result:
    result = run.result()
    if result is None:
        raise MissingError(f"{run.path}: no result yet; `bench search` has to finish first")
    return result


def _side(run: Run, result: Result) -> _Side:
    winner = next(candidate for candidate in result.candidates if candidate.label == result.winner)
    return _Side(run=run, winner=winner, evaluations=tuple(run.evaluations(winner, "test")))


# Tests


def _tests(a: _Side, b: _Side) -> tuple[dict[str, PairedTest], tuple[str, ...]]:
    """A test for each metric that both winners have, in the order of METRICS; and those without one."""
    tests: dict[str, PairedTest] = {}
    untested = []
    for name in METRICS:
        if name not in a.winner.scores or name not in b.winner.scores:
            continue
        if METRICS[name].paired and name not in a.evaluations[0].per_prompt:
            continue  # of probes
        test = _paired(name, a, b) if METRICS[name].paired else _swapped(name, a, b)
        if test is None:
            untested.append(name)
        else:
            tests[name] = _with_seed_noise(test, _seed_variances(name, a, b))
    return tests, tuple(untested)


def _paired(name: str, a: _Side, b: _Side) -> PairedTest:
    first, second = a.per_prompt(name), b.per_prompt(name)
    if first.shape != second.shape:
        raise MismatchError(
            f"these runs cannot be compared, they differ in test prompts ({len(first)} and {len(second)})"
        )
    return paired_test(first - second)


def _swapped(name: str, a: _Side, b: _Side) -> PairedTest | None:
    """Whole prompts are swapped between A and B; None where what it needs is not in the folders."""
    reference = _reference(name, a.run) if name in SWAPPED else None
    if reference is None:
        return None
    num_prompts = len(a.run.metadata.prompts["test"])
    build = _kernel_statistic if name == "kd" else _frechet_statistic
    statistics = [
        build(x.features, y.features, reference, num_prompts)
        for x, y in _every_pairing(a.evaluations, b.evaluations)
    ]

    def mean(kept: Groups, swapped: NDArray[np.bool_]) -> float:
        return float(np.mean([statistic(kept, swapped) for statistic in statistics]))

    return swap_test(mean, num_prompts) if name == "kd" else swap_test(mean, num_prompts, FRECHET_RESAMPLES)


def _reference(name: str, run: Run) -> _Reference | None:
    """The base's images for drift, else all held-out real pictures."""
    from safetensors.numpy import load_file

    if name == "drift":
        folder = run.base_folder("test")
        if not has_evaluation(folder):
            return None
        features = read_evaluation(folder).features
        num_prompts = len(run.metadata.prompts["test"])
        return _Reference(features, np.repeat(np.arange(num_prompts), len(features) // num_prompts))
    file = run.path / "real" / "test" / "features.safetensors"
    if not file.exists():
        return None
    tensors = load_file(file)
    return _Reference(tensors["features"], tensors["prompts"])


def _every_pairing(
    a: tuple[Evaluation, ...], b: tuple[Evaluation, ...]
) -> list[tuple[Evaluation, Evaluation]]:
    """Pairs in which each training of A, and of B, stands equally often: means of pairs are means."""
    return [(a[index % len(a)], b[index % len(b)]) for index in range(math.lcm(len(a), len(b)))]


def _kernel_statistic(a: Features, b: Features, reference: _Reference, num_prompts: int) -> SwapStatistic:
    images = np.repeat(np.arange(num_prompts), len(a) // num_prompts)
    return kernel_difference(a, b, reference.features, images, reference.prompts)


def _frechet_statistic(a: Features, b: Features, reference: _Reference, num_prompts: int) -> SwapStatistic:
    """FID(a) − FID(b), from inner products taken once for all swaps."""
    both, fixed = np.concatenate([a, b]).astype(np.float64), reference.features.astype(np.float64)
    xx, xy, yy = both @ both.T, both @ fixed.T, fixed @ fixed.T
    rows = np.arange(len(both)).reshape(2, num_prompts, -1)

    def statistic(kept: Groups, swapped: NDArray[np.bool_]) -> float:
        left_out = np.setdiff1d(np.arange(num_prompts), kept)
        columns = np.flatnonzero(~np.isin(reference.prompts, left_out))
        first = swapped[kept].astype(int)
        x, y = (rows[side, kept].ravel() for side in (first, 1 - first))
        own = yy[np.ix_(columns, columns)]
        return frechet(xx[np.ix_(x, x)], xy[np.ix_(x, columns)], own) - frechet(
            xx[np.ix_(y, y)], xy[np.ix_(y, columns)], own
        )

    return statistic


def _seed_variances(name: str, a: _Side, b: _Side) -> list[tuple[float, int]]:
    """Variance of each side's mean over training seeds, with its degrees of freedom, where known."""
    found = []
    for side in (a, b):
        count, spread = len(side.evaluations), side.winner.seed_spread.get(name, math.nan)
        if count > 1 and math.isfinite(spread):
            found.append((spread**2 / count, count - 1))
    return found


def _with_seed_noise(test: PairedTest, variances: list[tuple[float, int]]) -> PairedTest:
    """Join the noise between trainings to a test over prompts.

    The test over prompts takes the trained adapters as given: two seeds of one configuration would often
    be told apart. Variances add up; degrees of freedom are Welch and Satterthwaite's. The p-value is the
    larger of both tests.
    """
    stderr = math.sqrt(test.stderr**2 + sum(variance for variance, _ in variances))
    if not variances or not stderr > 0:
        return test
    parts = [(test.stderr**2, test.num_prompts - 1), *variances]
    freedom = stderr**4 / sum(variance**2 / degrees for variance, degrees in parts)
    half = float(student.ppf(1 - ALPHA / 2, freedom)) * stderr
    return PairedTest(
        mean=test.mean,
        stderr=stderr,
        low=min(test.low, test.mean - half),
        high=max(test.high, test.mean + half),
        p_value=max(test.p_value, float(2 * student.sf(abs(test.mean) / stderr, freedom))),
        num_prompts=test.num_prompts,
    )


def _row(name: str, test: PairedTest, p_adjusted: float, a: _Side, b: _Side) -> MetricComparison:
    return MetricComparison(
        metric=name,
        a=a.winner.scores[name],
        b=b.winner.scores[name],
        mean=test.mean,
        stderr=test.stderr,
        low=test.low,
        high=test.high,
        p_value=test.p_value,
        p_adjusted=p_adjusted,
        verdict=_outcome(name, test.mean, p_adjusted),
        num_prompts=test.num_prompts,
    )


def _outcome(name: str, mean: float, p_adjusted: float) -> Outcome:
    if not p_adjusted < ALPHA or mean == 0:
        return "TIE"
    return "WIN" if (mean > 0) == (METRICS[name].direction == "maximize") else "LOSS"
