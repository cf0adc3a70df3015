"""Distances between two sets of images: kernel distances and Fréchet distance, on unit features.

Both take groups: rows of the two sets that share a group (images of one prompt, the true picture of that
prompt) are not independent. A leave-out drops a whole group.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.errors import UsageError
from bench.scoring.statistics import SwapStatistic

Features = NDArray[np.float32] | NDArray[np.float64]
Groups = NDArray[np.intp]
Kernel = Callable[[Features, Features], NDArray[np.float64]]
"""Unit features (n, dim) and (m, dim) -> kernel values (n, m)."""

SCALE = 1000.0
SIGMA = 10.0
"""Of the Gaussian kernel, as CMMD has it."""


def kernel(x: Features, y: Features) -> NDArray[np.float64]:
    """(cos + 1)³ between unit features: torch-fidelity's (x·y/D + 1)³ on features scaled by √D.

    KID's kernel is made for features whose squared length is of the order of D. Taken on unit features as
    they are, x·y/D is so small that the kernel is all but linear and sees only a shift of the mean.
    Measured on emoji (48 against 48, D = 256): styles are told apart equally well (shift over its standard
    error 6.2 to 11.1 with either), but a set drawn to half its spread at the same mean scores 9.4
    standard errors instead of 7.3.
    """
    return (linear(x, y) + 1) ** 3


def gaussian(x: Features, y: Features) -> NDArray[np.float64]:
    """exp(−‖x − y‖²/(2·10²)) between unit features: the kernel of CMMD (Jayasumana et al. 2024).

    Unit vectors are at most 2 apart, far less than σ, so that this kernel is a constant plus cos/100 to
    within 1 %: such a distance is the squared distance of centroids over 100, and sees little besides a
    shift of the mean. It is here because papers print it.
    """
    return np.asarray(np.exp((linear(x, y) - 1) / SIGMA**2))


def linear(x: Features, y: Features) -> NDArray[np.float64]:
    """The cosine between unit features: MMD² with it is the squared distance of the means."""
    return x.astype(np.float64) @ y.astype(np.float64).T


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class KernelSums:
    """Kernel sums and numbers of pairs between groups, shape (groups, groups); the diagonal is left out."""

    xx: NDArray[np.float64]
    xy: NDArray[np.float64]
    yy: NDArray[np.float64]
    pairs_xx: NDArray[np.float64]
    pairs_xy: NDArray[np.float64]
    pairs_yy: NDArray[np.float64]

    @classmethod
    def of(
        cls, x: Features, y: Features, x_groups: Groups, y_groups: Groups, kernel: Kernel = kernel
    ) -> "KernelSums":
        num_groups = int(max(x_groups.max(), y_groups.max())) + 1
        apart = 1 - np.eye(num_groups)
        size_x, size_y = (np.bincount(groups, minlength=num_groups) for groups in (x_groups, y_groups))
        return cls(
            xx=grouped(kernel(x, x), x_groups, x_groups, num_groups) * apart,
            xy=grouped(kernel(x, y), x_groups, y_groups, num_groups) * apart,
            yy=grouped(kernel(y, y), y_groups, y_groups, num_groups) * apart,
            pairs_xx=np.outer(size_x, size_x) * apart,
            pairs_xy=np.outer(size_x, size_y) * apart,
            pairs_yy=np.outer(size_y, size_y) * apart,
        )

    def distance(self) -> float:
        """Unbiased MMD² × 1000; may fall below 0."""
        terms = [
            _ratio(sums.sum(), pairs.sum())
            for sums, pairs in ((self.xx, self.pairs_xx), (self.xy, self.pairs_xy), (self.yy, self.pairs_yy))
        ]
        return SCALE * float(terms[0] - 2 * terms[1] + terms[2])

    @property
    def num_groups(self) -> int:
        """Groups that have a row in either set are numbered below this."""
        return len(self.xx)

    def leave_outs(self, num_groups: int) -> NDArray[np.float64]:
        """The distance without group g, for g = 0 … num_groups − 1, in closed form."""
        xx, xy, yy = (
            _ratio(without(sums)[:num_groups], without(pairs)[:num_groups])
            for sums, pairs in ((self.xx, self.pairs_xx), (self.xy, self.pairs_xy), (self.yy, self.pairs_yy))
        )
        return SCALE * (xx - 2 * xy + yy)


def grouped(
    matrix: NDArray[np.float64], rows: Groups, columns: Groups, num_groups: int
) -> NDArray[np.float64]:
    """Sums over the rows and columns of each group, shape (groups, groups)."""
    partial = np.zeros((num_groups, matrix.shape[1]))
    np.add.at(partial, rows, matrix)
    sums = np.zeros((num_groups, num_groups))
    np.add.at(sums, columns, partial.T)
    return sums.T


def without(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of sums between groups, shape (groups, groups), the total without each group, shape (groups,)."""
    rest: NDArray[np.float64] = sums.sum() - sums.sum(axis=0) - sums.sum(axis=1) + sums.diagonal()
    return rest


