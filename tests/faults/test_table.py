"""The table of faults: every row has a test, and the document shows it."""

from pathlib import Path

from faults.table import FAULTS, marked

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"


def test_every_fault_has_a_test() -> None:
    assert [fault.number for fault in FAULTS] == list(range(1, 26))
    assert [number for number, tests in marked().items() if not tests] == []


def test_the_document_has_every_fault_and_what_was_seen() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= len(FAULTS), "run: python tests/faults/make_table.py"
    for fault, row in zip(FAULTS, rows, strict=False):
        number, name, expected, seen = row.strip("|").split(" | ", 3)
        assert (int(number), name, expected) == (fault.number, fault.fault, fault.expected)
        assert seen.strip(), "run: python tests/faults/make_table.py"
