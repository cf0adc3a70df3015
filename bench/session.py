"""Sessions: all that a space names is loaded and checked; a search, a floor or adapters run on its folder."""

import dataclasses
import datetime
import importlib.metadata
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console

import bench
from bench import yaml
from bench.base import BaseModel, adaptable_names, find_device, load_base, target_names
from bench.buckets import fit
from bench.cache import cache_limit
from bench.cluster import open_cluster
from bench.config import refuse_missing_8bit
from bench.confirm import EXAMINED, Confirmation
from bench.dataset import Dataset, load_dataset
from bench.encoding import crops_note, encode
from bench.errors import BenchError, DeviceError, MismatchError, TrialError, UsageError
from bench.fit import find_fit
from bench.fleet import Fleet, count_devices, shared_threads
from bench.forecast import Forecast, forecast
from bench.lock import locked
from bench.packs import Attach, Crew, Packs, Progress, Trainer, describe
from bench.prior import with_prior
from bench.progress import paused, show_progress
from bench.prompts import Prompt, fingerprint, held_out_prompts, probe_prompts, scored_text
from bench.room import check_room, sizes_of
from bench.run import NAME, Metadata, PromptRecord, Run, Split, adapter_label, start_adapter, write_images
from bench.scoring.embed import Scorer, load_scorer
from bench.scoring.exam import Exam, Networks, prepare
from bench.scoring.judge import find_judge
from bench.scoring.losses import NUM_PICTURES, Denoising, HeldOutLoss, LossGap
from bench.scoring.measure import MIN_SET
from bench.scoring.metrics import METRICS
from bench.searcher import database_errors
from bench.series import Checkpoint, Series
from bench.shared import Place, Shared, refuse_apart, share, shared_metadata
from bench.sheet import Sheet, read_sheet
from bench.space import ModuleChoices, SearchSpace, modules_to_text
from bench.speed import Speed, measure_speed
from bench.study import Study
from bench.workers import Child, Parent, Process, Worker

PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "open_clip_torch",
    "torch-fidelity",
    "optuna",
    "numpy",
    "scipy",
    "timm",
)
MAX_NAME = 64
"""Characters of a run's name."""
MAX_SHOWN = 60
"""Characters of a value that changed."""
REAL: tuple[Split, Split] = ("dev", "test")
"""Splits whose prompts each have a true picture."""


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

    @property
    def say(self) -> Callable[[str], None]:
        return partial(self.console.print, highlight=False, markup=False, soft_wrap=True)


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Session:
    """A run folder with all that is loaded to work on it."""

    run: Run
    base: BaseModel
    dataset: Dataset
    networks: Networks
    prompts: Mapping[Split, Sequence[Prompt]]

    def exam(self, split: Split, packs: Packs) -> Exam:
        """The Exam of a split; draws the base's images if the folder does not hold them yet."""
        packs.progress.status(f"drawing the base's images for the {split} prompts")
        denoising = self._denoising(split, packs)
        prompts = self.prompts[split]
        return prepare(self.run, split, prompts, self.dataset, self.base, self.networks, denoising)

    def exams(self, packs: Packs, splits: Iterable[Split] | None = None) -> dict[Split, Exam]:
        """The Exams of these splits (or of all); after them, no text is left to encode."""
        wanted = self.prompts if splits is None else splits
        exams = {split: self.exam(split, packs) for split in wanted if self.prompts[split]}
        self.base.release_encoders()
        return exams

    def _denoising(self, split: Split, packs: Packs) -> Denoising | None:
        """Of squares, as everything that is scored."""
        if split == "probe":
            known = None if self.run.space.buckets else packs.data
            train = known or encode(self.base, self.dataset.train[:NUM_PICTURES])
            held_out = encode(self.base, self.dataset.test[:NUM_PICTURES])
            return LossGap(self.base, train.buckets[0], held_out.buckets[0])
        if split == "dev" and self.run.space.prune.held_out_loss:
            return HeldOutLoss(self.base, encode(self.base, self.dataset.dev[:NUM_PICTURES]).buckets[0])
        return None


