"""`bench compare` of adapter files: a tiny SDXL, real data, the bundled scorer, the command itself."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from bench import cli
from bench.base import BaseModel
from bench.config import TrialConfig
from bench.floor import Floor, MetricFloor
from bench.run import Run, read_evaluation
from bench.scoring.metrics import METRICS
from trainers.lora import Slots, save_adapter

SPACE: dict[str, Any] = {
    "name": "tiny",
    "base": "replaced by --base",
    "data": "emoji/pixel16",
    "parameters": {"rank": {"choices": [2, 4]}},
    "default": {"rank": 4, "alpha": 8, "learning_rate": "1e-3", "epochs": 1, "batch_size": 20},
    "prompts": {"dev": 2, "test": 5, "seeds": 2, "training": 2, "altered": 0, "style": 0},
    "sampler": {"steps": 2, "guidance": 2},
    "floor": 0,
    "judge": "none",
}
Compare = Callable[..., tuple[int, str, str]]


@pytest.fixture
def compare(
    tmp_path: Path, tiny_sdxl: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Compare:
    """`compare("base", "a.safetensors", …)` in tmp_path, in adapter mode: exit code, stdout, stderr.

    With `verb="floor"` the other command that works on such a run.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(SPACE))

    def run(*arguments: str, verb: str = "compare") -> tuple[int, str, str]:
        where = ["--space", "tiny.yaml", "--base", str(tiny_sdxl)]
        monkeypatch.setattr(sys, "argv", ["bench", verb, *arguments, *where])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return int(exit_.value.code or 0), *capsys.readouterr()

    return run


def adapter(base: BaseModel, path: Path, seed: int = 0, size: float = 0.1) -> Path:
    """An adapter with random B, as a training would leave it."""
    config = TrialConfig(rank=4, alpha=8, learning_rate=1e-3, epochs=1, target_modules="all", seed=seed)
    with Slots(base.unet, [config]) as slots:
        weights = slots.adapter(0)
    generator = torch.Generator().manual_seed(seed)
    for key, tensor in weights.items():
        if "lora_B" in key:
            tensor.normal_(0, 1, generator=generator).mul_(size)
    save_adapter(path, weights, config)
    return path


def test_adapter_files_are_drawn_scored_and_compared(
    compare: Compare, base: BaseModel, tmp_path: Path
) -> None:
    adapter(base, tmp_path / "one.safetensors", 1)
    adapter(base, tmp_path / "two.safetensors", 2)
    code, output, _ = compare("base", "one.safetensors", "--fail-on", "loss")
    assert code == 0
    assert "TIE: A (base) and B (one) cannot be told apart." in output
    assert "There is only one training of one, whose training noise is not known" in " ".join(output.split())
    run = Run.open(tmp_path / "runs" / "adapters-tiny")
    assert (run.path / "compare-base-one.html").exists()
    (first,) = (run.path / "adapters").iterdir()
    assert (first / "probe" / "scores.json").exists()
    drawn = (first / "test" / "scores.json").stat().st_mtime_ns

    code, output, errors = compare("one.safetensors", "base", "two.safetensors", "--json", "--fail-on", "tie")
    data = json.loads(output)
    assert (code, [side["name"] for side in data["sides"]]) == (1, ["one", "base", "two"])
    assert data["pairs"][1]["one_training"] == ["one", "two"]
    assert "Run: runs/adapters-tiny" in errors
    assert (first / "test" / "scores.json").stat().st_mtime_ns == drawn
    mine, bases = read_evaluation(first / "test"), read_evaluation(run.base_folder("test"))
    expected = np.subtract(mine.per_prompt["similarity"], bases.per_prompt["similarity"]).mean()
    tested = {row["metric"]: row for row in data["pairs"][0]["tested"]}
    assert tested["similarity"]["difference"] == pytest.approx(expected)
    change = mine_probes(first)["clip_change"]
    assert tested["clip_change"]["difference"] == pytest.approx(np.mean(change))
    assert tested["clip_change"]["num_prompts"] == len(change) == 32


