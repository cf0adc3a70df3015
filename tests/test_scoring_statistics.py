import numpy as np
import pytest
from scipy.stats import ttest_1samp

from bench.errors import UsageError
from bench.scoring.statistics import holm, jackknife, mean_stderr, paired_test, swap_test


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


@pytest.mark.parametrize("call", [mean_stderr, paired_test, lambda values: jackknife(np.sum, len(values))])
def test_one_prompt_has_no_error(call: object) -> None:
    with pytest.raises(UsageError, match="at least 2 prompts, got 1"):
        call([0.5])  # type: ignore[operator]


def test_paired_test_agrees_with_student_on_normal_differences() -> None:
    differences = np.random.default_rng(2).normal(0.3, 1, size=60)
    result, student = paired_test(differences), ttest_1samp(differences, 0)
    assert result.p_value == pytest.approx(student.pvalue, abs=0.01)
    assert (result.low, result.high) == pytest.approx(student.confidence_interval(), abs=0.05)
    assert result.num_prompts == 60


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


def test_differences_that_are_equal_but_for_rounding_have_a_narrow_interval() -> None:
    test = paired_test(0.1 + np.array([0, 1e-17, -1e-17, 3e-17, 0, 0]))
    assert test.low == pytest.approx(0.1) and test.high == pytest.approx(0.1)
