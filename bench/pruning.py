"""Pruning: which trials stop at a rung because nearly all others were better there.

Gentle on purpose: early scores are uncertain. Optuna's own pruners know one objective only.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from bench.pareto import Point, rank_of
from bench.scoring.metrics import METRICS, Direction
from bench.space import Prune, SearchSpace


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """A trial among all that were scored at the same epoch."""

    epoch: int
    rank: int
    """1 is the best."""
    of: int

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.of} at epoch {self.epoch}"


class Standings:
    """Scores of all trials at every rung, and the rule by which the last of them stop."""

    def __init__(self, space: SearchSpace) -> None:
        self._prune = space.prune
        self._criteria = [*space.objectives, *(["held_out_loss"] if space.prune.held_out_loss else [])]
        self._directions: list[Direction] = [METRICS[name].direction for name in self._criteria]
        self._column = space.objectives.index(space.select_by)
        self._points: dict[int, dict[str, Point]] = {}

    def add(self, label: str, epoch: int, scores: Mapping[str, float]) -> None:
        """What trial `label` scored at an epoch."""
        values = tuple(scores[name] for name in self._criteria)
        self._points.setdefault(epoch, {})[label] = Point(label=label, epochs=epoch, values=values)

    def stops(self, label: str, epoch: int) -> Standing | None:
        """How the trial stands if it is among the last and no control; None if it goes on."""
        points = self._points[epoch]
        if len(points) < self._prune.after or is_control(int(label), self._prune):
            return None
        rank = rank_of(points[label], list(points.values()), self._directions, self._column)
        standing = Standing(epoch=epoch, rank=rank, of=len(points))
        most = math.floor(len(points) * self._prune.fraction)
        return standing if rank > len(points) - most else None


def is_control(number: int, prune: Prune) -> bool:
    """Whether the trial of that number goes on whatever its rank: evenly spread, the same in every search."""
    return math.floor((number + 1) * prune.controls) > math.floor(number * prune.controls)
