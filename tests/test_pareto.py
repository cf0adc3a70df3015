"""Finalists, against optuna's own Pareto front."""

import numpy as np
import optuna
import pytest

from bench.pareto import Point, finalists, non_dominated, rank_of
from bench.scoring.metrics import Direction

DIRECTIONS: list[Direction] = ["maximize", "minimize"]


def points(seed: int) -> list[Point]:
    values = np.random.default_rng(seed).integers(0, 6, (20, 2)).tolist()
    return [Point(label=f"{i // 2:04d}", epochs=1 + i % 2, values=tuple(v)) for i, v in enumerate(values)]


@pytest.mark.parametrize("seed", range(5))
def test_non_dominated_points_are_optuna_s_best_trials(seed: int) -> None:
    study = optuna.create_study(directions=DIRECTIONS)
    for point in points(seed):
        study.add_trial(optuna.trial.create_trial(values=list(point.values), user_attrs={"p": str(point)}))
    expected = {trial.user_attrs["p"] for trial in study.best_trials}
    assert {str(point) for point in non_dominated(points(seed), DIRECTIONS)} == expected


def test_finalists_are_the_best_by_one_objective_each_trial_once() -> None:
    mine = [
        Point(label="a", epochs=1, values=(0.9, 3)),
        Point(label="a", epochs=2, values=(0.8, 2)),
        Point(label="b", epochs=1, values=(0.7, 1)),
        Point(label="c", epochs=1, values=(0.6, 2)),
    ]
    assert finalists(mine, DIRECTIONS, 0, 3) == [mine[0], mine[2]]
    assert finalists(mine, DIRECTIONS, 1, 1) == [mine[2]]
    assert finalists([], DIRECTIONS, 0, 3) == []


@pytest.mark.parametrize("seed", range(5))
def test_ranks_are_by_front_then_by_one_objective(seed: int) -> None:
    """Against peeling the fronts off one by one with Optuna's own."""
    from optuna.study._multi_objective import _fast_non_domination_rank

    mine = points(seed)
    values = np.array([[-p.values[0], p.values[1]] for p in mine])  # all to be minimised
    fronts = _fast_non_domination_rank(values)
    keys = [(front, row[0]) for front, row in zip(fronts, values, strict=True)]
    expected = [1 + sum(other < key for other in keys) for key in keys]
    assert [rank_of(point, mine, DIRECTIONS, 0) for point in mine] == expected
