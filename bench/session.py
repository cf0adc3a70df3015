"""Sessions: a search, a worker, a floor or adapters on a run folder, here or in workers on all devices."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from bench import yaml
from bench.base import BaseModel, find_device
from bench.cache import cache_limit
from bench.cluster import open_cluster
from bench.config import refuse_missing_8bit
from bench.confirm import EXAMINED, Confirmation
from bench.encoding import encode
from bench.energy import Cost, Meter, counters
from bench.errors import BenchError, DeviceError, MismatchError, TrialError, UsageError
from bench.fleet import Fleet, count_devices, shared_threads
from bench.forecast import Forecast, forecast
from bench.loaded import base_of, load
from bench.lock import locked
from bench.opening import Opening, Session
from bench.packs import Attach, Crew, Packs, Progress, Trainer, describe
from bench.prior import with_prior
from bench.progress import paused, show_progress
from bench.provenance import changed, check_same, metadata_of
from bench.room import FLOOR, SEARCH, WORKER, Task
from bench.run import NAME, Metadata, Run, Split, adapter_label, start_adapter
from bench.scoring.exam import Exam
from bench.searcher import database_errors, open_study
from bench.series import Checkpoint, Series
from bench.shared import Place, Shared, refuse_apart, share, shared_metadata
from bench.sheet import Sheet, read_sheet
from bench.space import SearchSpace
from bench.speed import Speed, measure_speed
from bench.study import COST, Study
from bench.workers import Child, Parent, Process, Worker

LOOK = Task(name="the run")
"""Nothing is trained, nor scored, but the base."""
MAX_NAME = 64
"""Characters of a run's name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """What trains and what draws, given by the command: `bench` itself knows neither."""

    train: Trainer
    attach: Attach


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Command:
    """What the user asked for: a space, as resolved, on a run folder."""

    space: SearchSpace
    name: str | None
    """Of the run; None for the command's own choice."""
    folder: Path
    """That holds the runs."""
    seed: int
    engine: Engine
    console: Console
    is_new: bool = False
    """A run of its own, whatever there is of that name."""
    isolated: bool = False
    """Train and examine in child processes, one a device, even where there is one device."""
    executor: Literal["local", "ray"] = "local"
    """Where the child processes are."""
    place: Place | None = None
    """Of a study that others work on too."""
    on_forecast: Callable[[Forecast], None] | None = None
    """Told how long a search will take before it begins; may raise so that it does not."""
    follow: Callable[[Path], None] = lambda path: None
    """Is told the run folder before anything is loaded."""

    @property
    def say(self) -> Callable[[str], None]:
        return partial(self.console.print, highlight=False, markup=False, soft_wrap=True)


def run_search(command: Command) -> Run:
    """Run a search, or go on with the one in the run folder; returns its run.

    Everything is checked before anything is written: raises a BenchError.
    """
    space = command.space
    if "adamw8bit" in space.optimizers:
        refuse_missing_8bit()
    with database_errors(), at_work(command, space.name, SEARCH) as (run, crew):
        confirmation = Confirmation(run=run, packs=crew)
        with _shared(run, command.place) as shared:
            if command.on_forecast and (found := forecast(run, crew, _spent(run, shared))):
                with paused(crew.progress):
                    command.on_forecast(found)
            is_counted = command.executor == "local" and not shared
            device = find_device().type
            study = Study(
                run=run,
                packs=crew,
                reserve=confirmation.units,
                shared=shared,
                num_devices=crew.num_devices,
                meter=Meter(counters(device, crew.num_devices) if is_counted else []),
            )
            study.search(space.trials, space.budget)
            confirmation.confirm(lambda: study.cost)
            study.save_cost()
    return run


def _spent(run: Run, shared: Shared | None) -> float:
    """Seconds that a search has taken before."""
    study = shared.study if shared else open_study(run.path / "study.db", run.metadata.name, run.space)
    return Cost(**study.user_attrs.get(COST, {})).seconds


@contextmanager
def _shared(run: Run, place: Place | None) -> Iterator[Shared | None]:
    if place is None:
        refuse_apart(run)
        yield None
        return
    with share(run, place, takes_over=True, check=partial(_check_shared, run)) as shared:
        shared.refuse_strange({record.label for record in run.trials() if record.state != "running"})
        yield shared


