"""Run: the folder runs/<name>/, its only reader and writer.

    run.json                    what was searched, on what, with which versions
    study.db                    Optuna's storage
    real/{train,dev,test}/      pictures: those trained on (small), the true ones of the prompts;
                                features.safetensors of all pictures of the split
    base/{dev,test,probe,floor}/   Evaluations of the base model; floor: the test prompts with other seeds
    shared.json                 where its study is, if several machines search it
    trials/0007/                one trial of the search: trial.json, config.yaml, losses.csv, while it trains
                                begun.safetensors, from which it goes on after an interruption,
        epoch-04/               and an Evaluation on the dev prompts with its adapter at every rung
    confirm/0007-seed-1/        the same for a finalist (or `default-…`) retrained on a fresh seed;
        epoch-04/{test,probe}/  at its chosen epoch also Evaluations on prompts the search never saw; on
                                probes of the winner and of the default alone
    adapters/3f1c09ab62d4/      an adapter file that was compared or scored, by its SHA-256 (and its weight,
        {dev,test,probe}/       3f1c09ab62d4-at-0.7): adapter.json, and Evaluations with it
    floor.json                  the Floor: what trainings of one configuration differ by
    result.json                 the Result: which configuration won, on confirmed scores
    winner/                     adapter.safetensors and training_config.yaml
    report.html                 and trials/0007/trial.html, floor.html
    data/                       its numbers for other programs, see `reports/exports.py`
    damaged/                    what `bench doctor --fix` set aside

An Evaluation is a folder of scores.json, features.safetensors and images/. Every file is written to a
temporary name, flushed, then renamed. A run is read without a GPU and without any model.
"""

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from bench import yaml
from bench.config import TrainingConfig, TrialConfig
from bench.errors import MissingError, UsageError
from bench.files import read_json, reading, replacing, write_json, write_text
from bench.floor import Floor, floor_of
from bench.scoring.concepts import ConceptScore, ConceptScores, plain, scores_by_concept
from bench.scoring.metrics import Score
from bench.space import SearchSpace

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 2
"""2: a second feature network, probes, confirmations on dev, test and probe prompts. 1: the first."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
FAST = {"method": 2, "quality": 0}
"""How hard WebP looks for a smaller file: a sixth of the time of its default for 7 % more bytes."""
WRITERS = 16
"""Images that are written at once."""
THUMBNAIL = 256
"""Longest side in pixels of a training picture that is kept to be shown."""
Split = Literal["dev", "test", "probe", "floor"]
State = Literal["running", "complete", "pruned", "failed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptRecord:
    """A fixed prompt as it was drawn: image i·S+j of an evaluation is prompt i with seeds[j]."""

    text: str
    seeds: tuple[int, ...]
    real: str | None
    """File of the true picture with this caption, relative to the run folder."""
    kind: str = "held-out"
    """Of a probe: `training`, `altered`, `style` or `unrelated`."""
    concept: str = ""
    """Of the true picture."""


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
    judge: str | None
    """The second feature network, which confirms; None if there is none."""
    judge_fingerprint: str | None
    prompts_fingerprint: str
    prompts: dict[Split, list[PromptRecord]]
    device: str
    machine: str
    versions: dict[str, str]
    slots_reason: str | None = None
    """How the number of `space.slots` was found, where the space left it open; None: it was given."""
    notes: tuple[str, ...] = ()
    """What a reader of the scores should know: texts that were cut, a judge that is missing, …"""
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
    judge_features: NDArray[np.float32] | None = None
    """Features of a second network, the judge, of the same images."""
    concepts: ConceptScores = field(default_factory=dict)
    """Means of `per_prompt` over the prompts of each concept, where there are several."""


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Pictures:
    """Features of real pictures, (n, dim), and the number of the prompt each belongs to."""

    features: NDArray[np.float32]
    judge_features: NDArray[np.float32] | None
    prompts: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialRecord:
    """One training with the epochs at which it was scored."""

    label: str
    """Folder name: `0007`, or `0007-seed-1` / `default-seed-1` of a confirmation."""
    path: Path
    state: State
    config: TrialConfig
    origin: str
    """`default` (the configuration to beat), `sampled`, or `confirm`."""
    reason: str | None = None
    """Why it failed, or the rank for which it was pruned."""
    seconds: float | None = None
    """Wall-clock seconds from its start to its end, shared by the trials beside it."""
    epochs: tuple[int, ...] = ()
    """Epochs that have been scored, ascending."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A configuration retrained on fresh seeds, its epochs chosen there, and scored on test prompts."""

    label: str
    """`default` or the number of the trial, `0007`."""
    config: TrialConfig
    """With the chosen number of epochs."""
    records: tuple[str, ...]
    """Labels of its trainings in confirm/."""
    num_failed: int
    """Trainings that are not among them: they failed, or their images could not be scored."""
    scores: dict[str, Score]
    """Confirmed: means over seeds on test prompts and probes; errors join prompts and training seeds."""
    seed_spread: dict[str, float]
    """Standard deviation of each metric between training seeds; NaN with one seed."""
    search: dict[str, Score]
    """What the search saw: one training, dev prompts, its best epoch. Empty if it never tried this."""
    search_epochs: int | None
    by_epoch: dict[int, dict[str, Score]]
    """Epochs -> scores of the retrainings on the dev prompts: the epoch was chosen by these."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """Do scores of images of fewer sampler steps rank adapters as scores of those of all steps do?"""

    rung_steps: int
    """Of the dev prompts."""
    steps: int
    """Of the test prompts."""
    tau: float | None
    """Kendall's, between the dev and the test score of each retraining; None where one of them does not vary.
    The prompts differ too."""
    num_trainings: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """result.json: the outcome of a search. No choice in it rests on a test prompt."""

    winner: str
    """Label of the winning Candidate: best on the dev prompts after retraining (`default` if none was)."""
    candidates: tuple[Candidate, ...]
    select_by: str
    seconds: float
    """Wall-clock seconds of the whole search, resumed parts added up."""
    device_seconds: float | None = None
    """Those, times the devices that were held; None of an earlier version of bench."""
    joules: float | None = None
    """Energy that the devices used, where the machine counts it."""
    agreement: Agreement | None = None
    """None where all images were drawn with the same steps."""

    def candidate(self, label: str) -> Candidate | None:
        """None if that could not be confirmed."""
        return next((candidate for candidate in self.candidates if candidate.label == label), None)


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
        metadata = read_metadata(file)
        with reading(file):
            return cls(path, metadata)

    # Reading

    def trials(self) -> list[TrialRecord]:
        """Trials of the search by number."""
        return self._records("trials")

    def confirmations(self) -> list[TrialRecord]:
        """Retrainings of the finalists and of the default."""
        return self._records("confirm")

    def base_folder(self, split: Split) -> Path:
        return self.path / "base" / split

    def base_scores(self, split: Split) -> dict[str, Score]:
        """Of the base model; empty while it has not been scored."""
        folder = self.base_folder(split)
        return read_evaluation(folder).scores if has_evaluation(folder) else {}

    def trial_folder(self, number: int) -> Path:
        return self.path / "trials" / f"{number:04d}"

    def confirm_folder(self, label: str, number: int) -> Path:
        return self.path / "confirm" / f"{label}-seed-{number}"

    def adapter_folder(self, label: str) -> Path:
        return self.path / "adapters" / label

    def evaluations(self, candidate: Candidate, split: Split) -> list[Evaluation]:
        """Those of all retrainings of a candidate at its chosen epoch, on the prompts of `split`."""
        folders = self.exam_folders(candidate, split)
        return [read_evaluation(folder) for folder in folders if has_evaluation(folder)]

    def by_concept(
        self, split: Split, evaluations: Sequence[Evaluation], *, over_base: bool = True
    ) -> ConceptScores:
        """Scores of each concept of the prompts of `split`, means over evaluations; gains unless `over_base`
        is False. Empty of one concept, or of no evaluation."""
        measured = [evaluation.per_prompt for evaluation in evaluations]
        names = [name for name in measured[0] if all(name in each for each in measured)] if measured else ()
        if not names:
            return {}
        means = {name: np.mean([each[name] for each in measured], axis=0) for name in names}
        folder = self.base_folder(split)
        base = read_evaluation(folder).per_prompt if over_base and has_evaluation(folder) else None
        return scores_by_concept([prompt.concept for prompt in self.metadata.prompts[split]], means, base)

    def exam_folders(self, candidate: Candidate, split: Split) -> list[Path]:
        """Where these evaluations are, one a retraining, whether they are there or not."""
        trainings = (self.path / "confirm" / record for record in candidate.records)
        return [exam_folder(training, candidate.config.epochs, split) for training in trainings]

    def pictures(self, name: str) -> Pictures | None:
        """Features of the real pictures of `train`, `dev` or `test`, or None if they are not there."""
        file = self.path / "real" / name / "features.safetensors"
        return _read_pictures(file) if file.exists() else None

    def floor(self) -> Floor | None:
        """The noise floor, or None while it has not been measured."""
        file = self.path / "floor.json"
        if not file.exists():
            return None
        data = read_json(file)
        with reading(file):
            return floor_of(data)

    def result(self) -> Result | None:
        """The outcome, or None while the search has not ended."""
        file = self.path / "result.json"
        if not file.exists():
            return None
        data = read_json(file)
        with reading(file):
            candidates = tuple(_candidate(candidate) for candidate in data.pop("candidates"))
            agreement = data.pop("agreement", None)
            return Result(**data, candidates=candidates, agreement=agreement and Agreement(**agreement))

    # Writing

    def write_floor(self, floor: Floor) -> None:
        write_json(self.path / "floor.json", asdict(floor))

    def training_config(self, config: TrialConfig) -> TrainingConfig:
        """What trains a configuration again as this run did: on its base, on the same pictures."""
        space = self.space
        return TrainingConfig(
            **config.model_dump(),
            model_name=space.base,
            dataset_name=self.metadata.data,
            hold_out=True,
            revision=space.revision,
            prediction=space.prediction,
            resolution=space.resolution,
            buckets=space.buckets,
            balance=space.balance,
            class_prompt=space.class_prompt,
            class_images=space.class_images,
            dtype=space.dtype,
            trigger=space.trigger,
        )

    def write_result(self, result: Result) -> None:
        candidates = [
            {**asdict(candidate), "config": candidate.config.model_dump(mode="json")}
            for candidate in result.candidates
        ]
        write_json(self.path / "result.json", {**asdict(result), "candidates": candidates})

    def _records(self, kind: str) -> list[TrialRecord]:
        folder = self.path / kind
        return [read_trial(path.parent) for path in sorted(folder.glob("*/trial.json"))]


def read_metadata(file: Path) -> Metadata:
    """Of a run.json; raises UsageError."""
    data = read_json(file)
    if data.get("schema_version") != SCHEMA_VERSION:
        raise UsageError(
            f"{file}: schema version {data.get('schema_version')!r}, "
            f"this version of bench reads {SCHEMA_VERSION}"
        )
    with reading(file):
        prompts = {
            split: [PromptRecord(**{**record, "seeds": tuple(record["seeds"])}) for record in records]
            for split, records in data.pop("prompts").items()
        }
        return Metadata(**{**data, "notes": tuple(data["notes"])}, prompts=prompts)


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


def has_ended(folder: Path) -> bool:
    """Whether there is a trial whose end has been recorded."""
    file = folder / "trial.json"
    return file.exists() and read_json(file)["state"] != "running"


def read_trial(folder: Path) -> TrialRecord:
    """The record of one trial folder."""
    data = read_json(folder / "trial.json")
    scored = (path.parent.name.removeprefix("epoch-") for path in folder.glob("epoch-*/scores.json"))
    with reading(folder / "trial.json"):
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
    """A trial's adapter after `epoch` epochs, with its Evaluation on the dev prompts."""
    return trial_folder / f"epoch-{epoch:02d}"