def mine_probes(folder: Path) -> dict[str, list[float]]:
    return read_evaluation(folder / "probe").per_prompt


def test_a_floor_measured_in_the_run_counts_as_the_luck_of_the_default(
    compare: Compare, base: BaseModel, tmp_path: Path
) -> None:
    adapter(base, tmp_path / "one.safetensors", 1)
    assert compare("base", "one.safetensors", "--name", "mine")[0] == 0
    assert compare("--name", "mine", "--seeds", "2", verb="floor")[0] == 0
    _, output, _ = compare("base", "one.safetensors", "--name", "mine")
    assert "the noise floor is the luck of the default configuration" in " ".join(output.split())
    metrics = {name: MetricFloor(seed_spread=9.0, image_spread=None) for name in METRICS}
    run = Run.open(tmp_path / "runs" / "mine")
    run.write_floor(Floor(num_seeds=3, num_prompts=5, metrics=metrics))
    _, output, _ = compare("base", "one.safetensors", "--name", "mine")
    assert "The difference is inside the noise floor." in output


def wrong_prefix(file: Path) -> None:
    save_file({key.replace("unet.", "model."): tensor for key, tensor in load_file(file).items()}, file)


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def with_nan(file: Path) -> None:
    weights = load_file(file)
    next(iter(weights.values()))[0, 0] = float("nan")
    save_file(weights, file)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (wrong_prefix, "are not of a LoRA of an SDXL"),
        (truncated, "not a readable adapter"),
        (with_nan, "holds values that are not finite"),
        (Path.unlink, "no such file"),
    ],
)
def test_a_bad_file_is_one_line_before_anything_is_written(
    compare: Compare, base: BaseModel, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(adapter(base, tmp_path / "bad.safetensors"))
    code, output, errors = compare("base", "bad.safetensors")
    assert (code, output) == (2, "")
    assert errors.startswith("bench: bad.safetensors: ") and message in errors
    assert len(errors.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_an_adapter_for_another_base_is_refused_before_anything_is_drawn(
    compare: Compare, base: BaseModel, tmp_path: Path
) -> None:
    file = adapter(base, tmp_path / "bad.safetensors")
    save_file({key.replace("down_blocks", "no_blocks"): t for key, t in load_file(file).items()}, file)
    code, _, errors = compare("base", "bad.safetensors")
    assert code == 2
    assert "modules are not in" in errors and len(errors.splitlines()) == 1
    assert not (tmp_path / "runs" / "adapters-tiny" / "base").exists()


def test_two_files_with_the_same_content_are_refused(
    compare: Compare, base: BaseModel, tmp_path: Path
) -> None:
    file = adapter(base, tmp_path / "one.safetensors")
    (tmp_path / "copy.safetensors").write_bytes(file.read_bytes())
    code, _, errors = compare("one.safetensors", "copy.safetensors")
    assert code == 2
    assert errors == (
        "bench: one.safetensors and copy.safetensors are the same adapter: there is nothing to compare\n"
    )


def test_an_adapter_that_must_not_be_scored_is_named_with_the_reason(
    compare: Compare, base: BaseModel, tmp_path: Path
) -> None:
    adapter(base, tmp_path / "nothing.safetensors", size=0.0)
    code, _, errors = compare("base", "nothing.safetensors")
    assert code == 2
    assert errors.startswith("bench: nothing.safetensors: cannot be scored: ")
    assert "the adapter changes nothing" in errors and len(errors.splitlines()) == 1


def test_files_of_one_name_are_called_as_they_were_given(
    compare: Compare, base: BaseModel, tmp_path: Path
) -> None:
    for number, folder in enumerate(("x", "y")):
        (tmp_path / folder).mkdir()
        adapter(base, tmp_path / folder / "adapter.safetensors", number)
    code, output, _ = compare("x/adapter.safetensors", "y/adapter.safetensors")
    assert code == 0
    assert "A (x/adapter.safetensors) and B (y/adapter.safetensors)" in output
