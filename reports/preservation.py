"""Preservation in the search report: what training changed beside what it was meant to change."""

import math
from typing import NamedTuple

from bench.run import Candidate, Result
from bench.scoring.metrics import PRESERVATION
from bench.scoring.preservation import MARGIN, preserved
from reports.tables import Model, ScoreRow, models, score_rows
from reports.wording import capital, span, trial_name


class Preservation(NamedTuple):
    sentences: list[str]
    models: list[Model]
    rows: list[ScoreRow]


def panel(result: Result) -> Preservation | None:
    """None where no probes were drawn."""
    shown = [m for m in models(result, {}) if m.kind != "sampled"]
    by_label = {candidate.label: candidate for candidate in result.candidates}
    labels = [label for label in dict.fromkeys([result.winner, "default"]) if label in by_label]
    rows = score_rows(shown, [metric.name for metric in PRESERVATION])
    said = [text for label in labels if (text := sentence(by_label[label]))]
    return Preservation(said, shown, rows) if rows or said else None


def sentence(candidate: Candidate) -> str:
    """Whether unrelated prompts are still followed: non-inferiority of the CLIP score; empty if unknown."""
    score, label = candidate.scores.get("clip_change"), candidate.label
    if score is None or score.num_prompts < 2:
        return ""
    name = capital(trial_name(label))
    spread = candidate.seed_spread.get("clip_change", math.nan)
    found = preserved(score, spread, len(candidate.records))
    interval = f"their CLIP score changed by {span(found.low, found.high)}"
    if found.verdict == "kept":
        return (
            f"{name} still draws what unrelated prompts say: {interval}, which rules out a fall of {MARGIN}."
        )
    if found.verdict == "lost":
        return f"{name} follows unrelated prompts less well than the base: {interval}."
    return (
        f"It was not shown that {trial_name(label)} still draws what unrelated prompts say: {interval}, and "
        f"on {score.num_prompts} prompts a fall of {MARGIN} cannot be ruled out."
    )
