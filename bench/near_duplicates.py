"""Near-duplicates: pictures that are the same but for size, compression, brightness, a crop or mirror.

First, gradient correlation (Penney et al. 1998, "A comparison of similarity measures for use in 2-D-3-D
medical image registration", IEEE TMI 17(4)) of small copies, cropped by up to a tenth on each side and
mirrored, finds candidates; gradients, because flat areas, which different drawings share, say nothing. A
candidate is then aligned more finely, and every part of it has to agree: two faces that differ by the mouth
agree as a whole.

Measured on the bundled drawings of 64 pixels, 204 in each set; on no photographs. Of 51 copies in each set,
50 or 51 are found that were halved, saved as JPEG of quality 75 or 50, cropped by 5 %, mirrored, or
mirrored and one of these; 48 or more of those cropped by 2, 3 or 10 % on all sides; 40 to 49 of those
cropped by 7 % on two; 13 to 36 of those halved, cropped and saved as JPEG 50. Of the 20,706 pairs of
different drawings in a set, 0 (fluent-3d), 2 (pixel16) and 7 (streamline) are called alike: faces that
differ by a few pixels of the mouth. Of 800 drawings of each of six larger sets (319,600 pairs) 14 to 28
are, mostly mirrored arrows and clocks, or a person drawn twice; of all 693 of streamline, with many such
faces, 201 of 239,778. A 64-bit DCT hash (Zauner 2010, "Implementation and benchmarking of perceptual image
hash functions") of a copy and its mirror finds 29 to 49 % of those cropped by 5 %, at 8 bits, and calls 7
to 13 pairs in a set alike. On a core 200 pictures take a second, 800 ten to fifteen.
"""

from collections.abc import Iterable, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.float32]
Crop = tuple[float, float]
"""Shares cut off at both ends of an axis."""

SIDE = 64
"""Pixels of the small copies, whatever a picture's shape."""
CROPS = (0.0, 0.05, 0.1)
"""Shares of a picture that may be cut off on each side."""
ALL_CROPS: list[Crop] = list(product(CROPS, CROPS))
NUDGE = 0.025
"""By which a crop is then tried larger and smaller."""
COARSE, FINE, PARTS = 12, 24, 4
"""Pixels of a side when candidates are sought and when aligned, and parts of a side that must agree."""
MIN_CORRELATION = 0.85
MAX_DIFFERENCE = 0.4


class Likeness(NamedTuple):
    """Two pictures, by index, that are nearly the same."""

    first: int
    second: int
    difference: float
    """In the part where they differ most: root mean square, in standard deviations of the picture."""


def near_duplicates(pictures: Sequence[Image.Image]) -> list[Likeness]:
    """Pairs of RGB pictures, in order, that differ by at most MAX_DIFFERENCE.

    Takes time with the square of their number.
    """
    copies = [_small(picture) for picture in pictures]
    if len(copies) < 2:
        return []
    pairs = (
        min(
            _likeness(copies, first, second),
            _likeness(copies, second, first)._replace(first=first, second=second),
            key=lambda pair: pair.difference,
        )
        for first, second in sorted(_candidates(copies))
    )
    return [pair for pair in pairs if pair.difference <= MAX_DIFFERENCE]


def _candidates(copies: Sequence[Pixels]) -> set[tuple[int, int]]:
    whole = np.concatenate([_gradients(_whole(copy, COARSE)) for copy in copies])
    found = set()
    for index, copy in enumerate(copies):
        correlations = _gradients(_windows(copy, ALL_CROPS, ALL_CROPS, COARSE)) @ whole.T
        alike = np.flatnonzero(correlations.max(0) >= MIN_CORRELATION).tolist()
        found |= {(min(index, other), max(index, other)) for other in alike if other != index}
    return found


