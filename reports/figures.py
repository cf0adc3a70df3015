"""Figures: plain data -> plotly Figure. Text and grid colours are set by the page, for light and dark."""

import html
from typing import Any, NamedTuple

import plotly.graph_objects as go

from bench.scoring.metrics import Score
from reports.wording import MISSING, clipped, plus_minus, short

COLOURS = {
    "base": "#8a8f98",
    "default": "#0072b2",
    "winner": "#d55e00",
    "sampled": "#56b4e9",
    "a": "#d55e00",
    "b": "#0072b2",
    "judge": "#009e73",
}
SYMBOLS = {"base": "square", "default": "diamond", "winner": "star", "sampled": "circle"}
NAMES = {"sampled": "trials", "default": "default config"}
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
MAX_TICKS = 6
ERRORS = 2
"""Standard errors to each side of a gain where no interval is known."""


class Gain(NamedTuple):
    """A gain over the base with the ends of its line."""

    title: str
    kind: str
    gain: float
    stderr: float
    low: float
    high: float


class Band(NamedTuple):
    """Gains that differ from the base's, or from the default's, by less than the noise floor."""

    label: str
    kind: str
    low: float
    high: float


class Stage(NamedTuple):
    """One of several measurements of the same candidates, one gain each; None where there is none."""

    name: str
    symbol: str
    kind: str
    gains: list[tuple[float, float] | None]


class Mark(NamedTuple):
    """A point of the trade-off plot."""

    title: str
    kind: str
    x: float
    y: float
    x_stderr: float
    y_stderr: float
    key: str = ""
    """Of the card that is shown for it; empty if there is none."""


class Tradeoff(NamedTuple):
    x_title: str
    y_title: str
    marks: list[Mark]
    front: list[tuple[float, float]]


class History(NamedTuple):
    title: str
    titles: list[str]
    kinds: list[str]
    keys: list[str]
    values: list[float]
    best: list[float]
    base: float | None


class Slice(NamedTuple):
    """Scores against one parameter."""

    name: str
    y_title: str
    values: list[float | str]
    scores: list[float]
    kinds: list[str]
    keys: list[str]
    is_log: bool
    base: float | None


class Prediction(NamedTuple):
    """Scores of the same trials at a rung and at the end."""

    x_title: str
    y_title: str
    marks: list[Mark]


class EpochLine(NamedTuple):
    """One candidate: its score after each number of epochs."""

    title: str
    kind: str
    chosen: int
    epochs: list[int]
    values: list[float]
    stderrs: list[float]

    def text(self, epoch: int) -> str:
        if epoch not in self.epochs:
            return MISSING
        index = self.epochs.index(epoch)
        return plus_minus(self.values[index], self.stderrs[index])


class SweepLine(NamedTuple):
    title: str
    kind: str
    scores: list[Score | None]
    """One a tick; None where there is none."""
    chosen: int | None
    """Tick of the large mark."""


class Sweep(NamedTuple):
    """Scores against a setting."""

    x_title: str
    ticks: list[str]
    y_title: str
    lines: list[SweepLine]
    base: float | None


class Curve(NamedTuple):
    title: str
    kind: str
    steps: list[int]
    losses: list[float]


def gains(x_title: str, rows: list[Gain], bands: list[Band], zero: str = "base") -> go.Figure:
    """Gain over the base of each confirmed candidate with its line, and the noise floor."""
    figure = go.Figure()
    for band in bands:
        figure.add_vrect(
            x0=band.low,
            x1=band.high,
            fillcolor=COLOURS[band.kind],
            opacity=0.2,
            line={"width": 0},
            layer="below",
        )
    for row in rows:
        text = plus_minus(row.gain, row.stderr, signed=True)
        figure.add_scatter(
            x=[row.gain],
            y=[f"{html.escape(row.title)}<br><b>{text}</b>"],
            error_x=_line(row, row.gain),
            mode="markers",
            marker={"size": 13, "color": COLOURS[row.kind], "symbol": SYMBOLS[row.kind]},
            hovertemplate="%{y}<extra></extra>",
        )
    _base_line(figure, zero)
    figure.update_xaxes(title=x_title)
    ends = [end for row in rows for end in (row.low, row.high)]
    ends += [end for band in bands for end in (band.low, band.high)]
    figure.update_xaxes(range=_range(ends))
    figure.update_yaxes(range=[len(rows) - 0.5, -0.5], automargin=True, showgrid=False)
    return laid_out(figure, height=125 + 56 * len(rows), legend=False)


