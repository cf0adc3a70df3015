"""One training in several processes, as `accelerate launch` starts them, against the same in one."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from numpy.testing import assert_allclose
from safetensors.torch import load_file

from bench.run import read_losses
from trainers.checkpoints import ADAPTER, find_checkpoints, read_checkpoint
from trainers.processes import Processes

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-3
"""Of a tensor's norm: sums in another order, through some updates of Adam."""
Write = Callable[..., Path]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def write(tmp_path: Path, tiny_sdxl: Path) -> Write:
    """`write(output, **fields)`: the config of a short training."""

    def written(output: str, **fields: Any) -> Path:
        config = {
            "model_name": str(tiny_sdxl),
            "dataset_name": "emoji/pixel16",
            "hold_out": True,
            "rank": 4,
            "alpha": 8,
            "dropout": 0.1,
            "learning_rate": 1e-3,
            "epochs": 1,
            "batch_size": 1,
            "gradient_accumulation_steps": 2,
            "caption_dropout": 0.1,
            "output_dir": output,
            "save_steps": 4,
        }
        file = tmp_path / f"{output}.yaml"
        file.write_text(yaml.safe_dump(config | fields))
        return file

    return written


@pytest.fixture
def start(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """`start(file, number)`: the training of a file in so many processes, on the CPU."""

    def started(file: Path, number: int) -> "subprocess.Popen[str]":
        path = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path),
            "BENCH_CACHE": str(tmp_path_factory.getbasetemp() / "cache-processes"),
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
        }
        several = ["--multi_gpu", "--num_processes", str(number)]
        launcher = ["accelerate.commands.launch", *several, "--main_process_port", "0", "-m"]
        command = [*(launcher if number > 1 else ()), "bench", "train", "--config", str(file)]
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            env=environment,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    return started


def finished(process: "subprocess.Popen[str]") -> str:
    """What it said."""
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def assert_same(a: Path, b: Path, tolerance: float = TOLERANCE) -> None:
    """Adapters and losses."""
    first, second = load_file(a / ADAPTER), load_file(b / ADAPTER)
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        assert float((tensor - second[key]).norm()) <= tolerance * float(second[key].norm()), key
    assert_allclose(read_losses(a)["loss"], read_losses(b)["loss"], rtol=tolerance)


def test_two_processes_train_to_the_bits_of_one_with_twice_the_accumulation(
    write: Write, start: Start, tmp_path: Path
) -> None:
    finished(start(write("one", batch_size=2, gradient_accumulation_steps=2), 1))
    said = finished(start(write("two", batch_size=2, gradient_accumulation_steps=1), 2))
    assert "15 steps of 4 (2 x 1 x 2 processes)" in said
    assert said.count("Adapter: two/") == said.count("saved two/checkpoint-15") == 1
    assert_same(tmp_path / "two", tmp_path / "one", tolerance=0)


def test_two_processes_keep_a_class_to_the_bits_of_one(write: Write, start: Start, tmp_path: Path) -> None:
    prior = {"prior_weight": 0.5, "class_prompt": "a dog", "class_images": 3, "epochs": 1}
    finished(start(write("one", batch_size=2, gradient_accumulation_steps=2, **prior), 1))
    finished(start(write("two", batch_size=2, gradient_accumulation_steps=1, **prior), 2))
    assert_same(tmp_path / "two", tmp_path / "one", tolerance=0)


def test_two_processes_train_what_one_does_with_twice_the_batch(
    write: Write, start: Start, tmp_path: Path
) -> None:
    """Without dropout: on a CPU the masks of a batch are not those of its parts."""
    fields = {"dropout": 0, "text_encoder_learning_rate": 1e-3}
    finished(start(write("one", batch_size=4, gradient_accumulation_steps=1, **fields), 1))
    finished(start(write("two", **fields), 2))
    assert_same(tmp_path / "two", tmp_path / "one")


def waiting_for(folder: Path, process: "subprocess.Popen[str]") -> None:
    """Until there is a first checkpoint."""
    while not find_checkpoints(folder):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def children(process: "subprocess.Popen[str]") -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
def test_a_killed_process_ends_all_and_another_number_goes_on(
    write: Write, start: Start, tmp_path: Path
) -> None:
    file = write("two", epochs=4)
    process = start(file, 2)
    waiting_for(tmp_path / "two", process)
    os.kill(children(process)[1], signal.SIGKILL)
    process.communicate(timeout=300)
    assert process.returncode != 0
    kept = find_checkpoints(tmp_path / "two")
    assert kept and not (tmp_path / "two" / ADAPTER).exists()
    said = finished(start(write("two", epochs=4, gradient_accumulation_steps=4), 1))
    assert "Going on from two/checkpoint-" in said
    finished(start(write("one", epochs=4, gradient_accumulation_steps=4), 1))
    assert_same(tmp_path / "two", tmp_path / "one")


def test_ctrl_c_writes_a_checkpoint_and_ends_all(write: Write, start: Start, tmp_path: Path) -> None:
    process = start(write("two", epochs=100, save_steps=1), 2)
    waiting_for(tmp_path / "two", process)
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=300)
    assert process.returncode != 0 and said.count("Stopped. Run the same command") == 1
    last = find_checkpoints(tmp_path / "two")[-1]
    checkpoint = read_checkpoint(last)
    assert last.name == f"checkpoint-{checkpoint.step}" and not list((tmp_path / "two").glob(".checkpoint*"))


def test_what_is_wrong_is_said_once(write: Write, start: Start) -> None:
    process = start(write("two", dataset_name="./nowhere"), 2)
    said, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert len(re.findall(r"^bench: .*nowhere", said, re.MULTILINE)) == 1


def test_another_effective_batch_does_not_go_on(write: Write, start: Start, tmp_path: Path) -> None:
    finished(start(write("one"), 1))
    process = start(write("one"), 2)
    said, _ = process.communicate(timeout=300)
    assert "was begun with another train_batch_size x gradient_accumulation_steps x processes" in said


def test_one_alone_waits_for_nobody() -> None:
    processes, tensor = Processes(), torch.ones(2)
    processes.average(tensor)
    processes.wait()
    assert tensor.tolist() == [1, 1] and processes.largest(3, 0) == [3, 0] and processes.is_first
