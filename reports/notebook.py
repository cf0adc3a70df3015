"""What the Python API returns: a run, scored files and comparisons as pandas frames and plotly figures.

Frames hold what the reports and `--json` hold, by the same functions. In a notebook each shows itself, with
all text escaped.
"""

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from bench.comparison import Comparison, Side
from bench.run import Run, read_losses
from bench.sheet import Sheet
from reports import (
    compare_json,
    exports,
    score_json,
    search,
)
from reports.images import thumbnail
from reports.outcome import outcome
from reports.show import ImageRow, images_of_run
from reports.state import State, state_of
from reports.tables import Setting
from reports.trials import importances, read_points
from reports.verdict import Contests, Verdict, contests_of, verdict

PIXELS = 96
"""Of an image's side in a notebook."""


@dataclass(frozen=True, eq=False)
class OpenRun:
    """A run. What is read once is kept: open it again to see what has changed since."""

    run: Run

    @property
    def name(self) -> str:
        return self.run.metadata.name

    @property
    def path(self) -> Path:
        return self.run.path

    @property
    def state(self) -> State:
        """As it is now."""
        return state_of(self.run)

    @cached_property
    def verdict(self) -> Verdict:
        """`headline`, `detail` and `facts`, as the report says them."""
        is_running = self.state == "running"
        points = read_points(self.run)
        return verdict(self.run, self.run.result(), points, self._contests, is_running=is_running)

    @cached_property
    def settings(self) -> pd.DataFrame:
        """The recommended settings beside the default's, as text; empty before there is a result."""
        return pd.DataFrame(self._settings, columns=["setting", "recommended", "default"])

    @cached_property
    def trials(self) -> pd.DataFrame:
        """A row a scored epoch: settings, and on the dev prompts every metric with its error and gain."""
        return exports.trials(self.run)

    @cached_property
    def scores(self) -> pd.DataFrame:
        """A row a confirmed candidate and metric, on the test prompts; empty before there is a result."""
        return exports.scores(self.run, self._contests)

    @cached_property
    def prompts(self) -> pd.DataFrame:
        """A row a model, training and prompt, with every metric that is a mean over prompts."""
        return exports.prompts(self.run)

    @cached_property
    def losses(self) -> pd.DataFrame:
        """A row a training step: trial, step (from 1) and loss."""
        curves = [read_losses(trial.path).assign(trial=trial.label) for trial in self.run.trials()]
        known = [curve for curve in curves if len(curve)]
        columns = ["trial", "step", "loss"]
        return pd.concat(known, ignore_index=True)[columns] if known else pd.DataFrame(columns=columns)

    @cached_property
    def figures(self) -> dict[str, go.Figure]:
        """Those of the report, by their names there; those that there is nothing to show of are left out."""
        points = read_points(self.run)
        found = search.figures_of(
            self.run, self.run.result(), points, self._contests, importances(self.run, points)
        )
        return {name: figure for name, figure in found.items() if figure is not None}

    def report(self) -> Path:
        """Write the HTML report, and return where it is."""
        return search.write(self.run)

    @cached_property
    def _contests(self) -> Contests | None:
        return contests_of(self.run)

    @property
    def _settings(self) -> Sequence[Setting]:
        result = self.run.result()
        return search.recommended(self.run, result).rows if result else []

    def __repr__(self) -> str:
        return f"<bench run {self.name!r} ({self.state}): {self.verdict.headline}>"

    def _repr_html_(self) -> str:
        said, found = self.verdict, outcome(self.run)
        head = f"{self.name}: {found.state}, {found.trials_done} of {self.run.space.trials} trials"
        differing = [row for row in self._settings if row.differs]
        settings = _table(["setting", "recommended", "default"], differing) if differing else ""
        images = "".join(_images(row) for row in images_of_run(found))
        parts = (_tag("small", head), _tag("h3", said.headline), _tag("p", said.detail), settings, images)
        return f"<div>{''.join(parts)}</div>"