def _line(row: Gain, at: float) -> dict[str, Any]:
    """From `low` to `high`."""
    return {"array": [row.high - at], "arrayminus": [at - row.low], "thickness": 3, "width": 7}


def _base_line(figure: go.Figure, text: str = "base") -> None:
    figure.add_vline(
        x=0,
        line={"color": COLOURS["base"], "width": 2, "dash": "dot"},
        annotation={"text": text, "yanchor": "bottom", "y": 1},
    )


def _range(ends: list[float]) -> list[float]:
    """From the base, 0, to every end, with some room."""
    low, high = min(0.0, *ends), max(0.0, *ends)
    room = 0.05 * (high - low or 1.0)
    return [low - room, high + room]


def stages(x_title: str, titles: list[str], data: list[Stage]) -> go.Figure:
    """For each candidate one line a stage, ± 2 standard errors: its gain in search, choice and test."""
    figure = go.Figure()
    for index, stage in enumerate(data):
        known = [(row, gain) for row, gain in enumerate(stage.gains) if gain]
        shift = 0.24 * (index - (len(data) - 1) / 2)
        figure.add_scatter(
            x=[gain[0] for _, gain in known],
            y=[row + shift for row, _ in known],
            error_x={"array": [ERRORS * gain[1] for _, gain in known], "thickness": 2, "width": 5},
            mode="markers",
            marker={
                "size": 11,
                "color": COLOURS[stage.kind],
                "symbol": stage.symbol,
                "line": {"width": 2 if stage.symbol.endswith("-open") else 0},
            },
            name=stage.name,
            text=[html.escape(titles[row]) for row, _ in known],
            hovertemplate="%{text}, "
            + stage.name
            + ": %{x:+.4f} ± %{error_x.array:.4f} (2 standard errors)<extra></extra>",
        )
    _base_line(figure)
    found = [gain for stage in data for gain in stage.gains if gain]
    ends = [gain + side * ERRORS * stderr for gain, stderr in found for side in (-1, 1)]
    figure.update_xaxes(title=x_title, range=_range(ends))
    names = [html.escape(title) for title in titles]
    figure.update_yaxes(tickvals=list(range(len(titles))), ticktext=names, automargin=True, showgrid=False)
    figure.update_yaxes(range=[len(titles) - 0.5, -0.5])
    figure = laid_out(figure, height=190 + 62 * len(titles))
    return figure.update_layout(legend={"y": 1.12}, margin={"t": 84})


def checkpoints(y_title: str, lines: list[EpochLine]) -> go.Figure:
    """Score against epochs, ± 2 standard errors; the chosen number of epochs is the large mark."""
    figure = go.Figure()
    for index, line in enumerate(lines):
        colour = {"color": COLOURS[line.kind], "dash": DASHES[index % len(DASHES)], "width": 2}
        figure.add_scatter(
            x=[epoch + 0.04 * (index - (len(lines) - 1) / 2) for epoch in line.epochs],
            y=line.values,
            error_y={"array": [2 * stderr for stderr in line.stderrs], "thickness": 1.5, "width": 4},
            mode="lines+markers",
            line=colour,
            marker={
                "symbol": SYMBOLS[line.kind],
                "color": COLOURS[line.kind],
                "size": [18 if epoch == line.chosen else 8 for epoch in line.epochs],
            },
            name=html.escape(line.title),
            text=[str(epoch) for epoch in line.epochs],
            hovertemplate="epoch %{text}: %{y:.4f} ± %{error_y.array:.4f} (2 standard errors)",
        )
    epochs = sorted({epoch for line in lines for epoch in line.epochs})
    figure.update_xaxes(title="epochs (large mark: chosen)", tickvals=epochs)
    figure.update_yaxes(title=y_title)
    return laid_out(figure, height=400)