def run_search(command: Command) -> Run:
    """Run a search, or go on with the one in the run folder; returns its run.

    Everything is checked before anything is written: raises a BenchError.
    """
    space = command.space
    if "adamw8bit" in space.optimizers:
        refuse_missing_8bit()
    with database_errors(), at_work(command, space.name, is_search=True) as (run, crew):
        confirmation = Confirmation(run=run, packs=crew)
        with _shared(run, command.place) as shared:
            if command.on_forecast and (found := forecast(run, crew)):
                with paused(crew.progress):
                    command.on_forecast(found)
            study = Study(run=run, packs=crew, reserve=confirmation.units, shared=shared)
            study.search(space.trials, space.budget)
            confirmation.confirm(lambda: study.seconds)
            study.save_seconds()
    return run


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
    if changed := _changed(run.metadata, theirs):
        raise MismatchError(
            f"{run.path}: the shared study {theirs.name!r} was begun with another {', '.join(changed)}"
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
    with database_errors(), at_work(command, name, is_search=True) as (run, crew):
        with share(run, place, takes_over=False, check=partial(_check_shared, run)) as shared:
            Study(run=run, packs=crew, shared=shared).search(shared.num_wanted, space.budget)
    return run


def run_floor(command: Command) -> Run:
    """Measure the noise floor of a space's default configuration; a search of that name builds on it."""
    if command.space.default.optimizer == "adamw8bit":
        refuse_missing_8bit()
    with at_work(command, command.space.name) as (run, crew):
        Confirmation(run=run, packs=crew).floor()
    return run


def run_adapters(command: Command, digests: Mapping[Path, str]) -> Run:
    """Draw and score adapter files on the test prompts and probes of a space; returns the run they lie in.

    Each is known by its digest, see `file_digests`, so that nothing is drawn twice. Raises UsageError for a
    file that does not fit, TrialError naming a file whose images must not be scored.
    """
    name = f"adapters-{command.space.name}"[:MAX_NAME]
    with at_work(command, name, splits=EXAMINED, adapters=tuple(digests)) as (run, crew):
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
    opened = open_session(command, f"adapters-{command.space.name}"[:MAX_NAME])
    with opened as session, show_progress(command.console) as progress:
        _check_fit(session.base, command.engine, [checkpoint.file for checkpoint in checkpoints])
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


def base_of(space: SearchSpace, device: torch.device) -> BaseModel:
    """The base of a space, which has the modules that the space names."""
    base = load_base(
        space.base,
        device,
        revision=space.revision,
        resolution=space.resolution,
        dtype=space.dtype,
        prediction=space.prediction,
    )
    _check_targets(base, space)
    return base


def _check_fit(base: BaseModel, engine: Engine, files: Iterable[Path]) -> None:
    """Fails now, not after the base's images have been drawn."""
    for file in files:
        with engine.attach(base, [file]):
            pass


def packs_of(session: Session, engine: Engine, progress: Progress) -> Packs:
    space, base, train = session.run.space, session.base, session.dataset.train
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
    *,
    is_search: bool = False,
    splits: Sequence[Split] | None = None,
    adapters: Sequence[Path] = (),
) -> Iterator[tuple[Run, Crew]]:
    """An open run, see `open_session`, and what trains and examines on its prompts of `splits` (or of all).

    In this process where there is one device and the command is not `isolated`; else in a worker a device.
    None of them outlives it. Raises UsageError for one of the `adapters` that does not fit.
    """
    opening = _opening(command, name, is_search)
    if opening.num_devices == 1 and not command.isolated and command.executor == "local":
        with _opened(opening, command) as session, show_progress(command.console) as progress:
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
    opening: "_Opening",
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
    _check_fit(session.base, engine, adapters)
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
    loaded = _load(space)
    metadata = parent.metadata()
    run = Run(path, metadata)
    _check_same(run, _metadata(metadata.name, run.space, metadata.seed, loaded, metadata.device))
    session = loaded.session(run)
    packs = packs_of(session, engine, parent)
    return packs, lambda split: session.exams(packs, [split])[split]


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class _Loaded:
    """All that a space names, checked."""

    dataset: Dataset
    base: BaseModel
    networks: Networks
    prompts: Mapping[Split, Sequence[Prompt]]
    notes: tuple[str, ...]

    def session(self, run: Run) -> Session:
        return Session(
            run=run,
            base=self.base,
            dataset=self.dataset,
            networks=self.networks,
            prompts=self.prompts,
        )


