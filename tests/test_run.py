"""The run folder: what is written is read back, and nothing is ever half there."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bench.errors import MissingError, UsageError
from bench.run import (
    Run,
    read_evaluation,
    read_json,
    read_losses,
    read_trial,
    replacing,
    write_json,
    write_text,
)


def test_a_run_is_read_back_as_it_was_written(make_run: Callable[..., Run]) -> None:
    run = make_run("mine")
    again = Run.open(run.path)
    assert again.metadata == run.metadata
    assert again.space == run.space
    assert again.result() == run.result()


def test_a_configuration_that_was_changed_is_read_again(make_run: Callable[..., Run]) -> None:
    folder = make_run().trial_folder(0)
    assert read_trial(folder).config.rank == 8
    file = folder / "config.yaml"
    file.write_text(file.read_text().replace("rank: 8", "rank: 4"))
    assert read_trial(folder).config.rank == 4


@pytest.mark.fault(8)
def test_a_file_that_fails_while_it_is_written_leaves_the_old_one(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "old")
    with pytest.raises(RuntimeError), replacing(tmp_path / "file") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert (tmp_path / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_threads_may_write_the_same_file(tmp_path: Path) -> None:
    def write(number: int) -> None:
        write_text(tmp_path / "file", str(number) * 1000)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(200)))
    assert len(set((tmp_path / "file").read_text())) <= 3
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_json_is_strict(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"nan": float("nan"), "inf": [float("inf")], "one": 1.0})
    assert json.loads((tmp_path / "x.json").read_text()) == {"nan": None, "inf": [None], "one": 1.0}


@pytest.mark.parametrize("text", ["", "{", "[]", "\0"])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(UsageError, match=r"run\.json"):
        read_json(tmp_path / "run.json")


def test_a_folder_without_run_json_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="not a run folder"):
        Run.open(tmp_path)


def test_a_run_of_another_schema_is_refused(make_run: Callable[..., Run]) -> None:
    file = make_run("mine").path / "run.json"
    write_json(file, {**read_json(file), "schema_version": 99})
    with pytest.raises(UsageError, match="schema version 99"):
        Run.open(file.parent)


def test_a_run_json_that_lacks_a_field_is_refused(make_run: Callable[..., Run]) -> None:
    file = make_run("mine").path / "run.json"
    data = read_json(file)
    del data["seed"]
    write_json(file, data)
    with pytest.raises(UsageError, match="damaged"):
        Run.open(file.parent)


@pytest.mark.parametrize(
    "name", ["trial.json", "losses.csv", "epoch-02/scores.json", "epoch-02/features.safetensors"]
)
def test_a_damaged_file_of_a_trial_is_one_line(make_run: Callable[..., Run], name: str) -> None:
    folder = make_run("mine").trial_folder(0)
    (folder / name).write_text("{}" if name.endswith("json") else "")
    with pytest.raises(UsageError, match="damaged: .*; delete that folder") as caught:
        read_trial(folder), read_losses(folder), read_evaluation(folder / "epoch-02")
    assert "\n" not in str(caught.value)
