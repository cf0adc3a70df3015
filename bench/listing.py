"""All runs of a folder, and their sizes; also what is damaged, or no run at all."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError, one_line
from bench.run import Run


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Listed:
    """A folder among the runs."""

    path: Path
    run: Run | None
    """None if it cannot be read."""
    problem: str = ""
    """Why it cannot be."""
    is_foreign: bool = False
    """Holds no run.json: it is no run."""


def list_runs(folder: Path) -> list[Listed]:
    """Every folder in `folder` by name, hidden ones apart; none if that is not there."""
    found = sorted(folder.iterdir()) if folder.is_dir() else ()
    return [_listed(path) for path in found if path.is_dir() and not path.name.startswith(".")]


def _listed(path: Path) -> Listed:
    try:
        if not (path / "run.json").exists():
            return Listed(path=path, run=None, problem="no run.json in it", is_foreign=True)
        return Listed(path=path, run=Run.open(path))
    except (BenchError, OSError) as error:
        return Listed(path=path, run=None, problem=one_line(error))


def size_of(folder: Path) -> int:
    """Bytes of all files in it; links are not followed, and what goes meanwhile is not counted."""
    return sum(_sizes(folder))


def _sizes(folder: Path) -> Iterator[int]:
    for directory, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                yield Path(directory, name).lstat().st_size