def _load(space: SearchSpace) -> _Loaded:
    device = find_device()
    dataset = load_dataset(_required(space, "data"), space.trigger)
    base = base_of(space, device)
    scorer = load_scorer(space.scorer, device)
    judge, missing = find_judge(space.judge, space.scorer, device)
    prompts = _prompts(space, dataset)
    note = crops_note(base, dataset.train, space.variants, mixed=space.buckets)
    return _Loaded(
        dataset=dataset,
        base=base,
        networks=Networks(scorer=scorer, judge=judge),
        prompts=prompts,
        notes=(*_notes(base, scorer, dataset, prompts, space.trigger, missing), *([note] if note else [])),
    )


@contextmanager
def open_session(command: Command, name: str, *, is_search: bool = False) -> Iterator[Session]:
    """Load and check all that a space names, then open or create its run folder and hold its lock.

    `name` is the run's if the user gave none. A search may last longer than the one that was begun, and its
    run.json says so; others leave it alone.
    """
    with _opened(_opening(command, name, is_search), command) as session:
        yield session


@contextmanager
def _opened(opening: "_Opening", command: Command) -> Iterator[Session]:
    """In this process."""
    with ExitStack() as stack:
        stack.enter_context(shared_threads(find_device(), opening.num_devices))
        yield opening.session(command.say, lambda: stack.enter_context(locked(opening.path)))


def _opening(command: Command, name: str, is_search: bool) -> "_Opening":
    cache_limit()  # wrong, it is said now
    path = command.folder / _checked_name(command.name or name)
    device = find_device()
    num_devices = count_devices(command.space.devices, device)
    with shared_threads(device, num_devices):
        return _Opening(
            space=command.space,
            path=_free(path) if command.is_new else path,
            seed=command.seed,
            trainer=command.engine.train,
            is_search=is_search,
            device=_describe(device, num_devices),
            num_devices=num_devices,
        )


def _free(path: Path) -> Path:
    """That, or else the first of name-2, name-3, … that is not there."""
    paths = (path if number == 1 else path.with_name(f"{path.name[:58]}-{number}") for number in count(1))
    return next(path for path in paths if not path.exists())


@dataclass(frozen=True, kw_only=True, slots=True)
class _Opening:
    """A run that is to be opened."""

    space: SearchSpace
    path: Path
    seed: int
    trainer: Trainer
    is_search: bool
    device: str
    """All of them, in words."""
    num_devices: int

    def session(self, say: Callable[[str], None], lock: Callable[[], object]) -> Session:
        """Load and check all, then take the run's lock, and open or create its folder."""
        say(f"Device: {self.device}")
        loaded = _load(self.space)
        metadata = _metadata(self.path.name, self.space, self.seed, loaded, self.device)
        for note in loaded.notes:
            say(f"Note: {note}.")
        if self.is_search:
            say(f"Note: {self._room(loaded)}.")
        lock()
        run = _open(self.path, metadata, self.is_search) or _create(self.path, metadata, loaded)
        if run.space.slots == "auto":
            run = self._with_slots(run, loaded, say, write=self.is_search or run.metadata == metadata)
        data = f"data {loaded.dataset.name}: {len(loaded.dataset.train)} images to train on"
        say(f"Run: {self.path}  (base {loaded.base.name}, {data})")
        return loaded.session(run)

    def _room(self, loaded: "_Loaded") -> str:
        """What the search will write, in words; raises UsageError if there is not enough room."""
        dataset = loaded.dataset
        num_pictures = {split: len(getattr(dataset, split)) for split in ("train", "dev", "test")}
        num_drawn = {
            split: sum(len(prompt.seeds) for prompt in prompts) for split, prompts in loaded.prompts.items()
        }
        asked = (num_pictures, num_drawn, self.num_devices, self.path)
        return check_room(self.space, sizes_of(self.space, loaded.base, *asked), self.path)

    def _with_slots(self, run: Run, loaded: _Loaded, say: Callable[[str], None], *, write: bool) -> Run:
        """The run with as many slots as fit on this machine; run.json says so if it is this command's own."""
        say("Finding out how many trials fit side by side.")
        num_pictures = len(loaded.dataset.train)
        found = find_fit(loaded.base, run.space, self.trainer, self.num_devices, num_pictures)
        say(f"Side by side: {found.slots}: {found.reason}.")
        space = {**run.metadata.space, "slots": found.slots}
        metadata = dataclasses.replace(run.metadata, space=space, slots_reason=found.reason)
        return Run.create(run.path, metadata) if write else Run(run.path, metadata)


