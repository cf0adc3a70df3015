"""Two machines, in network namespaces, with one PostgreSQL that both reach; the cable of one is cut."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.trial import TrialState
from servers import apart, call_ip, serving_postgres
from small_space import SMALL

from bench.run import Run
from bench.shared import Place

SPACE: dict[str, Any] = {**SMALL, "name": "both", "prune": {"fraction": 0}, "trials": 5, "devices": 1}
MACHINE = '''
"""argv is the URL, and what this machine does: search, or help.

The search waits at its first rung until the other is cut off; that waits for it in its second trial.
"""
import io, sys, time
from pathlib import Path
from rich.console import Console
from bench.errors import MissingError
from bench.session import Command, Engine, run_search, run_worker
from bench.shared import Place
from bench.space import load_space
from trainers.adapters import attach
import trainers.loop

url, does = sys.argv[1:]
place = Place(url=url, artifacts="artifacts", heartbeat=1, grace=3)

def wait_for(file):
    while not Path(file).exists():
        time.sleep(0.1)

def train(base, data, configs, *others):
    taken = []
    def noted():
        for config in configs:
            taken.append(config)
            yield config
    for rung in trainers.loop.train(base, data, noted(), *others):
        if does == "search":
            wait_for("cut")
        elif len(taken) == 2:
            Path("reached").touch()
            wait_for("cut")
        yield rung

command = Command(
    space=load_space("both.yaml"), name="both", folder=Path(does), seed=0, place=place,
    engine=Engine(train=train, attach=attach), console=Console(file=io.StringIO()),
)
if does == "search":
    run_search(command)
while does == "help":
    try:
        run_worker(command, place, {})
        break
    except MissingError:
        time.sleep(0.1)
'''


@pytest.mark.fault(2, 4)
def test_a_machine_that_is_cut_off_loses_what_it_was_training_and_nothing_else(
    tmp_path: Path, tiny_sdxl: Path
) -> None:
    (tmp_path / "both.yaml").write_text(yaml.safe_dump({**SPACE, "base": str(tiny_sdxl)}))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "BENCH_CACHE": str(tmp_path / "cache"),
    }
    folder = Path(f"/tmp/bench-namespaces-{os.getpid()}")
    said = tmp_path / "said"
    with apart() as (here, there, address), serving_postgres(folder, address) as server:
        url = f"{server}?tcp_user_timeout=2000"

        def start(name: str, does: str) -> "subprocess.Popen[bytes]":
            command = ["ip", "netns", "exec", name, sys.executable, "-c", MACHINE, url, does]
            with said.open("ab") as log:
                return subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=log)

        searching, helping = start(here, "search"), start(there, "help")
        try:
            while not (tmp_path / "reached").exists():
                assert searching.poll() is None and helping.poll() is None
                time.sleep(0.1)
            call_ip("-n", there, "link", "set", there, "down")
            (tmp_path / "cut").touch()
            assert searching.wait(timeout=300) == 0
            assert helping.wait(timeout=300) == 1
            with Place(url=url, artifacts="").opened() as storage:
                trials = optuna.load_study(study_name="both", storage=storage).trials
        finally:
            for process in (searching, helping):
                process.kill()
                process.wait()
    assert "BenchError: the study's database: " in said.read_text()
    check(Run.open(tmp_path / "search" / "both"), trials)


def check(run: Run, trials: list[optuna.trial.FrozenTrial]) -> None:
    told = [trial for trial in trials if not trial.user_attrs.get("nested")]
    lost = [trial for trial in told if trial.state == TrialState.FAIL]
    whole = [trial for trial in told if trial.state == TrialState.COMPLETE]
    assert len(whole) == 5 and len(lost) == 1 and len(told) == 6
    theirs = lost[0].user_attrs["owner"]
    assert [trial.user_attrs["owner"] == theirs for trial in whole].count(True) == 1
    assert [trial.params for trial in whole if "retried" in trial.user_attrs] == [lost[0].params]
    assert [trial.label for trial in run.trials()] == [trial.user_attrs["label"] for trial in whole]
    assert {trial.state for trial in run.trials()} == {"complete"}
    assert run.result() is not None
