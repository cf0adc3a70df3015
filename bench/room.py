"""Room: how much a command will write into a run folder, told and checked before it writes anything.

At most: as if every trial were of the heaviest configuration and passed all rungs. About: configurations as
chance would sample them. What has less room than that is refused.
"""

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Literal

import torch

from bench import run as runs
from bench.base import BaseModel, adaptable_names, target_names
from bench.cache import cache_folder, cache_limit
from bench.config import TEXT_ATTENTION, TrialConfig
from bench.errors import UsageError
from bench.files import size_text
from bench.fit import MOST, ROUNDS, heaviest
from bench.run import THUMBNAIL, Split
from bench.space import IntChoices, IntRange, ModuleChoices, SearchSpace

BLOCK = 4096
"""Bytes that file systems give to a file at a time."""
PER_PIXEL = 2
"""Bytes of lossless WebP: drawings take 1.0 to 1.3, busy photographs up to 1.7."""
FEATURES = 2048
"""Bytes of an image's features, of both bundled networks; larger ones look at larger images."""
INCEPTION = 4 * 2048
"""Likewise of FID's network."""
RECORDS = 3 * BLOCK
"""Of an evaluation's scores; of a trial's configuration, losses and state."""
PER_MODULE = 400
"""Bytes of an adapter file's header."""
STATES = 3
"""Copies of its weights that a training goes on from: these and two moments."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What a command does on a run folder."""

    name: str
    """In words."""
    part: float = 0.0
    """Of the search's trials that it trains, about; if any, it may train all."""
    retrains: Literal["nothing", "default", "all"] = "nothing"
    """What is trained again on fresh seeds: the finalists too, or the default configuration alone."""
    drawings: Sequence[tuple[str, Split]] = ()
    """Labels of adapters, and prompts that they draw; no label where that is not known yet."""

    @property
    def is_search(self) -> bool:
        return self.part > 0


SEARCH = Task(name="the search", part=1, retrains="all")
WORKER = Task(name="this machine's part of the search", part=1 / 2)  # the search trains too
FLOOR = Task(name="the floor", retrains="default")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """What decides how much a search writes, in pixels and bytes."""

    resolution: int
    num_drawn: Mapping[Split, int]
    """Images of an evaluation."""
    num_pictures: Mapping[str, int]
    """Of the data, by split."""
    adapter: int
    """Of the heaviest configuration."""
    usual_adapter: int
    """The mean over all that may be sampled."""
    default_adapter: int
    state: int
    """Of what an interrupted training of the heaviest configuration goes on from."""
    num_running: int
    """Trainings side by side, on all devices."""
    cache: int
    """What may be added to the cache, if it lies on the same file system."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """What the run folder holds already."""

    trials: int = 0
    trainings: int = 0
    """Of the confirmation."""
    has_base: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """Bytes that are still to be written."""

    base: int
    """Real pictures, and the base's images."""
    trials: int
    confirmation: int
    drawings: int
    """Of adapters that are there."""
    running: int
    """What trials that are training go on from; gone when they end."""
    cache: int

    @property
    def total(self) -> int:
        return self.base + self.trials + self.confirmation + self.drawings + self.running + self.cache

    def __str__(self) -> str:
        parts = {
            "images of the base": self.base,
            "trials": self.trials,
            "confirmation": self.confirmation,
            "images of adapters": self.drawings,
            "states of trials in training": self.running,
            "cache": self.cache,
        }
        listed = ", ".join(f"{name} {size_text(size)}" for name, size in parts.items() if size)
        return f"{size_text(self.total)} ({listed or 'nothing'})"


NOTHING = Done()


