"""Every page that the tests open in a browser, and how its file is made; a new page is one more entry."""

import functools
from collections.abc import Callable
from pathlib import Path

from hostile import hostile_run

from bench.run import Run
from reports import index, search

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
    "index, hostile": lambda keep_run: runs_of(hostile(keep_run)),
}
HOSTILE_PAGES = [name for name in PAGES if "hostile" in name]


@functools.cache
def hostile(keep_run: MakeRun) -> Run:
    return hostile_run(keep_run, "hostile", HOSTILE)


def runs_of(run: Run) -> Path:
    """The index of a folder that holds this run."""
    search.write(run)
    return index.write(run.path.parent)


def finished(keep_run: MakeRun) -> Run:
    """A search with everything in it, whose winner wins."""
    return keep_run("finished", trials=12, prompts=12, gain=0.2)
