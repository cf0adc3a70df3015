"""The table of faults: every row has a test."""

from faults.table import FAULTS, marked


def test_every_fault_has_a_test() -> None:
    assert [fault.number for fault in FAULTS] == list(range(1, 26))
    assert [number for number, tests in marked().items() if not tests] == []
