"""The first sentences of a search report: what won, by how much, how sure that is."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

from bench.comparison import Comparison, MetricComparison, Outcome, base_side, candidate_side, compare_sides
from bench.errors import BenchError
from bench.run import Candidate, Result, Run
from bench.scoring.metrics import METRICS, Metric, Score, title
from reports.tracks import Track, tracks
from reports.trials import Point, best, scored
from reports.wording import capital, direction, plural, plus_minus, span, trial_name

T = TypeVar("T")


class Fact(NamedTuple):
    """One of the few numbers beside the verdict."""

    label: str
    value: str
    note: str
    verdict: str = ""
    """WIN, TIE or LOSS, where it is a difference."""
    track: Track | None = None
    """Its interval beside the noise floor; facts of one metric share a scale."""


class Contests(NamedTuple):
    """What `bench/comparison.py` says of a result."""

    over_base: dict[str, Comparison]
    """Label of a candidate -> it against the base model."""
    over_default: Comparison | None
    """The winner against the default; None if it is the default, or that could not be confirmed."""


class Verdict(NamedTuple):
    tone: str
    """`win`, `tie` or `open`: the colour of the page's first block."""
    headline: str
    detail: str
    facts: list[Fact]
    lead: str = ""
    """By how much, in a sentence."""


def verdict(
    run: Run,
    result: Result | None,
    points: list[Point],
    found: Contests | None = None,
    *,
    is_running: bool = False,
) -> Verdict:
    """`found` are the contests of the result, if they are known already."""
    if result is not None:
        return _finished(result, found or contests(run, result))
    if not points:
        return Verdict("open", "Nothing has been tried yet.", "The run folder holds no trial.", [])
    leading = best(points, run.space.select_by)
    if leading:
        return _unfinished(run, points, leading, is_running)
    if all(point.state == "failed" for point in points):
        return Verdict("open", "Every trial failed.", _reasons(points), [])
    return Verdict("open", "No trial has been scored yet.", _reasons(points), [])


def winner_of(result: Result) -> Candidate:
    return result.candidate(result.winner) or result.candidates[0]


def failures(candidate: Candidate) -> str:
    """`1 of 3 trainings failed`; empty if none did."""
    tried = len(candidate.records) + candidate.num_failed
    return f"{candidate.num_failed} of {plural(tried, 'training')} failed" if candidate.num_failed else ""


def contests(run: Run, result: Result) -> Contests:
    """Every candidate against the base, and the winner against the default, on the test prompts."""
    base = _known(lambda: base_side(run))
    sides = {c.label: side for c in result.candidates if (side := _known(partial(candidate_side, run, c)))}
    over_base: dict[str, Comparison] = {}
    for label, side in sides.items():
        if base and (found := _known(partial(compare_sides, side, base, result.select_by))):
            over_base[label] = found
    won, default = sides.get(result.winner), sides.get("default")
    if won is None or default is None or won.label == "default":
        return Contests(over_base, None)
    return Contests(over_base, _known(lambda: compare_sides(won, default, result.select_by)))


def contests_of(run: Run) -> Contests | None:
    """Those of its result; None while there is none."""
    result = run.result()
    return contests(run, result) if result else None


def _known(made: Callable[[], T]) -> T | None:
    """None where a run folder has lost what is needed: the report then says less, and still is one."""
    try:
        return made()
    except BenchError:
        return None


def _finished(result: Result, found: Contests) -> Verdict:
    metric, won = METRICS[result.select_by], winner_of(result)
    tone, headline, remark = _headline(won, found)
    score = won.scores[metric.name]
    against = [
        _said("the default config", found.over_default),
        _said("the base model", found.over_base.get(won.label)),
    ]
    detail = [
        remark,
        f"{title(metric, score)} {plus_minus(score.value, score.stderr)}, {direction(metric)}.",
        *against,
        _evidence(won, score),
    ]
    facts = _facts(won, metric, found)
    return Verdict(
        tone, headline, " ".join(text for text in detail if text), facts, _lead(won, metric, found)
    )


def _lead(won: Candidate, metric: Metric, found: Contests) -> str:
    """The gains, where there are any to speak of."""
    shown = {"the default config": found.over_default, "the base model": found.over_base.get(won.label)}
    gains = [
        f"{plus_minus(comparison.main.mean, comparison.main.stderr, signed=True)} over {name}"
        for name, comparison in shown.items()
        if comparison and comparison.main and comparison.verdict == "WIN"
    ]
    judges = [c.judge for c in shown.values() if c and c.main and c.verdict == "WIN"]
    agreed = bool(judges) and all(judge and judge.verdict == "WIN" for judge in judges)
    agrees = ", and a second network agrees" if agreed else ""
    return f"{metric.label}: {' and '.join(gains)}{agrees}." if gains else ""