@dataclass(frozen=True, eq=False)
class Compared:
    """The first of several sides against each of the others, and all pairs."""

    sides: Sequence[Side]
    comparisons: Sequence[Comparison]
    report: Path
    """The HTML page."""

    @property
    def verdict(self) -> str:
        """WIN, TIE or LOSS of the first against the second."""
        return self.comparisons[0].verdict

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """A row a pair: a, b, verdict of a, reason, p_value, and what the judge says."""
        names = ["a", "b", "verdict", "reason", "p_value", "judge"]
        return pd.DataFrame([[pair[name] for name in names] for pair in self._pairs], columns=names)

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """A row a pair and tested metric, with what `bench compare --json` has of it; a and b are scores."""
        rows = [
            {"first": pair["a"], "second": pair["b"], **row} for pair in self._pairs for row in pair["tested"]
        ]
        return pd.DataFrame(rows)

    @property
    def _pairs(self) -> list[dict[str, Any]]:
        pairs: list[dict[str, Any]] = compare_json.as_json(self.sides, self.comparisons, "")["pairs"]
        return pairs

    def __repr__(self) -> str:
        said = "; ".join(f"{pair['a']} against {pair['b']}: {pair['verdict']}" for pair in self._pairs)
        return f"<bench comparison: {said}>"

    def _repr_html_(self) -> str:
        return _shown(self.pairs)


@dataclass(frozen=True, eq=False)
class Scored:
    """LoRA files at several weights, and what is recommended of each training."""

    sheets: Sequence[Sheet]
    sides: Sequence[Side]
    comparisons: Sequence[Comparison]
    report: Path
    """The HTML page."""

    @cached_property
    def scores(self) -> pd.DataFrame:
        """A row a checkpoint, weight and metric, on the dev prompts, with errors and gains over the base."""
        rows = [
            {"training": training["name"], **setting, "metric": metric, **score}
            for training in self._trainings
            for entry in training["scored"]
            for setting in [{key: value for key, value in entry.items() if key not in ("scores", "concepts")}]
            for metric, score in entry["scores"].items()
        ]
        return pd.DataFrame(rows)

    @cached_property
    def recommended(self) -> pd.DataFrame:
        """A row a training: the file and weight, and what is said of it against the base."""
        rows = [
            {
                "training": each["name"],
                **each["recommended"],
                "verdict": each["verdict"],
                "reason": each["reason"],
            }
            for each in self._trainings
        ]
        return pd.DataFrame(rows)

    @property
    def _trainings(self) -> list[dict[str, Any]]:
        data = score_json.as_json(self.sheets, self.sides, self.comparisons, str(self.report))
        trainings: list[dict[str, Any]] = data["trainings"]
        return trainings

    def __repr__(self) -> str:
        return f"<bench scores: {', '.join(sheet.name for sheet in self.sheets)}>"

    def _repr_html_(self) -> str:
        return (
            f"<div>{_table(self.recommended.columns, self.recommended.astype(object).values.tolist())}</div>"
        )


# HTML, without scripts


def _tag(name: str, text: str) -> str:
    return f"<{name}>{html.escape(text)}</{name}>"


def _shown(frame: pd.DataFrame) -> str:
    return _table(frame.columns, frame.astype(object).values.tolist())


def _table(heads: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    head = "".join(_tag("th", name) for name in heads)
    body = "".join(f"<tr>{''.join(_tag('td', str(cell)) for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _images(row: ImageRow) -> str:
    """One prompt: models side by side."""
    cells = []
    for title, file in zip(row.titles, row.files, strict=True):
        picture = thumbnail(file) if file else None
        if picture:
            shown = f'<img src="{picture.uri}" alt="{html.escape(title)}" width="{PIXELS}">'
            cells.append(f"<td>{shown}<br>{_tag('small', title)}</td>")
    return f"<table><caption>{html.escape(row.caption)}</caption><tr>{''.join(cells)}</tr></table>"