def sweep(data: Sweep) -> go.Figure:
    """Score against a setting, ± 2 standard errors; the large mark is what is recommended."""
    figure = go.Figure()
    for index, line in enumerate(data.lines):
        known = [(tick, score) for tick, score in enumerate(line.scores) if score]
        shift = 0.05 * (index - (len(data.lines) - 1) / 2)
        colour = COLOURS[line.kind]
        figure.add_scatter(
            x=[tick + shift for tick, _ in known],
            y=[score.value for _, score in known],
            error_y={"array": [2 * score.stderr for _, score in known], "thickness": 1.5, "width": 4},
            mode="lines+markers",
            line={"color": colour, "dash": DASHES[index % len(DASHES)], "width": 2},
            marker={"color": colour, "size": [16 if tick == line.chosen else 8 for tick, _ in known]},
            name=html.escape(line.title),
            text=[html.escape(data.ticks[tick]) for tick, _ in known],
            hovertemplate="%{text}: %{y:.4f} ± %{error_y.array:.4f} (2 standard errors)",
        )
    if data.base is not None:
        label = {"text": "base", "xanchor": "right", "x": 1, "showarrow": False}
        figure.add_hline(y=data.base, line={"color": COLOURS["base"], "dash": "dot"}, annotation=label)
    ticks = [html.escape(tick) for tick in data.ticks]
    figure.update_xaxes(title=data.x_title, tickvals=list(range(len(ticks))), ticktext=ticks)
    figure.update_yaxes(title=data.y_title)
    return laid_out(figure, height=380)


def tradeoff(data: Tradeoff) -> go.Figure:
    """Every scored point in two objectives, with the front that nothing beats in both."""
    figure = go.Figure()
    if len(data.front) > 1:
        xs, ys = zip(*data.front, strict=True)
        line = {"color": COLOURS["base"], "dash": "dot", "shape": "linear"}
        figure.add_scatter(x=xs, y=ys, mode="lines", line=line, name="best trade-offs", hoverinfo="skip")
    for kind in ("sampled", "default", "base", "winner"):
        marks = [mark for mark in data.marks if mark.kind == kind]
        if marks:
            figure.add_scatter(**_marks(kind, marks))
    figure.update_xaxes(title=data.x_title)
    figure.update_yaxes(title=data.y_title)
    return laid_out(figure, height=400)


def _marks(kind: str, marks: list[Mark]) -> dict[str, Any]:
    faint = {"thickness": 1, "width": 0, "color": "rgba(138, 143, 152, 0.45)"}
    hover = "<b>%{text}</b><br>%{x:.4f} ± %{error_x.array:.4f}"
    hover += "<br>%{y:.4f} ± %{error_y.array:.4f}<extra></extra>"
    return {
        **_card([mark.key for mark in marks], hover),
        "x": [mark.x for mark in marks],
        "y": [mark.y for mark in marks],
        "error_x": {"array": [mark.x_stderr for mark in marks], **faint},
        "error_y": {"array": [mark.y_stderr for mark in marks], **faint},
        "text": [html.escape(mark.title) for mark in marks],
        "name": NAMES.get(kind, kind),
        "mode": "markers",
        "marker": _marker(kind),
    }


def _card(keys: list[str], otherwise: str) -> dict[str, Any]:
    """What a point shows when it is pointed at: the page's card of that key, or a line of text."""
    return {"customdata": keys, "hoverinfo": "none"} if all(keys) else {"hovertemplate": otherwise}


def _marker(kind: str) -> dict[str, Any]:
    return {
        "size": 9 if kind == "sampled" else 14,
        "color": COLOURS[kind],
        "symbol": SYMBOLS[kind],
        "line": {"width": 1, "color": "rgba(255, 255, 255, 0.7)"},
    }


def history(data: History) -> go.Figure:
    """Scores in the order of the search, with the best so far."""
    figure = go.Figure()
    order = list(range(1, len(data.values) + 1))
    steps = {"color": COLOURS["winner"], "width": 2, "shape": "hv"}
    figure.add_scatter(x=order, y=data.best, mode="lines", line=steps, name="best so far", hoverinfo="skip")
    for kind in ("sampled", "default", "winner"):
        at = [index for index, found in enumerate(data.kinds) if found == kind]
        if at:
            figure.add_scatter(
                x=[order[index] for index in at],
                y=[data.values[index] for index in at],
                text=[html.escape(data.titles[index]) for index in at],
                mode="markers",
                marker=_marker(kind),
                name=NAMES.get(kind, kind),
                **_card([data.keys[index] for index in at], "%{text}: %{y:.4f}<extra></extra>"),
            )
    if data.base is not None:
        figure.add_hline(
            y=data.base,
            line={"color": COLOURS["base"], "dash": "dot"},
            annotation={"text": "base", "xanchor": "right", "x": 1, "showarrow": False},
        )
    figure.update_xaxes(title="scored points in the order of the search", rangemode="tozero")
    figure.update_yaxes(title=data.title)
    return laid_out(figure, height=380)


