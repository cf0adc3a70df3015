"""Opening: a run folder is opened or made, with all that its space names, if it is what was begun there."""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.buckets import fit
from bench.encoding import encode
from bench.errors import MismatchError
from bench.fit import find_fit
from bench.loaded import Loaded, load
from bench.packs import Packs, Trainer
from bench.provenance import check_same, metadata_of
from bench.room import Task, check_room, sizes_of
from bench.run import Metadata, Run, Split, write_images
from bench.scoring.exam import Exam, prepare
from bench.scoring.losses import NUM_PICTURES, Denoising, HeldOutLoss, LossGap
from bench.space import SearchSpace

REAL: tuple[Split, Split] = ("dev", "test")
"""Splits whose prompts each have a true picture."""


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Session:
    """A run folder with all that is loaded to work on it."""

    run: Run
    loaded: Loaded

    def exam(self, split: Split, packs: Packs) -> Exam:
        """The Exam of a split; draws the base's images if the folder does not hold them yet."""
        packs.progress.status(f"drawing the base's images for the {split} prompts")
        known, denoising = self.loaded, self._denoising(split, packs)
        prompts = known.prompts[split]
        return prepare(self.run, split, prompts, known.dataset, known.base, known.networks, denoising)

    def exams(self, packs: Packs, splits: Iterable[Split] | None = None) -> dict[Split, Exam]:
        """The Exams of these splits (or of all); after them, no text is left to encode."""
        prompts = self.loaded.prompts
        wanted = prompts if splits is None else splits
        exams = {split: self.exam(split, packs) for split in wanted if prompts[split]}
        self.loaded.base.release_encoders()
        return exams

    def _denoising(self, split: Split, packs: Packs) -> Denoising | None:
        """Of squares, as everything that is scored."""
        base, dataset = self.loaded.base, self.loaded.dataset
        if split == "probe":
            known = None if self.run.space.buckets else packs.data
            train = known or encode(base, dataset.train[:NUM_PICTURES])
            held_out = encode(base, dataset.test[:NUM_PICTURES])
            return LossGap(base, train.buckets[0], held_out.buckets[0])
        if split == "dev" and self.run.space.prune.held_out_loss:
            return HeldOutLoss(base, encode(base, dataset.dev[:NUM_PICTURES]).buckets[0])
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Opening:
    """A run that is to be opened."""

    space: SearchSpace
    path: Path
    seed: int
    trainer: Trainer
    task: Task
    device: str
    """All of them, in words."""
    num_devices: int

    def session(self, say: Callable[[str], None], lock: Callable[[], object]) -> Session:
        """Load and check all, then take the run's lock, and open or create its folder."""
        say(f"Device: {self.device}")
        loaded = load(self.space)
        metadata = metadata_of(self.path.name, self.space, self.seed, loaded, self.device)
        for note in loaded.notes:
            say(f"Note: {note}.")
        say(f"Note: {self._room(loaded)}.")
        lock()
        run = _open(self.path, metadata, self.task) or _create(self.path, metadata, loaded)
        if run.space.slots == "auto":
            run = self._with_slots(run, loaded, say, write=self.task.is_search or run.metadata == metadata)
        data = f"data {loaded.dataset.name}: {len(loaded.dataset.train)} images to train on"
        say(f"Run: {self.path}  (base {loaded.base.name}, {data})")
        return Session(run=run, loaded=loaded)

    def _room(self, loaded: Loaded) -> str:
        """What the task will write, in words; raises UsageError if there is not enough room."""
        dataset = loaded.dataset
        num_pictures = {split: len(getattr(dataset, split)) for split in ("train", "dev", "test")}
        num_drawn = {
            split: sum(len(prompt.seeds) for prompt in prompts) for split, prompts in loaded.prompts.items()
        }
        asked = (num_pictures, num_drawn, self.num_devices, self.path)
        return check_room(self.space, sizes_of(self.space, loaded.base, *asked), self.path, self.task)

    def _with_slots(self, run: Run, loaded: Loaded, say: Callable[[str], None], *, write: bool) -> Run:
        """The run with as many slots as fit on this machine; run.json says so if it is this command's own."""
        say("Finding out how many trials fit side by side.")
        num_pictures = len(loaded.dataset.train)
        found = find_fit(loaded.base, run.space, self.trainer, self.num_devices, num_pictures)
        say(f"Side by side: {found.slots}: {found.reason}.")
        space = {**run.metadata.space, "slots": found.slots}
        metadata = dataclasses.replace(run.metadata, space=space, slots_reason=found.reason)
        return Run.create(run.path, metadata) if write else Run(run.path, metadata)


def _open(path: Path, metadata: Metadata, task: Task) -> Run | None:
    """The run of that path, with the space as given now; None if there is none.

    A search may last longer than the one that was begun, and its run.json says so; others leave it alone.
    """
    if not (path / "run.json").exists():
        return None
    run = Run.open(path)
    check_same(run, metadata)
    lasting = _lasting(run.metadata, metadata)
    return Run.create(path, lasting) if task.is_search else Run(path, lasting)


def _lasting(known: Metadata, given: Metadata) -> Metadata:
    """`known` with the space as given now; slots that were found on this device need not be found again."""
    slots = given.space["slots"]
    if slots != "auto":
        return dataclasses.replace(known, space=given.space, slots_reason=None)
    if known.slots_reason and known.device == given.device:
        slots = known.space["slots"]
    return dataclasses.replace(known, space={**given.space, "slots": slots})


def _create(path: Path, metadata: Metadata, loaded: Loaded) -> Run:
    """Raises MismatchError for a folder that has lost its run.json."""
    if any((path / name).exists() for name in ("study.db", "trials", "confirm")):
        raise MismatchError(f"{path}: holds trials but no run.json; give another --name")
    for split in REAL:
        examples = [prompt.example for prompt in loaded.prompts[split] if prompt.example]
        pictures = [fit(example.image(), loaded.base.resolution) for example in examples]
        write_images(path / "real" / split, np.stack(pictures))
    return Run.create(path, metadata)