def adapter_file(trial_folder: Path, epoch: int) -> Path:
    """The adapter itself."""
    return epoch_folder(trial_folder, epoch) / "adapter.safetensors"


def exam_folder(trial_folder: Path, epoch: int, split: Split) -> Path:
    """The Evaluation of that adapter on the prompts of `split`."""
    folder = epoch_folder(trial_folder, epoch)
    return folder if split == "dev" else folder / split


def write_losses(folder: Path, losses: Iterable[float]) -> None:
    """losses.csv: step (from 1) and training loss."""
    rows = "".join(f"{step},{loss:.6g}\n" for step, loss in enumerate(losses, start=1))
    write_text(folder / "losses.csv", "step,loss\n" + rows)


def read_losses(folder: Path) -> "pd.DataFrame":
    """Columns `step` and `loss`; empty if the trial did not get that far."""
    import pandas as pd

    file = folder / "losses.csv"
    with reading(file):
        return pd.read_csv(file) if file.exists() else pd.DataFrame({"step": [], "loss": []})


# One adapter file's folder


def file_digests(files: Sequence[Path]) -> dict[Path, str]:
    """SHA-256 of each adapter file, and of PEFT's configuration beside it.

    Raises MissingError, and UsageError for two files of the same content.
    """
    digests: dict[Path, str] = {}
    for file in files:
        digest = file_digest(file)
        for other, known in digests.items():
            if digest == known:
                raise UsageError(f"{other} and {file} are the same adapter: there is nothing to compare")
        digests[file] = digest
    return digests


