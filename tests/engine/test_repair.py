"""Real damage to the folder of a real search: it is found, set aside, and made again to the bit."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.doctor import Check, examine, mend
from bench.energy import Cost
from bench.files import read_json, write_json
from bench.lock import locked
from bench.repair import damages, rebuild, settle, stale
from bench.run import Run, TrialRecord, epoch_folder, read_evaluation
from bench.searcher import Searcher, open_study
from bench.session import Command, run_search


@pytest.fixture
def run(searched: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A copy of a search that has ended, whole."""
    monkeypatch.setenv("BENCH_CACHE", str(searched.cache))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    return Run.open(shutil.copytree(searched.run.path, tmp_path / "runs" / "small"))


def study_of(run: Run) -> Any:
    return open_study(run.path / "study.db", run.metadata.name, run.space)


def told(run: Run) -> list[tuple[str, int, str, Any]]:
    """Label, epochs, state and values of all trials that the study knows."""
    known = study_of(run).get_trials(deepcopy=False)
    return sorted(
        (str(trial.user_attrs.get("label")), trial.params.get("epochs", 0), trial.state.name, trial.values)
        for trial in known
    )


def scores(trial: TrialRecord) -> dict[int, Any]:
    return {epoch: read_evaluation(epoch_folder(trial.path, epoch)).per_prompt for epoch in trial.epochs}


def check(run: Run, name: str) -> Check:
    return next(check for check in examine(run.path.parent, run.path) if check.name == name)


def truncate(file: Path, part: float = 0.5) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(part * len(content))])


def last_epoch(run: Run) -> Path:
    trial = run.trials()[1]
    return epoch_folder(trial.path, trial.epochs[-1])


