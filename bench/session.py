"""One `bench search`: everything it needs is loaded and checked, then the study runs on its folder."""

import dataclasses
import datetime
import importlib.metadata
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from rich.console import Console

import bench
from bench import yaml
from bench.base import (
    BaseModel,
    TextEmbedding,
    TrainingData,
    find_device,
    fit,
    load_base,
    target_names,
)
from bench.cache import cached
from bench.dataset import Dataset, load_dataset
from bench.errors import MismatchError, UsageError
from bench.progress import show_progress
from bench.prompts import Prompt, fingerprint, held_out_prompts
from bench.run import NAME, Metadata, PromptRecord, Run, Split, write_images
from bench.scoring.embed import Scorer, load_scorer
from bench.scoring.exam import prepare
from bench.scoring.measure import MIN_SET
from bench.scoring.metrics import METRICS
from bench.space import ModuleChoices, SearchSpace, load_space, modules_to_text
from bench.study import Study, Trainer

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
)
SPLITS: tuple[Split, Split] = ("dev", "test")


def run_search(
    space_name: str,
    overrides: Mapping[str, Any],
    run_name: str | None,
    folder: Path,
    seed: int,
    trainer: Trainer,
    console: Console,
) -> Run:
    """Run a search, or go on with the one in `folder`/`run_name`; returns its run.

    `overrides` are fields of the space given on the command line, None where they were not. Everything
    is checked before anything is written: raises a BenchError.
    """
    space = resolve(load_space(space_name), overrides)
    path = folder / _checked_name(run_name or space.name)
    device = find_device()
    console.print(f"Device: {_describe(device)}", highlight=False)
    dataset = load_dataset(_required(space, "data"), space.trigger)
    base = load_base(
        space.base, device, revision=space.revision, resolution=space.resolution, dtype=space.dtype
    )
    _check_targets(base, space)
    scorer = load_scorer(space.scorer, device)
    prompts = {split: _prompts(space, dataset, split) for split in SPLITS}
    metadata = _metadata(path.name, space, seed, base, dataset, scorer, prompts, device)
    captions = [example.caption for example in (*dataset.train, *dataset.dev, *dataset.test)]
    if cut := base.count_cut(captions):
        console.print(f"Note: {cut} of {len(captions)} captions are longer than the base reads, and are cut.")
    with _locked(path):
        run = _open_or_create(path, metadata, dataset, prompts, base.resolution)
        console.print(
            f"Run: {path}  (base {base.name}, data {dataset.name}: {len(dataset.train)} images to train on)",
            highlight=False,
            soft_wrap=True,
        )
        with show_progress(console) as progress:
            data = encode(base, dataset)
            exams = {}
            for split in SPLITS:
                progress.status(f"drawing the base's images for the {split} prompts")
                exams[split] = prepare(run, split, prompts[split], dataset, base, scorer)
            study = Study(
                run=run,
                base=base,
                data=data,
                trainer=trainer,
                dev=exams["dev"],
                test=exams["test"],
                progress=progress,
            )
            study.search(space.trials, space.budget)
    return run


def resolve(space: SearchSpace, overrides: Mapping[str, Any]) -> SearchSpace:
    """The space with what was given on the command line; raises UsageError naming the flag."""
    given = {key: value for key, value in overrides.items() if value is not None}
    if not given:
        return space
    flags = ", ".join(f"--{key}" for key in given)
    return yaml.validate({**space.model_dump(), **given}, SearchSpace, flags)


