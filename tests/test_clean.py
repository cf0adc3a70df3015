"""Cleaning a run folder: what goes, what stays, and that it is still a whole run."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.clean import removals, remove, temporaries
from bench.confirm import found_by
from bench.errors import MissingError, UsageError
from bench.exported import trial_of
from bench.lock import locked
from bench.run import (
    Run,
    adapter_file,
    end_trial,
    epoch_folder,
    read_evaluation,
    start_trial,
    write_evaluation,
)
from reports import search as report

MakeRun = Callable[..., Run]


@pytest.fixture
def run(make_run: MakeRun) -> Run:
    """Trial 0 is the default, 2 won, 1 was confirmed too, 5 failed; 3 is dominated, 4 was pruned."""
    run = make_run("runs/mine")
    for trial in run.trials():
        for epoch in trial.epochs:
            adapter_file(trial.path, epoch).write_bytes(bytes(1000))
    best = _evaluation(run, 2)
    for epoch in run.trials()[3].epochs:
        _rescore(run, 3, epoch, best, -0.2)
    start_trial(run.trial_folder(4), run.trials()[4].config, "sampled")
    end_trial(run.trial_folder(4), "pruned", 3.0, "rank 5 of 6")
    (run.trial_folder(5) / "begun.safetensors").write_bytes(bytes(3000))
    return run


def _evaluation(run: Run, number: int) -> Any:
    trial = run.trials()[number]
    return read_evaluation(epoch_folder(trial.path, trial.epochs[-1]))


def _rescore(run: Run, number: int, epoch: int, like: Any, shift: float) -> None:
    """Worse than an evaluation by `shift` in every objective."""
    folder = epoch_folder(run.trial_folder(number), epoch)
    scores = {name: replace(score, value=score.value + shift) for name, score in like.scores.items()}
    import numpy as np

    write_evaluation(folder, replace(like, scores=scores), np.zeros((2, 8, 8, 3), np.uint8))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != "report.html"
    }


def test_images_and_adapters_of_trials_that_lost_go_and_nothing_else(run: Run) -> None:
    before = contents(run.path)
    planned = removals(run)
    assert {removal.path.name: removal.reason for removal in planned} == {
        "0003": "dominated",
        "0004": "pruned",
        "0005": "failed",
    }
    assert contents(run.path) == before
    remove(planned)
    after = contents(run.path)
    gone = before.keys() - after.keys()
    assert {name: after[name] for name in after} == {name: before[name] for name in after}
    assert all(name.startswith(("trials/0003/", "trials/0004/", "trials/0005/")) for name in gone)
    assert {Path(name).suffix for name in gone} == {".webp", ".safetensors"}
    assert not any(Path(name).name == "features.safetensors" for name in gone)
    assert sum(removal.size for removal in planned) == sum(len(before[name]) for name in gone)
    assert removals(run) == []


def test_a_clean_run_is_read_reported_and_would_confirm_as_before(run: Run) -> None:
    trials, chosen = run.trials(), found_by(run).keys()
    remove(removals(run))
    assert run.trials() == trials
    assert found_by(run).keys() == chosen
    page = report.render(run)
    assert "Images and adapters of 2 trials were removed with bench clean" in page
    assert "removed with bench clean" not in report.render(Run.open(run.path.parent / "other"))


@pytest.fixture(autouse=True)
def other(make_run: MakeRun) -> None:
    """A run beside it that nobody cleans."""
    make_run("runs/other", trials=3)


def test_the_default_is_kept_whatever_it_scored(run: Run) -> None:
    best = _evaluation(run, 2)
    for epoch in run.trials()[0].epochs:
        _rescore(run, 0, epoch, best, -0.3)
    assert "0000" not in {removal.path.name for removal in removals(run)}


def test_what_has_not_ended_is_kept(make_run: MakeRun) -> None:
    run = make_run("runs/begun", ending="interrupted")
    trial = run.trials()[1]
    start_trial(trial.path, trial.config, trial.origin)
    (trial.path / "begun.safetensors").write_bytes(b"state")
    assert trial.label not in {removal.path.name for removal in removals(run)}


def test_a_cleaned_trial_cannot_be_exported_and_says_why(run: Run) -> None:
    assert trial_of(run, 3, None).adapter.exists()
    remove(removals(run))
    with pytest.raises(MissingError, match="removed with `bench clean`; .*config.yaml says how to train it"):
        trial_of(run, 3, None)


def test_temporary_files_of_killed_processes_go_and_those_of_living_ones_stay(run: Run) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    dead = run.trial_folder(2) / f".adapter.safetensors.{ended.pid}.tmp"
    living = run.path / f".run.json.{os.getpid()}.tmp"
    mine = run.path / ".notes.tmp"
    for file in (dead, living, mine):
        file.write_bytes(bytes(500))
    assert list(temporaries(run.path)) == [dead]
    remove(removals(run))
    assert (dead.exists(), living.exists(), mine.exists()) == (False, True, True)


def test_a_run_at_work_is_refused(run: Run) -> None:
    with (
        locked(run.path),
        pytest.raises(UsageError, match="another bench search is working on it; clean it when"),
        locked(run.path, "clean it when that has ended"),
    ):
        pass
