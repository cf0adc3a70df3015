"""Tables of the search report as rows of text."""

from typing import NamedTuple

from bench.run import Candidate, Metadata, Result, Run
from bench.scoring.metrics import METRICS, Score
from bench.space import SearchSpace
from reports.trials import Point
from reports.wording import (
    MISSING,
    capital,
    direction,
    duration,
    metric_names,
    outcome,
    plus_minus,
    qualifier,
    settings,
    sign,
    trial_name,
)


class Setting(NamedTuple):
    name: str
    value: str
    other: str
    """The default's value, or B's."""

    @property
    def differs(self) -> bool:
        return self.value != self.other


class Heading(NamedTuple):
    """A metric as the head of a column: label and qualifier together are the score's title."""

    name: str
    label: str
    qualifier: str
    direction: str
    question: str


class ScoreCell(NamedTuple):
    text: str
    gain: str
    outcome: str
    """`better`, `worse` or `same` than the base; empty where there is no gain."""


class ScoreRow(NamedTuple):
    title: str
    kind: str
    cells: list[ScoreCell]


class Confirmed(NamedTuple):
    headings: list[Heading]
    rows: list[ScoreRow]
    seed_spread: float | None
    """Of the winner's `select_by` between training seeds."""


class TrialCell(NamedTuple):
    text: str
    order: str
    """What the column is sorted by."""


class TrialRow(NamedTuple):
    kind: str
    cells: list[TrialCell]
    reason: str


class TrialTable(NamedTuple):
    columns: list[str]
    headings: list[Heading]
    rows: list[TrialRow]


def setting_rows(values: dict[str, str], others: dict[str, str]) -> list[Setting]:
    """What decides the weights, the random seed apart: two columns of settings."""
    return [Setting(name, value, others[name]) for name, value in values.items() if name != "seed"]


def headings(scores: list[dict[str, Score]]) -> list[Heading]:
    """One for each known metric that any of `scores` holds."""
    found: dict[str, Score] = {}
    for entry in scores:
        found = {**entry, **found}
    return [
        Heading(
            name,
            METRICS[name].label,
            qualifier(found[name]),
            direction(METRICS[name]),
            METRICS[name].question,
        )
        for name in metric_names(set(found))
    ]


def confirmed(result: Result, base: dict[str, Score]) -> Confirmed:
    """Base, default and finalists on the test prompts."""
    candidates = ranked(result)
    heads = headings([base, *(candidate.scores for candidate in candidates)])
    rows = [score_row("Base model", "base", base, heads)] if base else []
    for candidate in candidates:
        kind = "winner" if candidate.label == result.winner else "sampled"
        kind = "default" if candidate.label == "default" else kind
        rows.append(score_row(capital(trial_name(candidate.label)), kind, candidate.scores, heads))
    won = next((c for c in candidates if c.label == result.winner), candidates[0])
    return Confirmed(heads, rows, won.seed_spread.get(result.select_by))


def ranked(result: Result) -> list[Candidate]:
    """The default first, then finalists from the best down."""
    name = result.select_by
    by_score = sorted(result.candidates, key=lambda c: -sign(METRICS[name]) * c.scores[name].value)
    return sorted(by_score, key=lambda candidate: candidate.label != "default")


def score_row(title: str, kind: str, scores: dict[str, Score], heads: list[Heading]) -> ScoreRow:
    return ScoreRow(title, kind, [score_cell(head.name, scores.get(head.name)) for head in heads])


def score_cell(name: str, score: Score | None) -> ScoreCell:
    if score is None:
        return ScoreCell(MISSING, "", "")
    text = plus_minus(score.value, score.stderr)
    if score.gain is None:
        return ScoreCell(text, "", "")
    gain = plus_minus(score.gain, score.gain_stderr, signed=True)
    return ScoreCell(text, gain, outcome(METRICS[name], score.gain, score.gain_stderr))


def trials(space: SearchSpace, points: list[Point]) -> TrialTable:
    """Every trial and scored epoch: its searched settings, dev scores and seconds."""
    heads = headings([point.scores for point in points])
    searched = [name for name in space.distributions if name != "epochs"]
    columns = ["trial", "epoch", "state", *searched]
    return TrialTable(columns, heads, [_trial_row(point, searched, heads) for point in points])


def _trial_row(point: Point, searched: list[str], heads: list[Heading]) -> TrialRow:
    texts = settings(point.config)
    cells = [
        TrialCell(trial_name(point.label).removeprefix("trial "), point.label),
        TrialCell(str(point.epoch or MISSING), str(point.epoch or 0)),
        TrialCell(point.state, point.state),
    ]
    for name in searched:
        value = getattr(point.config, name)
        cells.append(TrialCell(texts[name], str(value) if isinstance(value, int | float) else texts[name]))
    for head in heads:
        score = point.scores.get(head.name)
        text = plus_minus(score.value, score.stderr) if score else MISSING
        cells.append(TrialCell(text, str(score.value) if score and score.value is not None else ""))
    cells.append(TrialCell(duration(point.seconds), str(point.seconds or "")))
    return TrialRow(point.kind, cells, point.reason or "")


def origins(metadata: Metadata) -> list[tuple[str, str]]:
    """Where the numbers come from: enough to tell whether another run is comparable."""
    pictures = ", ".join(f"{count} {split}" for split, count in metadata.num_images.items())
    return [
        ("base", f"{metadata.base} ({metadata.base_fingerprint[:12]})"),
        ("data", f"{metadata.data} ({metadata.data_fingerprint[:12]}): {pictures}"),
        ("scorer", f"{metadata.scorer} ({metadata.scorer_fingerprint[:12]})"),
        ("prompts", metadata.prompts_fingerprint[:12]),
        ("seed", str(metadata.seed)),
        ("device", metadata.device),
        ("machine", metadata.machine),
        ("started", metadata.created),
        ("versions", ", ".join(f"{name} {version}" for name, version in metadata.versions.items())),
    ]


def costs(run: Run, result: Result | None) -> list[tuple[str, str]]:
    """What the search took."""
    records = run.trials()
    states = [record.state for record in records]
    counts = ", ".join(f"{states.count(s)} {s}" for s in ("complete", "failed", "running") if s in states)
    return [
        ("whole search", duration(result.seconds) if result else "not finished"),
        ("trials", f"{len(records)} of {run.space.trials}" + (f": {counts}" if counts else "")),
        ("retrainings", str(len(run.confirmations()))),
        ("scored (trial, epoch)", str(sum(len(record.epochs) for record in records))),
    ]
