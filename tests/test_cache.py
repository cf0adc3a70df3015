"""The cache: the same inputs are read back, other inputs are not, damage is computed again, old files go."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import bench
from bench.cache import ABANDONED, cache_folder, cache_limit, cached, cached_array
from bench.errors import UsageError

CPU = torch.device("cpu")
KILOBYTE = 250
"""Numbers in a tensor of so many bytes; its file has some 150 bytes more."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def value(number: float, count: int = 1) -> dict[str, torch.Tensor]:
    return {"x": torch.full((count,), float(number))}


def is_kept(*inputs: Any) -> bool:
    """Whether these inputs would be read back; they are computed, and kept, if not."""
    computed = []

    def compute() -> dict[str, torch.Tensor]:
        computed.append(True)
        return value(0)

    cached(inputs, compute, CPU)
    return not computed


def entries() -> list[Path]:
    return sorted(cache_folder().glob("*.safetensors"))


def test_the_same_inputs_are_computed_once() -> None:
    assert cached(["a"], lambda: value(1), CPU)["x"] == 1
    assert cached(["a"], lambda: value(2), CPU)["x"] == 1


def test_other_inputs_are_computed() -> None:
    cached(["a", "b"], lambda: value(1), CPU)
    assert cached(["a,b"], lambda: value(2), CPU)["x"] == 2
    assert cached([["a", "b"]], lambda: value(3), CPU)["x"] == 3


def test_only_the_value_is_left_behind() -> None:
    cached(["a"], lambda: value(1), CPU)
    assert list(cache_folder().iterdir()) == entries()


def test_arrays_are_read_back_bit_by_bit() -> None:
    array = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    assert cached_array(["a"], lambda: array, CPU) is array
    again = cached_array(["a"], lambda: array + 1, CPU)
    assert again.dtype == array.dtype and again.tobytes() == array.tobytes()
    assert cached_array(["b"], lambda: array[:0], CPU).shape == (0, 4)
    assert cached_array(["b"], lambda: array, CPU).shape == (0, 4)


# What decides a value beside its inputs


def test_another_version_of_a_library_computes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_kept("a") and is_kept("a")
    for module in (torch, bench):
        monkeypatch.setattr(module, "__version__", "99.0.0")
        assert not is_kept("a") and is_kept("a")


def test_another_number_of_threads_computes_again() -> None:
    threads = torch.get_num_threads()
    assert not is_kept("a")
    try:
        torch.set_num_threads(threads + 1)
        assert not is_kept("a")
    finally:
        torch.set_num_threads(threads)
    assert is_kept("a")


def test_another_kind_of_device_computes_again() -> None:
    """The meta device stands for any other: it is on every machine."""
    assert not is_kept("a")
    cached(["a"], lambda: value(0), torch.device("meta"))
    assert len(entries()) == 2


# Damage


def test_a_torn_file_is_computed_again() -> None:
    cached(["a"], lambda: value(1), CPU)
    (file,) = entries()
    file.write_bytes(file.read_bytes()[:-1])
    assert cached(["a"], lambda: value(2), CPU)["x"] == 2
    assert cached(["a"], lambda: value(3), CPU)["x"] == 2


@pytest.mark.parametrize("metadata", [None, {"inputs": "0" * 64}])
def test_a_foreign_file_is_computed_again(metadata: dict[str, str] | None) -> None:
    cached(["a"], lambda: value(1), CPU)
    (file,) = entries()
    save_file(value(5), file, metadata)
    assert cached(["a"], lambda: value(2), CPU)["x"] == 2
    assert cached(["a"], lambda: value(3), CPU)["x"] == 2


def test_a_file_of_another_name_is_computed_again() -> None:
    cached(["a"], lambda: value(1), CPU)
    (first,) = entries()
    cached(["b"], lambda: value(2), CPU)
    (second,) = set(entries()) - {first}
    shutil.copy(first, second)
    assert cached(["b"], lambda: value(3), CPU)["x"] == 3


def test_a_folder_that_cannot_be_written_costs_only_time(folder: Path) -> None:
    folder.write_text("not a folder")
    assert cached(["a"], lambda: value(1), CPU)["x"] == 1
    assert cached(["a"], lambda: value(2), CPU)["x"] == 2


