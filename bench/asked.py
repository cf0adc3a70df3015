"""What a command or a call from Python names: runs, sides, spaces, adapter files, and what is made of them.

Only this module and the two that use it, `bench/cli.py` and `bench/api.py`, join what trains and what reports
with `bench`. Heavy packages are imported when they are needed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.completion import ADAPTER, RUNS
from bench.errors import MissingError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from bench.comparison import Comparison, Side
    from bench.run import Run
    from bench.session import Command
    from bench.shared import Place
    from bench.sheet import Sheet

BASE = "base"
"""The side that is the base model; a run of that name is given as a folder."""


def compare_named(
    names: list[str], flags: dict[str, str], console: "Console", folder: Path = RUNS
) -> tuple[list["Side"], tuple["Comparison", ...], Path]:
    """What the arguments of `compare` name, all pairs of them, and the page, which is written."""
    import reports.compare
    from bench.comparison import compare_all

    found, home = _sides(names, flags, console, folder)
    comparisons = compare_all(found, found[0].run.space.select_by)
    return (
        found,
        comparisons,
        reports.compare.write(found, comparisons, home / reports.compare.file_name(found)),
    )


def score_files(
    files: list[Path],
    space: str,
    overrides: Mapping[str, Any],
    name: str | None,
    console: "Console",
    folder: Path = RUNS,
) -> tuple[list["Sheet"], list["Side"], tuple["Comparison", ...], Path]:
    """Adapter files drawn and scored: their sheets, what is recommended and the base, and the page."""
    import reports.score
    from bench.comparison import adapter_side, base_side, compare_all
    from bench.series import find_series
    from bench.session import run_scores
    from trainers.adapters import read_adapter

    series = find_series(files)
    for checkpoint in (checkpoint for each in series for checkpoint in each.checkpoints):
        read_adapter(checkpoint.file)
    run, sheets = run_scores(command_of(space, overrides, name, 0, console, folder), series)
    sides = [*(adapter_side(run, sheet.best.label, sheet.name) for sheet in sheets), base_side(run)]
    comparisons = compare_all(sides, run.space.select_by)
    path = reports.score.write(sheets, sides, comparisons, run.path / reports.score.file_name(sheets))
    return sheets, sides, comparisons, path


def _sides(
    names: list[str], flags: dict[str, str], console: "Console", folder: Path
) -> tuple[list["Side"], Path]:
    """What the arguments of `compare` name, and the folder for the page."""
    from bench.run import file_digests

    _check_sides(names, flags)
    runs = {name: open_named(name, folder) for name in names if name != BASE and not name.endswith(ADAPTER)}
    files = [Path(name) for name in names if name.endswith(ADAPTER)]
    digests = file_digests(files)
    adapters = _run_adapters(digests, flags, console, folder) if files else None
    first = adapters or next(iter(runs.values()))
    found = {name: _side(runs.get(name), digests.get(Path(name)), first) for name in names}
    return _named(found), adapters.path if adapters else first.path.parent


def _check_sides(names: list[str], flags: dict[str, str]) -> None:
    if len(names) < 2:
        raise UsageError(f"compare: needs at least two sides, got {' '.join(names)}")
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"compare: {twice[0]} is named twice: there is nothing to compare")
    if flags and not any(name.endswith(ADAPTER) for name in names):
        raise UsageError(f"--{next(iter(flags))}: only for adapter files ({ADAPTER})")


def _side(run: "Run | None", digest: str | None, first: "Run") -> "Side":
    """Of a run its winner, of a digest its adapter in the run `first`, else the base of that."""
    from bench.comparison import adapter_side, base_side, winner_side
    from bench.run import adapter_label

    if run:
        return winner_side(run)
    return adapter_side(first, adapter_label(digest)) if digest else base_side(first)


def _named(sides: dict[str, "Side"]) -> list["Side"]:
    """Sides whose names are the same are called what they were called on the command line."""
    from dataclasses import replace

    names = [side.name for side in sides.values()]
    return [
        replace(side, name=given) if names.count(side.name) > 1 else side for given, side in sides.items()
    ]


def _run_adapters(digests: dict[Path, str], flags: dict[str, str], console: "Console", folder: Path) -> "Run":
    from bench.session import run_adapters
    from trainers.adapters import read_adapter

    for file in digests:
        read_adapter(file)
    overrides = {"base": flags.get("base"), "data": flags.get("data")}
    space, name = flags.get("space", "default"), flags.get("name")
    return run_adapters(command_of(space, overrides, name, 0, console, folder), digests)


def command_of(
    space: str,
    overrides: Mapping[str, Any],
    name: str | None,
    seed: int,
    console: "Console",
    folder: Path = RUNS,
) -> "Command":
    """What is asked for, and what trains and draws; `overrides` are fields of the space, or None."""
    from bench.session import Command, Engine, resolve
    from bench.space import load_space
    from trainers.adapters import attach
    from trainers.loop import train

    return Command(
        space=resolve(load_space(space), overrides),
        name=name,
        folder=folder,
        seed=seed,
        engine=Engine(train=train, attach=attach),
        console=console,
        isolated=True,
    )


def open_named(name: str, folder: Path = RUNS) -> "Run":
    """A run by its name in `folder`, or by its path; raises MissingError, UsageError."""
    from bench.run import Run

    return Run.open(folder_of(name, folder))


def folder_of(name: str, runs: Path = RUNS) -> Path:
    """Of a run, by its name or path; raises MissingError."""
    for folder in (runs / name, Path(name)):
        if (folder / "run.json").exists():
            return folder
    known = sorted(path.parent.name for path in runs.glob("*/run.json"))
    raise MissingError(f"{name}: no such run; in {runs}/ are: {', '.join(known) or 'none'}")


def exported_folder(name: str) -> Path:
    """The folder to share of a run, or of what `bench train` wrote."""
    from bench.exported import export_folder

    try:
        run = open_named(name)
    except MissingError:
        if (export_folder(Path(name)) / "README.md").exists():
            return export_folder(Path(name))
        raise
    if not (export_folder(run.path) / "README.md").exists():
        raise MissingError(
            f"{export_folder(run.path)}: nothing to upload; `bench export {run.metadata.name}` writes it"
        )
    return export_folder(run.path)


def storage_place(storage: str | None, artifacts: str | None) -> "Place | None":
    from bench.shared import Place

    if storage is None:
        if artifacts:
            raise UsageError("--artifacts: only with --storage")
        return None
    if artifacts is None:
        raise UsageError("--artifacts: say where trained adapters go: a folder that all see, or s3://bucket")
    return Place(url=storage, artifacts=artifacts)


def sqlite_file(storage: str | None) -> Path | None:
    """Where a study is kept, or the folder of it, if that is SQLite."""
    if storage is None:
        return RUNS
    scheme, _, file = storage.partition(":///")
    return Path(file.partition("?")[0]) if scheme.partition("+")[0] == "sqlite" else None
