"""Searcher: what an in-memory Optuna study is asked and told."""

import json
from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from bench.config import TrialConfig
from bench.searcher import Searcher, new_study
from bench.space import SearchSpace
from bench.yaml import parse

SPACE: dict[str, Any] = {
    "base": "emoji-xl",
    "parameters": {
        "rank": {"choices": [4, 8, 16]},
        "learning_rate": {"low": "1e-4", "high": "1e-2", "log": True},
        "epochs": {"choices": [2, 4]},
    },
    "default": {"rank": 8, "alpha": 16, "learning_rate": "1e-4", "epochs": 4},
    "start_points": [{"learning_rate": "5e-3"}],
    "objectives": ["similarity", "diversity"],
    "prune": {"after": 2, "controls": 0, "fraction": 0.5},
    "slots": 3,
}


def searcher(study: optuna.Study | None = None, seed: int = 0, **changes: Any) -> Searcher:
    space = parse(json.dumps({**SPACE, **changes}), SearchSpace, "my.yaml")
    return Searcher(study or new_study(space), space, seed)


def scores(similarity: float) -> dict[str, float]:
    return {"similarity": similarity, "diversity": 0.1, "clip_score": 0.2}


def run(mine: Searcher, number: int, quality: Callable[[TrialConfig], float]) -> TrialConfig:
    """A trial from its question to its end, scored at 2 and at its own epochs."""
    label = f"{number:04d}"
    config = mine.ask(label)
    for epoch in range(2, config.epochs + 1, 2):
        mine.scored(label, epoch, scores(quality(config)))
    mine.ended(label, "complete", config.epochs)
    return config


def test_the_default_comes_first_then_the_start_points() -> None:
    mine = searcher()
    assert mine.ask("0000").learning_rate == 1e-4
    assert mine.ask("0001").learning_rate == 5e-3
    assert set(mine.running) == {"0000", "0001"}


def test_the_same_seed_asks_the_same() -> None:
    asked = [
        [run(mine, number, lambda c: c.learning_rate) for number in range(8)]
        for mine in (searcher(seed=3), searcher(seed=3), searcher(seed=4))
    ]
    assert asked[0] == [config.model_copy(update={"seed": 3}) for config in asked[1]]
    assert asked[0][3:] != [config.model_copy(update={"seed": 3}) for config in asked[2][3:]]


def test_a_rung_is_told_at_once_as_a_trial_of_fewer_epochs() -> None:
    mine = searcher()
    mine.ask("0000")
    mine.scored("0000", 2, scores(0.5))
    (told,) = mine.study.get_trials(states=(TrialState.COMPLETE,))
    assert (told.params["epochs"], told.values) == (2, [0.5, 0.1])
    mine.scored("0000", 4, scores(0.6))
    mine.ended("0000", "complete", 4)
    told_all = mine.study.get_trials(states=(TrialState.COMPLETE,))
    assert sorted((t.params["epochs"], t.values[0]) for t in told_all) == [(2, 0.5), (4, 0.6)]


def test_a_pruned_trial_is_told_so_and_its_rung_stays() -> None:
    mine = searcher()
    for number, similarity in enumerate((0.9, 0.5)):
        mine.ask(f"{number:04d}")
        mine.scored(f"{number:04d}", 2, scores(similarity))
    assert str(mine.stops("0001", 2)) == "rank 2 of 2 at epoch 2"
    mine.ended("0001", "pruned", 4, "rank 2 of 2 at epoch 2")
    states = [trial.state for trial in mine.study.trials]
    assert states.count(TrialState.PRUNED) == 1
    assert states.count(TrialState.COMPLETE) == 2
    assert mine.ask("0002")  # the sampler lives with a pruned trial of two objectives


def test_the_default_never_stops() -> None:
    mine = searcher()
    for number, similarity in enumerate((0.1, 0.9)):
        mine.ask(f"{number:04d}")
        mine.scored(f"{number:04d}", 2, scores(similarity))
    assert mine.stops("0000", 2) is None


@pytest.mark.fault(2)
def test_what_was_running_goes_on_after_an_interruption() -> None:
    mine = searcher()
    run(mine, 0, lambda c: 0.5)
    lost = mine.ask("0001")
    mine.scored("0001", 2, scores(0.7))
    later = searcher(mine.study)
    assert later.interrupted() == {"0001": lost}
    later.scored("0001", 2, scores(0.7))  # the same training scores the same: it is not told twice
    nested = [t.user_attrs["label"] for t in later.study.trials if t.user_attrs.get("nested")]
    assert sorted(nested) == ["0000", "0001"]


@pytest.mark.fault(3)
def test_what_was_asked_but_not_begun_is_asked_again() -> None:
    mine = searcher()
    space = mine._space
    mine.study.ask(fixed_distributions=space.distributions)  # the process ended before it was given a label
    later = searcher(mine.study)
    assert later.interrupted() == {}
    asked = [later.ask(f"{number:04d}") for number in range(1 + len(space.starts))]
    assert space.parameters_of(space.default) in [space.parameters_of(config) for config in asked]
    assert [trial.state.name for trial in later.study.trials].count("RUNNING") == len(asked)


def test_scores_of_ended_trials_are_remembered_for_pruning_only() -> None:
    mine = searcher()
    run(mine, 0, lambda c: 0.9)
    told = len(mine.study.trials)
    later = searcher(mine.study)
    later.scored("0000", 2, scores(0.9))
    assert len(later.study.trials) == told
    later.ask("0001")
    later.scored("0001", 2, scores(0.1))
    assert later.stops("0001", 2) is not None


@pytest.mark.parametrize("seed", range(3))
def test_running_trials_are_not_proposed_again(seed: int) -> None:
    """Constant liar: free slots that are filled at once get different configurations."""
    mine = searcher(seed=seed)
    for number in range(12):
        run(mine, number, lambda c: -abs(c.learning_rate - 2e-3))
    asked = [mine.ask(f"{number:04d}") for number in range(12, 18)]
    assert len({config.learning_rate for config in asked}) == 6
