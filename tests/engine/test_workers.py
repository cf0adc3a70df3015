"""Workers as real processes: a search on two of them, whatever is killed."""

import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import optuna
import psutil
import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file
from small_space import SMALL

from bench.base import BaseModel
from bench.errors import DeviceError, UsageError
from bench.fit import find_fit
from bench.lock import locked
from bench.packs import Job, _check_device
from bench.progress import PlainProgress
from bench.room import SEARCH
from bench.run import Run
from bench.session import Command, Engine, at_work, open_session, packs_of, run_search
from bench.space import load_space
from bench.workers import Process
from trainers.adapters import attach
from trainers.loop import train

SPACE: dict[str, Any] = {**SMALL, "name": "two", "prune": {"fraction": 0}, "trials": 4, "devices": 2}
TRAINER = '''
"""The trainer; whoever comes to the first rung of all kills its process."""
import os, signal
from pathlib import Path
import trainers.loop

killed = Path(__file__).with_name("killed")

def train(*arguments):
    for rung in trainers.loop.train(*arguments):
        try:
            killed.touch(exist_ok=False)
        except FileExistsError:
            yield rung
        else:
            os.kill(os.getpid(), signal.SIGKILL)
'''
MakeCommand = Callable[..., Command]


@pytest.fixture
def command(tmp_path: Path, tiny_sdxl: Path, monkeypatch: pytest.MonkeyPatch) -> MakeCommand:
    """`command(trainer, **fields)`: a search in tmp_path with SPACE changed so."""
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))

    def make(trainer: Any = train, **fields: Any) -> Command:
        file = tmp_path / "two.yaml"
        file.write_text(yaml.safe_dump({**SPACE, "base": str(tiny_sdxl), **fields}))
        return Command(
            space=load_space(str(file)),
            name=None,
            folder=tmp_path / "runs",
            seed=0,
            engine=Engine(train=trainer, attach=attach),
            console=Console(file=io.StringIO(), width=200),
        )

    return make


