"""Preservation in the search report: what training changed beside what it was meant to change."""

import math
from typing import NamedTuple

from bench.run import Candidate, PromptRecord, Result, Run
from bench.scoring.metrics import PRESERVATION
from bench.scoring.preservation import MARGIN, preserved
from reports.images import Column, Grid, column, grid
from reports.tables import Model, ScoreRow, models, score_rows
from reports.wording import capital, model_name, span, trial_name

KINDS = {
    "training": "Captions of training pictures",
    "altered": "Your subjects, changed",
    "style": "The style on subjects that no picture shows",
    "unrelated": "Nothing to do with your data",
}
NUM_PROMPTS = 3
"""Shown of each kind."""
SHARE = 0.06
"""Of the page's room for images, for each kind."""


class Strip(NamedTuple):
    """Base, default and winner on probes of one kind."""

    kind: str
    title: str
    grid: Grid


class Preservation(NamedTuple):
    sentences: list[str]
    models: list[Model]
    rows: list[ScoreRow]
    strips: list[Strip]


def panel(run: Run, result: Result) -> Preservation | None:
    """None where no probes were drawn."""
    shown = [m for m in models(result, {}) if m.kind != "sampled"]
    by_label = {candidate.label: candidate for candidate in result.candidates}
    labels = [label for label in dict.fromkeys([result.winner, "default"]) if label in by_label]
    rows = score_rows(shown, [metric.name for metric in PRESERVATION])
    strips = _strips(run, [by_label[label] for label in reversed(labels)], result.winner)
    if not rows and not strips:
        return None
    said = [sentence(by_label[label]) for label in labels]
    return Preservation([text for text in said if text], shown, rows, strips)


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


def _strips(run: Run, candidates: list[Candidate], winner: str) -> list[Strip]:
    prompts = run.metadata.prompts.get("probe", [])
    columns = [column("base model", "base", [run.base_folder("probe")], "shift")]
    columns += [_column(run, candidate, winner) for candidate in candidates]
    columns = [found for found in columns if found.images]
    if not columns:
        return []
    strips = []
    for kind, title in KINDS.items():
        order = _of_kind(prompts, kind)
        shown = grid(run, prompts, columns, order, SHARE, at_a_glance=0)
        if shown.rows:
            strips.append(Strip(kind, title, shown))
    return strips


def _column(run: Run, candidate: Candidate, winner: str) -> Column:
    kind = "winner" if candidate.label == winner != "default" else "default"
    folders = run.exam_folders(candidate, "probe")
    return column(model_name(candidate.label).lower(), kind, folders, "shift")


def _of_kind(prompts: list[PromptRecord], kind: str) -> list[int]:
    return [index for index, prompt in enumerate(prompts) if prompt.kind == kind][:NUM_PROMPTS]
