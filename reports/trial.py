"""The pages of the trials of a search: trials/0007/trial.html in the run folder, each small."""

import hashlib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bench import __version__, yaml
from bench.files import write_text
from bench.pareto import Point as ParetoPoint
from bench.pareto import non_dominated
from bench.run import (
    Candidate,
    Result,
    Run,
    TrialRecord,
    read_losses,
    was_cleaned,
)
from bench.scoring.metrics import METRICS, Score
from reports import memorization, page, tables, trial_charts
from reports.cards import page_of
from reports.images import Column, column
from reports.memorization import Maker
from reports.trial_images import images, maker
from reports.trials import Point, best, point_folder, read_points, scored
from reports.verdict import Contests, Fact, Verdict
from reports.verdict import verdict as report_verdict
from reports.wording import capital, direction, duration, plural, plus_minus, settings, trial_name

STATES = {"running": "still training", "complete": "complete", "pruned": "pruned", "failed": "failed"}
TONES = {"failed": "error", "running": "open", "pruned": "open"}
ORIGINS = {"default": "the configuration to beat", "sampled": "asked from the sampler"}


class Neighbours(NamedTuple):
    """Labels of the trials before and after; None at an end."""

    previous: str | None
    next: str | None


class Standing(NamedTuple):
    """Where a trial stands by its best epoch."""

    rank: int
    """By the metric of choice, 1 is the best."""
    of: int
    """Trials that have a score and did not fail."""
    on_front: bool
    """Whether no trial is at least as good in every objective and better in one."""


class Overview(NamedTuple):
    """What the pages of all trials of a run share."""

    run: Run
    result: Result | None
    points: list[Point]
    bests: dict[str, Point]
    """Of each trial that did not fail, its best epoch by the metric of choice."""
    front: set[str]
    """Labels of trials on the front."""
    base: dict[str, Score]
    """On the dev prompts."""
    default: Point | None
    """The default's trial at its best epoch."""
    tone: str
    """Of the report's verdict: `win` where the chosen trial won."""
    make: Maker


def write_pages(run: Run, found: Contests | None = None, *, is_growing: bool = False) -> list[Path]:
    """Write the page of every trial of which there is none that shows what is known now; the pages written.

    `found` are the contests of the run's result, if they are known. While a search goes on (`is_growing`) a
    page is not written again for its rank alone. Where `bench clean` has removed the images, a page that
    still shows them stays until there is a result.
    """
    records = run.trials()
    shared = overview(run, found)
    written = []
    for index, trial in enumerate(records):
        beside = Neighbours(
            records[index - 1].label if index else None,
            records[index + 1].label if index + 1 < len(records) else None,
        )
        path, stamp = run.path / page_of(trial.label), _stamp(shared, trial, beside, is_growing)
        if not _shows(path, stamp) and not (path.exists() and was_cleaned(trial) and not shared.result):
            write_text(path, render(shared, trial, beside, stamp))
            written.append(path)
    return written


def overview(run: Run, contests: Contests | None = None) -> Overview:
    """Reads every score once; `contests` are those of the result, if they are known."""
    known, name = read_points(run), run.space.select_by
    labels = dict.fromkeys(point.label for point in known)
    found = {label: best([point for point in known if point.label == label], name) for label in labels}
    result = run.result()
    said = report_verdict(run, result, known, contests)
    return Overview(
        run=run,
        result=result,
        points=known,
        bests={label: point for label, point in found.items() if point},
        front=_front(run, known),
        base=run.base_scores("dev"),
        default=best([p for p in known if p.label == _default_label(known)], name),
        tone=said.tone,
        make=maker(),
    )


def _default_label(points: list[Point]) -> str | None:
    """Of the default's trial."""
    return next((point.label for point in points if point.kind == "default"), None)


def _front(run: Run, points: list[Point]) -> set[str]:
    """Of trials that did not fail, those of which an epoch is dominated by no other point."""
    names = run.space.objectives
    known = [
        ParetoPoint(label=point.label, epochs=point.config.epochs, values=tuple(map(point.value, names)))
        for point in scored(points, *names)
        if point.state != "failed"
    ]
    return {point.label for point in non_dominated(known, [METRICS[name].direction for name in names])}


def standing(shared: Overview, label: str) -> Standing | None:
    """None of a trial without a score."""
    if label not in shared.bests:
        return None
    metric = METRICS[shared.run.space.select_by]
    values = [metric.sign * point.value(metric.name) for point in shared.bests.values()]
    own = metric.sign * shared.bests[label].value(metric.name)
    return Standing(1 + sum(value > own for value in values), len(values), label in shared.front)


