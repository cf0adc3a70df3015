"""Shared studies: two processes, each with a run folder, search one study.

It lies in SQLite, in PostgreSQL, or behind Optuna's proxy with its artefacts in a bucket.
"""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any

import optuna
import psutil
import pytest
import yaml
from optuna.trial import TrialState
from rich.console import Console
from servers import serving_postgres
from small_space import SMALL

from bench.errors import MismatchError, UsageError
from bench.packs import Trainer
from bench.run import Run
from bench.session import Command, Engine, run_search
from bench.shared import Place, share
from bench.space import load_space
from trainers.adapters import attach
from trainers.loop import train

SPACE: dict[str, Any] = {**SMALL, "name": "both", "prune": {"fraction": 0}, "trials": 6, "devices": 1}
WORKER = '''
"""A worker on another machine: argv is the URL, the artefacts, and whether it kills itself at a rung."""
import os, signal, sys, time
from pathlib import Path
from rich.console import Console
from bench.errors import MissingError
from bench.session import Command, Engine, run_worker
from bench.shared import Place
from bench.space import load_space
from trainers.adapters import attach
import trainers.loop

url, artifacts, ends = sys.argv[1:]

def train(*arguments):
    for rung in trainers.loop.train(*arguments):
        if ends == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        yield rung

command = Command(
    space=load_space("smoke"), name="both", folder=Path("runs"), seed=0,
    engine=Engine(train=train, attach=attach), console=Console(),
)
while True:
    try:
        run_worker(command, Place(url=url, artifacts=artifacts, heartbeat=1, grace=3), {})
        break
    except MissingError:
        time.sleep(0.1)
'''
MakeCommand = Callable[..., Command]


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with serving_postgres(Path(os.path.realpath(f"/tmp/bench-postgres-{os.getpid()}"))) as url:
        yield url


@pytest.fixture
def command(tmp_path: Path, tiny_sdxl: Path, monkeypatch: pytest.MonkeyPatch) -> MakeCommand:
    """`command(place, **fields)`: a search in tmp_path with SPACE changed so."""
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))

    def make(place: Place | None, **fields: Any) -> Command:
        file = tmp_path / "both.yaml"
        file.write_text(yaml.safe_dump({**SPACE, "base": str(tiny_sdxl), **fields}))
        return Command(
            space=load_space(str(file)),
            name=None,
            folder=tmp_path / "runs",
            seed=0,
            engine=Engine(train=train, attach=attach),
            console=Console(file=io.StringIO(), width=200),
            place=place,
        )

    return make


def place_of(url: str, tmp_path: Path) -> Place:
    return Place(url=url, artifacts=str(tmp_path / "artifacts"), heartbeat=1, grace=3)


