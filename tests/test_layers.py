"""Who may import whom: search_spaces <- bench <- trainers, reports <- bench.asked <- bench.cli, bench.api."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("bench", "search_spaces", "trainers", "reports")
RECIPE = ROOT / "bench" / "builtin" / "recipe"
MODULES = [
    path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if RECIPE not in path.parents
]


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_only_what_lies_below_it(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    ours = {name.partition(".")[0] for name in imported(path)} & set(PACKAGES) - {package}
    if path.parent == ROOT / "bench" and path.name in ("asked.py", "cli.py", "api.py"):
        return  # the command and the Python API, which import when they are called
    allowed = {"bench": set(), "search_spaces": set(), "trainers": {"bench"}, "reports": {"bench"}}
    assert ours <= allowed[package]


@pytest.mark.parametrize(
    ("library", "holders"),
    [
        ("open_clip", {"bench/scoring/embed.py"}),
        ("timm", {"bench/scoring/judge.py"}),
        ("torch_fidelity", {"bench/scoring/embed.py", "bench/scoring/distance.py"}),
        (
            "optuna",
            {
                "bench/space.py",
                "bench/searcher.py",
                "bench/shared.py",
                "reports/figures.py",
                "reports/trials.py",
            },
        ),
    ],
)
def test_a_library_stays_where_it_is_known(library: str, holders: set[str]) -> None:
    users = {name_of(path) for path in MODULES if library in {n.partition(".")[0] for n in imported(path)}}
    assert users <= holders


def test_help_imports_nothing_heavy() -> None:
    heavy = {"torch", "numpy", "optuna", "pandas", "plotly", "pydantic", "diffusers"}
    code = f"import sys, bench.cli; print(sorted({heavy} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
