"""How many trials fit side by side: from two measurements, or by rules on a processor."""

import pytest

from bench.fit import HEADROOM, MOST, WORTH, fit_measured, fit_processor, slots_that_fit, slots_that_pay
from bench.rehearsal import Rehearsal

GB = 10**9


def rehearsal(num_slots: int, seconds: float, gigabytes: float, drawing: float = 0) -> Rehearsal:
    return Rehearsal(
        num_slots=num_slots,
        step_seconds=(seconds, 2 * seconds),
        draw_seconds=(1.0,),
        num_images=1,
        allocated=0,
        reserved=int(gigabytes * GB),
        drawing=int(drawing * GB),
    )


@pytest.mark.parametrize(
    ("one", "two", "available", "slots"),
    [
        (12, 18, 80, 11),  # 12 + 10 · 6 = 72 = 80 - 10 %
        (12, 18, 79, 10),
        (12, 18, 24, 2),  # 18 <= 21.6 < 24
        (12, 18, 19, 1),  # two would leave less than the headroom
        (12, 18, 12, 1),  # one ran, so that one is tried
        (12, 12, 13, MOST),
    ],
)
def test_memory_is_linear_in_the_number_of_trials(one: int, two: int, available: int, slots: int) -> None:
    assert slots_that_fit(one * GB, two * GB, available * GB) == slots


def test_as_many_fit_as_leave_the_headroom_free() -> None:
    for available in range(20, 400, 7):
        slots = slots_that_fit(12 * GB, 17 * GB, available * GB)
        assert 12 + 5 * (slots - 1) <= (1 - HEADROOM) * available or slots == 1
        assert 12 + 5 * slots > (1 - HEADROOM) * available


@pytest.mark.parametrize(
    ("fixed", "each", "slots"),
    [(30, 12, 25), (31, 44, 8), (0, 10, 1), (-1, 10, 1), (10, 0, MOST), (100, 1, MOST)],
)
def test_more_slots_than_pay_are_useless(fixed: float, each: float, slots: int) -> None:
    assert slots_that_pay(fixed + each, fixed + 2 * each) == slots
    if 1 < slots < MOST:
        assert fixed / slots <= WORTH * each < fixed / (slots - 1)


def test_the_least_limit_decides_and_all_are_said() -> None:
    one, two = rehearsal(1, 0.075, 12), rehearsal(2, 0.119, 18)  # the fastest reading counts: 31 + 44 · K ms
    fit = fit_measured(one, two, 80 * GB, rounds=20)
    assert fit.slots == 8
    assert fit.reason == (
        "the least of 11 (80 GB of memory at 6.0 GB a trial), 8 (more would hardly be faster), "
        f"20 (a search of at least 3 rounds), {MOST} (at most)"
    )
    assert fit_measured(one, two, 24 * GB, rounds=20).slots == 2
    assert fit_measured(one, two, 80 * GB, rounds=4).slots == 4


def test_drawing_is_paid_for_once() -> None:
    """Not hidden where one trial draws in more memory than two train in."""
    one, two = rehearsal(1, 0.075, 12, drawing=20), rehearsal(2, 0.119, 18, drawing=14)
    assert fit_measured(one, two, 80 * GB, rounds=99).slots == 7  # 32 + 6 · 6 <= 72 < 32 + 7 · 6
    assert fit_measured(one, two, 40 * GB, rounds=99).slots == 1


def test_a_processor_goes_by_its_cores_and_its_memory() -> None:
    assert fit_processor(2, 16 * GB, GB // 10, rounds=100).slots == 8
    assert fit_processor(64, 999 * GB, GB // 10, rounds=100).slots == MOST
    assert fit_processor(64, 128 * GB, 10 * GB, rounds=100).slots == 5
    assert fit_processor(2, 4 * GB, 10 * GB, rounds=100).slots == 1
    assert fit_processor(2, 16 * GB, GB // 10, rounds=4).slots == 4
