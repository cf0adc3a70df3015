"""Fleet: who does what, and what becomes of what a worker died of. Its workers here are generators."""

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from bench import run as runs
from bench.config import TrialConfig
from bench.errors import BenchError, DeviceError, UsageError
from bench.fleet import Fleet, count_devices, shared_threads, sheaves_of
from bench.packs import Job, Survey
from bench.progress import PlainProgress
from bench.rates import Rates
from bench.run import read_trial
from bench.space import Sampler
from bench.workers import Gone, environment

CONFIG = TrialConfig(rank=2, alpha=2, learning_rate=1e-4, epochs=1)
SURVEY = Survey(resolution=64, num_shown=60, num_slots=2, num_drawn={"dev": 8})
JOINED: Any = object()
KILLED = "its process was ended by SIGKILL"
Words = Iterator[tuple[Any, ...]]
Life = Callable[["Puppet"], Words]


class Puppet:
    """A worker that says what its lives say, one after the other, and then lives without end."""

    def __init__(self, *lives: Life) -> None:
        self.number, self.done, self.deaths, self.given_up, self.reason = 0, 0.0, 0, False, ""
        self.load: Any = None
        self.side_by_side: list[int] = []
        self.running: dict[Path, Any] = {}
        self.last_words: str | None = None
        self.answer: Any = None
        self._lives = iter([*lives, ending()])

    def start(self) -> None:
        self.last_words, self._words = None, next(self._lives)(self)

    def hear(self) -> tuple[Any, ...]:
        for words in self._words:
            return 1.0, *words
        raise Gone(self.last_words or KILLED)

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
        yield "opened", None, SURVEY
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


def side_by_side(number: int, deadly: str) -> Life:
    """A life that takes so many at a time and ends them together, or none if a deadly one is among them."""

    def life(worker: Puppet) -> Words:
        yield "opened", None, SURVEY
        while True:
            yield ("order",)
            order = worker.answer
            items = []
            for _ in range(number):
                yield "take", order
                if not worker.answer:
                    break
                items.append(worker.answer)
            worker.side_by_side.append(len(items))
            if any(item.folder.name == deadly for item in items):
                return
            for item in items:
                finish(item.folder)
                yield "ended", item.folder, {}

    return life


def rehearsing(*rates: Rates) -> Life:
    """A life that measures, or dies of it where there is nothing to say."""

    def life(worker: Puppet) -> Words:
        yield "opened", None, SURVEY
        while True:
            yield ("order",)
            order = worker.answer
            yield "take", order
            while item := worker.answer:
                assert order.rehearses and item.config == CONFIG
                if not rates:
                    return
                yield "rehearsed", rates[0]
                yield "ended", item.folder, {}
                yield "take", order

    return life


def finish(folder: Path) -> None:
    runs.start_trial(folder, CONFIG, "sampled")
    runs.end_trial(folder, "complete", 1.0)


class Work:
    """Four jobs for a fleet of one worker."""

    def __init__(self, folder: Path, *lives: Life) -> None:
        self.worker, self.output = Puppet(*lives), io.StringIO()
        progress = PlainProgress(Console(file=self.output, width=200))
        self.fleet = Fleet([self.worker], progress, join=JOINED)  # type: ignore[list-item]
        self.fleet.start()
        self.jobs = [Job(folder=folder / f"{n:04d}", config=CONFIG, origin="sampled") for n in range(4)]
        self.ended: list[str] = []
        self.fleet.on_end = lambda job: self.ended.append(job.folder.name)

    def train(self, jobs: Iterable[Job] | None = None) -> "Work":
        try:
            self.fleet.train(self.jobs if jobs is None else jobs, "dev", [1], 4)
        finally:
            self.fleet.close()
        return self

    @property
    def states(self) -> list[str | None]:
        """None: never begun."""
        files = (job.folder / "trial.json" for job in self.jobs)
        return [read_trial(file.parent).state if file.exists() else None for file in files]


def test_one_worker_measures_for_a_forecast(tmp_path: Path) -> None:
    rates = Rates(sample_seconds=0.1, forward_seconds=0.02)
    work = Work(tmp_path, rehearsing(rates))
    assert work.fleet.rehearse(CONFIG, Sampler(steps=4)) == rates
    work.fleet.close()


