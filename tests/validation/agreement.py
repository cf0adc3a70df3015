"""Which metrics, measured on the prompts of a search, find the adapters that draw the true pictures?

    python tests/validation/agreement.py

Trains the 24 configurations of varied.yaml (a GPU: minutes) and draws all 96 test concepts with each.
Kendall's tau is between a metric on the 24 dev prompts and the distance of the test images to the true
pictures, by four measures. A metric is turned so that higher is better: +1 would be perfect agreement.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from scipy.stats import kendalltau

from bench.buckets import fit
from bench.cli import command_of
from bench.dataset import load_dataset
from bench.progress import show_progress
from bench.run import Evaluation, Run, exam_folder, image_files, read_evaluation
from bench.scoring.metrics import METRICS
from bench.session import open_session, packs_of
from bench.study import Study

COMMAND = command_of(str(Path(__file__).with_name("varied.yaml")), {}, None, 0, Console())
SIDE = 64
RESAMPLES = 2000


def main() -> None:
    run = trained()
    trials = [trial for trial in run.trials() if trial.state == "complete"]
    dev = [read_evaluation(exam_folder(t.path, t.config.epochs, "dev")) for t in trials]
    folders = [exam_folder(trial.path, trial.config.epochs, "test") for trial in trials]
    truths = distances(folders)
    print(f"\n{len(trials)} configurations")
    print_table(dev, truths)


def trained() -> Run:
    """All trials of the space, each examined on the test prompts too."""
    opened = open_session(COMMAND, COMMAND.space.name)
    with opened as session, show_progress(COMMAND.console) as progress:
        packs = packs_of(session, COMMAND.engine, progress)
        packs.exams |= session.exams(packs, ["dev", "test"])
        Study(run=session.run, packs=packs).search(COMMAND.space.trials, None)
        adapters = []
        for trial in session.run.trials():
            if trial.state == "complete":
                folder = exam_folder(trial.path, trial.config.epochs, "test")
                adapters.append((folder.parent / "adapter.safetensors", folder))
        packs.examine(adapters, "test")
        return session.run


def distances(folders: list[Path]) -> dict[str, NDArray[np.float64]]:
    """Of each adapter's test images to the true pictures: means over prompts and seeds."""
    pictures = np.stack([fit(example.image(), SIDE) for example in load_dataset("emoji/pixel16").test])
    rows: dict[str, list[float]] = {"scorer": [], "judge": [], "pixels": [], "8 × 8 blocks": []}
    for folder in folders:
        evaluation = read_evaluation(folder)
        rows["scorer"].append(1 - evaluation.scores["similarity"].value)
        rows["judge"].append(1 - evaluation.scores["judge_similarity"].value)
        drawn = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in image_files(folder)])
        true = np.repeat(pictures, len(drawn) // len(pictures), axis=0)
        rows["pixels"].append(rms(drawn, true))
        rows["8 × 8 blocks"].append(rms(blocks(drawn), blocks(true)))
    return {name: np.array(values) for name, values in rows.items()}


def blocks(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Means of 8 × 8 pixels: shape and colour without detail."""
    means: NDArray[np.float64] = images.reshape(len(images), 8, 8, 8, 8, 3).mean(axis=(2, 4))
    return means


def rms(a: NDArray[np.generic], b: NDArray[np.generic]) -> float:
    squares = np.square(a.astype(float) - b.astype(float)).reshape(len(a), -1).mean(axis=1)
    return float(np.sqrt(squares).mean())


def print_table(dev: list[Evaluation], truths: dict[str, NDArray[np.float64]]) -> None:
    print(f"{'metric on dev prompts':24}" + "".join(f"{name:>26}" for name in truths))
    for name, metric in METRICS.items():
        if all(name in evaluation.scores for evaluation in dev):
            values = np.array([metric.sign * evaluation.scores[name].value for evaluation in dev])
            print(f"{name:24}" + "".join(f"{tau(values, -truth):>26}" for truth in truths.values()))


def tau(x: NDArray[np.float64], y: NDArray[np.float64]) -> str:
    """With a 95 % bootstrap interval over configurations."""
    rng = np.random.default_rng(0)
    picks = rng.integers(0, len(x), (RESAMPLES, len(x)))
    low, high = np.nanquantile([kendalltau(x[pick], y[pick]).statistic for pick in picks], [0.025, 0.975])
    return f"{kendalltau(x, y).statistic:+.2f} ({low:+.2f} to {high:+.2f})"


if __name__ == "__main__":
    main()