def _check_shared(run: Run, theirs: Metadata) -> None:
    """Raises MismatchError if a shared study is of another search."""
    if found := changed(run.metadata, theirs):
        raise MismatchError(
            f"{run.path}: the shared study {theirs.name!r} was begun with another {', '.join(found)}"
        )


def run_worker(command: Command, place: Place, overrides: Mapping[str, Any]) -> Run:
    """Work on a search that was begun elsewhere, until it has enough trials; returns the run of this machine.

    The command's name is the search's; `overrides` say where its data or base are here. Raises MismatchError
    if they are not what it searches.
    """
    name = _checked_name(command.name or "")
    with database_errors():
        theirs = shared_metadata(place, name)
    space = resolve(SearchSpace.model_validate(theirs.space), overrides)
    if theirs.slots_reason:
        space = space.model_copy(update={"slots": "auto"})
    command = dataclasses.replace(command, space=space, seed=theirs.seed)
    with database_errors(), at_work(command, name, WORKER) as (run, crew):
        with share(run, place, takes_over=False, check=partial(_check_shared, run)) as shared:
            study = Study(run=run, packs=crew, shared=shared, num_devices=crew.num_devices)
            study.search(shared.num_wanted, space.budget)
    return run


def run_floor(command: Command) -> Run:
    """Measure the noise floor of a space's default configuration; a search of that name builds on it."""
    if command.space.default.optimizer == "adamw8bit":
        refuse_missing_8bit()
    with at_work(command, command.space.name, FLOOR) as (run, crew):
        Confirmation(run=run, packs=crew).floor()
    return run


def run_adapters(command: Command, digests: Mapping[Path, str]) -> Run:
    """Draw and score adapter files on the test prompts and probes of a space; returns the run they lie in.

    Each is known by its digest, see `file_digests`, so that nothing is drawn twice. Raises UsageError for a
    file that does not fit, TrialError naming a file whose images must not be scored.
    """
    name = f"adapters-{command.space.name}"[:MAX_NAME]
    labels = [adapter_label(digest) for digest in digests.values()]
    task = Task(name="scoring", drawings=[(label, split) for label in labels for split in EXAMINED])
    with at_work(command, name, task, splits=EXAMINED, adapters=tuple(digests)) as (run, crew):
        folders = {file: run.adapter_folder(adapter_label(digests[file])) for file in digests}
        for file, into in folders.items():
            start_adapter(into, file, digests[file])
        for split in crew.survey.num_drawn:
            _examine_adapters(crew, {file: into / split for file, into in folders.items()}, split)
    return run


def _examine_adapters(crew: Crew, folders: Mapping[Path, Path], split: Split) -> None:
    crew.examine(list(folders.items()), split)
    for file, folder in folders.items():
        if reason := crew.refused.get(folder):
            raise TrialError(f"{file}: cannot be scored: {reason}")


def run_scores(command: Command, series: Sequence[Series]) -> tuple[Run, list[Sheet]]:
    """Draw and score adapter files at every weight of the space, and what is recommended of each series more.

    All are drawn on the dev prompts, which recommend; then those alone on the test prompts and probes. What
    the run holds is not drawn again. Raises UsageError for a file that does not fit, TrialError naming a
    file whose images must not be scored at any weight.
    """
    checkpoints = [checkpoint for each in series for checkpoint in each.checkpoints]
    task = _scoring(checkpoints, command.space.weights, len(series))
    opened = open_session(command, f"adapters-{command.space.name}"[:MAX_NAME], task)
    with opened as session, show_progress(command.console) as progress:
        _check_fit(session.loaded.base, command.engine, [checkpoint.file for checkpoint in checkpoints])
        run, packs = session.run, packs_of(session, command.engine, progress)
        packs.exams |= session.exams(packs, ["dev"])
        progress.total(packs.survey.drawing("dev") * len(checkpoints) * len(run.space.weights))
        for weight in run.space.weights:
            packs.attach = partial(command.engine.attach, weight=weight)
            packs.examine(_started(run, checkpoints, weight, "dev"), "dev")
        sheets = [read_sheet(run, each, packs.refused) for each in series]
        packs.exams = session.exams(packs, EXAMINED)
        for split in packs.exams:
            for best in (sheet.best for sheet in sheets):
                packs.attach = partial(command.engine.attach, weight=best.weight)
                packs.examine(_started(run, [best.checkpoint], best.weight, split), split)
                if reason := packs.refused.get(run.adapter_folder(best.label) / split):
                    raise TrialError(f"{best.checkpoint.file}: cannot be scored: {reason}")
    return run, sheets


