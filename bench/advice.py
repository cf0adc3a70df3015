"""Advice: what the numbers of a run point at, each with the number that shows it and what to do next.

Nothing here decides anything. A number counts where it is beyond chance: two standard errors.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from bench.check import NUM_PICTURES
from bench.config import TrialConfig
from bench.run import Result, Run, read_losses
from bench.scoring.memorization import alarms
from bench.scoring.metrics import METRICS, Score
from bench.scoring.preservation import MARGIN, preserved

SURE = 2.0
"""Standard errors."""
NARROW = 0.75
"""Of the base's diversity: a style narrows what is drawn, so only a fall below this is told."""
MIN_STEPS = 20
"""Steps from which a course of losses can be seen."""
FEWEST_HELD_OUT = 6
"""Of fewer, not even a gain on every one is beyond chance: a sign test at 5 %."""
MEMORY, DIVERGED, UNCHANGED = "out of memory", ("no longer finite", "flat colour"), "changes nothing"
"""In the reasons that records give."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A training that failed, or an adapter that could not be scored."""

    reason: str
    config: TrialConfig | None = None
    """Not known of a file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Observed:
    """What is known of a search, or of an adapter that `bench score` recommends."""

    select_by: str
    num_images: Mapping[str, int]
    """`train`, `dev` and `test`."""
    num_tried: int
    failures: Sequence[Failure] = ()
    scores: Mapping[str, Score] = field(default_factory=dict)
    """On the test prompts and probes, of what is recommended; none yet if empty."""
    seed_spread: Mapping[str, float] = field(default_factory=dict)
    num_trainings: int = 1
    losses: Sequence[float] = ()
    """Of every step of one training of it, if they are known."""


class Finding(NamedTuple):
    """One trouble."""

    kind: str
    title: str
    evidence: str
    step: str
    """What to do next."""


def advise(seen: Observed) -> list[Finding]:
    """The troubles that show, those that stop a training first; empty if nothing stands out."""
    return [*_failed(seen), *_learned(seen), *_overfitted(seen), *_narrowed(seen), *_obeys(seen), *_few(seen)]


def of_search(run: Run, result: Result | None) -> Observed:
    """What a search in any state has shown."""
    records = [*run.trials(), *run.confirmations()]
    failed = [
        Failure(reason=record.reason or "", config=record.config)
        for record in records
        if record.state == "failed"
    ]
    seen = Observed(
        select_by=run.space.select_by,
        num_images=run.metadata.num_images,
        num_tried=len(records),
        failures=failed,
    )
    won = result.candidate(result.winner) if result else None
    if won is None:
        return seen
    return replace(
        seen,
        scores=won.scores,
        seed_spread=won.seed_spread,
        num_trainings=len(won.records),
        losses=list(read_losses(run.path / "confirm" / won.records[0])["loss"]),
    )


def _failed(seen: Observed) -> Iterator[Finding]:
    memory = [failure for failure in seen.failures if MEMORY in failure.reason.lower()]
    diverged = [f for f in seen.failures if any(sign in f.reason for sign in DIVERGED)]
    unchanged = [failure for failure in seen.failures if UNCHANGED in failure.reason]
    if memory:
        yield Finding(
            "memory",
            "Out of memory",
            f"{len(memory)} of {seen.num_tried} failed for want of memory",
            "Give dtype: bfloat16, then a lower resolution, then lower ranks; end what else holds memory.",
        )
    if diverged:
        rates = [failure.config.learning_rate for failure in diverged if failure.config]
        lowest = f", the lowest learning rate of them {min(rates):g}" if rates else ""
        yield Finding(
            "divergence",
            "Divergence",
            f"{len(diverged)} of {seen.num_tried} ended in values that are not finite or flat images{lowest}",
            "Search lower values of learning_rate, or give warmup_steps; draw files at lower weights.",
        )
    if unchanged:
        yield Finding(
            "unchanged",
            "No effect",
            f"{len(unchanged)} of {seen.num_tried} drew exactly the base's images",
            "Search higher values of learning_rate or more epochs; see that a file is of this base.",
        )


def _learned(seen: Observed) -> Iterator[Finding]:
    score = seen.scores.get(seen.select_by)
    if score is None or score.gain is None or score.gain_stderr is None:
        return
    metric = METRICS[seen.select_by]
    gain, evidence = metric.sign * score.gain, f"{metric.label}: {_gain(score)} over the base"
    if gain < -SURE * score.gain_stderr:
        yield Finding(
            "worse",
            "Worse than the base",
            evidence,
            "Train with a lower learning_rate or fewer epochs, or draw at a lower weight; see that captions "
            "and pictures belong together: bench data check.",
        )
    elif gain <= SURE * score.gain_stderr:
        course = _course(seen.losses)
        yield Finding(
            "nothing-learned",
            "Little was learned",
            f"{evidence}{f'; {course}' if course else ''}",
            "Search higher values of learning_rate, more epochs or more target_modules; look at pictures and "
            "captions: bench data check.",
        )


def _course(losses: Sequence[float]) -> str:
    """Whether the training loss fell, in words; empty where too few steps tell."""
    if len(losses) < MIN_STEPS:
        return ""
    first, last = np.array_split(np.asarray(losses, np.float64), 2)
    stderr = math.hypot(*(half.std(ddof=1) / math.sqrt(len(half)) for half in (first, last)))
    change = float(last.mean() - first.mean())
    said = "fell" if change < -SURE * stderr else "rose" if change > SURE * stderr else "did not fall"
    return f"the training loss {said}, by halves {first.mean():.3g} and {last.mean():.3g}"


def _overfitted(seen: Observed) -> Iterator[Finding]:
    found = alarms(seen.scores, seen.num_images.get("test"))
    if found:
        yield Finding(
            "over-fitting",
            "Over-fitting",
            "; ".join(found),
            "Look at the pairs of images and training pictures; then fewer epochs, a lower rank, more "
            "pictures, or a lower weight.",
        )


def _narrowed(seen: Observed) -> Iterator[Finding]:
    score = seen.scores.get("diversity")
    if score is None or score.gain is None or score.gain_stderr is None:
        return
    before = score.value - score.gain
    if score.gain < -SURE * score.gain_stderr and score.value < NARROW * before:
        yield Finding(
            "low-diversity",
            "Low diversity",
            f"diversity {score.value:.3f}, the base's {before:.3f}",
            "Train fewer epochs, draw at a lower weight, and caption what differs between the pictures.",
        )


def _obeys(seen: Observed) -> Iterator[Finding]:
    clip, rest = seen.scores.get("clip_score"), seen.scores.get("clip_change")
    told = clip is not None and clip.gain is not None and clip.gain_stderr is not None
    evidence = []
    if clip and told and clip.gain < -max(MARGIN, SURE * clip.gain_stderr):  # type: ignore[operator]
        evidence.append(f"CLIP score of test prompts {_gain(clip)} over the base")
    if rest and rest.num_prompts > 1:
        spread = seen.seed_spread.get("clip_change", math.nan)
        kept = preserved(rest, spread, seen.num_trainings)
        if kept.verdict == "lost":
            evidence.append(f"CLIP score of unrelated prompts {rest.value:+.4f} ± {rest.stderr:.4f}")
    if evidence:
        yield Finding(
            "disobedience",
            "Prompts are followed less",
            "; ".join(evidence),
            "Train fewer epochs or with caption_dropout, draw at a lower weight, and say more in captions.",
        )


def _few(seen: Observed) -> Iterator[Finding]:
    advised = {"train": NUM_PICTURES[0], "dev": FEWEST_HELD_OUT, "test": FEWEST_HELD_OUT}
    short = [
        f"{seen.num_images[name]} in {name} (at least {least} are advised)"
        for name, least in advised.items()
        if seen.num_images.get(name, least) < least
    ]
    if short:
        yield Finding(
            "few-pictures",
            "Few pictures",
            ", ".join(short),
            "Add pictures, different in all that shall not be learned; bench data check says which are poor.",
        )


def _gain(score: Score) -> str:
    return f"{score.gain:+.4f} ± {score.gain_stderr:.4f}"
