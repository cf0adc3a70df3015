"""The first sentences of a search report: what won, by how much, how sure that is."""

from collections import Counter
from typing import NamedTuple

from bench.run import Candidate, Result, Run
from bench.scoring.metrics import METRICS, Metric, Score, title
from reports.trials import Point, best, scored
from reports.wording import capital, outcome, plural, plus_minus, sign, trial_name


class Fact(NamedTuple):
    """One of the few numbers beside the verdict."""

    label: str
    value: str
    note: str


class Verdict(NamedTuple):
    tone: str
    """`win`, `tie` or `open`: the colour of the page's first block."""
    headline: str
    detail: str
    facts: list[Fact]


def verdict(run: Run, result: Result | None, points: list[Point]) -> Verdict:
    if result is not None:
        return _finished(result)
    if not points:
        return Verdict("open", "Nothing has been tried yet.", "The run folder holds no trial.", [])
    found = best(points, run.space.select_by)
    if found:
        return _unfinished(run, points, found)
    if all(point.state == "failed" for point in points):
        return Verdict("open", "Every trial failed.", _reasons(points), [])
    return Verdict("open", "No trial has been scored yet.", _reasons(points), [])


def winner_of(result: Result) -> Candidate:
    return candidate_of(result, result.winner) or result.candidates[0]


def candidate_of(result: Result, label: str) -> Candidate | None:
    return next((candidate for candidate in result.candidates if candidate.label == label), None)


def _finished(result: Result) -> Verdict:
    metric, won = METRICS[result.select_by], winner_of(result)
    score, lead = won.scores[metric.name], result.gain_over_default.get(metric.name)
    facts, evidence, name = _facts(score, lead), _evidence(won, result), capital(trial_name(won.label))
    if outcome(metric, score.gain, score.gain_stderr) == "worse":
        return Verdict(
            "tie", "No adapter beats the base model.", f"{name} scored best of them. {evidence}", facts
        )
    if won.label == "default":
        return Verdict(
            "tie", "Keep the default config.", f"No setting was shown to beat it. {evidence}", facts
        )
    if lead and outcome(metric, *lead) == "better" and len(won.records) == 1:
        return Verdict("tie", f"{name} leads, on one training seed.", evidence, facts)
    if lead and outcome(metric, *lead) == "better":
        return Verdict("win", f"{name} wins.", evidence, facts)
    why = "its lead is within two standard errors" if lead else "the default config could not be confirmed"
    headline = "No setting was shown to beat the default config."
    return Verdict("tie", headline, f"{name} scored best, but {why}. {evidence}", facts)


def _evidence(won: Candidate, result: Result) -> str:
    """The winner's score and gains, and what they rest on."""
    metric = METRICS[result.select_by]
    score, lead = won.scores[metric.name], result.gain_over_default.get(metric.name)
    over = f" and {plus_minus(*lead, signed=True)} against the default config" if lead else ""
    return (
        f"{title(metric, score)} {plus_minus(score.value, score.stderr)}: "
        f"{_gain(score)} against the base{over}, "
        f"on {plural(score.num_prompts, 'prompt')} the search never saw, "
        f"{plural(len(won.records), 'training seed')}.{_doubt(won, metric)}"
    )


def _gain(score: Score) -> str:
    return plus_minus(score.gain, score.gain_stderr, signed=True)


def _doubt(won: Candidate, metric: Metric) -> str:
    """What has to be added so that nobody reads too much, or the wrong way, into the numbers."""
    score = won.scores[metric.name]
    notes = {
        "better": " Lower is better." if sign(metric) < 0 else "",
        "worse": " That is worse than the base.",
        "same": " It was not shown to beat the base.",
    }
    alone = " What another training seed would change is not known." if len(won.records) == 1 else ""
    return notes[outcome(metric, score.gain, score.gain_stderr)] + alone


def _facts(score: Score, lead: tuple[float, float] | None) -> list[Fact]:
    facts = [
        Fact("confirmed score", plus_minus(score.value, score.stderr), "± is one standard error"),
        Fact("against the base", _gain(score), _errors(score.gain, score.gain_stderr)),
    ]
    if lead:
        facts.append(Fact("against the default", plus_minus(*lead, signed=True), _errors(*lead)))
    return facts


def _errors(gain: float | None, stderr: float | None) -> str:
    """How many standard errors a gain is: the plain measure of how sure it is."""
    if gain is None or not stderr:
        return "no standard error known"
    return f"{abs(gain) / stderr:.1f} standard errors"


def _unfinished(run: Run, points: list[Point], found: Point) -> Verdict:
    metric = METRICS[run.space.select_by]
    score = found.scores[metric.name]
    labels = {point.label for point in scored(points, metric.name)}
    detail = (
        f"Best so far: {trial_name(found.label)} at epoch {found.epoch}, {title(metric, score)} "
        f"{plus_minus(score.value, score.stderr)} ({_gain(score)} against the base) on "
        f"{plural(score.num_prompts, 'dev prompt')}; "
        f"{plural(len(labels), 'trial')} of {run.space.trials} scored. "
        "The best of many trials is flattered by chance: nothing is confirmed yet. "
        "Run the same search command again to go on."
    )
    return Verdict("open", "The search has not finished.", detail, [])


def _reasons(points: list[Point]) -> str:
    counts = Counter(point.reason or "no reason recorded" for point in points if point.state == "failed")
    running = sum(point.state == "running" for point in points)
    parts = [f"{plural(count, 'trial')}: {reason}" for reason, count in counts.most_common(3)]
    parts += [f"{plural(running, 'trial')} started and not ended"] if running else []
    return "; ".join(parts) + "."
