"""A search on a run folder that was cleaned."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.clean import removals, remove
from bench.files import read_json, write_json
from bench.run import Run, adapter_file, epoch_folder, was_cleaned
from bench.session import Command, run_search
from reports import search as report


def worsen(file: Path) -> None:
    """Scores that every other trial dominates."""
    data = read_json(file)
    for name in ("similarity", "clip_score", "diversity"):
        data["scores"][name]["value"] -= 1
    write_json(file, data)


def test_a_search_goes_on_after_cleaning_and_trains_nothing_again(
    searched: Any, make_command: Callable[..., Command], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(searched.cache))
    run = Run.open(shutil.copytree(searched.run.path, tmp_path / "runs" / "small"))
    for epoch in run.trials()[3].epochs:
        worsen(epoch_folder(run.trial_folder(3), epoch) / "scores.json")
    planned = removals(run)
    remove(planned)
    cleaned = {trial.label for trial in run.trials() if was_cleaned(trial)}
    assert cleaned == {removal.path.name for removal in planned} >= {"0003"}
    before = {trial.label: (trial, trial.path.stat().st_ino) for trial in run.trials()}
    confirmed = {record.path: record.path.stat().st_ino for record in run.confirmations()}
    again = run_search(make_command(tmp_path, trials=5))
    assert {trial.label: (trial, trial.path.stat().st_ino) for trial in again.trials()[:4]} == before
    assert len(again.trials()) == 5
    assert {path: path.stat().st_ino for path in confirmed} == confirmed
    assert {trial.label for trial in again.trials() if was_cleaned(trial)} == cleaned
    result = again.result()
    assert result is not None
    for candidate in result.candidates:
        for label in candidate.records:
            assert adapter_file(again.path / "confirm" / label, candidate.config.epochs).exists()
    assert f"{len(cleaned)} trial" in report.render(again)
