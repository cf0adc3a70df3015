"""The cache: the same inputs are read back, other inputs are not, damage is computed again."""

from pathlib import Path

import pytest
import torch

from bench.cache import cache_folder, cached

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def value(number: float) -> dict[str, torch.Tensor]:
    return {"x": torch.tensor([number])}


def test_the_same_inputs_are_computed_once() -> None:
    assert cached(["a"], lambda: value(1), CPU)["x"] == 1
    assert cached(["a"], lambda: value(2), CPU)["x"] == 1


def test_other_inputs_are_computed() -> None:
    cached(["a", "b"], lambda: value(1), CPU)
    assert cached(["a,b"], lambda: value(2), CPU)["x"] == 2


def test_a_damaged_file_is_computed_again(folder: Path) -> None:
    cached(["a"], lambda: value(1), CPU)
    (file,) = cache_folder().iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    assert cached(["a"], lambda: value(2), CPU)["x"] == 2
    assert cached(["a"], lambda: value(3), CPU)["x"] == 2


def test_a_folder_that_cannot_be_written_costs_only_time(folder: Path) -> None:
    folder.write_text("not a folder")
    assert cached(["a"], lambda: value(1), CPU)["x"] == 1