def needed(space: SearchSpace, sizes: Sizes, done: Done = NOTHING, task: Task = SEARCH) -> Room:
    """What a task on a space writes beyond what is done, at most."""
    drawn = {split: evaluation(sizes, number) for split, number in sizes.num_drawn.items()}
    adapters = len(space.rungs) * _blocks(sizes.adapter)
    trials = max(0, space.trials - done.trials) if task.is_search else 0
    trainings, confirmation = _confirmation(space, sizes, drawn, task)
    left = max(0, trainings - done.trainings)
    running = min(max(trials, left), sizes.num_running) if len(space.rungs) > 1 else 0  # goes on from a rung
    return Room(
        base=0 if done.has_base else sum(drawn.values()) + _real(space, sizes),
        trials=trials * (_trained(space, drawn) + adapters),
        confirmation=confirmation * left // max(1, trainings),
        drawings=sum(drawn.get(split, 0) for _, split in task.drawings),
        running=running * max(0, _blocks(sizes.state) - _blocks(sizes.adapter)),
        cache=0 if done.has_base else sizes.cache,
    )


def _trained(space: SearchSpace, drawn: Mapping[Split, int]) -> int:
    """Of a training, its adapters apart."""
    return len(space.rungs) * drawn["dev"] + RECORDS


def _confirmation(
    space: SearchSpace, sizes: Sizes, drawn: Mapping[Split, int], task: Task
) -> tuple[int, int]:
    """How many trainings there are beside trials, and bytes of all."""
    defaults = max(space.confirm.seeds, space.floor) if task.retrains != "nothing" else 0
    finalists = space.confirm.finalists * space.confirm.seeds if task.retrains == "all" else 0
    confirmed = _trained(space, drawn) + drawn["test"]
    adapters = finalists * _blocks(sizes.adapter) + defaults * _blocks(sizes.default_adapter)
    # The winner and the default alone draw probes; of the winner an adapter is copied.
    winners = space.confirm.seeds if finalists else 0
    probes = (defaults + winners) * drawn.get("probe", 0)
    copied = _blocks(sizes.adapter) if finalists else 0
    total = (defaults + finalists) * confirmed + len(space.rungs) * adapters + probes + copied
    return defaults + finalists, total


def usual(space: SearchSpace, sizes: Sizes, done: Done = NOTHING, task: Task = SEARCH) -> Room:
    """What it writes about."""
    lighter = sizes.usual_adapter / sizes.adapter
    of_usual = replace(sizes, adapter=sizes.usual_adapter, state=round(lighter * sizes.state))
    room, num_rungs = needed(space, of_usual, done, task), len(space.rungs)
    return replace(room, trials=math.ceil(task.part * room.trials * (num_rungs + 1) / (2 * num_rungs)))


def evaluation(sizes: Sizes, number: int) -> int:
    """Of so many images."""
    return number * (_blocks(PER_PIXEL * sizes.resolution**2) + FEATURES) + RECORDS


def _real(space: SearchSpace, sizes: Sizes) -> int:
    """Pictures that are kept to be shown, and the features of all."""
    shown = (sizes.num_drawn["dev"] + sizes.num_drawn["test"]) // space.prompts.seeds
    small = sizes.num_pictures["train"] * _blocks(PER_PIXEL * min(sizes.resolution, THUMBNAIL) ** 2)
    features = sum(sizes.num_pictures.values()) * FEATURES
    return shown * _blocks(PER_PIXEL * sizes.resolution**2) + small + features


def _blocks(size: int) -> int:
    return math.ceil(size / BLOCK) * BLOCK


def check_room(space: SearchSpace, sizes: Sizes, path: Path, task: Task = SEARCH) -> str:
    """What a task on the run folder `path` will write, and what is free there, in words.

    Raises UsageError if that is less.
    """
    task = replace(task, drawings=_to_draw(path, task))
    done, free = done_in(path), free_bytes(path)
    about, most = usual(space, sizes, done, task), needed(space, sizes, done, task)
    said = f"about {size_text(about.total)} of disk, at most {most}"
    if about.total > free:
        raise UsageError(
            f"{path.parent.absolute()}: {task.name} needs {said}, and {size_text(free)} are free; "
            "`bench clean RUN` removes what finished runs need no more"
        )
    return f"{task.name} takes {said}; {size_text(free)} are free"


def _to_draw(path: Path, task: Task) -> list[tuple[str, Split]]:
    """Of its drawings those that are not there."""
    return [
        (label, split)
        for label, split in task.drawings
        if not (label and runs.has_evaluation(path / "adapters" / label / split))
    ]


