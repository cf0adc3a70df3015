"""A real Ray cluster on this machine: two nodes train, one of them is lost."""

import io
import os
import sys
import time
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest
import yaml
from rich.console import Console
from small_space import SMALL

from bench.run import Run
from bench.session import Command, Engine, run_search
from bench.space import load_space
from trainers.adapters import attach

ray = pytest.importorskip("ray", reason="pip install 'bench[ray]'")
TRAINER = '''
"""The trainer; it notes whether its process asks the Hub, and waits at a rung until a node is lost."""
import time
from pathlib import Path
from huggingface_hub import constants
import trainers.loop

def train(*arguments):
    Path(__file__).with_name("offline").write_text(str(constants.HF_HUB_OFFLINE))
    for rung in trainers.loop.train(*arguments):
        while not Path(__file__).with_name("lost").exists():
            time.sleep(0.05)
        yield rung
'''
SPACE: dict[str, Any] = {**SMALL, "name": "nodes", "prune": {"fraction": 0}, "trials": 6}


@pytest.mark.filterwarnings("ignore")  # of Ray, about its own future
def test_a_search_goes_on_when_a_node_is_lost(
    tmp_path: Path, tiny_sdxl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.cluster_utils import Cluster

    (tmp_path / "noting.py").write_text(TRAINER)
    monkeypatch.syspath_prepend(tmp_path)
    import noting  # type: ignore[import-not-found]

    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache of the nodes"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    file = tmp_path / "nodes.yaml"
    file.write_text(yaml.safe_dump({**SPACE, "base": str(tiny_sdxl)}))
    command = Command(
        space=load_space(str(file)),
        name=None,
        folder=tmp_path / "runs",
        seed=0,
        engine=Engine(train=noting.train, attach=attach),
        console=Console(file=io.StringIO(), width=200),
        executor="ray",
    )
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))

    passing: list[bool] = []

    def lose() -> None:
        end = time.monotonic() + 600
        while not (tmp_path / "runs" / "nodes" / "trials" / "0001" / "trial.json").exists():
            if time.monotonic() > end:
                break
            time.sleep(0.05)
        passing.extend(torch_in_queues())
        cluster.remove_node(nodes[0], allow_graceful=False)
        (tmp_path / "lost").touch()

    losing = Thread(target=lose)
    losing.start()
    try:
        run = run_search(command)
    finally:
        losing.join()
        cluster.shutdown()
    said = command.console.file.getvalue()  # type: ignore[attr-defined]
    assert "its actor ended" in said
    assert [trial.state for trial in run.trials()] == ["complete"] * 6
    assert len({str(trial.config) for trial in run.trials()}) == 6
    assert Run.open(run.path).result() is not None
    assert (tmp_path / "offline").read_text() == "True"
    assert list((tmp_path / "cache").iterdir()) and not (tmp_path / "cache of the nodes").exists()
    assert run.metadata.device == "ray (2 x 1 CPUs on 2 nodes)"
    assert passing == [False] * 4


def torch_in_queues() -> list[bool]:
    """Of each process that only passes messages on: has it loaded what they are of?"""
    named = [process for process in psutil.process_iter() if "_QueueActor" in process.name()]
    return [any("libtorch" in file.path for file in process.memory_maps()) for process in named]
