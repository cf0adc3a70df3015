"""The page over all runs in a folder: an entry for each run, with filters, and links to their reports.

A folder that is no run, or a damaged one, is an entry that says so: whoever looks for it finds out why.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from bench.errors import BenchError, MissingError
from bench.files import write_text
from bench.run import Result, Run, Split, has_evaluation, image_files
from bench.scoring.metrics import METRICS
from reports import page
from reports.images import Thumbnail, thumbnail
from reports.state import STATES, state_of
from reports.trials import Point, best, point_folder, read_points
from reports.verdict import Fact, contests, verdict, winner_of
from reports.wording import plural

NUM_PROMPTS = 3
"""Whose images stand on an entry."""
AGAINST = ("against the default", "against the base")
"""Facts of a report that its entry repeats."""
VERDICTS = {"win": "WIN", "tie": "no win", "open": "not confirmed"}
"""Tone of a report -> what its first sentence comes to."""
SORTS = {"created": "newest first", "name": "name", "gain": "largest gain", "trials": "most trials"}


class Pair(NamedTuple):
    """One prompt, drawn by the base and by the winner (or the best so far)."""

    caption: str
    base: Thumbnail | None
    best: Thumbnail | None


class Entry(NamedTuple):
    """One run, or a folder that could not be read as one."""

    name: str
    folder: str
    """Its name, where `name` is not."""
    state: str
    """Of STATES, or `damaged` or `foreign`."""
    headline: str
    tone: str
    """Of the report: win, tie, open; or `error`."""
    verdict: str
    """Of VERDICTS; empty of what is no run."""
    metric: str
    """By which it ranks."""
    facts: list[Fact]
    """The winner's gains over the default and over the base, with their intervals."""
    gain_order: str
    """What the page sorts by: how much better than the base, whichever direction is good."""
    base: str
    data: str
    trials: str
    trials_order: int
    created: str
    """ISO 8601, UTC; empty where it is not known."""
    link: str
    """Of its report, from the page; empty if there is none."""
    pairs: list[Pair]


class Option(NamedTuple):
    """One value of a filter, and how many entries have it."""

    value: str
    num_entries: int


def write(folder: Path) -> Path:
    """Write folder/"index.html"; raises MissingError if there is no such folder."""
    if not folder.is_dir():
        raise MissingError(f"{folder}: no such folder; `bench search` makes it with the first run")
    path = folder / "index.html"
    write_text(path, render(folder))
    return path


def render(folder: Path) -> str:
    """The page as text."""
    entries = read_entries(folder)
    return page.render(
        "index.html.j2",
        figures={},
        folder=folder.resolve().name,
        entries=entries,
        summary=summary(entries),
        filters={
            "state": options((entry.state for entry in entries), (*STATES, "damaged", "foreign")),
            "verdict": options((entry.verdict for entry in entries), tuple(VERDICTS.values())),
            "base": options(entry.base for entry in entries),
            "data": options(entry.data for entry in entries),
        },
        sorts=SORTS,
    )


def read_entries(folder: Path) -> list[Entry]:
    """Of all folders in it that are not hidden: the newest run first, then what is none."""
    found = [
        entry_of(path) for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")
    ]
    return sorted(found, key=lambda entry: entry.created, reverse=True)


def entry_of(path: Path) -> Entry:
    """Of one folder, whatever is in it."""
    if not (path / "run.json").exists():
        return _unread(path, "foreign", "Not a run: there is no run.json in this folder.")
    try:
        return _entry(Run.open(path))
    except (BenchError, OSError) as error:
        return _unread(path, "damaged", f"{error}")


def options(values: Iterable[str], order: Sequence[str] = ()) -> list[Option]:
    """Those that occur, in this order or by the alphabet."""
    counts = Counter(value for value in values if value)
    return [Option(value, counts[value]) for value in order or sorted(counts) if counts[value]]


def summary(entries: Sequence[Entry]) -> str:
    """`3 runs: 2 finished, 1 running; 1 folder could not be read`."""
    runs = [entry for entry in entries if entry.state in STATES]
    counts = ", ".join(f"{count} {state}" for state, count in options((c.state for c in runs), STATES))
    others = len(entries) - len(runs)
    rest = f"; {plural(others, 'folder')} could not be read as a run" if others else ""
    return f"{plural(len(runs), 'run')}{f': {counts}' if runs else ''}{rest}"


def _entry(run: Run) -> Entry:
    points, result = read_points(run), run.result()
    found = contests(run, result) if result else None
    state, metric = state_of(run), METRICS[run.space.select_by]
    said = verdict(run, result, points, found, is_running=state == "running")
    over_base = found.over_base.get(result.winner) if found and result else None
    num_trials = len({point.label for point in points})
    return Entry(
        name=run.metadata.name,
        folder=run.path.name,
        state=state,
        headline=said.headline,
        tone=said.tone,
        verdict=VERDICTS[said.tone],
        metric=metric.label,
        facts=[fact for fact in said.facts if fact.label in AGAINST],
        gain_order=str(metric.sign * over_base.main.mean) if over_base and over_base.main else "",
        base=run.metadata.base,
        data=run.metadata.data,
        trials=f"{num_trials} of {plural(run.space.trials, 'trial')}",
        trials_order=num_trials,
        created=run.metadata.created,
        link=_link(run.path),
        pairs=pairs(run, result, points),
    )


def _unread(path: Path, state: str, reason: str) -> Entry:
    return Entry(
        name=path.name,
        folder=path.name,
        state=state,
        headline=reason,
        tone="error" if state == "damaged" else "open",
        verdict="",
        metric="",
        facts=[],
        gain_order="",
        base="",
        data="",
        trials="",
        trials_order=0,
        created="",
        link=_link(path),
        pairs=[],
    )


def _link(path: Path) -> str:
    """Of a folder's report, from the page; empty if there is none."""
    return f"{quote(path.name)}/report.html" if (path / "report.html").exists() else ""


def pairs(run: Run, result: Result | None, points: list[Point]) -> list[Pair]:
    """The first prompts: confirmed images, or else those of the best so far."""
    split: Split = "test" if result else "dev"
    prompts = run.metadata.prompts.get(split, [])
    base, winner = (_images(folder) for folder in (run.base_folder(split), _best_folder(run, result, points)))
    seeds = min((len(prompt.seeds) for prompt in prompts), default=0)
    return [
        Pair(prompt.text, _thumbnail(base, number * seeds), _thumbnail(winner, number * seeds))
        for number, prompt in enumerate(prompts[:NUM_PROMPTS])
        if base
    ]


def _best_folder(run: Run, result: Result | None, points: list[Point]) -> Path | None:
    if result:
        return next(filter(has_evaluation, run.exam_folders(winner_of(result), "test")), None)
    found = best(points, run.space.select_by)
    return point_folder(run, found) if found else None


def _images(folder: Path | None) -> list[Path]:
    return image_files(folder) if folder else []


def _thumbnail(files: list[Path], number: int) -> Thumbnail | None:
    return thumbnail(files[number]) if number < len(files) else None
