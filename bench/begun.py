"""What an interrupted training goes on from: all that it held at the last rung that it passed."""

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from bench import run as runs
from bench.config import TrialConfig
from bench.errors import BenchError
from bench.files import replacing

FILE = "begun.safetensors"
LOSSES = "losses"
State = Mapping[str, dict[str, torch.Tensor]]
"""A training's `weights`, their `average` where there is one, and what its optimizer keeps, by name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Begun:
    """A training that stands at a rung."""

    config: TrialConfig
    epoch: int
    losses: Sequence[float]
    """Of every step so far."""
    state: State


def flat(state: State) -> dict[str, torch.Tensor]:
    """Of a state for a file: part.name -> tensor."""
    return {
        f"{part}.{name}": tensor.contiguous()
        for part, named in state.items()
        for name, tensor in named.items()
    }


def nested(tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """Inverse of `flat`."""
    state: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        part, _, name = key.partition(".")
        state.setdefault(part, {})[name] = tensor
    return state


def write_begun(folder: Path, begun: Begun) -> None:
    """Into the folder of a trial, in place of what it began before."""
    losses = torch.tensor(begun.losses, dtype=torch.float64)
    about = {"config": begun.config.model_dump_json(), "epoch": str(begun.epoch)}
    with replacing(folder / FILE) as temporary:
        save_file({**flat(begun.state), LOSSES: losses}, temporary, about)


def read_begun(folder: Path, config: TrialConfig) -> Begun | None:
    """None where there is nothing, or nothing whole, of that configuration, or its rung is not recorded."""
    file = folder / FILE
    if not file.exists():
        return None
    with (
        suppress(SafetensorError, OSError, KeyError, ValueError, BenchError),
        safe_open(file, "pt") as opened,
    ):
        about = opened.metadata()
        epoch = int(about["epoch"])
        runs.read_evaluation(runs.epoch_folder(folder, epoch))
        if json.loads(about["config"]) != config.model_dump(mode="json"):
            return None
        state = nested({key: opened.get_tensor(key) for key in set(opened.keys()) - {LOSSES}})
        return Begun(config=config, epoch=epoch, losses=opened.get_tensor(LOSSES).tolist(), state=state)
    return None


def rewind(folder: Path, config: TrialConfig) -> Begun | None:
    """Leave of a trial that is to be trained what it goes on from: its rungs so far, or nothing."""
    begun = read_begun(folder, config)
    if begun is None:
        shutil.rmtree(folder, ignore_errors=True)
        return None
    for later in folder.glob("epoch-*"):
        if int(later.name.removeprefix("epoch-")) > begun.epoch:
            shutil.rmtree(later)
    return begun


def forget(folder: Path) -> None:
    """A training that has ended goes on no more."""
    (folder / FILE).unlink(missing_ok=True)
