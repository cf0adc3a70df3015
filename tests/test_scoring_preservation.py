import numpy as np
import pytest
from numpy.typing import NDArray
from statsmodels.stats.weightstats import DescrStatsW
from torch_fidelity.metric_kid import mmd2

from bench.errors import UsageError
from bench.scoring.distance import kernel
from bench.scoring.metrics import Score
from bench.scoring.preservation import MARGIN, Preservation, preserved, shift, shift_sums
from bench.scoring.statistics import mean_stderr


def unit(rows: int, seed: int) -> NDArray[np.float32]:
    features = np.random.default_rng(seed).normal(size=(rows, 8)).astype(np.float32)
    return np.asarray(features / np.linalg.norm(features, axis=1, keepdims=True))


def changed(
    value: float, stderr: float, prompts: int, spread: float = np.nan, seeds: int = 1
) -> Preservation:
    score = Score(value=value, stderr=stderr, num_images=prompts, num_prompts=prompts, extractor="emoji-clip")
    return preserved(score, spread, seeds)


def test_shift_is_the_mean_over_the_seeds_of_a_prompt() -> None:
    images, base = unit(6, 0), unit(6, 1)
    oracle = [np.mean([1 - images[2 * p + s] @ base[2 * p + s] for s in range(2)]) for p in range(3)]
    np.testing.assert_allclose(shift(images, base, 2), oracle, rtol=1e-5)
    np.testing.assert_allclose(shift(images, images, 2), 0, atol=1e-6)
    np.testing.assert_allclose(shift(images, -images, 2), 2, atol=1e-6)


def test_shift_sums_are_torch_fidelitys_u_statistic() -> None:
    images, base = unit(20, 0), unit(20, 1)
    oracle = mmd2(kernel(images, images), kernel(images, base), kernel(base, base), mmd_est="u-statistic")
    assert shift_sums(images, base, 1).distance() == pytest.approx(1000 * oracle)


def test_the_same_images_from_other_seeds_are_at_distance_zero_in_expectation() -> None:
    rng, values, naive = np.random.default_rng(0), [], []
    for _ in range(300):
        topics = np.repeat(rng.normal(size=(16, 8)), 2, axis=0)
        sides = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in topics + _noise(rng)]
        values.append(shift_sums(*sides, 2).distance())
        kernels = (kernel(a, b) for a, b in ((0, 0), (0, 1), (1, 1)) for a, b in [(sides[a], sides[b])])
        naive.append(1000 * mmd2(*kernels, mmd_est="unbiased"))
    stderr = np.std(values) / np.sqrt(300)
    assert abs(np.mean(values)) < 3 * stderr < abs(np.mean(naive))


def _noise(rng: np.random.Generator) -> NDArray[np.float64]:
    return rng.normal(0, 0.3, size=(2, 32, 8))


@pytest.mark.parametrize(
    ("mean", "spread", "verdict"),
    [(0.0, 0.005, "kept"), (-0.002, 0.001, "kept"), (0.0, 0.05, "not shown"), (-0.02, 0.02, "lost")],
)
def test_verdict_is_that_of_statsmodels_interval(mean: float, spread: float, verdict: str) -> None:
    changes = np.random.default_rng(0).normal(size=40)
    changes = mean + spread * (changes - changes.mean()) / changes.std(ddof=1)
    result = changed(*mean_stderr(changes), 40)
    assert (result.low, result.high) == pytest.approx(DescrStatsW(changes).tconfint_mean())
    assert result.verdict == verdict
    assert result.margin == MARGIN == 0.005


def test_a_fall_within_the_margin_is_kept_even_when_it_is_certain() -> None:
    result = changed(-0.003, 0.0005, 32)
    assert result.high < 0 and result.verdict == "kept"


def test_a_loss_of_the_margin_is_seldom_called_kept() -> None:
    rng = np.random.default_rng(0)
    kept = [changed(*mean_stderr(rng.normal(-MARGIN, 0.02, 32)), 32).verdict == "kept" for _ in range(2000)]
    assert np.mean(kept) == pytest.approx(0.025, abs=0.012)


def test_the_noise_of_three_trainings_is_not_taken_for_that_of_many_prompts() -> None:
    rng, kept = np.random.default_rng(1), 0
    for _ in range(2000):
        trainings = rng.normal(-MARGIN, 0.004, 3)
        prompts = rng.normal(0, 0.01, 32)
        spread = float(trainings.std(ddof=1))
        stderr = float(np.sqrt(prompts.var(ddof=1) / 32 + spread**2 / 3))
        kept += changed(float(trainings.mean() + prompts.mean()), stderr, 32, spread, 3).verdict == "kept"
    assert kept / 2000 < 0.035


def test_one_prompt_preserves_nothing() -> None:
    with pytest.raises(UsageError, match="at least 2 prompts, got 1"):
        changed(0.0, 0.0, 1)
    with pytest.raises(UsageError, match="kernel distance needs"):
        shift_sums(unit(2, 0), unit(2, 1), 2).distance()
