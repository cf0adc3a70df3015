"""The help: every example in it is read by the parser; names complete; nothing heavy is needed."""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from rich.text import Text

from bench import cli, completion
from bench.run import Run

Bench = Callable[..., tuple[int, str, str]]
MakeRun = Callable[..., Run]


def commands() -> Iterator[tuple[str, Any]]:
    root = typer.main.get_command(cli.app)
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        yield from ((f"{name} {verb}", each) for verb, each in (inner or {}).items())
        if not inner:
            yield name, command


COMMANDS = dict(commands())


def examples(command: Any) -> list[list[str]]:
    """Arguments of each `bench …` line, up to a pipe."""
    lines = [line for line in Text.from_markup(command.epilog).plain.splitlines() if "bench " in line]
    words = [shlex.split(line, comments=True) for line in lines]
    return [each[: each.index("|")] if "|" in each else each for each in words]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_is_read(name: str) -> None:
    found = examples(COMMANDS[name])
    assert found
    for words in found:
        assert " ".join(words[:-1])[: len(f"bench {name}")] == f"bench {name}" or words[1:] == [name]
        COMMANDS[name].make_context(name, words[1 + len(name.split()) :])


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_verb_shows_its_examples_whole(bench: Bench, name: str) -> None:
    code, output, _ = bench(*name.split(), "--help")
    assert code == 0 and "Examples" in output
    for words in examples(COMMANDS[name]):
        assert " ".join(words[:4]).split('"')[0] in output
    assert "[cyan]" not in output


def test_verbs_stand_in_panels(bench: Bench) -> None:
    output = bench("--help")[1]
    found = re.findall(r"─ ([A-Z][a-z ]+) ─|^│ ([a-z]+) ", output, re.MULTILINE)
    panels: dict[str, list[str]] = {}
    for panel, verb in found:
        if panel:
            panels[panel] = []
        else:
            panels[list(panels)[-1]].append(verb)
    assert list(panels) == ["Options", "Search", "Look", "Use", "Care for"]
    assert panels["Search"] == ["search", "worker", "floor", "train"]
    assert {"runs", "show", "report", "compare", "score"} <= set(panels["Look"])
    assert {"export", "try", "push"} <= set(panels["Use"])
    assert panels["Care for"] == ["speed", "clean", "doctor", "data"]


def test_help_needs_nothing_heavy() -> None:
    heavy = {"torch", "numpy", "optuna", "pandas", "plotly", "diffusers", "PIL"}
    code = (
        "import sys\nsys.argv = ['bench', 'search', '--help']\nfrom bench.cli import main\n"
        f"try: main()\nexcept SystemExit: print(sorted({heavy} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]"


# What a shell completes


@pytest.fixture
def here(tmp_path: Path, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "other", "mine"):
        make_run(f"runs/{name}", ending="empty")
    (tmp_path / "runs" / "foreign").mkdir()
    (tmp_path / "outputs").mkdir()
    for file in ("own.safetensors", "own.txt", "space.yaml", "outputs/a.safetensors"):
        (tmp_path / file).write_text("")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("here")
def test_names_of_runs_and_spaces_and_adapters_complete() -> None:
    assert completion.run_names("o") == ["one", "other"]
    assert completion.run_names("x") == []
    assert completion.space_names("s") == ["sd15", "sdxl", "smoke", "space.yaml"]
    assert completion.adapter_names("o") == ["outputs/", "own.safetensors"]
    assert completion.adapter_names("outputs/") == ["outputs/a.safetensors"]
    assert completion.side_names("") == [
        *("base", "mine", "one", "other"),
        *("outputs/", "own.safetensors", "runs/"),
    ]
    assert completion.adapter_names("none/a") == []


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("bench show o", ["one", "other"]),
        ("bench compare mine o", ["one", "other", "outputs/", "own.safetensors"]),
        ("bench search --space sm", ["smoke"]),
        ("bench doc", ["doctor"]),
        ("bench show --tri", ["--trial"]),
    ],
)
def test_a_shell_asks_the_command(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, words: str, completed: list[str]
) -> None:
    monkeypatch.setenv("_BENCH_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    assert bench()[1].split() == completed
