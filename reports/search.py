"""The report of one search: a run folder -> report.html inside it."""

from pathlib import Path
from typing import NamedTuple

import plotly.graph_objects as go

from bench import advice, yaml
from bench.files import write_text
from bench.run import (
    Result,
    Run,
    Split,
    TrialRecord,
    epoch_folder,
    has_evaluation,
    read_evaluation,
    read_losses,
)
from bench.scoring.metrics import METRICS, Score
from bench.scoring.preservation import MARGIN
from reports import concepts, figures, floor, floor_page, page, parallel, proof, pruning, tables, trial
from reports.images import Column, Grid, column, grid
from reports.trials import Point, best, best_so_far, front, importances, read_points, scored
from reports.verdict import contests, verdict, winner_of
from reports.wording import axis_title, direction, settings, trial_name

MAX_CURVE_POINTS = 150
IMAGES_SHARE = 0.66
"""Of the page's room for images; the rest is for probes and nearest pairs."""
TRADEOFFS = ("tradeoff-1", "tradeoff-2", "tradeoff-3")


class Recommended(NamedTuple):
    """What to do with the outcome."""

    rows: list[tables.Setting]
    config: str
    """training_config.yaml, ready to copy."""
    is_default: bool
    adapter: str | None
    """Path of the winning adapter from the folder that holds the run."""


def write(run: Run) -> Path:
    """Write run.path/"report.html", the pages of its trials and of its floor; works in any state."""
    path = run.path / "report.html"
    trial.write_pages(run)
    floor_page.write(run)
    write_text(path, render(run))
    return path


def render(run: Run) -> str:
    """The page as text."""
    points, result = read_points(run), run.result()
    base = {split: _scores(run.base_folder(split)) for split in ("dev", "test")}
    weight = importances(run, points)
    found = contests(run, result) if result else None
    return page.render(
        "search.html.j2",
        run=run.metadata,
        space=run.space,
        metric=METRICS[run.space.select_by],
        verdict=verdict(run, result, points, found),
        advice=advice.advise(advice.of_search(run, result)) if points else None,
        recommended=recommended(run, result) if result else None,
        proof=proof.prove(run, result, found, base["test"]) if result and found else None,
        concepts=concepts.panel(run, result) if result else None,
        floor=floor.floor_table(run, result),
        margin=MARGIN,
        floor_missing=floor.missing(run, result),
        grid=images(run, result, points),
        split="test" if result else "dev",
        trials=tables.trials(run.space, points),
        rungs=pruning.sentences(run, result),
        importances=weight,
        origins=tables.origins(run.metadata),
        costs=tables.costs(run, result),
        space_yaml=yaml.dump(run.space),
        figures={
            **(proof.proof_figures(result, found) if result and found else {}),
            **_tradeoffs(run, points, base["dev"]),
            "history": _history(run, points, base["dev"]),
            "importances": figures.importances(weight.shares) if weight.shares else None,
            "parallel": _parallel(run, points),
            "losses": _losses(run, result),
        },
    )


def recommended(run: Run, result: Result) -> Recommended:
    """The winner's settings beside the default's, and the files that reproduce it."""
    won, default = winner_of(result), result.candidate("default")
    file = run.path / "winner" / "training_config.yaml"
    adapter = run.path / "winner" / "adapter.safetensors"
    return Recommended(
        tables.setting_rows(settings(won.config), settings((default or won).config)),
        file.read_text(encoding="utf-8") if file.exists() else yaml.dump(won.config),
        won.label == "default",
        f"{run.path.name}/winner/adapter.safetensors" if adapter.exists() else None,
    )


def images(run: Run, result: Result | None, points: list[Point]) -> Grid | None:
    """Base, default and winner beside the true picture: confirmed images once there are any."""
    split: Split = "test" if result else "dev"
    columns = [column("base model", "base", [run.base_folder(split)], run.space.select_by)]
    columns += _confirmed_columns(run, result) if result else _dev_columns(run, points)
    prompts = run.metadata.prompts.get(split, [])
    columns = [found for found in columns if found.images]
    order = list(range(len(prompts)))
    return grid(run, prompts, columns, order, IMAGES_SHARE) if columns and prompts else None


