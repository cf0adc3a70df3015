"""How a winner was chosen: what the search saw, what chose, what is reported, and what the choice cost."""

from typing import NamedTuple

from bench.run import Candidate, Result, Run
from bench.scoring.measure import gain_between
from bench.scoring.metrics import METRICS, Score, best
from reports.tables import kind_of, ranked
from reports.verdict import winner_of
from reports.wording import MISSING, model_name, plus_minus, trial_name


class Gain(NamedTuple):
    """A gain over the base on the same prompts and seeds, with its standard error."""

    value: float
    stderr: float

    @property
    def text(self) -> str:
        return plus_minus(self.value, self.stderr, signed=True)


class ChoiceRow(NamedTuple):
    """Three measurements of one candidate, as gains over the base so that prompts are comparable."""

    title: str
    kind: str
    searched: Gain | None
    """One training, dev prompts."""
    search_epochs: int | None
    retrained: Gain | None
    """Fresh trainings, dev prompts: the winner and its epochs were chosen by these."""
    confirmed: Gain | None
    """The same trainings, test prompts."""
    epochs: int

    @property
    def faded(self) -> str:
        """What is left of the search's gain on the test prompts, less that gain."""
        if self.searched is None or self.confirmed is None:
            return MISSING
        stderr = (self.searched.stderr**2 + self.confirmed.stderr**2) ** 0.5
        return plus_minus(self.confirmed.value - self.searched.value, stderr, signed=True)


class Regret(NamedTuple):
    """How much the candidate that is best on the test prompts beats the chosen one there."""

    label: str
    value: float
    stderr: float

    def sentence(self, won: Candidate) -> str:
        if self.label == won.label:
            return (
                f"The choice cost nothing that shows: {trial_name(won.label)} "
                "is also the best on the test prompts. Regret 0."
            )
        return (
            f"On the test prompts {trial_name(self.label)} scores better than {trial_name(won.label)}, "
            f"which was chosen. Regret {plus_minus(self.value, self.stderr)}."
        )


def rows(result: Result) -> list[ChoiceRow]:
    """The default first, then finalists from the best on the test prompts down."""
    return [_row(candidate, result) for candidate in ranked(result)]


def regret(run: Run, result: Result) -> Regret:
    """0 where the winner is the best; never negative."""
    name = result.select_by
    found = best(result.candidates, name, lambda candidate: candidate.scores[name].value)
    won = winner_of(result)
    if found.label == won.label:
        return Regret(won.label, 0.0, 0.0)
    sides = [run.evaluations(candidate, "test") for candidate in (found, won)]
    if not all(sides):
        return Regret(found.label, abs(found.scores[name].value - won.scores[name].value), 0.0)
    difference, stderr = gain_between(*sides)[name]
    return Regret(found.label, METRICS[name].sign * difference, stderr)


def _row(candidate: Candidate, result: Result) -> ChoiceRow:
    name, epochs = result.select_by, candidate.config.epochs
    return ChoiceRow(
        title=model_name(candidate.label),
        kind=kind_of(candidate, result),
        searched=gain_of(candidate.search.get(name)),
        search_epochs=candidate.search_epochs,
        retrained=gain_of(candidate.by_epoch.get(epochs, {}).get(name)),
        confirmed=gain_of(candidate.scores.get(name)),
        epochs=epochs,
    )


def gain_of(score: Score | None) -> Gain | None:
    """None where the base was not measured."""
    if score is None or score.gain is None or score.gain_stderr is None:
        return None
    return Gain(score.gain, score.gain_stderr)
