"""The command: its flags are frozen, and what is wrong is one line and exit code 2."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer.main

from bench import cli
from bench.run import Run

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`bench("search", …)` in tmp_path: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["bench", *arguments])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return int(exit_.value.code or 0), *capsys.readouterr()

    return run


@pytest.fixture
def two_runs(tmp_path: Path, make_run: Callable[..., Run]) -> None:
    make_run("runs/one")
    make_run("runs/two", gain=0.3)


def test_flags_are_frozen() -> None:
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    flags = {name: [parameter.name for parameter in command.params] for name, command in commands.items()}
    assert flags == {
        "search": ["space", "base", "data", "name", "trials", "budget", "seed"],
        "report": ["run"],
        "compare": ["run_a", "run_b"],
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("search", "--space", "nope"), "bench: --space nope: no such space; shipped are default"),
        (("search", "--space", "my.yaml"), "bench: my.yaml: no such file"),
        (("search", "--name", "../up"), "bench: --name '../up': use up to 64 letters"),
        (("search", "--name", "a" * 65), "use up to 64 letters"),
        (("search", "--data", "./none"), "bench: ./none: no such folder"),
        (("search", "--data", "emoji/none!"), "emoji/pixel16"),
        (("search", "--budget", "soon"), "bench: --budget: budget"),
        (("search", "--base", "./none"), "bench: base ./none: no such folder"),
        (("search", "--base", "someone/something"), "get it with: hf download someone/something"),
        (("search", "--space", "sdxl"), "bench: --data: the space 'sdxl' names none"),
        (("report", "none"), "bench: none: no such run; in runs/ are: none"),
        (("compare", "none", "none"), "bench: none: no such run"),
    ],
)
def test_what_is_wrong_is_one_line(
    bench: Command, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    code, _, errors = bench(*arguments)
    assert code == 2
    assert message in errors
    assert len(errors.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [("search", "--trials", "0"), ("search", "--seed", "-1"), ("search", "--nope"), ("compare", "a")],
)
def test_a_wrong_flag_is_refused(bench: Command, arguments: tuple[str, ...]) -> None:
    assert bench(*arguments)[0] == 2


def test_what_is_wrong_with_data_is_all_listed(bench: Command, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.png").write_bytes(b"not a picture")
    (tmp_path / "mine" / "b.png").write_bytes(b"")
    code, _, errors = bench("search", "--data", "./mine")
    assert code == 2
    assert "a.png" in errors and "b.png" in errors
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("two_runs")
def test_compare_prints_a_verdict_and_writes_a_page(bench: Command, tmp_path: Path) -> None:
    code, output, _ = bench("compare", "one", "two")
    assert code == 0
    assert "Similarity to the true picture" in output
    assert (tmp_path / "runs" / "compare-one-two.html").exists()


@pytest.mark.usefixtures("two_runs")
def test_report_is_written_again(bench: Command, tmp_path: Path) -> None:
    assert bench("report", "one")[0] == 0
    assert bench("report", "runs/two")[0] == 0
    assert (tmp_path / "runs" / "two" / "report.html").exists()


@pytest.mark.usefixtures("two_runs")
def test_a_run_that_does_not_exist_names_those_that_do(bench: Command) -> None:
    assert "in runs/ are: one, two" in bench("report", "three")[2]