def sliced(data: Slice) -> go.Figure:
    """Every scored point at its value of one parameter."""
    figure = go.Figure()
    for kind in ("sampled", "default", "winner"):
        at = [index for index, found in enumerate(data.kinds) if found == kind]
        if at:
            figure.add_scatter(
                x=[data.values[index] for index in at],
                y=[data.scores[index] for index in at],
                mode="markers",
                marker=_marker(kind) | {"opacity": 0.85},
                **_card([data.keys[index] for index in at], "%{x}: %{y:.4f}<extra></extra>"),
            )
    if data.base is not None:
        figure.add_hline(y=data.base, line={"color": COLOURS["base"], "dash": "dot", "width": 1.5})
    kind = "category" if isinstance(data.values[0], str) else "log" if data.is_log else "linear"
    figure.update_xaxes(title=data.name.replace("_", " "), type=kind, nticks=5)
    distinct = sorted({value for value in data.values if not isinstance(value, str)})
    if kind == "category":
        names = sorted({str(value) for value in data.values})
        texts = [html.escape(clipped(name)) for name in names]
        figure.update_xaxes(categoryorder="category ascending", tickvals=names, ticktext=texts)
    elif len(distinct) <= MAX_TICKS:
        figure.update_xaxes(tickvals=distinct, ticktext=[short(value) for value in distinct])
    elif data.is_log:
        figure.update_xaxes(dtick=1, tickformat="~e")
    figure.update_yaxes(title=data.y_title, nticks=5)
    return laid_out(figure, height=250, legend=False)


def predicted(data: Prediction) -> go.Figure:
    """One mark a trial: its score at a rung and at the end."""
    figure = go.Figure()
    for kind in ("sampled", "default", "winner"):
        if marks := [mark for mark in data.marks if mark.kind == kind]:
            figure.add_scatter(**_marks(kind, marks))
    figure.update_xaxes(title=data.x_title)
    figure.update_yaxes(title=data.y_title)
    return laid_out(figure, height=340)


def importances(shares: dict[str, float]) -> go.Figure:
    """One bar a parameter."""
    names, values = list(shares)[::-1], list(shares.values())[::-1]
    figure = go.Figure()
    figure.add_bar(
        x=values,
        y=names,
        orientation="h",
        marker={"color": COLOURS["default"]},
        text=[f"{100 * value:.0f} %" for value in values],
        textposition="outside",
        cliponaxis=False,
        hoverinfo="skip",
    )
    figure.update_xaxes(title="share of the importance", tickformat=".0%")
    figure.update_xaxes(range=[0, 1.15 * max(values)])
    figure.update_yaxes(automargin=True, showgrid=False)
    return laid_out(figure, height=100 + 38 * len(names), legend=False)


def losses(
    curves: list[Curve],
    x_title: str = "training step",
    y_title: str = "training loss, smoothed",
    *,
    markers: bool = False,
) -> go.Figure:
    """One line a trial."""
    figure = go.Figure()
    for curve in sorted(curves, key=lambda curve: curve.kind != "sampled"):
        faint = curve.kind == "sampled"
        figure.add_scatter(
            x=curve.steps,
            y=curve.losses,
            mode="lines+markers" if markers else "lines",
            name=html.escape(curve.title),
            line={"color": COLOURS[curve.kind], "width": 1.2 if faint else 2.6},
            opacity=0.6 if faint else 1,
            showlegend=not faint,
            hovertemplate=f"{x_title} %{{x}}: %{{y:.4f}}",
        )
    figure.update_xaxes(title=x_title)
    figure.update_yaxes(title=y_title)
    return laid_out(figure, height=380)


def laid_out(figure: go.Figure, *, height: int, legend: bool = True) -> go.Figure:
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 56, "r": 20, "t": 44 if legend else 24, "b": 52},
        showlegend=legend,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        hovermode="closest",
    )
    return figure
