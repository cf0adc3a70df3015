"""A whole search on a tiny SDXL, real data, the bundled scorer and a real Optuna database."""

import io
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file

from bench.base import BaseModel, TrainingData, find_device
from bench.begun import Begun
from bench.config import TrainingConfig, TrialConfig
from bench.errors import BenchError, MismatchError, UsageError
from bench.packs import Attach, Trainer
from bench.run import Run, epoch_folder, image_files, read_evaluation, read_losses
from bench.session import Command, Engine, resolve, run_floor, run_search
from bench.space import load_space
from bench.yaml import read
from trainers.adapters import attach
from trainers.loop import Rung, train
from trainers.lora import load_adapter
from trainers.single import run_training

SPACE: dict[str, Any] = {
    "name": "tiny",
    "data": "emoji/pixel16",
    "parameters": {
        "rank": {"choices": [2, 4]},
        "alpha": {"ratio": [1, 2]},
        "learning_rate": {"low": "1e-4", "high": "1e-2", "log": True},
        "epochs": {"choices": [1, 2]},
        "target_modules": {"choices": ["attention", "all"]},
    },
    "default": {"rank": 4, "alpha": 8, "learning_rate": "1e-4", "epochs": 2, "batch_size": 20},
    "prompts": {"dev": 4, "test": 5, "seeds": 2, "training": 2, "altered": 2, "style": 2},
    "sampler": {"steps": 2, "guidance": 2},
    "confirm": {"finalists": 1, "seeds": 2},
    "floor": 2,
    "judge": "none",
    "trials": 3,
    "slots": 2,
}
PLAIN = Engine(train=train, attach=attach)
Search = Callable[..., Run]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tiny_sdxl: Path) -> Path:
    """A folder with a finished search of SPACE as it is, and a cache."""
    folder = tmp_path_factory.mktemp("plain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_CACHE", str(folder / "cache"))
        file = written(folder / "tiny.yaml", {"base": str(tiny_sdxl)})
        run_search(command(file, {}, 0, PLAIN))
    return folder


@pytest.fixture
def search(tmp_path: Path, tiny_sdxl: Path, plain: Path, monkeypatch: pytest.MonkeyPatch) -> Search:
    """`search(trainer=..., seed=..., trials=..., **fields)`: run_search in tmp_path with SPACE changed so.

    One that changes nothing, and is the first, goes on with a copy of one that has finished.
    """
    monkeypatch.setenv("BENCH_CACHE", str(plain / "cache"))

    def run(
        trainer: Trainer = train,
        attach: Attach = attach,
        seed: int = 0,
        trials: int | None = None,
        **fields: Any,
    ) -> Run:
        file = written(tmp_path / "tiny.yaml", {"base": str(tiny_sdxl), **fields})
        engine = Engine(train=trainer, attach=attach)
        is_plain = engine == PLAIN and not (fields or seed or trials)
        if is_plain and not (tmp_path / "runs").exists():
            shutil.copytree(plain / "runs", tmp_path / "runs")
        return run_search(command(file, {"trials": trials}, seed, engine))

    return run


@pytest.fixture
def floor(tmp_path: Path, tiny_sdxl: Path, plain: Path, monkeypatch: pytest.MonkeyPatch) -> Search:
    """`floor(**fields)`: run_floor in tmp_path with SPACE changed so."""
    monkeypatch.setenv("BENCH_CACHE", str(plain / "cache"))

    def run(**fields: Any) -> Run:
        file = written(tmp_path / "tiny.yaml", {"base": str(tiny_sdxl), **fields})
        return run_floor(command(file, {}, 0, Engine(train=train, attach=attach)))

    return run


def command(file: Path, overrides: dict[str, Any], seed: int, engine: Engine) -> Command:
    return Command(
        space=resolve(load_space(str(file)), overrides),
        name=None,
        folder=file.parent / "runs",
        seed=seed,
        engine=engine,
        console=Console(file=io.StringIO()),
    )


def written(file: Path, fields: dict[str, Any]) -> Path:
    file.write_text(yaml.safe_dump({**SPACE, **fields}))
    return file


