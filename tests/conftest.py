"""Synthetic run folders, written with the functions that a search uses; no model, no GPU."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):
    cores = len(os.sched_getaffinity(0)) // workers  # read when torch is imported, and by child processes
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores)))
if not shutil.which("nvidia-smi"):
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, which torch may do any time

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.config import TrialConfig
from bench.files import write_text
from bench.floor import measure_floor
from bench.run import (
    Candidate,
    Evaluation,
    Metadata,
    Pictures,
    PromptRecord,
    Result,
    Run,
    end_trial,
    epoch_folder,
    exam_folder,
    start_trial,
    write_evaluation,
    write_images,
    write_losses,
    write_pictures,
)
from bench.scoring.metrics import METRICS, PREFIX, Score
from bench.space import SearchSpace

sys.path.insert(0, str(Path(__file__).parent))

from hub import Hub, serving  # noqa: E402
from servers import serving_bucket, serving_proxy  # noqa: E402

Ending = Literal["finished", "interrupted", "failed", "empty"]
BASE_VALUES = {
    "similarity": 0.38,
    "clip_score": 0.24,
    "diversity": 0.31,
    "vendi": 1.35,
    "kd": 9.0,
    "fid": 61.0,
    "drift": 0.0,
    "judge_similarity": 0.45,
    "judge_diversity": 0.28,
    "judge_kd": 11.0,
    "nearest": 0.6,
    "copies": 0.01,
}
PROBE_VALUES = {"shift": 0.0, "clip_change": 0.0, "loss_gap": 0.0}
KINDS = ("training", "altered", "style", *["unrelated"] * 3)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sketch:
    """What a synthetic run looks like."""

    ending: Ending = "finished"
    trials: int = 6
    prompts: int = 6
    seeds: int = 2
    training_seeds: int = 2
    pixels: int = 8
    gain: float = 0.1
    """How much the best trial adds to the default config's similarity."""
    random: int = 0
    winner: str = "0002"
    judge: bool = True
    """Whether a second network scored everything too."""
    probes: bool = True
    floor: bool = True
    caption: str = "a red apple"
    reason: str = "loss is NaN at step 12"
    metadata: tuple[tuple[str, Any], ...] = ()
    space: tuple[tuple[str, Any], ...] = ()


MakeRun = Callable[..., Run]
Bench = Callable[..., tuple[int, str, str]]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(*numbers): injects these faults of docs/faults.md")


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """`make_run("name", gain=0.2, ...)`: a run folder of that name, fields of Sketch as keywords."""
    return lambda name="run-a", **fields: build_run(tmp_path / name, Sketch(**fields))


