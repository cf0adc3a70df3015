"""Memorisation in the search report: alarms, numbers, and the nearest pairs to look at."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bench.run import (
    Candidate,
    Evaluation,
    Pictures,
    Result,
    Run,
    Split,
    has_evaluation,
    image_files,
    read_evaluation,
)
from bench.scoring import memorization
from bench.scoring.memorization import Features
from bench.scoring.metrics import MEMORIZATION, Score
from reports import images
from reports.images import Cell, PromptRow, Thumbnail
from reports.tables import Model, ScoreRow, models, score_rows
from reports.verdict import winner_of

NUM_PAIRS = 6
"""Of each set of prompts."""
MAX_CHARACTERS = 400_000
"""Of the thumbnails of one set of pairs."""
TRAINING = "training"
Maker = Callable[[Path], Thumbnail | None]


class Pairs(NamedTuple):
    """Images beside the training pictures nearest to them, nearest first."""

    title: str
    rows: list[PromptRow]


class Memorization(NamedTuple):
    alarms: list[str]
    measured: bool
    """Whether there were numbers by which an alarm could have been raised."""
    models: list[Model]
    rows: list[ScoreRow]
    pairs: list[Pairs]
    network: str
    """The one whose cosines stand under the pairs."""
    threshold: float | None
    """Cosine that hardly any held-out real picture reaches."""


class NearestPairs(NamedTuple):
    """Of one evaluation."""

    rows: list[PromptRow]
    network: str
    threshold: float | None


class _View(NamedTuple):
    """What one network sees of the pictures."""

    by_judge: bool
    train: Features
    held_out: Features | None


def panel(run: Run, result: Result, base: dict[str, Score]) -> Memorization | None:
    """None where neither numbers nor features of training pictures are in the run folder."""
    won = winner_of(result)
    shown = [m for m in models(result, base) if m.kind != "sampled"]
    rows = score_rows(shown, [metric.name for metric in MEMORIZATION])
    held_out = run.pictures("test")
    view = _view(run, run.evaluations(won, "test"), held_out)
    found = _pairs(run, won, view) if view else []
    if not rows and not found:
        return None
    return Memorization(
        alarms=memorization.alarms(won.scores, len(held_out.features) if held_out else None),
        measured=any(name in won.scores for name in ("copies", "c_t", "loss_gap")),
        models=shown,
        rows=rows,
        pairs=found,
        network=_network(run, view) if view else run.metadata.scorer,
        threshold=_threshold(view) if view else None,
    )


def nearest_pairs(run: Run, folder: Path, split: Split, make: Maker) -> NearestPairs | None:
    """Of the evaluation in `folder`, on the prompts of `split`; None where either is not known."""
    if not has_evaluation(folder):
        return None
    held_out = run.pictures(split)
    view = _view(run, [read_evaluation(folder)], held_out)
    if view is None:
        return None
    everything = list(range(len(run.metadata.prompts.get(split, []))))
    rows = _pair_rows(run, folder, split, everything, view, make)
    return NearestPairs(rows, _network(run, view), _threshold(view)) if rows else None


def _network(run: Run, view: _View) -> str:
    return (run.metadata.judge or "judge") if view.by_judge else run.metadata.scorer


def _view(run: Run, evaluations: list[Evaluation], held_out: Pictures | None) -> _View | None:
    """By the judge where it saw both the training pictures and the images."""
    train = run.pictures("train")
    if train is None or not len(train.features):
        return None
    if train.judge_features is not None and all(e.judge_features is not None for e in evaluations):
        return _View(True, train.judge_features, held_out.judge_features if held_out else None)
    return _View(False, train.features, held_out.features if held_out else None)


def _threshold(view: _View) -> float | None:
    if view.held_out is None or not len(view.held_out):
        return None
    return memorization.threshold(memorization.nearest(view.held_out, view.train).cosines)


def _pairs(run: Run, won: Candidate, view: _View) -> list[Pairs]:
    probes = run.metadata.prompts.get("probe", [])
    training = [index for index, prompt in enumerate(probes) if prompt.kind == TRAINING]
    test = list(range(len(run.metadata.prompts.get("test", []))))
    probe_folder, test_folder = (run.exam_folders(won, split)[0] for split in ("probe", "test"))
    found = [
        Pairs(
            "Drawn from captions of training pictures", _pair_rows(run, probe_folder, "probe", training, view)
        ),
        Pairs("Drawn from captions it never saw", _pair_rows(run, test_folder, "test", test, view)),
    ]
    return [pairs for pairs in found if pairs.rows]


def _pair_rows(
    run: Run, folder: Path, split: Split, chosen: list[int], view: _View, make: Maker = images.thumbnail
) -> list[PromptRow]:
    """Of the evaluation in `folder`, on the prompts `chosen`."""
    prompts = run.metadata.prompts.get(split, [])
    if not chosen or not has_evaluation(folder):
        return []
    features = _features(read_evaluation(folder), view)
    seeds = len(prompts[0].seeds)
    rows_of = [index * seeds + seed for index in chosen for seed in range(seeds)]
    if features is None or len(features) < len(prompts) * seeds:
        return []
    files, rows, left = image_files(folder), [], MAX_CHARACTERS
    for pair in memorization.pairs(features[rows_of], view.train, NUM_PAIRS, seeds):
        image = rows_of[pair.image]
        drawn = make(files[image]) if image < len(files) else None
        real = make(run.path / "real" / "train" / f"{pair.training:04d}.webp")
        left -= sum(len(shown.uri) for shown in (drawn, real) if shown)
        if left < 0:
            break
        cells = [
            Cell("drawn", "winner", [drawn], pair.cosine),
            Cell("nearest training picture", "real", [real], None),
        ]
        rows.append(PromptRow(prompts[image // seeds].text, cells))
    return rows


def _features(evaluation: Evaluation, view: _View) -> Features | None:
    return evaluation.judge_features if view.by_judge else evaluation.features