def study_of(run: Run) -> optuna.Study:
    return optuna.load_study(study_name=run.metadata.name, storage=f"sqlite:///{run.path / 'study.db'}")


def breaking(when: Callable[[int], bool], error: BaseException) -> Trainer:
    """A trainer that raises `error` at the start of the calls, counted from 0, that `when` selects."""
    calls = iter(range(1000))

    def trainer(
        base: BaseModel,
        data: TrainingData,
        configs: Iterator[TrialConfig],
        rungs: Sequence[int],
        num_slots: int,
        on_step: Callable[[int], None],
    ) -> Iterator[Rung]:
        if when(next(calls)):
            raise error
        yield from train(base, data, configs, rungs, num_slots, on_step)

    return trainer


def test_a_search_leaves_a_complete_record(search: Search) -> None:
    run = search()
    trials = run.trials()
    assert [trial.label for trial in trials] == ["0000", "0001", "0002"]
    assert [trial.state for trial in trials] == ["complete"] * 3
    assert trials[0].origin == "default"
    for trial in trials:
        assert trial.epochs == tuple(epoch for epoch in (1, 2) if epoch <= trial.config.epochs)
        assert len(read_losses(trial.path)) == 3 * trial.config.epochs
        for epoch in trial.epochs:
            folder = epoch_folder(trial.path, epoch)
            assert len(image_files(folder)) == 8
            assert load_adapter(folder / "adapter.safetensors")
            assert read_evaluation(folder).scores["similarity"].gain is not None


def test_start_points_are_tried_right_after_the_default(search: Search) -> None:
    run = search(start_points=[{"rank": 2, "alpha": 4, "learning_rate": "5e-3", "target_modules": "all"}])
    default, start = (trial.config for trial in run.trials()[:2])
    assert default == run.space.default
    assert (start.rank, start.alpha, start.learning_rate, start.target_modules) == (2, 4, 5e-3, "all")


def test_earlier_rungs_join_the_study_as_trials_of_fewer_epochs(search: Search) -> None:
    run = search()
    recorded = {
        (trial.label, epoch): list(
            read_evaluation(epoch_folder(trial.path, epoch)).scores[name].value
            for name in run.space.objectives
        )
        for trial in run.trials()
        for epoch in trial.epochs
    }
    told = {(t.user_attrs["label"], t.params["epochs"]): t.values for t in study_of(run).trials}
    assert told == recorded


def test_the_result_rests_on_fresh_seeds_and_unseen_prompts(search: Search) -> None:
    run = search()
    result = run.result()
    assert result is not None
    assert {candidate.label for candidate in result.candidates} >= {"default"}
    assert len(result.candidates) == 2
    searched = {trial.config.seed for trial in run.trials()}
    for record in run.confirmations():
        assert record.config.seed not in searched
    dev = {prompt.text for prompt in run.metadata.prompts["dev"]}
    assert not dev & {prompt.text for prompt in run.metadata.prompts["test"]}
    for record in run.confirmations():
        assert record.epochs == tuple(e for e in run.space.rungs if e <= record.config.epochs)
    chosen = {c.label: c.by_epoch[c.config.epochs]["similarity"].value for c in result.candidates}
    assert result.winner == max(chosen, key=lambda label: chosen[label])


def test_confirmed_adapters_draw_test_prompts_the_winner_and_the_default_probes_too(search: Search) -> None:
    run = search()
    result = run.result()
    assert result is not None
    for candidate in result.candidates:
        for split, prompts in run.metadata.prompts.items():
            evaluations = run.evaluations(candidate, split) if split != "floor" else []
            for evaluation in evaluations:
                assert len(evaluation.features) == sum(len(prompt.seeds) for prompt in prompts)
        assert len(run.evaluations(candidate, "test")) == len(candidate.records) == 2
        is_probed = candidate.label in {"default", result.winner}
        assert len(run.evaluations(candidate, "probe")) == 2 * is_probed
        assert {"shift", "loss_gap", "clip_change"} <= set(candidate.scores) or not is_probed
        assert "similarity" in candidate.scores
        spread = candidate.seed_spread["similarity"]
        values = [e.scores["similarity"].value for e in run.evaluations(candidate, "test")]
        assert spread == pytest.approx(np.std(values, ddof=1))
    kinds = [prompt.kind for prompt in run.metadata.prompts["probe"]]
    assert kinds == ["training"] * 2 + ["altered"] * 2 + ["style"] * 2 + ["unrelated"] * 32


