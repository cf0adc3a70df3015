"""What a run folder can do without: images and adapters that nothing will be made from any more.

They go with failed and pruned trials, and with complete ones that are dominated: another trial is at least as
good in every objective and better in one. Scores, features, losses and configurations stay, so that a search
goes on and reports are written as before. The default's trial, the finalists', and all that was trained
again or drawn to confirm them are never touched.
"""

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from bench import begun
from bench.confirm import values_of
from bench.pareto import Point, non_dominated
from bench.run import Run, TrialRecord
from bench.scoring.metrics import METRICS

TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp")
"""Names that `files.replacing` gives, with the process that writes."""
Reason = Literal["failed", "pruned", "dominated", "left by a process that ended"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Removal:
    """Files and folders that go together."""

    path: Path
    """The trial's folder, or the temporary file."""
    reason: Reason
    parts: tuple[Path, ...]
    size: int
    """Bytes of them all."""

    @classmethod
    def of_temporary(cls, path: Path) -> "Removal":
        return cls(path=path, reason="left by a process that ended", parts=(path,), size=_size(path))


def removals(run: Run) -> list[Removal]:
    """What would go, the trials by number, then temporary files."""
    kept = _kept(run)
    found = [
        removal
        for record in run.trials()
        if record.label not in kept and (removal := _of_trial(record)) is not None
    ]
    return found + [Removal.of_temporary(path) for path in temporaries(run.path)]


def remove(found: Sequence[Removal]) -> None:
    """The caller holds the run's lock."""
    for path in (part for removal in found for part in removal.parts):
        if path.is_dir():  # as a whole: half of the images would be damage
            shutil.rmtree(path.rename(path.with_name(f".{path.name}.{os.getpid()}.tmp")))
        else:
            path.unlink(missing_ok=True)


def temporaries(folder: Path) -> Iterator[Path]:
    """What a process was writing, or removing, when it was killed."""
    for path in sorted(folder.rglob(".*.tmp")):
        named = TEMPORARY.fullmatch(path.name)
        if named and not psutil.pid_exists(int(named[1])):
            yield path


def _kept(run: Run) -> set[str]:
    """Labels of trials that are the default, were chosen or may yet be, or have not ended."""
    records = run.trials()
    points = [
        Point(label=record.label, epochs=epoch, values=values_of(record, epoch, run.space.objectives))
        for record in records
        if record.state == "complete"
        for epoch in record.epochs
    ]
    directions = [METRICS[name].direction for name in run.space.objectives]
    best = {point.label for point in non_dominated(points, directions)}
    unended = {record.label for record in records if record.state == "running"}
    defaults = {record.label for record in records if record.origin == "default"}
    result = run.result()
    chosen = {candidate.label for candidate in result.candidates} if result else set()
    return best | unended | defaults | chosen


def _of_trial(record: TrialRecord) -> Removal | None:
    """None if nothing is left to remove."""
    assert record.state != "running"
    wanted = (
        *sorted(record.path.glob("epoch-*/images")),
        *sorted(record.path.glob("epoch-*/adapter.safetensors")),
        record.path / begun.FILE,
    )
    parts = tuple(path for path in wanted if path.exists())
    if not parts:
        return None
    reason: Reason = "dominated" if record.state == "complete" else record.state
    return Removal(path=record.path, reason=reason, parts=parts, size=sum(map(_size, parts)))


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
