"""Compare: sides that drew the same prompts from the same noise -> Comparison, from run folders alone. Pure.

A side is the winner of a search or another of its candidates, an adapter file that was scored, or the base
model. The unit is the prompt: of each, image seeds and trainings are averaged first.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from bench.comparable import check_comparable
from bench.config import TrialConfig
from bench.errors import MismatchError, MissingError, UsageError
from bench.run import (
    Candidate,
    Evaluation,
    Pictures,
    Run,
    has_evaluation,
    read_adapter_record,
    read_evaluation,
)
from bench.scoring.concepts import ConceptScores
from bench.scoring.distance import kernel_difference, kernel_difference_leave_outs
from bench.scoring.measure import UNRELATED, gain_between
from bench.scoring.metrics import METRICS, Metric, Score, judged
from bench.scoring.preservation import Preservation, preserved
from bench.scoring.statistics import (
    ALPHA,
    PairedTest,
    SwapStatistic,
    holm,
    jackknife_stderr,
    paired_test,
    satterthwaite,
    swap_test,
)

CHANGE = "clip_change"

Outcome = Literal["WIN", "TIE", "LOSS"]
MIRRORED: dict[Outcome, Outcome] = {"WIN": "LOSS", "TIE": "TIE", "LOSS": "WIN"}
Groups = NDArray[np.intp]
Values = NDArray[np.float64]


# Sides


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Side:
    """A model with all that was measured of it."""

    name: str
    run: Run
    label: str
    """`base`, a Candidate's, or an adapter's: one in its run."""
    config: TrialConfig | None
    """None of the base and of an adapter file."""
    trained: bool
    """False of the base model, which has no noise between trainings."""
    folders: tuple[Path, ...]
    """Those of `evaluations`."""
    evaluations: tuple[Evaluation, ...]
    """On the test prompts, one a training."""
    probes: tuple[Evaluation, ...]
    """The same on the probes; empty if none were drawn."""
    scores: dict[str, Score]
    """Means over trainings."""
    seed_spread: dict[str, float]
    """Standard deviation between trainings; NaN or nothing where it is not known."""

    @property
    def num_trainings(self) -> float:
        """Infinite for the base: another training cannot change it."""
        return len(self.evaluations) if self.trained else math.inf

    @property
    def one_training(self) -> bool:
        """Its noise between trainings is not known."""
        return self.num_trainings == 1

    @property
    def preservation(self) -> Preservation | None:
        """Non-inferiority to the base's CLIP score on unrelated prompts; None where it was not measured."""
        score = self.scores.get(CHANGE)
        if not self.trained or score is None:
            return None
        return preserved(score, self.seed_spread.get(CHANGE, math.nan), len(self.evaluations))

    @property
    def concepts(self) -> ConceptScores:
        """Scores of each concept of the test prompts, where there are several: means over trainings."""
        return self.run.by_concept("test", self.evaluations, over_base=self.trained)

    def per_prompt(self, metric: str) -> Values:
        """One value a prompt, averaged over trainings; of `clip_change` one an unrelated probe."""
        values = np.array([entry.per_prompt[_column(metric)] for entry in self._drawn(metric)], np.float64)
        means: Values = values.mean(axis=0)
        return means[_unrelated(self.run)] if metric == CHANGE else means

    def has_per_prompt(self, metric: str) -> bool:
        drawn = self._drawn(metric)
        return bool(drawn) and all(_column(metric) in entry.per_prompt for entry in drawn)

    def _drawn(self, metric: str) -> tuple[Evaluation, ...]:
        return self.probes if metric == CHANGE else self.evaluations


def _column(metric: str) -> str:
    """Of a change, the base's part cancels in a difference: CLIP scores are all that is needed."""
    return "clip_score" if metric == CHANGE else metric


def _unrelated(run: Run) -> NDArray[np.bool_]:
    return np.array([record.kind == UNRELATED for record in run.metadata.prompts.get("probe", ())], bool)


