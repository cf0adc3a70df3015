"""What is damaged in a run folder, and how it is mended: the folders of trials are the record."""

import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from bench import run as runs
from bench import yaml
from bench.config import TrialConfig
from bench.energy import Cost
from bench.errors import BenchError, one_line
from bench.run import Run
from bench.searcher import Searcher, open_study

DAMAGED = "damaged"
"""Folder of a run for what was set aside."""
STUDY = "study.db"
JOURNALS = ("-journal", "-wal", "-shm")
"""Endings of what SQLite keeps beside a database."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Damage:
    """Something that cannot be read."""

    path: Path
    """What has to be made again: a training, an Evaluation, or a file."""
    reason: str


# Finding it


def trouble_of_study(run: Run) -> str | None:
    """What is wrong with study.db; None if it is whole, or not there."""
    file = run.path / STUDY
    if not file.exists():
        return None
    if not file.stat().st_size:
        return f"{file}: empty"
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=rw", uri=True)) as opened:
            (said,) = opened.execute("PRAGMA integrity_check(1)").fetchone()
        if said != "ok":
            return f"{file}: damaged: {said}"
        known = open_study(file, run.metadata.name, run.space).get_trials(deepcopy=False)
    except Exception as error:  # whatever Optuna and its database layer make of what they read
        return f"{file}: damaged: {one_line(error)[:200]}"
    labels = {trial.user_attrs.get("label") for trial in known}
    ended = [record.label for record in _readable(run) if record.state != "running"]
    unknown = [label for label in ended if label not in labels]
    return f"{file}: does not know of {', '.join(unknown)}" if unknown else None


def damages(run: Run) -> list[Damage]:
    """All of a run folder but study.db, in the order of its parts."""
    found: list[Damage] = []
    for name in ("train", "dev", "test"):
        found += _of_file(run.path / "real" / name / "features.safetensors", partial(run.pictures, name))
    for folder in sorted(path for path in (run.path / "base").glob("*") if path.is_dir()):
        found += _of_evaluation(run, folder, folder.name)
    for kind in ("trials", "confirm"):
        for folder in sorted(path for path in (run.path / kind).glob("*") if path.is_dir()):
            found += _of_training(run, folder)
    for folder in sorted(path.parent for path in (run.path / "adapters").glob("*/*/scores.json")):
        found += _of_evaluation(run, folder, folder.name)
    return [*found, *_of_outcome(run)]


def _of_training(run: Run, folder: Path) -> Iterator[Damage]:
    """One of the whole training, or those of what was examined of it."""
    try:
        record = runs.read_trial(folder)
        runs.read_losses(folder)
    except BenchError as error:
        yield Damage(path=folder, reason=str(error))
        return
    for epoch in record.epochs:
        of_epoch = runs.epoch_folder(folder, epoch)
        adapter = runs.adapter_file(folder, epoch)
        reason = next((damage.reason for damage in _of_evaluation(run, of_epoch, "dev")), None)
        if reason is None and not (runs.was_cleaned(record) and not adapter.exists()):
            reason = _of_adapter(adapter)
        if reason:
            yield Damage(path=folder, reason=reason)
            return
        for examined in sorted(path.parent for path in of_epoch.glob("*/scores.json")):
            yield from _of_evaluation(run, examined, examined.name)


def _of_evaluation(run: Run, folder: Path, split: str) -> Iterator[Damage]:
    if not runs.has_evaluation(folder):
        return  # it is made again by itself
    try:
        runs.read_evaluation(folder)
    except BenchError as error:
        yield Damage(path=folder, reason=str(error))
        return
    images = runs.image_files(folder)
    of_split: Mapping[Any, Any] = run.metadata.prompts
    wanted = sum(len(prompt.seeds) for prompt in of_split.get(split, ()))
    torn = next((file for file in images if not _is_whole_webp(file)), None)
    if torn:
        yield Damage(path=folder, reason=f"{torn}: not a whole image")
    elif (folder / "images").exists() and len(images) != wanted:
        yield Damage(path=folder, reason=f"{folder / 'images'}: {len(images)} of {wanted} images are there")


def _is_whole_webp(file: Path) -> bool:
    """As long as its head says."""
    with file.open("rb") as opened:
        head = opened.read(12)
    whole = int.from_bytes(head[4:8], "little") + 8
    return head[:4] == b"RIFF" and head[8:] == b"WEBP" and whole == file.stat().st_size


def _of_adapter(file: Path) -> str | None:
    try:
        with safe_open(file, "np"):
            return None
    except (OSError, SafetensorError) as error:
        return f"{file}: damaged: {one_line(error)}"


def _of_outcome(run: Run) -> Iterator[Damage]:
    """result.json, floor.json and winner/."""
    yield from _of_file(run.path / "floor.json", run.floor)
    yield from _of_result(run)
    adapter = run.path / "winner" / "adapter.safetensors"
    if adapter.exists() and (torn := _of_adapter(adapter)):
        yield Damage(path=adapter, reason=torn)


def _of_result(run: Run) -> Iterator[Damage]:
    file = run.path / "result.json"
    if damaged := list(_of_file(file, run.result)):
        yield from damaged
        return
    result = run.result()
    labels = [label for candidate in (result.candidates if result else ()) for label in candidate.records]
    missing = [label for label in labels if not (run.path / "confirm" / label / "trial.json").exists()]
    if missing:
        yield Damage(path=file, reason=f"{file}: rests on trainings that are gone: {', '.join(missing)}")


def _of_file(file: Path, read: Callable[[], object]) -> Iterator[Damage]:
    try:
        read()
    except BenchError as error:
        yield Damage(path=file, reason=str(error))


# Mending it


def set_aside(run: Run, path: Path) -> None:
    """Move a file or folder into damaged/, under a name of its own there."""
    name = "-".join(path.relative_to(run.path).parts)
    folder = run.path / DAMAGED
    folder.mkdir(exist_ok=True)
    number = 1
    while (place := folder / (name if number == 1 else f"{name}.{number}")).exists():
        number += 1
    shutil.move(path, place)


def set_all_aside(run: Run, damaged: Sequence[Damage]) -> None:
    """And let the study ask for the same configurations again; a result goes with what it rests on."""
    trials = [damage.path for damage in damaged if damage.path.parent == run.path / "trials"]
    points = [point for folder in trials if (point := _point_of(run, folder))]
    for damage in damaged:
        if damage.path.exists():
            set_aside(run, damage.path)
    retrained = any(damage.path.parent == run.path / "confirm" for damage in damaged)
    if retrained and (run.path / "result.json").exists():
        set_aside(run, run.path / "result.json")
    if trials and (run.path / STUDY).exists():
        rebuild(run, points)


def _point_of(run: Run, folder: Path) -> dict[str, Any] | None:
    """What a trial samples, by its configuration, that of a retraining, or what the study knows of it."""
    retrained = sorted((run.path / "confirm").glob(f"{folder.name}-seed-*"))
    for training in (folder, *retrained):
        with suppress(BenchError):
            return run.space.parameters_of(yaml.read(training / "config.yaml", TrialConfig))
    if trouble_of_study(run):
        return None
    known = open_study(run.path / STUDY, run.metadata.name, run.space).get_trials(deepcopy=False)
    return next(
        (
            trial.params
            for trial in known
            if trial.user_attrs.get("label") == folder.name and not trial.user_attrs.get("nested")
        ),
        None,
    )


def rebuild(run: Run, again: Sequence[Mapping[str, Any]]) -> None:
    """Make study.db again from the folders of the trials; points of `again` are asked for next.

    The sampler learns the same scores in the order of the labels. All trials must be readable.
    """
    file, records, cost = run.path / STUDY, _readable(run), _cost(run)
    for path in (file, *(file.with_name(f"{STUDY}{ending}") for ending in JOURNALS)):
        if path.exists():
            set_aside(run, path)
    study = open_study(file, run.metadata.name, run.space)
    points = [run.space.parameters_of(record.config) for record in records]
    for point in points:
        study.enqueue_trial(point)
    searcher = Searcher(study, run.space, run.metadata.seed)
    for record in records:
        searcher.ask(record.label)
        _tell(searcher, record)
    starts = [run.space.parameters_of(config) for config in (run.space.default, *run.space.starts)]
    left = [start for start in starts if start not in points] if records else []  # else they are in already
    for asked in (*again, *left):
        study.enqueue_trial(dict(asked), skip_if_exists=True)
    study.set_user_attr("cost", cost)


def _readable(run: Run) -> list[runs.TrialRecord]:
    found = []
    for file in sorted((run.path / "trials").glob("*/trial.json")):
        with suppress(BenchError):
            found.append(runs.read_trial(file.parent))
    return found


def _cost(run: Run) -> dict[str, float | None]:
    """Of the search so far; not known if the study no longer says it."""
    if trouble_of_study(run):
        return Cost(joules=None)._asdict()
    study = open_study(run.path / STUDY, run.metadata.name, run.space)
    cost: dict[str, float | None] = study.user_attrs.get("cost", {})
    return cost


def _tell(searcher: Searcher, record: runs.TrialRecord) -> None:
    for epoch in record.epochs:
        evaluation = runs.read_evaluation(runs.epoch_folder(record.path, epoch))
        values = {name: score.value for name, score in evaluation.scores.items()}
        searcher.scored(record.label, epoch, values)
    if record.state != "running":
        searcher.ended(record.label, record.state, record.config.epochs, record.reason)


# Trials that nobody works on


def stale(run: Run) -> list[str]:
    """Labels of trials that are running by the study, or by their folders."""
    return sorted({*_running(run), *(each.label for each in run.trials() if each.state == "running")})


def unsettled(run: Run) -> list[str]:
    """Labels of those of which the study does not know that they have ended, or never began."""
    ended = {record.label for record in run.trials() if record.state != "running"}
    return [label for label in _running(run) if label in ended or label == NEVER]


NEVER = "(not begun)"
"""In place of the label of a trial that was asked for and has none."""


def _running(run: Run) -> list[str]:
    if not (run.path / STUDY).exists():
        return []
    known = open_study(run.path / STUDY, run.metadata.name, run.space).get_trials(deepcopy=False)
    return [str(trial.user_attrs.get("label", NEVER)) for trial in known if trial.state.name == "RUNNING"]


def settle(run: Run) -> list[str]:
    """Tell the study what the folders say; trials that never began are failed and asked for again."""
    labels = unsettled(run)
    study = open_study(run.path / STUDY, run.metadata.name, run.space)
    searcher = Searcher(study, run.space, run.metadata.seed)
    interrupted = searcher.interrupted()
    for record in run.trials():
        if record.label in interrupted and record.state != "running":
            _tell(searcher, record)
    return labels