@pytest.fixture(scope="session")
def keep_run(tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    """As `make_run`, once for all tests that only read it: the name says which run it is."""
    folder, kept = tmp_path_factory.mktemp("kept"), dict[str, Run]()

    def make(name: str, **fields: Any) -> Run:
        if name not in kept:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(os, "fsync", lambda descriptor: None)  # no power is lost here
                kept[name] = build_run(folder / name, Sketch(**fields))
        return kept[name]

    return make


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Bench:
    """`bench("search", …)` in tmp_path: exit code, stdout, stderr."""
    from bench import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["bench", *arguments])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return int(exit_.value.code or 0), *capsys.readouterr()

    return run


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A stand-in of the Hub on this machine; see `hub.py`."""
    with serving() as hub:
        yield hub


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[str]:
    """URL of Optuna's proxy of an SQLite file in tmp_path, in a process of its own."""
    with serving_proxy(tmp_path / "proxied.db") as (url, _):
        yield url


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of a bucket of a stand-in of S3 on this machine."""
    with serving_bucket(monkeypatch) as url:
        yield url


def build_run(path: Path, sketch: Sketch) -> Run:
    """Write the run folder that `sketch` describes."""
    rng = np.random.default_rng(sketch.random)
    space = _space(sketch)
    run = Run.create(path, _metadata(path.name, sketch, space))
    pictures = {split: _pictures(sketch, index) for index, split in enumerate(("dev", "test"))}
    for split, images in pictures.items():
        write_images(path / "real" / split, images)
    if sketch.ending == "empty":
        return run
    _write_real(run, sketch, pictures)
    for split, images in pictures.items():
        _write_base(run.path / "base" / split, sketch, images, rng)
    if sketch.probes:
        probes = np.resize(pictures["test"], (len(KINDS), *pictures["test"].shape[1:]))
        write_evaluation(run.base_folder("probe"), _probe_evaluation(sketch, 0.0, None), probes)
    failed = range(sketch.trials) if sketch.ending == "failed" else [sketch.trials - 1]
    for number in range(sketch.trials):
        _write_trial(run, sketch, number, pictures["dev"], rng, failed=number in failed)
    if sketch.ending == "finished":
        _write_result(run, sketch, pictures["test"], rng)
    return run


def config_of(number: int) -> TrialConfig:
    """The configuration of a trial; number 0 is the default."""
    rng = np.random.default_rng(100 + number)
    if number == 0:
        return TrialConfig(rank=8, alpha=8, learning_rate=1e-4, epochs=4)
    rank = int(rng.choice([4, 8, 16, 32]))
    return TrialConfig(
        rank=rank,
        alpha=rank * float(rng.choice([0.5, 1, 2])),
        learning_rate=float(10 ** rng.uniform(-5, -3)),
        dropout=float(rng.choice([0, 0.05, 0.1])),
        epochs=int(rng.choice([2, 4])),
        target_modules=["attention", "attention+ff", "all"][rng.integers(3)],
    )


def _space(sketch: Sketch) -> SearchSpace:
    data: dict[str, Any] = {
        "name": "synthetic",
        "base": "emoji-xl",
        "data": "emoji-3d",
        "parameters": {
            "rank": {"choices": [4, 8, 16, 32]},
            "alpha": {"ratio": [0.5, 1, 2]},
            "learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
            "dropout": {"choices": [0, 0.05, 0.1]},
            "epochs": {"choices": [2, 4]},
            "target_modules": {"choices": ["attention", "attention+ff", "all"]},
        },
        "default": config_of(0).model_dump(),
        "prompts": {"dev": sketch.prompts, "test": sketch.prompts, "seeds": sketch.seeds},
        "confirm": {"finalists": 2, "seeds": sketch.training_seeds},
    }
    return SearchSpace.model_validate({**data, **dict(sketch.space)})


def _metadata(name: str, sketch: Sketch, space: SearchSpace) -> Metadata:
    metadata = Metadata(
        name=name,
        created="2026-01-02T03:04:05+00:00",
        seed=7,
        space=space.model_dump(mode="json"),
        base="emoji-xl",
        base_fingerprint="b4" * 32,
        data="emoji-3d",
        data_fingerprint="da" * 32,
        num_images={"train": 120, "dev": sketch.prompts, "test": sketch.prompts},
        scorer="bundled",
        scorer_fingerprint="5c" * 32,
        judge="emoji-judge" if sketch.judge else None,
        judge_fingerprint="1d" * 32 if sketch.judge else None,
        prompts_fingerprint="9f" * 32,
        prompts={
            "dev": _prompts("dev", sketch),
            "test": _prompts("test", sketch),
            "probe": [
                PromptRecord(text=f"{kind} {index}", seeds=(5,), real=None, kind=kind)
                for index, kind in enumerate(KINDS if sketch.probes else ())
            ],
        },
        device="cpu",
        machine="x86_64, 2 cores",
        versions={"bench": "0.1.0", "torch": "2.11.0", "diffusers": "0.42.0"},
    )
    return replace(metadata, **dict(sketch.metadata))


def _prompts(split: str, sketch: Sketch) -> list[PromptRecord]:
    seeds = tuple(range(1000, 1000 + sketch.seeds))
    return [
        PromptRecord(
            text=f"{sketch.caption}, number {index}", seeds=seeds, real=f"real/{split}/{index:04d}.webp"
        )
        for index in range(sketch.prompts)
    ]


def _pictures(sketch: Sketch, salt: int) -> NDArray[np.uint8]:
    """A coloured disc a prompt: easy to tell apart by eye."""
    rng = np.random.default_rng(50 + salt)
    axis = np.linspace(-1, 1, sketch.pixels)
    x, y = np.meshgrid(axis, axis)
    images = []
    for _ in range(sketch.prompts):
        centre, colour = rng.uniform(-0.3, 0.3, 2), rng.uniform(30, 230, 3)
        distance = np.hypot(x - centre[0], y - centre[1])[..., None]
        shade = 1 - 0.5 * distance
        images.append(np.where(distance < 0.6, colour * shade, 245.0))
    return np.stack(images).astype(np.uint8)


def _drawn(pictures: NDArray[np.uint8], quality: float, seeds: int, rng: Any) -> NDArray[np.uint8]:
    """`seeds` images a prompt, nearer to the true picture the higher `quality`."""
    images = np.repeat(pictures, seeds, axis=0).astype(float)
    weight = float(np.clip(quality, 0, 1))
    noise = np.roll(images, 1 + images.shape[1] // 5, axis=2)[..., ::-1]
    grain = rng.normal(0, 30 * (1 - weight), images.shape)
    return np.clip(weight * images + (1 - weight) * noise + grain, 0, 255).astype(np.uint8)


def _evaluation(sketch: Sketch, shift: float, rng: Any, base: dict[str, list[float]] | None) -> Evaluation:
    """Scores that are `shift` better than the base's, with noise a prompt."""
    num_images = sketch.prompts * sketch.seeds
    per_prompt, scores = {}, {}
    for name in _measured(sketch):
        metric = METRICS[name]
        good = shift if metric.direction == "maximize" else -20 * shift
        if name == "drift":
            good = 150 * abs(shift)
        wide = np.random.default_rng(list(name.encode())).normal(0, 0.06, sketch.prompts)
        values = BASE_VALUES[name] + wide + good + rng.normal(0, 0.01, sketch.prompts)
        gain: tuple[float, float] | None = None
        if base is not None:
            differences = values - np.array(base[name])
            gain = float(differences.mean()), float(differences.std(ddof=1) / np.sqrt(sketch.prompts))
        scores[name] = Score(
            value=float(values.mean()),
            stderr=float(values.std(ddof=1) / np.sqrt(sketch.prompts)),
            num_images=num_images,
            num_prompts=sketch.prompts,
            extractor="emoji-judge" if name.startswith(PREFIX) else "emoji-clip",
            gain=gain[0] if gain else None,
            gain_stderr=gain[1] if gain else None,
        )
        per_prompt[name] = [float(value) for value in values]
    return Evaluation(
        scores=scores,
        per_prompt=per_prompt,
        features=_features(shift, num_images, rng),
        judge_features=_features(shift, num_images, rng) if sketch.judge else None,
    )