def encode(base: BaseModel, dataset: Dataset) -> TrainingData:
    """Latents and conditioning of the training images, from the cache if they were encoded before."""
    captions = [example.caption for example in dataset.train]
    digests = [example.digest for example in dataset.train]

    def compute() -> dict[str, torch.Tensor]:
        pixels = np.stack([fit(example.image(), base.resolution) for example in dataset.train])
        mean, std = base.encode_images(pixels)
        text, empty = base.encode_prompts(captions), base.encode_empty()
        return {
            "mean": mean,
            "std": std,
            "hidden": text.hidden,
            "pooled": text.pooled,
            "empty_hidden": empty.hidden,
            "empty_pooled": empty.pooled,
        }

    inputs = ["latents 1", base.fingerprint, str(base.resolution), str(base.dtype), *digests, *captions]
    tensors = cached(inputs, compute, base.device)
    return TrainingData(
        mean=tensors["mean"],
        std=tensors["std"],
        text=TextEmbedding(tensors["hidden"], tensors["pooled"]),
        empty=TextEmbedding(tensors["empty_hidden"], tensors["empty_pooled"]),
    )


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
        if not target_names(base.unet, config):
            raise UsageError(f"target_modules: {config.target_modules!r} matches no module of {base.name}")


def _prompts(space: SearchSpace, dataset: Dataset, split: Split) -> list[Prompt]:
    count = space.prompts.dev if split == "dev" else space.prompts.test
    prompts = held_out_prompts(dataset, split, count, space.prompts.seeds)
    needed = {name: MIN_SET for name in space.objectives if not METRICS[name].paired}
    for name, number in ({"a standard error": 2} | needed).items():
        if len(prompts) < number:
            raise UsageError(
                f"{dataset.name}: {name} needs {number} different captions among the {split} images, "
                f"got {len(prompts)}; give more images, or captions that tell them apart"
            )
    return prompts


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Only one search at a time works on a run folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.parent / f".{path.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(f"{path}: another bench search is working on it; give another --name") from None
    try:
        yield
    finally:
        lock.release()


def _open_or_create(
    path: Path,
    metadata: Metadata,
    dataset: Dataset,
    prompts: Mapping[Split, Sequence[Prompt]],
    resolution: int,
) -> Run:
    if (path / "run.json").exists():
        run = Run.open(path)
        _check_same(run, metadata)
        # Only how long it lasts may have changed.
        return Run.create(path, dataclasses.replace(run.metadata, space=metadata.space))
    if any((path / name).exists() for name in ("study.db", "trials", "confirm")):
        raise MismatchError(f"{path}: holds trials but no run.json; give another --name")
    for split in SPLITS:
        pictures = [fit(prompt.example.image(), resolution) for prompt in prompts[split] if prompt.example]
        write_images(path / "real" / split, np.stack(pictures))
    return Run.create(path, metadata)


def _check_same(run: Run, metadata: Metadata) -> None:
    """To go on, a search must be the one that was begun; only how long it lasts may change."""
    mine, theirs = metadata.space, run.metadata.space
    free = {"trials", "budget", "slots", "name"} | {"base", "data", "scorer"}  # the last three by fingerprint
    changed = [f"space.{key}" for key in mine if key not in free and mine[key] != theirs.get(key)]
    fields = ("seed", "base_fingerprint", "data_fingerprint", "scorer_fingerprint", "prompts_fingerprint")
    changed += [name for name in fields if getattr(metadata, name) != getattr(run.metadata, name)]
    if changed:
        raise MismatchError(
            f"{run.path}: was begun with another {', '.join(changed)}; give another --name for a new run"
        )


def _metadata(
    name: str,
    space: SearchSpace,
    seed: int,
    base: BaseModel,
    dataset: Dataset,
    scorer: Scorer,
    prompts: Mapping[Split, Sequence[Prompt]],
    device: torch.device,
) -> Metadata:
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
        prompts_fingerprint=fingerprint([*prompts["dev"], *prompts["test"]]),
        prompts={split: _prompt_records(split, prompts[split]) for split in SPLITS},
        device=_describe(device),
        machine=f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        versions={"bench": bench.__version__} | {name: importlib.metadata.version(name) for name in PACKAGES},
    )


def _prompt_records(split: Split, prompts: Sequence[Prompt]) -> list[PromptRecord]:
    return [
        PromptRecord(text=prompt.text, seeds=prompt.seeds, real=f"real/{split}/{number:04d}.webp")
        for number, prompt in enumerate(prompts)
    ]


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"{device.type} ({torch.get_num_threads()} threads)" if device.type == "cpu" else device.type