def _notes(
    base: BaseModel,
    scorer: Scorer,
    dataset: Dataset,
    prompts: Mapping[Split, Sequence[Prompt]],
    trigger: str | None,
    missing: str | None,
) -> tuple[str, ...]:
    """What a reader of the scores should know."""
    captions = [example.caption for example in (*dataset.train, *dataset.dev, *dataset.test)]
    texts = [prompt.text for split in ("dev", "test", "probe") for prompt in prompts.get(split, ())]
    scored = [scored_text(text, trigger) for text in texts]
    notes = []
    if cut := base.count_cut(captions):
        notes.append(f"{cut} of {len(captions)} captions are longer than the base reads, and are cut")
    if cut := scorer.count_cut(scored):
        notes.append(
            f"{cut} of {len(texts)} prompts are longer than {scorer.name} reads: "
            "their CLIP scores are of their beginnings"
        )
    if trigger:
        stripped = sum(text != full for text, full in zip(scored, texts, strict=True))
        notes.append(f"CLIP scores of {stripped} prompts are measured without the trigger {trigger!r}")
    return (*notes, missing) if missing else tuple(notes)


def resolve(space: SearchSpace, overrides: Mapping[str, Any]) -> SearchSpace:
    """The space with what was given on the command line; raises UsageError naming the flag."""
    given = {key: value for key, value in overrides.items() if value is not None}
    if not given:
        return space
    flags = ", ".join(f"--{key}" for key in given)
    return yaml.validate({**space.model_dump(), **given}, SearchSpace, flags)


def _required(space: SearchSpace, field: str) -> str:
    value: str | None = getattr(space, field)
    if value is None:
        raise UsageError(
            f"--{field}: the space {space.name!r} names none; give a folder or a Hub id of captioned images"
        )
    return value


def _checked_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise UsageError(
            f"--name {name!r}: use up to 64 letters, digits, '.', '_' and '-', a letter or digit first"
        )
    return name


def _check_targets(base: BaseModel, space: SearchSpace) -> None:
    """Every choice of target modules must name modules of this base: fails now, not in a trial."""
    configs = [space.default]
    if isinstance(space.parameters.target_modules, ModuleChoices):
        values = [modules_to_text(modules) for modules in space.parameters.target_modules.choices]
        point = space.parameters_of(space.default)
        configs += [space.config_of({**point, "target_modules": value}) for value in values]
    for config in configs:
        if not target_names(adaptable_names(base.unet), config):
            raise UsageError(f"target_modules: {config.target_modules!r} matches no module of {base.name}")


def _prompts(space: SearchSpace, dataset: Dataset) -> dict[Split, list[Prompt]]:
    spec = space.prompts
    prompts: dict[Split, list[Prompt]] = {
        "dev": _held_out(space, dataset, "dev", spec.dev),
        "test": _held_out(space, dataset, "test", spec.test),
        "probe": probe_prompts(dataset, spec, space.trigger),
    }
    if space.floor:
        prompts["floor"] = held_out_prompts(dataset, "floor", spec.test, spec.seeds)
    return prompts


def _held_out(space: SearchSpace, dataset: Dataset, split: Split, count: int) -> list[Prompt]:
    prompts = held_out_prompts(dataset, split, count, space.prompts.seeds)
    needed = {name: MIN_SET for name in space.objectives if not METRICS[name].paired}
    for name, number in ({"a standard error": 2} | needed).items():
        if len(prompts) < number:
            raise UsageError(
                f"{dataset.name}: {name} needs {number} different captions among the {split} images, "
                f"got {len(prompts)}; give more images, or captions that tell them apart"
            )
    return prompts


def _open(path: Path, metadata: Metadata, is_search: bool) -> Run | None:
    """The run of that path, with the space as given now; None if there is none."""
    if not (path / "run.json").exists():
        return None
    run = Run.open(path)
    _check_same(run, metadata)
    lasting = _lasting(run.metadata, metadata)
    return Run.create(path, lasting) if is_search else Run(path, lasting)


def _lasting(known: Metadata, given: Metadata) -> Metadata:
    """`known` with the space as given now; slots that were found on this device need not be found again."""
    slots = given.space["slots"]
    if slots != "auto":
        return dataclasses.replace(known, space=given.space, slots_reason=None)
    if known.slots_reason and known.device == given.device:
        slots = known.space["slots"]
    return dataclasses.replace(known, space={**given.space, "slots": slots})