def test_what_the_search_saw_stands_beside_what_was_confirmed(search: Search) -> None:
    run = search()
    result = run.result()
    assert result is not None
    for candidate in result.candidates:
        label = "0000" if candidate.label == "default" else candidate.label
        assert candidate.search_epochs is not None
        seen = read_evaluation(epoch_folder(run.trial_folder(int(label)), candidate.search_epochs))
        assert candidate.search == seen.scores
        assert set(candidate.by_epoch) == {e for e in run.space.rungs if e <= max(candidate.by_epoch)}
        assert candidate.config.epochs in candidate.by_epoch


def test_a_floor_is_measured_alone_and_a_search_builds_on_it(
    floor: Search, search: Search, tmp_path: Path
) -> None:
    measured = floor(floor=3)
    found = measured.floor()
    assert found is not None and found.num_seeds == 3
    assert found.metrics["similarity"].image_spread is not None
    trained = {record.label: record.path.stat().st_mtime_ns for record in measured.confirmations()}
    assert set(trained) == {f"default-seed-{number}" for number in range(3)}
    run = search(floor=3)
    assert {r.label: r.path.stat().st_mtime_ns for r in run.confirmations() if r.label in trained} == trained
    assert run.floor() == found


def test_a_search_keeps_the_larger_floor_that_was_measured_before(floor: Search, search: Search) -> None:
    before = floor(floor=4)
    run = search(floor=2)
    assert run.floor() == before.floor()
    result = run.result()
    assert result is not None
    assert len(result.candidates[0].records) == 4


def test_measuring_a_floor_leaves_the_record_of_the_search_alone(floor: Search, search: Search) -> None:
    search(trials=4)
    record = floor(floor=3).path / "run.json"
    assert Run.open(record.parent).space.trials == 4
    assert (found := Run.open(record.parent).floor()) is not None and found.num_seeds == 3


def test_memory_that_runs_out_while_examining_halves_the_pack(search: Search) -> None:
    def small(base: BaseModel, paths: Sequence[Path]) -> AbstractContextManager[None]:
        if len(paths) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return attach(base, paths)

    whole, halved = search(name="whole"), search(attach=small, name="halved")
    assert dict(confirmed(whole)) == pytest.approx(dict(confirmed(halved)), abs=1e-3)


def test_memory_that_never_suffices_is_said_in_one_line(search: Search) -> None:
    def never(base: BaseModel, paths: Sequence[Path]) -> AbstractContextManager[None]:
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(BenchError, match="out of memory; finished trials are kept"):
        search(attach=never)
    assert search().result() is not None


def test_a_retraining_that_failed_is_counted(search: Search) -> None:
    # The trainer searches at its first call, and breaks at the next, in which one slot retrains.
    run = search(slots=1, trainer=breaking(lambda call: call == 1, RuntimeError("no luck")))
    result = run.result()
    assert result is not None
    (failed,) = (record for record in run.confirmations() if record.state == "failed")
    label = failed.label.rsplit("-seed-", 1)[0]
    assert {c.label: (c.num_failed, len(c.records)) for c in result.candidates} == {
        c.label: (1, 1) if c.label == label else (0, 2) for c in result.candidates
    }
    assert label in {candidate.label for candidate in result.candidates}


def test_a_trigger_with_brackets_is_no_markup(search: Search) -> None:
    assert search(trigger="[/v]", trials=1).result() is not None


def test_a_search_may_do_without_a_floor(search: Search) -> None:
    run = search(floor=0)
    assert run.floor() is None
    assert "floor" not in run.metadata.prompts
    assert not run.base_folder("floor").exists()


