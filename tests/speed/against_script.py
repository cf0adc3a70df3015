"""bench beside what people use today: diffusers' own training script, its pipeline and torch-fidelity.

    python tests/speed/against_script.py --script train_text_to_image_lora_sdxl.py --work FOLDER

The script is not in this repository. Take `examples/text_to_image/train_text_to_image_lora_sdxl.py` of
github.com/huggingface/diffusers at the tag of the installed diffusers (constraints.txt: v0.42.1); it refuses
a diffusers that is older than itself. Nothing of it is changed and nothing is downloaded.

The public way, for each configuration: one process of the script, flags as in its README (the VAE is given
so that it runs in `--dtype`; no checkpoints, no validation, no upload); then one process that loads the
pipeline with the LoRA, draws the prompts, one or 16 a call, writes PNG files and computes FID by
torch-fidelity against the base's images, which one more process has drawn once. bench: the same
configurations, steps, pictures, prompts and seeds in one process from a cold start, its cache empty, all
adapters, images and scores written to a run folder. The same data folder serves both.

What helps the public side here: the base's files have been read, the data's Arrow files exist and
torch-fidelity keeps the base's features before its clock starts or runs on; a fast sampler with as few steps
as bench's; the LoRA of lowest rank is measured where not all are (`--measure`); bf16 keeps its LoRA in bf16,
bench's in float32; bench computes all its metrics with two networks, the public side FID alone.
What hurts it, as its README has it: no loading workers; pictures and captions are encoded again at every
step; the script loads the pipeline again at its end. And by our choice: torch-fidelity looks through bench's
scorer, which needs no download, and whose library takes longer to import than Inception (counted as scoring).
bench scores and writes while it draws: its stage `scoring` is what that adds, its `training` holds nothing
else. Installed packages should be compiled (`python -m compileall`) before: a first import is slower.

Results of several calls with the same settings and `--work` gather in FOLDER/against_script.json, and the
table shows all of them: `--only` runs one side, on a machine that is lent by the minute for example.
"""

import argparse
import datetime
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]
RATES = (1e-4, 2e-4, 5e-4, 1e-3)
RANKS = (8, 16, 32)
CONFIGS = tuple((rank, rate) for rate in RATES for rank in RANKS)
"""Rank and learning rate; alpha is the rank and the modules are attention's, as the script has them."""
SEEDS = 2
"""Images of a prompt."""
MIN_IMAGES = 6
GUIDANCE = 5.0
STAGES = ("start-up", "training", "drawing", "scoring", "base's images")
WARM_UP = 0.1
"""Share of the steps that the pace leaves out."""
STEP = re.compile(r"Steps:.*?\| *(\d+)/(\d+) \[")
PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "datasets", "torch-fidelity")

Seconds = Mapping[str, float]
"""By stage."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What both sides do; results with other settings do not go into one table."""

    base: str
    data: str
    configs: int
    steps: int
    """Updates of each training."""
    batch: int
    """Pictures in each."""
    images: int
    """That are scored, of each configuration."""
    sampler_steps: int
    resolution: int
    dtype: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """How long one way took, or would take, for all configurations."""

    seconds: Seconds
    pace: float
    """Steps a second while it trains, of all configurations together."""
    images: float
    """A second while it draws."""
    measured: int
    """Configurations that were run; the others are taken to be as slow."""
    measured_steps: int
    """Of each; further ones are taken to have the same pace."""
    record: Mapping[str, Any]
    """Date, machine, versions, FIDs."""


# Arithmetic


@dataclass(frozen=True, slots=True)
class Mark:
    """The script's own progress: so many steps were done then."""

    seconds: float
    done: int


def parse_step(line: str) -> tuple[int, int] | None:
    """Steps done and to do of a line of the script's progress bar; None for any other line."""
    found = STEP.search(line)
    return (int(found[1]), int(found[2])) if found else None


