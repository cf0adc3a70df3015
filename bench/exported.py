"""Exported: one adapter of a run that is to be shared, with what is known of it."""

from dataclasses import dataclass
from pathlib import Path

from bench.config import TrainingConfig, TrialConfig
from bench.errors import MissingError, UsageError
from bench.run import (
    NAME,
    Candidate,
    Run,
    Split,
    TrialRecord,
    adapter_file,
    epoch_folder,
    exam_folder,
    read_evaluation,
    read_trial,
    was_cleaned,
)
from bench.scoring.metrics import Score

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
"""The name by which diffusers finds an adapter in a folder."""
PLACEHOLDER = "OWNER/NAME"
"""In the model card until it is pushed."""


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Exported:
    """One adapter of a run, with what is known of it."""

    run: Run
    name: str
    """`the winner`, or `trial 7, epoch 4`."""
    adapter: Path
    config: TrialConfig
    """As it was trained, its own seed and number of epochs included."""
    scores: dict[str, Score]
    images: Path
    """Folder of its Evaluation."""
    candidate: Candidate | None
    """The winner's; None of a trial of the search."""

    @property
    def split(self) -> Split:
        """Of the prompts that were scored: a trial has drawn those alone that choose."""
        return "test" if self.candidate else "dev"

    @property
    def num_trainings(self) -> int:
        """Whose scores these are the means of."""
        return len(self.candidate.records) if self.candidate else 1

    @property
    def kohya_file(self) -> str:
        """Name of the file in kohya's layout. Raises UsageError if the run's name could lead elsewhere."""
        name = self.run.metadata.name
        if not NAME.fullmatch(name):
            raise UsageError(f"{self.run.path / 'run.json'}: name {name!r}: not the name of a run")
        return f"{name}.safetensors"

    @property
    def training_config(self) -> TrainingConfig:
        """With names in place of paths on this machine."""
        return shared_config(self.run.training_config(self.config))


def shared_name(source: str) -> str:
    """A base or data set, of a path on this machine its last part only."""
    is_path = source.startswith((".", "~")) or Path(source).is_absolute()
    return Path(source).name if is_path else source


def shared_config(config: TrainingConfig) -> TrainingConfig:
    """As others may see it: nothing names a folder of this machine, or where it was uploaded to."""
    keys = ("model_name", "vae_name", "dataset_name", "output_dir")
    paths = {key: path for key in keys if (path := getattr(config, key))}
    update = {key: shared_name(path) for key, path in paths.items()}
    return config.model_copy(update={**update, "hub_model_id": None})


def winner_of(run: Run) -> Exported:
    """The adapter that a search recommends; raises MissingError while it has not ended."""
    result = run.result()
    winner = result.candidate(result.winner) if result else None
    if winner is None:
        raise MissingError(f"{run.path}: no result yet; `bench search` has to finish first, or give --trial")
    record = read_trial(run.path / "confirm" / winner.records[0])
    return Exported(
        run=run,
        name="the winner",
        adapter=adapter_file(record.path, winner.config.epochs),
        config=winner.config.model_copy(update={"seed": record.config.seed}),
        scores=winner.scores,
        images=exam_folder(record.path, winner.config.epochs, "test"),
        candidate=winner,
    )


def trial_of(run: Run, number: int, epoch: int | None) -> Exported:
    """A trial of the search at one of the epochs at which it was scored, the last if none is given.

    Raises MissingError, UsageError.
    """
    record = _trial(run, number)
    epoch = record.epochs[-1] if epoch is None else epoch
    if epoch not in record.epochs:
        known = ", ".join(map(str, record.epochs))
        raise UsageError(f"--epoch {epoch}: trial {number} was scored at {known}")
    folder, adapter = epoch_folder(record.path, epoch), adapter_file(record.path, epoch)
    if was_cleaned(record):
        raise MissingError(
            f"{adapter}: was removed with `bench clean`; "
            f"{record.path / 'config.yaml'} says how to train it again"
        )
    return Exported(
        run=run,
        name=f"trial {number}, epoch {epoch}",
        adapter=adapter,
        config=record.config.model_copy(update={"epochs": epoch}),
        scores=read_evaluation(folder).scores,
        images=folder,
        candidate=None,
    )


def _trial(run: Run, number: int) -> TrialRecord:
    scored = {record.label: record for record in run.trials() if record.epochs}
    label = run.trial_folder(number).name
    if label not in scored:
        known = ", ".join(str(int(name)) for name in scored) or "none"
        raise MissingError(f"--trial {number}: no such trial of {run.path} was scored; there are: {known}")
    return scored[label]


def previews_folder(output: Path, step: int) -> Path:
    """Of what one training drew after so many updates."""
    return output / "samples" / f"step-{step:06d}"


def export_folder(path: Path) -> Path:
    """Of a run's folder, or of one training's output."""
    return path / "export"
