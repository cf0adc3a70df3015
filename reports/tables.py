"""Tables of the search report as rows of text."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from bench.comparison import Comparison, MetricComparison
from bench.run import Candidate, Metadata, Result, Run
from bench.scoring.alignment import hessel, percent
from bench.scoring.metrics import INCEPTION, JUDGE, METRICS, QUALITY, Score
from bench.space import SearchSpace
from reports.cards import key_of, page_of
from reports.trials import Point
from reports.verdict import failures, winner_of
from reports.wording import (
    MISSING,
    direction,
    duration,
    metric_names,
    model_name,
    number,
    plus_minus,
    qualifier,
    settings,
    trial_name,
)

NETWORKS = {
    "The scorer: trials were searched and chosen by it": QUALITY,
    "The judge: a second network that had no part in any choice": JUDGE,
    "Inception: the network of the papers": INCEPTION,
}


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


class Model(NamedTuple):
    """One column of a table of scores."""

    title: str
    kind: str
    """`base`, `default`, `winner` or `sampled`: decides the colour."""
    scores: dict[str, Score]
    tested: dict[str, MetricComparison]
    """Tested metric -> its comparison with the base."""
    failed: str = ""
    """That some of its trainings failed; empty if none did."""


class ScoreCell(NamedTuple):
    text: str
    gain: str
    verdict: str
    """WIN, TIE or LOSS against the base; empty where none is given."""
    caution: str
    note: str
    """The same value in other words, to be shown on demand."""


class ScoreRow(NamedTuple):
    """One metric over all models."""

    heading: Heading
    caution: str
    """Why no value of the row must be read as it stands."""
    cells: list[ScoreCell]


class ScoreGroup(NamedTuple):
    title: str
    rows: list[ScoreRow]


class Confirmed(NamedTuple):
    models: list[Model]
    groups: list[ScoreGroup]
    seed_spread: float | None
    """Of the winner's `select_by` between training seeds; None with one training."""
    default_spread: float | None
    """The same of the default, if that is another."""
    winner: str
    clip_note: str
    """The winner's CLIP score in the scales that papers print; empty where it is not known."""


class TrialCell(NamedTuple):
    text: str
    order: str
    """What the column is sorted by."""


class TrialRow(NamedTuple):
    kind: str
    key: str
    """Of the point's card."""
    page: str
    """Of the trial, from the run folder."""
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
    return [heading(name, found[name]) for name in metric_names(set(found))]


def heading(name: str, score: Score) -> Heading:
    metric = METRICS[name]
    return Heading(name, metric.label, qualifier(score), direction(metric), metric.question)


def models(
    result: Result, base: dict[str, Score], over_base: Mapping[str, Comparison] | None = None
) -> list[Model]:
    """The base, the default, then finalists from the best down."""
    found = [Model("Base model", "base", base, {})] if base else []
    for candidate in ranked(result):
        comparison = (over_base or {}).get(candidate.label)
        tested = {row.metric: row for row in comparison.metrics} if comparison else {}
        name, kind = model_name(candidate.label), kind_of(candidate, result)
        found.append(Model(name, kind, candidate.scores, tested, failures(candidate)))
    return found


def kind_of(candidate: Candidate, result: Result) -> str:
    if candidate.label == "default":
        return "default"
    return "winner" if candidate.label == result.winner else "sampled"


def confirmed(
    result: Result, base: dict[str, Score], over_base: Mapping[str, Comparison] | None = None
) -> Confirmed:
    """What says how good the images are, told apart by the network that measured."""
    shown = models(result, base, over_base)
    groups = [
        ScoreGroup(title, rows)
        for title, metrics in NETWORKS.items()
        if (rows := score_rows(shown, [metric.name for metric in metrics]))
    ]
    won, default = winner_of(result), result.candidate("default")
    clip = won.scores.get("clip_score")
    return Confirmed(
        models=shown,
        groups=groups,
        seed_spread=_spread(won, result.select_by),
        default_spread=_spread(default, result.select_by) if default and default is not won else None,
        winner=trial_name(won.label),
        clip_note=clip_scales(clip.value) if clip else "",
    )


def _spread(candidate: Candidate, metric: str) -> float | None:
    found = candidate.seed_spread.get(metric, math.nan)
    return found if math.isfinite(found) else None