def _headline(won: Candidate, found: Contests) -> tuple[str, str, str]:
    """Tone and headline, and a remark where the headline alone would mislead."""
    name, lead, base = capital(trial_name(won.label)), found.over_default, found.over_base.get(won.label)
    if base and base.verdict == "LOSS":
        return "tie", "No adapter beats the base model.", f"{name} was chosen, and is worse than the base."
    if won.label == "default":
        return "tie", "Keep the default config.", "No setting did better on the dev prompts after retraining."
    shown = "No setting was shown to beat the default config."
    if lead is None:
        return "tie", shown, f"{name} was chosen, but the default config could not be confirmed."
    if lead.verdict == "LOSS":
        return (
            "tie",
            "Keep the default config.",
            f"{name} was chosen on the dev prompts and lost on the test prompts.",
        )
    if lead.verdict == "TIE":
        return "tie", shown, f"{name} was chosen on the dev prompts."
    if len(won.records) == 1:
        return "tie", f"{name} leads, on one training seed.", ""
    if base and base.verdict == "TIE":
        return "tie", f"{name} beats the default config, but was not shown to beat the base.", ""
    return "win", f"{name} wins.", ""


def _said(name: str, comparison: Comparison | None) -> str:
    return f"Against {name}: {comparison.verdict}, {comparison.reason}." if comparison else ""


def _evidence(won: Candidate, score: Score) -> str:
    """What the numbers rest on, so that nobody reads too much into them."""
    if len(won.records) == 1:
        luck = "What another training would change is not known: a lead may be the luck of this one."
    else:
        luck = "The same trainings chose it, on dev prompts, so some of their luck remains in these numbers."
    failed = f" ({failures(won)})" if won.num_failed else ""
    return (
        f"Measured on {plural(score.num_prompts, 'test prompt')} that no choice has touched, with "
        f"{plural(len(won.records), 'fresh training')}{failed}. {luck}"
    )


def _facts(won: Candidate, metric: Metric, found: Contests) -> list[Fact]:
    score, base = won.scores[metric.name], found.over_base.get(won.label)
    known = [
        (label, comparison.main, comparison.verdict)
        for label, comparison in (("against the default", found.over_default), ("against the base", base))
        if comparison and comparison.main
    ]
    judged = [c for c in (found.over_default, base) if c and c.judge]
    if judged and judged[0].judge:
        label = "default" if judged[0] is found.over_default else "base"
        known.append((f"the judge, against the {label}", judged[0].judge, judged[0].judge.verdict))
    drawn = tracks([row for _, row, _ in known])
    facts = [_fact(*entry, track) for entry, track in zip(known, drawn, strict=True)]
    own = Fact("confirmed score", plus_minus(score.value, score.stderr), "± is one standard error")
    return [*facts, own]


def _fact(label: str, row: MetricComparison, outcome: Outcome, track: Track) -> Fact:
    decided = plus_minus(row.mean, row.stderr, signed=True)
    return Fact(label, decided, f"95 %: {span(row.low, row.high)}", outcome, track)


def _unfinished(run: Run, points: list[Point], found: Point, is_running: bool) -> Verdict:
    metric = METRICS[run.space.select_by]
    score = found.scores[metric.name]
    gain = plus_minus(score.gain, score.gain_stderr, signed=True)
    labels = {point.label for point in scored(points, metric.name)}
    detail = (
        f"Best so far: {trial_name(found.label)} at epoch {found.epoch}, {title(metric, score)} "
        f"{plus_minus(score.value, score.stderr)} ({gain} against the base) on "
        f"{plural(score.num_prompts, 'dev prompt')}; "
        f"{plural(len(labels), 'trial')} of {run.space.trials} scored. "
        "The best of many trials is flattered by chance: nothing is confirmed yet."
    )
    if is_running:
        return Verdict("open", "The search is running.", detail, [])
    again = "Run the same search command again to go on."
    return Verdict("open", "The search has not finished.", f"{detail} {again}", [])


def _reasons(points: list[Point]) -> str:
    counts = Counter(point.reason or "no reason recorded" for point in points if point.state == "failed")
    running = sum(point.state == "running" for point in points)
    parts = [f"{plural(count, 'trial')}: {reason}" for reason, count in counts.most_common(3)]
    parts += [f"{plural(running, 'trial')} started and not ended"] if running else []
    return "; ".join(parts) + "."
