"""bench's engine on fixed configurations, from a cold start: train, draw, score and write everything.

Started by against_script.py in a process of its own, with a file that says what to do.
"""

import json
import sys
import time
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from bench.packs import Job, Packs, Rung
from bench.progress import show_progress
from bench.run import Run, adapter_file, epoch_folder, read_evaluation
from bench.scoring.exam import Exam
from bench.session import Command, Engine, open_session, packs_of
from bench.space import SearchSpace
from trainers.adapters import attach
from trainers.loop import train

T = TypeVar("T")

AGAIN = 1000
"""Number of the first trial of the second time, when graphs and kernels are chosen but not captured."""


class Stopwatch:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[stage] += time.monotonic() - started

    def each(self, stage: str, items: Generator[T, None, None]) -> Generator[T, None, None]:
        """`items`, with the time until each is there."""
        with closing(items):
            while True:
                with self.time(stage):
                    item = next(items, None)
                if item is None:
                    return
                yield item


class TimedExam:
    """An Exam that says how long it draws: scoring goes on beside it, and only the rest of that counts."""

    def __init__(self, exam: Exam, watch: Stopwatch) -> None:
        self._exam, self._watch = exam, watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._exam, name)

    def draw(self, *arguments: Any) -> Any:
        return self._watch.each("drawing", self._exam.draw(*arguments))


def main(task: Mapping[str, Any]) -> None:
    space = space_of(task)
    console = Console(width=200)
    watch, again = Stopwatch(), Stopwatch()
    watches = [watch]

    def timed(*arguments: Any) -> Generator[Rung, None, None]:
        return watches[-1].each("training", train(*arguments))

    command = Command(
        space=space,
        name="study",
        folder=Path(task["runs"]),
        seed=0,
        engine=Engine(train=timed, attach=attach),
        console=console,
    )
    with open_session(command, "study") as session, show_progress(console) as progress:
        packs = packs_of(session, command.engine, progress)
        with watch.time("base's images"):
            exam = session.exam("dev", packs)
        with watch.time("all"):
            run_trials(packs, TimedExam(exam, watch), session.run, space, task["configs"])
        if task["again"]:
            watches.append(again)
            with again.time("all"):
                run_trials(packs, TimedExam(exam, again), session.run, space, task["configs"], AGAIN)
    drift = drifts(session.run, space, len(task["configs"]))
    answer = {"seconds": by_stage(watch), "drift": drift, "again": task["again"] and by_stage(again)}
    Path(task["answer"]).write_text(json.dumps(answer))


def by_stage(watch: Stopwatch) -> dict[str, float]:
    seconds = dict(watch.seconds)
    seconds["scoring"] = seconds.pop("all") - seconds["drawing"] - seconds["training"]
    return seconds


def space_of(task: Mapping[str, Any]) -> SearchSpace:
    """A space that is never searched: it says how trials are trained, drawn and scored."""
    rows = Path(task["data"], "train", "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    ranks = sorted({config["rank"] for config in task["configs"]})
    default = {
        **task["configs"][0],
        "alpha": ranks[0],
        "dropout": 0,
        "epochs": task["steps"] * task["batch"] // len(rows),
        "target_modules": "attention",
        "batch_size": task["batch"],
    }
    probes = {"training": 0, "altered": 0, "style": 0, "unrelated": 0}
    return SearchSpace.model_validate(
        {
            "name": "study",
            **{name: task[name] for name in ("base", "data", "resolution", "dtype", "slots")},
            "parameters": {"rank": {"choices": ranks}, "alpha": {"ratio": [1]}},
            "default": default,
            "prompts": {"dev": task["images"] // task["seeds"], "test": 2, "seeds": task["seeds"], **probes},
            "sampler": {"steps": task["sampler_steps"], "guidance": task["guidance"]},
            "floor": 0,
            "devices": 1,
        }
    )


def run_trials(
    packs: Packs,
    exam: Any,
    run: Run,
    space: SearchSpace,
    configs: Sequence[Mapping[str, Any]],
    first: int = 0,
) -> None:
    """The only call of the engine; `first` is the number of the first trial."""
    jobs = [
        Job(
            folder=run.trial_folder(number),
            config=space.default.model_copy(update={**config, "alpha": config["rank"]}),
            origin="sampled",
        )
        for number, config in enumerate(configs, first)
    ]
    packs.exams["dev"] = exam
    packs.train(jobs, "dev", space.rungs)


def drifts(run: Run, space: SearchSpace, count: int) -> list[float]:
    """FID of each trial against the base; exits unless every one was trained, kept and scored."""
    found = []
    for record in run.trials()[:count]:
        if record.state != "complete" or not adapter_file(record.path, space.default.epochs).is_file():
            raise SystemExit(f"trial {record.label}: {record.state}: {record.reason}")
        found.append(read_evaluation(epoch_folder(record.path, space.default.epochs)).scores["drift"].value)
    if len(found) != count:
        raise SystemExit(f"{len(found)} of {count} trials were trained")
    return found


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