def pace_of(marks: Sequence[Mark]) -> float:
    """Steps a second from the first mark after the warm-up to the last; raises ValueError for too few."""
    start = max(1, math.ceil(WARM_UP * marks[-1].done)) if marks else 0
    later = [mark for mark in marks if mark.done >= start]
    if len(later) < 2 or later[-1].done == later[0].done:
        raise ValueError(f"the script showed {len(later)} steps after its warm-up; 2 are needed for a pace")
    return (later[-1].done - later[0].done) / (later[-1].seconds - later[0].seconds)


def extended(training: float, pace: float, measured_steps: int, steps: int) -> float:
    """Seconds of a training of `steps`, from one of fewer at the same pace."""
    return training + (steps - measured_steps) / pace


def multiplied(measured: Sequence[Seconds], configs: int) -> dict[str, float]:
    """Seconds of all configurations by stage, from those of the measured ones."""
    return {
        stage: sum(seconds[stage] for seconds in measured) * configs / len(measured)
        for stage in STAGES
        if all(stage in seconds for seconds in measured)
    }


def num_pictures(available: int, steps: int, batch: int) -> int:
    """The most pictures with which `steps` batches are whole epochs of whole batches; 0 if there are none."""
    batches = [number for number in range(1, available // batch + 1) if steps % number == 0]
    return batch * max(batches, default=0)


def table(settings: Settings, sides: Mapping[str, Side]) -> str:
    """Seconds of all configurations, a column a side, each with its ratio to bench where that is there."""
    bench = sides.get("bench")
    header = ["stage", *(f"{name}, s" for name in sides)]
    header += [f"{name} / bench" for name in sides if bench and name != "bench"]
    rows = [header, ["---"] * len(header)]
    for stage in (*STAGES, "all"):
        values = {name: _seconds(side, stage) for name, side in sides.items()}
        ratios = [_ratio(values[name], values["bench"]) for name in sides if bench and name != "bench"]
        rows.append([stage, *(f"{value:.1f}" for value in values.values()), *ratios])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, "", *(_said(name, side, settings) for name, side in sides.items())])


def _seconds(side: Side, stage: str) -> float:
    return sum(side.seconds.values()) if stage == "all" else side.seconds[stage]


def _ratio(public: float, bench: float) -> str:
    return f"{public / bench:.1f}" if bench > 0 else "-"


def _said(name: str, side: Side, settings: Settings) -> str:
    text = f"{name}: {side.pace:.2f} steps/s, {side.images:.2f} images/s; {side.record['machine']}"
    if side.measured < settings.configs:
        text += f"; {side.measured} of {settings.configs} configurations measured and multiplied"
    if side.measured_steps < settings.steps:
        text += f"; {side.measured_steps} of {settings.steps} steps measured and extended at that pace"
    if again := side.record.get("again"):
        stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in again.items())
        text += f"; all trials a second time in that process: {sum(again.values()):.1f} s ({stages})"
    return text


# Processes


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a measurement works."""

    work: Path

    @property
    def data(self) -> Path:
        """Pictures with captions in train, dev and test, as both sides read them."""
        return self.work / "data"

    @property
    def arrow(self) -> Path:
        return self.work / "arrow"

    @property
    def results(self) -> Path:
        return self.work / "against_script.json"

    def fresh(self, name: str) -> Path:
        """An empty folder."""
        folder = self.work / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder


def run_process(command: Sequence[str], log: Path, **variables: str) -> tuple[float, list[Mark]]:
    """Run one process to its end: its seconds, and the steps that it showed. Exits if it fails."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    offline = {name: "1" for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")}
    environment = os.environ | offline | {"PYTHONPATH": os.pathsep.join(paths)} | variables
    started, marks = time.monotonic(), []
    with subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    ) as process:
        assert process.stdout is not None
        for line in lines_of(process.stdout, log):
            step = parse_step(line)
            # A bar is drawn several times a step, and once more when the process ends.
            if step and (not marks or step[0] > marks[-1].done):
                marks.append(Mark(time.monotonic() - started, step[0]))
    if process.returncode:
        raise SystemExit(f"{Path(command[0]).name} failed, see {log}: {_last_line(log)}")
    return time.monotonic() - started, marks