def sizes_of(
    space: SearchSpace,
    base: BaseModel,
    num_pictures: Mapping[str, int],
    num_drawn: Mapping[Split, int],
    num_devices: int,
    path: Path,
) -> Sizes:
    """Of a search of this base on pictures of so many a split, in the run folder `path`."""
    config = heaviest(base, space)
    adapter = adapter_size(base, config)
    copies = STATES + (config.ema > 0) + 2 * (config.optimizer == "prodigy")
    most = max(1, min(MOST, space.trials // (ROUNDS * num_devices)))
    slots = most if space.slots == "auto" else space.slots
    return Sizes(
        resolution=base.resolution,
        num_drawn=num_drawn,
        num_pictures=num_pictures,
        adapter=adapter,
        usual_adapter=_usual_adapter(space, base, config),
        default_adapter=adapter_size(base, space.default),
        state=copies * adapter,
        num_running=slots * num_devices,
        cache=_cached(space, base, num_pictures, num_drawn) if _is_shared(path) else 0,
    )


def _usual_adapter(space: SearchSpace, base: BaseModel, config: TrialConfig) -> int:
    """`config` is the heaviest; sizes are linear in the rank."""
    modules = space.parameters.target_modules
    choices = modules.choices if isinstance(modules, ModuleChoices) else [config.target_modules]
    sizes = [adapter_size(base, config.model_copy(update={"target_modules": each})) for each in choices]
    match space.parameters.rank:
        case IntChoices(choices=listed):
            rank = fmean(listed)
        case IntRange(low=low, high=high):
            rank = (low + high) / 2
        case _:
            rank = config.rank
    return round(fmean(sizes) * rank / config.rank)


def adapter_size(base: BaseModel, config: TrialConfig) -> int:
    """Of the file."""
    size = 0
    for name, weight in _adapted(base, config):
        per_module = PER_MODULE + (4 * len(weight) if config.dora else 0)
        size += 4 * config.rank_of(name) * (weight[0].numel() + len(weight)) + per_module
    return size


def _adapted(base: BaseModel, config: TrialConfig) -> Iterator[tuple[str, torch.Tensor]]:
    """Weights that get an adapter, by the names of their modules."""
    for name in target_names(adaptable_names(base.unet), config):
        yield name, base.unet.get_parameter(f"{name}.weight")
    for part in base.family.text_encoders if config.trains_text else ():
        encoder = base.encoder(part)
        for name in adaptable_names(encoder):
            if name.rpartition(".")[2] in TEXT_ATTENTION:
                yield f"{part}.{name}", encoder.get_parameter(f"{name}.weight")


def _cached(
    space: SearchSpace, base: BaseModel, num_pictures: Mapping[str, int], num_drawn: Mapping[Split, int]
) -> int:
    """Latents and captions of what is trained on; the base's images, their prompts and features."""
    variants, images = space.variants, sum(num_drawn.values())
    tokens, width, pooled = base.text_shape
    text = (tokens * width + pooled) * base.dtype.itemsize
    latents = 2 * 4 * math.prod(base.latent_shape)
    drawn = images * (3 * base.resolution**2 + text)
    train = num_pictures["train"] * (len(variants.views) * latents + variants.num_wordings * text)
    prior = space.class_images * (latents + text) if space.has_prior else 0
    features = (images + sum(num_pictures.values())) * (FEATURES + INCEPTION)
    return min(cache_limit(), drawn + train + prior + features)


def _is_shared(path: Path) -> bool:
    """Whether the cache lies where the run does."""
    return existing(cache_folder()).stat().st_dev == existing(path).stat().st_dev


def done_in(path: Path) -> Done:
    """Of a run folder, which need not be there yet."""
    ended = {
        kind: sum(runs.has_ended(file.parent) for file in path.glob(f"{kind}/*/trial.json"))
        for kind in ("trials", "confirm")
    }
    return Done(
        trials=ended["trials"],
        trainings=ended["confirm"],
        has_base=runs.has_evaluation(path / "base" / "test"),
    )


def free_bytes(path: Path) -> int:
    """Of the file system that holds a path, or would."""
    return shutil.disk_usage(existing(path)).free


def existing(path: Path) -> Path:
    """The nearest folder of a path that is there."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())
