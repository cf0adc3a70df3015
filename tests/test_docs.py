"""The documentation: the reference is what the code says, and every command in it is one that there is."""

import importlib.util
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import typer.main

import bench
from bench import cli
from bench.scoring.metrics import METRICS
from reports.notebook import OpenRun

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    """docs/make_reference.py."""
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "docs" / "make_reference.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_what_the_code_says(maker: ModuleType) -> None:
    committed = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert committed == maker.reference(), "run: python docs/make_reference.py"


def test_the_reference_has_every_option(maker: ModuleType) -> None:
    """The names that typer makes of the functions are those in the tables."""
    page = maker.reference()
    for name, command in commands():
        section = page.split(f"### bench {name}\n")[1].split("\n### ")[0]
        for parameter in command.params:  # type: ignore[attr-defined]
            names = parameter.opts if parameter.param_type_name == "option" else []
            assert all(option in section for option in names), (name, names)


def commands() -> Iterator[tuple[str, object]]:
    root = typer.main.get_command(cli.app)
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", {})
        yield from ((f"{name} {verb}", each) for verb, each in inner.items())
        if not inner:
            yield name, command


def typed(page: Path) -> Iterator[list[str]]:
    """Arguments of each line of a code block that runs bench."""
    for line in page.read_text(encoding="utf-8").splitlines():
        for part in line.strip().split("&&") if line.startswith("    ") else ():
            words = shlex.split(part.replace("…", ""), comments=True) if "bench " in part else []
            words = words[: words.index("|")] if "|" in words else words
            if words[:1] == ["bench"]:
                yield words[1:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_documentation_are_read(page: Path) -> None:
    known = dict(commands())
    for words in typed(page):
        name = " ".join(words[:2]) if words[0] == "data" else words[0]
        assert name in known, f"{page.name}: bench {' '.join(words)}"
        rest = words[len(name.split()) :]
        known[name].make_context(name, rest)  # type: ignore[attr-defined]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_in_the_documentation_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_metric_is_explained() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert [name for name in METRICS if f"`{name}`" not in page] == []


def test_the_python_api_is_documented_as_it_is() -> None:
    """Every function with its parameters, and every attribute of a run."""
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    for name in bench.__all__:
        parameters = inspect.signature(getattr(bench, name)).parameters
        line = next(line for line in page.splitlines() if line.startswith(f"| `{name}("))
        assert [each for each in parameters if not re.search(rf"\b{each}\b", line)] == []
    public = [name for name in dir(OpenRun) if not name.startswith("_")]
    assert [name for name in public if not re.search(rf"`{name}[`(]", page)] == []
