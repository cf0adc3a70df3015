from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest, mannwhitneyu, norm, ttest_ind
from torchmetrics.image.mifid import _compute_cosine_distance

from bench.errors import UsageError
from bench.scoring.memorization import (
    CopyingTest,
    alarms,
    authentic,
    copies,
    copies_caution,
    high,
    loss_gap,
    nearest,
    pairs,
    threshold,
)
from bench.scoring.metrics import Score
from bench.scoring.statistics import jackknife, jackknife_stderr


def unit(rows: int, seed: int, dim: int = 8) -> Any:
    features = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


# Nearest training pictures


def test_nearest_is_the_brute_force_one() -> None:
    images, train = unit(12, 0), unit(9, 1)
    found = nearest(images, train)
    for image, cosine, index in zip(images, found.cosines, found.indices, strict=True):
        distances = [np.linalg.norm(image - picture) for picture in train]
        assert index == np.argmin(distances)
        assert cosine == pytest.approx(1 - min(distances) ** 2 / 2, abs=1e-6)


def test_nearest_is_the_distance_of_mifid() -> None:
    """torchmetrics takes |cos|: the same where no cosine is negative."""
    images, train = abs(unit(12, 0)), abs(unit(9, 1))
    oracle = _compute_cosine_distance(torch.from_numpy(images), torch.from_numpy(train), 2.0)
    assert 1 - nearest(images, train).cosines.mean() == pytest.approx(float(oracle), abs=1e-6)


def test_nearest_does_not_depend_on_the_order_or_on_the_other_images() -> None:
    images, train = unit(12, 0), unit(9, 1)
    order, found = np.random.default_rng(0).permutation(9), nearest(images, train)
    shuffled = nearest(images, train[order])
    np.testing.assert_array_equal(order[shuffled.indices], found.indices)
    np.testing.assert_allclose(nearest(images[5:6], train).cosines, found.cosines[5:6])


