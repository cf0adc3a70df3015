"""Which points of a search are worth retraining, and how all of them rank."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.scoring.metrics import Direction


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A trial at one of its epochs, with its objectives."""

    label: str
    epochs: int
    values: tuple[float, ...]


def non_dominated(points: Sequence[Point], directions: Sequence[Direction]) -> list[Point]:
    """Points that no other point beats in one objective without losing in another."""
    return [p for p in points if not any(_dominates(other, p, directions) for other in points)]


def finalists(
    points: Sequence[Point], directions: Sequence[Direction], column: int, num_finalists: int
) -> list[Point]:
    """The best non-dominated points by objective `column`, at most one of each trial."""
    sign = -1 if directions[column] == "maximize" else 1
    ranked = sorted(non_dominated(points, directions), key=lambda point: sign * point.values[column])
    best: dict[str, Point] = {}
    for point in ranked:
        best.setdefault(point.label, point)
    return list(best.values())[:num_finalists]


def rank_of(point: Point, points: Sequence[Point], directions: Sequence[Direction], column: int) -> int:
    """1 + the points that are better than `point`, one of `points`: in an earlier front, or in the same front
    and better in objective `column`.

    Fronts as of non-dominated sorting, Deb et al. 2002 (NSGA-II): the first holds what nothing dominates, the
    next what nothing dominates once those are gone.
    """
    signs = np.array([1 if direction == "maximize" else -1 for direction in directions])
    values = np.array([p.values for p in points]) * signs
    front, goodness = _fronts(values), values[:, column]
    own = list(points).index(point)
    better = (front < front[own]) | ((front == front[own]) & (goodness > goodness[own]))
    return 1 + int(better.sum())


def _fronts(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Number of the front of each row of values (n, objectives), higher being better; 0 is the first."""
    a, b = values[:, None], values[None]
    dominates: NDArray[np.bool_] = np.all(a >= b, axis=2) & np.any(a > b, axis=2)
    front, number = np.full(len(values), -1), 0
    while -1 in front:
        left = front < 0
        front[left & ~dominates[left].any(axis=0)] = number
        number += 1
    return front


def _dominates(a: Point, b: Point, directions: Sequence[Direction]) -> bool:
    signs = [1 if direction == "maximize" else -1 for direction in directions]
    differences = [s * (x - y) for s, x, y in zip(signs, a.values, b.values, strict=True)]
    return min(differences) >= 0 and max(differences) > 0