@pytest.mark.fault(1)
def test_a_killed_worker_s_trial_is_trained_again_and_all_give_what_they_give_alone(
    command: MakeCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deadly.py").write_text(TRAINER)
    monkeypatch.syspath_prepend(tmp_path)
    import deadly  # type: ignore[import-not-found]

    asked = command(deadly.train)
    run = run_search(asked)
    said = asked.console.file.getvalue()  # type: ignore[attr-defined]
    assert len(re.findall("device [01]: its process was ended by SIGKILL; it starts again", said)) == 1
    assert [(trial.label, trial.state) for trial in run.trials()] == [
        (f"{n:04d}", "complete") for n in range(4)
    ]
    assert len({str(trial.config) for trial in run.trials()}) == 4
    assert run.result() is not None
    check_told_once(run)
    assert not psutil.Process().children(recursive=True)
    check_equal_alone(command(), run, tmp_path / "alone")
    check_goes_on(run_search(command(devices=1, trials=5)), run)


def check_told_once(run: Run) -> None:
    """Every trial and every rung of it is known to the study, once."""
    study = optuna.load_study(study_name=run.metadata.name, storage=f"sqlite:///{run.path / 'study.db'}")
    told = [t for t in study.trials if t.state == optuna.trial.TrialState.COMPLETE]
    points = [(t.user_attrs["label"], t.params["epochs"]) for t in told]
    assert sorted(points) == [(trial.label, epoch) for trial in run.trials() for epoch in trial.epochs]


def check_equal_alone(command: Command, run: Run, folder: Path) -> None:
    """The same configurations, one after the other in this process, give the same files."""
    with open_session(command, "two") as session:
        packs = packs_of(session, command.engine, PlainProgress(command.console))
        jobs = [
            Job(folder=folder / trial.label, config=trial.config, origin="sampled") for trial in run.trials()
        ]
        packs.exams |= session.exams(packs, ["dev"])
        packs.train(jobs, "dev", run.space.rungs)
    for trial in run.trials():
        assert contents(trial.path) == contents(folder / trial.label)


def contents(folder: Path) -> dict[str, bytes]:
    """All files but those that hold times; of adapters the weights, as their header has no fixed order."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "trial.json")
    return {str(path.relative_to(folder)): content(path) for path in files}


def content(path: Path) -> bytes:
    if path.name != "adapter.safetensors":
        return path.read_bytes()
    return b"".join(tensor.numpy().tobytes() for _, tensor in sorted(load_file(path).items()))


def check_goes_on(longer: Run, run: Run) -> None:
    """On one device, with one more trial."""
    before = [trial.config for trial in run.trials()][:4]
    assert [trial.state for trial in longer.trials()] == ["complete"] * 5
    assert [trial.config for trial in longer.trials()][:4] == before


@pytest.mark.fault(6)
def test_an_interrupted_search_leaves_no_worker(command: MakeCommand, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "two"

    def interrupt() -> None:
        wait_for((run / "trials" / "0000" / "trial.json").exists)
        os.kill(os.getpid(), signal.SIGINT)

    Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        run_search(command())
    assert not psutil.Process().children(recursive=True)
    assert Run.open(run).metadata.device.startswith("cpu (2 x ")


@pytest.mark.fault(21)
def test_the_lock_is_held_until_the_last_worker_has_ended(
    command: MakeCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, ended = tmp_path / "runs" / "two", Process.kill
    held: dict[int, bool] = {}

    def watched(process: Process) -> None:
        try:
            with locked(path):
                held.setdefault(process.number, False)
        except UsageError:
            held.setdefault(process.number, True)
        ended(process)

    with at_work(command(), "two", SEARCH):
        monkeypatch.setattr(Process, "kill", watched)
    assert held == {0: True, 1: True}
    assert not psutil.Process().children(recursive=True)
    with locked(path):
        pass


def test_one_device_is_a_worker_too_where_that_is_asked(command: MakeCommand, tmp_path: Path) -> None:
    apart = run_search(replace(command(devices=1, trials=2), isolated=True, name="apart"))
    here = run_search(replace(command(devices=1, trials=2), name="here"))
    assert [trial.state for trial in apart.trials()] == ["complete"] * 2
    for folder in ("trials", "confirm", "base"):
        assert contents(apart.path / folder) == contents(here.path / folder)


def test_what_a_worker_finds_wrong_is_said_before_anything_is_written(
    command: MakeCommand, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="'nothing' matches no"):
        run_search(
            command(
                parameters={**SPACE["parameters"], "target_modules": {"choices": ["attention", ["nothing"]]}}
            )
        )
    assert not (tmp_path / "runs").exists()


@pytest.mark.fault(2)
def test_workers_end_with_a_parent_that_is_killed(command: MakeCommand, tmp_path: Path) -> None:
    command()
    arguments = [sys.executable, "-m", "bench", "search", "--space", "two.yaml"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(arguments, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL) as parent:
        workers = wait_for(lambda: psutil.Process(parent.pid).children())
        parent.send_signal(signal.SIGKILL)
    assert psutil.wait_procs(workers, timeout=120)[1] == []


@pytest.mark.parametrize(("devices", "slots"), [(1, 4), (2, 2)])
def test_a_search_leaves_rounds_to_every_device(
    command: MakeCommand, base: BaseModel, devices: int, slots: int
) -> None:
    assert find_fit(base, command(trials=12).space, train, devices).slots == slots


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one that works")
def test_an_error_of_the_device_is_no_trial_s_fault() -> None:
    _check_device(torch.device("cpu"), "an error")
    with pytest.raises(DeviceError, match="an error; finished trials are kept"):
        _check_device(torch.device("cuda"), "an error")


def wait_for(found: Callable[[], Any]) -> Any:
    end = time.monotonic() + 120
    while not (result := found()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return result
