from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from numpy.typing import NDArray
from sklearn.metrics.pairwise import polynomial_kernel
from torch_fidelity.metric_fid import fid_features_to_statistics
from torch_fidelity.metric_kid import kid_features_to_metric, mmd2
from torchmetrics.image.kid import poly_mmd

from bench.errors import UsageError
from bench.scoring.distance import (
    Kernel,
    KernelSums,
    fid,
    fid_caution,
    frechet,
    frechet_leave_outs,
    gaussian,
    kernel,
    kernel_difference,
    kernel_difference_leave_outs,
    kernel_distance,
    linear,
)
from bench.scoring.statistics import jackknife_stderr, swap_test

Array = NDArray[np.float64]


def unit(rows: int, dim: int, seed: int, shift: float = 0.0) -> Array:
    features = np.random.default_rng(seed).normal(size=(rows, dim))
    features[:, 0] += shift
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def apart(x: Array, y: Array) -> tuple[Any, Any]:
    return np.arange(len(x)), len(x) + np.arange(len(y))


def test_kernel_is_that_of_kid_on_features_scaled_by_the_root_of_dim() -> None:
    x, y = unit(7, 16, 0), unit(5, 16, 1)
    oracle = polynomial_kernel(x * 4, y * 4, degree=3, gamma=None, coef0=1)
    np.testing.assert_allclose(kernel(x, y), oracle)


def test_kernel_distance_is_torch_fidelitys_full_estimate() -> None:
    x, y = unit(40, 16, 0), unit(40, 16, 1, shift=0.5)
    scaled = [torch.from_numpy(features * 4) for features in (x, y)]
    oracle = kid_features_to_metric(*scaled, kid_subset_size=40, kid_subsets=1, verbose=False)
    ours = kernel_distance(x, y, *apart(x, y))
    assert ours == pytest.approx(1000 * oracle["kernel_inception_distance_mean"])


def test_kernel_distance_is_that_of_torchmetrics() -> None:
    x, y = unit(40, 16, 0), unit(40, 16, 1, shift=0.5)
    oracle = poly_mmd(torch.from_numpy(x * 4), torch.from_numpy(y * 4))
    assert kernel_distance(x, y, *apart(x, y)) == pytest.approx(1000 * float(oracle))


def test_gaussian_form_is_cmmd_without_the_diagonal() -> None:
    """The published code takes means over all pairs, i = i included: a V-statistic."""
    x, y = unit(13, 16, 0), unit(9, 16, 1, shift=2)

    def mean(a: Array, b: Array, skip_equal: bool) -> float:
        values = [
            np.exp(-np.square(p - q).sum() / (2 * 10**2))
            for i, p in enumerate(a)
            for j, q in enumerate(b)
            if not (skip_equal and i == j)
        ]
        return float(np.mean(values))

    oracle = 1000 * (mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False))
    published = 1000 * (mean(x, x, False) + mean(y, y, False) - 2 * mean(x, y, False))
    ours = kernel_distance(x, y, *apart(x, y), gaussian)
    assert ours == pytest.approx(oracle)
    assert published > ours
    diagonal = 1000 * ((1 - mean(x, x, True)) / 13 + (1 - mean(y, y, True)) / 9)
    assert published - diagonal == pytest.approx(ours)


def test_gaussian_form_is_all_but_the_centroids() -> None:
    x, y = unit(30, 16, 0), unit(30, 16, 1, shift=2)
    centroids = kernel_distance(x, y, *apart(x, y), linear)
    assert kernel_distance(x, y, *apart(x, y), gaussian) == pytest.approx(centroids / 100, rel=0.02)


def test_linear_form_is_the_unbiased_distance_of_centroids() -> None:
    x, y = unit(13, 16, 0), unit(9, 16, 1, shift=1)
    shift = np.square(x.mean(axis=0) - y.mean(axis=0)).sum()
    noise = x.var(axis=0, ddof=1).sum() / 13 + y.var(axis=0, ddof=1).sum() / 9
    assert kernel_distance(x, y, *apart(x, y), linear) == pytest.approx(1000 * (shift - noise))


@pytest.mark.parametrize("of", [kernel, gaussian, linear])
def test_rows_may_come_in_any_order(of: Kernel) -> None:
    x, y, rng = unit(24, 8, 0), unit(15, 8, 1), np.random.default_rng(0)
    x_groups, y_groups = np.repeat(np.arange(12), 2), np.arange(3, 18)
    rows, columns = rng.permutation(24), rng.permutation(15)
    shuffled = KernelSums.of(x[rows], y[columns], x_groups[rows], y_groups[columns], of)
    sums = KernelSums.of(x, y, x_groups, y_groups, of)
    assert shuffled.distance() == pytest.approx(sums.distance())
    np.testing.assert_allclose(shuffled.leave_outs(18), sums.leave_outs(18))


