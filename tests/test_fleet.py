"""Fleet: who does what, and what becomes of what a worker died of. Its workers here are generators."""

import io
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from bench import run as runs
from bench.config import TrialConfig
from bench.errors import BenchError
from bench.fleet import Fleet, count_devices, shared_threads, sheaves_of
from bench.packs import Job
from bench.progress import PlainProgress
from bench.run import read_trial
from bench.workers import Gone, environment

CONFIG = TrialConfig(rank=2, alpha=2, learning_rate=1e-4, epochs=1)
DEV: Any = SimpleNamespace(split="dev")
KILLED = "its process was ended by SIGKILL"
Words = Iterator[tuple[Any, ...]]
Life = Callable[["Puppet"], Words]


class Puppet:
    """A worker that says what its lives say, one after the other, and then lives without end."""

    def __init__(self, *lives: Life) -> None:
        self.number, self.done, self.deaths, self.given_up = 1, 0.0, 0, False
        self.running: dict[Path, Any] = {}
        self.last_words: str | None = None
        self.answer: Any = None
        self._lives = iter([*lives, self._last])
        self._is_last = False

    @property
    def is_over(self) -> bool:
        """Whether all lives but the last are."""
        return self.given_up or self._is_last

    def start(self) -> None:
        self._words = next(self._lives)(self)

    def _last(self, worker: "Puppet") -> Words:
        self._is_last = True
        return ending()(worker)

    def hear(self) -> tuple[Any, ...]:
        for words in self._words:
            return 1.0, *words
        raise Gone(KILLED)

    def tell(self, answer: Any) -> None:
        self.answer = answer

    def give_up(self) -> None:
        self.given_up = True
        self.running.clear()

    def kill(self) -> None:
        """A generator ends by itself."""


def ending(*deadly: str, last: Callable[[Path], tuple[Any, ...] | None] = lambda folder: None) -> Life:
    """A life that ends what it takes until it takes a deadly one; then it may have a `last` word."""

    def life(worker: Puppet) -> Words:
        while True:
            yield ("order",)
            order = worker.answer
            yield "take", order
            while item := worker.answer:
                if item.folder.name in deadly:
                    if said := last(item.folder):
                        yield said
                    return
                finish(item.folder)
                yield "ended", item.folder, {}
                yield "take", order

    return life


def finish(folder: Path) -> None:
    runs.start_trial(folder, CONFIG, "sampled")
    runs.end_trial(folder, "complete", 1.0)


class OwnPacks:
    """This process's Packs: they begin when all lives of the worker but the last are over."""

    def __init__(self, worker: Puppet) -> None:
        self.worker, self.output = worker, io.StringIO()
        self.progress: Any = PlainProgress(Console(file=self.output, width=200))
        self.num_slots, self.done = 2, 0.0
        self.refused: dict[Path, str] = {}
        self.trained: list[str] = []
        self.on_end: Callable[[Job], None]

    def train(self, jobs: Iterable[Job], exam: Any, rungs: Sequence[int], most: int | None) -> None:
        self._wait()
        for job in jobs:
            finish(job.folder)
            self.trained.append(job.folder.name)
            self.on_end(job)

    def examine(self, adapters: Sequence[tuple[Path, Path]], exam: Any) -> None:
        """In no time."""

    def _wait(self) -> None:
        end = time.monotonic() + 60
        while not self.worker.is_over:
            assert time.monotonic() < end
            time.sleep(0.001)


class Work:
    """Four jobs for a fleet of this process and one worker."""

    def __init__(self, folder: Path, *lives: Life) -> None:
        self.worker = Puppet(*lives)
        self.packs: Any = OwnPacks(self.worker)
        self.fleet = Fleet(self.packs, [self.worker])  # type: ignore[list-item]
        self.fleet.start()
        self.jobs = [Job(folder=folder / f"{n:04d}", config=CONFIG, origin="sampled") for n in range(4)]
        self.ended: list[str] = []
        self.fleet.on_end = lambda job: self.ended.append(job.folder.name)

    def train(self, jobs: Iterable[Job] | None = None) -> "Work":
        try:
            self.fleet.train(self.jobs if jobs is None else jobs, DEV, [1], 4)
        finally:
            self.fleet.close()
        return self

    @property
    def states(self) -> list[str]:
        return [read_trial(job.folder).state for job in self.jobs]


def test_what_a_worker_died_of_is_tried_by_another_worker_and_has_failed_then(tmp_path: Path) -> None:
    work = Work(tmp_path, ending("0001"), ending("0001")).train()
    assert work.states == ["complete", "failed", "complete", "complete"]
    assert read_trial(tmp_path / "0001").reason == f"{KILLED}, twice"
    assert sorted(work.ended) == ["0000", "0001", "0002", "0003"]
    assert work.packs.output.getvalue().count(f"device 1: {KILLED}; it starts again") == 2


