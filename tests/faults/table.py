"""Faults that a search or a training must live with: what happens, and which tests inject it.

A test is one of a fault's if it is marked so: `@pytest.mark.fault(7)`.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Fault:
    """A row of docs/faults.md."""

    number: int
    fault: str
    expected: str


FAULTS = (
    Fault(
        1,
        "SIGKILL of a child while it trains",
        "its trial is tried once more, alone, from its last rung; a second death is a failure with the "
        "signal as its reason; the study goes on",
    ),
    Fault(
        2,
        "SIGKILL of the parent",
        "its children end; the next run goes on at once with what was running, same parameters, same "
        "number, to the same files; in a shared study others try it once more after the grace period, "
        "in a folder of its own",
    ),
    Fault(
        3,
        "a trial that runs without a sign of life ever given",
        "a search's own is taken up again; another's, in a shared study, is given up after the grace period "
        "(Optuna never does)",
    ),
    Fault(
        4, "a trial that is given up by others while it trains", "its result is discarded, the search goes on"
    ),
    Fault(5, "a sign of life that cannot be written", "said once, and tried again"),
    Fault(
        6,
        "SIGTERM, Ctrl-C, `sys.exit`",
        "no process is left; what was running goes on the next time from its last rung, rather than fail",
    ),
    Fault(7, "a database that is locked for 8 s", "waited for"),
    Fault(
        8,
        "a full disk for the database, an adapter, a report",
        "one line; the file of before stays whole; the same command goes on once there is room",
    ),
    Fault(
        9,
        "NaN or infinity in a loss, a gradient, an adapter, latents, a score",
        "the trial has failed and says what was not finite; it never completes",
    ),
    Fault(10, "images that are black or of one colour", "said, and not scored"),
    Fault(
        11,
        "an adapter whose keys do not match the base",
        "an error that names them; an adapter that changes no image is not scored",
    ),
    Fault(
        12,
        "memory runs out while trials train",
        "several side by side: half of them go on, which is said; alone: failed, memory is freed, the next "
        "trial runs; the batch is never smaller than asked for",
    ),
    Fault(
        13,
        "a truncated adapter, or state of the optimizer",
        "seen from the lengths in the file's header (there is no checksum beside it); it is set aside and "
        "the checkpoint before it is taken",
    ),
    Fault(
        14,
        "the state of the random generators is missing",
        "there is none to miss: each step draws from the seed and its number, and a resumed training ends "
        "with the same bits",
    ),
    Fault(
        15,
        "a kill while a checkpoint is written, with `save_total_limit: 1`",
        "at every moment there is a whole checkpoint",
    ),
    Fault(
        16,
        "a torn journal",
        "a study is kept in SQLite, which takes back half a transaction when it is opened; a torn "
        "database is named",
    ),
    Fault(
        17,
        "choices, scale or type of a parameter changed",
        "exit code 2 and the key that changed; no trial is begun",
    ),
    Fault(18, "a direction changed", "refused; Optuna would go on with the old one"),
    Fault(
        19,
        "a start point, or an enqueued trial, outside of its range",
        "a start point is refused; a trial that others enqueued fails without being trained",
    ),
    Fault(20, "a seeded search that goes on, 3 + 3 trials", "no configuration twice"),
    Fault(
        21,
        "two searches on one study",
        "on one folder the second is refused; on a shared study no number and no folder is given twice",
    ),
    Fault(
        22,
        "pictures that are truncated, empty, CMYK, animated, rotated by EXIF",
        "all that cannot be used are listed before anything is loaded; CMYK and rotated ones are read "
        "as they look",
    ),
    Fault(
        23,
        "a report on trials that failed, that run, or none that completed",
        "it is written, and says so; exit code 0",
    ),
    Fault(
        24,
        "no network, with weights or data that are not on this machine; the Hub breaks off",
        "said before training, with the command that gets them; an upload that fails loses nothing",
    ),
    Fault(
        25, "a run folder on a network file system", "SQLite is refused there without `--force`, which warns"
    ),
)


def marked() -> dict[int, list[str]]:
    """Ids of the tests of each fault, as pytest names them, read from the marks in the source."""
    found: dict[int, list[str]] = {fault.number: [] for fault in FAULTS}
    for file in sorted(TESTS.rglob("test_*.py")):
        for test in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(test, ast.FunctionDef):
                for number in _numbers(test):
                    found[number].append(f"{file.relative_to(TESTS.parent)}::{test.name}")
    return found


def _numbers(test: ast.FunctionDef) -> Iterator[int]:
    for mark in test.decorator_list:
        if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.fault":
            yield from (ast.literal_eval(argument) for argument in mark.args)