def groups(pairs: Iterable[Likeness]) -> list[list[int]]:
    """Indices that are joined by pairs, each group and the list of them in order."""
    found: list[set[int]] = []
    for pair in pairs:
        joined = {pair.first, pair.second}
        apart = [group for group in found if not group & joined]
        found = [*apart, joined.union(*(group for group in found if group & joined))]
    return sorted(sorted(group) for group in found)


# One pair


def _likeness(copies: Sequence[Pixels], first: int, second: int) -> Likeness:
    """How far `second` is from the most similar crop of `first`."""
    mirrored, rows, columns = _place(copies[first], copies[second])
    whole = _centred(_whole(copies[second], FINE))
    windows = _windows(copies[first], _nudged(rows), _nudged(columns), FINE)
    of_this_side = windows[len(windows) // 2 :] if mirrored else windows[: len(windows) // 2]
    errors = ((_centred(of_this_side) - whole) ** 2).mean(-1) / max(float(whole.var()), 1e-9)
    best = errors[errors.mean((1, 2)).argmin()]
    cell = FINE // PARTS
    parts = best.reshape(PARTS, cell, PARTS, cell).mean((1, 3))
    return Likeness(first, second, float(parts.max() ** 0.5))


def _place(copy: Pixels, other: Pixels) -> tuple[bool, Crop, Crop]:
    """Mirrored or not, rows and columns: where in `copy` the gradients are most like those of `other`."""
    correlations = (
        _gradients(_windows(copy, ALL_CROPS, ALL_CROPS, COARSE)) @ _gradients(_whole(other, COARSE))[0]
    )
    return list(product((False, True), ALL_CROPS, ALL_CROPS))[int(correlations.argmax())]


def _nudged(crop: Crop) -> list[Crop]:
    low, high = ((max(0.0, share - NUDGE), share, share + NUDGE) for share in crop)
    return list(product(low, high))


# Pixels


def _small(picture: Image.Image) -> Pixels:
    filter_ = Image.Resampling.BOX if min(picture.size) >= 2 * SIDE else Image.Resampling.BICUBIC
    return np.asarray(picture.resize((SIDE, SIDE), filter_), np.float32) / np.float32(255)


def _whole(copy: Pixels, size: int) -> Pixels:
    """(1, size, size, 3)"""
    return _windows(copy, [(0, 0)], [(0, 0)], size)[:1]


def _windows(copy: Pixels, rows: Sequence[Crop], columns: Sequence[Crop], size: int) -> Pixels:
    """(2 · rows · columns, size, size, 3): cut down to each pair of intervals, then the same mirrored."""
    vertical, horizontal = _averaging(rows, size), _averaging(columns, size)
    windows = np.einsum("aiy,yxc,bjx->abijc", vertical, copy, horizontal, optimize=True)
    windows = windows.reshape(-1, size, size, 3)
    return np.concatenate([windows, windows[:, :, ::-1]])


def _averaging(crops: Sequence[Crop], size: int) -> Pixels:
    """(crops, size, SIDE): average a line of SIDE pixels, cut at both ends, to `size` pixels."""
    steps = np.linspace(0, 1, size + 1)
    edges = np.array([SIDE * (low + steps * (1 - high - low)) for low, high in crops])[:, :, None]
    pixels = np.arange(SIDE)
    covered = np.minimum(edges[:, 1:], pixels + 1) - np.maximum(edges[:, :-1], pixels)
    covered = covered.clip(0)
    shares: Pixels = (covered / covered.sum(-1, keepdims=True)).astype(np.float32)
    return shares


def _gradients(windows: Pixels) -> Pixels:
    """(n, …): differences of neighbours across and down, of unit length: a product is a correlation."""
    across, down = np.diff(windows, axis=2)[:, 1:], np.diff(windows, axis=1)[:, :, 1:]
    flat = np.concatenate([across, down], axis=-1).reshape(len(windows), -1)
    unit: Pixels = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
    return unit


def _centred(windows: Pixels) -> Pixels:
    """Without what brightness changes."""
    centred: Pixels = windows - windows.mean((1, 2, 3), keepdims=True)
    return centred