def test_pairs_are_the_nearest_with_one_of_each_prompt() -> None:
    images, train = unit(12, 0), unit(9, 1)
    found = nearest(images, train).cosines
    rows = pairs(images, train, 3, num_seeds=2)
    best = sorted(found.reshape(6, 2).max(axis=1), reverse=True)[:3]
    assert [row.cosine for row in rows] == pytest.approx(best)
    assert len({row.image // 2 for row in rows}) == 3
    for row in rows:
        assert row.cosine == pytest.approx(float(images[row.image] @ train[row.training]), abs=1e-6)
    assert len(pairs(images, train, 99)) == 12


def test_high_is_the_95th_percentile_with_the_error_of_resampled_prompts() -> None:
    rng = np.random.default_rng(0)
    estimates = [high(rng.normal(size=(200, 1)))[0] for _ in range(300)]
    errors = [high(rng.normal(size=(200, 1)))[1] for _ in range(20)]
    assert np.mean(estimates) == pytest.approx(norm.ppf(0.95), abs=0.05)
    assert np.mean(errors) == pytest.approx(np.std(estimates), rel=0.2)
    own = rng.normal(size=(20, 2))
    value, stderr = high(own + 0.5, own)
    assert (value, stderr) == pytest.approx((0.5, 0), abs=1e-9)


# Copies


@pytest.mark.parametrize(("held_out", "expected"), [(24, 1 / 25), (48, 1 / 49), (199, 0.005), (600, 0.005)])
def test_real_pictures_exceed_the_threshold_as_often_as_it_says(held_out: int, expected: float) -> None:
    rng = np.random.default_rng(0)
    above = [(rng.random(1000) > threshold(rng.random(held_out))).mean() for _ in range(4000)]
    assert np.mean(above) == pytest.approx(expected, abs=4 * np.std(above) / np.sqrt(4000))
    assert (copies_caution(held_out) is None) == (held_out >= 199)


def test_copies_are_shares_of_the_seeds_of_a_prompt() -> None:
    cosines = np.array([[0.9, 0.2], [0.1, 0.2], [0.8, 0.9]])
    np.testing.assert_array_equal(copies(cosines, 0.5), [0.5, 0, 1])


# Authenticity


def test_authentic_is_the_brute_force_one() -> None:
    """As dgm-eval computes it, from Euclidean distances."""
    images, train = unit(20, 0), unit(30, 1)
    verdicts = []
    for image in images:
        distances = np.linalg.norm(train - image, axis=1)
        closest = int(distances.argmin())
        others = np.linalg.norm(np.delete(train, closest, axis=0) - train[closest], axis=1)
        verdicts.append(others.min() < distances[closest])
    shares = authentic(nearest(images, train), train, 2)
    np.testing.assert_array_equal(shares, np.reshape(verdicts, (10, 2)).mean(axis=1))
    assert 0 < shares.mean() < 1


def test_training_pictures_are_not_authentic() -> None:
    train = unit(30, 1)
    assert not authentic(nearest(train, train), train, 1).any()


# The data-copying test


def copying(images: NDArray[np.float64], held_out: NDArray[np.float64]) -> CopyingTest:
    return CopyingTest.of(images, held_out, np.arange(len(images)), len(images) + np.arange(len(held_out)))


def test_copying_is_the_z_of_scipys_mann_whitney_test() -> None:
    rng = np.random.default_rng(0)
    images, held_out = rng.random(40), rng.random(25) - 0.2
    oracle = mannwhitneyu(1 - images, 1 - held_out, use_continuity=False, method="asymptotic")
    z = copying(images, held_out).z()
    assert 2 * norm.sf(abs(z)) == pytest.approx(oracle.pvalue)
    assert z < 0
    less = mannwhitneyu(
        1 - images, 1 - held_out, alternative="less", use_continuity=False, method="asymptotic"
    )
    assert norm.cdf(z) == pytest.approx(less.pvalue)


def test_copying_is_standard_normal_under_the_null() -> None:
    rng = np.random.default_rng(0)
    values = [copying(rng.random(40), rng.random(25)).z() for _ in range(1000)]
    assert np.mean(values) == pytest.approx(0, abs=0.1)
    assert np.std(values) == pytest.approx(1, abs=0.08)


def test_leaving_a_group_out_is_the_slow_way() -> None:
    rng = np.random.default_rng(0)
    images, held_out = rng.random(12), rng.random(9)
    groups, pictures = np.repeat(np.arange(6), 2), np.r_[np.arange(4), 6:11]
    test = CopyingTest.of(images, held_out, groups, pictures)

    def z(kept: Any) -> float:
        farther = images[np.isin(groups, kept), None] < held_out[np.isin(pictures, kept)]
        return float((farther.mean() - 0.5) / test.spread)

    assert jackknife_stderr(test.leave_outs()) == pytest.approx(jackknife(z, 11))


def test_the_error_of_copying_knows_that_images_of_a_prompt_are_alike() -> None:
    rng, groups, values, errors = np.random.default_rng(0), np.repeat(np.arange(20), 4), [], []
    for _ in range(300):
        images = np.repeat(rng.normal(size=20), 4) + 0.3 * rng.normal(size=80)
        test = CopyingTest.of(images, rng.normal(0, 1.04, size=60), groups, 20 + np.arange(60))
        values.append(test.z())
        errors.append(jackknife_stderr(test.leave_outs()))
    assert np.std(values) > 1.3
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.1)


# The loss gap


def test_loss_gap_is_welchs_difference_of_what_was_learned() -> None:
    rng = np.random.default_rng(0)
    base_train, base_held_out = rng.random(30), rng.random(20)
    train, held_out = base_train - rng.random(30), base_held_out - 0.5 * rng.random(20)
    value, stderr = loss_gap(train, held_out, base_train, base_held_out)
    assert value == pytest.approx(
        (held_out.mean() - train.mean()) - (base_held_out.mean() - base_train.mean())
    )
    oracle = ttest_ind(held_out - base_held_out, train - base_train, equal_var=False)
    assert value / stderr == pytest.approx(oracle.statistic)


# Named errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nearest(unit(3, 0), unit(3, 1)[:0]), "there are no training pictures"),
        (lambda: threshold(np.array([])), "there are no held-out pictures"),
        (
            lambda: authentic(nearest(unit(3, 0), unit(1, 1)), unit(1, 1), 1),
            "at least 2 training pictures, got 1",
        ),
        (lambda: copying(np.ones(3), np.ones(0)), "needs images and held-out pictures"),
        (lambda: loss_gap(*np.ones((4, 1))), "at least 2 prompts"),
        (lambda: high(np.ones((1, 2))), "at least 2 prompts, got 1"),
    ],
)
def test_too_little_to_measure_is_a_named_error(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call()


# Alarms


def score(value: float, stderr: float, gain: float | None = None, gain_stderr: float | None = None) -> Score:
    return Score(
        value=value,
        stderr=stderr,
        num_images=96,
        num_prompts=48,
        extractor="tiny",
        gain=gain,
        gain_stderr=gain_stderr,
    )


def test_each_alarm_says_what_it_saw() -> None:
    scores = {
        "copies": score(0.25, 0.04, 0.24, 0.04),
        "c_t": score(-6.2, 1.4, -5.0, 1.5),
        "loss_gap": score(0.01, 0.001),
    }
    first, second, third = alarms(scores, 48)
    assert first.startswith("25.0% of the images are nearer") and "(1.0% of the base's)" in first
    assert "z = -6.2; the base's: -1.2" in second
    assert "by 0.01 ± 0.001" in third


@pytest.mark.parametrize(
    ("name", "quiet"),
    [
        ("copies", score(0.25, 0.1, 0.24, 0.04)),  # within 3 errors of real pictures
        ("copies", score(0.25, 0.04, 0.02, 0.04)),  # the base does it too
        ("copies", score(0.25, 0.04)),  # the base itself
        ("copies", score(0.06, 0.01, 0.06, 0.01)),  # τ of 48 pictures may lie that low
        ("c_t", score(-2.5, 0.5, -2.5, 0.5)),
        ("c_t", score(-4, 1.5, -4, 1.0)),
        ("c_t", score(-6, 1, -0.5, 1.0)),
        ("c_t", score(6, 1, 6, 1.0)),
        ("loss_gap", score(0.01, 0.004)),
        ("loss_gap", score(-0.01, 0.001)),
    ],
)
def test_what_does_not_stand_out_raises_no_alarm(name: str, quiet: Score) -> None:
    assert alarms({name: quiet}, 48) == []


def test_more_held_out_pictures_make_the_threshold_surer() -> None:
    copied = {"copies": score(0.06, 0.01, 0.06, 0.01)}
    assert alarms(copied, 48) == [] and len(alarms(copied, 600)) == len(alarms(copied)) == 1


def test_alarms_are_rare_where_images_are_like_held_out_pictures() -> None:
    """Images are drawn as real pictures are; the base's are farther: only luck raises an alarm."""
    rng, raised = np.random.default_rng(0), 0
    for _ in range(400):
        held_out, images = rng.normal(size=48), np.repeat(rng.normal(size=(48, 1)), 2, axis=1)
        images = np.sqrt(0.5) * images + np.sqrt(0.5) * rng.normal(size=(48, 2))
        shares = copies(images, threshold(held_out))
        stderr = float(shares.std(ddof=1) / np.sqrt(48))
        test = CopyingTest.of(images.ravel(), held_out, np.repeat(np.arange(48), 2), 48 + np.arange(48))
        z, z_error = test.z(), jackknife_stderr(test.leave_outs())
        scores = {
            "copies": score(float(shares.mean()), stderr, float(shares.mean()), stderr),
            "c_t": score(z, z_error, z - 10, 1.0),
        }
        raised += bool(alarms(scores, 48))
    assert binomtest(raised, 400, 0.01, alternative="greater").pvalue > 0.01
