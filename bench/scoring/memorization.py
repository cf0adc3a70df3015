"""Memorisation: are images copies of training pictures?

An alarm, not a verdict. An adapter that rightly learned a style moves all its images nearer to the training
pictures, so that nearness alone proves nothing: what it is held against are real pictures that were held
out, and the base model's images of the same prompts and seeds. Show the nearest pairs beside the numbers.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from bench.errors import UsageError
from bench.scoring.distance import Groups, grouped, without
from bench.scoring.metrics import Score
from bench.scoring.statistics import bootstrap_samples, mean_stderr

QUANTILE = 0.95
"""Of the images, by nearness to a training picture: what `nearest` reports."""
RARE = 0.005
"""Share of held-out pictures that are above τ."""
ENOUGH = 199
"""Held-out pictures from which on so small a share can be told: fewer, and τ is their highest cosine."""
ALARM = 3.0
"""Standard errors by which a number must stand out from real pictures, and from the base, for an alarm."""
CHANCE = 0.01
"""Of a τ so low, by the luck of the held-out pictures, that a share of images above it means nothing."""

Features = NDArray[np.float32]


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Nearest:
    """The training picture that is most like each image."""

    cosines: NDArray[np.float64]
    """Shape (images,); higher is nearer."""
    indices: NDArray[np.intp]
    """Row of the training picture, shape (images,)."""


class Pair(NamedTuple):
    """An image and the training picture nearest to it."""

    image: int
    training: int
    cosine: float


def nearest(features: Features, train: Features) -> Nearest:
    """The nearest training picture of each image: unit features (n, dim) against (m, dim), by cosine.

    Raises UsageError without training pictures.
    """
    if not len(train):
        raise UsageError("memorisation cannot be measured: there are no training pictures")
    cosines = features.astype(np.float64) @ train.astype(np.float64).T
    return Nearest(cosines=cosines.max(axis=1), indices=cosines.argmax(axis=1))


def pairs(features: Features, train: Features, count: int, num_seeds: int = 1) -> list[Pair]:
    """The `count` images nearest to a training picture, nearest first, at most one of each prompt.

    `features` are unit features, shape (prompts × seeds, dim), prompt by prompt; `train` (n, dim).
    """
    found = nearest(features, train)
    by_prompt = found.cosines.reshape(-1, num_seeds)
    best = np.arange(len(by_prompt)) * num_seeds + by_prompt.argmax(axis=1)
    order = best[np.argsort(-found.cosines[best], kind="stable")][:count]
    return [Pair(int(i), int(found.indices[i]), float(found.cosines[i])) for i in order]


# The numbers


def high(cosines: NDArray[np.float64], base: NDArray[np.float64] | None = None) -> tuple[float, float]:
    """The 95th percentile over images of the nearest-training cosine, minus `base`'s, and its error.

    Both have the shape (prompts, seeds); higher is nearer. The standard error is the bootstrap's over
    prompts, the same prompts for both: the jackknife is wrong for a percentile (Efron 1979).
    """
    samples = bootstrap_samples(len(cosines))
    values, resampled = (
        _percentiles(cosines[rows]) - (0.0 if base is None else _percentiles(base[rows]))
        for rows in (np.arange(len(cosines))[None], samples)
    )
    return float(values[0]), float(resampled.std(ddof=1))


def _percentiles(cosines: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each resample, shape (resamples, prompts, seeds)."""
    return np.asarray(np.quantile(cosines.reshape(len(cosines), -1), QUANTILE, axis=1))


def threshold(held_out: NDArray[np.float64]) -> float:
    """τ: the 99.5th percentile of the nearest-training cosine of held-out pictures, shape (m,).

    Taken at rank 0.995·(m + 1) (Weibull), so that a further real picture lies above it with probability
    0.005, or 1/(m + 1) with fewer than 199 pictures, when τ is their highest cosine. The usual percentile is
    lower: with 48 pictures a further one would exceed it five times as often as it says.
    Raises UsageError without held-out pictures.
    """
    if not len(held_out):
        raise UsageError("memorisation cannot be measured: there are no held-out pictures")
    return float(np.quantile(held_out, 1 - RARE, method="weibull"))


def copies(cosines: NDArray[np.float64], tau: float) -> NDArray[np.float64]:
    """Share of each prompt's images nearer to a training picture than τ, shape (prompts,); lower is better.

    `cosines` to the nearest training picture have the shape (prompts, seeds). Real pictures give 0.005, see
    `threshold`. The standard error is that of a mean over prompts with τ as given; `alarms` allows for τ.
    """
    shares: NDArray[np.float64] = (cosines > tau).mean(axis=1)
    return shares


def copies_caution(num_held_out: int) -> str | None:
    """Why τ from few held-out pictures is rough; None from 199 pictures on."""
    if num_held_out >= ENOUGH:
        return None
    share = 1 / (num_held_out + 1)
    return f"threshold from {num_held_out} held-out pictures: {share:.1%} of real ones exceed it, not 0.5%"