def file_digest(file: Path) -> str:
    """SHA-256 of an adapter file, and of PEFT's configuration beside it; raises MissingError."""
    if not file.is_file():
        raise MissingError(f"{file}: no such file")
    digest = hashlib.sha256()
    for part in (file, file.with_name("adapter_config.json")):
        if part.is_file():
            digest.update(part.read_bytes())
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterRecord:
    """adapter.json: an adapter file, at one weight."""

    file: Path
    """Where it lay."""
    sha256: str
    """See `file_digest`."""
    weight: float = 1.0


def adapter_label(digest: str, weight: float = 1.0) -> str:
    """The name of an adapter's folder."""
    return digest[:12] + (f"-at-{weight:g}" if weight != 1 else "")


def start_adapter(folder: Path, file: Path, digest: str, weight: float = 1.0) -> None:
    """Write adapter.json."""
    write_json(folder / "adapter.json", {"file": str(file), "sha256": digest, "weight": weight})


def read_adapter_record(folder: Path) -> AdapterRecord:
    """Inverse of `start_adapter`; raises MissingError."""
    if not (folder / "adapter.json").exists():
        raise MissingError(f"{folder}: no such adapter (no adapter.json in it)")
    data = read_json(folder / "adapter.json")
    with reading(folder / "adapter.json"):
        return AdapterRecord(**{**data, "file": Path(data["file"])})