def _confirmed_columns(run: Run, result: Result) -> list[Column]:
    won, default = winner_of(result), result.candidate("default")
    shown = [("default config", "default", default)] if default else []
    if won.label != "default":
        shown.append((trial_name(won.label), "winner", won))
    return [
        column(title, kind, run.exam_folders(candidate, "test"), result.select_by)
        for title, kind, candidate in shown
    ]


def _dev_columns(run: Run, points: list[Point]) -> list[Column]:
    known = scored(points, run.space.select_by)
    default = best([point for point in known if point.kind == "default"], run.space.select_by)
    found = best(known, run.space.select_by)
    shown = [("default config", "default", default)] if default else []
    if found and found.kind != "default":
        shown.append((f"{trial_name(found.label)}: best yet", "winner", found))
    return [
        column(title, kind, [_point_folder(run, point)], run.space.select_by) for title, kind, point in shown
    ]


def _point_folder(run: Run, point: Point) -> Path:
    return epoch_folder(run.path / "trials" / point.label, point.config.epochs)


def _scores(folder: Path) -> dict[str, Score]:
    return read_evaluation(folder).scores if has_evaluation(folder) else {}


def _tradeoffs(run: Run, points: list[Point], base: dict[str, Score]) -> dict[str, go.Figure | None]:
    """`select_by` against every other objective, and against drift."""
    others = [name for name in dict.fromkeys([*run.space.objectives, "drift"]) if name != run.space.select_by]
    return {
        name: _tradeoff(other, run.space.select_by, points, base)
        for name, other in zip(TRADEOFFS, others, strict=False)
    }


def _tradeoff(x: str, y: str, points: list[Point], base: dict[str, Score]) -> go.Figure | None:
    known = scored(points, x, y)
    if not known:
        return None
    marks = [_mark(p.title, p.kind, p.scores[x], p.scores[y]) for p in known]
    if x == "drift" and y in base:
        marks.append(figures.Mark("base model", "base", 0.0, base[y].value, 0.0, base[y].stderr))
    elif x in base and y in base:
        marks.append(_mark("base model", "base", base[x], base[y]))
    line = [(point.value(x), point.value(y)) for point in front(known, x, y)]
    titles = [f"{axis_title(METRICS[n], known[0].scores[n])}<br>{direction(METRICS[n])}" for n in (x, y)]
    return figures.tradeoff(figures.Tradeoff(titles[0], titles[1], marks, line))


def _mark(title: str, kind: str, x: Score, y: Score) -> figures.Mark:
    return figures.Mark(title, kind, x.value, y.value, x.stderr, y.stderr)


def _history(run: Run, points: list[Point], base: dict[str, Score]) -> go.Figure | None:
    name = run.space.select_by
    known = scored(points, name)
    if not known:
        return None
    return figures.history(
        figures.History(
            axis_title(METRICS[name], known[0].scores[name]),
            [point.title for point in known],
            [point.kind for point in known],
            [point.value(name) for point in known],
            best_so_far(known, name),
            base[name].value if name in base else None,
        )
    )


def _parallel(run: Run, points: list[Point]) -> go.Figure | None:
    data = parallel.parallel(points, run.space.select_by) if scored(points, run.space.select_by) else None
    return parallel.figure(data) if data and len(data.axes) > 1 else None


def _losses(run: Run, result: Result | None) -> go.Figure | None:
    curves = [curve for trial in run.trials() if (curve := _curve(trial, result))]
    return figures.losses(curves) if curves else None


def _curve(trial: TrialRecord, result: Result | None) -> figures.Curve | None:
    """Smoothed over an eighth of the training, and thinned."""
    table = read_losses(trial.path)
    if len(table) < 2:
        return None
    smooth = table["loss"].ewm(span=max(2, len(table) // 8)).mean()
    every = max(1, len(table) // MAX_CURVE_POINTS)
    kind = "winner" if result and trial.label == result.winner else trial.origin
    return figures.Curve(
        trial_name(trial.label) if kind != "default" else "default config",
        kind if kind in figures.COLOURS else "sampled",
        [int(step) for step in table["step"][::every]],
        [float(loss) for loss in smooth[::every]],
    )
