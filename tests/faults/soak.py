"""Searches whose processes are killed again and again: is any trial lost, doubled or changed?

    python tests/faults/soak.py --trials 60 --seeds 20 21 --faults 60 --folder /tmp/soak

Each seed is searched twice on a tiny SDXL, by two workers: undisturbed, and under random kills of workers and
of the parent, which is started again until the search is done. Half of the faults strike within a second or
so after something new was written, so that work goes on between them, the others at any time: while processes
start, load, train, score, confirm. Then every trial must be there once, in
the folder and in Optuna's study, with the scores of an undisturbed training of its configuration: those that
the undisturbed search did not train are trained alone. Prints a row a seed; exits with 1 if anything differs.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import psutil
import yaml
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from engine.conftest import write_tiny_sdxl  # noqa: E402

from bench.asked import command_of  # noqa: E402
from bench.files import read_json  # noqa: E402
from bench.packs import Job  # noqa: E402
from bench.progress import PlainProgress  # noqa: E402
from bench.run import Run, TrialRecord, epoch_folder  # noqa: E402
from bench.session import open_session, packs_of  # noqa: E402

SPACE: dict[str, Any] = {
    "data": "emoji/pixel16",
    "parameters": {
        "rank": {"choices": [2, 4]},
        "learning_rate": {"low": "1e-4", "high": "1e-2", "log": True},
        "epochs": {"choices": [1, 2]},
    },
    "default": {"rank": 4, "alpha": 8, "learning_rate": "1e-4", "epochs": 2, "batch_size": 20},
    "prompts": {"dev": 4, "test": 4, "seeds": 2, "training": 0, "altered": 0, "style": 0, "unrelated": 0},
    "sampler": {"steps": 2, "guidance": 2},
    "confirm": {"finalists": 1, "seeds": 1},
    "prune": {"fraction": 0},
    "floor": 0,
    "judge": "none",
    "slots": 1,
    "devices": 2,
}
KINDS = ("worker SIGKILL", "worker SIGKILL", "parent SIGKILL", "parent SIGTERM", "parent SIGINT")
"""Half of what strikes, about, strikes a worker."""
DELAY = 1.5
"""Seconds, at most, between something new and a fault that waits for it."""
PAUSE = 10.0
"""Seconds, at most, before a fault that waits for nothing."""
STALLED = 900
"""Seconds without anything new."""


@dataclass(kw_only=True)
class Outcome:
    """What a disturbed search came to."""

    trials: int
    faults: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    lost: list[str] = field(default_factory=list)
    """Trials that are not there, or not in the study, or that have not ended."""
    doubled: list[str] = field(default_factory=list)
    """Told to the study more than once, at an epoch or at the end."""
    failed: int = 0
    """Lost with a worker twice: recorded as failed, which is right."""
    changed: list[str] = field(default_factory=list)
    """Scored otherwise than undisturbed."""
    retrained: int = 0
    """That the undisturbed search did not train."""

    @property
    def is_well(self) -> bool:
        return not (self.lost or self.doubled or self.changed)

    def row(self, seed: int) -> str:
        faults = ", ".join(f"{count} {kind}" for kind, count in sorted(self.faults.items()))
        numbers = [seed, self.trials, self.faults.total(), faults, self.starts, self.failed, self.retrained]
        numbers += [len(self.lost), len(self.doubled), len(self.changed)]
        return f"| {' | '.join(map(str, numbers))} |"


HEAD = (
    "| seed | trials | faults | of which | starts | failed, killed twice | trained alone | lost | doubled "
    "| changed |\n|--:|--:|--:|---|--:|--:|--:|--:|--:|--:|"
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--faults", type=int, default=40, help="Of a seed, at most.")
    parser.add_argument("--folder", type=Path, default=Path("soak"))
    asked = parser.parse_args()
    outcomes = []
    print(HEAD, flush=True)
    for seed in asked.seeds:
        outcomes.append(soak(asked.folder / f"seed-{seed}", seed, asked.trials, asked.faults))
        print(outcomes[-1].row(seed), flush=True)
    print(f"\n{sum(outcome.faults.total() for outcome in outcomes)} faults in all.")
    for outcome in outcomes:
        for name in ("lost", "doubled", "changed"):
            print(*(f"{name}: {what}" for what in getattr(outcome, name)), sep="\n", end="")
    sys.exit(not all(outcome.is_well for outcome in outcomes))


def soak(folder: Path, seed: int, trials: int, faults: int, base: Path | None = None) -> Outcome:
    """Both searches of a seed, and what differs; a folder that was begun is gone on with."""
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    base = base or (folder / "base" / "pipeline")
    if not base.exists():
        base.parent.mkdir()
        write_tiny_sdxl(base.parent)
    (folder / "soak.yaml").write_text(yaml.safe_dump({**SPACE, "base": str(base), "trials": trials}))
    os.environ["BENCH_CACHE"] = str(folder / "cache")
    start(folder, "calm", seed).wait()
    outcome = Outcome(trials=trials)
    disturb(folder, seed, faults, outcome)
    check(folder, seed, outcome)
    return outcome


# Faults


def start(folder: Path, name: str, seed: int) -> subprocess.Popen[bytes]:
    words = ["search", "--space", "soak.yaml", "--name", name, "--seed", str(seed)]
    with (folder / f"{name}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "bench", *words],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
            stdout=log,
            stderr=log,
            # Jobs in the background of a shell ignore it, and so would what they start.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )


def disturb(folder: Path, seed: int, faults: int, outcome: Outcome) -> None:
    """Search until the search is done, with so many faults at most."""
    dice = random.Random(seed)
    path = folder / "runs" / "stormy"
    while not (path / "result.json").exists():
        outcome.starts += 1
        parent = start(folder, "stormy", seed)
        try:
            while outcome.faults.total() < faults and waited(parent, path, dice):
                if kind := strike(parent, dice.choice(KINDS), dice):
                    outcome.faults[kind] += 1
            parent.wait(timeout=STALLED)
        finally:
            parent.kill()
            parent.wait()


def waited(parent: subprocess.Popen[bytes], path: Path, dice: random.Random) -> bool:
    """Until the next fault is due; False if the parent has ended before."""
    if dice.random() < 0.5:
        time.sleep(dice.uniform(0, PAUSE))
        return parent.poll() is None
    if not is_at_work(parent, path):
        return False
    time.sleep(dice.uniform(0, DELAY))
    return True


def is_at_work(parent: subprocess.Popen[bytes], path: Path) -> bool:
    """Waits for something new in the folder; False if the parent has ended before."""
    before, end = latest(path), time.monotonic() + STALLED
    while parent.poll() is None:
        if latest(path) > before:
            return True
        assert time.monotonic() < end, f"{path}: nothing new for {STALLED} s"
        time.sleep(0.1)
    return False


def latest(path: Path) -> int:
    """When anything was last written for a training."""
    folders = [folder for kind in ("trials", "confirm") for folder in path.glob(f"{kind}/*")]
    times = [0]
    for folder in folders:
        for file in (folder, *folder.glob("*")):
            try:
                times.append(file.stat().st_mtime_ns)
            except FileNotFoundError:
                continue  # replaced meanwhile
    return max(times)


def strike(parent: subprocess.Popen[bytes], kind: str, dice: random.Random) -> str | None:
    """What was struck, if it was alive."""
    whom, name = kind.split()
    if parent.poll() is not None:
        return None
    try:
        mother = psutil.Process(parent.pid)
        workers = mother.children()
        if whom == "worker" and not workers:
            return None
        victim = dice.choice(workers) if whom == "worker" else mother
        victim.send_signal(signal.Signals[name])
    except psutil.NoSuchProcess:
        return None
    if whom == "parent":
        psutil.wait_procs([mother, *workers], timeout=STALLED)
    return kind


# Checks


def check(folder: Path, seed: int, outcome: Outcome) -> None:
    """Fill in what was lost, doubled or changed."""
    calm, stormy = (Run.open(folder / "runs" / name) for name in ("calm", "stormy"))
    trials = {trial.label: trial for trial in stormy.trials()}
    wanted = {f"{number:04d}" for number in range(outcome.trials)}
    outcome.lost += sorted(wanted ^ trials.keys())
    outcome.lost += [label for label, trial in trials.items() if trial.state not in ("complete", "failed")]
    outcome.failed = sum(trial.state == "failed" for trial in trials.values())
    check_told(stormy, trials, outcome)
    known = {key(trial): trial for trial in calm.trials() if trial.state == "complete"}
    whole = [trial for trial in trials.values() if trial.state == "complete"]
    apart = [trial for trial in whole if key(trial) not in known]
    outcome.retrained = len(apart)
    alone = train_alone(folder, seed, apart)
    for trial in whole:
        other = known[key(trial)].path if key(trial) in known else alone / trial.label
        outcome.changed += [
            f"{trial.label} epoch {epoch}"
            for epoch in trial.epochs
            if scores(trial.path, epoch) != scores(other, epoch)
        ]


def check_told(run: Run, trials: dict[str, TrialRecord], outcome: Outcome) -> None:
    """The study has each trial once, and each epoch of it once."""
    told = list(labelled(run))
    counts = Counter(trial.user_attrs["label"] for trial in told if not trial.user_attrs.get("nested"))
    points = Counter((t.user_attrs["label"], t.params["epochs"]) for t in told if t.values)
    recorded = {(label, epoch) for label, t in trials.items() if t.state == "complete" for epoch in t.epochs}
    outcome.lost += [f"{label} in the study" for label in sorted(trials.keys() - counts.keys())]
    outcome.lost += [
        f"{label} epoch {epoch} in the study" for label, epoch in sorted(recorded - points.keys())
    ]
    outcome.lost += [
        f"{t.user_attrs['label']} still {t.state.name}" for t in told if not t.state.is_finished()
    ]
    outcome.doubled += [str(what) for what, count in (counts | points).items() if count > 1]
    outcome.doubled += [f"{label} in the study alone" for label in sorted(counts.keys() - trials.keys())]


def labelled(run: Run) -> Iterator[FrozenTrial]:
    """All that were begun; what was asked when a process ended, and not begun, was asked again."""
    study = optuna.load_study(study_name=run.metadata.name, storage=f"sqlite:///{run.path / 'study.db'}")
    for trial in study.trials:
        if "label" in trial.user_attrs:
            yield trial
        else:
            assert trial.state in (TrialState.FAIL, TrialState.WAITING), trial


def key(trial: TrialRecord) -> str:
    return trial.config.model_dump_json()


def scores(folder: Path, epoch: int) -> dict[str, Any]:
    return read_json(epoch_folder(folder, epoch) / "scores.json")


def train_alone(folder: Path, seed: int, trials: Sequence[TrialRecord]) -> Path:
    """Each in this process, after the others, with the threads of a worker; returns the folder of all."""
    console, into = Console(quiet=True), folder / "alone"
    before = Path.cwd()
    os.chdir(folder)  # where runs/ is
    try:
        command = command_of("soak.yaml", {}, "calm", seed, console)
        with open_session(command, "calm") as session:
            packs = packs_of(session, command.engine, PlainProgress(console))
            packs.exams |= session.exams(packs, ["dev"])
            jobs = [Job(folder=into / t.label, config=t.config, origin="sampled") for t in trials]
            packs.train(jobs, "dev", session.run.space.rungs)
    finally:
        os.chdir(before)
    return into


if __name__ == "__main__":
    main()
