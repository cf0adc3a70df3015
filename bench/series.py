"""Series: the adapter files that one training left, told by the names that trainers give them.

kohya            name-000004.safetensors (epoch), name-step00000500.safetensors, name.safetensors (the end)
ai-toolkit       name_000000500.safetensors (step), name.safetensors
OneTrainer       …2026-01-31_12-00-00-save-500-4-0.safetensors (step, epoch, step of the epoch)
diffusers, PEFT  checkpoint-500/pytorch_lora_weights.safetensors, pytorch_lora_weights.safetensors
bench            epoch-04/adapter.safetensors
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.errors import MissingError, UsageError
from bench.run import file_digest

SUFFIX = ".safetensors"
FIXED_NAMES = ("pytorch_lora_weights", "adapter_model", "adapter")
"""Names of files that say nothing: the folder says which training and how far."""
IN_FOLDER = re.compile(r"checkpoint-(?P<step>\d+)|epoch-(?P<epoch>\d+)")
"""Folders."""
IN_NAME = (
    re.compile(r"(?P<name>.+)-step(?P<step>\d{8})"),
    re.compile(r"(?P<name>.*?)-?(\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d)?-?save-(?P<step>\d+)-(?P<epoch>\d+)-\d+"),
    re.compile(r"(?P<name>.+)-(?P<epoch>0\d{5})"),
    re.compile(r"(?P<name>.+)_(?P<step>0\d{8})"),
)
"""Files; zeros first, since six digits may be a date too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """An adapter file, and how far its training had come."""

    file: Path
    digest: str
    epoch: int | None = None
    step: int | None = None

    @property
    def title(self) -> str:
        """`epoch 4`, `step 500`; `the end` where the name says neither."""
        if self.epoch is not None:
            return f"epoch {self.epoch}"
        return "the end" if self.step is None else f"step {self.step}"

    @property
    def order(self) -> tuple[bool, int, int]:
        """The end comes last."""
        return (self.epoch, self.step) == (None, None), self.epoch or 0, self.step or 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One training, by its checkpoints in their order."""

    name: str
    checkpoints: tuple[Checkpoint, ...]


def find_series(paths: Sequence[Path]) -> list[Series]:
    """The trainings that these files, and the files in these folders, are of; a copy counts once.

    Raises MissingError for what is not there, UsageError for a folder without adapters.
    """
    found: dict[tuple[Path, str], list[Checkpoint]] = {}
    digests: set[str] = set()
    for file in dict.fromkeys(file for path in paths for file in _files(path)):
        digest = file_digest(file)
        if digest not in digests:
            digests.add(digest)
            folder, name, checkpoint = _read_name(Checkpoint(file=file, digest=digest))
            found.setdefault((folder, name), []).append(checkpoint)
    names = [name for _, name in found]
    return [
        Series(
            name=name if names.count(name) == 1 else str(folder / name),
            checkpoints=tuple(sorted(checkpoints, key=lambda checkpoint: checkpoint.order)),
        )
        for (folder, name), checkpoints in found.items()
    ]


def _files(path: Path) -> Iterable[Path]:
    if not path.is_dir():
        if not path.exists():
            raise MissingError(f"{path}: no such file or folder")
        if path.suffix != SUFFIX:
            raise UsageError(f"{path}: not a {SUFFIX} file; others are not read, they may run code")
        return [path]
    found = sorted(_in_folder(path))
    if not found:
        raise UsageError(
            f"{path}: holds no adapters ({SUFFIX} files, or folders checkpoint-N or epoch-N with them)"
        )
    return found


def _in_folder(folder: Path) -> Iterator[Path]:
    fixed = [file for name in FIXED_NAMES if (file := folder / f"{name}{SUFFIX}").is_file()]
    yield from fixed or (file for file in folder.glob(f"[!.]*{SUFFIX}") if file.is_file())
    for inner in folder.iterdir():
        if inner.is_dir() and IN_FOLDER.fullmatch(inner.name):
            yield from (file for name in FIXED_NAMES if (file := inner / f"{name}{SUFFIX}").is_file())


def _read_name(checkpoint: Checkpoint) -> tuple[Path, str, Checkpoint]:
    """The folder and the name of its training, and the checkpoint with what its name says."""
    file = checkpoint.file.resolve()
    if file.stem in FIXED_NAMES:
        match = IN_FOLDER.fullmatch(file.parent.name)
        folder = file.parent.parent if match else file.parent
        return folder.parent, folder.name, _at(checkpoint, match)
    match = next((match for pattern in IN_NAME if (match := pattern.fullmatch(file.stem))), None)
    return file.parent, (match["name"] if match else file.stem) or file.parent.name, _at(checkpoint, match)


def _at(checkpoint: Checkpoint, match: re.Match[str] | None) -> Checkpoint:
    said = match.groupdict() if match else {}
    epoch, step = (int(text) if (text := said.get(unit)) else None for unit in ("epoch", "step"))
    return replace(checkpoint, epoch=epoch, step=step)
