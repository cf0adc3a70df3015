"""Pace of packed training and of drawing: `python tests/speed/packed.py --resolution 512 --slots 1 32`.

On a full-size SDXL with random weights (or --base), with random latents and texts, batch 1: samples a second
once graphs are captured, seconds until the second step, memory, and images a second with guidance.
"""

import argparse
import gc
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from full_size_sdxl import random_base  # noqa: E402

from bench.base import BaseModel, Bucket, TextEmbedding, TrainingData, find_device, load_base  # noqa: E402
from bench.config import TrialConfig  # noqa: E402
from bench.scoring.generate import generate  # noqa: E402
from bench.space import Sampler  # noqa: E402
from trainers.loop import train  # noqa: E402
from trainers.lora import Attached, Slots  # noqa: E402

WARM_UP = 3
"""Steps before the clock starts."""


def main() -> None:
    given = _arguments()
    if given.base:
        base = load_base(given.base, find_device(), resolution=given.resolution)
    else:
        base = random_base(given.resolution)
    for slots in given.slots:
        _train(base, slots, given)
    if given.images:
        _draw(base, given)


def _train(base: BaseModel, slots: int, given: argparse.Namespace) -> None:
    _reset()
    steps = WARM_UP + given.steps
    data = TrainingData(buckets=(_bucket(base, steps),), empty=_text(base, 1))
    times = []

    def on_step(_: int) -> None:
        if len(times) in (0, 2, WARM_UP, steps - 1):
            _wait()
        times.append(time.perf_counter())

    started = time.perf_counter()
    next(train(base, data, iter([_config(given, seed) for seed in range(slots)]), [1], slots, on_step))
    pace = (times[-1] - times[WARM_UP - 1]) / given.steps
    what = f"{base.resolution}² {given.targets} rank {given.rank} dropout {given.dropout:g}, {slots} slots"
    what = f"DoRA {what}" if given.dora else what
    how = f"{1e3 * pace:.1f} ms a step, {slots / pace:.1f} samples/s, first {times[1] - started:.1f} s"
    print(f"train {what}: {how}, {_memory()}", flush=True)


def _draw(base: BaseModel, given: argparse.Namespace) -> None:
    _reset()
    text, empty, number = _text(base, given.images), _text(base, 1), given.images
    with Slots(base.unet, [_config(given, 0)]) as slots:
        base.attached = Attached(slots, [0])
        for attempt in ("first", "then"):
            _wait()
            started = time.perf_counter()
            generate(base, text, empty, range(number), Sampler(steps=20, guidance=5))
            pace = number / (time.perf_counter() - started)
            print(f"draw {base.resolution}², {attempt} {number} images: {pace:.2f} images/s, {_memory()}")
        base.attached = None


def _config(given: argparse.Namespace, seed: int) -> TrialConfig:
    return TrialConfig(
        rank=given.rank,
        alpha=given.rank,
        dora=given.dora,
        learning_rate=1e-4,
        dropout=given.dropout,
        epochs=1,
        target_modules=given.targets,
        batch_size=1,
        seed=seed,
    )


def _bucket(base: BaseModel, number: int) -> Bucket:
    shape = (number, *base.latent_shape)
    mean, std = torch.randn(shape, device=base.device), torch.rand(shape, device=base.device) / 10
    return Bucket(mean=mean, std=std, text=_text(base, number))


def _text(base: BaseModel, number: int) -> TextEmbedding:
    tokens, width, of_pooled = base.text_shape
    hidden = torch.randn(number, tokens, width, device=base.device, dtype=base.dtype)
    pooled = torch.randn(number, of_pooled, device=base.device, dtype=base.dtype)
    return TextEmbedding(hidden, pooled)


def _reset() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _memory() -> str:
    return f"{torch.cuda.max_memory_reserved() / 2**30:.1f} GiB" if torch.cuda.is_available() else "on a CPU"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", help="another than the full-size SDXL, which needs a GPU")
    parser.add_argument("--resolution", type=int)
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--targets", default="attention")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--dora", action="store_true")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--images", type=int, default=16, help="to draw; 0 for none")
    return parser.parse_args()


if __name__ == "__main__":
    main()