@pytest.mark.parametrize("of", [kernel, gaussian, linear])
def test_expectation_is_zero_under_the_null(of: Kernel) -> None:
    values = [
        kernel_distance(x, y, *apart(x, y), of)
        for x, y in ((unit(12, 8, 2 * seed), unit(9, 8, 2 * seed + 1)) for seed in range(300))
    ]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(300)


def test_paired_form_is_torch_fidelitys_u_statistic() -> None:
    x, y = unit(30, 16, 0), unit(30, 16, 1)
    oracle = mmd2(kernel(x, x), kernel(x, y), kernel(y, y), mmd_est="u-statistic")
    assert kernel_distance(x, y, np.arange(30), np.arange(30)) == pytest.approx(1000 * oracle)


def test_equal_sets_that_share_prompts_are_at_distance_zero() -> None:
    x = unit(24, 16, 0)
    assert kernel_distance(x, x, np.arange(24), np.arange(24)) == pytest.approx(0, abs=1e-9)


def test_expectation_is_zero_when_prompts_are_shared_and_seeds_repeat() -> None:
    rng, prompts, groups = np.random.default_rng(0), 12, np.repeat(np.arange(12), 3)
    values, naive = [], []
    for _ in range(300):
        centre = rng.normal(size=(prompts, 8))
        sets = [np.repeat(centre, count, axis=0) for count in (3, 1)]
        x, y = (rows + rng.normal(size=rows.shape) for rows in sets)
        x, y = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, y))
        values.append(kernel_distance(x, y, groups, np.arange(prompts)))
        naive.append(kernel_distance(x, y, *apart(x, y)))
    stderr = np.std(values) / np.sqrt(300)
    assert abs(np.mean(values)) < 3 * stderr
    assert abs(np.mean(naive)) > 3 * stderr


def test_kernel_distance_ignores_the_order_of_rows() -> None:
    x, y, groups = unit(24, 8, 0), unit(10, 8, 1), np.repeat(np.arange(12), 2)
    order = np.random.default_rng(0).permutation(24)
    value = kernel_distance(x, y, groups, np.arange(10))
    assert kernel_distance(x[order], y, groups[order], np.arange(10)) == pytest.approx(value)


def test_leave_outs_are_distances_without_the_prompt() -> None:
    x, y = unit(24, 8, 0), unit(15, 8, 1)
    x_groups, y_groups = np.repeat(np.arange(12), 2), np.arange(3, 18)
    fast = KernelSums.of(x, y, x_groups, y_groups).leave_outs(12)
    fast_fid = frechet_leave_outs(x, y, x_groups, y_groups, 12)
    for prompt in range(12):
        rows, columns = x_groups != prompt, y_groups != prompt
        kept = x[rows], y[columns], x_groups[rows], y_groups[columns]
        assert fast[prompt] == pytest.approx(kernel_distance(*kept))
        assert fast_fid[prompt] == pytest.approx(fid(kept[0], kept[1]), abs=1e-6)


def test_jackknife_covers_the_true_distance() -> None:
    rng, covered = np.random.default_rng(0), 0
    groups = np.repeat(np.arange(24), 2)
    many = _draw(rng, 1500, 1, 0.0), _draw(rng, 1500, 1, 0.6)
    truth = kernel_distance(*many, *apart(*many))
    for _ in range(100):
        x, y = _draw(rng, 24, 2, 0.0), _draw(rng, 24, 2, 0.6)
        sums = KernelSums.of(x, y, groups, 24 + groups)
        covered += abs(sums.distance() - truth) < 2.01 * jackknife_stderr(sums.leave_outs(48))
    assert covered >= 88


def _draw(rng: np.random.Generator, prompts: int, seeds: int, shift: float) -> Array:
    rows = np.repeat(rng.normal(size=(prompts, 8)), seeds, axis=0)
    rows = rows + 0.5 * rng.normal(size=rows.shape)
    rows[:, 0] += shift
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def test_one_prompt_raises() -> None:
    x, y = unit(1, 8, 0), unit(5, 8, 1)
    with pytest.raises(UsageError, match="kernel distance needs"):
        kernel_distance(x, y, *apart(x, y))
    with pytest.raises(UsageError, match="at least 2 images in each set, got 1"):
        fid(x, y)
    with pytest.raises(UsageError, match="at least 2 images"):
        frechet_leave_outs(y[:2], y, np.arange(2), np.arange(5), 2)


# KD(A) − KD(B)


