"""How far a run has come, in one word."""

from typing import Literal, get_args

from bench.lock import is_locked
from bench.run import Run

State = Literal["finished", "running", "unfinished", "failed", "empty"]
STATES: tuple[State, ...] = get_args(State)
"""finished: it has a result; running: a process works on it; failed: all that was tried has failed; empty:
nothing was tried; unfinished: interrupted, or never meant to be searched to the end."""


def state_of(run: Run) -> State:
    """Of a run folder, as it is now."""
    if is_locked(run.path):
        return "running"
    if (run.path / "result.json").exists():
        return "finished"
    states = {trial.state for trial in run.trials()}
    if not states:
        return "empty"
    return "failed" if states == {"failed"} else "unfinished"
