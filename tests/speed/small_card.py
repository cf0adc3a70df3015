"""Peak memory of a study's path on a card of 12 GB: `python tests/speed/small_card.py [--resolution 1024]`.

A full-size SDXL with random weights loads, encodes, releases its text encoders, trains one slot of batch 1,
draws and decodes, while the allocator may take no more than --limit bytes. 12·10⁹ leaves a card of 12 GiB
0.8 GiB for the driver. Needs an NVIDIA GPU; exits with 1 where memory did not suffice.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from full_size_sdxl import random_base  # noqa: E402

from bench.base import BaseModel, Bucket, TextEmbedding, TrainingData  # noqa: E402
from bench.buckets import bucket_sizes, step_of  # noqa: E402
from bench.config import TrialConfig  # noqa: E402
from bench.scoring.generate import generate  # noqa: E402
from bench.space import Sampler  # noqa: E402
from trainers.loop import train  # noqa: E402

NETWORKS = 800_000_000
"""Bytes that the networks of a study hold meanwhile: ViT-B/32, DINOv2-S and Inception v3 in float32."""
IMAGES = 4
PROMPTS = [f"a picture of a thing, number {number}" for number in range(IMAGES)]


def main() -> None:
    arguments = _arguments()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, arguments.limit / total))
    print(f"{torch.cuda.get_device_name()}, {arguments.resolution}², at most {arguments.limit / 1e9:.1f} GB")
    print(f"{'':28}{'seconds':>9}{'peak GB':>9}{'reserved':>9}{'kept':>9}")
    try:
        _study(arguments)
    except torch.OutOfMemoryError as error:
        sys.exit(f"out of memory: {' '.join(str(error).split())[:300]}")


def _study(arguments: argparse.Namespace) -> None:
    networks = torch.empty(NETWORKS, dtype=torch.uint8, device="cuda")
    with measured("load the UNet"):
        base = random_base(arguments.resolution)
    with measured("encode prompts"):
        text, empty = base.encode_prompts(PROMPTS), base.encode_empty()
    with measured("encode images"):
        data = TrainingData(buckets=_buckets(base, text, arguments.mixed), empty=empty)
    with measured("draw and decode, bare base"):
        _draw(base, text, empty)
    with measured("release text encoders"):
        base.release_encoders()
    _train(base, data, text, arguments)
    print(f"rows that the VAE sees at once: {base._chunks.size}")
    del networks


def _train(base: BaseModel, data: TrainingData, text: TextEmbedding, arguments: argparse.Namespace) -> None:
    """As it is, and with gradient checkpointing where that does not fit."""
    if not arguments.checkpointing:
        try:
            _trained(base, data, text, arguments, "")
            return
        except torch.OutOfMemoryError as error:
            print(f"training does not fit as it is: {' '.join(str(error).split())[:120]}")
        base.attached = None
        torch.cuda.empty_cache()
    base.unet.enable_gradient_checkpointing()
    _trained(base, data, text, arguments, ", checkpointed")


def _trained(
    base: BaseModel, data: TrainingData, text: TextEmbedding, arguments: argparse.Namespace, how: str
) -> None:
    config = TrialConfig(
        rank=arguments.rank,
        alpha=16,
        learning_rate=1e-4,
        dropout=0.1,
        epochs=arguments.epochs,
        target_modules=arguments.targets,
        batch_size=1,
    )
    rungs = train(base, data, iter([config]), [config.epochs], 1)
    with measured(f"train {config.epochs * len(data)} steps{how}"):
        rung = next(rungs)
    with measured("draw and decode, adapter"):
        _draw(base, text, data.empty)
    print(f"loss {np.mean(rung.losses[0]):.3f}")
    rungs.close()


def _buckets(base: BaseModel, text: TextEmbedding, mixed: bool) -> tuple[Bucket, ...]:
    """All images square, or half of them of the widest bucket."""
    side, generator = base.resolution, np.random.default_rng(0)
    widest = bucket_sizes(side, step_of(side, base.vae_scale))[-1]
    shapes: Sequence[tuple[int, int]] = (
        [(side, side), (widest.height, widest.width)] if mixed else [(side, side)]
    )
    buckets = []
    for number, (height, width) in enumerate(shapes):
        rows = slice(number, IMAGES, len(shapes))
        pixels = generator.integers(0, 256, (len(PROMPTS[rows]), height, width, 3), np.uint8)
        mean, std = base.encode_images(pixels)
        buckets.append(Bucket(mean=mean, std=std, text=text[rows]))
    return tuple(buckets)


def _draw(base: BaseModel, text: TextEmbedding, empty: TextEmbedding) -> None:
    images = generate(base, text[:1], empty, [0], Sampler(steps=4, guidance=5), 1)
    assert images.shape == (1, 1, base.resolution, base.resolution, 3)


@contextmanager
def measured(stage: str) -> Iterator[None]:
    """Print the seconds of a stage, its peak of allocated and of reserved memory, and what it keeps."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    started = time.monotonic()
    try:
        yield
    finally:
        torch.cuda.synchronize()
        numbers = (
            torch.cuda.max_memory_allocated(),
            torch.cuda.max_memory_reserved(),
            torch.cuda.memory_allocated(),
        )
        shown = "".join(f"{number / 1e9:9.2f}" for number in numbers)
        print(f"{stage:28}{time.monotonic() - started:9.1f}{shown}", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resolution", type=int, default=1024)
    parser.add_argument("--limit", type=float, default=12e9, help="bytes")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--targets", default="attention")
    parser.add_argument("--epochs", type=int, default=2, help="of four images")
    parser.add_argument("--mixed", action="store_true", help="two buckets")
    parser.add_argument("--checkpointing", action="store_true", help="from the start")
    return parser.parse_args()


if __name__ == "__main__":
    main()