# When a page is written again


def _stamp(shared: Overview, trial: TrialRecord, beside: Neighbours, is_growing: bool) -> str:
    """Changes with what the page shows, but for its rank while the search goes on."""
    place = None if is_growing and not shared.result else standing(shared, trial.label)
    default = (shared.default.label, shared.default.epoch) if shared.default else None
    kind = shared.bests[trial.label].kind if trial.label in shared.bests else ""
    parts = (__version__, trial.state, trial.reason, trial.seconds, trial.epochs, trial.config, beside)
    text = repr((*parts, place, kind, default, shared.tone, _confirmed(shared, trial.label) is not None))
    return hashlib.sha256(text.encode()).hexdigest()


def _shows(path: Path, stamp: str) -> bool:
    return path.exists() and f'content="{stamp}"' in path.read_text(encoding="utf-8", errors="replace")


# The page


def render(shared: Overview, trial: TrialRecord, beside: Neighbours, stamp: str = "") -> str:
    """The page as text."""
    run, name = shared.run, shared.run.space.select_by
    points = [point for point in shared.points if point.label == trial.label and point.epoch]
    shown = images(run, _columns(shared, trial, points), trial.path, shared.make)
    top = shared.bests.get(trial.label)
    losses = read_losses(trial.path)
    rows = tables.setting_rows(settings(trial.config), settings(run.space.default))
    return page.render(
        "trial.html.j2",
        stamp=stamp,
        run=run.metadata,
        label=trial.label,
        kind=kind_of(shared, trial),
        is_winner=is_winner(shared, trial),
        crown="winner" if shared.tone == "win" else "chosen",
        beside=beside,
        pages={label: f"../../{page_of(label)}" for label in beside if label},
        trial=trial,
        origin=ORIGINS.get(trial.origin, trial.origin),
        metric=METRICS[name],
        verdict=verdict(shared, trial),
        images=shown,
        chosen=_chosen(points, top),
        cleaned=was_cleaned(trial),
        models=(found := _models(shared, points)),
        scores=tables.score_rows(found, list(METRICS)) if points else [],
        charts=trial_charts.of_scores(run, shared.base, shared.default, points),
        place=trial_charts.of_standing(name, trial.label, list(shared.bests.values())),
        losses=trial_charts.of_losses(losses, points),
        settings=rows,
        searched=[row for row in rows if row.name in run.space.distributions],
        config=yaml.dump(run.training_config(trial.config)),
        commands=_commands(run, trial, top),
        nearest=memorization.nearest_pairs(run, point_folder(run, top), "dev", shared.make) if top else None,
        costs=_costs(run, trial, len(losses)),
        figures={},
    )


def kind_of(shared: Overview, trial: TrialRecord) -> str:
    """`winner`, `default` or `sampled`: decides the colour."""
    if shared.result and trial.label == shared.result.winner:
        return "winner"
    return trial.origin if trial.origin == "default" else "sampled"


def is_winner(shared: Overview, trial: TrialRecord) -> bool:
    """Also of the default's trial, where no other was chosen."""
    found = _confirmed(shared, trial.label)
    return bool(shared.result and found and found.label == shared.result.winner)


def _confirmed(shared: Overview, label: str) -> Candidate | None:
    """What became of a trial that was trained again; the default's trial is number 0."""
    if shared.result is None:
        return None
    known = {"default", label} if label == _default_label(shared.points) else {label}
    return next((found for found in shared.result.candidates if found.label in known), None)


# In words


def verdict(shared: Overview, trial: TrialRecord) -> Verdict:
    """What it is and where it stands, in a sentence; its numbers."""
    place = standing(shared, trial.label)
    tone = shared.tone if is_winner(shared, trial) else TONES.get(trial.state, "tie")
    detail = [*_ending(trial, place), *_again(shared, trial)]
    return Verdict(tone, _headline(shared, trial, place), " ".join(detail), _facts(shared, trial))


def _headline(shared: Overview, trial: TrialRecord, place: Standing | None) -> str:
    if trial.state == "failed":
        return "This trial failed."
    if place is None:
        return "Still training." if trial.state == "running" else "This trial was never scored."
    won = is_winner(shared, trial)
    label = METRICS[shared.run.space.select_by].label.lower()
    chosen = "The winner: rank" if shared.tone == "win" else "Chosen: rank"
    return f"{chosen if won else 'Rank'} {place.rank} of {place.of} by {label}."