def test_a_confirmed_adapter_that_cannot_be_scored_is_left_out(search: Search, tmp_path: Path) -> None:
    run = search()
    first = run.confirmations()[0]
    folder = epoch_folder(first.path, first.config.epochs)
    shutil.rmtree(folder / "test")
    tensors = load_file(folder / "adapter.safetensors")
    save_file(
        {key: torch.zeros_like(tensor) for key, tensor in tensors.items()}, folder / "adapter.safetensors"
    )
    result = search().result()
    assert result is not None
    assert first.label not in {label for candidate in result.candidates for label in candidate.records}


def test_a_damaged_adapter_of_a_finalist_is_named(search: Search) -> None:
    run = search()
    first = run.confirmations()[0]
    folder = epoch_folder(first.path, first.config.epochs)
    shutil.rmtree(folder / "test")
    (folder / "adapter.safetensors").write_bytes(b"torn")
    with pytest.raises(UsageError, match="adapter.safetensors: not a readable adapter"):
        search()


def test_the_winner_can_be_trained_again_from_its_file(
    search: Search, base: BaseModel, tmp_path: Path
) -> None:
    run = search()
    config = read(run.path / "winner" / "training_config.yaml", TrainingConfig)
    adapter = load_adapter(run.path / "winner" / "adapter.safetensors")
    result = run.result()
    assert result is not None
    winner = next(c for c in result.candidates if c.label == result.winner)
    assert (config.rank, config.alpha, config.epochs) == (
        winner.config.rank,
        winner.config.alpha,
        winner.config.epochs,
    )
    assert {tensor.shape[0] for key, tensor in adapter.items() if "lora_A" in key} == {config.rank}
    again = config.model_copy(update={"output_dir": str(tmp_path / "again")})
    trained = load_adapter(run_training(again, Console(file=io.StringIO())))
    for key, tensor in trained.items():
        torch.testing.assert_close(tensor, adapter[key], rtol=1e-2, atol=1e-4)


def test_pictures_of_several_shapes_are_trained_on_and_squares_scored(search: Search, tmp_path: Path) -> None:
    folder, generator = tmp_path / "shapes", np.random.default_rng(0)
    folder.mkdir()
    for number, letter in enumerate("abcdefghijklmnopqrst"):
        shape = [(40, 40, 3), (40, 90, 3), (60, 40, 3)][number % 3]
        image = Image.fromarray(generator.integers(0, 256, shape, np.uint8))
        image.save(folder / f"{letter}.png")
        (folder / f"{letter}.txt").write_text(f"{letter} picture")
    shapes = []

    def watching(base: BaseModel, data: TrainingData, *arguments: Any) -> Iterator[Rung]:
        shapes.append([tuple(bucket.mean.shape[2:]) for bucket in data.buckets])
        yield from train(base, data, *arguments)

    one = {"finalists": 1, "seeds": 1}
    run = search(watching, trials=1, data=str(folder), buckets=True, floor=0, confirm=one)
    assert all(found == [(20, 12), (16, 16), (10, 22)] for found in shapes) and shapes
    (trial,) = run.trials()
    assert trial.state == "complete"
    assert len(read_losses(trial.path)) == trial.config.epochs * 3  # a batch of each shape
    drawn = image_files(epoch_folder(trial.path, trial.config.epochs))
    with Image.open(next(iter(drawn))) as image:
        assert image.size == (32, 32)


def test_the_same_seed_gives_the_same_search(search: Search, tmp_path: Path) -> None:
    first = search(name="one")
    second = search(name="two")
    assert [t.config for t in first.trials()] == [t.config for t in second.trials()]
    assert confirmed(first) == confirmed(second)
    # The second found all that is fixed in the cache, and yet its record is the same.
    for part in ("base", "real", "trials"):
        assert contents(first.path / part) == contents(second.path / part)


