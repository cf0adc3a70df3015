"""Buckets: SDXL's sizes, the nearest one, crops without distortion, and a row that every trial shares."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from bench.buckets import MAX_RATIO, Schedule, Size, bucket_of, bucket_sizes, fit, step_of

SDXL_PAPER = {  # Podell et al. 2023, appendix I, wide ones
    *((2048, 512), (1984, 512), (1920, 512), (1856, 512), (1792, 576), (1728, 576), (1664, 576)),
    *((1600, 640), (1536, 640), (1472, 704), (1408, 704), (1344, 704), (1344, 768), (1280, 768)),
    *((1216, 832), (1152, 832), (1152, 896), (1088, 896), (1088, 960), (1024, 960), (1024, 1024)),
}


def test_buckets_are_those_that_sdxl_was_trained_on() -> None:
    sizes = bucket_sizes(1024, step_of(1024, 8))
    assert {tuple(size) for size in sizes if size.width >= size.height} <= SDXL_PAPER
    assert len(sizes) == 33
    assert Size(1216, 832) in sizes and Size(832, 1216) in sizes


@pytest.mark.parametrize(
    ("resolution", "vae_scale"), [(1024, 8), (768, 8), (512, 8), (1040, 8), (64, 4), (32, 2)]
)
def test_no_bucket_is_larger_than_the_square(resolution: int, vae_scale: int) -> None:
    sizes = bucket_sizes(resolution, step := step_of(resolution, vae_scale))
    assert Size(resolution, resolution) in sizes
    assert len(sizes) > 5
    for size in sizes:
        assert 0.75 * resolution**2 < size.width * size.height <= resolution**2
        assert 1 / MAX_RATIO <= size.width / size.height <= MAX_RATIO
        assert Size(size.height, size.width) in sizes
        assert size.width == size.height or (size.width % step, size.height % step) == (0, 0)
        assert (size.width % (2 * vae_scale), size.height % (2 * vae_scale)) == (0, 0)
    assert list(sizes) == sorted(sizes, key=lambda size: size.width / size.height)


@pytest.mark.parametrize(
    ("size", "bucket"),
    [
        ((3000, 2000), (1216, 832)),
        ((2000, 3000), (832, 1216)),
        ((50, 50), (1024, 1024)),
        ((1000, 990), (1024, 1024)),
        ((1920, 1080), (1344, 768)),
        ((9000, 100), (2048, 512)),
    ],
)
def test_an_image_goes_to_the_nearest_ratio(size: tuple[int, int], bucket: tuple[int, int]) -> None:
    assert bucket_of(size, bucket_sizes(1024, 64)) == bucket


# Cropping


def ramp(width: int, height: int) -> Image.Image:
    """Red grows from left to right, green from top to bottom, a step a pixel."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(width)[None, :], np.arange(height)[:, None]
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (41, 30), (33, 33), (200, 31)])
def test_a_square_is_cut_as_ever(size: tuple[int, int]) -> None:
    image = ramp(*size)
    edge = min(size)
    left, top = (size[0] - edge) // 2, (size[1] - edge) // 2
    cut = image.crop((left, top, left + edge, top + edge)).resize((16, 16), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(fit(image, 16), np.asarray(cut))


@pytest.mark.parametrize("size", [(200, 100), (100, 200), (150, 150), (199, 101)])
@pytest.mark.parametrize("bucket", [(48, 32), (32, 48), (64, 16), (32, 32)])
def test_a_crop_is_central_as_large_as_can_be_and_not_distorted(
    size: tuple[int, int], bucket: tuple[int, int]
) -> None:
    pixels = fit(ramp(*size), *bucket).astype(float)
    assert pixels.shape == (bucket[1], bucket[0], 3)
    middle = pixels[bucket[1] // 2 - 1 : bucket[1] // 2 + 1, bucket[0] // 2 - 1 : bucket[0] // 2 + 1]
    red, green = middle.mean(axis=(0, 1))[:2]
    assert abs(red - (size[0] - 1) / 2) < 1.5 and abs(green - (size[1] - 1) / 2) < 1.5
    across = np.diff(pixels[bucket[1] // 2, 4:-4, 0]).mean()  # pixels of the image a pixel of the crop
    down = np.diff(pixels[4:-4, bucket[0] // 2, 1]).mean()
    assert across == pytest.approx(down, rel=0.12)
    assert max(across * bucket[0] / size[0], down * bucket[1] / size[1]) == pytest.approx(1, rel=0.12)


# Order


@pytest.mark.parametrize(("count", "batch_size"), [(10, 4), (60, 1), (3, 8), (7, 7)])
def test_one_bucket_goes_on_where_the_last_step_ended(count: int, batch_size: int) -> None:
    schedule = Schedule(counts=(count,), batch_size=batch_size)
    assert [schedule.place(step) for step in range(20)] == [(0, step * batch_size) for step in range(20)]
    assert [schedule.end(epoch) for epoch in range(5)] == [
        -(-epoch * count // batch_size) for epoch in range(5)
    ]


MIXED = [((5, 3, 1), 1), ((5, 3, 1), 2), ((9, 9), 4), ((1, 1, 1), 8), ((40, 2), 1)]


@pytest.mark.parametrize(("counts", "batch_size"), MIXED)
def test_an_epoch_shows_every_image(counts: tuple[int, ...], batch_size: int) -> None:
    schedule = Schedule(counts=counts, batch_size=batch_size)
    for epoch in range(3):
        steps = range(schedule.end(epoch), schedule.end(epoch + 1))
        met = Counter(schedule.place(step).bucket for step in steps)
        assert met == {bucket: -(-count // batch_size) for bucket, count in enumerate(counts)}


@pytest.mark.parametrize(("counts", "batch_size"), MIXED)
def test_each_bucket_is_one_row_without_gaps(counts: tuple[int, ...], batch_size: int) -> None:
    schedule = Schedule(counts=counts, batch_size=batch_size)
    places = [schedule.place(step) for step in range(schedule.end(4))]
    for bucket in range(len(counts)):
        starts = [place.start for place in places if place.bucket == bucket]
        assert starts == [visit * batch_size for visit in range(len(starts))]


@pytest.mark.parametrize(("counts", "batch_size"), MIXED)
def test_trials_that_begin_at_different_epochs_meet_in_one_bucket(
    counts: tuple[int, ...], batch_size: int
) -> None:
    schedule = Schedule(counts=counts, batch_size=batch_size)
    first, *later = (
        [schedule.place(step).bucket for step in range(schedule.end(epoch), schedule.end(epoch + 1))]
        for epoch in range(4)
    )
    assert all(order == first for order in later)


def test_buckets_are_spread_over_an_epoch() -> None:
    schedule = Schedule(counts=(8, 4, 2), batch_size=1)
    order = [schedule.place(step).bucket for step in range(14)]
    assert order == [0, 1, 0, 2, 0, 1, 0, 0, 1, 0, 2, 0, 1, 0]
