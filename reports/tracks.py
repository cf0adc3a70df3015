"""Differences drawn as intervals beside the noise floor: without JavaScript."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from bench.comparison import MetricComparison
from bench.scoring.metrics import METRICS


class Track(NamedTuple):
    """Places in percent of the width, from the left; right is better."""

    zero: float
    mean: float
    low: float
    high: float
    floor: tuple[float, float] | None
    """Both ends of the noise floor, around 0."""


def tracks(rows: Sequence[MetricComparison]) -> list[Track]:
    """One a comparison; those of one metric are drawn on one scale."""
    ends: dict[str, list[float]] = {}
    for row in rows:
        floor = [-row.floor, row.floor] if row.floor is not None else []
        ends.setdefault(row.metric, [0.0]).extend([*_ends(row), *floor])
    return [_track(row, min(ends[row.metric]), max(ends[row.metric])) for row in rows]


def _track(row: MetricComparison, low: float, high: float) -> Track:
    def place(value: float) -> float:
        return round(4 + 92 * (value - low) / ((high - low) or 1.0), 2)

    worst, best = _ends(row)
    floor = (place(-row.floor), place(row.floor)) if row.floor is not None else None
    return Track(place(0.0), place(METRICS[row.metric].sign * row.mean), place(worst), place(best), floor)


def _ends(row: MetricComparison) -> tuple[float, float]:
    """Of the interval, the worse end first; of one prompt there is no interval."""
    sign = METRICS[row.metric].sign
    low, high = sorted(sign * (end if math.isfinite(end) else row.mean) for end in (row.low, row.high))
    return low, high
