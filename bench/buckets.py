"""Buckets: sizes of one area and several aspect ratios, what goes where, and when each is trained on."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.variants import CENTRE

SDXL_STEP = 64
"""Pixels by which sides differ, as SDXL was trained (Podell et al. 2023, arXiv 2307.01952, appendix I)."""
SDXL_SIDE = 512
"""Squares from this side on are cut up in SDXL's steps; smaller ones in the least that the base allows."""
MAX_RATIO = 4
"""Of the longer to the shorter side, likewise."""


class Size(NamedTuple):
    """Pixels."""

    width: int
    height: int

    @property
    def ratio(self) -> float:
        """Of width to height, as a logarithm: 2:1 is as far from a square as 1:2."""
        return math.log(self.width / self.height)


def bucket_sizes(resolution: int, step: int) -> tuple[Size, ...]:
    """The square of `resolution`, and for each longer side the widest and the tallest that are not larger.

    Other sides than the square's are multiples of `step`. From tall to wide. NovelAI's scheme ("NovelAI
    Improvements on Stable Diffusion", 2022, "Aspect Ratio Bucketing"), with the bounds of SDXL. No bucket
    has more pixels than the square, so none needs more memory.
    """
    area = resolution**2 // step**2
    longer = range(resolution // step + 1, math.isqrt(area * MAX_RATIO) + 1)
    pairs = [(side, area // side) for side in longer if side <= MAX_RATIO * (area // side)]
    wide = {Size(long * step, short * step) for long, short in pairs if long > short}
    tall = {Size(size.height, size.width) for size in wide}
    return tuple(sorted({Size(resolution, resolution)} | wide | tall, key=lambda size: size.ratio))


def step_of(resolution: int, vae_scale: int) -> int:
    """Pixels that the sides of a base's buckets are multiples of; `vae_scale` is in pixels per latent."""
    return math.lcm(SDXL_STEP, 2 * vae_scale) if resolution >= SDXL_SIDE else 2 * vae_scale


def bucket_of(size: tuple[int, int], sizes: tuple[Size, ...]) -> Size:
    """The one of `sizes` whose aspect ratio is nearest to an image of `size` (width, height)."""
    return min(sizes, key=lambda bucket: abs(bucket.ratio - Size(*size).ratio))


def fit(
    image: Image.Image, width: int, height: int | None = None, place: tuple[float, float] = CENTRE
) -> NDArray[np.uint8]:
    """The largest crop of that shape, resized to (height, width, 3); without a height, of a square.

    `place` is where it lies: from the left (0) to the right (1), and from the top to the bottom likewise.
    """
    height = height or width
    crop = (
        min(image.width, round(image.height * width / height)),
        min(image.height, round(image.width * height / width)),
    )
    left, top = (math.floor(place[axis] * (image.size[axis] - crop[axis])) for axis in (0, 1))
    box = (left, top, left + crop[0], top + crop[1])
    return np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS, box=box))


class Place(NamedTuple):
    """What a step trains on: a bucket, and where in the trial's row of that bucket's images it starts."""

    bucket: int
    start: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """The buckets of a training's steps: the same in every epoch and for every trial.

    So trials that begin at different epochs side by side always meet in one bucket. Which of its images a
    step takes is the trial's own: `batch_size` of them from `start` on, in an endless row of permutations.
    """

    counts: tuple[int, ...]
    """Images that an epoch shows, of each bucket."""
    batch_size: int

    def end(self, epoch: int) -> int:
        """Steps until an epoch is done: each image was shown `epoch` times.

        Where there are several buckets, a batch that a bucket does not fill shows some of its images again.
        """
        if len(self.counts) == 1:  # its last batch goes on in the next epoch's images
            return math.ceil(epoch * self.counts[0] / self.batch_size)
        return epoch * len(self._order)

    def place(self, step: int) -> Place:
        """Of one step, counted from 0."""
        if len(self.counts) == 1:
            return Place(0, step * self.batch_size)
        epoch, place = divmod(step, len(self._order))
        bucket, visit = self._order[place]
        batches = math.ceil(self.counts[bucket] / self.batch_size)
        return Place(bucket, (epoch * batches + visit) * self.batch_size)

    @property
    def _order(self) -> tuple[tuple[int, int], ...]:
        return _order(self.counts, self.batch_size)


@lru_cache
def _order(counts: tuple[int, ...], batch_size: int) -> tuple[tuple[int, int], ...]:
    """(bucket, how often it was met before) of each step of an epoch: every bucket spread evenly."""
    places = []
    for bucket, count in enumerate(counts):
        batches = math.ceil(count / batch_size)
        places += [((2 * visit + 1) / (2 * batches), bucket, visit) for visit in range(batches)]
    return tuple((bucket, visit) for _, bucket, visit in sorted(places))
