"""Progress of a study: a live display on a terminal, plain lines where output goes to a file or a pipe."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import RLock

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from bench import packs
from bench.secrets import masked


class Pace:
    """Work done and to do, in units of the same cost; the time left follows from the pace so far."""

    def __init__(self) -> None:
        self.done = 0.0
        self.all = 0.0
        self._started: float | None = None

    def plan(self, units: float) -> None:
        """How much work there is in all; the clock starts with the first plan."""
        self.all = units
        self._started = self._started or time.monotonic()

    @property
    def time_left(self) -> str:
        if self.done <= 0 or self._started is None:
            return "time left not known yet"
        elapsed = time.monotonic() - self._started
        return f"about {_minutes(elapsed / self.done * max(0.0, self.all - self.done))} left"


class PlainProgress:
    """One line an event, with the time since the start and the time left."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._pace = Pace()
        self._started = time.monotonic()
        self._rows: Sequence[str] = ()
        self._left = ""

    def total(self, units: float) -> None:
        self._pace.plan(units)

    def advance(self, units: float) -> None:
        self._pace.done += units

    def status(self, text: str) -> None:
        """Nothing: a changing status has no place in a log."""

    def slots(self, rows: Sequence[str]) -> None:
        """Those that are new."""
        new = [row for row in rows if row not in self._rows]
        for row in new:
            self.line(f"training {row}")
        if new and self._pace.time_left != self._left:
            self._left = self._pace.time_left
            self.line(self._left)
        self._rows = rows

    def best(self, text: str) -> None:
        self.line(f"best so far: {text} ({self._pace.time_left})")

    def line(self, text: str) -> None:
        elapsed = _minutes(time.monotonic() - self._started)
        self._console.print(f"[{elapsed}] {masked(text)}", markup=False, highlight=False, soft_wrap=True)


class LiveProgress:
    """A bar with the time left, what every slot trains, what is being done, and the best so far."""

    def __init__(self, console: Console) -> None:
        self._pace = Pace()
        self._bar = Progress(
            TextColumn("[bold]search"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            expand=True,
        )
        self._task = self._bar.add_task("", total=None, left="")
        self._rows: Sequence[str] = ()
        self._status = ""
        self._best = ""
        self.live = Live(console=console, get_renderable=self._render, refresh_per_second=4)

    def total(self, units: float) -> None:
        self._pace.plan(units)
        self._bar.update(self._task, total=units)

    def advance(self, units: float) -> None:
        self._pace.done += units
        self._bar.update(self._task, completed=self._pace.done, left=self._pace.time_left)

    def status(self, text: str) -> None:
        self._status = text

    def slots(self, rows: Sequence[str]) -> None:
        self._rows = rows

    def best(self, text: str) -> None:
        self._best = f"best so far: {text}"

    def line(self, text: str) -> None:
        self.live.console.print(Text(masked(text)))

    def _render(self) -> Group:
        rows = [Text(f"  {row}", style="dim", no_wrap=True, overflow="ellipsis") for row in self._rows]
        status = [Text(self._status)] if self._status else []
        best = [Text(self._best, style="bold green")] if self._best else []
        return Group(*rows, *status, *best, self._bar)


class Part:
    """What one of several devices says: the display shows the slots of all, and what each is doing."""

    def __init__(self, display: packs.Progress, parts: Sequence["Part"], lock: RLock) -> None:
        self._display, self._parts, self._lock = display, parts, lock
        self._rows: Sequence[str] = ()
        self._status = ""

    def total(self, units: float) -> None:
        with self._lock:
            self._display.total(units)

    def advance(self, units: float) -> None:
        with self._lock:
            self._display.advance(units)

    def status(self, text: str) -> None:
        with self._lock:
            self._status = text
            numbered = enumerate(part._status for part in self._parts)
            self._display.status("; ".join(f"device {n}: {status}" for n, status in numbered if status))

    def slots(self, rows: Sequence[str]) -> None:
        with self._lock:
            self._rows = rows
            self._display.slots([row for part in self._parts for row in part._rows])

    def best(self, text: str) -> None:
        with self._lock:
            self._display.best(text)

    def line(self, text: str) -> None:
        with self._lock:
            self._display.line(text)


def parts_of(display: packs.Progress, number: int) -> list[Part]:
    """For each of so many devices, any of which may speak at any time."""
    parts: list[Part] = []
    lock = RLock()
    parts += [Part(display, parts, lock) for _ in range(number)]
    return parts


@contextmanager
def show_progress(console: Console) -> Iterator[LiveProgress | PlainProgress]:
    """The display that suits the console, cleared away at the end."""
    if not console.is_terminal or console.is_dumb_terminal:
        yield PlainProgress(console)
        return
    progress = LiveProgress(console)
    with progress.live:
        yield progress


@contextmanager
def paused(display: packs.Progress) -> Iterator[None]:
    """A live display makes room for a question; it does not come back after an error."""
    if isinstance(display, LiveProgress):
        display.live.transient = True
        display.live.stop()
        display.live.transient = False
    yield
    if isinstance(display, LiveProgress):
        display.live.start()


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
