"""Progress: a live display on a terminal, plain lines elsewhere, both with the time left."""

import io

import pytest
from rich.console import Console

from bench.progress import LiveProgress, PlainProgress, parts_of, paused, show_progress


def events(progress: LiveProgress | PlainProgress) -> None:
    progress.total(100)
    progress.slots(["0000  rank 8"])
    progress.slots(["0000  rank 8", "0001  rank 4"])
    progress.status("training 2 side by side: step 1 of 9")
    progress.advance(50)
    progress.line("0001 epoch 4: similarity 0.5 [not markup]")
    progress.best("0001 epoch 4: similarity 0.5")


def test_a_pipe_gets_plain_lines() -> None:
    output = io.StringIO()
    with show_progress(Console(file=output, width=40)) as progress:
        events(progress)
    lines = output.getvalue().splitlines()
    assert "\x1b" not in output.getvalue()
    assert lines[0] == "[0:00] training 0000  rank 8"
    assert sum("training 0001" in line for line in lines) == 1
    assert lines[-2] == "[0:00] 0001 epoch 4: similarity 0.5 [not markup]"
    assert "best so far: 0001 epoch 4: similarity 0.5 (about 0:00 left)" in lines[-1]


def test_a_terminal_gets_a_bar_with_slots_status_and_best() -> None:
    output = io.StringIO()
    with show_progress(Console(file=output, force_terminal=True, width=100, height=40)) as progress:
        assert isinstance(progress, LiveProgress)
        events(progress)
        progress.live.refresh()
    text = output.getvalue()
    for part in ("0001  rank 4", "step 1 of 9", "best so far: 0001", "50%", "left", "[not markup]"):
        assert part in text


def test_several_devices_share_a_display() -> None:
    output = io.StringIO()
    with show_progress(Console(file=output, force_terminal=True, width=100, height=40)) as progress:
        assert isinstance(progress, LiveProgress)
        first, second = parts_of(progress, 2)
        progress.total(100)
        for number, part in enumerate((first, second)):
            part.slots([f"000{number}  rank 8"])
            part.status(f"training {number + 1} side by side")
            part.advance(25)
        progress.live.refresh()
        both = output.getvalue()
        first.slots([])
        first.status("")
        output.truncate(0)
        progress.live.refresh()
    for text in (
        "0000  rank",
        "0001  rank",
        "device 0: training 1 side by side; device 1: training 2",
        "50%",
    ):
        assert text in both
    assert "device 1: training 2" in output.getvalue()
    assert "0000  rank" not in output.getvalue()


def test_a_live_display_makes_room_for_a_question_and_comes_back() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    with show_progress(console) as progress:
        assert isinstance(progress, LiveProgress)
        with paused(progress):
            assert not progress.live.is_started
            console.print("Go on?")
        assert progress.live.is_started
        with pytest.raises(KeyError), paused(progress):
            raise KeyError
        assert not progress.live.is_started


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    with show_progress(Console(file=io.StringIO(), force_terminal=True)) as progress:
        assert isinstance(progress, PlainProgress)
