"""Growing: the report of a search while it runs, rendered when it is asked for and something has changed."""

import hashlib
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from bench.errors import BenchError, one_line
from bench.run import Run
from reports import exports, search, trial
from reports.page import Live, render
from reports.verdict import Verdict, contests_of

PAUSE = 4.0
"""Least seconds between the end of a rendering and the next: the search has the processor."""
SHARE = 8
"""A pause is at least this many times as long as the last rendering."""
SCORES = ("trials/*/epoch-*/scores.json", "confirm/*/epoch-*/scores.json", "confirm/*/epoch-*/*/scores.json")
WATCHED = ("run.json", "result.json", "floor.json", "base/*/scores.json", "*/*/trial.json", *SCORES)
"""Files that the report changes with."""
SERVED = {".webp": "image/webp", ".html": "text/html; charset=utf-8"}
"""Files of a run folder that a page may link to."""
STARTING = "The base model and the data are being loaded. This page fills itself once something was tried."


class Growing:
    """Of one run folder, whose path need not be known yet; any thread may ask."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._path: Path | None = None
        self._over = ""
        self._lock = threading.Lock()
        self._version = ""
        """Of the page that was rendered last."""
        self._text = ""
        self._next = -1.0
        """When the next may be rendered."""
        self._asked = -1.0
        self._has_left = threading.Event()

    def follow(self, path: Path) -> None:
        """This is the run folder; it need not be there yet."""
        self._path = path

    def end(self, said: str) -> None:
        """No more will come: the next page is the last, and says so."""
        self._over = said

    def wait_for_readers(self, seconds: float) -> None:
        """If it has ended: until someone who asked that lately has the last page, but no longer."""
        if self._over and self._asked >= 0 and self._clock() - self._asked < seconds:
            self._has_left.wait(seconds)

    def status(self) -> dict[str, object]:
        """For a browser that asks whether its page is old: `version`, `num_scored`, `over`."""
        self._asked = self._clock()
        over = self._over
        wanted, num_scored = self._seen(over)
        is_due = bool(over) or self._clock() >= self._next
        return {
            "version": wanted if is_due else self._version,
            "num_scored": num_scored,
            "over": bool(over),
        }

    def page(self) -> str:
        """The page as it is now, or a little while ago."""
        with self._lock:
            over = self._over  # which may come while this is rendered: then it is not the last
            version, num_scored = self._seen(over)
            if version != self._version and (over or self._clock() >= self._next):
                started = self._clock()
                self._text, self._version = self._rendered(Live(version, num_scored, over)), version
                self._next = self._clock() + max(PAUSE, SHARE * (self._clock() - started))
            if over:
                self._has_left.set()
            return self._text

    def data(self, name: str, format: exports.Format) -> bytes | None:
        """A file of `data/` as it is now; None while there is no run."""
        with suppress(BenchError, OSError):
            if self._path:
                return exports.content(exports.FRAMES[name](Run.open(self._path)), format)
        return None

    def file(self, name: str) -> Path | None:
        """An image or page of the run folder by its name there, if it is one."""
        if self._path is None or Path(name).suffix not in SERVED:
            return None
        root = self._path.resolve()
        path = (root / name).resolve()
        is_inside = path.is_relative_to(root) and not any(part.startswith(".") for part in Path(name).parts)
        return path if is_inside and path.is_file() else None

    def _seen(self, over: str) -> tuple[str, int]:
        """What a page would be made of now, in short, and how many evaluations there are."""
        path, digest = self._path, hashlib.sha256(over.encode())
        for file in sorted(file for pattern in WATCHED for file in (path.glob(pattern) if path else ())):
            with suppress(OSError):  # it was replaced just now
                found = file.stat()
                digest.update(f"{file}\0{found.st_mtime_ns}\0{found.st_size}\n".encode())
        num_scored = sum(1 for pattern in SCORES[:2] for _ in (path.glob(pattern) if path else ()))
        return digest.hexdigest()[:16], num_scored

    def _rendered(self, live: Live) -> str:
        if self._path is None or not (self._path / "run.json").exists():
            return _waiting("bench search", "The search is starting.", STARTING, live)
        try:
            run = Run.open(self._path)
            found = contests_of(run)
            trial.write_pages(run, found, is_growing=True)  # which the report leads to
            return search.render(run, found, live)
        except (BenchError, OSError) as error:  # such as a damaged folder
            return _waiting(self._path.name, "There is no report now.", one_line(error), live)


def _waiting(name: str, headline: str, detail: str, live: Live) -> str:
    verdict = Verdict("open", headline, detail, [])
    return render("waiting.html.j2", figures={}, live=live, name=name, verdict=verdict)
