"""Energy from the counters of the machine."""

from pathlib import Path

import pytest

from bench import energy
from bench.energy import Cost, Counter, Meter


def test_a_meter_counts_from_when_it_was_made() -> None:
    values = iter([100.0, 130.0, 135.0])
    meter = Meter([Counter(lambda: next(values))])
    assert [meter.joules(), meter.joules()] == [30.0, 35.0]


def test_a_counter_that_begins_again_is_followed() -> None:
    values = iter([900.0, 990.0, 20.0])
    meter = Meter([Counter(lambda: next(values), limit=1000.0)])
    assert [meter.joules(), meter.joules()] == [90.0, 120.0]


def test_without_a_counter_nothing_is_known() -> None:
    assert Meter([]).joules() is None
    assert energy.counters("mps") == []


def test_packages_of_processors_are_read_and_their_parts_are_not(tmp_path: Path) -> None:
    for name, value in {
        "intel-rapl:0": 5_000_000,
        "intel-rapl:0:0": 1_000_000,
        "intel-rapl:1": 7_000_000,
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{value}\n")
        (tmp_path / name / "max_energy_range_uj").write_text("262143328850\n")
    (tmp_path / "intel-rapl:2").mkdir()
    found = energy._processors(tmp_path)
    assert [counter.read() for counter in found] == [5.0, 7.0]
    assert found[0].limit == pytest.approx(262143.32885)


def test_what_was_once_missed_is_not_known_any_more() -> None:
    values = iter([100.0, 130.0, None, 150.0])
    meter = Meter([Counter(lambda: next(values))])
    assert [meter.joules(), meter.joules(), meter.joules()] == [30.0, None, None]


def test_costs_add_up_and_energy_is_known_only_where_all_was_counted() -> None:
    assert Cost(1, 2, 3.0).plus(Cost(10, 20, 30.0)) == Cost(11, 22, 33.0)
    assert Cost(1, 2, None).plus(Cost(10, 20, 30.0)).joules is None