# One evaluation's folder


def write_evaluation(folder: Path, evaluation: Evaluation, images: NDArray[np.uint8]) -> None:
    """Images (n, height, width, 3) and features first; `scores.json` last: it says that all is there."""
    from safetensors.numpy import save_file

    write_images(folder / "images", images)
    with replacing(folder / "features.safetensors") as temporary:
        save_file(_tensors(evaluation.features, evaluation.judge_features), temporary)
    scores = {name: asdict(score) for name, score in evaluation.scores.items()}
    data = {"scores": scores, "per_prompt": evaluation.per_prompt}
    concepts = {"concepts": plain(evaluation.concepts)} if evaluation.concepts else {}
    write_json(folder / "scores.json", data | concepts)


def has_evaluation(folder: Path) -> bool:
    return (folder / "scores.json").exists()


def read_evaluation(folder: Path) -> Evaluation:
    """What `write_evaluation` wrote, images apart; raises MissingError."""
    from safetensors.numpy import load_file

    if not has_evaluation(folder):
        raise MissingError(f"{folder}: not scored (no scores.json in it)")
    data = read_json(folder / "scores.json")
    with reading(folder):
        tensors = load_file(folder / "features.safetensors")
        return Evaluation(
            scores=_scores(data["scores"]),
            per_prompt=data["per_prompt"],
            features=tensors["features"],
            judge_features=tensors.get("judge"),
            concepts=_concepts(data.get("concepts", {})),
        )