def lines_of(stream: IO[bytes], log: Path) -> Iterator[str]:
    """Lines as they come, a progress bar's each time that it is drawn; all of it goes to the log too.

    A bar ends its line only when it is drawn again: what has come of a line is given too.
    """
    rest = b""
    with log.open("wb") as file:
        while content := stream.read1(65536):  # type: ignore[attr-defined]
            file.write(content)
            *lines, rest = re.split(rb"[\r\n]", rest + content)
            yield from (line.decode(errors="replace") for line in [*lines, rest] if line)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


def run_task(script: str, task: Mapping[str, Any], folder: Path, **variables: str) -> tuple[float, Any]:
    """Run a script of this folder on a task: its seconds, and what it wrote as its answer."""
    file, answer = folder / f"{script}.task.json", folder / f"{script}.answer.json"
    file.write_text(json.dumps({**task, "answer": str(answer)}))
    command = [str(Path(__file__).with_name(f"{script}.py")), str(file)]
    seconds, _ = run_process(command, folder / f"{script}.log", **variables)
    return seconds, json.loads(answer.read_text())


# The public side


def run_public(
    settings: Settings, place: Place, script: Path, prompts_per_call: int, measure: int, measured_steps: int
) -> Side:
    folder = place.fresh(f"public-{prompts_per_call}")
    drawing = _drawing(settings, place, folder, prompts_per_call)
    once, _ = _draw(drawing, folder / "base", None)
    measured, paces, fids = [], [], []
    for number, (rank, rate) in enumerate(CONFIGS[:measure]):
        into = folder / f"{number:04d}"
        into.mkdir()
        seconds, pace = _train(settings, place, script, into, rank, rate, number, measured_steps)
        wall, answer = _draw(drawing, into, into / "pytorch_lora_weights.safetensors")
        seconds["start-up"] += wall - answer["drawing"] - answer["scoring"]
        measured.append(seconds | {stage: answer[stage] for stage in ("drawing", "scoring")})
        paces.append(pace)
        fids.append(answer["fid"])
        print(f"public, configuration {number}: {sum(measured[-1].values()):.1f} s, {pace:.2f} steps/s")
    seconds = multiplied(measured, settings.configs)
    return Side(
        seconds=seconds | {"base's images": once},
        pace=len(paces) / sum(1 / pace for pace in paces),
        images=settings.configs * settings.images / seconds["drawing"],
        measured=measure,
        measured_steps=measured_steps,
        record=record() | {"fid": fids, "script": hashlib.sha256(script.read_bytes()).hexdigest()},
    )


def _drawing(settings: Settings, place: Place, folder: Path, prompts_per_call: int) -> dict[str, Any]:
    """What is the same in every process that draws."""
    return {
        "base": str(base_folder(settings.base)),
        "prompts": prompts_of(settings, place),
        "prompts_per_call": prompts_per_call,
        "sampler_steps": settings.sampler_steps,
        "guidance": GUIDANCE,
        "resolution": settings.resolution,
        "dtype": settings.dtype,
        "base_images": str(folder / "base" / "images"),
        "fidelity": str(folder / "fidelity"),
    }


def _train(
    settings: Settings, place: Place, script: Path, into: Path, rank: int, rate: float, seed: int, steps: int
) -> tuple[dict[str, float], float]:
    """One process of the script: its seconds by stage, for all steps, and its pace."""
    base = base_folder(settings.base)
    flags = {
        "pretrained_model_name_or_path": base,
        "train_data_dir": place.data / "train",
        "cache_dir": place.arrow,
        "caption_column": "text",
        "resolution": settings.resolution,
        "train_batch_size": settings.batch,
        "max_train_steps": steps,
        "checkpointing_steps": steps + 1,
        "rank": rank,
        "learning_rate": rate,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "mixed_precision": "no" if settings.dtype == "float32" else "bf16",
        "seed": seed,
        "output_dir": into,
    }
    if settings.dtype != "float32":
        flags["pretrained_vae_model_name_or_path"] = base / "vae"
    command = [str(script), "--center_crop", *(f"--{name}={value}" for name, value in flags.items())]
    wall, marks = run_process(command, into / "train.log")
    pace = pace_of(marks)
    training = marks[-1].seconds - marks[0].seconds
    full = extended(training, pace, steps, settings.steps)
    return {"start-up": wall - training, "training": full}, pace


