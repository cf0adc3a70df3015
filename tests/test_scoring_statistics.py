import numpy as np
import pytest
from scipy.stats import permutation_test, ttest_1samp
from statsmodels.stats.multitest import multipletests

from bench.errors import UsageError
from bench.scoring.statistics import (
    bootstrap_samples,
    holm,
    interval,
    jackknife,
    mean_stderr,
    paired_test,
    rank_correlation,
    swap_test,
)


def test_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(size=17)
    stderr = jackknife(lambda kept: float(values[kept].mean()), 17)
    assert stderr == pytest.approx(mean_stderr(values)[1])


def test_jackknife_interval_covers_a_variance() -> None:
    rng, covered = np.random.default_rng(1), 0
    for _ in range(200):
        values = rng.normal(size=40)
        stderr = jackknife(lambda kept, values=values: float(values[kept].var(ddof=1)), 40)  # type: ignore[misc]
        covered += abs(values.var(ddof=1) - 1) < 2.02 * stderr
    assert 0.88 < covered / 200 <= 1


@pytest.mark.parametrize(
    "call",
    [
        mean_stderr,
        paired_test,
        lambda values: jackknife(np.sum, len(values)),
        lambda values: interval(0.0, 0.0, len(values)),
        lambda values: bootstrap_samples(len(values)),
    ],
)
def test_one_prompt_has_no_error(call: object) -> None:
    with pytest.raises(UsageError, match="at least 2 prompts, got 1"):
        call([0.5])  # type: ignore[operator]


def test_paired_test_agrees_with_student_on_normal_differences() -> None:
    differences = np.random.default_rng(2).normal(0.3, 1, size=60)
    result, student = paired_test(differences), ttest_1samp(differences, 0)
    assert result.p_value == pytest.approx(student.pvalue, abs=0.01)
    assert (result.low, result.high) == pytest.approx(tuple(student.confidence_interval()))
    assert result.num_prompts == 60


@pytest.mark.parametrize("num_prompts", [8, 30])
def test_p_value_is_scipys_permutation_test(num_prompts: int) -> None:
    differences = np.random.default_rng(5).exponential(1, num_prompts) - 0.7
    oracle = permutation_test(
        (differences, np.zeros(num_prompts)),
        lambda a, b, axis: (a - b).mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        rng=np.random.default_rng(1),
    ).pvalue
    assert paired_test(differences).p_value == pytest.approx(oracle, abs=0 if num_prompts == 8 else 0.02)


def test_the_order_of_prompts_does_not_matter() -> None:
    differences = np.random.default_rng(6).normal(size=12)
    first, second = paired_test(differences), paired_test(differences[::-1])
    assert (first.mean, first.low, first.high) == pytest.approx((second.mean, second.low, second.high))
    assert first.p_value == second.p_value


@pytest.mark.parametrize("num_prompts", [12, 48])
def test_interval_of_skewed_differences_covers_their_mean(num_prompts: int) -> None:
    rng, covered = np.random.default_rng(7), 0
    for _ in range(2000):
        values = rng.exponential(1, num_prompts) - rng.exponential(0.5, num_prompts)
        low, high = interval(*mean_stderr(values), num_prompts)
        covered += low <= 0.5 <= high
    assert covered / 2000 == pytest.approx(0.95, abs=0.02)


def test_resampled_means_have_the_error_of_the_mean() -> None:
    values = np.random.default_rng(8).normal(size=40)
    samples = bootstrap_samples(40)
    np.testing.assert_array_equal(samples, bootstrap_samples(40))
    assert samples.shape == (999, 40) and samples.min() == 0 and samples.max() == 39
    assert values[samples].mean(axis=1).std() == pytest.approx(mean_stderr(values)[1], rel=0.1)


def test_paired_test_is_exact_for_few_prompts() -> None:
    assert paired_test([1, 2, 3, 4, 5, 6]).p_value == pytest.approx(2 / 2**6)
    assert paired_test([1, 2, 3, 4, 5]).p_value > 0.05


def test_paired_test_never_gives_zero() -> None:
    assert paired_test(np.linspace(1, 2, 40)).p_value == pytest.approx(2 / 10_000)


def test_paired_test_gives_the_same_answer_twice() -> None:
    differences = np.random.default_rng(3).normal(size=30)
    assert paired_test(differences) == paired_test(differences)


@pytest.mark.parametrize("value", [0.0, 0.25])
def test_equal_differences_have_a_point_for_an_interval(value: float) -> None:
    result = paired_test([value] * 8)
    assert (result.low, result.high, result.stderr) == (value, value, 0)
    assert result.p_value == pytest.approx(1 if value == 0 else 2 / 2**8)


def test_one_deviating_prompt_gives_a_finite_interval() -> None:
    result = paired_test([0.0] * 30 + [1.0])
    assert np.isfinite([result.low, result.high]).all()
    assert result.low <= result.mean <= result.high


@pytest.mark.parametrize("num_prompts", [8, 30])
def test_swapping_a_mean_is_the_sign_flip_test(num_prompts: int) -> None:
    differences = np.random.default_rng(4).normal(0.4, 1, size=num_prompts)

    def mean(kept: np.ndarray, swapped: np.ndarray) -> float:
        return float(np.where(swapped, -differences, differences)[kept].mean())

    swap, flip = swap_test(mean, num_prompts), paired_test(differences)
    assert swap.p_value == pytest.approx(flip.p_value, abs=0 if num_prompts == 8 else 0.01)
    assert (swap.mean, swap.stderr) == pytest.approx((flip.mean, flip.stderr))
    assert swap.low < swap.mean < swap.high


def test_holm_matches_the_definition() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("seed", range(5))
def test_holm_is_that_of_statsmodels(seed: int) -> None:
    p_values = np.random.default_rng(seed).beta(0.3, 1, size=9)
    np.testing.assert_allclose(holm(p_values.tolist()), multipletests(p_values, method="holm")[1])


def test_an_error_that_is_known_makes_the_interval_of_a_swap_test() -> None:
    differences = np.arange(8.0)
    test = swap_test(lambda kept, swapped: float(differences[kept].mean()), 8, stderr=0.5)
    assert test.stderr == 0.5
    assert (test.low, test.high) == pytest.approx(interval(3.5, 0.5, 8))


def test_differences_that_are_equal_but_for_rounding_have_a_narrow_interval() -> None:
    test = paired_test(0.1 + np.array([0, 1e-17, -1e-17, 3e-17, 0, 0]))
    assert test.low == pytest.approx(0.1) and test.high == pytest.approx(0.1)


def test_rank_correlation_counts_pairs_that_agree() -> None:
    assert rank_correlation([1, 2, 3, 4], [10, 30, 20, 40]) == pytest.approx((5 - 1) / 6)
    assert rank_correlation([1, 1], [1, 2]) is None
    assert rank_correlation([1], [1]) is None