def _ratio(sums: NDArray[np.float64], pairs: NDArray[np.float64]) -> NDArray[np.float64]:
    if np.any(pairs == 0):
        raise UsageError(
            "the kernel distance needs at least 2 (for an error, 3) prompts or pictures in each set"
        )
    return sums / pairs


def kernel_distance(
    x: Features, y: Features, x_groups: Groups, y_groups: Groups, kernel: Kernel = kernel
) -> float:
    """Unbiased MMD² × 1000 between unit features (n, dim) and (m, dim); lower is nearer, may fall below 0.

    The U-statistic of KID (Bińkowski et al. 2018, arXiv 1801.01401) over all pairs of rows in different
    groups: mean k(x, x′) + mean k(y, y′) − 2 mean k(x, y). With a group for each row it is the standard
    unbiased estimate; with the same groups on both sides the paired form, which drops i = i cross terms.
    Its expectation is 0 when both sets are drawn alike, prompt by prompt.

    With `gaussian` it is CMMD (Jayasumana et al. 2024, arXiv 2401.09603) in the unbiased form that the
    paper names; the published code computes the biased one, which is higher by about
    1000·(1 − mean k)·(1/n + 1/m). With `linear` it is the unbiased squared distance of the means.
    The standard error is `jackknife_stderr(sums.leave_outs(sums.num_groups))`, where groups are numbered
    without gaps. Raises UsageError with fewer than two groups in a set.
    """
    return KernelSums.of(x, y, x_groups, y_groups, kernel).distance()


def kernel_difference(
    a: Features, b: Features, real: Features, image_prompts: Groups, picture_prompts: Groups
) -> SwapStatistic:
    """KD(a, real) − KD(b, real) for `swap_test`, where a and b hold images of the same prompts and seeds.

    KD(real, real) cancels, and what remains is linear in the swaps: a sum over prompts in which a swap
    turns a sign. So each of thousands of swaps costs O(prompts²), without a kernel.
    Raises UsageError with fewer than three prompts.
    """
    num_prompts = int(image_prompts.max()) + 1
    if num_prompts < 3:
        raise UsageError(f"testing a kernel distance needs at least 3 prompts, got {num_prompts}")
    own, other = (KernelSums.of(side, real, image_prompts, picture_prompts) for side in (a, b))
    xx = (own.xx - other.xx)[:num_prompts, :num_prompts]
    cross = KernelSums.of(a, b, image_prompts, image_prompts).xy
    xy = (own.xy - other.xy)[:num_prompts]
    quadratic, pairs_xx = xx + cross - cross.T, own.pairs_xx[:num_prompts, :num_prompts]
    pairs_xy = own.pairs_xy[:num_prompts]

    def statistic(kept: Groups, swapped: NDArray[np.bool_]) -> float:
        pictures = np.r_[kept, num_prompts : xy.shape[1]]
        within, between = np.ix_(kept, kept), np.ix_(kept, pictures)
        terms = quadratic[within].sum(axis=1) / pairs_xx[within].sum()
        terms -= 2 * xy[between].sum(axis=1) / pairs_xy[between].sum()
        return SCALE * float(np.where(swapped[kept], -terms, terms).sum())

    return statistic


