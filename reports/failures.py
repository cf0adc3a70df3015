"""What failed, and of what."""

from typing import NamedTuple

from bench.run import Run
from reports.cards import page_of
from reports.wording import trial_name


class Failure(NamedTuple):
    """Trainings that ended for the same reason."""

    reason: str
    trials: list[tuple[str, str | None]]
    """Name, and the page of a trial of the search."""


def failures(run: Run) -> list[Failure]:
    """The most frequent reason first."""
    found: dict[str, list[tuple[str, str | None]]] = {}
    for record in run.trials():
        if record.state == "failed":
            reason = record.reason or "no reason recorded"
            found.setdefault(reason, []).append((trial_name(record.label), page_of(record.label)))
    for record in run.confirmations():
        if record.state == "failed":
            reason = record.reason or "no reason recorded"
            found.setdefault(reason, []).append((f"retraining {record.label}", None))
    return sorted((Failure(*entry) for entry in found.items()), key=lambda entry: -len(entry.trials))