def _measured(sketch: Sketch) -> list[str]:
    return [name for name in BASE_VALUES if sketch.judge or not name.startswith(PREFIX)]


def _features(shift: float, rows: int, rng: Any) -> NDArray[np.float32]:
    features = rng.normal(shift * 5, 1, (rows, 8)).astype(np.float32)
    unit: NDArray[np.float32] = features / np.linalg.norm(features, axis=1, keepdims=True)
    return unit


def _probe_evaluation(sketch: Sketch, shift: float, rng: Any) -> Evaluation:
    """Scores of unrelated prompts; none of the base itself (`rng` is None)."""
    rng, base = rng or np.random.default_rng(3), rng is None
    size = {"num_images": 3, "num_prompts": 3, "extractor": "emoji-judge"}
    scores = {
        name: Score(value=value + 0.1 * shift, stderr=0.004, **size) for name, value in PROBE_VALUES.items()
    }
    clip = [0.3 + 0.01 * index for index in range(len(KINDS))]
    return Evaluation(
        scores={} if base else scores,
        per_prompt={"clip_score": clip, "shift": [0.0 if base else 0.1] * len(KINDS)},
        features=_features(shift, len(KINDS), rng),
        judge_features=_features(shift, len(KINDS), rng) if sketch.judge else None,
    )


def _write_real(run: Run, sketch: Sketch, pictures: dict[str, NDArray[np.uint8]]) -> None:
    rng = np.random.default_rng(4)
    train = pictures["dev"][:, ::-1]
    write_images(run.path / "real" / "train", train)
    for name, images in {**pictures, "train": train}.items():
        prompts = np.full(len(images), -1) if name == "train" else np.arange(len(images))
        features, seen = _features(0.3, len(images), rng), _features(0.3, len(images), rng)
        judge_features = seen if sketch.judge else None
        found = Pictures(features=features, judge_features=judge_features, prompts=prompts)
        write_pictures(run, name, found)


def _paired_only(evaluation: Evaluation) -> Evaluation:
    kept = {name: values for name, values in evaluation.per_prompt.items() if METRICS[name].paired}
    return replace(evaluation, per_prompt=kept)


def _base_values(sketch: Sketch) -> dict[str, list[float]]:
    return _evaluation(sketch, 0.0, np.random.default_rng(1), None).per_prompt


