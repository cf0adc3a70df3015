"""The report of one search: a run folder -> report.html inside it."""

from pathlib import Path
from typing import NamedTuple

import plotly.graph_objects as go

from bench import advice, yaml
from bench.files import write_text
from bench.run import Result, Run
from bench.scoring.metrics import METRICS, judged
from bench.scoring.preservation import MARGIN
from reports import (
    cards,
    concepts,
    course,
    exports,
    failures,
    figures,
    floor,
    floor_page,
    page,
    parallel,
    proof,
    pruning,
    slices,
    tables,
    tradeoffs,
    trial,
)
from reports.gallery import gallery
from reports.state import state_of
from reports.trials import Importances, Point, importances, read_points
from reports.verdict import Contests, contests_of, verdict, winner_of
from reports.wording import settings


class Recommended(NamedTuple):
    """What to do with the outcome."""

    rows: list[tables.Setting]
    searched: list[tables.Setting]
    """Those of `rows` that the space varies."""
    config: str
    """training_config.yaml, ready to copy."""
    commands: list[str]
    """To train it again, and to share it."""
    is_default: bool
    adapter: str | None
    """Path of the winning adapter from the folder that holds the run."""


def write(run: Run) -> Path:
    """Write run.path/"report.html", and beside it data/ and the pages of trials and floor; works in any
    state."""
    path = run.path / "report.html"
    found = contests_of(run)
    exports.write(run, found)
    trial.write_pages(run, found)
    floor_page.write(run)
    write_text(path, render(run, found))
    return path


def render(run: Run, found: Contests | None = None, live: page.Live | None = None) -> str:
    """The page as text; `found` are the contests of the result if they are known, `live` if it is served
    while it grows."""
    points, result, found = read_points(run), run.result(), found or contests_of(run)
    weight = importances(run, points)
    is_running = not live.over if live else state_of(run) == "running"
    return page.render(
        "search.html.j2",
        live=live,
        run=run.metadata,
        space=run.space,
        metric=METRICS[run.space.select_by],
        verdict=verdict(run, result, points, found, is_running=is_running),
        advice=advice.advise(advice.of_search(run, result)) if points else None,
        recommended=recommended(run, result) if result else None,
        proof=proof.prove(run, result, found, run.base_scores("test")) if result and found else None,
        concepts=concepts.panel(run, result) if result else None,
        floor=floor.floor_table(run, result),
        margin=MARGIN,
        floor_missing=floor.missing(run, result),
        has_judge=run.metadata.judge is not None and judged(run.space.select_by) is not None,
        gallery=gallery(run, result, points),
        split="test" if result else "dev",
        cards=cards.cards(run, points),
        parallel=parallel.parallel(points, run.space.select_by),
        slices=slices.sliced(run, points),
        trials=tables.trials(run.space, points),
        rungs=pruning.sentences(run, result),
        failures=failures.failures(run),
        longer=course.longer(run, result, points),
        importances=weight,
        origins=tables.origins(run.metadata),
        costs=tables.costs(run, result),
        exports=exports.embedded(run, points, found),
        space_yaml=yaml.dump(run.space),
        figures=figures_of(run, result, points, found, weight),
    )


def figures_of(
    run: Run, result: Result | None, points: list[Point], found: Contests | None, weight: Importances
) -> dict[str, go.Figure | None]:
    """By the ids that the page knows them by; `found` are the contests of the result."""
    base = run.base_scores("dev")
    return {
        **(proof.proof_figures(result, found) if result and found else {}),
        **tradeoffs.tradeoffs(run, points, base),
        **course.course_figures(run, result, points, base),
        "importances": figures.importances(weight.shares) if weight.shares else None,
        **slices.slices(run, points, base),
        "prediction": pruning.prediction(run, points),
    }


def recommended(run: Run, result: Result) -> Recommended:
    """The winner's settings beside the default's, and the files that reproduce it."""
    won, default = winner_of(result), result.candidate("default")
    file = run.path / "winner" / "training_config.yaml"
    adapter = run.path / "winner" / "adapter.safetensors"
    rows = tables.setting_rows(settings(won.config), settings((default or won).config))
    place = f"{run.path.absolute().parent.name}/{run.path.name}"
    return Recommended(
        rows,
        [row for row in rows if row.name in run.space.distributions],
        file.read_text(encoding="utf-8") if file.exists() else yaml.dump(won.config),
        [f"bench train --config {place}/winner/training_config.yaml", f"bench export {run.path.name}"],
        won.label == "default",
        f"{run.path.name}/winner/adapter.safetensors" if adapter.exists() else None,
    )
