"""Checkpoints of one training: folders that are there whole or not at all, without any pickle.

checkpoint-500/pytorch_lora_weights.safetensors   the adapter, loads in diffusers
               optimizer.safetensors              its moments, and the loss of every step; the weights
                                                  too where the adapter is their average
               state.json                         the step, and what decided the weights
"""

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.begun import State, flat, nested
from bench.config import GUIDE_NAMES, TrainingConfig, TrialConfig
from bench.errors import MismatchError
from bench.files import json_text, read_json, reading
from trainers.lora import load_adapter, save_adapter

ADAPTER = "pytorch_lora_weights.safetensors"
"""As diffusers names it, and finds it in a folder."""
EFFECTIVE_BATCH = "train_batch_size x gradient_accumulation_steps x processes"
"""A key of what decided the weights."""
SCHEMA = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A training that stands after `step` updates."""

    step: int
    state: State
    losses: Sequence[float]
    """Of every step."""


def write_checkpoint(
    output: Path, checkpoint: Checkpoint, config: TrialConfig, made_by: Mapping[str, Any], limit: int | None
) -> Path:
    """Write a checkpoint, then delete all but the last `limit`; the old are there until the new is safe."""
    folder = output / f"checkpoint-{checkpoint.step}"
    if not folder.exists():
        making = output / f".{folder.name}.tmp"
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        _fill(making, checkpoint, config, made_by)
        for file in (*making.iterdir(), making):
            _flush(file)
        making.rename(folder)
        _flush(output)
    for old in find_checkpoints(output)[:-limit] if limit else ():
        _delete(old)
    return folder


def _fill(folder: Path, checkpoint: Checkpoint, config: TrialConfig, made_by: Mapping[str, Any]) -> None:
    from safetensors.torch import save_file

    kept = "average" if "average" in checkpoint.state else "weights"
    save_adapter(folder / ADAPTER, checkpoint.state[kept], config)
    losses = torch.tensor(checkpoint.losses, dtype=torch.float64)
    rest = {name: part for name, part in checkpoint.state.items() if name != kept}
    save_file({"losses": losses, **flat(rest)}, folder / "optimizer.safetensors")
    state = {"schema": SCHEMA, "step": checkpoint.step, "made_by": dict(made_by)}
    (folder / "state.json").write_text(json_text(state), encoding="utf-8")


def find_checkpoints(output: Path) -> list[Path]:
    """All, the latest last."""
    steps = {
        int(match[1]): path
        for path in output.glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    }
    return [steps[step] for step in sorted(steps)]


def set_aside(folder: Path) -> None:
    """A damaged checkpoint is no checkpoint any more, but is kept to be looked at."""
    aside = folder.with_name(f"{folder.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)


def read_checkpoint(folder: Path) -> Checkpoint:
    """Raises UsageError for one that is damaged."""
    from safetensors.torch import load_file

    with reading(folder):
        tensors = load_file(folder / "optimizer.safetensors")
        losses, adapter = tensors.pop("losses").tolist(), load_adapter(folder / ADAPTER)
        state = nested(tensors)
        state["average" if "weights" in state else "weights"] = adapter
        whole = {"mean", "square"} <= state.keys()
        if not whole or any(
            part.keys() != adapter.keys() for name, part in state.items() if name != "prodigy"
        ):
            raise ValueError("moments and adapter are not of the same modules")
        step = read_json(folder / "state.json")["step"]
        if step != len(losses):
            raise ValueError(f"step {step} with {len(losses)} losses")
        return Checkpoint(step=step, state=state, losses=losses)


def refuse_changed(folder: Path, made_by: Mapping[str, Any]) -> None:
    """Raises MismatchError, naming the keys, if what decides the weights is no longer what it was."""
    with reading(folder):
        state = read_json(folder / "state.json")
        # A key that the checkpoint is older than had its default.
        defaults = {name: field.default for name, field in TrainingConfig.model_fields.items()}
        known = defaults | state["made_by"] if state["schema"] == SCHEMA else {}
        if known:  # one without this key is of one process
            size = known["batch_size"] * known["gradient_accumulation_steps"]
            known = {EFFECTIVE_BATCH: size} | known
        changed = [key for key, value in made_by.items() if key not in known or known[key] != value]
    if changed:
        names = ", ".join(GUIDE_NAMES.get(key, key) for key in changed)
        raise MismatchError(f"{folder}: was begun with another {names}; give another output_dir")


def _flush(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _delete(folder: Path) -> None:
    """Under another name first: half a checkpoint must not be taken for one."""
    leaving = folder.rename(folder.with_name(f".{folder.name}.old"))
    shutil.rmtree(leaving)
