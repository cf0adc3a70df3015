"""The command `bench`: one function a verb. Heavy packages are imported when a verb needs them."""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from bench import completion
from bench.asked import (
    command_of,
    compare_named,
    exported_folder,
    folder_of,
    open_named,
    score_files,
    sqlite_file,
    storage_place,
)
from bench.errors import BenchError, StudyError, UsageError
from bench.secrets import mask_logs, masked

if TYPE_CHECKING:
    from rich.console import Console

    from bench.forecast import Forecast
    from bench.run import Run
    from bench.session import Command
    from reports.show import ImageRow

F = TypeVar("F", bound=Callable[..., Any])
RUNS = completion.RUNS
ADAPTER = completion.ADAPTER
INTERRUPTED = 130
PIPED = 10_000
"""Characters of a line in a pipe or a file, at most."""

SEARCH, LOOK, USE, CARE = "Search", "Look", "Use", "Care for"
"""Panels of the help."""

RUN = typer.Argument(help="A run's name or folder.", autocompletion=completion.run_names)
SPACE = typer.Option(help="A shipped space, or a .yaml file.", autocompletion=completion.space_names)
QUIET = typer.Option("--quiet", "-q", help="Say nothing but errors, and what was written in the last line.")
JSON = typer.Option("--json", help="Print JSON instead of a table.")

MACHINES = "Several machines"
"""Panel of options."""
STORAGE = typer.Option(
    envvar="BENCH_STORAGE",
    show_envvar=True,
    metavar="URL",
    rich_help_panel=MACHINES,
    help="Of a database that several machines search through, such as postgresql://user@host/db.",
)
ARTIFACTS = typer.Option(
    rich_help_panel=MACHINES, help="Where they put what they train: a folder that all see, or s3://bucket."
)
FORCE = typer.Option(
    "--force", rich_help_panel=MACHINES, help="Keep an SQLite study even on a network file system."
)

