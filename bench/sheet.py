"""Sheet: the checkpoints of one training at several weights, scored on dev prompts -> the recommended one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.errors import TrialError
from bench.run import Evaluation, Run, adapter_label, has_evaluation, read_evaluation
from bench.scoring.metrics import METRICS, Score, best
from bench.scoring.statistics import ALPHA, holm, paired_test
from bench.series import Checkpoint, Series


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Entry:
    """A checkpoint at one weight."""

    checkpoint: Checkpoint
    weight: float
    label: str
    """Of its folder in the run."""
    evaluation: Evaluation
    """On the dev prompts."""

    @property
    def scores(self) -> dict[str, Score]:
        return self.evaluation.scores


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Sheet:
    """One training at every weight."""

    series: Series
    weights: tuple[float, ...]
    """Ascending."""
    select_by: str
    entries: tuple[Entry, ...]
    """Checkpoint by checkpoint, weight by weight; without those that are refused."""
    refused: tuple[str, ...]
    """What was not scored, with the reason."""
    best: Entry
    """By `select_by`: what is recommended."""
    as_good: tuple[Entry, ...]
    """Others that these prompts do not tell apart from it."""

    def entry(self, checkpoint: Checkpoint, weight: float) -> Entry | None:
        """None if it is refused."""
        found = (e for e in self.entries if (e.checkpoint, e.weight) == (checkpoint, weight))
        return next(found, None)

    @property
    def name(self) -> str:
        """Of what is recommended, weight included."""
        return f"{self.series.name}, {self.title(self.best)}"

    def title(self, entry: Entry) -> str:
        """`epoch 4 at 0.7`, or `weight 0.7` where there is one checkpoint only."""
        alone = len(self.series.checkpoints) == 1
        return f"weight {entry.weight:g}" if alone else f"{entry.checkpoint.title} at {entry.weight:g}"


def read_sheet(run: Run, series: Series, refused: Mapping[Path, str]) -> Sheet:
    """What the run holds of a series at the weights of its space.

    `refused` says of folders of evaluations why they are not there. Raises TrialError if none is.
    """
    weights = tuple(sorted(run.space.weights))
    wanted = [(checkpoint, weight) for checkpoint in series.checkpoints for weight in weights]
    found = [_entry(run, checkpoint, weight) for checkpoint, weight in wanted]
    entries = [entry for entry in found if entry]
    missing = [pair for pair, entry in zip(wanted, found, strict=True) if entry is None]
    reasons = [_reason(run, checkpoint, weight, refused) for checkpoint, weight in missing]
    if not entries:
        raise TrialError(reasons[0])
    select_by = run.space.select_by
    winner = best(entries, select_by, lambda entry: entry.scores[select_by].value)
    return Sheet(
        series=series,
        weights=weights,
        select_by=select_by,
        entries=tuple(entries),
        refused=tuple(reasons),
        best=winner,
        as_good=_as_good(winner, [entry for entry in entries if entry is not winner], select_by),
    )


def _entry(run: Run, checkpoint: Checkpoint, weight: float) -> Entry | None:
    label = adapter_label(checkpoint.digest, weight)
    folder = run.adapter_folder(label) / "dev"
    if not has_evaluation(folder):
        return None
    return Entry(checkpoint=checkpoint, weight=weight, label=label, evaluation=read_evaluation(folder))


def _reason(run: Run, checkpoint: Checkpoint, weight: float, refused: Mapping[Path, str]) -> str:
    folder = run.adapter_folder(adapter_label(checkpoint.digest, weight)) / "dev"
    return f"{checkpoint.file} at {weight:g}: cannot be scored: {refused.get(folder, 'it is lost')}"


def _as_good(found: Entry, others: Sequence[Entry], select_by: str) -> tuple[Entry, ...]:
    """Of a metric that is paired prompt by prompt; p-values are corrected (Holm) for all that lost to it.

    The winner is the luckiest too: others are told apart from it a little more often than they should be.
    """
    if not METRICS[select_by].paired or not others:
        return ()
    mine = found.evaluation.per_prompt[select_by]
    tests = [
        paired_test([a - b for a, b in zip(mine, other.evaluation.per_prompt[select_by], strict=True)])
        for other in others
    ]
    adjusted = holm([test.p_value for test in tests])
    return tuple(other for other, p_value in zip(others, adjusted, strict=True) if not p_value < ALPHA)