DAMAGES: dict[str, tuple[Callable[[Run], Path], str]] = {
    "configuration": (lambda run: run.trial_folder(1) / "config.yaml", "trials-0001"),
    "state": (lambda run: run.trial_folder(1) / "trial.json", "trials-0001"),
    "adapter": (lambda run: last_epoch(run) / "adapter.safetensors", "trials-0001"),
    "scores": (lambda run: last_epoch(run) / "scores.json", "trials-0001"),
    "features": (lambda run: last_epoch(run) / "features.safetensors", "trials-0001"),
    "image": (lambda run: last_epoch(run) / "images" / "0002.webp", "trials-0001"),
    "base": (lambda run: run.base_folder("dev") / "scores.json", "base-dev"),
    "confirmation": (
        lambda run: epoch_folder(run.confirm_folder("default", 1), 2) / "adapter.safetensors",
        "confirm-default-seed-1",
    ),
    "examined": (
        lambda run: epoch_folder(run.confirm_folder("default", 1), 2) / "test" / "features.safetensors",
        "confirm-default-seed-1-epoch-02-test",
    ),
    "pictures": (lambda run: run.path / "real/train/features.safetensors", "real-train-features.safetensors"),
    "floor": (lambda run: run.path / "floor.json", "floor.json"),
    "result": (lambda run: run.path / "result.json", "result.json"),
    "winner": (lambda run: run.path / "winner" / "adapter.safetensors", "winner-adapter.safetensors"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_named_set_aside_and_then_nothing_is_wrong_but_what_the_search_writes(
    run: Run, kind: str
) -> None:
    file, aside = DAMAGES[kind][0](run), DAMAGES[kind][1]
    truncate(file)
    (found,) = damages(run)
    assert found.reason.startswith((f"{file}: ", f"{file.parent}: "))
    (said,) = mend(run.path)
    assert "the same bench search makes it again" in said
    names = {path.name for path in (run.path / "damaged").iterdir()}
    expected = {aside} | ({"result.json"} if kind == "confirmation" else set())
    assert names - {"study.db"} == expected
    assert ("study.db" in names) == aside.startswith("trials-")
    assert damages(run) == []
    left = [check for check in examine(run.path.parent, run.path) if check.level == "problem"]
    assert [check.name for check in left] == (["winner"] if kind == "winner" else [])


def test_a_whole_run_has_no_trouble_and_nothing_is_mended(run: Run) -> None:
    checks = examine(run.path.parent, run.path)
    assert [check for check in checks if check.level == "problem"] == []
    of_run = checks[[check.name for check in checks].index("lock") :]
    assert {check.level for check in of_run} == {"ok"}
    assert mend(run.path) == []
    assert not (run.path / "damaged").exists()


@pytest.mark.parametrize("part", [0, 0.5, 0.9])
def test_a_damaged_study_is_made_again_from_the_folders(run: Run, part: float) -> None:
    before, cost = told(run), study_of(run).user_attrs["cost"]
    truncate(run.path / "study.db", part)
    assert check(run, "study.db").level == "problem"
    assert "set aside into damaged/, and made again" in mend(run.path)[0]
    assert told(run) == before
    assert check(run, "study.db").level == "ok"
    assert study_of(run).user_attrs["cost"] == Cost(joules=None)._asdict() and cost["seconds"] > 0
    assert Searcher(study_of(run), run.space, run.metadata.seed).ask("0004").epochs in (1, 2)


def test_a_study_made_again_keeps_the_time_and_asks_for_what_is_to_come_again(run: Run) -> None:
    before, cost = told(run), study_of(run).user_attrs["cost"]
    point = run.space.parameters_of(run.trials()[3].config)
    shutil.rmtree(run.trial_folder(3))
    rebuild(run, [point])
    assert [row for row in told(run) if row[0] != "None"] == [row for row in before if row[0] != "0003"]
    assert study_of(run).user_attrs["cost"] == cost
    asked = Searcher(study_of(run), run.space, run.metadata.seed).ask("0003")
    assert run.space.parameters_of(asked) == point


def test_a_finalist_keeps_its_number_and_configuration_whatever_is_damaged(run: Run) -> None:
    """Else its retrainings would be taken for those of another."""
    result = run.result()
    assert result is not None
    (label,) = {candidate.label for candidate in result.candidates} - {"default"}
    point = run.space.parameters_of(run.trials()[int(label)].config)
    (run.trial_folder(int(label)) / "config.yaml").unlink()
    truncate(run.path / "study.db")
    mend(run.path)
    asked = Searcher(study_of(run), run.space, run.metadata.seed).ask(label)
    assert run.space.parameters_of(asked) == point


def test_the_next_search_makes_again_what_was_damaged_and_gives_the_same(
    run: Run, make_command: Callable[..., Command], tmp_path: Path
) -> None:
    before, trials, result = told(run), {t.label: scores(t) for t in run.trials()}, run.result()
    assert result is not None
    truncate(last_epoch(run) / "adapter.safetensors")
    truncate(run.trial_folder(0) / "config.yaml")
    truncate(epoch_folder(run.confirm_folder("default", 1), 2) / "adapter.safetensors")
    (run.path / "winner" / "training_config.yaml").unlink()
    mend(run.path)
    assert [trial.label for trial in run.trials()] == ["0002", "0003"]
    again = run_search(make_command(tmp_path))
    assert {trial.label: scores(trial) for trial in again.trials()} == trials
    assert told(again) == before
    now = again.result()
    assert now is not None and now.winner == result.winner
    for one, other in zip(now.candidates, result.candidates, strict=True):
        assert one.config == other.config and one.records == other.records
        for name, score in one.scores.items():  # beside others in a pack it sums in another order
            assert score.value == pytest.approx(other.scores[name].value, rel=1e-3, abs=1e-4), name
    assert [each for each in examine(again.path.parent, again.path) if each.level == "problem"] == []


def test_a_trial_that_was_left_running_goes_on(run: Run) -> None:
    searcher = Searcher(study_of(run), run.space, run.metadata.seed)
    config = searcher.ask("0004")
    found = check(run, "trials")
    assert (found.level, found.mend) == ("warning", None)
    assert "0004" in found.found and found.advice == "the same bench search goes on with them"
    assert mend(run.path) == []
    assert stale(run) == ["0004"]
    assert Searcher(study_of(run), run.space, run.metadata.seed).interrupted() == {"0004": config}


def test_the_study_is_told_of_trials_that_ended_unseen(run: Run) -> None:
    """As if the process had been killed between the record of an end and its telling."""
    study, source = study_of(run), run.trials()[2]
    study.enqueue_trial(run.space.parameters_of(source.config))
    Searcher(study, run.space, run.metadata.seed).ask("0004")
    shutil.copytree(source.path, run.trial_folder(4))
    assert stale(run) == ["0004"]
    assert "0004: the study knows how they ended" in mend(run.path)[0]
    assert stale(run) == []
    assert [row[2] for row in told(run) if row[0] == "0004"][-1] == "COMPLETE"
    assert settle(run) == []


def test_a_run_at_work_is_left_alone(run: Run) -> None:
    truncate(run.path / "study.db")
    with locked(run.path):
        checks = examine(run.path.parent, run.path)
        with pytest.raises(Exception, match="mend it when that has ended"):
            mend(run.path)
    assert checks[-1].name == "lock" and checks[-1].level == "warning"
    assert not (run.path / "damaged").exists()


def test_a_run_json_that_is_torn_is_a_problem_that_stays(run: Run) -> None:
    truncate(run.path / "run.json")
    assert check(run, "run.json").level == "problem"
    assert mend(run.path) == []


def test_a_result_whose_trainings_are_gone_is_set_aside(run: Run) -> None:
    shutil.rmtree(run.confirm_folder("default", 0))
    (found,) = damages(run)
    assert found.reason.endswith("rests on trainings that are gone: default-seed-0")
    mend(run.path)
    assert run.result() is None


def test_a_study_that_does_not_know_a_trial_is_made_again(run: Run) -> None:
    source = run.trial_folder(2)
    shutil.copytree(source, run.trial_folder(4))
    assert check(run, "study.db").found.endswith("does not know of 0004")
    mend(run.path)
    assert check(run, "study.db").level == "ok"


def test_leftovers_are_cleared(run: Run) -> None:
    left = run.trial_folder(1) / ".losses.csv.999999999.tmp"
    left.write_bytes(b"1,")
    assert check(run, "leftovers").level == "warning"
    assert mend(run.path) == ["leftovers: 1 temporary files removed"]
    assert not left.exists()


def test_an_image_that_is_missing_is_damage(run: Run) -> None:
    (last_epoch(run) / "images" / "0001.webp").unlink()
    (found,) = damages(run)
    assert found.reason.endswith("7 of 8 images are there")


def test_a_torn_copy_does_not_take_the_place_of_an_earlier_one(run: Run) -> None:
    for _ in range(2):
        write_json(run.path / "floor.json", read_json(run.path / "run.json"))
        mend(run.path)
    assert {path.name for path in (run.path / "damaged").iterdir()} == {"floor.json", "floor.json.2"}
