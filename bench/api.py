"""The Python API, for notebooks and scripts: search, score, compare and open_run of the package `bench`.

It does what the command does, by the functions of `bench/asked.py`. Nothing is imported before a function is
called, so that `import bench` is quick. What is wrong is raised as a BenchError.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from reports.notebook import Compared, OpenRun, Scored

RUNS = "runs"


def open_run(run: str | Path, *, folder: str | Path = RUNS) -> "OpenRun":
    """A run by its name in `folder`, or by its path: its frames, figures and verdict."""
    from bench.asked import open_named
    from reports.notebook import OpenRun

    return OpenRun(open_named(str(run), Path(folder)))


def search(
    space: str | Path = "default",
    *,
    base: str | Path | None = None,
    data: str | Path | None = None,
    name: str | None = None,
    trials: int | None = None,
    budget: str | float | None = None,
    seed: int = 0,
    floor: bool = True,
    new_run: bool = False,
    folder: str | Path = RUNS,
    quiet: bool = False,
) -> "OpenRun":
    """As `bench search`: goes on where it was interrupted, and returns the run when it has ended.

    `budget` is in seconds, or text such as `20m`. It never asks.
    """
    from dataclasses import replace

    from bench.asked import command_of
    from bench.errors import StudyError
    from bench.filesystem import refuse_network
    from bench.session import run_search
    from reports.notebook import OpenRun

    overrides = {"base": _text(base), "data": _text(data), "trials": trials, "budget": budget}
    overrides |= {} if floor else {"floor": 0}
    command = command_of(str(space), overrides, name, seed, _console(quiet), Path(folder))
    refuse_network(Path(folder), command.say, force=False)
    try:
        found = OpenRun(run_search(replace(command, is_new=new_run)))
    except StudyError as error:
        open_run(error.run).report()
        raise
    found.report()
    return found


def score(
    adapters: str | Path | Sequence[str | Path],
    *,
    weights: Sequence[float] | None = None,
    space: str | Path = "default",
    base: str | Path | None = None,
    data: str | Path | None = None,
    name: str | None = None,
    folder: str | Path = RUNS,
    quiet: bool = False,
) -> "Scored":
    """As `bench score`: LoRA files, or folders of them, at several weights."""
    from bench.asked import score_files
    from reports.notebook import Scored

    given = [adapters] if isinstance(adapters, str | Path) else adapters
    overrides = {"base": _text(base), "data": _text(data), "weights": weights and list(weights)}
    files = [Path(adapter) for adapter in given]
    return Scored(*score_files(files, str(space), overrides, name, _console(quiet), Path(folder)))


def compare(
    *sides: str | Path,
    space: str | Path | None = None,
    base: str | Path | None = None,
    data: str | Path | None = None,
    name: str | None = None,
    folder: str | Path = RUNS,
    quiet: bool = False,
) -> "Compared":
    """As `bench compare`: runs, LoRA files or `base`; the first is judged against each of the others."""
    from bench.asked import compare_named
    from reports.notebook import Compared

    flags = {"space": _text(space), "base": _text(base), "data": _text(data), "name": name}
    given = {key: value for key, value in flags.items() if value}
    return Compared(*compare_named([str(side) for side in sides], given, _console(quiet), Path(folder)))


def _text(value: str | Path | None) -> str | None:
    return None if value is None else str(value)


def _console(quiet: bool) -> "Console":
    from rich.console import Console

    return Console(quiet=quiet)
