"""Differences drawn as intervals on one scale, beside the noise floor: without JavaScript."""

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
    """One a comparison, all on the scale of the widest."""
    ends = [0.0]
    for row in rows:
        ends += [*_ends(row), *([-row.floor, row.floor] if row.floor is not None else [])]
    low, span = min(ends), (max(ends) - min(ends)) or 1.0

    def place(value: float) -> float:
        return round(4 + 92 * (value - low) / span, 2)

    found = []
    for row in rows:
        worst, best = _ends(row)
        floor = (place(-row.floor), place(row.floor)) if row.floor is not None else None
        mean = METRICS[row.metric].sign * row.mean
        found.append(Track(place(0.0), place(mean), place(worst), place(best), floor))
    return found


def _ends(row: MetricComparison) -> tuple[float, float]:
    """Of the interval, the worse end first; of one prompt there is no interval."""
    sign = METRICS[row.metric].sign
    low, high = sorted(sign * (end if math.isfinite(end) else row.mean) for end in (row.low, row.high))
    return low, high