def test_what_was_lost_by_chance_is_done_by_the_next_worker_from_its_start(tmp_path: Path) -> None:
    (tmp_path / "0000" / "epoch-01").mkdir(parents=True)
    work = Work(tmp_path, ending("0000")).train()
    assert work.states == ["complete"] * 4
    assert sorted(work.ended) == ["0000", "0001", "0002", "0003"]
    assert "0000" not in work.packs.trained
    assert not (tmp_path / "0000" / "epoch-01").exists()
    assert work.fleet.done == work.worker.done > 0


def test_a_device_whose_workers_only_die_is_left_alone(tmp_path: Path) -> None:
    everything = ending("0000", "0001", "0002", "0003")
    work = Work(tmp_path, *[everything] * 9).train()
    assert work.states == ["failed", "complete", "complete", "complete"]
    assert work.packs.trained == ["0001", "0002", "0003"]
    assert f"device 1: {KILLED}; it is left alone" in work.packs.output.getvalue()


def test_a_trial_that_ended_before_its_worker_could_say_so_has_ended(tmp_path: Path) -> None:
    work = Work(tmp_path, ending("0000", last=finish)).train()
    assert work.states == ["complete"] * 4
    assert sorted(work.ended) == ["0000", "0001", "0002", "0003"]


def test_a_worker_says_why_it_ends(tmp_path: Path) -> None:
    last = ending("0000", last=lambda folder: ("dying", "a reason"))
    work = Work(tmp_path, last).train()
    assert work.worker.last_words == "a reason"


def test_what_no_device_can_go_on_after_is_raised_at_the_end(tmp_path: Path) -> None:
    full = ending("0001", last=lambda folder: ("broke", BenchError("the disk is full")))
    work = Work(tmp_path, full)
    with pytest.raises(BenchError, match="the disk is full"):
        work.train()
    assert work.ended == ["0000"]


def test_a_sampler_that_breaks_for_a_worker_is_no_trial_s_fault(tmp_path: Path) -> None:
    def jobs() -> Iterator[Job]:
        yield work.jobs[0]
        raise RuntimeError("the sampler broke")

    work = Work(tmp_path, ending())
    with pytest.raises(RuntimeError, match="the sampler broke"):
        work.train(jobs())
    assert work.ended == ["0000"]


def test_adapters_that_killed_two_workers_are_refused(tmp_path: Path) -> None:
    work = Work(tmp_path, ending("a", "c"), ending("a", "c"))
    work.packs.examine = lambda adapters, exam: work.packs._wait()
    adapters = [(tmp_path / f"{name}.safetensors", tmp_path / name) for name in "abcd"]
    work.fleet.examine(adapters, DEV)
    work.fleet.close()
    assert set(work.fleet.refused.values()) == {f"{KILLED}, twice"}
    assert {folder.name for folder in work.fleet.refused} in ({"a", "b"}, {"c", "d"})


@pytest.mark.parametrize(
    ("number", "sizes"), [(0, []), (1, [1]), (3, [2, 1]), (9, [5, 4]), (40, [7, 7, 7, 7, 7, 5])]
)
def test_sheaves_are_few_and_alike(number: int, sizes: list[int]) -> None:
    adapters = [(Path(f"{n}.safetensors"), Path(f"{n}")) for n in range(number)]
    sheaves = sheaves_of(adapters, num_devices=2, num_slots=8)
    assert [len(sheaf.adapters) for sheaf in sheaves] == sizes
    assert [pair for sheaf in sheaves for pair in sheaf.adapters] == adapters


@pytest.mark.parametrize(
    ("visible", "seen"), [(None, "1"), ("", "1"), ("4,7", "7"), ("GPU-a1, GPU-b2", "GPU-b2")]
)
def test_a_worker_sees_its_device_alone(visible: str | None, seen: str) -> None:
    variables = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert environment(1, variables)["CUDA_VISIBLE_DEVICES"] == seen


def test_a_worker_asks_the_hub_for_nothing() -> None:
    code = (
        "from huggingface_hub import HfApi, constants, get_token; "
        "print(constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_IMPLICIT_TOKEN); HfApi().whoami('x')"
    )
    variables = os.environ | environment(0, os.environ)
    ended = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True)
    assert (ended.stdout, ended.returncode) == ("True True\n", 1)
    assert "OfflineModeIsEnabled" in ended.stderr


def test_a_processor_is_one_device_unless_more_are_wanted() -> None:
    cpu, threads = torch.device("cpu"), torch.get_num_threads()
    assert [count_devices(wanted, cpu) for wanted in ("auto", 1, 3)] == [1, 1, 3]
    torch.set_num_threads(4)
    with shared_threads(cpu, 3):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 4
    torch.set_num_threads(threads)