def _scoring(checkpoints: Sequence[Checkpoint], weights: Iterable[float], num_series: int) -> Task:
    """What is recommended of each series is not known yet."""
    labels = [adapter_label(checkpoint.digest, weight) for checkpoint in checkpoints for weight in weights]
    best: list[tuple[str, Split]] = [("", split) for split in EXAMINED] * num_series
    return Task(name="scoring", drawings=[*((label, "dev") for label in labels), *best])


def _started(
    run: Run, checkpoints: Sequence[Checkpoint], weight: float, split: Split
) -> list[tuple[Path, Path]]:
    """Each file, and the folder of its Evaluation."""
    pairs = []
    for checkpoint in checkpoints:
        into = run.adapter_folder(adapter_label(checkpoint.digest, weight))
        start_adapter(into, checkpoint.file, checkpoint.digest, weight)
        pairs.append((checkpoint.file, into / split))
    return pairs


def run_speed(command: Command) -> Speed:
    """Measure what the base of a space does on this machine; writes nothing. Raises a BenchError."""
    space, device = command.space, find_device()

    def say(text: str) -> None:
        command.console.print(f"Measuring {text}.", highlight=False, markup=False)

    base = base_of(space, device)
    try:
        words = {"device": _describe(device), "config": describe(space.default)}
        return measure_speed(base, space, command.engine.train, **words, say=say)
    except torch.OutOfMemoryError as error:
        raise BenchError(f"{base.name}: out of memory: {str(error).splitlines()[0]}") from None


def _check_fit(base: BaseModel, engine: Engine, files: Iterable[Path]) -> None:
    """Fails now, not after the base's images have been drawn."""
    for file in files:
        with engine.attach(base, [file]):
            pass


def packs_of(session: Session, engine: Engine, progress: Progress) -> Packs:
    space, base, train = session.run.space, session.loaded.base, session.loaded.dataset.train
    base.keeps_text_encoders = space.trains_text
    data = encode(base, train, mixed=space.buckets, variants=space.variants, balance=space.balance)
    if space.has_prior:
        data = with_prior(base, data, train, space.class_prompt, space.trigger, space.class_images)
    return Packs(
        base=base,
        data=data,
        trainer=engine.train,
        attach=engine.attach,
        progress=progress,
        num_slots=space.num_slots,
    )


@contextmanager
def at_work(
    command: Command,
    name: str,
    task: Task = LOOK,
    *,
    splits: Sequence[Split] | None = None,
    adapters: Sequence[Path] = (),
) -> Iterator[tuple[Run, Crew]]:
    """An open run, see `open_session`, and what trains and examines on its prompts of `splits` (or of all).

    In this process where there is one device and the command is not `isolated`; else in a worker a device.
    None of them outlives it. Raises UsageError for one of the `adapters` that does not fit.
    """
    opening = _opening(command, name, task)
    command.follow(opening.path)
    if opening.num_devices == 1 and not command.isolated and command.executor == "local":
        with open_session(command, name, task) as session, show_progress(command.console) as progress:
            yield session.run, _prepared(session, command.engine, progress, splits, adapters)
        return
    with ExitStack() as stack:
        held = stack.enter_context(ExitStack())  # longer than there are workers
        stack.enter_context(shared_threads(find_device(), opening.num_devices))
        children: Sequence[Child] = [Process(number) for number in range(opening.num_devices)]
        if command.executor == "ray":
            cluster = stack.enter_context(open_cluster(command.space.devices))
            children, path = cluster.children, opening.path.resolve()
            opening = dataclasses.replace(
                opening, path=path, device=cluster.described, num_devices=len(children)
            )
        load = partial(_open_in_worker, opening, command.engine, splits, adapters)
        fleet = Fleet(
            [Worker(number=number, child=child, load=load) for number, child in enumerate(children)],
            stack.enter_context(show_progress(command.console)),
            join=partial(join, opening.path, opening.space, command.engine),
            say=command.say,
            lock=lambda: held.enter_context(locked(opening.path)),
        )
        stack.callback(fleet.close)
        fleet.start()
        assert fleet.metadata
        yield Run(opening.path, fleet.metadata), fleet