def winner_side(run: Run) -> Side:
    """The winner of a search, named like its run; raises MissingError for a search without a result."""
    result = run.result()
    if result is None:
        raise MissingError(f"{run.path}: no result yet; `bench search` has to finish first")
    winner = result.candidate(result.winner)
    if winner is None:
        raise UsageError(f"{run.path / 'result.json'}: damaged: its winner {result.winner!r} is not in it")
    return replace(candidate_side(run, winner), name=run.metadata.name)


def candidate_side(run: Run, candidate: Candidate) -> Side:
    """Any confirmed configuration, named by its label; raises MissingError for a lost evaluation."""
    folders = tuple(run.exam_folders(candidate, "test"))
    return Side(
        name=candidate.label,
        run=run,
        label=candidate.label,
        config=candidate.config,
        trained=True,
        folders=folders,
        evaluations=tuple(map(read_evaluation, folders)),
        probes=tuple(run.evaluations(candidate, "probe")),
        scores=candidate.scores,
        seed_spread=candidate.seed_spread,
    )


def base_side(run: Run) -> Side:
    """The base model of a run."""
    return _single(run, "base", trained=False, test=run.base_folder("test"), probe=run.base_folder("probe"))


def adapter_side(run: Run, label: str, name: str | None = None) -> Side:
    """An adapter file that was scored in a run, named like it unless a name is given; raises MissingError."""
    folder = run.adapter_folder(label)
    record = read_adapter_record(folder)
    side = _single(run, label, trained=True, test=folder / "test", probe=folder / "probe")
    return replace(side, name=name or record.file.stem)


def _single(run: Run, label: str, *, trained: bool, test: Path, probe: Path) -> Side:
    """A model of which there is one evaluation."""
    evaluation = read_evaluation(test)
    probes = (read_evaluation(probe),) if has_evaluation(probe) else ()
    scores = dict(evaluation.scores)
    for entry in probes:
        scores |= entry.scores if trained else _unchanged(run, evaluation.scores)
    return Side(
        name=label,
        run=run,
        label=label,
        config=None,
        trained=trained,
        folders=(test,),
        evaluations=(evaluation,),
        probes=probes,
        scores=scores,
        seed_spread={},
    )


def _unchanged(run: Run, scores: dict[str, Score]) -> dict[str, Score]:
    """The base's change from itself: none."""
    count = int(_unrelated(run).sum())
    if count < 2 or "clip_score" not in scores:
        return {}
    images = sum(len(record.seeds) for record in run.metadata.prompts["probe"] if record.kind == UNRELATED)
    extractor = scores["clip_score"].extractor
    return {CHANGE: Score(value=0.0, stderr=0.0, num_images=images, num_prompts=count, extractor=extractor)}


