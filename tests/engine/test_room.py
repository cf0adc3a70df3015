"""The room that a search needs, against what a real one writes."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import room as room_module
from bench.base import BaseModel
from bench.errors import UsageError
from bench.files import size_text
from bench.room import (
    FLOOR,
    WORKER,
    Done,
    Sizes,
    Task,
    adapter_size,
    done_in,
    evaluation,
    needed,
    sizes_of,
    usual,
)
from bench.run import Run, adapter_file, file_digests
from bench.series import find_series
from bench.session import Command, run_adapters, run_floor, run_scores, run_search, run_worker
from bench.shared import Place, share
from bench.space import load_space

SIZES = Sizes(
    resolution=1024,
    num_drawn={"dev": 48, "test": 96, "probe": 56, "floor": 96},
    num_pictures={"train": 60, "dev": 24, "test": 48},
    adapter=90_000_000,
    usual_adapter=30_000_000,
    default_adapter=45_000_000,
    state=270_000_000,
    num_running=8,
    cache=2_000_000_000,
)


def on_disk(folder: Path) -> int:
    """Bytes that all files take."""
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())


def test_the_estimate_is_at_least_what_a_search_writes_and_at_most_twice(
    searched: Any, base: BaseModel, tmp_path: Path
) -> None:
    run: Run = searched.run
    num_drawn = {split: sum(len(p.seeds) for p in of) for split, of in run.metadata.prompts.items()}
    sizes = sizes_of(run.space, base, run.metadata.num_images, num_drawn, 1, tmp_path)
    room = needed(run.space, sizes)
    wrote = on_disk(run.path) + searched.states
    assert wrote <= room.total - room.cache <= 2 * wrote
    assert on_disk(searched.cache) <= room.cache
    assert searched.states <= room.running + on_disk(run.path / "trials")
    about = usual(run.space, sizes)
    assert wrote / 2 <= about.total - about.cache < room.total - room.cache
    said = f"Note: the search takes about {size_text(about.total)} of disk, at most {size_text(room.total)} ("
    assert said in searched.said
    assert re.search(r"cache [\d.]+ MB\); [\d.]+ [MG]B are free\.", searched.said)
    written = adapter_file(run.trial_folder(0), 2).stat().st_size
    assert written <= adapter_size(base, run.space.default) <= 1.5 * written
    done = done_in(run.path)
    assert done == Done(trials=4, trainings=3, has_base=True)
    assert needed(run.space, sizes, done).total == 0


def test_too_little_room_is_one_line_and_nothing_is_written(
    make_command: Callable[..., Command], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UsageError) as refused:
        run_search(make_command(tmp_path, trials=10**9))
    said = str(refused.value)
    assert said.startswith(f"{tmp_path / 'runs'}: the search needs about ")
    assert re.search(r"[\d.]+ GB of disk, at most [\d.]+ GB \(.*trials [\d.]+ GB.*\), and .* are free", said)
    assert said.endswith("`bench clean RUN` removes what finished runs need no more")
    assert "\n" not in said
    assert not (tmp_path / "runs").exists()


def test_what_is_done_needs_no_room_again() -> None:
    space = load_space("default")
    whole = needed(space, SIZES)
    half = needed(space, SIZES, Done(trials=space.trials // 2, has_base=True))
    assert half.trials == whole.trials // 2
    assert (half.base, half.cache) == (0, 0)
    assert half.confirmation == whole.confirmation
    assert needed(space, SIZES, Done(trials=space.trials + 5)).trials == 0


def test_a_worker_needs_room_for_trials_alone_about_half_of_them() -> None:
    space = load_space("default")
    whole, part = needed(space, SIZES), needed(space, SIZES, task=WORKER)
    assert part == replace(whole, confirmation=0)
    assert usual(space, SIZES, task=WORKER).trials == pytest.approx(usual(space, SIZES).trials / 2, abs=1)


def test_a_floor_needs_room_for_trainings_of_the_default_alone() -> None:
    space = load_space("default")
    whole, floor = needed(space, SIZES), needed(space, SIZES, task=FLOOR)
    assert (floor.trials, floor.base) == (0, whole.base)
    assert 0 < floor.confirmation < whole.confirmation
    ended = Done(trainings=max(space.confirm.seeds, space.floor), has_base=True)
    assert needed(space, SIZES, ended, FLOOR).total == 0


def test_adapters_that_are_scored_need_room_for_their_images() -> None:
    space = load_space("default")
    task = Task(name="scoring", drawings=[("a", "dev"), ("b", "dev"), ("", "test")])
    room = needed(space, SIZES, Done(has_base=True), task)
    drawn = [evaluation(SIZES, SIZES.num_drawn[split]) for _, split in task.drawings]
    assert room.total == room.drawings == sum(drawn)


@pytest.mark.parametrize("verb", ["worker", "floor", "score", "compare"])
def test_every_verb_that_writes_much_looks_at_the_disk_first(
    make_command: Callable[..., Command],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    searched: Any,
    verb: str,
) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    command, adapter = make_command(tmp_path), adapter_file(searched.run.trial_folder(0), 2)
    place = Place(url=f"sqlite:///{tmp_path}/both.db", artifacts=str(tmp_path / "artifacts"))
    if verb == "worker":
        with share(searched.run, place, takes_over=True):
            pass
    monkeypatch.setattr(room_module, "free_bytes", lambda path: 1000)
    names = {"worker": "this machine's part of the search", "floor": "the floor"}
    with pytest.raises(UsageError) as refused:
        match verb:
            case "worker":
                run_worker(replace(command, name="small"), place, {})
            case "floor":
                run_floor(command)
            case "score":
                run_scores(command, find_series([adapter]))
            case _:
                run_adapters(command, file_digests([adapter]))
    said = str(refused.value)
    assert said.startswith(f"{tmp_path / 'runs'}: {names.get(verb, 'scoring')} needs about ")
    assert said.endswith("and 0.0 MB are free; `bench clean RUN` removes what finished runs need no more")
    assert not (tmp_path / "runs").exists()


def test_adapters_that_were_drawn_need_no_room_again(
    make_command: Callable[..., Command], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, searched: Any
) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(searched.cache))
    command, adapter = make_command(tmp_path), adapter_file(searched.run.trial_folder(0), 2)
    run_adapters(command, file_digests([adapter]))
    monkeypatch.setattr(room_module, "free_bytes", lambda path: 1000)
    run_adapters(command, file_digests([adapter]))
    assert "Note: scoring takes about 0.0 MB of disk, at most 0.0 MB (nothing)" in said_by(command)


def said_by(command: Command) -> str:
    return command.console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_what_is_usual_has_lighter_adapters_and_fewer_rungs() -> None:
    space = load_space("default")
    most, about = needed(space, SIZES), usual(space, SIZES)
    assert about.trials < most.trials * (len(space.rungs) + 1) / (2 * len(space.rungs))
    assert about.running == pytest.approx(most.running / 3, rel=1e-3)
    assert (about.base, about.cache) == (most.base, most.cache)


def test_more_prompts_pixels_or_weights_need_more() -> None:
    space = load_space("default")
    whole = needed(space, SIZES).total
    more = {"resolution": 2048, "num_drawn": {**SIZES.num_drawn, "dev": 96}, "adapter": 180_000_000}
    for name, value in more.items():
        assert needed(space, replace(SIZES, **{name: value})).total > whole


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0.0 MB"), (1_240_000, "1.2 MB"), (34_055_282, "34 MB"), (1_240_000_000, "1.2 GB")],
)
def test_sizes_are_told_in_words(size: int, text: str) -> None:
    assert size_text(size) == text