def _create(path: Path, metadata: Metadata, loaded: _Loaded) -> Run:
    if any((path / name).exists() for name in ("study.db", "trials", "confirm")):
        raise MismatchError(f"{path}: holds trials but no run.json; give another --name")
    for split in REAL:
        examples = [prompt.example for prompt in loaded.prompts[split] if prompt.example]
        pictures = [fit(example.image(), loaded.base.resolution) for example in examples]
        write_images(path / "real" / split, np.stack(pictures))
    return Run.create(path, metadata)


def _check_same(run: Run, metadata: Metadata) -> None:
    """To go on, a search must be the one that was begun; only how long it lasts may change."""
    if changed := _changed(metadata, run.metadata):
        raise MismatchError(
            f"{run.path}: was begun with another {', '.join(changed)}; give another --name, or --new-run"
        )


def _changed(mine: Metadata, known: Metadata) -> list[str]:
    """What of two runs that should be one search is not the same."""
    theirs = SearchSpace.model_validate(known.space).model_dump(mode="json")  # with keys that came later
    # The last four are known by their fingerprints.
    free = {"trials", "budget", "slots", "devices", "name", "floor", "weights"}
    free |= {"base", "data", "scorer", "judge"}
    changed = [
        f"space.{difference}"
        for key in mine.space
        if key not in free
        for difference in _differences(key, theirs.get(key), mine.space[key])
    ]
    fingerprints = [f"{name}_fingerprint" for name in ("base", "data", "scorer", "judge", "prompts")]
    return changed + [name for name in ("seed", *fingerprints) if getattr(mine, name) != getattr(known, name)]


def _differences(key: str, before: Any, now: Any) -> Iterator[str]:
    """Where two values of a space differ, each with what it was and what it is."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in before | now:
            yield from _differences(f"{key}.{name}", before.get(name), now.get(name))
    elif before != now:
        yield f"{key} ({_shown(before)} -> {_shown(now)})"


def _shown(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def _metadata(name: str, space: SearchSpace, seed: int, loaded: _Loaded, device: str) -> Metadata:
    base, dataset, prompts = loaded.base, loaded.dataset, loaded.prompts
    scorer, judge = loaded.networks.scorer, loaded.networks.judge
    drawn = [prompt for split in ("dev", "test", "probe") for prompt in prompts[split]]
    return Metadata(
        name=name,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seed=seed,
        space=space.model_dump(mode="json"),
        base=base.name,
        base_fingerprint=base.fingerprint,
        data=dataset.name,
        data_fingerprint=dataset.fingerprint,
        num_images={split: len(getattr(dataset, split)) for split in ("train", "dev", "test")},
        scorer=scorer.name,
        scorer_fingerprint=scorer.fingerprint,
        judge=judge.name if judge else None,
        judge_fingerprint=judge.fingerprint if judge else None,
        prompts_fingerprint=fingerprint(drawn),
        prompts={split: _prompt_records(split, of_split, dataset) for split, of_split in prompts.items()},
        device=device,
        machine=f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        notes=loaded.notes,
        versions={"bench": bench.__version__} | {name: importlib.metadata.version(name) for name in PACKAGES},
    )


def _prompt_records(split: Split, prompts: Sequence[Prompt], dataset: Dataset) -> list[PromptRecord]:
    rows = {example.digest: row for row, example in enumerate(dataset.train)}
    folder = "test" if split == "floor" else split
    records = []
    for number, prompt in enumerate(prompts):
        real = f"real/{folder}/{number:04d}.webp" if prompt.example else None
        if prompt.example and prompt.kind == "training":
            real = f"real/train/{rows[prompt.example.digest]:04d}.webp"
        concept = prompt.example.concept if prompt.example else ""
        record = PromptRecord(
            text=prompt.text, seeds=prompt.seeds, real=real, kind=prompt.kind, concept=concept
        )
        records.append(record)
    return records


def _describe(device: torch.device, number: int = 1) -> str:
    """So many devices, of which that is the first."""
    if device.type == "mps":
        return device.type
    names = [f"{torch.get_num_threads()} threads"] * number
    if device.type == "cuda":
        names = [torch.cuda.get_device_name(index) for index in range(number)]
    kinds = [f"{count} x {name}" if count > 1 else name for name, count in Counter(names).items()]
    return f"{device.type} ({', '.join(kinds)})"