def _write_base(folder: Path, sketch: Sketch, pictures: NDArray[np.uint8], rng: Any) -> None:
    evaluation = _evaluation(sketch, 0.0, np.random.default_rng(1), None)
    write_evaluation(folder, _paired_only(evaluation), _drawn(pictures, 0.2, sketch.seeds, rng))


def _write_trial(
    run: Run, sketch: Sketch, number: int, pictures: NDArray[np.uint8], rng: Any, *, failed: bool
) -> None:
    folder, config = run.trial_folder(number), config_of(number)
    start_trial(folder, config, "default" if number == 0 else "sampled")
    steps = np.arange(1, 61)
    losses = 0.12 + 0.2 * np.exp(-steps * config.learning_rate * 400) + rng.normal(0, 0.01, 60)
    write_losses(folder, [float(loss) for loss in losses])
    if failed:
        return end_trial(folder, "failed", 12.5, sketch.reason)
    for epoch in [epoch for epoch in run.space.rungs if epoch <= config.epochs]:
        shift = _shift(sketch, number) * epoch / config.epochs
        _write_evaluation(epoch_folder(folder, epoch), sketch, shift, pictures, rng)
    end_trial(folder, "complete", 61.2)


def _shift(sketch: Sketch, number: int) -> float:
    best = int(sketch.winner) if sketch.winner != "default" else 0
    if number in (0, best):
        return 0.05 + (sketch.gain if number else 0.0)
    return 0.05 + sketch.gain * float(np.random.default_rng(number).uniform(-0.5, 0.8))


def _write_evaluation(
    folder: Path, sketch: Sketch, shift: float, pictures: NDArray[np.uint8], rng: Any
) -> Evaluation:
    evaluation = _paired_only(_evaluation(sketch, shift, rng, _base_values(sketch)))
    write_evaluation(folder, evaluation, _drawn(pictures, 0.3 + 4 * shift, sketch.seeds, rng))
    return evaluation


def _write_result(run: Run, sketch: Sketch, pictures: NDArray[np.uint8], rng: Any) -> None:
    labels = dict.fromkeys(["default", sketch.winner, "0001"])
    candidates = tuple(_candidate(run, sketch, label, pictures, rng) for label in labels)
    run.write_result(
        Result(
            winner=sketch.winner,
            candidates=candidates,
            select_by=run.space.select_by,
            seconds=1312.0,
        )
    )
    if sketch.training_seeds > 1 and sketch.floor:
        default = candidates[0]
        run.write_floor(measure_floor([e.scores for e in run.evaluations(default, "test")]))
    winner = next(candidate for candidate in candidates if candidate.label == sketch.winner)
    from bench import yaml

    write_text(run.path / "winner" / "training_config.yaml", yaml.dump(winner.config))


def _candidate(run: Run, sketch: Sketch, label: str, pictures: NDArray[np.uint8], rng: Any) -> Candidate:
    number = 0 if label == "default" else int(label)
    config, records, evaluations = config_of(number), [], []
    for seed in range(1, sketch.training_seeds + 1):
        folder = run.confirm_folder(label, seed)
        start_trial(folder, config.model_copy(update={"seed": seed}), "confirm")
        shift = _shift(sketch, number) + float(rng.normal(0, 0.004))
        _write_evaluation(epoch_folder(folder, config.epochs), sketch, shift, pictures, rng)
        test, probe = (exam_folder(folder, config.epochs, split) for split in ("test", "probe"))
        evaluations.append(_write_evaluation(test, sketch, shift, pictures, rng))
        if sketch.probes:
            probes = np.resize(pictures, (len(KINDS), *pictures.shape[1:]))
            write_evaluation(probe, _probe_evaluation(sketch, shift, rng), probes)
        end_trial(folder, "complete", 70.0)
        records.append(folder.name)
    measured, first = _measured(sketch), evaluations[0].scores
    values = {name: [entry.scores[name].value for entry in evaluations] for name in measured}
    probed = _probe_evaluation(sketch, _shift(sketch, number), rng).scores if sketch.probes else {}
    return Candidate(
        label=label,
        config=config,
        records=tuple(records),
        num_failed=0,
        scores={name: replace(first[name], value=float(np.mean(values[name]))) for name in measured} | probed,
        seed_spread={
            name: float(np.std(values[name], ddof=1)) if len(evaluations) > 1 else float("nan")
            for name in measured
        },
        search=evaluations[0].scores,
        search_epochs=config.epochs,
        by_epoch={config.epochs: evaluations[0].scores},
    )