# Comparisons


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricComparison:
    """A minus B in a metric that is tested, and what may be said about it."""

    metric: str
    a: Score
    b: Score
    mean: float
    stderr: float
    low: float
    high: float
    """95 % interval; like `stderr` and `p_value` it covers training seeds of sides that have several."""
    p_value: float
    p_adjusted: float
    """Holm's, over the tested metrics of the comparison."""
    floor: float | None
    """The difference that luck alone exceeds in 5 % of comparisons; None where it was not measured."""
    verdict: Outcome
    """From A's point of view, in the metric's direction; TIE unless `p_adjusted` < 0.05 and outside the
    floor."""
    num_prompts: int

    @property
    def inside_floor(self) -> bool:
        return self.floor is not None and abs(self.mean) <= self.floor


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownMetric:
    """A metric of which values are given and no verdict: it is an alarm, biased, or neither good nor bad."""

    metric: str
    a: Score | None
    b: Score | None
    mean: float | None
    """A minus B; None where one of them has no score."""
    stderr: float | None


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Comparison:
    """Two sides on the same test prompts."""

    a: Side
    b: Side
    select_by: str
    """The metric of the overall verdict."""
    metrics: tuple[MetricComparison, ...]
    """Those that are tested, in the order of METRICS."""
    shown: tuple[ShownMetric, ...]
    differences: dict[str, tuple[float, ...]]
    """For each paired metric that is tested, A minus B for every prompt."""
    untested: tuple[str, ...]
    """Metrics that both sides have a score of, and not what a test needs."""
    p_value: float
    """Of the overall verdict: the larger of both rows' `p_adjusted`, by Holm over `num_pairs`."""
    num_pairs: int = 1
    """Comparisons that were made at once."""

    def row(self, metric: str | None) -> MetricComparison | None:
        """Of a tested metric."""
        return next((row for row in self.metrics if row.metric == metric), None)

    @property
    def main(self) -> MetricComparison | None:
        """The row of `select_by`; None if that is never tested, or what its test needs is lost."""
        return self.row(self.select_by)

    @property
    def judge(self) -> MetricComparison | None:
        """The judge's row of the same metric; None if there was no judge, or it has no such metric."""
        return self.row(judged(self.select_by))

    @property
    def one_training(self) -> tuple[Side, ...]:
        """Sides whose noise between trainings is not known."""
        return tuple(side for side in (self.a, self.b) if side.one_training)

    @property
    def floor_known(self) -> bool:
        return any(row.floor is not None for row in self.metrics)

    @property
    def verdict(self) -> Outcome:
        """Of the metric of choice, confirmed by the judge where there is one."""
        rows = [row for row in (self.main, self.judge) if row]
        agreed = {row.verdict for row in rows}
        sure = self.main is not None and self.p_value < ALPHA and len(agreed) == 1
        return rows[0].verdict if sure else "TIE"

    @property
    def reason(self) -> str:
        """Why, in one sentence."""
        return _reason(self)


def compare(run_a: Run, run_b: Run) -> Comparison:
    """The winners of two searches, by A's metric of choice; see `compare_sides`."""
    a, b = winner_side(run_a), winner_side(run_b)
    return compare_sides(a, b, run_a.space.select_by)


def compare_sides(a: Side, b: Side, select_by: str) -> Comparison:
    """Raises MismatchError naming all in which the sides differ that must be alike, MissingError.

    A WIN or LOSS needs more than luck with prompts: where a side was trained several times, the noise
    between its trainings is part of every error, interval and p-value; and where a noise floor was measured
    for either run, a difference inside it is a TIE whatever its p-value.
    """
    check_comparable(a.run, b.run)
    for side, other in ((a, b), (b, a)):
        if select_by not in side.scores:
            raise MissingError(
                f"{side.name} is not scored by {select_by}, by which it is compared with {other.name}"
            )
    tests, untested = _tests(a, b)
    adjusted = holm([test.p_value for test in tests.values()]) if tests else []
    rows = tuple(
        _row(name, test, p_adjusted, a, b)
        for (name, test), p_adjusted in zip(tests.items(), adjusted, strict=True)
    )
    paired = [name for name in tests if METRICS[name].paired]
    deciding = [row.p_adjusted for row in rows if row.metric in (select_by, judged(select_by))]
    return Comparison(
        a=a,
        b=b,
        select_by=select_by,
        metrics=rows,
        shown=tuple(_shown(a, b)),
        differences={name: tuple((a.per_prompt(name) - b.per_prompt(name)).tolist()) for name in paired},
        untested=untested,
        p_value=max(deciding, default=1.0),
    )


def compare_all(sides: Sequence[Side], select_by: str) -> tuple[Comparison, ...]:
    """Every pair, in the order of `itertools.combinations`; overall verdicts hold for all pairs together.

    Raises UsageError for sides that are the same, and what `compare_sides` raises.
    """
    pairs = list(itertools.combinations(sides, 2))
    for a, b in pairs:
        if a.label == b.label and a.run.path.resolve() == b.run.path.resolve():
            raise UsageError(f"{a.name} and {b.name} are the same: there is nothing to compare")
    for a, b in pairs:
        check_comparable(a.run, b.run)
    found = [compare_sides(a, b, select_by) for a, b in pairs]
    adjusted = holm([comparison.p_value for comparison in found])
    return tuple(
        replace(comparison, p_value=p_value, num_pairs=len(pairs))
        for comparison, p_value in zip(found, adjusted, strict=True)
    )


