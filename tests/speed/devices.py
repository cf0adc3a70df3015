"""Trials an hour on one device and on several: `python tests/speed/devices.py --work FOLDER`.

The same fixed configurations (rank, modules and steps alike, learning rates and seeds not) are trained,
drawn, scored and recorded as a search does it, first on one device, then on --devices of the machine, each
time in a process of its own with a warm cache. On GPUs: a full-size SDXL with random weights, written to the
folder once (7 GB). Without a GPU: the bundled base, on parts of the processor, which tests the script.

With `--executor ray` a device is a node of one CPU of a Ray cluster on this machine: one against --devices.

Start-up is all until every device has loaded; then each trains one pack that is not counted, so that kernels
are chosen and compiled. What is counted lasts until the last trial has been recorded.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
WARM_UP = 1000
"""Number of the first trial that is not counted."""


def main() -> None:
    given = arguments()
    given.work.mkdir(parents=True, exist_ok=True)
    if given.answer:
        measure(given)
        return
    if not given.base:
        given.base = default_base(given.work)
    run(given, "prepare", devices=1, trials=0)
    one = run(given, "one", devices=1, trials=given.trials)
    several = run(given, "several", devices=given.devices, trials=given.trials)
    report(given, one, several)


def default_base(work: Path) -> str:
    import torch

    if not torch.cuda.is_available():
        return "emoji-xl"
    folder = work / "sdxl"
    if not (folder / "model_index.json").exists():
        subprocess.run([sys.executable, str(ROOT / "tests" / "full_size_sdxl.py"), str(folder)], check=True)
    return str(folder)


def run(given: argparse.Namespace, name: str, devices: int, trials: int) -> dict[str, Any]:
    """Measure in a process of its own."""
    shutil.rmtree(given.work / "runs" / name, ignore_errors=True)
    answer = given.work / f"{name}.json"
    values = {**vars(given), "devices": devices, "trials": trials, "answer": answer, "name": name}
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in values.items()]
    environment = {**os.environ, "BENCH_CACHE": str(given.work / "cache")}
    subprocess.run([sys.executable, __file__, *flags], check=True, env=environment)
    found: dict[str, Any] = json.loads(answer.read_text())
    return found


def report(given: argparse.Namespace, one: dict[str, Any], several: dict[str, Any]) -> None:
    print(f"\n{given.trials} trials of {one['steps']} steps and {one['images']} images, {given.slots} slots")
    print(f"{'':40}{'seconds':>10}{'trials/h':>10}{'start-up':>10}{'trials/h with it':>18}")
    for found in (one, several):
        paces = [3600 * given.trials / s for s in (found["work"], found["work"] + found["start_up"])]
        print(f"{found['device']:40}{found['work']:10.1f}{paces[0]:10.0f}", end="")
        print(f"{found['start_up']:10.1f}{paces[1]:18.0f}")
    with_all = [found["work"] + found["start_up"] for found in (one, several)]
    print(
        f"{given.devices} devices against one: {one['work'] / several['work']:.2f} times the trials an hour"
    )
    print(f"with start-up: {with_all[0] / with_all[1]:.2f} times")
    pairs = zip(one["similarity"], several["similarity"], strict=True)
    print(f"similarities differ by {max(abs(a - b) for a, b in pairs):.1e} at most")


# In a process of its own


def measure(given: argparse.Namespace) -> None:
    started = time.monotonic()
    from rich.console import Console

    from bench.session import Command, Engine
    from trainers.adapters import attach
    from trainers.loop import train

    command = Command(
        space=space_of(given),
        name=given.name,
        folder=given.work / "runs",
        seed=0,
        engine=Engine(train=train, attach=attach),
        console=Console(width=200),
        executor=given.executor,
    )
    with nodes(given.devices) if given.executor == "ray" else nullcontext():
        answer = answer_of(command, given, started)
    given.answer.write_text(json.dumps(answer))


@contextmanager
def nodes(number: int) -> Iterator[None]:
    """A Ray cluster on this machine with so many nodes of one CPU, for whatever joins one."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(number):
        cluster.add_node(num_cpus=1)
    os.environ["RAY_ADDRESS"] = cluster.address
    try:
        yield
    finally:
        cluster.shutdown()


def answer_of(command: Any, given: argparse.Namespace, started: float) -> dict[str, Any]:
    """What was measured since `started`, by the monotonic clock."""
    from bench.run import read_evaluation
    from bench.session import at_work

    with at_work(command, "devices", splits=["dev"]) as (run, crew):
        while not all(worker.is_loaded for worker in getattr(crew, "workers", ())):
            time.sleep(0.05)
        loaded = time.monotonic()
        if given.trials:
            numbers = range(WARM_UP, WARM_UP + given.slots * given.devices)
            crew.train(jobs(run, numbers), "dev", [1], len(numbers))
        begun = time.monotonic()
        crew.train(jobs(run, range(given.trials)), "dev", [1], given.trials)
        ended = time.monotonic()
    return {
        "device": run.metadata.device,
        "steps": crew.survey.num_shown,
        "images": len(read_evaluation(run.base_folder("dev")).features),
        "start_up": loaded - started,
        "work": ended - begun,
        "similarity": similarities(run, given.trials),
    }


def space_of(given: argparse.Namespace) -> Any:
    from bench.space import SearchSpace

    default = {
        "rank": 16,
        "alpha": 16,
        "learning_rate": 1e-4,
        "dropout": 0,
        "epochs": 1,
        "target_modules": "attention",
        "batch_size": 1,
    }
    probes = {"training": 0, "altered": 0, "style": 0, "unrelated": 0}
    return SearchSpace.model_validate(
        {
            "name": "devices",
            "base": given.base,
            "data": "emoji/pixel16",
            "judge": "none",
            "resolution": None if given.base == "emoji-xl" else given.resolution,
            "dtype": "float32" if given.base == "emoji-xl" else "bfloat16",
            "parameters": {"learning_rate": {"low": 1e-5, "high": 1e-3, "log": True}},
            "default": default,
            "prompts": {"dev": given.prompts, "test": 2, "seeds": 2, **probes},
            "floor": 0,
            "slots": given.slots,
            "devices": given.devices,
        }
    )


def jobs(run: Any, numbers: range) -> list[Any]:
    from bench.packs import Job

    fixed = run.space.default
    return [
        Job(
            folder=run.trial_folder(number),
            config=fixed.model_copy(update={"learning_rate": 1e-4 * 1.03 ** (number % 64), "seed": number}),
            origin="sampled",
        )
        for number in numbers
    ]


def similarities(run: Any, count: int) -> list[float]:
    """Of each trial that was counted; exits unless all are complete."""
    from bench.run import epoch_folder, read_evaluation

    records = run.trials()[:count]
    if failed := [record for record in records if record.state != "complete"]:
        raise SystemExit(f"trial {failed[0].label}: {failed[0].state}: {failed[0].reason}")
    return [read_evaluation(epoch_folder(r.path, 1)).scores["similarity"].value for r in records]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder for all that is written")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--executor", choices=["local", "ray"], default="local")
    parser.add_argument("--base", help="emoji-xl, or a diffusers folder")
    parser.add_argument("--resolution", type=int, default=512, help="of a base that is not emoji-xl")
    parser.add_argument("--trials", type=int, default=96)
    parser.add_argument("--slots", type=int, default=16, help="on each device")
    parser.add_argument("--prompts", type=int, default=2, help="that each trial draws, with 2 seeds")
    parser.add_argument("--name", help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