def test_kernel_difference_follows_every_swap() -> None:
    a, b, real = unit(12, 8, 0), unit(12, 8, 1), unit(9, 8, 2)
    groups, pictures = np.repeat(np.arange(6), 2), np.r_[np.arange(4), 6:11]
    statistic, rng = kernel_difference(a, b, real, groups, pictures), np.random.default_rng(0)
    for _ in range(10):
        swapped, gone = rng.random(6) < 0.5, rng.integers(6)
        rows, columns = groups != gone, pictures != gone
        sides = [np.where(swapped[groups][:, None] ^ flip, b, a)[rows] for flip in (False, True)]
        values = [kernel_distance(side, real[columns], groups[rows], pictures[columns]) for side in sides]
        kept = np.flatnonzero(np.arange(6) != gone)
        assert statistic(kept, swapped) == pytest.approx(values[0] - values[1])


def test_leave_outs_of_a_difference_drop_pictures_too() -> None:
    a, b, real = unit(12, 8, 0), unit(12, 8, 1), unit(9, 8, 2)
    groups, pictures = np.repeat(np.arange(6), 2), np.r_[np.arange(4), 6:11]
    leave_outs = kernel_difference_leave_outs(a, b, real, groups, pictures)
    assert len(leave_outs) == 11
    for gone, value in enumerate(leave_outs):
        rows, columns = groups != gone, pictures != gone
        sides = [kernel_distance(s[rows], real[columns], groups[rows], pictures[columns]) for s in (a, b)]
        assert value == pytest.approx(sides[0] - sides[1])
    statistic = kernel_difference(a, b, real, groups, pictures)
    for gone in range(6):
        kept = np.flatnonzero(np.arange(6) != gone)
        assert statistic(kept, np.zeros(6, bool)) == pytest.approx(leave_outs[gone])


def test_two_prompts_are_too_few_to_test_a_kernel_distance() -> None:
    with pytest.raises(UsageError, match="at least 3 prompts, got 2"):
        kernel_difference(unit(4, 8, 0), unit(4, 8, 1), unit(5, 8, 2), np.repeat([0, 1], 2), np.arange(5))


def test_swap_test_of_kernel_distances_keeps_its_level_and_has_power() -> None:
    rng, groups = np.random.default_rng(0), np.repeat(np.arange(16), 2)

    def share_significant(shift: float) -> float:
        hits = 0
        for _ in range(60):
            a, b, real = _draw(rng, 16, 2, 0), _draw(rng, 16, 2, shift), _draw(rng, 24, 1, 0)
            statistic = kernel_difference(a, b, real, groups, 16 + np.arange(24))
            hits += swap_test(statistic, 16, resamples=199).p_value < 0.05
        return hits / 60

    assert share_significant(0.0) < 0.15
    assert share_significant(2.5) > 0.8


# FID


@pytest.mark.parametrize(("rows", "dim"), [(20, 64), (300, 6)])
def test_fid_agrees_with_the_matrix_square_root(rows: int, dim: int) -> None:
    x, y = unit(rows, dim, 0), unit(rows + 7, dim, 1, shift=1)
    first, second = (fid_features_to_statistics(torch.from_numpy(side)) for side in (x, y))
    sigmas = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    np.testing.assert_allclose(first["sigma"], sigmas[0], atol=1e-12)
    np.testing.assert_allclose(second["mu"], y.mean(axis=0), atol=1e-12)
    root = _root(_root(sigmas[0]) @ sigmas[1] @ _root(sigmas[0]))
    shift = np.square(x.mean(axis=0) - y.mean(axis=0)).sum()
    oracle = shift + np.trace(sigmas[0]) + np.trace(sigmas[1]) - 2 * np.trace(root)
    assert fid(x, y) == pytest.approx(oracle, abs=1e-5)
    assert frechet(x @ x.T, x @ y.T, y @ y.T) == pytest.approx(oracle, abs=1e-5)


def _root(matrix: Array) -> Array:
    jitter = 1e-14 * np.eye(len(matrix))  # sqrtm wants a regular matrix
    return np.real(scipy.linalg.sqrtm(matrix + jitter))


def test_both_forms_of_fid_agree_where_rows_are_few() -> None:
    x, y = unit(24, 256, 0), unit(48, 256, 1)
    assert frechet(x @ x.T, x @ y.T, y @ y.T) == pytest.approx(fid(x, y), abs=1e-6)


def test_fid_of_equal_sets_is_zero() -> None:
    x = unit(24, 32, 0)
    assert fid(x, x) == pytest.approx(0, abs=1e-6)


def test_fid_of_few_images_is_mostly_bias() -> None:
    assert fid_caution(96, 256) == "96 images < 2 × 256 dimensions: mostly bias"
    assert fid_caution(512, 256) is None
    x, y = unit(24, 64, 0), unit(24, 64, 1)
    assert fid(x, y) > 0.5  # drawn alike