def _draw(drawing: Mapping[str, Any], into: Path, adapter: Path | None) -> tuple[float, Any]:
    (into / "images").mkdir(parents=True)
    task = {**drawing, "images": str(into / "images"), "adapter": adapter and str(adapter)}
    return run_task("public_draw", task, into)


# bench


def run_bench(settings: Settings, place: Place, slots: int, again: bool) -> Side:
    folder = place.fresh("bench")
    configs = [
        {"rank": rank, "learning_rate": rate, "seed": seed}
        for seed, (rank, rate) in enumerate(CONFIGS[: settings.configs])
    ]
    task = asdict(settings) | {
        "base": str(base_folder(settings.base)),
        "data": str(place.data),
        "configs": configs,
        "seeds": SEEDS,
        "guidance": GUIDANCE,
        "slots": slots,
        "again": again,
        "runs": str(folder / "runs"),
    }
    wall, answer = run_task("bench_study", task, folder, BENCH_CACHE=str(folder / "cache"))
    timed = sum(answer["seconds"].values()) + sum((answer["again"] or {}).values())
    seconds = answer["seconds"] | {"start-up": wall - timed}
    return Side(
        seconds={stage: seconds[stage] for stage in STAGES},
        pace=settings.configs * settings.steps / seconds["training"],
        images=settings.configs * settings.images / seconds["drawing"],
        measured=settings.configs,
        measured_steps=settings.steps,
        record=record() | {"slots": slots, "drift": answer["drift"], "again": answer["again"]},
    )


# What both read


def base_folder(name: str) -> Path:
    from bench.sources import BUNDLED

    return (ROOT / "bench" / BUNDLED[name] if name in BUNDLED else Path(name)).absolute()


