"""Which points of a search are worth retraining."""

from collections.abc import Sequence
from dataclasses import dataclass

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


def _dominates(a: Point, b: Point, directions: Sequence[Direction]) -> bool:
    signs = [1 if direction == "maximize" else -1 for direction in directions]
    differences = [s * (x - y) for s, x, y in zip(signs, a.values, b.values, strict=True)]
    return min(differences) >= 0 and max(differences) > 0
