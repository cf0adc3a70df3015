"""Writes docs/faults.md from what the tests of faults did.

python tests/faults/make_table.py                            # runs them: some 10 minutes on two cores
python tests/faults/make_table.py --read a.xml b.xml         # of runs with `-m fault --junitxml a.xml`
python tests/faults/make_table.py --soak soak.txt            # with what tests/faults/soak.py printed
"""

import argparse
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

from table import FAULTS, marked

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "faults.md"
HEAD = """\
# Faults

Written by `python tests/faults/make_table.py` from what its tests did: change those, not this file.

What can go wrong while a search or a training runs, what is to happen then, and what was seen when it was \
done to it: processes are killed, files torn and made too large for the disk, databases locked. A test of a \
fault is marked with its number, `@pytest.mark.fault(7)`.
"""
SOAK = """\
## Under kills for long

Searches whose workers and parents are killed at random moments, and begun again until they are done, each \
beside an undisturbed search of the same seed. Lost, doubled: in the run's folder or in Optuna's \
study. Changed: an epoch that scored otherwise, to the last digit, than in an undisturbed training of \
that configuration.

    {command}

"""
COMMAND = "python tests/faults/soak.py --trials 60 --seeds 20 21 --faults 60"


@dataclass(frozen=True, slots=True)
class Case:
    """One test, as it ended."""

    id: str
    """As pytest names it, with its parameters."""
    seen: str | None
    failure: str | None
    """Why it is not as expected; None if it is."""
    skipped: bool

    @property
    def test(self) -> str:
        return self.id.partition("[")[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--read", type=Path, nargs="+", default=[])
    parser.add_argument("--soak", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = asked.read or [run(Path(folder) / "faults.xml")]
        cases = {case.id: case for file in files for case in read(file)}
    PAGE.write_text(page(list(cases.values()), asked.soak and asked.soak.read_text()), encoding="utf-8")


def run(file: Path) -> Path:
    """All tests of faults."""
    command = [sys.executable, "-m", "pytest", "-m", "fault", f"--junitxml={file}", "tests"]
    subprocess.run(command, cwd=ROOT)
    return file


def read(file: Path) -> Iterator[Case]:
    """From pytest's own report; of a test that is in several files, the last counts."""
    for case in ElementTree.parse(file).iter("testcase"):
        properties = [(each.get("name"), each.get("value", "")) for each in case.iter("property")]
        skip, failure = case.find("skipped"), case.find("failure")
        if failure is None:
            failure = case.find("error")
        expected = skip is not None and skip.get("type") == "pytest.xfail"
        reason = skip if expected else failure
        yield Case(
            id=f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}",
            seen=next((value for name, value in properties if name == "seen"), None),
            failure=None if reason is None else str(reason.get("message")).partition("\n")[0],
            skipped=skip is not None and not expected,
        )


def page(cases: Sequence[Case], soaked: str | None) -> str:
    tests = marked()
    known = {test for of_fault in tests.values() for test in of_fault}
    done = [case for case in cases if case.test in known and not case.skipped]
    well = sum(case.failure is None for case in done)
    parts = [
        HEAD,
        f"{len(done)} tests of {len(FAULTS)} faults, {well} as expected; Python {platform.python_version()}, "
        f"{platform.system()}, torch {version('torch')}, Optuna {version('optuna')}.\n",
        "| | fault | expected | seen |\n|--:|---|---|---|",
    ]
    for fault in FAULTS:
        of_fault = [case for case in done if case.test in tests[fault.number]]
        seen = "<br>".join(told(of_fault))
        parts.append(f"| {fault.number} | {fault.fault} | {fault.expected} | {seen} |")
    text = "\n".join(parts) + "\n"
    return text + ("\n" + SOAK.format(command=COMMAND) + soaked.strip() + "\n" if soaked else "")


def told(cases: Iterable[Case]) -> Iterator[str]:
    """A line a test: what it saw, or else its name, which says what it holds."""
    by_line: dict[str, int] = {}
    for case in cases:
        name = case.test.partition("::test_")[2].replace("_s_", "'s ").replace("_", " ")
        words = case.seen or name.capitalize()
        line = words if case.failure is None else f"**not yet:** {words} ({case.failure})"
        by_line[line] = by_line.get(line, 0) + 1
    yield from (_cell(line, count) for line, count in by_line.items())


def _cell(line: str, count: int) -> str:
    shown = " ".join(line.split()).replace("|", "\\|").replace("<", "&lt;")
    return f"{shown} ({count} cases)" if count > 1 else shown


if __name__ == "__main__":
    main()
