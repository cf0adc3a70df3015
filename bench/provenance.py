"""Provenance: what a run was made of and where, and whether another is made of the same."""

import datetime
import importlib.metadata
import platform
from collections.abc import Iterator, Sequence
from typing import Any

import bench
from bench.dataset import Dataset
from bench.errors import MismatchError
from bench.loaded import Loaded
from bench.prompts import Prompt, fingerprint
from bench.run import Metadata, PromptRecord, Run, Split
from bench.space import SearchSpace

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
MAX_SHOWN = 60
"""Characters of a value that changed."""


def metadata_of(name: str, space: SearchSpace, seed: int, loaded: Loaded, device: str) -> Metadata:
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


def check_same(run: Run, metadata: Metadata) -> None:
    """To go on, a search must be the one that was begun; only how long it lasts may change."""
    if found := changed(metadata, run.metadata):
        raise MismatchError(
            f"{run.path}: was begun with another {', '.join(found)}; give another --name, or --new-run"
        )


def changed(mine: Metadata, known: Metadata) -> list[str]:
    """What of two runs that should be one search is not the same."""
    theirs = SearchSpace.model_validate(known.space).model_dump(mode="json")  # with keys that came later
    # The last four are known by their fingerprints.
    free = {"trials", "budget", "slots", "devices", "name", "floor", "weights"}
    free |= {"base", "data", "scorer", "judge"}
    found = [
        f"space.{difference}"
        for key in mine.space
        if key not in free
        for difference in _differences(key, theirs.get(key), mine.space[key])
    ]
    fingerprints = [f"{name}_fingerprint" for name in ("base", "data", "scorer", "judge", "prompts")]
    return found + [name for name in ("seed", *fingerprints) if getattr(mine, name) != getattr(known, name)]


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