def test_what_cannot_be_computed_leaves_no_lock(folder: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        cached(["a"], lambda: value(1 / 0), CPU)
    assert not list(folder.iterdir())
    assert cached(["a"], lambda: value(1), CPU)["x"] == 1


# The limit


@pytest.mark.parametrize(
    ("text", "size"),
    [("20GB", 20 * 10**9), ("500 mb", 500 * 10**6), ("1.5GiB", 3 * 2**29), ("0", 0), ("", 20 * 10**9)],
)
def test_a_limit_is_a_size(monkeypatch: pytest.MonkeyPatch, text: str, size: int) -> None:
    monkeypatch.setenv("BENCH_CACHE_LIMIT", text)
    assert cache_limit() == size


@pytest.mark.parametrize("text", ["plenty", "20", "-1GB", "5XB", "1e3", "nan"])
def test_what_is_no_size_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("BENCH_CACHE_LIMIT", text)
    with pytest.raises(UsageError, match=f"BENCH_CACHE_LIMIT={text}: allowed is a size such as 500MB"):
        cached(["a"], lambda: value(1), CPU)


def test_the_least_recently_used_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_CACHE_LIMIT", "4KB")
    for number, name in enumerate("abc"):
        cached([name], lambda: value(0, KILOBYTE), CPU)
        age(entries(), 60)
        assert len(entries()) == number + 1
    cached(["a"], lambda: value(1, KILOBYTE), CPU)  # used again
    cached(["d"], lambda: value(0, KILOBYTE), CPU)
    assert len(entries()) == 3
    kept = {name: cached([name], lambda: value(1, KILOBYTE), CPU)["x"][0] == 0 for name in "dcab"}
    assert kept == {"d": True, "c": True, "a": True, "b": False}


def age(files: list[Path], seconds: float) -> None:
    for file in files:
        os.utime(file, (file.stat().st_atime - seconds, file.stat().st_mtime - seconds))


def test_the_one_just_written_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_CACHE_LIMIT", "1.1KB")
    cached(["a"], lambda: value(1, KILOBYTE), CPU)
    cached(["b"], lambda: value(2, KILOBYTE), CPU)
    assert len(entries()) == 1
    assert cached(["b"], lambda: value(3, KILOBYTE), CPU)["x"][0] == 2


def test_what_is_larger_than_the_limit_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    cached(["a"], lambda: value(1), CPU)
    monkeypatch.setenv("BENCH_CACHE_LIMIT", "0.9KB")
    cached(["b"], lambda: value(1, KILOBYTE), CPU)
    assert cached(["a"], lambda: value(2), CPU)["x"] == 1
    assert cached(["b"], lambda: value(2, KILOBYTE), CPU)["x"][0] == 2


def test_what_processes_that_died_left_is_removed(folder: Path) -> None:
    folder.mkdir()
    old, new, other = folder / ".old.1.tmp", folder / ".new.2.tmp", folder / "notes.txt"
    for file in (old, new, other):
        file.touch()
    age([old, other], ABANDONED + 1)
    cached(["a"], lambda: value(1), CPU)
    assert not old.exists()
    assert new.exists() and other.exists()


# Several processes


def together(code: str, arguments: list[str]) -> None:
    """Run a script once with each of the arguments, all at the same time."""
    processes = [subprocess.Popen([sys.executable, "-c", code, argument]) for argument in arguments]
    assert [process.wait(120) for process in processes] == [0] * len(processes)


COMPUTE_SLOWLY = """
import os, sys, time, torch
from pathlib import Path
from bench.cache import cached

def compute():
    (Path(sys.argv[1]) / str(os.getpid())).touch()
    time.sleep(1)
    return {"x": torch.ones(1)}

assert cached(["the same"], compute, torch.device("cpu"))["x"] == 1
"""


def test_processes_that_want_the_same_compute_it_once(tmp_path: Path) -> None:
    mark = tmp_path / "computed"
    mark.mkdir()
    together(COMPUTE_SLOWLY, [str(mark)] * 3)
    assert len(list(mark.iterdir())) == 1


READ_AND_WRITE = """
import random, sys, torch
from bench.cache import cached

chance = random.Random(sys.argv[1])
for _ in range(200):
    number = chance.randrange(12)
    read = cached([number], lambda: {"x": torch.full((250,), float(number))}, torch.device("cpu"))["x"]
    assert read.shape == (250,) and bool((read == number).all())
"""


def test_processes_may_evict_what_others_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of twelve values three fit."""
    monkeypatch.setenv("BENCH_CACHE_LIMIT", "4KB")
    together(READ_AND_WRITE, ["1", "2", "3"])
    assert sorted(cache_folder().iterdir()) == entries()
    assert 0 < len(entries()) <= 3
