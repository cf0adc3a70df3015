"""`bench runs` and `bench show`: a run in any state, in a terminal, in a pipe and as JSON."""

import base64
import io
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Sketch, build_run
from PIL import Image

from bench import cli
from bench.listing import Listed, list_runs, size_of
from bench.lock import locked
from bench.run import Run
from reports import outcome, runs, show_json
from reports.outcome import outcome_of
from reports.terminal import HEIGHT, escaped, protocol_of, strip
from reports.verdict import contests, verdict

Bench = Callable[..., tuple[int, str, str]]
MakeRun = Callable[..., Run]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder runs/ with a run in every state, and folders that are none; not to be changed."""
    folder = tmp_path_factory.mktemp("shelf")
    build_run(folder / "done", Sketch(gain=0.5, prompts=12, training_seeds=3))
    build_run(folder / "default", Sketch(winner="default"))
    build_run(folder / "begun", Sketch(ending="interrupted"))
    build_run(folder / "fails", Sketch(ending="failed", reason="\x1b[31mout of memory"))
    build_run(folder / "empty", Sketch(ending="empty"))
    for name, text in (("torn", "{"), ("strange", '{"schema_version": 2}'), ("old", '{"schema_version": 1}')):
        (folder / name).mkdir()
        (folder / name / "run.json").write_text(text)
    (folder / "photos").mkdir()
    (folder / "compare-a-b.html").write_text("a page")
    return folder


@pytest.fixture
def shelf(built: Path, tmp_path: Path) -> Path:
    """The same as runs/ of the working directory."""
    (tmp_path / "runs").symlink_to(built, target_is_directory=True)
    return tmp_path / "runs"


def documented(module: Any) -> set[str]:
    return set(re.findall(r"\w+", str(module.__doc__)))


def test_every_folder_is_a_row_with_its_state(bench: Bench, shelf: Path) -> None:
    code, output, errors = bench("runs")
    assert (code, errors) == (0, "")
    rows = [line.split() for line in output.splitlines()[1:] if line[0] != " "]
    states = {row[0]: row[1] for row in rows}
    assert states == {
        "begun": "unfinished",
        "default": "finished",
        "done": "finished",
        "empty": "empty",
        "fails": "failed",
        "old": "damaged",
        "photos": "foreign",
        "strange": "damaged",
        "torn": "damaged",
    }
    assert "no run.json in it" in output and "schema version 1" in output
    assert "\x1b" not in output


def test_a_row_says_what_the_report_says(bench: Bench, shelf: Path) -> None:
    data = json.loads(bench("runs", "--json")[1])
    assert data["schema_version"] == 1
    rows = {row["name"]: row for row in data["runs"]}
    run = Run.open(shelf / "done")
    result = run.result()
    assert result
    found = contests(run, result)
    main = found.over_default and found.over_default.main
    assert main and rows["done"]["winner"] == "0002"
    assert (rows["done"]["gain"], rows["done"]["stderr"]) == (main.mean, main.stderr)
    assert rows["done"]["verdict"] == "WIN"
    assert rows["done"]["headline"] == verdict(run, result, []).headline
    assert (rows["default"]["winner"], rows["default"]["verdict"]) == ("default", None)
    assert rows["default"]["verdict_over_base"] is not None
    assert (rows["begun"]["trials_done"], rows["begun"]["trials_wanted"]) == (6, 16)
    assert rows["torn"]["problem"].startswith("runs/torn/run.json: cannot be read")
    assert {key for row in data["runs"] for key in row} <= documented(outcome)
    assert set(data) <= documented(runs)


def test_a_damaged_result_or_trial_is_a_row_too(built: Path, tmp_path: Path) -> None:
    shelf = tmp_path / "runs"
    shutil.copytree(built, shelf)
    (shelf / "done" / "result.json").write_text('{"winner": 3}')
    (shelf / "begun" / "trials" / "0001" / "trial.json").write_text("[")
    data = json.loads((shelf / "default" / "run.json").read_text())
    (shelf / "default" / "run.json").write_text(json.dumps(data | {"space": {"trials": -1}}))
    states = {found.name: found.state for found in map(outcome_of, list_runs(shelf))}
    assert states["done"] == states["begun"] == states["default"] == "damaged"


def test_a_search_that_runs_is_said_to_run(make_run: MakeRun) -> None:
    run = make_run("runs/mine", ending="interrupted")
    with locked(run.path):
        found = outcome_of(Listed(path=run.path, run=run))
    assert (found.state, found.headline) == ("running", "The search is running.")
    with locked(run.path):
        pass  # the file of the lock stays, and who only looked does not hold it
    assert outcome_of(Listed(path=run.path, run=run)).state == "unfinished"


def test_size_counts_every_file_once(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "one").write_bytes(bytes(10))
    (tmp_path / "a" / "b" / "two").write_bytes(bytes(32))
    (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert size_of(tmp_path / "a") == 42


def test_no_runs_are_said(bench: Bench) -> None:
    assert bench("runs")[:2] == (0, f"No runs in {Path('runs').absolute()}\n")
    assert json.loads(bench("runs", "--json")[1])["runs"] == []


# bench show


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "done",
            ("done: finished, 6 of 16", "Trial 2 wins.", "Recommended", "Confirmed scores", "trial 5: "),
        ),
        ("default", ("Keep the default config.", "Confirmed scores")),
        ("begun", ("begun: unfinished", "The search has not finished.", "Best so far: trial 2", "Failures")),
        ("fails", ("fails: failed", "Every trial failed.", "trial 0: \\x1b[31mout of memory")),
        ("empty", ("empty: empty, 0 of 16", "Nothing has been tried yet.", "whole search")),
    ],
)
def test_a_run_in_any_state_is_shown(bench: Bench, shelf: Path, name: str, said: tuple[str, ...]) -> None:
    code, output, errors = bench("show", name)
    assert (code, errors) == (0, "")
    assert [text for text in said if text not in output] == []
    assert "\x1b" not in output


def test_images_are_paths_in_a_pipe(bench: Bench, shelf: Path) -> None:
    output = bench("show", "done")[1]
    paths = [line.rsplit(": ", 1)[1] for line in output.splitlines() if line.endswith(".webp")]
    assert len(paths) == 3 * 4
    assert all(Path(path).exists() for path in paths)


def test_one_trial_is_shown(bench: Bench, shelf: Path) -> None:
    output = bench("show", "done", "--trial", "2")[1]
    assert "Trial 2 of done: complete, sampled" in output
    assert "epoch 2" in output and "epoch 4" in output
    assert "runs/done/trials/0002/config.yaml" in output
    assert "failed: loss is NaN at step 12" in bench("show", "done", "--trial", "5")[1]
    code, _, errors = bench("show", "done", "--trial", "77")
    assert (code, errors) == (
        2,
        "bench: --trial 77: runs/done has no such trial; there are 0, 1, 2, 3, 4, 5\n",
    )


@pytest.mark.parametrize("name", ["done", "default", "begun", "fails", "empty"])
def test_json_holds_what_is_documented(bench: Bench, shelf: Path, name: str) -> None:
    code, output, _ = bench("show", name, "--json")
    data = json.loads(output)
    assert code == 0
    known = documented(show_json)
    assert set(data) <= known
    for each in (*data["candidates"], *data["trials"], data["recommended"] or {}):
        assert set(each) <= known
    for trial in data["trials"]:
        assert all(set(score) <= known for entry in trial["epochs"] for score in entry["scores"].values())


def test_json_of_a_run_and_of_its_trial_agree(bench: Bench, shelf: Path) -> None:
    data = json.loads(bench("show", "done", "--json")[1])
    assert data["recommended"]["config"]["rank"] == 8
    assert Path(data["recommended"]["training_config"]).exists()
    assert [each["kind"] for each in data["candidates"]] == ["default", "winner", "sampled"]
    assert data["over_default"]["verdict"] == data["outcome"]["verdict"] == "WIN"
    one = json.loads(bench("show", "done", "--trial", "2", "--json")[1])
    assert one["trial"] == data["trials"][2]
    assert [entry["epoch"] for entry in one["trial"]["epochs"]] == [2, 4]


# Images in a terminal


@pytest.mark.parametrize(
    ("environment", "protocol"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        ({"TERM_PROGRAM": "WezTerm"}, "iterm2"),
        ({"TERM_PROGRAM": "ghostty"}, "kitty"),
        ({"TERM": "xterm-256color"}, None),
        ({"TERM": "screen-256color", "TERM_PROGRAM": "iTerm.app"}, None),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/tmux"}, None),
        ({}, None),
    ],
)
def test_a_terminal_is_known_by_its_environment(environment: dict[str, str], protocol: str | None) -> None:
    assert protocol_of(environment) == protocol


def test_images_stand_side_by_side_and_missing_ones_leave_room(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    (tmp_path / "torn.png").write_bytes(b"no picture")
    sheet = strip([tmp_path / "a.png", None, tmp_path / "torn.png", tmp_path / "a.png"])
    assert sheet and sheet.height == HEIGHT and sheet.width > 4 * HEIGHT
    assert sheet.getpixel((sheet.width - 1, 0)) == (255, 0, 0, 255)
    assert strip([None, tmp_path / "none.png"]) is None


def test_escape_sequences_carry_the_image() -> None:
    generator = Image.effect_noise((90, 90), 50).convert("RGB")
    for protocol, pattern in (
        ("iterm2", r"\x1b\]1337;File=inline=1;size=\d+;width=90px;height=90px:([^\x07]*)\x07"),
        ("kitty", r"\x1b_G[^;]*;([^\x1b]*)\x1b\\"),
    ):
        text = escaped(generator, protocol)  # type: ignore[arg-type]
        content = base64.b64decode("".join(re.findall(pattern, text)))
        assert Image.open(io.BytesIO(content)).tobytes() == generator.tobytes()
    assert text.startswith("\x1b_Ga=T,f=100,m=1;")
    assert re.findall(r"m=(\d)", text)[-1] == "0"


def test_a_terminal_that_can_is_given_images(
    bench: Bench, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    monkeypatch.setenv("TERM", "xterm-kitty")
    monkeypatch.delenv("TMUX", raising=False)
    output = bench("show", "done")[1]
    assert output.count("\x1b_Ga=T,f=100,") == 3
    assert "(base model | default config | trial 2 | real picture)" in output
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b_G" not in bench("show", "done")[1]


def test_a_pipe_is_given_plain_whole_lines(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run("runs/one", metadata=(("data", "/".join(["deep"] * 60)),))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(sys, "argv", ["bench", "runs"])
    with pytest.raises(SystemExit):
        cli.main()
    assert len(capsys.readouterr().out.splitlines()) == 2
