"""Near-duplicates: pictures that are the same but for size, compression, brightness, a crop or mirror.

First, gradient correlation (Penney et al. 1998, "A comparison of similarity measures for use in 2-D-3-D
medical image registration", IEEE TMI 17(4)) of small copies, cropped by up to a tenth on each side and
mirrored, finds candidates; gradients, because flat areas, which different drawings share, say nothing. A
candidate is then aligned more finely, and every part of it has to agree: two faces that differ by the mouth
agree as a whole.
"""

from collections.abc import Iterable, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.float32]

SIDE = 64
"""Pixels of the small copies, whatever a picture's shape."""
CROPS = (0.0, 0.05, 0.1)
"""Shares of a picture that may be cut off on each side."""
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
    mirrored: bool


class _Match(NamedTuple):
    correlation: float
    rows: tuple[float, float]
    """Shares cut off above and below."""
    columns: tuple[float, float]
    mirrored: bool


def near_duplicates(pictures: Sequence[Image.Image]) -> list[Likeness]:
    """Pairs of RGB pictures, in order, that differ by at most MAX_DIFFERENCE.

    Takes time with the square of their number.
    """
    copies = [_small(picture) for picture in pictures]
    if len(copies) < 2:
        return []
    whole = np.concatenate([_gradients(_windows(copy, [(0, 0)], [(0, 0)], COARSE)[:1]) for copy in copies])
    candidates = {
        (min(index, other), max(index, other))
        for index, copy in enumerate(copies)
        for other in np.flatnonzero((_gradients(_cropped(copy)) @ whole.T).max(0) >= MIN_CORRELATION).tolist()
        if other != index
    }
    pairs = (
        min(_likeness(copies, first, second), _likeness(copies, second, first), key=lambda pair: pair[2])
        for first, second in sorted(candidates)
    )
    return [
        Likeness(min(one, other), max(one, other), difference, mirrored)
        for one, other, difference, mirrored in pairs
        if difference <= MAX_DIFFERENCE
    ]


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
    match = _match(copies[first], copies[second])
    whole = _centred(_windows(copies[second], [(0, 0)], [(0, 0)], FINE)[:1])
    windows = _windows(copies[first], _nudged(match.rows), _nudged(match.columns), FINE)
    of_this_side = windows[len(windows) // 2 :] if match.mirrored else windows[: len(windows) // 2]
    errors = ((_centred(of_this_side) - whole) ** 2).mean(-1) / max(float(whole.var()), 1e-9)
    best = errors[errors.mean((1, 2)).argmin()]
    cell = FINE // PARTS
    parts = best.reshape(PARTS, cell, PARTS, cell).mean((1, 3))
    return Likeness(first, second, float(parts.max() ** 0.5), match.mirrored)


def _match(copy: Pixels, other: Pixels) -> _Match:
    """The crop of `copy` whose gradients are most like those of the whole `other`."""
    whole = _gradients(_windows(other, [(0, 0)], [(0, 0)], COARSE)[:1])[0]
    correlations = _gradients(_cropped(copy)) @ whole
    places = list(product((False, True), _crops(), _crops()))
    mirrored, rows, columns = places[int(correlations.argmax())]
    return _Match(float(correlations.max()), rows, columns, mirrored)


def _nudged(crop: tuple[float, float]) -> list[tuple[float, float]]:
    low, high = ((max(0.0, share - NUDGE), share, share + NUDGE) for share in crop)
    return list(product(low, high))


# Pixels


def _small(picture: Image.Image) -> Pixels:
    filter_ = Image.Resampling.BOX if min(picture.size) >= 2 * SIDE else Image.Resampling.BICUBIC
    return np.asarray(picture.resize((SIDE, SIDE), filter_), np.float32) / np.float32(255)


def _crops() -> list[tuple[float, float]]:
    return list(product(CROPS, CROPS))


def _cropped(copy: Pixels) -> Pixels:
    return _windows(copy, _crops(), _crops(), COARSE)


def _windows(
    copy: Pixels, rows: Sequence[tuple[float, float]], columns: Sequence[tuple[float, float]], size: int
) -> Pixels:
    """(2 · rows · columns, size, size, 3): cut down to each pair of intervals, then the same mirrored."""
    vertical, horizontal = _averaging(rows, size), _averaging(columns, size)
    windows = np.einsum("aiy,yxc,bjx->abijc", vertical, copy, horizontal, optimize=True)
    windows = windows.reshape(-1, size, size, 3)
    return np.concatenate([windows, windows[:, :, ::-1]])


def _averaging(crops: Sequence[tuple[float, float]], size: int) -> Pixels:
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
