"""Every page that the tests open in a browser, and how its file is made; a new page is one more entry."""

import functools
from collections.abc import Callable
from pathlib import Path

from hostile import hostile_run

from bench.comparison import base_side, compare_all, winner_side
from bench.run import Run
from reports import compare, floor_page, index, search, trial

MakeRun = Callable[..., Run]
HOSTILE = (
    '</script></title><script>alert(1)</script><img src=x onerror=alert(2)>" onfocus=alert(3) autofocus '
    '<svg onload=alert(4)></svg><a href="javascript:alert(5)">{{7*7}}</a>'
)
PAGES: dict[str, Callable[[MakeRun], Path]] = {
    "search": lambda keep_run: search.write(finished(keep_run)),
    "search, interrupted": lambda keep_run: search.write(keep_run("interrupted", ending="interrupted")),
    "search, only failures": lambda keep_run: search.write(keep_run("failed", ending="failed")),
    "search, empty": lambda keep_run: search.write(keep_run("empty", ending="empty")),
    "search, hostile": lambda keep_run: search.write(hostile(keep_run)),
    "trial": lambda keep_run: trial_of(finished(keep_run)),
    "trial, hostile": lambda keep_run: trial_of(hostile(keep_run)),
    "floor": lambda keep_run: floor_of(finished(keep_run)),
    "comparison": lambda keep_run: comparison([finished(keep_run), keep_run("other", prompts=12, random=1)]),
    "comparison, hostile": lambda keep_run: comparison([hostile(keep_run)]),
    "index, hostile": lambda keep_run: runs_of(hostile(keep_run)),
}
HOSTILE_PAGES = [name for name in PAGES if "hostile" in name]


@functools.cache
def hostile(keep_run: MakeRun) -> Run:
    return hostile_run(keep_run, "hostile", HOSTILE)


def trial_of(run: Run) -> Path:
    """Written here, unless the report of the search wrote it before."""
    trial.write_pages(run)
    return run.trial_folder(2) / "trial.html"


def floor_of(run: Run) -> Path:
    path = floor_page.write(run)
    assert path
    return path


def comparison(runs: list[Run]) -> Path:
    """Their winners, and the base."""
    sides = [*map(winner_side, runs), base_side(runs[0])]
    path = runs[0].path.with_name(f"compare-{runs[0].path.name}.html")
    return compare.write(sides, compare_all(sides, "similarity"), path)


def runs_of(run: Run) -> Path:
    """The index of a folder that holds this run."""
    search.write(run)
    return index.write(run.path.parent)


def finished(keep_run: MakeRun) -> Run:
    """A search with everything in it, whose winner wins."""
    return keep_run("finished", trials=12, prompts=12, gain=0.2)
