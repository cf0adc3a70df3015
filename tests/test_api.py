"""The Python API: light to import, and what the command says as frames and figures."""

import json
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import Sketch, build_run

import bench as api
from bench.errors import MissingError, UsageError
from bench.run import Run
from reports import search
from reports.notebook import OpenRun

MakeRun = Callable[..., Run]
CAPTION = "a <b>red</b> apple"


def test_import_is_light() -> None:
    heavy = {"torch", "numpy", "optuna", "pandas", "plotly", "pydantic", "diffusers", "rich", "typer"}
    code = f"import sys, bench; print(sorted({heavy} & set(sys.modules)), bench.__version__)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.startswith("[] ")


def test_no_module_hides_a_function() -> None:
    assert not set(api.__all__) & {module.name for module in pkgutil.iter_modules(api.__path__)}
    assert all(callable(getattr(api, name)) for name in api.__all__)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished run."""
    folder = tmp_path_factory.mktemp("runs")
    build_run(folder / "run_a", Sketch(gain=0.5, prompts=12, training_seeds=3, caption=CAPTION))
    return folder


@pytest.fixture
def opened(built: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> OpenRun:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "run_a").symlink_to(built / "run_a", target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    return api.open_run("run_a")


def test_a_run_is_frames(opened: OpenRun) -> None:
    assert (opened.name, opened.state, opened.path) == ("run_a", "finished", Path("runs/run_a"))
    assert opened.verdict.headline == "Trial 2 wins."
    trials = opened.trials
    assert {"trial", "epoch", "state", "rank", "learning_rate", "similarity", "similarity_stderr"} <= {
        *trials
    }
    assert trials[trials["winner"]][["trial", "epoch"]].values.tolist() == [["0002", 4]]
    result = opened.run.result()
    assert result
    won = result.candidate("0002")
    row = opened.scores.query("candidate == '0002' and metric == 'similarity'").iloc[0]
    assert won and (row["value"], row["stderr"]) == (
        won.scores["similarity"].value,
        won.scores["similarity"].stderr,
    )
    assert row["default_verdict"] == "WIN"
    assert set(opened.losses.columns) == {"trial", "step", "loss"}
    assert opened.losses.groupby("trial").size().to_dict() == {f"{number:04d}": 60 for number in range(6)}
    assert set(opened.prompts["model"]) == {"base", "default", "0001", "0002", "0000", "0003", "0004"}
    settings = opened.settings.set_index("setting")
    assert settings.loc["learning_rate", "default"] == "1.0e-04"


def test_its_figures_are_those_of_the_report(opened: OpenRun) -> None:
    """By the same names, with the same data."""
    pattern = r'class="figure-data" data-for="figure-([^"]+)">(.*?)</script>'
    shown = {name: json.loads(text) for name, text in re.findall(pattern, search.render(opened.run))}
    assert {"gains", "stages", "history", "losses", "importances", "tradeoff-1"} <= set(shown)
    assert {name: json.loads(figure.to_json()) for name, figure in opened.figures.items()} == shown


def test_a_run_shows_itself_escaped(opened: OpenRun) -> None:
    assert repr(opened) == "<bench run 'run_a' (finished): Trial 2 wins.>"
    text = opened._repr_html_()
    assert "<h3>Trial 2 wins.</h3>" in text
    assert "a &lt;b&gt;red&lt;/b&gt; apple" in text and "<b>" not in text and "<script" not in text
    assert text.count('<img src="data:image/webp;base64,') == 3 * 4


@pytest.mark.parametrize("ending", ["empty", "failed", "interrupted"])
def test_a_run_in_any_state_is_frames(make_run: MakeRun, ending: str) -> None:
    run = make_run("run-b", ending=ending, reason="<img src=x>")
    opened = api.open_run(run.path)
    assert len(opened.trials) == {"empty": 0, "failed": 6, "interrupted": 9}[ending]
    assert len(opened.scores) == len(opened.settings) == 0
    assert len(opened.losses) == (0 if ending == "empty" else 360)
    assert ("history" in opened.figures) == (ending == "interrupted")
    assert opened.verdict.headline in opened._repr_html_()
    assert "<img src=x>" not in opened._repr_html_()


def test_what_is_not_there_is_an_error_that_says_so(opened: OpenRun, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="none: no such run; in runs/ are: run_a"):
        api.open_run("none")
    with pytest.raises(MissingError, match="in elsewhere/ are: none"):
        api.open_run("run_a", folder="elsewhere")
    with pytest.raises(UsageError, match="no such space"):
        api.search("none", quiet=True)
    with pytest.raises(UsageError, match="at least two sides"):
        api.compare("run_a")
    with pytest.raises(MissingError, match="no such file"):
        api.score(tmp_path / "none.safetensors")


def test_comparisons_are_frames(opened: OpenRun, make_run: MakeRun, bench: Any) -> None:
    make_run("runs/run_b", prompts=12, training_seeds=3, random=1, caption=CAPTION)
    found = api.compare("run_a", "run_b", "base", quiet=True)
    told = json.loads(bench("compare", "run_a", "run_b", "base", "--json")[1])
    assert found.verdict == told["pairs"][0]["verdict"] == "WIN"
    assert found.pairs["verdict"].tolist() == [pair["verdict"] for pair in told["pairs"]]
    assert found.report.exists()
    metrics = found.metrics.query("first == 'run_a' and second == 'run_b'").set_index("metric")
    for row in told["pairs"][0]["tested"]:
        assert metrics.loc[row["metric"], "difference"] == row["difference"]
    assert "<td>run_a</td>" in found._repr_html_()
    assert repr(found).startswith("<bench comparison: run_a against run_b: WIN;")
    assert isinstance(found.pairs, pd.DataFrame)
