"""The noise floor: against a simulation of trainings that differ in nothing but luck."""

import math
from dataclasses import asdict

import numpy as np
import pytest

from bench.floor import Floor, MetricFloor, floor_of, measure_floor
from bench.scoring.metrics import Score


def score(value: float) -> Score:
    return Score(value=value, stderr=0.01, num_images=96, num_prompts=48, extractor="emoji-clip")


def floor_from(values: list[float]) -> Floor:
    return measure_floor([{"similarity": score(value)} for value in values])


def test_the_spread_is_the_standard_deviation_between_trainings() -> None:
    values = [0.51, 0.53, 0.49, 0.52]
    floor = floor_from(values)
    assert floor.metrics["similarity"].seed_spread == pytest.approx(np.std(values, ddof=1))
    assert (floor.num_seeds, floor.num_prompts) == (4, 48)


@pytest.mark.parametrize(("k", "a", "b"), [(3, 3, 3), (5, 2, 4), (8, 1, 1)])
def test_luck_exceeds_the_smallest_difference_once_in_twenty(k: int, a: int, b: int) -> None:
    rng = np.random.default_rng(0)
    exceeded = 0
    for _ in range(4000):
        smallest = floor_from(list(rng.normal(0.5, 0.02, k))).smallest("similarity", a, b)
        assert smallest is not None
        difference = rng.normal(0.5, 0.02, a).mean() - rng.normal(0.5, 0.02, b).mean()
        exceeded += abs(difference) > smallest
    assert exceeded / 4000 == pytest.approx(0.05, abs=0.012)


def test_a_detectable_difference_is_found_four_times_of_five() -> None:
    rng = np.random.default_rng(1)
    truth = Floor(num_seeds=500, num_prompts=48, metrics={"kd": MetricFloor(seed_spread=2, image_spread=1)})
    smallest, detectable = truth.smallest("kd", 3, 3), truth.detectable("kd", 3, 3)
    assert smallest is not None and detectable is not None
    differences = rng.normal(detectable, 2 * math.sqrt(2 / 3), 4000)
    assert np.mean(differences > smallest) == pytest.approx(0.8, abs=0.02)


def test_the_base_has_no_luck_of_training() -> None:
    floor = floor_from([0.5, 0.52, 0.54])
    alone, both = floor.smallest("similarity", 3, math.inf), floor.smallest("similarity", 3, 3)
    assert alone is not None and both is not None
    assert both == pytest.approx(alone * math.sqrt(2))


def test_the_spread_of_image_seeds_is_that_of_a_mean_over_prompts() -> None:
    rng = np.random.default_rng(2)
    prompts, noise = rng.normal(0.5, 0.1, 400), 0.03
    first, second = (list(prompts + rng.normal(0, noise, 400)) for _ in range(2))
    drawings = [({"similarity": score(float(np.mean(v)))}, {"similarity": v}) for v in (first, second)]
    floor = measure_floor([{"similarity": score(0.5)}, {"similarity": score(0.6)}], drawings)
    assert floor.metrics["similarity"].image_spread == pytest.approx(noise / math.sqrt(400), rel=0.1)


def test_a_distance_tells_the_spread_of_image_seeds_by_one_difference() -> None:
    trainings = [{"kd": score(1.0)}, {"kd": score(2.0)}]
    floor = measure_floor(trainings, [({"kd": score(3.0)}, {}), ({"kd": score(5.0)}, {})])
    assert floor.metrics["kd"].image_spread == pytest.approx(math.sqrt(2))


def test_one_training_has_no_spread() -> None:
    with pytest.raises(ValueError, match="at least 2 trainings, got 1"):
        floor_from([0.5])


def test_what_was_not_measured_has_no_floor() -> None:
    assert floor_from([0.5, 0.6]).smallest("kd", 3, 3) is None


def test_a_floor_survives_json() -> None:
    floor = floor_from([0.5, 0.6])
    assert floor_of(asdict(floor)) == floor