def kernel_difference_leave_outs(
    a: Features, b: Features, real: Features, image_prompts: Groups, picture_prompts: Groups
) -> NDArray[np.float64]:
    """KD(a, real) − KD(b, real) without each group in turn, shape (groups,), for `jackknife_stderr`.

    Groups are prompts and, unlike in a swap, the real pictures that belong to none: these are a sample too.
    With as many of them as prompts, an interval that takes them as given covers 88 to 94 % instead of 95 to
    97 % (tests/validation/coverage.py).
    """
    own, other = (KernelSums.of(side, real, image_prompts, picture_prompts) for side in (a, b))
    return own.leave_outs(own.num_groups) - other.leave_outs(own.num_groups)


def fid(x: Features, y: Features) -> float:
    """Fréchet distance (Heusel et al. 2017) as torch-fidelity computes it, on features (n, dim) and (m, dim).

    On unit features it lies in [0, 4], lower is nearer. It is biased upwards by far when n is not well above
    dim: compare only at equal n, and see `fid_caution`. Raises UsageError with fewer than two rows.
    """
    import torch  # here, because reports import this package without it
    from torch_fidelity.metric_fid import (
        KEY_METRIC_FID,
        fid_features_to_statistics,
        fid_statistics_to_metric,
    )

    _check_rows(x, y)
    first, second = (
        fid_features_to_statistics(torch.from_numpy(features.astype(np.float64))) for features in (x, y)
    )
    return float(fid_statistics_to_metric(first, second, verbose=False)[KEY_METRIC_FID])


def frechet(xx: NDArray[np.float64], xy: NDArray[np.float64], yy: NDArray[np.float64]) -> float:
    """The same distance from inner products alone: exact, and fast where rows are fewer than dimensions.

    tr (Σ₁Σ₂)^½ = ‖Xc Ycᵀ‖_* / √((n−1)(m−1)), the sum of singular values of the doubly centred `xy`.
    """
    n, m = xy.shape
    means = xx.mean() + yy.mean() - 2 * xy.mean()
    traces = (np.trace(xx) - n * xx.mean()) / (n - 1) + (np.trace(yy) - m * yy.mean()) / (m - 1)
    centred = xy - xy.mean(axis=0) - xy.mean(axis=1, keepdims=True) + xy.mean()
    nuclear = np.linalg.svd(centred, compute_uv=False).sum() / np.sqrt((n - 1.0) * (m - 1.0))
    return float(means + traces - 2 * nuclear)


def frechet_leave_outs(
    x: Features, y: Features, x_groups: Groups, y_groups: Groups, num_prompts: int
) -> NDArray[np.float64]:
    """The Fréchet distance without group p, for p = 0 … num_prompts − 1; raises UsageError."""
    a, b = x.astype(np.float64), y.astype(np.float64)
    xx, xy, yy = a @ a.T, a @ b.T, b @ b.T
    values = []
    for prompt in range(num_prompts):
        rows, columns = x_groups != prompt, y_groups != prompt
        _check_rows(a[rows], b[columns])
        values.append(
            frechet(xx[np.ix_(rows, rows)], xy[np.ix_(rows, columns)], yy[np.ix_(columns, columns)])
        )
    return np.array(values)


def fid_caution(num_images: int, dim: int) -> str | None:
    """Why a Fréchet distance of so few images is mostly bias; None from 2·dim images on.

    Measured at a true value of 0 and dim = 768: 36.3 with 16 images, 27.1 with 64, 10.7 with 512.
    """
    if num_images >= 2 * dim:
        return None
    return f"{num_images} images < 2 × {dim} dimensions: mostly bias"


def _check_rows(*sets: Features) -> None:
    for features in sets:
        if len(features) < 2:
            raise UsageError(f"a Fréchet distance needs at least 2 images in each set, got {len(features)}")
