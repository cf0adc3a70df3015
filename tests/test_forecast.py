"""How long a search will take, in words, and when that is worth a question."""

import io
import os
import pty
from dataclasses import replace

import pytest
import typer
from rich.console import Console

from bench import cli
from bench.forecast import Forecast
from reports.forecast import is_long, sentence

SHORT = Forecast(num_trials=12, trial_seconds=30.0, confirm_seconds=240.0)
LONG = Forecast(num_trials=100, trial_seconds=60.0, confirm_seconds=1200.0)


def test_all_that_is_left_is_added_up() -> None:
    assert SHORT.seconds == 600.0
    assert [SHORT.num_within(budget) for budget in (0, 240, 300, 1e6)] == [0, 0, 2, 12]


@pytest.mark.parametrize(
    ("found", "budget", "said"),
    [
        (
            SHORT,
            None,
            "Estimate: about 10 min: 12 trials, about 30 s each, and about 4 min to confirm the best.",
        ),
        (SHORT, 1200.0, "about 4 min to confirm the best."),
        (SHORT, 420.0, "That is more than the budget of 7 min: 6 trials fit."),
        (SHORT, 200.0, "no more than the first trials fit, if they do."),
        (replace(SHORT, spent=300.0), 720.0, "more than what is left of the budget, 7 min: 6 trials fit."),
        (
            Forecast(num_trials=0, trial_seconds=30.0, confirm_seconds=60.0),
            None,
            "Estimate: about 60 s: about 60 s to confirm the best.",
        ),
    ],
)
def test_it_is_said_in_words(found: Forecast, budget: float | None, said: str) -> None:
    assert sentence(found, budget).endswith(said)


def test_what_is_long_depends_on_the_budget() -> None:
    assert [is_long(SHORT, budget) for budget in (None, 599.0, 601.0)] == [False, True, False]
    assert [is_long(LONG, budget) for budget in (None, 600.0, 7201.0)] == [True, True, False]


class Terminal:
    """A real terminal as standard input, at which somebody types."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, typed: str) -> None:
        ours, theirs = pty.openpty()
        os.write(ours, typed.encode())
        self.stdin = os.fdopen(theirs)
        self._ours = ours
        monkeypatch.setattr("sys.stdin", self.stdin)

    def close(self) -> None:
        self.stdin.close()
        os.close(self._ours)


@pytest.mark.parametrize(
    ("typed", "found", "yes", "goes_on"),
    [
        ("n\n", LONG, False, False),
        ("y\n", LONG, False, True),
        ("\n", LONG, False, True),
        ("n\n", LONG, True, True),
        ("n\n", SHORT, False, True),
    ],
)
def test_it_asks_on_a_terminal_if_it_is_long(
    monkeypatch: pytest.MonkeyPatch, typed: str, found: Forecast, yes: bool, goes_on: bool
) -> None:
    terminal = Terminal(monkeypatch, typed)
    try:
        assert _told(found, yes) == (goes_on, True)
    finally:
        terminal.close()


def test_it_never_asks_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert _told(LONG, False) == (True, True)


def _told(found: Forecast, yes: bool) -> tuple[bool, bool]:
    """Whether the search goes on, and whether the estimate was said."""
    console = Console(file=io.StringIO(), width=200)
    command = cli.command_of("smoke", {}, None, 0, console)
    try:
        cli._asks(command, yes)(found)
        went_on = True
    except typer.Exit as exit_:
        assert exit_.exit_code == 1
        went_on = False
    return went_on, sentence(found, None) in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_budget_is_in_seconds() -> None:
    """A budget of the space counts as one of the command line."""
    command = cli.command_of("smoke", {"budget": "10m"}, None, 0, Console(file=io.StringIO()))
    assert command.space.budget == 600.0