def prepare(settings: Settings, place: Place) -> None:
    """Write the pictures that are trained on, and those whose captions are drawn; warm what both read."""
    from bench.dataset import load_dataset
    from bench.prompts import held_out_prompts

    dataset = load_dataset(settings.data)
    count = num_pictures(len(dataset.train), settings.steps, settings.batch)
    prompts = held_out_prompts(dataset, "dev", settings.images // SEEDS, SEEDS)
    if count < 2 or len(prompts) * SEEDS != settings.images:
        raise SystemExit(
            f"{settings.data}: {len(dataset.train)} training pictures and {len(prompts)} held-out captions "
            f"allow no {settings.steps} batches of {settings.batch} and {settings.images} images; "
            f"give fewer, or an even number of images"
        )
    shutil.rmtree(place.data, ignore_errors=True)
    _write(place.data / "train", dataset.train[:count], settings.resolution)
    _write(place.data / "dev", [prompt.example for prompt in prompts], settings.resolution)
    _write(place.data / "test", dataset.test[:2], settings.resolution)
    _warm(settings, place)


def _write(folder: Path, examples: Sequence[Any], side: int) -> None:
    from PIL import Image

    from bench.buckets import fit

    folder.mkdir(parents=True)
    rows = []
    for number, example in enumerate(examples):
        name = f"{number:04d}.png"
        Image.fromarray(fit(example.image(), side)).save(folder / name, compress_level=1)
        rows.append(json.dumps({"file_name": name, "text": example.caption}))
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


def _warm(settings: Settings, place: Place) -> None:
    """Read the base's files once, and let `datasets` make its Arrow files, so that no clock counts it."""
    for file in base_folder(settings.base).rglob("*.safetensors"):
        with file.open("rb") as content:
            hashlib.file_digest(content, "sha256")
    lines = [
        "import datasets, sys",
        "datasets.load_dataset('imagefolder', data_files={'train': sys.argv[1]}, cache_dir=sys.argv[2])",
    ]
    command = ["-c", "\n".join(lines), str(place.data / "train" / "**"), str(place.arrow)]
    run_process(command, place.work / "arrow.log")


def prompts_of(settings: Settings, place: Place) -> list[tuple[str, int]]:
    """Text and seed of every image, as bench draws them."""
    from bench.dataset import load_dataset
    from bench.prompts import held_out_prompts

    prompts = held_out_prompts(load_dataset(str(place.data)), "dev", settings.images // SEEDS, SEEDS)
    return [(prompt.text, seed) for prompt in prompts for seed in prompt.seeds]


def record() -> dict[str, Any]:
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": f"{device}, {os.cpu_count()} cores, {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


# The command


def read_sides(file: Path, settings: Settings) -> dict[str, Side]:
    """Results that are there already; exits if they have other settings."""
    if not file.exists():
        return {}
    content = json.loads(file.read_text())
    if content["settings"] != asdict(settings):
        changed = [name for name, value in asdict(settings).items() if content["settings"].get(name) != value]
        raise SystemExit(f"{file}: was measured with another {', '.join(changed)}; give another --work")
    return {name: Side(**side) for name, side in content["sides"].items()}


def write_sides(file: Path, settings: Settings, sides: Mapping[str, Side]) -> None:
    content = {"settings": asdict(settings), "sides": {name: asdict(side) for name, side in sides.items()}}
    file.write_text(json.dumps(content, indent=1) + "\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--script", type=Path, help="train_text_to_image_lora_sdxl.py of diffusers")
    parser.add_argument("--work", type=Path, required=True, help="a folder for all that is written")
    parser.add_argument("--base", default="emoji-xl", help="emoji-xl, or a diffusers folder")
    parser.add_argument("--data", default="emoji/pixel16", help="a bundled data set, or a folder")
    parser.add_argument("--configs", type=int, default=12, choices=range(1, len(CONFIGS) + 1), metavar="N")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--images", type=int, default=96, help="of each configuration; even, 6 at least")
    parser.add_argument("--sampler-steps", type=int, default=20)
    parser.add_argument("--resolution", type=int, default=64, help="emoji-xl's own if left out")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bf16"])
    parser.add_argument("--prompts-per-call", type=int, default=1, help="of the public side: 1 or 16")
    parser.add_argument("--only", choices=["public", "bench"])
    parser.add_argument("--measure", type=int, metavar="M", help="run only M configurations the public way")
    parser.add_argument("--measure-steps", type=int, metavar="S", help="and only S steps of each")
    parser.add_argument("--slots", type=int, help="bench: trained side by side; all if left out")
    parser.add_argument("--again", action="store_true", help="bench: all trials a second time, warm")
    given = parser.parse_args()
    if given.images < MIN_IMAGES:
        parser.error(f"--images {given.images}: {MIN_IMAGES} at least, for a drift from the base's")
    if given.only != "bench" and not (given.script and given.script.is_file()):
        parser.error(f"--script {given.script}: no such file; see the head of this file for where it is")
    return given


def main() -> None:
    given = arguments()
    names = ("data", "configs", "steps", "batch", "images", "sampler_steps", "resolution")
    settings = Settings(
        **{name: getattr(given, name) for name in names},
        base=given.base,
        dtype="bfloat16" if given.dtype == "bf16" else "float32",
    )
    place = Place(work=given.work.absolute())
    place.work.mkdir(parents=True, exist_ok=True)
    sides = read_sides(place.results, settings)
    prepare(settings, place)
    if given.only != "bench":
        measure = min(given.measure or settings.configs, settings.configs)
        measured_steps = min(given.measure_steps or settings.steps, settings.steps)
        call = given.prompts_per_call
        name = f"public, {call} a call"
        sides[name] = run_public(settings, place, given.script.absolute(), call, measure, measured_steps)
        write_sides(place.results, settings, sides)
    if given.only != "public":
        sides["bench"] = run_bench(settings, place, given.slots or settings.configs, given.again)
        write_sides(place.results, settings, sides)
    print(table(settings, dict(sorted(sides.items(), reverse=True))))


if __name__ == "__main__":
    main()
