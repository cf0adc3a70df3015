"""A forecast of a real search on a tiny SDXL: told before anything is trained, and changing nothing."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.forecast import Forecast
from bench.run import Run, epoch_folder
from bench.session import Command, run_search

MakeCommand = Callable[..., Command]


class Declined(Exception):
    """The user does not want to go on."""


def test_a_search_is_forecast_once_and_gives_what_it_gives_without(
    tmp_path: Path, make_command: MakeCommand, searched: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(searched.cache))
    told: list[Forecast] = []
    command = make_command(tmp_path)

    def decline(found: Forecast) -> None:
        told.append(found)
        raise Declined

    with pytest.raises(Declined):
        run_search(replace(command, on_forecast=decline))
    run = Run.open(tmp_path / "runs" / "small")
    assert run.trials() == [] and run.result() is None
    assert told[0].num_trials == run.space.trials
    assert told[0].trial_seconds > 0 and told[0].confirm_seconds > 0
    run = run_search(replace(command, on_forecast=told.append))
    assert len(told) == 2
    for mine, plain in zip(run.trials(), searched.run.trials(), strict=True):
        assert mine.config == plain.config
        scores = (
            epoch_folder(trial.path, trial.config.epochs).joinpath("scores.json") for trial in (mine, plain)
        )
        assert len({file.read_text() for file in scores}) == 1
    run_search(replace(command, on_forecast=told.append))
    assert len(told) == 2  # nothing is left to do


def test_what_is_left_of_a_resumed_search_is_forecast(
    tmp_path: Path, make_command: MakeCommand, searched: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(searched.cache))
    shutil.copytree(searched.run.path.parent, tmp_path / "runs")
    told: list[Forecast] = []

    def decline(found: Forecast) -> None:
        told.append(found)
        raise Declined

    with pytest.raises(Declined):
        run_search(replace(make_command(tmp_path, trials=7), on_forecast=decline))
    assert told[0].num_trials == 3
    assert told[0].confirm_seconds > 0  # of what the new trials find
    assert told[0].spent > 0
