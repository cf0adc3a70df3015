"""Scores by concept in the search report, where the data have several."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.run import Candidate, Result, Run, has_evaluation, read_evaluation
from bench.scoring.metrics import METRICS, Metric
from bench.scoring.statistics import mean_stderr
from reports.tables import kind_of
from reports.wording import model_name, number, plus_minus

SHOWN_OTHERWISE = "similarity"
"""Where what the search selects by has no value for a single prompt."""


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
    """Title and kind of each model: the base, the default and the winner."""
    rows: list[Row]


def panel(run: Run, result: Result) -> Concepts | None:
    """Of the test prompts; None where they are of one concept, or were not scored."""
    concepts = [prompt.concept for prompt in run.metadata.prompts["test"]]
    base = _per_prompt([run.base_folder("test")])
    if len(set(concepts)) < 2 or not base:
        return None
    metric = METRICS[result.select_by if result.select_by in base else SHOWN_OTHERWISE]
    if metric.name not in base:
        return None
    shown = [(candidate, _values(run, candidate, metric)) for candidate in _compared(result)]
    models = [(candidate, values) for candidate, values in shown if values is not None]
    heads = [("Base model", "base")]
    heads += [(model_name(candidate.label), kind_of(candidate, result)) for candidate, _ in models]
    rows = []
    for concept in dict.fromkeys(concepts):
        of_concept = np.array([other == concept for other in concepts])
        own = base[metric.name][of_concept]
        cells = [Cell(_mean(own), "")]
        cells += [
            Cell(_mean(values[of_concept]), _mean(values[of_concept] - own, signed=True))
            for _, values in models
        ]
        rows.append(Row(concept or "without a concept", len(own), cells))
    return Concepts(metric, heads, rows)


def _compared(result: Result) -> list[Candidate]:
    labels = dict.fromkeys(["default", result.winner])
    return [candidate for label in labels if (candidate := result.candidate(label))]


def _values(run: Run, candidate: Candidate, metric: Metric) -> NDArray[np.float64] | None:
    return _per_prompt(run.exam_folders(candidate, "test")).get(metric.name)


def _per_prompt(folders: list[Path]) -> dict[str, NDArray[np.float64]]:
    """By metric, one value a prompt: the mean over trainings. Empty where none was scored."""
    found = [read_evaluation(folder).per_prompt for folder in folders if has_evaluation(folder)]
    names = found[0] if found else ()
    return {name: np.mean([values[name] for values in found], axis=0) for name in names}


def _mean(values: NDArray[np.float64], *, signed: bool = False) -> str:
    if len(values) < 2:
        return number(float(values.mean()), signed=signed)
    return plus_minus(*mean_stderr(values), signed=signed)