def _ending(trial: TrialRecord, place: Standing | None) -> list[str]:
    said = []
    if trial.state == "failed":
        said.append(f"{capital(trial.reason or 'no reason is known').rstrip('.')}.")
    if trial.state == "pruned":
        said.append(f"Pruned: {(trial.reason or 'it was among the last').rstrip('.')}.")
    if trial.state == "running":
        said.append("It had not ended when this page was written; the search goes on with it.")
    if place:
        front = "No trial beats it" if place.on_front else "Another trial is at least as good as it"
        said.append(f"{front} in all objectives at once.")
    return said


def _again(shared: Overview, trial: TrialRecord) -> list[str]:
    """What came of training it again."""
    found = _confirmed(shared, trial.label)
    if found is None:
        return []
    score = found.scores.get(shared.run.space.select_by)
    gain = plus_minus(score.gain, score.gain_stderr, signed=True) if score and score.gain is not None else ""
    over = f": {gain} over the base on the test prompts" if gain else ""
    return [
        f"Trained again with {plural(len(found.records), 'fresh seed')}{over}; that counts, in the report."
    ]


def _facts(shared: Overview, trial: TrialRecord) -> list[Fact]:
    """The objectives at its best epoch."""
    top = shared.bests.get(trial.label)
    if top is None:
        return []
    found = []
    for name in dict.fromkeys([shared.run.space.select_by, *shared.run.space.objectives]):
        if score := top.scores.get(name):
            gain = plus_minus(score.gain, score.gain_stderr, signed=True)
            note = f"{gain} over the base" if score.gain is not None else direction(METRICS[name])
            found.append(Fact(METRICS[name].label, plus_minus(score.value, score.stderr), note))
    return found


def _costs(run: Run, trial: TrialRecord, steps: int) -> list[tuple[str, str]]:
    slots = run.space.slots
    beside = f"shared with up to {slots - 1} beside it" if isinstance(slots, int) and slots > 1 else "alone"
    known = beside if slots else "shared with those beside it"
    return [
        ("wall-clock time", duration(trial.seconds) + (f", {known}" if trial.seconds is not None else "")),
        ("training steps", str(steps) if steps else "–"),
        ("batch", plural(trial.config.batch_size, "image")),
        ("scored at", ", ".join(plural(epoch, "epoch") for epoch in trial.epochs) or "–"),
        ("device", run.metadata.device),
    ]


class Commands(NamedTuple):
    train: str
    export: str
    """Empty where there is no adapter to export."""


def _commands(run: Run, trial: TrialRecord, top: Point | None) -> Commands:
    name = shlex.quote(run.path.name)
    export = ""
    if top and trial.label.isdecimal() and not was_cleaned(trial):
        export = f"bench export {name} --trial {int(trial.label)} --epoch {top.epoch}"
    return Commands("bench train --config training_config.yaml", export)


# Scores and images


def _models(shared: Overview, points: Sequence[Point]) -> list[tables.Model]:
    """Base and default beside every scored epoch."""
    found = [tables.Model("Base model", "base", shared.base, {})] if shared.base else []
    default = shared.default
    if default and points and default.label != points[0].label:
        title = f"Default config, {plural(default.config.epochs, 'epoch')}"
        found.append(tables.Model(title, "default", default.scores, {}))
    own = [tables.Model(plural(p.config.epochs, "epoch"), p.kind, p.scores, {}) for p in points]
    return [*found, *own]


def _columns(shared: Overview, trial: TrialRecord, points: Sequence[Point]) -> list[Column]:
    """Of the trial one an epoch, of which the page shows the chosen one."""
    run, default, name = shared.run, shared.default, shared.run.space.select_by
    found = [column("base", "base", [run.base_folder("dev")], name)]
    if default and default.label != trial.label:
        found.append(column("default", "default", [point_folder(run, default)], name))
    title = "default" if trial.origin == "default" else trial_name(trial.label)
    for number, point in enumerate(points, start=1):
        named = plural(point.config.epochs, "epoch") if len(points) > 1 else title
        kind = f"own {kind_of(shared, trial)} epoch-{number}"
        found.append(column(named, kind, [point_folder(run, point)], name))
    return found


def _chosen(points: Sequence[Point], top: Point | None) -> int:
    """The epoch whose images are seen first, counted from 1: the best, else the last."""
    epochs = [point.epoch for point in points]
    return epochs.index(top.epoch) + 1 if top and top.epoch in epochs else len(epochs)
