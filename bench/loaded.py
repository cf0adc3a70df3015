"""Loaded: all that a space names, loaded and checked: data, base, scorer, judge and prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from bench.base import BaseModel, adaptable_names, find_device, load_base, target_names
from bench.dataset import Dataset, load_dataset
from bench.encoding import crops_note
from bench.errors import UsageError
from bench.prompts import Prompt, held_out_prompts, probe_prompts, scored_text
from bench.run import Split
from bench.scoring.embed import Scorer, load_scorer
from bench.scoring.exam import Networks
from bench.scoring.judge import find_judge
from bench.scoring.measure import MIN_SET
from bench.scoring.metrics import METRICS
from bench.space import ModuleChoices, SearchSpace, modules_to_text


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Loaded:
    """All that a space names, checked."""

    dataset: Dataset
    base: BaseModel
    networks: Networks
    prompts: Mapping[Split, Sequence[Prompt]]
    notes: tuple[str, ...]
    """What a reader of the scores should know."""


def load(space: SearchSpace) -> Loaded:
    """Raises a BenchError for what cannot be used."""
    device = find_device()
    dataset = load_dataset(_required(space, "data"), space.trigger)
    base = base_of(space, device)
    scorer = load_scorer(space.scorer, device)
    judge, missing = find_judge(space.judge, space.scorer, device)
    prompts = _prompts(space, dataset)
    note = crops_note(base, dataset.train, space.variants, mixed=space.buckets)
    return Loaded(
        dataset=dataset,
        base=base,
        networks=Networks(scorer=scorer, judge=judge),
        prompts=prompts,
        notes=(*_notes(base, scorer, dataset, prompts, space.trigger, missing), *([note] if note else [])),
    )


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


def _notes(
    base: BaseModel,
    scorer: Scorer,
    dataset: Dataset,
    prompts: Mapping[Split, Sequence[Prompt]],
    trigger: str | None,
    missing: str | None,
) -> tuple[str, ...]:
    """See Loaded."""
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


def _required(space: SearchSpace, field: str) -> str:
    value: str | None = getattr(space, field)
    if value is None:
        raise UsageError(
            f"--{field}: the space {space.name!r} names none; give a folder or a Hub id of captioned images"
        )
    return value


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