app = typer.Typer(
    name="bench",
    help="Find the LoRA hyperparameters that really are better for your images, and prove it.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data = typer.Typer(
    help="Check, caption and share a data set.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data, name="data", rich_help_panel=CARE)


def _verb(
    panel: str | None, *examples: str, name: str | None = None, of: typer.Typer = app
) -> Callable[[F], F]:
    """A verb, in a panel of the help: its docstring, and examples with remarks after a #."""
    shown = (line.partition("#") for line in examples)
    coloured = (f"  [cyan]{command}[/cyan][dim]{hash_}{remark}[/dim]" for command, hash_, remark in shown)
    epilog = "\n".join(["\b", "[bold]Examples[/bold]", *coloured])  # after \b lines stay as they are

    def register(function: F) -> F:
        paragraphs = (function.__doc__ or "").split("\n\n")
        text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
        return of.command(name, rich_help_panel=panel, help=text, epilog=epilog)(function)

    return register


@_verb(
    SEARCH,
    "bench search  # the bundled base and data: minutes on two CPU cores",
    "bench search --space smoke  # the whole path in under a minute",
    "bench search --data my-images --name mine",
    "bench search --space sdxl --data my-images --budget 2h",
    "bench search --name mine --data my-images --trials 30  # go on, further",
    "bench search --space my.yaml --yes --quiet",
)
def search(
    space: Annotated[str, SPACE] = "default",
    base: Annotated[
        str | None, typer.Option(help="emoji-xl, a diffusers folder, a .safetensors checkpoint, or a Hub id.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="A bundled set, a folder, or a Hub id.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run; the space's name if left out.")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="How many trials in all.")] = None,
    budget: Annotated[str | None, typer.Option(help="Time for the search, such as 20m or 1.5h.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**30, help="Seed of the sampler and of training.")] = 0,
    floor: Annotated[bool, typer.Option(help="Measure the noise floor too.")] = True,
    new_run: Annotated[
        bool, typer.Option("--new-run", help="Begin name-2, name-3, … rather than go on with what is there.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before a long search.")] = False,
    quiet: Annotated[bool, QUIET] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what it came to as JSON.")] = False,
    storage: Annotated[str | None, STORAGE] = None,
    artifacts: Annotated[str | None, ARTIFACTS] = None,
    executor: Annotated[
        Literal["local", "ray"],
        typer.Option(rich_help_panel=MACHINES, help="Where trials run: this machine, or a Ray cluster."),
    ] = "local",
    force: Annotated[bool, FORCE] = False,
    live: Annotated[
        bool, typer.Option("--live", help="Serve the report to a browser of this machine while it grows.")
    ] = False,
) -> None:
    """Search a space: train and score trials, confirm the best, write runs/NAME/report.html.

    The same command again goes on where it was interrupted, or with a higher --trials goes further. Before it
    begins it says how long it will take, and on a terminal asks whether to go on if that is more than the
    budget, or than an hour where there is none.
    """
    from dataclasses import replace

    from bench.filesystem import refuse_network

    overrides = {"base": base, "data": data, "trials": trials, "budget": budget}
    overrides |= {} if floor else {"floor": 0}
    console = _console(as_json, quiet)
    try:
        command = command_of(space, overrides, name, seed, console)
        command = replace(
            command,
            place=storage_place(storage, artifacts),
            executor=executor,
            is_new=new_run,
            on_forecast=_asks(command, yes),
        )
        if file := sqlite_file(storage):
            refuse_network(file, command.say, force=force)
        _search_live(command, as_json) if live else _search(command, as_json)
    except KeyboardInterrupt:
        console.print("Stopped. Finished trials are kept: run the same command to go on.")
        raise typer.Exit(INTERRUPTED) from None


@_verb(
    SEARCH,
    "bench worker mine --storage postgresql://user@host/db --artifacts /shared/bench",
)
def worker(
    run: Annotated[str, typer.Argument(help="The name of a search that was begun with --storage.")],
    storage: Annotated[str | None, STORAGE] = None,
    artifacts: Annotated[str | None, ARTIFACTS] = None,
    base: Annotated[str | None, typer.Option(help="Where the search's base is on this machine.")] = None,
    data: Annotated[str | None, typer.Option(help="Where the search's data set is on this machine.")] = None,
    quiet: Annotated[bool, QUIET] = False,
    force: Annotated[bool, FORCE] = False,
) -> None:
    """Help with a search from this machine: ask, train, score and tell, until there are enough trials.

    What is trained goes into the artifact store; the search that was begun confirms and reports.
    """
    from bench.filesystem import refuse_network
    from bench.session import run_worker

    console = _console(quiet=quiet)
    if (place := storage_place(storage, artifacts)) is None:
        raise UsageError("--storage: say where the search's study is")
    command = command_of("default", {}, run, 0, console)
    if file := sqlite_file(storage):
        refuse_network(file, command.say, force=force)
    try:
        run_worker(command, place, {"base": base, "data": data})
    except KeyboardInterrupt:
        console.print("Stopped. The same command goes on with what was begun here.")
        raise typer.Exit(INTERRUPTED) from None
    console.print("There are enough trials.")


@_verb(
    SEARCH,
    "bench floor --seeds 10",
    "bench floor --space my.yaml --name mine",
)
def floor(
    space: Annotated[str, SPACE] = "default",
    base: Annotated[
        str | None, typer.Option(help="emoji-xl, a diffusers folder, a .safetensors checkpoint, or a Hub id.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="A bundled set, a folder, or a Hub id.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run; the space's name if left out.")] = None,
    seeds: Annotated[int, typer.Option(min=2, max=1000, help="Trainings of the default config.")] = 5,
    seed: Annotated[int, typer.Option(min=0, max=2**30, help="As of the search.")] = 0,
    quiet: Annotated[bool, QUIET] = False,
) -> None:
    """Measure how far scores differ by luck: the default config trained with several seeds, the base redrawn.

    Writes runs/NAME/floor.json and floor.html; a search of that name builds on these trainings.
    """
    import reports.floor
    import reports.floor_page
    from bench.session import run_floor

    overrides = {"base": base, "data": data, "floor": seeds}
    console = _console(quiet=quiet)
    run = run_floor(command_of(space, overrides, name, seed, console))
    console.print(reports.floor.table(run))
    console.print(f"Floor: {run.path / 'floor.json'}", markup=False, soft_wrap=True)
    if page := reports.floor_page.write(run):
        _wrote("Report", page)


@_verb(
    SEARCH,
    "bench train --config training_config.yaml",
    "bench train --config runs/mine/winner/training_config.yaml",
    name="train",
)
def train_one(
    config: Annotated[Path, typer.Option(help="A training_config.yaml, of the guide or of a search.")],
    hub_model_id: Annotated[
        str | None,
        typer.Option(
            "--hub-model-id",
            "--hub_model_id",
            metavar="OWNER/NAME",
            help="Upload the adapter to the Hub at the end, privately.",
        ),
    ] = None,
    quiet: Annotated[bool, QUIET] = False,
) -> None:
    """Train one LoRA as a training_config.yaml says, with checkpoints, into its output_dir.

    The same command again goes on from the last checkpoint.
    """
    from bench import yaml
    from bench.config import TrainingConfig
    from trainers.single import run_training

    console = _console(quiet=quiet)
    try:
        asked = yaml.read(config, TrainingConfig)
        if hub_model_id is not None:
            asked = asked.model_copy(update={"hub_model_id": hub_model_id})
        file = run_training(asked, console)
    except KeyboardInterrupt:
        console.print("Stopped. Run the same command to go on from the last checkpoint.")
        raise typer.Exit(INTERRUPTED) from None
    if os.environ.get("RANK", "0") == "0":  # the first of several processes
        _wrote("Adapter", file)


@_verb(
    LOOK,
    "bench runs",
    "bench runs --json | jq '.runs[] | select(.verdict == \"WIN\")'",
    name="runs",
)
def list_all(as_json: Annotated[bool, JSON] = False) -> None:
    """List the runs of this folder: state, trials, winner, its gain over the default and the base, size.

    A folder that is damaged, or no run, is a row that says so.
    """
    import reports.runs
    from bench.files import json_text
    from bench.listing import list_runs
    from reports.outcome import outcome_of

    console = _console()
    found = [outcome_of(listed) for listed in list_runs(RUNS)]
    if as_json:
        print(json_text(reports.runs.as_json(found)), end="")
    elif found:
        console.print(reports.runs.table(found))
    else:
        console.print(f"No runs in {RUNS.absolute()}", markup=False, highlight=False, soft_wrap=True)


@_verb(
    LOOK,
    "bench show mine",
    "bench show mine --trial 7",
    "bench show mine --json | jq .recommended.config",
    name="show",
)
def show_run(
    run: Annotated[str, RUN],
    trial: Annotated[int | None, typer.Option(min=0, help="One trial, by its number.")] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Show a run here: the verdict, what is recommended, scores with errors, the best trials, failures, cost.

    Images are drawn where the terminal can (kitty, iTerm2, WezTerm, Ghostty); else their paths are listed.
    """
    import reports.show
    import reports.show_json
    from bench.files import json_text
    from reports.outcome import outcome

    found, console = open_named(run), _console()
    if trial is not None:
        record = reports.show.find_trial(found, trial)
        if as_json:
            print(json_text(reports.show_json.trial_as_json(record)), end="")
            return
        console.print(reports.show.show_trial(found, record))
        _draw(reports.show.images_of_trial(found, record), console)
        return
    known = outcome(found)
    if as_json:
        print(json_text(reports.show_json.as_json(known)), end="")
        return
    console.print(reports.show.show(known))
    _draw(reports.show.images_of_run(known), console)


@_verb(
    LOOK,
    "bench report mine",
    "bench report mine --json | jq .verdict.headline",
)
def report(
    run: Annotated[str, RUN],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of where it is.")] = False,
) -> None:
    """Write (again) the HTML report of a run, and its numbers as CSV, JSON and parquet: runs/NAME/data/."""
    import reports.search
    from bench.files import json_text
    from reports.search_json import as_json as plain

    found = open_named(run)
    if as_json:
        print(json_text(plain(found, reports.search.write(found))), end="")
    else:
        _end(found, as_json=False)


@_verb(
    LOOK,
    "bench index",
    "bench index /shared/runs",
)
def index(
    folder: Annotated[Path, typer.Argument(help="That holds runs.", show_default=True)] = RUNS,
) -> None:
    """Write FOLDER/index.html: all runs in a folder, with filters, and links to their reports."""
    import reports.index

    console = _console()
    with console.status("Reading runs"):
        file = reports.index.write(folder)
    console.print(f"Index: {file}", markup=False, highlight=False, soft_wrap=True)


@_verb(
    LOOK,
    "bench compare mine other base  # the winners of two searches, and the base",
    "bench compare new old --fail-on loss  # in a script: exits with 1",
    "bench compare base a.safetensors b.safetensors --space sdxl --data my-images",
)
def compare(
    sides: Annotated[
        list[str],
        typer.Argument(
            help="Runs, adapter files (.safetensors) or base; 2 or more.",
            autocompletion=completion.side_names,
        ),
    ],
    fail_on: Annotated[
        Literal["loss", "tie"] | None,
        typer.Option(help="Exit with 1 if the first loses against any other (tie: or does not win)."),
    ] = None,
    as_json: Annotated[bool, JSON] = False,
    space: Annotated[
        str | None,
        typer.Option(
            help="Adapters: the space whose prompts are drawn.", autocompletion=completion.space_names
        ),
    ] = None,
    base: Annotated[str | None, typer.Option(help="Adapters: another base than the space's.")] = None,
    data: Annotated[str | None, typer.Option(help="Adapters: another data set than the space's.")] = None,
    name: Annotated[str | None, typer.Option(help="Adapters: name of the run that keeps them.")] = None,
    quiet: Annotated[bool, QUIET] = False,
) -> None:
    """Say WIN, TIE or LOSS of the first against each other; write an HTML page.

    A run, by name or folder, stands for the winner of its search. Adapter files are drawn and scored first,
    into runs/adapters-SPACE unless --name is given; a noise floor measured there by `bench floor` counts.
    """
    import reports.compare
    from bench.files import json_text
    from reports.compare_json import as_json as plain

    flags = {"space": space, "base": base, "data": data, "name": name}
    console = _console(as_json, quiet)
    given = {key: value for key, value in flags.items() if value}
    found, comparisons, path = compare_named(sides, given, console)
    if as_json:
        print(json_text(plain(found, comparisons, str(path))), end="")
    else:
        console.print(reports.compare.table(found, comparisons))
        _wrote("Report", path)
    fatal = {"loss": {"LOSS"}, "tie": {"LOSS", "TIE"}}.get(fail_on or "", set())
    if any(comparison.verdict in fatal for comparison in comparisons if comparison.a is found[0]):
        raise typer.Exit(1)


@_verb(
    LOOK,
    "bench score style.safetensors  # at the weights of the space",
    "bench score outputs/ --weights 0.6,0.8,1 --space sdxl --data my-images",
)
def score(
    adapters: Annotated[
        list[str],
        typer.Argument(
            help="LoRA files (.safetensors), or folders that a trainer wrote.",
            autocompletion=completion.adapter_names,
        ),
    ],
    weights: Annotated[str | None, typer.Option(help="Such as 0.5,1; the space's if left out.")] = None,
    as_json: Annotated[bool, JSON] = False,
    space: Annotated[
        str, typer.Option(help="The space whose prompts are drawn.", autocompletion=completion.space_names)
    ] = "default",
    base: Annotated[str | None, typer.Option(help="Another base than the space's.")] = None,
    data: Annotated[str | None, typer.Option(help="Another data set than the space's.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run that keeps what was drawn.")] = None,
    quiet: Annotated[bool, QUIET] = False,
) -> None:
    """Score LoRA files of any trainer at several weights, all checkpoints of a training; write an HTML page.

    What does best on the dev prompts is compared with the base on the test prompts. All that was drawn is
    kept in runs/adapters-SPACE, unless --name is given, and is not drawn again.
    """
    import reports.score
    from bench.files import json_text
    from reports.score_json import as_json as plain

    overrides = {"base": base, "data": data, "weights": weights.split(",") if weights else None}
    console, files = _console(as_json, quiet), [Path(adapter) for adapter in adapters]
    sheets, sides, comparisons, path = score_files(files, space, overrides, name, console)
    if as_json:
        print(json_text(plain(sheets, sides, comparisons, str(path))), end="")
    else:
        over_base = reports.score.over_the_base(sides, comparisons)
        console.print(reports.score.table(sheets, over_base))
        _wrote("Report", path)


@_verb(
    USE,
    "bench export mine",
    "bench export mine --as kohya",
    "bench export mine --trial 7 --epoch 4",
    name="export",
)
def export_run(
    run: Annotated[str, RUN],
    layout: Annotated[
        Literal["both", "diffusers", "kohya"], typer.Option("--as", help="The layout of the file.")
    ] = "both",
    trial: Annotated[int | None, typer.Option(min=0, help="A trial instead of the winner.")] = None,
    epoch: Annotated[int | None, typer.Option(min=1, help="Of that trial; its last if left out.")] = None,
) -> None:
    """Write the winner into runs/NAME/export/: adapter files, training_config.yaml, a model card with images.

    Scores with their errors, and the config that trains it again, are in the metadata of the files.
    """
    from bench.export import export
    from bench.exported import trial_of, winner_of

    if epoch is not None and trial is None:
        raise UsageError("--epoch: only with --trial; the winner's is chosen")
    found = open_named(run)
    chosen = winner_of(found) if trial is None else trial_of(found, trial, epoch)
    folder = export(chosen, {"diffusers", "kohya"} if layout == "both" else {layout})
    console = _console()
    console.print(f"Exported {chosen.name}: {folder}", markup=False, highlight=False, soft_wrap=True)
    for file in sorted(folder.glob("*")):
        console.print(f"  {file.name}", markup=False, highlight=False, soft_wrap=True)


@_verb(
    USE,
    "bench try mine",
    "bench try style.safetensors --base emoji-xl --port 8000",
    name="try",
)
def try_run(
    run: Annotated[
        str,
        typer.Argument(
            help="A run's name or folder, or a LoRA file (.safetensors).",
            autocompletion=completion.run_or_adapter_names,
        ),
    ],
    base: Annotated[str | None, typer.Option(help="The base of a LoRA file; a run has its own.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 7860,
) -> None:
    """Show a local web page: the base and the winner side by side, same seed, at any weight and prompt.

    It is served to this machine alone, to whoever has the address that is printed, until Ctrl-C.
    """
    from contextlib import suppress

    from bench.easel import easel_of, easel_with
    from reports.live import refuse_missing, serve
    from trainers.adapters import attach

    refuse_missing()
    is_file = run.endswith(ADAPTER)
    if is_file and base is None:
        raise UsageError(f"{run}: say with --base which model it is for")
    if base and not is_file:
        raise UsageError(f"--base: only for a LoRA file ({ADAPTER}); a run has its own")
    easel = easel_with(Path(run), str(base), attach) if is_file else easel_of(open_named(run), attach)
    console = _console()

    def say(address: str) -> None:
        console.print(f"Open {address}; Ctrl-C ends it.", markup=False, highlight=False, soft_wrap=True)

    with suppress(KeyboardInterrupt):  # which the server may have taken for itself
        serve(easel, port, say)
    console.print("Stopped.")


@_verb(
    LOOK,
    "bench dashboard mine",
)
def dashboard(
    run: Annotated[str, RUN],
    storage: Annotated[str | None, STORAGE] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 7862,
) -> None:
    """Open optuna-dashboard on a run's study: a local page, until Ctrl-C.

    It is served to this machine alone, to whoever has the address that is printed. A study that several
    machines share needs --storage.
    """
    from contextlib import suppress

    from bench.searcher import database_errors
    from bench.shared import place_of
    from reports.dashboard import refuse_missing, serve

    refuse_missing()
    found, console = open_named(run), _console()

    def say(address: str) -> None:
        console.print(f"Open {address}; Ctrl-C ends it.", markup=False, highlight=False, soft_wrap=True)

    with suppress(KeyboardInterrupt), database_errors(), place_of(found, storage).opened() as opened:
        serve(opened, found.metadata.name, port, say)
    console.print("Stopped.")


@_verb(
    USE,
    "bench push mine owner/name",
    "bench push mine owner/name --public --yes",
)
def push(
    run: Annotated[
        str,
        typer.Argument(
            help="A run's name or folder, exported before, or a training's output_dir.",
            autocompletion=completion.run_names,
        ),
    ],
    target: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The model on the Hub.")],
    public: Annotated[bool, typer.Option("--public", help="Let everyone see it.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask first.")] = False,
) -> None:
    """Upload runs/NAME/export/, or a training's, to the Hub as a model, private unless --public is given.

    The token is the one of `hf auth login`, or HF_TOKEN.
    """
    from bench.publish import prepared

    console = _console()
    upload = prepared(exported_folder(run), target, private=not public)
    console.print(f"{upload}:", markup=False, highlight=False, soft_wrap=True)
    for file in upload.files:
        console.print(f"  {file.relative_to(upload.folder)}", markup=False, highlight=False, soft_wrap=True)
    if not yes:
        typer.confirm("Upload?", abort=True)
    with console.status("Uploading"):
        address = upload.send()
    console.print(f"Uploaded: {address}", markup=False, highlight=False, soft_wrap=True)


@_verb(
    CARE,
    "bench speed",
    "bench speed --space sdxl --json",
)
def speed(
    space: Annotated[str, SPACE] = "default",
    base: Annotated[
        str | None, typer.Option(help="emoji-xl, a diffusers folder, a .safetensors checkpoint, or a Hub id.")
    ] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Measure what a base does on this machine: trials alone and side by side, and how long a search takes.

    Trains and draws a little with the space's default configuration, on random data; writes nothing.
    """
    from dataclasses import asdict

    import reports.speed
    from bench.files import json_text
    from bench.session import run_speed

    console = _console(stderr=as_json)
    found = run_speed(command_of(space, {"base": base}, None, 0, console))
    if as_json:
        print(json_text(asdict(found)), end="")
    else:
        console.print(reports.speed.table(found))


@_verb(
    CARE,
    "bench clean mine --dry-run",
    "bench clean mine",
    name="clean",
)
def clean_run(
    run: Annotated[str, RUN],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, remove nothing.")] = False,
) -> None:
    """Remove images and adapters of failed, pruned and dominated trials, and what killed processes left.

    Scores, losses and configurations stay: reports and the search go on. The default's trial, finalists and
    all that was trained or drawn to confirm them are never touched.
    """
    import reports.cleaning
    from bench.clean import removals, remove
    from bench.lock import locked

    found = open_named(run)
    with locked(found.path, "clean it when that has ended"):
        planned = removals(found)
        if not dry_run:
            remove(planned)
    text = reports.cleaning.text(planned, found.path, is_done=not dry_run)
    _console().print(text, markup=False, highlight=False, soft_wrap=True)


@_verb(
    CARE,
    "bench doctor",
    "bench doctor mine --fix",
)
def doctor(
    run: Annotated[
        str | None,
        typer.Argument(
            help="A run's name or folder, to be looked at too.", autocompletion=completion.run_names
        ),
    ] = None,
    fix: Annotated[bool, typer.Option("--fix", help="Mend what can be mended of the run.")] = False,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Look at the machine, the packages, the disk and the Hub, and at a run: what is wrong, and what to do.

    With --fix what is damaged goes into runs/NAME/damaged/, so that the next search makes it again, study.db
    is made again from the trials, and temporary files go. Exits with 1 if problems remain.
    """
    import reports.doctor
    from bench.doctor import examine, mend

    if fix and run is None:
        raise UsageError("--fix: only with a run")
    path = folder_of(run) if run else None
    mended = mend(path) if path and fix else []
    checks = examine(RUNS, path)
    if as_json:
        print(reports.doctor.as_json(checks, mended), end="")
    else:
        reports.doctor.show(checks, mended, _console())
    if any(check.level == "problem" for check in checks):
        raise typer.Exit(1)


@_verb(
    None,
    "bench data check my-images",
    "bench data check my-images --base stabilityai/stable-diffusion-xl-base-1.0 --strict",
    name="check",
    of=data,
)
def check_data(
    source: Annotated[str, typer.Argument(metavar="DIR", help="A folder, a bundled set, or a Hub id.")],
    base: Annotated[str, typer.Option(help="The base whose limits count.")] = "emoji-xl",
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if there is any warning.")] = False,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Say what is wrong with pictures and captions, and write a contact sheet into runs/.

    Looks for near-duplicates, also between what is trained on and what is held out, for captions that are cut
    off, equal or lack the trigger word, for sizes and numbers. Exits with 2 if the data cannot be used.
    """
    import reports.data
    from bench.check import check_data as check
    from bench.files import json_text
    from bench.sources import find_source

    found = check(source, find_source(base))
    path = reports.data.write(found, RUNS / reports.data.file_name(found))
    if as_json:
        print(json_text(reports.data.as_json(found, path)), end="")
    else:
        _console().print(reports.data.summary(found))
        _console().print(f"Contact sheet: {path}", markup=False, soft_wrap=True)
    if found.problem:
        raise found.problem
    if strict and found.levels["warning"]:
        raise typer.Exit(1)


@_verb(
    None,
    "bench data caption my-images --trigger ohwx",
    'bench data caption my-images --trigger ohwx --template "{caption}, in {trigger} style"',
    name="caption",
    of=data,
)
def caption_data(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of the pictures.")],
    template: Annotated[
        str | None, typer.Option(help='Such as "{caption}, in {trigger} style".', show_default=False)
    ] = None,
    trigger: Annotated[str | None, typer.Option(help="The word that calls what is learned.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a metadata.jsonl.")] = False,
) -> None:
    """Write metadata.jsonl: captions from .txt files, folders such as `10_ohwx dog`, or file names.

    Without --template a --trigger is put in front of each caption that does not contain it.
    """
    import reports.sharing
    from bench.captions import write_captions

    found = write_captions(folder, template, trigger, force=force)
    _console().print(reports.sharing.captions(found), markup=False, highlight=False, soft_wrap=True)


@_verb(
    None,
    "bench data push my-images owner/name",
    name="push",
    of=data,
)
def push_data(
    source: Annotated[str, typer.Argument(metavar="DIR", help="A folder, or a bundled set.")],
    target: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The new data set on the Hub.")],
    public: Annotated[bool, typer.Option("--public", help="Let everyone see it.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask first.")] = False,
) -> None:
    """Upload pictures and captions to the Hub as a new data set, private unless --public is given.

    The token is the one of `hf auth login`, or HF_TOKEN.
    """
    import reports.sharing
    from bench.data_upload import prepared

    console = _console()
    with prepared(source, target, private=not public) as upload:
        console.print(reports.sharing.upload(upload), markup=False, soft_wrap=True)
        if not yes:
            typer.confirm("Upload?", abort=True)
        with console.status("Uploading"):
            address = upload.send()
    console.print(f"Uploaded: {address}", markup=False, soft_wrap=True)


def main() -> None:
    """Run the command; an expected error is one line on stderr and exit code 2, any other a traceback and 1.

    No secret is in either.
    """
    mask_logs()
    # Threads that wait without spinning: on a busy machine spinning ones are many times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what was begun goes on next time
    try:
        app()
    except (BenchError, OSError) as error:
        print(masked(f"bench: {error}"), file=sys.stderr)
        raise SystemExit(2) from None
    except Exception:
        print(masked(traceback.format_exc()), end="", file=sys.stderr)
        raise SystemExit(1) from None


def _asks(command: "Command", yes: bool) -> Callable[["Forecast"], None]:
    """Says how long a search will take, and asks whether to go on if that is more than was asked for."""

    def ask(found: "Forecast") -> None:
        from reports.forecast import is_long, sentence

        budget = command.space.budget
        command.say(sentence(found, budget))
        if is_long(found, budget) and not (yes or command.console.quiet) and _is_asked():
            if not typer.confirm("Go on?", default=True, err=True):
                raise typer.Exit(1)

    return ask


def _is_asked() -> bool:
    """Whether there is someone to ask."""
    return sys.stdin is not None and sys.stdin.isatty()


def _search(command: "Command", as_json: bool) -> Path:
    """Search, and write the report, of a study that came to nothing too; returns where the report is."""
    from bench.session import run_search

    try:
        run = run_search(command)
    except StudyError as error:
        _end(open_named(str(error.run)), as_json)
        raise
    return _end(run, as_json)


def _search_live(command: "Command", as_json: bool = False) -> None:
    """The same, its report served while it grows."""
    from dataclasses import replace

    from reports.growing import Growing
    from reports.served import served

    growing = Growing()
    with served(growing) as address:
        command.say(f"Live report: {address}")
        if command.console.quiet:  # what was asked for cannot be guessed
            print(f"Live report: {address}", file=sys.stderr)
        try:
            file = _search(replace(command, follow=growing.follow), as_json)
        except BenchError as error:
            growing.end(f"The search has ended: {masked(str(error))}")
            raise
        else:
            growing.end(f"The search has ended. This page is now {file}.")


def _end(run: "Run", as_json: bool) -> Path:
    """Of a search: its report, which is written, and what it came to; returns where that is."""
    import reports.search
    from bench.files import json_text
    from reports.outcome import outcome, outcome_json

    path = reports.search.write(run)
    if as_json:
        print(json_text({"schema_version": 1, **outcome_json(outcome(run)), "report": str(path)}), end="")
    else:
        _wrote("Report", path)
    return path


def _wrote(what: str, path: Path) -> None:
    """The last line of a verb, which --quiet leaves."""
    _console().print(f"{what}: {path}", markup=False, highlight=False, soft_wrap=True)


def _draw(rows: Sequence["ImageRow"], console: "Console") -> None:
    """Images in the terminal, or else where they are."""
    from reports.show import image_caption, image_paths
    from reports.terminal import escaped, protocol_of, strip

    protocol = protocol_of(os.environ) if console.is_terminal else None
    for row in rows:
        image = strip(row.files) if protocol else None
        console.print()
        console.print(image_caption(row) if image else image_paths(row), soft_wrap=True)
        if image and protocol:
            console.file.write(escaped(image, protocol) + "\n")


def _console(stderr: bool = False, quiet: bool = False) -> "Console":
    """Where nobody looks at a terminal, lines are as long as they are: they can be searched and cut."""
    from rich.console import Console

    console = Console(stderr=stderr, quiet=quiet)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPED
    return console