@pytest.fixture
def helped(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """`helped(place, ends)`: a worker with a folder of its own; none outlives the test."""
    started = []

    def start(place: Place, ends: str = "well") -> subprocess.Popen[bytes]:
        folder = tmp_path / "other"
        folder.mkdir()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        arguments = [sys.executable, "-c", WORKER, place.url, place.artifacts, ends]
        started.append(subprocess.Popen(arguments, cwd=folder, env=environment))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def trials_of(place: Place) -> list[optuna.trial.FrozenTrial]:
    with place.opened() as storage:
        trials = optuna.load_study(study_name="both", storage=storage).trials
    return [trial for trial in trials if not trial.user_attrs.get("nested")]


def in_company(place: Place) -> Trainer:
    """A trainer that goes on from a rung once another has asked too, however long that took to load."""

    def trainer(*arguments: Any) -> Iterator[Any]:
        for rung in train(*arguments):
            while len({trial.user_attrs.get("owner") for trial in trials_of(place)} - {None}) < 2:
                time.sleep(0.2)
            yield rung

    return trainer


@pytest.mark.fault(21)
@pytest.mark.parametrize("kind", ["sqlite", "postgresql", "proxy"])
def test_two_machines_search_one_study(
    command: MakeCommand,
    helped: Callable[..., subprocess.Popen[bytes]],
    tmp_path: Path,
    kind: str,
    request: pytest.FixtureRequest,
) -> None:
    place = place_of(f"sqlite:///{tmp_path}/both.db", tmp_path)
    if kind == "postgresql":
        place = replace(place, url=request.getfixturevalue("postgres"))
    if kind == "proxy":
        url, artifacts = request.getfixturevalue("proxy"), request.getfixturevalue("bucket")
        place = replace(place, url=url, artifacts=artifacts)
    worker = helped(place)
    run = run_search(replace(command(place), engine=Engine(train=in_company(place), attach=attach)))
    assert worker.wait(timeout=120) == 0
    told = [trial for trial in trials_of(place) if trial.state != TrialState.FAIL]  # one too many, withdrawn
    assert {trial.state for trial in told} == {TrialState.COMPLETE}
    labels = [trial.user_attrs["label"] for trial in told]
    assert len(set(labels)) == len(labels) == 6
    assert [trial.label for trial in run.trials()] == sorted(labels)
    theirs = Run.open(tmp_path / "other" / "runs" / "both").trials()
    assert theirs and len({trial.user_attrs["owner"] for trial in told}) == 2
    for trial in theirs:
        mine = run.path / "trials" / trial.label
        assert {p.relative_to(trial.path) for p in trial.path.rglob("*")} == {
            p.relative_to(mine) for p in mine.rglob("*")
        }
    assert run.result() is not None
    with pytest.raises(UsageError, match=r"both: its study is in .*: give it as --storage"):
        run_search(command(None))


@pytest.mark.fault(2)
def test_a_trial_of_a_machine_that_died_is_tried_once_more(
    command: MakeCommand, helped: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    place = place_of(f"sqlite:///{tmp_path}/both.db", tmp_path)
    worker = helped(place, "killed")
    asked = command(place, trials=8)
    run = run_search(replace(asked, engine=Engine(train=in_company(place), attach=attach)))
    assert worker.wait(timeout=120) == -signal.SIGKILL
    told = trials_of(place)
    lost = [trial for trial in told if trial.state == TrialState.FAIL]
    assert len(lost) == 1 and "reason" not in lost[0].user_attrs
    again = [trial for trial in told if trial.user_attrs.get("retried") == lost[0].number]
    assert [trial.state for trial in again] == [TrialState.COMPLETE]
    assert again[0].params == lost[0].params
    assert [trial.state for trial in run.trials()] == ["complete"] * 8
    assert not psutil.Process().children(recursive=True)


@pytest.mark.fault(4)
def test_a_trial_that_others_gave_up_is_discarded(command: MakeCommand, tmp_path: Path) -> None:
    place = place_of(f"sqlite:///{tmp_path}/both.db", tmp_path)

    calls = count()

    def given_up(*arguments: Any) -> Iterator[Any]:
        for rung in train(*arguments):
            if next(calls) == 0:
                with place.opened() as storage:
                    study = optuna.load_study(study_name="both", storage=storage)
                    running = study.get_trials(states=(TrialState.RUNNING,))
                    study.tell(running[0].number, state=TrialState.FAIL)
            yield rung

    asked = command(place, trials=2)
    run = run_search(replace(asked, engine=Engine(train=given_up, attach=attach)))
    first = run.trials()[0]
    assert first.state == "failed" and "was given up by others" in str(first.reason)
    assert [trial.state for trial in run.trials()][1:] == ["complete"] * 2


@pytest.mark.fault(5)
def test_a_sign_of_life_that_fails_is_said_and_tried_again(
    command: MakeCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = place_of(f"sqlite:///{tmp_path}/both.db", tmp_path)
    run = run_search(command(None, trials=1))
    said: list[str] = []
    beats, enough = count(), Event()

    def record(trial: int, key: str, value: str) -> None:
        if (number := next(beats)) < 2:
            raise OSError("the database is away")
        if number == 2:
            enough.set()

    with share(run, place, takes_over=True) as shared:
        monkeypatch.setattr(shared.study._storage, "set_trial_user_attr", record)
        with shared.pulse(lambda: [1], said.append):
            assert enough.wait(60)
    assert said == ["no sign of life could be given: the database is away"]


@pytest.mark.fault(18)
def test_other_objectives_are_another_study(command: MakeCommand, tmp_path: Path) -> None:
    place = place_of(f"sqlite:///{tmp_path}/both.db", tmp_path)
    with place.opened() as storage:
        optuna.create_study(study_name="both", storage=storage, directions=["minimize"])
    with pytest.raises(MismatchError, match="the study 'both' is to minimize, the objectives"):
        run_search(command(place))


@pytest.mark.fault(21)
def test_another_search_of_the_same_name_is_refused(command: MakeCommand, tmp_path: Path) -> None:
    place = place_of(f"sqlite:///{tmp_path}/both.db", tmp_path)
    run_search(command(place, trials=1))
    other = replace(command(place, trials=1), folder=tmp_path / "elsewhere", seed=1)
    with pytest.raises(MismatchError, match="the shared study 'both' was begun with another seed"):
        run_search(other)
    assert len(trials_of(place)) == 1