def ranked(result: Result) -> list[Candidate]:
    """The default first, then finalists from the best down."""
    name = result.select_by
    by_score = sorted(result.candidates, key=lambda c: -METRICS[name].sign * c.scores[name].value)
    return sorted(by_score, key=lambda candidate: candidate.label != "default")


def score_rows(shown: list[Model], names: list[str]) -> list[ScoreRow]:
    """One row for each of `names` that any of the models was scored by."""
    heads = {head.name: head for head in headings([model.scores for model in shown])}
    rows = []
    for name in names:
        if name in heads:
            scores = [model.scores.get(name) for model in shown]
            cautions = [score.caution for score in scores if score and score.caution]
            cells = [score_cell(name, model) for model in shown]
            rows.append(ScoreRow(heads[name], cautions[0] if cautions else "", cells))
    return rows


def score_cell(name: str, model: Model) -> ScoreCell:
    score = model.scores.get(name)
    if score is None:
        return ScoreCell(MISSING, "", "", "", "")
    row = model.tested.get(name)
    gain, stderr = (row.mean, row.stderr) if row else (score.gain, score.gain_stderr)
    return ScoreCell(
        text=plus_minus(score.value, score.stderr),
        gain="" if gain is None else plus_minus(gain, stderr, signed=True),
        verdict=str(row.verdict) if row else "",
        caution=score.caution or "",
        note=clip_scales(score.value) if name == "clip_score" else "",
    )


def clip_scales(value: float) -> str:
    """A raw CLIP score in the two scales that papers print."""
    cosine = np.array([value])
    return (
        f"raw {number(value, 2)} = {number(float(percent(cosine)[0]), 0)} on the ×100 scale "
        f"= {number(float(hessel(cosine)[0]), 2)} on Hessel's"
    )


def trials(space: SearchSpace, points: list[Point]) -> TrialTable:
    """Every trial and scored epoch: its searched settings, dev scores and seconds."""
    quality = {metric.name for metric in QUALITY}
    scores = [{name: s for name, s in point.scores.items() if name in quality} for point in points]
    heads = headings(scores)
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
    return TrialRow(point.kind, key_of(point), page_of(point.label), cells, point.reason or "")


def origins(metadata: Metadata) -> list[tuple[str, str]]:
    """Where the numbers come from: enough to tell whether another run is comparable."""
    pictures = ", ".join(f"{count} {split}" for split, count in metadata.num_images.items())
    return [
        ("base", f"{metadata.base} ({metadata.base_fingerprint[:12]})"),
        ("data", f"{metadata.data} ({metadata.data_fingerprint[:12]}): {pictures}"),
        ("scorer", f"{metadata.scorer} ({metadata.scorer_fingerprint[:12]})"),
        ("judge", _judge(metadata)),
        ("prompts", metadata.prompts_fingerprint[:12]),
        ("seed", str(metadata.seed)),
        ("device", metadata.device),
        ("machine", metadata.machine),
        ("started", metadata.created),
        ("versions", ", ".join(f"{name} {version}" for name, version in metadata.versions.items())),
    ]


def _judge(metadata: Metadata) -> str:
    if metadata.judge is None:
        return "none: no second network confirms what the scorer says"
    return f"{metadata.judge} ({(metadata.judge_fingerprint or MISSING)[:12]})"


def costs(run: Run, result: Result | None) -> list[tuple[str, str]]:
    """What the search took."""
    records = run.trials()
    states = [record.state for record in records]
    counts = ", ".join(
        f"{states.count(s)} {s}" for s in ("complete", "pruned", "failed", "running") if s in states
    )
    return [
        ("whole search", duration(result.seconds) if result else "not finished"),
        *(_device_costs(result) if result else ()),
        ("trials", f"{len(records)} of {run.space.trials}" + (f": {counts}" if counts else "")),
        ("retrainings", str(len(run.confirmations()))),
        ("scored (trial, epoch)", str(sum(len(record.epochs) for record in records))),
    ]


def _device_costs(result: Result) -> list[tuple[str, str]]:
    known = []
    if result.device_seconds is not None:
        known.append(("device-seconds", number(result.device_seconds, 0)))
    energy = "not counted by this machine"
    if result.joules is not None:
        energy = f"{number(result.joules / 3.6e6, 3)} kWh used by the devices"
    return [*known, ("energy", energy)]
