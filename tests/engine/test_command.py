"""A whole search through the command, as JSON, and through the Python API, quiet."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_space import SMALL

import bench as api
from reports.notebook import OpenRun

Bench = Callable[..., tuple[int, str, str]]


@pytest.fixture
def space(tmp_path: Path, tiny_sdxl: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    Path("small.yaml").write_text(yaml.safe_dump({**SMALL, "base": str(tiny_sdxl), "trials": 1}))
    return "small.yaml"


def test_a_search_tells_what_it_came_to(bench: Bench, space: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, output, errors = bench("search", "--space", space, "--name", "mine", "--json")
    data: dict[str, Any] = json.loads(output)
    assert code == 0
    assert "Run: runs/mine" in errors and "Estimate: about " in errors
    assert (data["name"], data["state"], data["report"]) == ("mine", "finished", "runs/mine/report.html")
    found = api.search(space, name="mine", quiet=True)  # goes on with what has ended
    assert isinstance(found, OpenRun)
    assert capsys.readouterr().out == ""
    assert (data["winner"], data["headline"]) == (found.run.result().winner, found.verdict.headline)  # type: ignore[union-attr]
    scored = api.score(
        found.path / "winner" / "adapter.safetensors", weights=[0.5, 1], space=space, quiet=True
    )
    assert set(scored.scores["weight"]) == {0.5, 1.0}
    assert {"similarity", "clip_score"} <= set(scored.scores["metric"])
    assert scored.recommended["verdict"].isin(["WIN", "TIE", "LOSS"]).all()
    assert scored.report.exists()
    assert scored.recommended["training"][0] in scored._repr_html_()
