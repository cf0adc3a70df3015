"""The command `bench`: one function a verb. Heavy packages are imported when a verb needs them."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.errors import BenchError, MissingError, StudyError

if TYPE_CHECKING:
    from rich.console import Console

    from bench.run import Run
    from bench.session import Engine

RUNS = Path("runs")
INTERRUPTED = 130

app = typer.Typer(
    name="bench",
    help="Find the LoRA hyperparameters that really are better for your images, and prove it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def search(
    space: Annotated[str, typer.Option(help="A shipped space, or a .yaml file.")] = "default",
    base: Annotated[str | None, typer.Option(help="emoji-xl, a diffusers folder, or a Hub id.")] = None,
    data: Annotated[str | None, typer.Option(help="A bundled set, a folder, or a Hub id.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run; the space's name if left out.")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="How many trials in all.")] = None,
    budget: Annotated[str | None, typer.Option(help="Time for the search, such as 20m or 1.5h.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**30, help="Seed of the sampler and of training.")] = 0,
    floor: Annotated[bool, typer.Option(help="Measure the noise floor too.")] = True,
) -> None:
    """Search a space: train and score trials, confirm the best, write runs/NAME/report.html.

    The same command again goes on where it was interrupted, or with a higher --trials goes further.
    """
    from bench.session import run_search

    overrides = {"base": base, "data": data, "trials": trials, "budget": budget}
    overrides |= {} if floor else {"floor": 0}
    console = _console()
    try:
        run = run_search(space, overrides, name, RUNS, seed, _engine(), console)
    except KeyboardInterrupt:
        console.print("Stopped. Finished trials are kept: run the same command to go on.")
        raise typer.Exit(INTERRUPTED) from None
    except StudyError as error:
        _report(_open(str(error.run)), console)
        raise
    _report(run, console)


@app.command()
def floor(
    space: Annotated[str, typer.Option(help="A shipped space, or a .yaml file.")] = "default",
    base: Annotated[str | None, typer.Option(help="emoji-xl, a diffusers folder, or a Hub id.")] = None,
    data: Annotated[str | None, typer.Option(help="A bundled set, a folder, or a Hub id.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run; the space's name if left out.")] = None,
    seeds: Annotated[int, typer.Option(min=2, max=1000, help="Trainings of the default config.")] = 5,
    seed: Annotated[int, typer.Option(min=0, max=2**30, help="As of the search.")] = 0,
) -> None:
    """Measure how far scores differ by luck: the default config trained with several seeds, the base redrawn.

    Writes runs/NAME/floor.json; a search of that name builds on these trainings.
    """
    import reports.floor
    from bench.session import run_floor

    overrides = {"base": base, "data": data, "floor": seeds}
    console = _console()
    run = run_floor(space, overrides, name, RUNS, seed, _engine(), console)
    console.print(reports.floor.table(run))
    console.print(f"Floor: {run.path / 'floor.json'}", soft_wrap=True)


@app.command()
def report(run: Annotated[str, typer.Argument(help="A run's name or folder.")]) -> None:
    """Write (again) the HTML report of a run."""
    _report(_open(run), _console())


@app.command()
def compare(
    run_a: Annotated[str, typer.Argument(help="A run's name or folder.")],
    run_b: Annotated[str, typer.Argument(help="Another one.")],
) -> None:
    """Compare the winners of two runs prompt by prompt; write an HTML page beside them."""
    import reports.compare
    from bench.compare import compare as compare_runs

    a, b = _open(run_a), _open(run_b)
    comparison = compare_runs(a, b)
    console = _console()
    console.print(reports.compare.table(comparison))
    path = a.path.parent / f"compare-{a.path.name}-{b.path.name}.html"
    console.print(f"Report: {reports.compare.write(comparison, a, b, path)}", soft_wrap=True)


def main() -> None:
    """Run the command; an expected error is one line on stderr and exit code 2."""
    # Threads that wait without spinning: on a busy machine spinning ones are many times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except (BenchError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _report(run: "Run", console: "Console") -> None:
    import reports.search

    console.print(f"Report: {reports.search.write(run)}", soft_wrap=True)


def _engine() -> "Engine":
    from bench.session import Engine
    from trainers.adapters import attach
    from trainers.loop import train

    return Engine(train=train, attach=attach)


def _open(name: str) -> "Run":
    from bench.run import Run

    for folder in (RUNS / name, Path(name)):
        if (folder / "run.json").exists():
            return Run.open(folder)
    known = sorted(path.parent.name for path in RUNS.glob("*/run.json"))
    raise MissingError(f"{name}: no such run; in {RUNS}/ are: {', '.join(known) or 'none'}")


def _console() -> "Console":
    from rich.console import Console

    return Console()
