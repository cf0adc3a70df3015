"""Progress of one training: a bar on a terminal, plain lines where output goes to a file or a pipe."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

SMOOTHED = 50
"""Steps whose mean loss is shown: that of one step says little."""
LINE_EVERY = 10.0
"""Seconds between plain lines."""


class Pace:
    """Steps done here, by the clock; the first, which prepare, tell nothing of those to come."""

    def __init__(self, step: int, all_steps: int) -> None:
        self._begin, self._all = step, all_steps
        self._started = time.monotonic()
        self._is_warm = False

    def describe(self, step: int, losses: Sequence[float], rate: float) -> str:
        """Loss, learning rate, steps a second and time left."""
        last = losses[-SMOOTHED:]
        speed = (step - self._begin) / max(time.monotonic() - self._started, 1e-9)
        known = self._is_warm or step == self._all
        left = f"{_clock((self._all - step) / max(speed, 1e-9))} left" if known else "time left not known yet"
        if not self._is_warm and step > self._begin:
            self._begin, self._started, self._is_warm = step, time.monotonic(), True
        return f"loss {sum(last) / max(1, len(last)):.4f}  rate {rate:.2g}  {speed:.2f} it/s  {left}"


class TrainingProgress(Protocol):
    """Told after each few steps."""

    def update(self, step: int, losses: Sequence[float], rate: float) -> None:
        """`losses` of all steps so far."""

    def line(self, text: str) -> None:
        """Something that happened, to stay on the screen."""


class PlainLines:
    """A line every ten seconds, and one at the end."""

    def __init__(self, console: Console, step: int, all_steps: int) -> None:
        self._console, self._all = console, all_steps
        self._pace = Pace(step, all_steps)
        self._said = time.monotonic()

    def update(self, step: int, losses: Sequence[float], rate: float) -> None:
        if step == self._all or time.monotonic() - self._said >= LINE_EVERY:
            self._said = time.monotonic()
            self.line(f"step {step}/{self._all}  {self._pace.describe(step, losses, rate)}")

    def line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class Bar:
    """A bar that stays on its line."""

    def __init__(self, bar: Progress, step: int, all_steps: int) -> None:
        self._bar = bar
        self._pace = Pace(step, all_steps)
        self._task = bar.add_task("", total=all_steps, completed=step, said="")

    def update(self, step: int, losses: Sequence[float], rate: float) -> None:
        self._bar.update(self._task, completed=step, said=self._pace.describe(step, losses, rate))

    def line(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def show_training(console: Console, step: int, all_steps: int) -> Iterator[TrainingProgress]:
    """The display that suits the console, of a training that begins, or goes on, at `step`."""
    if not console.is_terminal:
        yield PlainLines(console, step, all_steps)
        return
    with Progress(
        TextColumn("[bold]train"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[said]}"),
        console=console,
        expand=True,
    ) as bar:
        yield Bar(bar, step, all_steps)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