def contents(folder: Path) -> dict[str, bytes]:
    """All files but those that hold times; of adapters the weights, as their header has no fixed order."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "trial.json")
    return {str(path.relative_to(folder)): content(path) for path in files}


def content(path: Path) -> bytes:
    if path.name != "adapter.safetensors":
        return path.read_bytes()
    return b"".join(tensor.numpy().tobytes() for _, tensor in sorted(load_file(path).items()))


def confirmed(run: Run) -> list[tuple[str, float]]:
    result = run.result()
    assert result is not None
    return [(candidate.label, candidate.scores["similarity"].value) for candidate in result.candidates]


@pytest.mark.fault(20)
def test_more_trials_go_on_from_what_is_there(search: Search) -> None:
    before = {trial.label: trial.config for trial in search().trials()}
    run = search(trials=5)
    after = {trial.label: trial.config for trial in run.trials()}
    assert len(after) == 5
    assert {label: after[label] for label in before} == before
    assert len(set(map(str, after.values()))) == 5


def test_an_interrupted_search_goes_on_without_loss_or_doubles(search: Search, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        search(trainer=failing_at_a_rung(KeyboardInterrupt(), 1))
    assert {trial.state for trial in Run.open(tmp_path / "runs" / "tiny").trials()} >= {"running"}
    run = search()
    assert [trial.state for trial in run.trials()] == ["complete"] * 3
    undisturbed = search(name="undisturbed")
    assert [t.config for t in run.trials()][:2] == [t.config for t in undisturbed.trials()][:2]
    told = [t for t in study_of(run).trials if t.state == optuna.trial.TrialState.COMPLETE]
    points = [(t.user_attrs["label"], t.params["epochs"]) for t in told]
    assert len(points) == len(set(points)) == sum(len(trial.epochs) for trial in run.trials())


def test_what_an_interrupted_confirmation_took_is_counted(search: Search, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        search(trainer=failing_at_a_rung(KeyboardInterrupt(), 3, pack=1), slots=1)
    stopped = Run.open(tmp_path / "runs" / "tiny")
    before = study_of(stopped).user_attrs["cost"]
    ended = [record for record in stopped.confirmations() if record.state == "complete"]
    longest = [max(record.seconds or 0 for record in part) for part in (stopped.trials(), ended)]
    assert before["seconds"] >= sum(longest)  # one after the other
    result = search().result()
    assert result is not None and result.seconds > before["seconds"] > 0
    assert result.device_seconds == pytest.approx(result.seconds)  # one device


@pytest.mark.fault(6, 13)
@pytest.mark.parametrize(("is_torn", "left"), [(False, 3), (True, 6)])
def test_an_interrupted_trial_goes_on_from_its_last_rung_to_the_same_end(
    search: Search, tmp_path: Path, is_torn: bool, left: int
) -> None:
    """Interrupted where the second trial, of two epochs of 3 steps, comes to its last rung."""
    fields: dict[str, Any] = {"slots": 1, "trials": 2, "prune": {"fraction": 0}, "name": "whole"}
    fields |= {"start_points": [{"learning_rate": "1e-3", "epochs": 2}]}
    undisturbed = search(**fields)
    with pytest.raises(KeyboardInterrupt):
        search(trainer=failing_at_a_rung(KeyboardInterrupt(), 3), **fields | {"name": "tiny"})
    begun = tmp_path / "runs" / "tiny" / "trials" / "0001" / "begun.safetensors"
    if is_torn:
        begun.write_bytes(begun.read_bytes()[:-9])
    steps: list[int] = []
    run = search(trainer=stepping(steps), **fields | {"name": "tiny"})
    retrained = sum(trial.config.epochs * 3 for trial in run.confirmations())
    assert sum(steps) - retrained == left
    for trial, other in zip(run.trials(), undisturbed.trials(), strict=True):
        assert trial.config == other.config
        assert contents(trial.path) == contents(other.path)
    assert not list(run.path.rglob("begun.safetensors"))


@pytest.mark.fault(6)
@pytest.mark.usefixtures("two_cores")
@pytest.mark.skipif(find_device().type != "cpu", reason="of a processor")
def test_what_trains_beside_an_interrupted_trial_changes_none_of_its_bits(search: Search) -> None:
    """Four trials of unlike shapes, three at a time.

    Of the last one the third epoch is trained alone, but beside others where the search was interrupted.
    """
    points: list[dict[str, Any]] = [
        {"rank": 2, "alpha": 2, "epochs": 1},
        {"learning_rate": "1e-3", "epochs": 3, "target_modules": "all"},
        {"rank": 2, "alpha": 2, "learning_rate": "3e-3", "epochs": 3},
    ]
    fields: dict[str, Any] = {"slots": 3, "trials": 4, "prune": {"fraction": 0}, "name": "whole"}
    fields |= {"parameters": SPACE["parameters"] | {"epochs": {"choices": [1, 3]}}}
    fields |= {"default": SPACE["default"] | {"epochs": 3}, "start_points": points}
    undisturbed = search(**fields)
    with pytest.raises(KeyboardInterrupt):
        search(trainer=failing_at_a_rung(KeyboardInterrupt(), 2), **fields | {"name": "tiny"})
    run = search(**fields | {"name": "tiny"})
    for trial, other in zip(run.trials(), undisturbed.trials(), strict=True):
        assert trial.config == other.config
        assert contents(trial.path) == contents(other.path)


def stepping(steps: list[int]) -> Trainer:
    """A trainer that tells every step: how many trials made it."""

    def trainer(
        base: BaseModel,
        data: TrainingData,
        configs: Iterator[TrialConfig | Begun],
        rungs: Sequence[int],
        num_slots: int,
        on_step: Callable[[int], None],
    ) -> Iterator[Rung]:
        def told(number: int) -> None:
            steps.append(number)
            on_step(number)

        yield from train(base, data, configs, rungs, num_slots, told)

    return trainer


def test_a_pack_that_breaks_is_recorded_and_the_study_goes_on(search: Search) -> None:
    run = search(trainer=failing_at_a_rung(RuntimeError("out of\nmemory"), 0))
    assert [trial.state for trial in run.trials()] == ["failed", "failed", "complete"]
    assert run.trials()[0].reason == "RuntimeError: out of memory"
    assert run.result() is not None


@pytest.mark.fault(12)
def test_a_pack_that_does_not_fit_in_memory_is_halved(search: Search) -> None:
    run = search(trainer=failing_at_a_rung(torch.OutOfMemoryError("out of memory"), 0))
    undisturbed = search(name="undisturbed")
    assert [trial.state for trial in run.trials()] == ["complete"] * 3
    assert [t.config for t in run.trials()][:2] == [t.config for t in undisturbed.trials()][:2]


def failing_at_a_rung(error: BaseException, rung: int, pack: int = 0) -> Trainer:
    """A trainer that raises `error` once, where a pack comes to its `rung`-th stop, both counted from 0."""
    calls = iter(range(1000))

    def trainer(
        base: BaseModel,
        data: TrainingData,
        configs: Iterator[TrialConfig],
        rungs: Sequence[int],
        num_slots: int,
        on_step: Callable[[int], None],
    ) -> Iterator[Rung]:
        fails = next(calls) == pack
        for number, stop in enumerate(train(base, data, configs, rungs, num_slots, on_step)):
            if fails and number == rung:
                raise error
            yield stop

    return trainer


def test_trials_that_memory_stopped_start_again_and_those_that_ended_do_not(search: Search) -> None:
    """All end at the first rung but the default, which is in the middle of its training then."""
    parameters = {**SPACE["parameters"], "epochs": {"choices": [1, 2]}}
    starts = [{"epochs": 1, "learning_rate": "1e-3"}, {"epochs": 1, "learning_rate": "5e-3"}]
    trained: list[TrialConfig] = []
    trainer = failing_at_a_rung(torch.OutOfMemoryError("out of memory"), 1)
    run = search(slots=3, trainer=counting(trainer, trained), start_points=starts, parameters=parameters)
    assert [trial.state for trial in run.trials()] == ["complete"] * 3
    searched = [config for config in trained if config.seed == 0]
    assert [searched.count(trial.config) for trial in run.trials()] == [2, 1, 1]
    undisturbed = search(name="undisturbed", slots=3, start_points=starts, parameters=parameters)
    assert dict(confirmed(run)) == pytest.approx(dict(confirmed(undisturbed)), abs=1e-3)


def counting(trainer: Trainer, trained: list[TrialConfig]) -> Trainer:
    """Notes every config that is taken."""

    def counted(
        base: BaseModel,
        data: TrainingData,
        configs: Iterator[TrialConfig | Begun],
        rungs: Sequence[int],
        num_slots: int,
        on_step: Callable[[int], None],
    ) -> Iterator[Rung]:
        def taken() -> Iterator[TrialConfig | Begun]:
            for given in configs:
                trained.append(given.config if isinstance(given, Begun) else given)
                yield given

        return trainer(base, data, taken(), rungs, num_slots, on_step)

    return counted


def test_a_sampler_that_breaks_is_no_trial_s_fault(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the sampler broke")

    monkeypatch.setattr("bench.searcher.Searcher.ask", broken)
    with pytest.raises(RuntimeError, match="the sampler broke"):
        search(name="broken")


PRUNING: dict[str, Any] = {
    "start_points": [{"learning_rate": rate} for rate in ("2e-4", "4e-4", "8e-4", "2e-3")],
    "prune": {"fraction": 0.5, "after": 4, "controls": 0},
    "trials": 5,
    "slots": 5,
}


def test_the_last_at_a_rung_are_pruned_and_the_record_says_why(search: Search, tmp_path: Path) -> None:
    run = search(**PRUNING)
    pruned = [trial for trial in run.trials() if trial.state == "pruned"]
    assert 1 <= len(pruned) <= 2
    assert run.trials()[0].state == "complete"
    for trial in pruned:
        assert trial.epochs == (1,)
        assert trial.config.epochs == 2
        assert re.fullmatch(r"rank [45] of 5 at epoch 1", str(trial.reason))
        assert len(read_losses(trial.path)) == 3
    states = [trial.state for trial in study_of(run).trials]
    assert states.count(optuna.trial.TrialState.PRUNED) == len(pruned)
    told = {(t.user_attrs["label"], t.params["epochs"]) for t in study_of(run).trials if t.values}
    assert told == {(trial.label, epoch) for trial in run.trials() for epoch in trial.epochs}
    found = run.result()
    assert found is not None
    assert not {candidate.label for candidate in found.candidates} & {trial.label for trial in pruned}
    before = {trial.label: (trial.state, trial.path.stat().st_mtime_ns) for trial in run.trials()}
    after = search(**{**PRUNING, "trials": 6}).trials()
    assert {t.label: (t.state, t.path.stat().st_mtime_ns) for t in after if t.label in before} == before


def test_controls_and_a_space_without_pruning_prune_nothing(search: Search) -> None:
    for prune in ({"fraction": 0}, {"fraction": 0.5, "after": 2, "controls": 1}):
        run = search(**{**PRUNING, "prune": prune, "name": f"fraction-{prune['fraction']}"})
        assert {trial.state for trial in run.trials()} == {"complete"}


def test_the_held_out_loss_is_measured_at_rungs_where_it_is_wanted(search: Search) -> None:
    run = search(prune={"held_out_loss": True})
    for trial in run.trials():
        for epoch in trial.epochs:
            score = read_evaluation(epoch_folder(trial.path, epoch)).scores["held_out_loss"]
            assert score.num_images == 32
            assert score.gain is not None and score.gain != 0
    without = search(name="without")
    scores = read_evaluation(epoch_folder(without.trials()[0].path, 1)).scores
    assert "held_out_loss" not in scores


def test_rungs_are_drawn_with_fewer_steps_the_result_with_all(search: Search) -> None:
    few, all_steps = (
        search(name=name, sampler={"steps": 4, "guidance": 2, "rung_steps": steps})
        for name, steps in (("few", 2), ("all", 4))
    )
    for split, same in (("dev", False), ("test", True), ("probe", True)):
        images = [image_files(run.base_folder(split))[0].read_bytes() for run in (few, all_steps)]
        assert (images[0] == images[1]) is same


@pytest.mark.fault(8)
def test_a_full_disk_fails_no_trial(search: Search) -> None:
    with pytest.raises(BenchError, match="No space left.*finished trials are kept"):
        search(trainer=failing_at_a_rung(OSError(28, "No space left on device"), 1))
    assert [trial.state for trial in search().trials()] == ["complete"] * 3


def test_trials_without_run_json_are_not_adopted(search: Search) -> None:
    (search().path / "run.json").unlink()
    with pytest.raises(MismatchError, match="holds trials but no run.json"):
        search()


@pytest.mark.fault(11)
def test_a_trial_that_changes_nothing_is_not_scored(search: Search, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="no configuration could be confirmed"):
        search(default={**SPACE["default"], "weight_decay": 0, "max_grad_norm": 1e-30})
    trials = Run.open(tmp_path / "runs" / "tiny").trials()
    assert {trial.state for trial in trials} == {"failed"}
    assert "the adapter changes nothing" in str(trials[0].reason)


def test_a_study_of_failures_alone_ends_with_the_first_reason(search: Search) -> None:
    with pytest.raises(BenchError, match="no configuration could be confirmed.*RuntimeError: no luck"):
        search(trainer=breaking(lambda call: True, RuntimeError("no luck")))


@pytest.mark.fault(17)
def test_a_changed_space_is_refused_with_what_changed(search: Search) -> None:
    search()
    with pytest.raises(MismatchError, match=r"another space\.sampler\.steps \(2 -> 3\); give another --name"):
        search(sampler={"steps": 3, "guidance": 2})


def test_a_changed_space_may_be_a_new_run(tmp_path: Path, search: Search) -> None:
    first = search()
    asked = command(tmp_path / "tiny.yaml", {"trials": 1}, 1, PLAIN)
    second = run_search(replace(asked, is_new=True))
    assert (second.path.name, second.metadata.name, len(second.trials())) == ("tiny-2", "tiny-2", 1)
    assert len(Run.open(first.path).trials()) == 3


def test_another_seed_is_refused(search: Search) -> None:
    search()
    with pytest.raises(MismatchError, match="another seed"):
        search(seed=1)


def test_a_spent_budget_starts_no_trial_but_confirms(search: Search) -> None:
    run = search(trials=2)
    run = search(trials=9, budget="1s")
    assert len(run.trials()) == 2
    assert run.result() is not None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data": None}, "--data: the space 'tiny' names none"),
        ({"data": "./nowhere"}, "nowhere: no such folder"),
        ({"base": "./nowhere"}, "nowhere: no such folder"),
        ({"base": "owner/model"}, "not on this machine; get it with: hf download owner/model"),
        ({"scorer": "./nowhere"}, "scorer ./nowhere"),
        (
            {"prompts": {"dev": 2, "test": 5, "seeds": 2}, "objectives": ["kd"], "select_by": "kd"},
            "kd needs 3 different captions among the dev images, got 2",
        ),
        ({"resolution": 30}, "must be a multiple of"),
        (
            {"parameters": {**SPACE["parameters"], "target_modules": {"choices": ["attention", ["to_z"]]}}},
            "'to_z' matches no linear or convolution",
        ),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(
    search: Search, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(BenchError) as caught:
        search(**fields)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs" / "tiny").exists()


def test_slots_may_be_found_and_are_recorded(search: Search) -> None:
    run = search(slots="auto", trials=3)
    opened = Run.open(run.path)
    assert opened.space.slots == 1, "a search of three trials in three rounds"
    assert "1 (a search of at least 3 rounds)" in (opened.metadata.slots_reason or "")
    again = search(slots="auto", trials=6)
    assert again.metadata.slots_reason == opened.metadata.slots_reason, "found once on one machine"
    assert search(slots=2, trials=6).metadata.slots_reason is None


@pytest.mark.fault(21)
def test_two_searches_on_one_run_are_refused(search: Search, tmp_path: Path) -> None:
    from bench.lock import locked

    with locked(tmp_path / "runs" / "tiny"), pytest.raises(UsageError, match="another bench search"):
        search()