def write_pictures(run: Run, name: str, pictures: Pictures) -> None:
    """Features of all real pictures of `train`, `dev` or `test`."""
    from safetensors.numpy import save_file

    with replacing(run.path / "real" / name / "features.safetensors") as temporary:
        tensors = _tensors(pictures.features, pictures.judge_features)
        save_file(tensors | {"prompts": pictures.prompts.astype(np.int64)}, temporary)


def _read_pictures(file: Path) -> Pictures:
    from safetensors.numpy import load_file

    with reading(file):
        tensors = load_file(file)
        return Pictures(
            features=tensors["features"], judge_features=tensors.get("judge"), prompts=tensors["prompts"]
        )


def _tensors(features: NDArray[np.float32], judge: NDArray[np.float32] | None) -> dict[str, NDArray[Any]]:
    given = {"features": features} | ({} if judge is None else {"judge": judge})
    return {name: np.ascontiguousarray(array, np.float32) for name, array in given.items()}


def write_images(folder: Path, images: NDArray[np.uint8]) -> None:
    """(n, height, width, 3) as lossless WebP: 0000.webp, 0001.webp, …"""
    from PIL import Image

    def write(numbered: tuple[int, NDArray[np.uint8]]) -> None:
        with replacing(folder / f"{numbered[0]:04d}.webp") as temporary:
            Image.fromarray(numbered[1]).save(temporary, "WEBP", lossless=True, **FAST)

    folder.mkdir(parents=True, exist_ok=True)
    # Flushing waits for the disk, on some 10 ms a file: many wait as long as one.
    with ThreadPoolExecutor(WRITERS) as writers:
        list(writers.map(write, enumerate(images)))


def was_cleaned(trial: TrialRecord) -> bool:
    """Whether images of a scored trial were removed, see `bench/clean.py`."""
    return any(not (epoch_folder(trial.path, epoch) / "images").exists() for epoch in trial.epochs)


def image_files(folder: Path) -> list[Path]:
    """Files of an evaluation's images in order: prompt by prompt, seed by seed."""
    return sorted((folder / "images").glob("*.webp"))


def _candidate(data: dict[str, Any]) -> Candidate:
    for name in (data["label"], *data["records"]):  # of folders
        if not NAME.fullmatch(name):
            raise ValueError(f"no name of a trial: {name!r}")
    spreads = data["seed_spread"].items()
    return Candidate(
        label=data["label"],
        config=TrialConfig.model_validate(data["config"]),
        records=tuple(data["records"]),
        num_failed=data["num_failed"],
        scores=_scores(data["scores"]),
        seed_spread={name: math.nan if spread is None else spread for name, spread in spreads},
        search=_scores(data["search"]),
        search_epochs=data["search_epochs"],
        by_epoch={int(epoch): _scores(scores) for epoch, scores in data["by_epoch"].items()},
    )


def _scores(data: dict[str, Any]) -> dict[str, Score]:
    return {name: Score(**score) for name, score in data.items()}


def _concepts(data: Mapping[str, Mapping[str, dict[str, Any]]]) -> ConceptScores:
    return {
        concept: {name: ConceptScore(**score) for name, score in scores.items()}
        for concept, scores in data.items()
    }
