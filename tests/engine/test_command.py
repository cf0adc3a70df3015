"""A whole search through the Python API and through the command: quiet, and as JSON."""

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


def test_a_search_is_quiet_and_tells_what_it_came_to(
    bench: Bench, space: str, capfd: pytest.CaptureFixture[str]
) -> None:
    found = api.search(space, name="mine", quiet=True)
    assert isinstance(found, OpenRun) and found.state == "complete"
    assert found.path.joinpath("report.html").exists()
    assert capfd.readouterr().out == ""
    said = "Report: runs/mine/report.html\n"
    assert bench("search", "--space", space, "--name", "mine", "--quiet")[:2] == (0, said)
    code, output, errors = bench("search", "--space", space, "--name", "mine", "--json")
    data: dict[str, Any] = json.loads(output)
    assert code == 0 and "Run: runs/mine" in errors
    assert (data["name"], data["state"], data["report"]) == ("mine", "complete", "runs/mine/report.html")
    result = found.run.result()
    assert result and data["winner"] == result.winner
    assert data["headline"] == found.verdict.headline


def test_scored_files_are_frames(space: str) -> None:
    found = api.search(space, name="mine", quiet=True)
    scored = api.score(
        found.path / "winner" / "adapter.safetensors", weights=[0.5, 1], space=space, quiet=True
    )
    assert set(scored.scores["weight"]) == {0.5, 1.0}
    assert {"similarity", "clip_score"} <= set(scored.scores["metric"])
    assert scored.recommended["verdict"].isin(["WIN", "TIE", "LOSS"]).all()
    assert scored.report.exists()
    assert scored.recommended["training"][0] in scored._repr_html_()
