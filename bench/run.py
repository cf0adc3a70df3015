"""Run: the folder runs/<name>/, its only reader and writer.

    run.json                       what was searched, on what, with which versions
    study.db                       Optuna's storage
    real/{dev,test}/               the true pictures of the prompts; features.safetensors of all held-out ones
    base/{dev,test}/               an Evaluation of the base model
    trials/0007/                   one trial of the search: trial.json, config.yaml, losses.csv,
        epoch-04/                  and an Evaluation with its adapter at every rung
    confirm/0007-epoch-04-seed-1/  the same for a finalist (or `default-…`) retrained on a fresh seed
    result.json                    the Result: which trial won, on confirmed scores
    winner/                        adapter.safetensors and training_config.yaml
    report.html

An Evaluation is a folder of scores.json, features.safetensors and images/. Every file is written to a
temporary name, flushed, then renamed. A run is read without a GPU and without any model.
"""

import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from bench import yaml
from bench.config import TrialConfig
from bench.errors import MissingError, UsageError
from bench.scoring.metrics import Score
from bench.space import SearchSpace

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
Split = Literal["dev", "test"]
State = Literal["running", "complete", "failed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptRecord:
    """A fixed prompt as it was drawn: image i·S+j of an evaluation is prompt i with seeds[j]."""

    text: str
    seeds: tuple[int, ...]
    real: str | None
    """File of the true picture with this caption, relative to the run folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Metadata:
    """run.json: what was searched, on what, with which versions."""

    name: str
    created: str
    """ISO 8601, UTC."""
    seed: int
    space: dict[str, Any]
    """The SearchSpace as resolved."""
    base: str
    base_fingerprint: str
    data: str
    data_fingerprint: str
    num_images: dict[str, int]
    """Images in train, dev and test."""
    scorer: str
    scorer_fingerprint: str
    prompts_fingerprint: str
    prompts: dict[Split, list[PromptRecord]]
    device: str
    machine: str
    versions: dict[str, str]
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Scores of one set of images, with what they were computed from.

    `per_prompt` holds, for each paired metric, one value a prompt; `features` the image features in
    the order of the images (prompt by prompt, seed by seed), shape (prompts × seeds, dim).
    """

    scores: dict[str, Score]
    per_prompt: dict[str, list[float]]
    features: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialRecord:
    """One training with the epochs at which it was scored."""

    label: str
    """Folder name: `0007`, or `0007-epoch-04-seed-1` / `default-epoch-08-seed-1` of a confirmation."""
    path: Path
    state: State
    config: TrialConfig
    origin: str
    """`default` (the configuration to beat), `sampled`, or `confirm`."""
    reason: str | None = None
    """Why it failed."""
    seconds: float | None = None
    """Wall-clock seconds of training and scoring, shared by the trials of its pack."""
    epochs: tuple[int, ...] = ()
    """Epochs that have been scored, ascending."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A configuration retrained on fresh seeds and scored on test prompts: confirmed scores."""

    label: str
    """`default` or the number of the trial, `0007`."""
    config: TrialConfig
    records: tuple[str, ...]
    """Labels of its trainings in confirm/."""
    scores: dict[str, Score]
    """Means over seeds; errors join the spread over prompts and over training seeds."""
    seed_spread: dict[str, float]
    """Standard deviation of each metric between training seeds; NaN with one seed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """result.json: the outcome of a search."""

    winner: str
    """Label of the winning Candidate (`default` if nothing beat it)."""
    candidates: tuple[Candidate, ...]
    select_by: str
    gain_over_default: dict[str, tuple[float, float]]
    """Metric -> winner minus default with its standard error, paired by prompt where that is possible."""
    seconds: float
    """Wall-clock seconds of the whole search, resumed parts added up."""


class Run:
    """A run folder. `Run.create` makes one, `Run.open` reads one."""

    def __init__(self, path: Path, metadata: Metadata) -> None:
        self.path = path
        self.metadata = metadata
        self.space = SearchSpace.model_validate(metadata.space)

    @classmethod
    def create(cls, path: Path, metadata: Metadata) -> "Run":
        """Make the folder; `run.json` is written first and makes it a run."""
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / "run.json", asdict(metadata))
        return cls(path, metadata)

    @classmethod
    def open(cls, path: Path) -> "Run":
        """Read a run folder; raises MissingError or UsageError."""
        file = path / "run.json"
        if not file.exists():
            raise MissingError(f"{path}: not a run folder (no run.json in it)")
        data = read_json(file)
        if data.get("schema_version") != SCHEMA_VERSION:
            raise UsageError(
                f"{file}: schema version {data.get('schema_version')!r}, "
                f"this version of bench reads {SCHEMA_VERSION}"
            )
        with _reading(file):
            prompts = {
                split: [PromptRecord(**{**record, "seeds": tuple(record["seeds"])}) for record in records]
                for split, records in data.pop("prompts").items()
            }
            return cls(path, Metadata(**data, prompts=prompts))

    # Reading

    def trials(self) -> list[TrialRecord]:
        """Trials of the search by number."""
        return self._records("trials")

    def confirmations(self) -> list[TrialRecord]:
        """Retrainings of the finalists and of the default."""
        return self._records("confirm")

    def base_folder(self, split: Split) -> Path:
        return self.path / "base" / split

    def trial_folder(self, number: int) -> Path:
        return self.path / "trials" / f"{number:04d}"

    def confirm_folder(self, label: str, epochs: int, number: int) -> Path:
        return self.path / "confirm" / f"{label}-epoch-{epochs:02d}-seed-{number}"

    def result(self) -> Result | None:
        """The outcome, or None while the search has not ended."""
        file = self.path / "result.json"
        if not file.exists():
            return None
        data = read_json(file)
        with _reading(file):
            candidates = tuple(_candidate(candidate) for candidate in data.pop("candidates"))
            gains = {name: (gain, stderr) for name, (gain, stderr) in data.pop("gain_over_default").items()}
            return Result(**data, candidates=candidates, gain_over_default=gains)

    # Writing

    def write_result(self, result: Result) -> None:
        candidates = [
            {**asdict(candidate), "config": candidate.config.model_dump(mode="json")}
            for candidate in result.candidates
        ]
        write_json(self.path / "result.json", {**asdict(result), "candidates": candidates})

    def _records(self, kind: str) -> list[TrialRecord]:
        folder = self.path / kind
        return [read_trial(path.parent) for path in sorted(folder.glob("*/trial.json"))]


# One trial's folder


def start_trial(folder: Path, config: TrialConfig, origin: str) -> None:
    """Write config.yaml, then trial.json with state `running`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", yaml.dump(config))
    write_json(folder / "trial.json", {"state": "running", "origin": origin})


def end_trial(folder: Path, state: State, seconds: float, reason: str | None = None) -> None:
    """Replace the state of a started trial."""
    data = read_json(folder / "trial.json")
    write_json(folder / "trial.json", {**data, "state": state, "seconds": seconds, "reason": reason})


def read_trial(folder: Path) -> TrialRecord:
    """The record of one trial folder."""
    data = read_json(folder / "trial.json")
    scored = (path.parent.name.removeprefix("epoch-") for path in folder.glob("epoch-*/scores.json"))
    with _reading(folder / "trial.json"):
        return TrialRecord(
            label=folder.name,
            path=folder,
            state=data["state"],
            config=yaml.read(folder / "config.yaml", TrialConfig),
            origin=data["origin"],
            reason=data.get("reason"),
            seconds=data.get("seconds"),
            epochs=tuple(sorted(int(epoch) for epoch in scored if epoch.isdigit())),
        )


def epoch_folder(trial_folder: Path, epoch: int) -> Path:
    return trial_folder / f"epoch-{epoch:02d}"


def write_losses(folder: Path, losses: Iterable[float]) -> None:
    """losses.csv: step (from 1) and training loss."""
    rows = "".join(f"{step},{loss:.6g}\n" for step, loss in enumerate(losses, start=1))
    write_text(folder / "losses.csv", "step,loss\n" + rows)


def read_losses(folder: Path) -> "pd.DataFrame":
    """Columns `step` and `loss`; empty if the trial did not get that far."""
    import pandas as pd

    file = folder / "losses.csv"
    with _reading(file):
        return pd.read_csv(file) if file.exists() else pd.DataFrame({"step": [], "loss": []})


# One evaluation's folder


def write_evaluation(folder: Path, evaluation: Evaluation, images: NDArray[np.uint8]) -> None:
    """Images (n, height, width, 3) and features first; `scores.json` last: it says that all is there."""
    from safetensors.numpy import save_file

    write_images(folder / "images", images)
    with replacing(folder / "features.safetensors") as temporary:
        save_file({"features": np.ascontiguousarray(evaluation.features, np.float32)}, temporary)
    scores = {name: asdict(score) for name, score in evaluation.scores.items()}
    write_json(folder / "scores.json", {"scores": scores, "per_prompt": evaluation.per_prompt})


def has_evaluation(folder: Path) -> bool:
    return (folder / "scores.json").exists()


def read_evaluation(folder: Path) -> Evaluation:
    """What `write_evaluation` wrote, images apart; raises MissingError."""
    from safetensors.numpy import load_file

    if not has_evaluation(folder):
        raise MissingError(f"{folder}: not scored (no scores.json in it)")
    data = read_json(folder / "scores.json")
    with _reading(folder):
        return Evaluation(
            scores={name: Score(**score) for name, score in data["scores"].items()},
            per_prompt=data["per_prompt"],
            features=load_file(folder / "features.safetensors")["features"],
        )


def write_real_features(
    run: Run, split: Split, features: NDArray[np.float32], prompts: NDArray[np.intp]
) -> None:
    """Features (pictures, dim) of all held-out pictures, and the number of the prompt each belongs to."""
    from safetensors.numpy import save_file

    with replacing(run.path / "real" / split / "features.safetensors") as temporary:
        save_file({"features": features, "prompts": prompts.astype(np.int64)}, temporary)


def write_images(folder: Path, images: NDArray[np.uint8]) -> None:
    """(n, height, width, 3) as lossless WebP: 0000.webp, 0001.webp, …"""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        with replacing(folder / f"{index:04d}.webp") as temporary:
            Image.fromarray(image).save(temporary, "WEBP", lossless=True)


def image_files(folder: Path) -> list[Path]:
    """Files of an evaluation's images in order: prompt by prompt, seed by seed."""
    return sorted((folder / "images").glob("*.webp"))


# Files


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it once it is written and flushed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What goes wrong while a file of a run is read is one UsageError that names it."""
    from safetensors import SafetensorError

    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, OSError, SafetensorError) as error:
        reason = " ".join(f"{type(error).__name__} {error}".split())[:200]
        raise UsageError(f"{path}: damaged: {reason}; delete that folder to have it made again") from None


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Strict JSON: NaN and infinity become null, so that any reader can load it."""
    write_text(path, json.dumps(_finite(data), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises UsageError naming the file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise UsageError(f"{path}: expected an object, got {type(data).__name__}")
    return data


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _candidate(data: dict[str, Any]) -> Candidate:
    spreads = data["seed_spread"].items()
    return Candidate(
        label=data["label"],
        config=TrialConfig.model_validate(data["config"]),
        records=tuple(data["records"]),
        scores={name: Score(**score) for name, score in data["scores"].items()},
        seed_spread={name: math.nan if spread is None else spread for name, spread in spreads},
    )