# Tests


def _tests(a: Side, b: Side) -> tuple[dict[str, PairedTest], tuple[str, ...]]:
    """A test for each tested metric that both sides have, in the order of METRICS; and those without one."""
    tests: dict[str, PairedTest] = {}
    untested = []
    for name, metric in METRICS.items():
        if metric.role != "tested" or name not in a.scores or name not in b.scores:
            continue
        test = _paired(metric, a, b) if metric.paired else _swapped(name, a, b)
        if test is None:
            untested.append(name)
        else:
            tests[name] = _with_seed_noise(test, _seed_variances(name, a, b))
    return tests, tuple(untested)


def _paired(metric: Metric, a: Side, b: Side) -> PairedTest | None:
    if not (a.has_per_prompt(metric.name) and b.has_per_prompt(metric.name)):
        return None
    first, second = a.per_prompt(metric.name), b.per_prompt(metric.name)
    if first.shape != second.shape:
        raise MismatchError(
            f"{a.name} and {b.name} cannot be compared, "
            f"they differ in prompts of {metric.name} ({len(first)} and {len(second)})"
        )
    return paired_test(first - second)


def _swapped(name: str, a: Side, b: Side) -> PairedTest | None:
    """Kernel distances: whole prompts are swapped between A and B; None without features of all."""
    pictures = a.run.pictures("test")
    real = None if pictures is None else _features(name, pictures)
    first, second = (_of_trainings(name, side) for side in (a, b))
    if pictures is None or real is None or not first or not second:
        return None
    # In pairs in which each training of A, and of B, stands equally often: means of pairs are means.
    pairs = [
        (first[index % len(first)], second[index % len(second)])
        for index in range(math.lcm(len(first), len(second)))
    ]
    num_prompts = len(a.run.metadata.prompts["test"])
    prompts = np.repeat(np.arange(num_prompts), len(first[0]) // num_prompts)
    sets = [(x, y, real, prompts, pictures.prompts) for x, y in pairs]
    leave_outs = np.mean([kernel_difference_leave_outs(*five) for five in sets], axis=0)
    statistic = _mean_of([kernel_difference(*five) for five in sets], num_prompts)
    return swap_test(statistic, num_prompts, stderr=jackknife_stderr(leave_outs))


def _mean_of(statistics: Sequence[SwapStatistic], num_prompts: int) -> SwapStatistic:
    """The mean of kernel differences: a sum with one term a prompt, whose sign a swap of it turns.

    The terms follow from one swap each, so that each of thousands of swaps is no more than a product.
    """

    def mean(kept: Groups, swapped: NDArray[np.bool_]) -> float:
        return float(np.mean([statistic(kept, swapped) for statistic in statistics]))

    everyone, one = np.arange(num_prompts), np.eye(num_prompts, dtype=bool)
    observed = mean(everyone, np.zeros(num_prompts, bool))
    terms = np.array([observed - mean(everyone, swapped) for swapped in one]) / 2

    def quick(kept: Groups, swapped: NDArray[np.bool_]) -> float:
        if len(kept) < num_prompts:
            return mean(kept, swapped)
        return observed - 2 * float(terms[swapped].sum())

    return quick


def _of_trainings(name: str, side: Side) -> list[NDArray[np.float32]]:
    """Features of each training's images; none where one of them has none."""
    found = [_features(name, evaluation) for evaluation in side.evaluations]
    kept = [features for features in found if features is not None]
    return kept if len(kept) == len(found) else []


def _features(name: str, of: Evaluation | Pictures) -> NDArray[np.float32] | None:
    """By the network that measures the metric."""
    return of.features if name == "kd" else of.judge_features


def _seed_variances(name: str, a: Side, b: Side) -> list[tuple[float, int]]:
    """Variance of each side's mean over trainings, with its degrees of freedom, where known."""
    found = []
    for side in (a, b):
        count, spread = len(side.evaluations), side.seed_spread.get(name, math.nan)
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
    freedom = satterthwaite(parts)
    half = float(student.ppf(1 - ALPHA / 2, freedom)) * stderr
    return PairedTest(
        mean=test.mean,
        stderr=stderr,
        low=min(test.low, test.mean - half),
        high=max(test.high, test.mean + half),
        p_value=max(test.p_value, float(2 * student.sf(abs(test.mean) / stderr, freedom))),
        num_prompts=test.num_prompts,
    )


def _row(name: str, test: PairedTest, p_adjusted: float, a: Side, b: Side) -> MetricComparison:
    floor = _floor(name, a, b)
    return MetricComparison(
        metric=name,
        a=a.scores[name],
        b=b.scores[name],
        mean=test.mean,
        stderr=test.stderr,
        low=test.low,
        high=test.high,
        p_value=test.p_value,
        p_adjusted=p_adjusted,
        floor=floor,
        verdict=_outcome(name, test.mean, p_adjusted, floor or 0.0),
        num_prompts=test.num_prompts,
    )


def _floor(name: str, a: Side, b: Side) -> float | None:
    """The larger of both runs' floors."""
    floors = [floor for floor in (a.run.floor(), b.run.floor()) if floor]
    found = [floor.smallest(name, a.num_trainings, b.num_trainings) for floor in floors]
    return max((smallest for smallest in found if smallest is not None), default=None)


def _outcome(name: str, mean: float, p_adjusted: float, floor: float) -> Outcome:
    if not p_adjusted < ALPHA or abs(mean) <= floor:
        return "TIE"
    return "WIN" if mean * METRICS[name].sign > 0 else "LOSS"


def _shown(a: Side, b: Side) -> Iterator[ShownMetric]:
    """Metrics of which at least one side has a score, and no verdict is given."""
    gains = gain_between(a.evaluations, b.evaluations)
    if a.probes and b.probes:
        gains |= gain_between(a.probes, b.probes)
    for name, metric in METRICS.items():
        first, second = a.scores.get(name), b.scores.get(name)
        if metric.role != "tested" and (first or second):
            mean, stderr = gains.get(name, (None, None))
            yield ShownMetric(metric=name, a=first, b=second, mean=mean, stderr=stderr)


# The verdict in words


def _reason(comparison: Comparison) -> str:
    main, judge = comparison.main, comparison.judge
    label = METRICS[comparison.select_by].label
    if METRICS[comparison.select_by].role != "tested":
        return f"{label} is shown without a verdict: it is never tested"
    if main is None:
        return f"{label} cannot be tested: what a test needs is not in the run folders"
    if main.verdict == "TIE":
        return f"the difference is {_doubt(main)}"
    if judge is not None and judge.verdict == "TIE":
        return f"the judge does not confirm it: its difference is {_doubt(judge)}"
    if judge is not None and judge.verdict != main.verdict:
        return "the judge sees the opposite"
    pairs = f" for {comparison.num_pairs} pairs" if comparison.num_pairs > 1 else ""
    p_value = f"{_p(comparison.p_value)} after correction{pairs}"
    if comparison.verdict == "TIE":
        return f"the difference is no more than chance may give, {p_value}"
    floor = " and outside the noise floor" if main.floor is not None else ", no noise floor being known"
    return f"the difference is beyond chance ({p_value}){floor}, and {_confirmed(comparison)}"


def _confirmed(comparison: Comparison) -> str:
    counterpart = judged(comparison.select_by)
    if comparison.judge:
        return "the judge confirms it"
    if counterpart is None:
        return "it is no measure that a judge could confirm"
    known = any(counterpart in side.scores for side in (comparison.a, comparison.b))
    return "the judge's features are lost" if known else "no judge was there to confirm it"


def _doubt(row: MetricComparison) -> str:
    if row.inside_floor:
        return "inside the noise floor"
    return f"no more than chance may give, {_p(row.p_adjusted)} after correction"


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"
