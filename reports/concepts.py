"""Scores by concept, where the data have several: a table of the reports."""

from collections.abc import Sequence
from typing import NamedTuple

from bench.comparison import Side
from bench.run import Result, Run, has_evaluation, read_evaluation
from bench.scoring.concepts import ConceptScore, ConceptScores
from bench.scoring.metrics import METRICS, Metric
from reports.tables import kind_of
from reports.wording import MISSING, model_name, number, plus_minus

SHOWN_OTHERWISE = "similarity"
"""Where the metric that chooses has no value for a single prompt."""


class Cell(NamedTuple):
    text: str
    gain: str
    """Over the base; empty for the base itself."""


class Row(NamedTuple):
    concept: str
    num_prompts: int
    cells: list[Cell]


class Concepts(NamedTuple):
    metric: Metric
    heads: list[tuple[str, str]]
    """Title and kind of each model."""
    rows: list[Row]


class Model(NamedTuple):
    """A column to be."""

    title: str
    kind: str
    scores: ConceptScores


def panel(run: Run, result: Result) -> Concepts | None:
    """Of the base, the default and the winner, on the test prompts; None of one concept, or of no scores."""
    folder = run.base_folder("test")
    base = [read_evaluation(folder)] if has_evaluation(folder) else []
    models = [Model("Base model", "base", run.by_concept("test", base, over_base=False))]
    for label in dict.fromkeys(["default", result.winner]):
        if candidate := result.candidate(label):
            scores = run.by_concept("test", run.evaluations(candidate, "test"))
            models.append(Model(model_name(label), kind_of(candidate, result), scores))
    return table(models, result.select_by)


def of_sides(sides: Sequence[Side], titles: Sequence[tuple[str, str]], select_by: str) -> Concepts | None:
    """Of a comparison's sides, each with its title and kind."""
    named = zip(titles, sides, strict=True)
    return table([Model(title, kind, side.concepts) for (title, kind), side in named], select_by)


def table(models: Sequence[Model], select_by: str) -> Concepts | None:
    """Models without scores are left out; None if none has any."""
    models = [model for model in models if model.scores]
    if not models:
        return None
    first = models[0].scores
    measured = next(iter(first.values()))
    name = select_by if select_by in measured else SHOWN_OTHERWISE
    if name not in measured:
        return None
    rows = [
        Row(
            concept or "without a concept",
            scores[name].num_prompts,
            [_cell(model.scores.get(concept, {}).get(name)) for model in models],
        )
        for concept, scores in first.items()
    ]
    return Concepts(METRICS[name], [(model.title, model.kind) for model in models], rows)


def _cell(score: ConceptScore | None) -> Cell:
    if score is None:
        return Cell(MISSING, "")
    gain = "" if score.gain is None else _text(score.gain, score.gain_stderr, signed=True)
    return Cell(_text(score.value, score.stderr), gain)


def _text(value: float, stderr: float | None, *, signed: bool = False) -> str:
    return number(value, signed=signed) if stderr is None else plus_minus(value, stderr, signed=signed)
