"""Pruning: who stops at a rung, who never does, and from when on."""

import json
from typing import Any

import pytest

from bench.pruning import Standings, is_control
from bench.space import Prune, SearchSpace
from bench.yaml import parse

SPACE: dict[str, Any] = {
    "base": "emoji-xl",
    "parameters": {"rank": {"choices": [4, 8]}, "epochs": {"choices": [2, 4]}},
    "default": {"rank": 8, "alpha": 16, "learning_rate": "1e-4", "epochs": 4},
    "objectives": ["similarity", "diversity"],
}


def standings(**prune: Any) -> Standings:
    space = parse(
        json.dumps({**SPACE, "prune": {"controls": 0, "after": 4, **prune}}), SearchSpace, "my.yaml"
    )
    return Standings(space)


def add(found: Standings, *similarities: float, diversity: float = 0.1, **more: float) -> None:
    for number, similarity in enumerate(similarities):
        scores = {"similarity": similarity, "diversity": diversity, **more}
        found.add(f"{number:04d}", 2, scores)


def stopped(found: Standings, num: int) -> list[int]:
    return [number for number in range(num) if found.stops(f"{number:04d}", 2)]


def test_the_last_fraction_stops_and_its_rank_is_said() -> None:
    found = standings()
    add(found, 0.5, 0.9, 0.4, 0.8, 0.7, 0.6, 0.3, 0.2)
    assert stopped(found, 8) == [6, 7]
    assert str(found.stops("0007", 2)) == "rank 8 of 8 at epoch 2"


def test_nobody_stops_before_enough_trials_were_scored_at_that_epoch() -> None:
    found = standings(after=5)
    add(found, 0.5, 0.9, 0.4, 0.1)
    found.add("0004", 4, {"similarity": 0.0, "diversity": 0.0})
    assert stopped(found, 4) == []


@pytest.mark.parametrize(("fraction", "expected"), [(0, []), (0.25, [3]), (0.45, [3]), (0.5, [2, 3])])
def test_at_most_the_fraction_stops(fraction: float, expected: list[int]) -> None:
    found = standings(fraction=fraction)
    add(found, 0.9, 0.8, 0.7, 0.6)
    assert stopped(found, 4) == expected


def test_equals_do_not_stop() -> None:
    found = standings(fraction=0.5)
    add(found, 0.7, 0.7, 0.7, 0.7)
    assert stopped(found, 4) == []


def test_what_nothing_dominates_is_before_what_is_dominated() -> None:
    found = standings()
    add(found, 0.9, 0.8, 0.7)
    found.add("0003", 2, {"similarity": 0.5, "diversity": 0.9})
    assert stopped(found, 4) == [2]


def test_the_held_out_loss_is_one_more_objective() -> None:
    for loss, expected in ((0.1, [2]), (0.9, [3])):
        found = standings(held_out_loss=True)
        add(found, 0.9, 0.8, 0.7, held_out_loss=0.5)
        found.add("0003", 2, {"similarity": 0.5, "diversity": 0.1, "held_out_loss": loss})
        assert stopped(found, 4) == expected


def test_controls_never_stop_and_are_spread_evenly() -> None:
    found = standings(controls=0.25)
    add(found, 0.9, 0.8, 0.7, 0.1)
    assert stopped(found, 4) == []
    for share, number in ((0.2, 20), (0.5, 50), (0, 0), (1, 100)):
        prune = Prune(controls=share)
        assert sum(is_control(trial, prune) for trial in range(100)) == number
    assert [n for n in range(15) if is_control(n, Prune(controls=0.2))] == [4, 9, 14]