def authentic(found: Nearest, train: Features, num_seeds: int) -> NDArray[np.float64]:
    """Share of each prompt's images that are authentic, shape (prompts,); higher is better.

    AuthPct (Alaa et al. 2022, arXiv 2102.08921), as a share: an image is authentic when it is farther from
    its nearest training picture than that is from its own nearest other training picture. It depends on how
    dense the training pictures are (a copy of a picture that has a duplicate counts as authentic): read it
    beside the base's. The standard error is that of a mean over prompts.
    Raises UsageError with fewer than two training pictures.
    """
    if len(train) < 2:
        raise UsageError(f"authenticity needs at least 2 training pictures, got {len(train)}")
    among = train.astype(np.float64) @ train.astype(np.float64).T
    np.fill_diagonal(among, -np.inf)
    apart = found.cosines < among.max(axis=1)[found.indices]
    shares: NDArray[np.float64] = apart.reshape(-1, num_seeds).mean(axis=1)
    return shares


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class CopyingTest:
    """C_T of Meehan et al. 2020 (arXiv 2004.05675), in one cell: are images nearer than held-out pictures?

    The z of the Mann-Whitney test between the distances to the nearest training picture of n images and m
    held-out pictures, without a continuity correction. Far below 0: images are nearer than real pictures
    ever were, as copies are. Above 0: farther, as those of a model that has not learned enough.
    """

    chances: NDArray[np.float64]
    """Sums over the pairs of groups of [image farther than picture], ties one half; (groups, groups)."""
    num_pairs: NDArray[np.float64]
    """Their numbers of pairs."""
    spread: float
    """Standard deviation of the chance under the null, were all images independent."""

    @classmethod
    def of(
        cls,
        images: NDArray[np.float64],
        held_out: NDArray[np.float64],
        image_groups: Groups,
        picture_groups: Groups,
    ) -> "CopyingTest":
        """From cosines to the nearest training picture, shapes (n,) and (m,), and the groups of both."""
        if not len(images) or not len(held_out):
            raise UsageError("the data-copying test needs images and held-out pictures")
        farther = (images[:, None] < held_out) + 0.5 * (images[:, None] == held_out)
        num_groups = int(max(image_groups.max(), picture_groups.max())) + 1
        sizes = (np.bincount(groups, minlength=num_groups) for groups in (image_groups, picture_groups))
        n, m = farther.shape
        return cls(
            chances=grouped(farther, image_groups, picture_groups, num_groups),
            num_pairs=np.outer(*sizes).astype(np.float64),
            spread=float(np.sqrt((n + m + 1) / (12 * n * m))),
        )

    def z(self) -> float:
        return float((self.chances.sum() / self.num_pairs.sum() - 0.5) / self.spread)

    def leave_outs(self) -> NDArray[np.float64]:
        """z without each group in turn, at the same spread, shape (groups,): for the jackknife.

        Under the null z has a standard error of 1 only if images are independent; images of one prompt are
        not, and this error says by how much.
        """
        return np.asarray((without(self.chances) / without(self.num_pairs) - 0.5) / self.spread)


def loss_gap(
    train: NDArray[np.float64],
    held_out: NDArray[np.float64],
    base_train: NDArray[np.float64],
    base_held_out: NDArray[np.float64],
) -> tuple[float, float]:
    """Held-out minus training loss, minus the same gap of the base, with its standard error.

    Denoising losses, a mean squared error over fixed timesteps and noises for each picture: `train` and
    `base_train` of n training pictures, shape (n,), the others of m held-out ones, shape (m,), in the same
    order. Above 0: training lowered the loss of the training pictures more than that of others, as
    memorisation does (and, a little, any training). The error is Welch's, from the differences to the base
    of each picture. Raises UsageError with fewer than two pictures on a side.
    """
    learned, error = mean_stderr(train - base_train)
    transferred, other_error = mean_stderr(held_out - base_held_out)
    return transferred - learned, float(np.hypot(error, other_error))


# The alarm


def alarms(scores: Mapping[str, Score], num_held_out: int | None = None) -> list[str]:
    """Plain sentences, one for each reason to suspect memorisation; empty if there is none.

    A number has to stand out by `ALARM` standard errors both from what real held-out pictures give and from
    the base model's, so that the base itself, which has no gain, never raises one. `num_held_out` is the
    number of pictures that τ comes from: with few of them τ may lie low by chance, and more images have to
    be above it.
    """
    return list(_alarms(scores, num_held_out))


def _alarms(scores: Mapping[str, Score], num_held_out: int | None) -> Iterator[str]:
    copied, test, gap = (scores.get(name) for name in ("copies", "c_t", "loss_gap"))
    if copied and _beyond_base(copied, 1) and copied.value > _excess(copied, num_held_out):
        yield (
            f"{copied.value:.1%} of the images are nearer to a training picture than real held-out pictures "
            f"are ({_base(copied):.1%} of the base's)"
        )
    if test and _beyond_base(test, -1) and test.value < -ALARM * max(1.0, test.stderr):
        yield (
            "the images are nearer to the training pictures than real held-out pictures are "
            f"(z = {test.value:.1f}; the base's: {_base(test):.1f})"
        )
    if gap and gap.value > ALARM * gap.stderr:
        yield (
            "training lowered the loss of the training pictures more than that of held-out pictures "
            f"(by {gap.value:.2g} ± {gap.stderr:.1g})"
        )


def _excess(score: Score, num_held_out: int | None) -> float:
    """The share of images above τ that neither the luck of the prompts nor that of τ explains."""
    lucky = RARE
    if num_held_out is not None:
        rank = max(1.0, RARE * (num_held_out + 1))
        lucky = float(beta.ppf(1 - CHANCE, rank, num_held_out + 1 - rank))
    return max(lucky, RARE + ALARM * score.stderr)


def _beyond_base(score: Score, sign: int) -> bool:
    return score.gain is not None and sign * score.gain > ALARM * (score.gain_stderr or 0.0)


def _base(score: Score) -> float:
    return score.value - (score.gain or 0.0)
