"""The room that a search needs, against what a real one writes."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.base import BaseModel
from bench.errors import UsageError
from bench.files import size_text
from bench.room import Done, Sizes, adapter_size, done_in, needed, sizes_of, usual
from bench.run import Run, adapter_file
from bench.session import Command, run_search
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