def test_a_measurement_that_kills_workers_says_nothing(tmp_path: Path) -> None:
    work = Work(tmp_path, rehearsing(), rehearsing(), ending())
    assert work.fleet.rehearse(CONFIG, Sampler(steps=4)) is None
    assert work.train().states == ["complete"] * 4


@pytest.mark.fault(1)
def test_what_a_worker_died_of_is_tried_again_and_has_failed_then(tmp_path: Path) -> None:
    work = Work(tmp_path, ending("0001"), ending("0001")).train()
    assert work.states == ["complete", "failed", "complete", "complete"]
    assert read_trial(tmp_path / "0001").reason == f"{KILLED}, twice"
    assert sorted(work.ended) == ["0000", "0001", "0002", "0003"]
    assert work.output.getvalue().count(f"device 0: {KILLED}; it starts again") == 2


def test_what_was_lost_by_chance_is_done_by_the_next_worker(tmp_path: Path) -> None:
    work = Work(tmp_path, ending("0000")).train()
    assert work.states == ["complete"] * 4
    assert work.ended == ["0000", "0001", "0002", "0003"]
    assert work.fleet.done == work.worker.done > 0
    assert work.worker.load is JOINED


def test_what_was_lost_together_is_tried_again_one_by_one(tmp_path: Path) -> None:
    work = Work(tmp_path, side_by_side(3, "0001"), side_by_side(3, "0001")).train()
    assert work.states == ["complete", "failed", "complete", "complete"]
    assert [number for number in work.worker.side_by_side if number] == [3, 1, 1]


def test_a_device_whose_workers_only_die_is_left_alone(tmp_path: Path) -> None:
    work = Work(tmp_path, *[ending("0000", "0001", "0002", "0003")] * 9)
    with pytest.raises(DeviceError, match=f"device 0: {KILLED}; finished trials are kept"):
        work.train()
    assert work.states == ["failed", None, None, None]
    assert f"device 0: {KILLED}; it is left alone" in work.output.getvalue()


def test_a_run_that_cannot_be_opened_is_not_tried_for_ever(tmp_path: Path) -> None:
    def dying(worker: Puppet) -> Words:
        yield "dying", "no memory is left"

    with pytest.raises(DeviceError, match="device 0: no memory is left"):
        Work(tmp_path, *[dying] * 9)


def test_a_first_device_that_never_opens_the_run_is_said_though_others_wait() -> None:
    def dying(worker: Puppet) -> Words:
        yield "dying", "no memory is left"

    def joining(worker: Puppet) -> Words:
        yield ("metadata",)

    first, second = Puppet(*[dying] * 3), Puppet(joining)
    second.number = 1
    progress = PlainProgress(Console(file=io.StringIO()))
    fleet = Fleet([first, second], progress, join=JOINED)  # type: ignore[list-item]
    with pytest.raises(DeviceError, match="^device 0: no memory is left$"):
        fleet.start()
    fleet.close()
    assert first.given_up and not second.given_up


def test_what_is_wrong_with_a_run_that_is_opened_is_raised_as_it_is(tmp_path: Path) -> None:
    def refusing(worker: Puppet) -> Words:
        yield "broke", UsageError("data: no such folder")

    with pytest.raises(UsageError, match="data: no such folder"):
        Work(tmp_path, refusing)


def test_a_trial_that_ended_before_its_worker_could_say_so_has_ended(tmp_path: Path) -> None:
    work = Work(tmp_path, ending("0000", last=finish)).train()
    assert work.states == ["complete"] * 4
    assert sorted(work.ended) == ["0000", "0001", "0002", "0003"]


def test_a_worker_says_why_it_ends(tmp_path: Path) -> None:
    last = ending("0000", last=lambda folder: ("dying", "a reason"))
    work = Work(tmp_path, last).train()
    assert "device 0: a reason; it starts again" in work.output.getvalue()


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
    adapters = [(tmp_path / f"{name}.safetensors", tmp_path / name) for name in "abcd"]
    work.fleet.examine(adapters, "dev")
    work.fleet.close()
    assert set(work.fleet.refused.values()) == {f"{KILLED}, twice"}
    assert {folder.name for folder in work.fleet.refused} == {"a", "b"}


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