def _open_in_worker(
    opening: Opening,
    engine: Engine,
    splits: Sequence[Split] | None,
    adapters: Sequence[Path],
    parent: Parent,
) -> tuple[Packs, Callable[[Split], Exam]]:
    """For the first worker: its Packs with all Exams, of a run that it opens for all."""
    try:
        session = opening.session(parent.say, parent.lock)
        packs = _prepared(session, engine, parent, splits, adapters)
    except DeviceError:
        raise
    except BenchError as error:
        parent.tell("broke", error)
        raise
    parent.tell("opened", session.run.metadata, packs.survey)
    return packs, lambda split: session.exams(packs, [split])[split]


def _prepared(
    session: Session,
    engine: Engine,
    progress: Progress,
    splits: Sequence[Split] | None,
    adapters: Sequence[Path],
) -> Packs:
    """Packs with the Exams of `splits`, or of all."""
    _check_fit(session.loaded.base, engine, adapters)
    packs = packs_of(session, engine, progress)
    packs.exams |= session.exams(packs, splits)
    return packs


def join(
    path: Path, space: SearchSpace, engine: Engine, parent: Parent
) -> tuple[Packs, Callable[[Split], Exam]]:
    """For a worker: Packs, and what gives an Exam, of a run that another one opens.

    What the space names is loaded at once. Writes nothing of run.json. Raises MismatchError if it is not what
    the other has loaded.
    """
    loaded = load(space)
    metadata = parent.metadata()
    run = Run(path, metadata)
    check_same(run, metadata_of(metadata.name, run.space, metadata.seed, loaded, metadata.device))
    session = Session(run=run, loaded=loaded)
    packs = packs_of(session, engine, parent)
    return packs, lambda split: session.exams(packs, [split])[split]


@contextmanager
def open_session(command: Command, name: str, task: Task = LOOK) -> Iterator[Session]:
    """Load and check all that a space names, then open or create its run folder and hold its lock.

    In this process. `name` is the run's if the user gave none.
    """
    opening = _opening(command, name, task)
    with ExitStack() as stack:
        stack.enter_context(shared_threads(find_device(), opening.num_devices))
        yield opening.session(command.say, lambda: stack.enter_context(locked(opening.path)))


def _opening(command: Command, name: str, task: Task) -> Opening:
    cache_limit()  # wrong, it is said now
    path = command.folder / _checked_name(command.name or name)
    device = find_device()
    num_devices = count_devices(command.space.devices, device)
    with shared_threads(device, num_devices):
        return Opening(
            space=command.space,
            path=_free(path) if command.is_new else path,
            seed=command.seed,
            trainer=command.engine.train,
            task=task,
            device=_describe(device, num_devices),
            num_devices=num_devices,
        )


def _free(path: Path) -> Path:
    """That, or else the first of name-2, name-3, … that is not there."""
    paths = (path if number == 1 else path.with_name(f"{path.name[:58]}-{number}") for number in count(1))
    return next(path for path in paths if not path.exists())


def _checked_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise UsageError(
            f"--name {name!r}: use up to 64 letters, digits, '.', '_' and '-', a letter or digit first"
        )
    return name


def resolve(space: SearchSpace, overrides: Mapping[str, Any]) -> SearchSpace:
    """The space with what was given on the command line; raises UsageError naming the flag."""
    given = {key: value for key, value in overrides.items() if value is not None}
    if not given:
        return space
    flags = ", ".join(f"--{key}" for key in given)
    return yaml.validate({**space.model_dump(), **given}, SearchSpace, flags)


def _describe(device: torch.device, number: int = 1) -> str:
    """So many devices, of which that is the first."""
    if device.type == "mps":
        return device.type
    names = [f"{torch.get_num_threads()} threads"] * number
    if device.type == "cuda":
        names = [torch.cuda.get_device_name(index) for index in range(number)]
    kinds = [f"{count} x {name}" if count > 1 else name for name, count in Counter(names).items()]
    return f"{device.type} ({', '.join(kinds)})"
