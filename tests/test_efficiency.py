"""Searches replayed on a made-up table: what they cost is counted right, and pruning costs less."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "efficiency"))

import replay  # noqa: E402
from table import EPOCHS, MODULES, ROLES, Key, Row, Work, append_pace, append_rows, grid, read_table  # noqa: E402

FREE = dict.fromkeys(MODULES, 0.0)
COST = replay.Cost(sample=dict.fromkeys(MODULES, 1.0), image=FREE, held_out=FREE)
METHODS = {method.name: method for method in replay.METHODS}


@pytest.fixture(scope="module")
def table() -> dict[Key, Row]:
    """Similarity peaks at one learning rate and grows with the epochs; the highest rates fail."""
    rng, rows = np.random.default_rng(0), []
    for cell in grid():
        for role in ROLES:
            for epoch in EPOCHS:
                distance = math.log10(cell.learning_rate / 1e-3) ** 2
                quality = 0.6 + 0.02 * math.log2(epoch) - 0.2 * distance + rng.normal(0, 0.005)
                failed = cell.learning_rate > 4e-3
                scores = {"similarity": quality, "clip_score": quality - 0.1, "diversity": 0.2}
                row = Row(**cell._asdict(), role=role, epoch=epoch)
                if not failed:
                    row = Row(**cell._asdict(), role=role, epoch=epoch, held_out_loss=1 - quality, **scores)
                rows.append(row)
    return {(row.cell, row.role, row.epoch): row for row in rows}


def test_a_table_is_read_as_it_was_written(table: dict[Key, Row], tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    rows = list(table.values())[:50]
    append_rows(file, rows[:20])
    append_rows(file, rows[20:])
    read = read_table(file)
    assert list(read) == [(row.cell, row.role, row.epoch) for row in rows]
    for row in rows:
        assert read[row.cell, row.role, row.epoch].scores == pytest.approx(row.scores, rel=1e-4, nan_ok=True)


def test_the_pace_is_that_of_all_pieces_together(tmp_path: Path) -> None:
    kinds = ("trained sample", "image of 12 steps", "image of 6 steps", "image scored", "held-out loss")
    for seconds in (2.0, 4.0):
        work = [Work(k, m, seconds * (10 if "12" in k else 1), 3) for k in kinds for m in MODULES]
        append_pace(tmp_path / "table.csv", work)
    cost = replay.cost_of(tmp_path / "table.csv")
    assert cost.sample == dict.fromkeys(MODULES, 1.0)
    assert cost.image == dict.fromkeys(MODULES, 2.0)


def test_seconds_are_those_of_the_trained_samples(table: dict[Key, Row]) -> None:
    search = replay.Replay(table, METHODS["random"], 0, COST)
    steps = list(search.steps(20))
    assert [step.trials for step in steps] == list(range(1, 21))
    trials = search._searcher.study.get_trials()
    assert steps[-1].seconds == sum(trial.params["epochs"] for trial in trials) * replay.NUM_TRAIN


def test_pruning_costs_less_and_finds_as_good_a_winner(table: dict[Key, Row]) -> None:
    ends = {
        name: replay.replayed(table, METHODS[name], 1, COST)[replay.NUM_TRIALS - 1]
        for name in ("TPE, nested", replay.OURS)
    }
    plain, ours = ends.values()
    assert (plain.pruned, ours.pruned > 0) == (0, True)
    assert ours.seconds < plain.seconds
    assert ours.worth == pytest.approx(plain.worth, abs=0.01)


def test_the_same_seed_replays_the_same(table: dict[Key, Row]) -> None:
    first, second = (replay.replayed(table, METHODS[replay.OURS], 2, COST) for _ in range(2))
    assert first == second


def test_an_outcome_says_when_the_target_was_reached(table: dict[Key, Row]) -> None:
    method = METHODS["random"]
    steps = replay.replayed(table, method, 0, COST)
    reached = replay.outcome(method, 0, steps, 0.6)
    before = [step.worth for step in steps if step.trials < reached.trials]
    assert all(not worth >= 0.6 for worth in before)
    assert steps[int(reached.trials) - 1].seconds == reached.seconds
    assert replay.outcome(method, 0, steps, 2.0).seconds == math.inf


def test_half_a_grid_is_replayed_alone(table: dict[Key, Row]) -> None:
    part = {key: row for key, row in table.items() if key[0].dropout == 0.1 or key[1] == "search"}
    whole = replay.whole(part)
    assert {key[0].dropout for key in whole} == {0.1}
    assert replay.space_of(whole, {}).parameters.dropout is not None
