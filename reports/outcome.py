"""What a run came to, in few numbers: for lists of runs, and for programs.

`bench search --json` prints schema_version (1), these keys, and where the `report` is; what is not known is
null.

    name, path, state                       finished, running, unfinished, failed, empty (reports/state.py),
                                            damaged or foreign
    problem                                 why it cannot be read
    base, data, select_by, created          what was searched, by which metric; ISO 8601, UTC
    trials_done, trials_wanted, seconds     seconds of the whole search, of a finished one
    headline                                the verdict in a sentence
    winner                                  `default`, or the number of a trial such as 0007
    gain, stderr, verdict                   of the winner over the default: WIN, TIE or LOSS
    gain_over_base, stderr_over_base, verdict_over_base
    bytes                                   on disk
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from bench.comparison import Comparison
from bench.errors import BenchError, one_line
from bench.listing import Listed, size_of
from bench.run import Result, Run
from reports.state import state_of
from reports.trials import read_points
from reports.verdict import Contests, contests, verdict, winner_of


class Lead(NamedTuple):
    """The winner less another, in the metric that the search selects by."""

    gain: float | None
    """None where it cannot be tested."""
    stderr: float | None
    verdict: str
    """WIN, TIE or LOSS."""


class Outcome(NamedTuple):
    """Of one folder among the runs; the last fields are those of a run that can be read."""

    name: str
    path: Path
    state: str
    size: int
    """Bytes."""
    problem: str = ""
    run: Run | None = None
    trials_done: int = 0
    headline: str = ""
    result: Result | None = None
    over_default: Lead | None = None
    over_base: Lead | None = None

    @property
    def winner(self) -> str | None:
        return winner_of(self.result).label if self.result else None


def outcome_of(listed: Listed) -> Outcome:
    """Never raises for a folder that is damaged: its outcome says so."""
    path, size = listed.path, size_of(listed.path)
    if listed.run is None:
        state = "foreign" if listed.is_foreign else "damaged"
        return Outcome(path.name, path, state, size, listed.problem)
    try:
        return _read(listed.run, size)
    except (BenchError, OSError) as error:
        return Outcome(path.name, path, "damaged", size, one_line(error))


def outcome(run: Run) -> Outcome:
    """Raises UsageError for a file of the run that is damaged."""
    return _read(run, size_of(run.path))


def _read(run: Run, size: int) -> Outcome:
    trials, result = run.trials(), run.result()
    found = contests_of_winner(run, result) if result else None
    points = [] if result else read_points(run)
    won = found.over_base.get(winner_of(result).label) if found and result else None
    state = state_of(run)
    return Outcome(
        name=run.metadata.name,
        path=run.path,
        state=state,
        size=size,
        run=run,
        trials_done=sum(trial.state != "running" for trial in trials),
        headline=verdict(run, result, points, found, is_running=state == "running").headline,
        result=result,
        over_default=_lead(found.over_default if found else None),
        over_base=_lead(won),
    )


def contests_of_winner(run: Run, result: Result) -> Contests:
    """Those that decide the verdict, without those of other finalists."""
    labels = {"default", winner_of(result).label}
    kept = tuple(candidate for candidate in result.candidates if candidate.label in labels)
    return contests(run, replace(result, candidates=kept))


def _lead(comparison: Comparison | None) -> Lead | None:
    if comparison is None:
        return None
    main = comparison.main
    return Lead(main.mean if main else None, main.stderr if main else None, comparison.verdict)


def outcome_json(found: Outcome) -> dict[str, Any]:
    """Plain data; its keys are those above."""
    run, result = found.run, found.result
    metadata = run.metadata if run else None
    return {
        "name": found.name,
        "path": str(found.path),
        "state": found.state,
        "problem": found.problem or None,
        "base": metadata and metadata.base,
        "data": metadata and metadata.data,
        "select_by": run and run.space.select_by,
        "created": metadata and metadata.created,
        "trials_done": found.trials_done if run else None,
        "trials_wanted": run and run.space.trials,
        "seconds": result and result.seconds,
        "headline": found.headline or None,
        "winner": found.winner,
        **_lead_json(found.over_default, ""),
        **_lead_json(found.over_base, "_over_base"),
        "bytes": found.size,
    }


def _lead_json(lead: Lead | None, suffix: str) -> dict[str, Any]:
    values = lead._asdict() if lead else dict.fromkeys(Lead._fields)
    return {f"{key}{suffix}": value for key, value in values.items()}
