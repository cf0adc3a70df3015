"""How long to train: scores of the retrainings against epochs, on the dev prompts."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from bench.run import Candidate, Result
from bench.scoring.metrics import METRICS, Score
from reports.figures import EpochLine
from reports.tables import kind_of, ranked
from reports.wording import model_name

Scores = Mapping[str, Score]
MEMORY = ("nearest", "copies")


class Checkpoints(NamedTuple):
    lines: list[EpochLine]
    epochs: list[int]
    """Every number of epochs at which any of them was scored."""
    warnings: list[str]
    """Where training on only made things worse, in sentences."""


def checkpoints(result: Result) -> Checkpoints | None:
    """None where no candidate was scored at more than one epoch: there is nothing to choose then."""
    lines = [line for candidate in ranked(result) if (line := _line(candidate, result))]
    epochs = sorted({epoch for line in lines for epoch in line.epochs})
    if len(epochs) < 2:
        return None
    warnings = []
    for candidate in ranked(result):
        after = overtrained_after(candidate.by_epoch, result.select_by)
        if after is not None:
            warnings.append(_warning(model_name(candidate.label), after, candidate.config.epochs))
    return Checkpoints(lines, epochs, warnings)


def overtrained_after(by_epoch: Mapping[int, Scores], select_by: str) -> int | None:
    """The first epoch after which memorisation rises and diversity falls while `select_by` does not gain.

    From it to the next scored epoch `nearest` or `copies` rises by more than its standard error,
    `diversity` is lower, and `select_by` is not better by more than its standard error.
    """
    epochs = sorted(by_epoch)
    for epoch, following in zip(epochs, epochs[1:], strict=False):
        before, after = by_epoch[epoch], by_epoch[following]
        memorises = any(_step(name, before, after) < -1 for name in MEMORY)
        if memorises and _step("diversity", before, after) < 0 and _step(select_by, before, after) <= 1:
            return epoch
    return None


def _step(name: str, before: Scores, after: Scores) -> float:
    """By how many standard errors a metric gets better; NaN where it was not measured.

    Gains over the base are compared where there are any: how hard the prompts are is not in them.
    """
    if name not in before or name not in after:
        return math.nan
    (value, stderr), (later, later_stderr) = _measured(before[name]), _measured(after[name])
    change, error = METRICS[name].sign * (later - value), math.hypot(stderr, later_stderr)
    return change / error if error > 0 else math.copysign(math.inf, change) if change else 0.0


def _measured(score: Score) -> tuple[float, float]:
    if score.gain is not None and score.gain_stderr is not None:
        return score.gain, score.gain_stderr
    return score.value, score.stderr


def _line(candidate: Candidate, result: Result) -> EpochLine | None:
    found = {epoch: scores[result.select_by] for epoch, scores in sorted(candidate.by_epoch.items())}
    if not found:
        return None
    return EpochLine(
        title=model_name(candidate.label),
        kind=kind_of(candidate, result),
        chosen=candidate.config.epochs,
        epochs=list(found),
        values=[score.value for score in found.values()],
        stderrs=[score.stderr for score in found.values()],
    )


def _warning(title: str, after: int, chosen: int) -> str:
    used = "it was stopped there" if chosen == after else f"{chosen} epochs are used"
    used = "it was stopped before that" if chosen < after else used
    noun = "epoch" if after == 1 else "epochs"
    return f"{title}: after {after} {noun} it memorises more and varies less without getting better; {used}."
