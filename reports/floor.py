"""The noise floor: what trainings of the default, and drawings of the base, differ by through luck."""

from typing import NamedTuple

from rich.table import Table

from bench.run import Result, Run
from bench.scoring.metrics import METRICS
from reports.wording import significant


class FloorRow(NamedTuple):
    """The luck in one metric as text, in the metric's unit."""

    name: str
    label: str
    unit: str
    training: str
    """Standard deviation between trainings of the default that differ in their seed alone."""
    drawing: str
    """Standard deviation of the base's score between sets of image seeds."""
    smallest: str
    """A smaller difference is a TIE."""
    detectable: str
    """A true difference of this size exceeds the floor four times of five; a WIN needs more."""


class FloorTable(NamedTuple):
    num_trainings: int
    num_prompts: int
    sides: tuple[int, int]
    """Trainings of the two configurations that are compared."""
    tested: list[FloorRow]
    others: list[FloorRow]


def table(run: Run) -> Table:
    """For the terminal; the floor must have been measured."""
    found = floor_table(run, None)
    assert found is not None
    table = Table(
        title=f"Noise floor: {found.num_trainings} trainings of the default config, "
        f"{found.num_prompts} prompts"
    )
    columns = ("spread of\ntraining seeds", "spread of\nimage seeds")
    sides = "({} against {} trainings)".format(*found.sides)
    for name in ("metric", *columns, f"a TIE below\n{sides}", "exceeds the floor\n4 times of 5 at"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    by_name = {row.name: row for row in [*found.tested, *found.others]}
    for row in (by_name[name] for name in METRICS if name in by_name):
        table.add_row(row.label, row.training, row.drawing, row.smallest, row.detectable)
    return table


def floor_table(run: Run, result: Result | None) -> FloorTable | None:
    """For the winner against the default where there is a result; None while there is no floor."""
    floor = run.floor()
    if floor is None:
        return None
    sides = _sides(run, result)
    rows = []
    for name, found in floor.metrics.items():
        metric = METRICS[name]
        numbers = (
            found.seed_spread,
            found.image_spread,
            floor.smallest(name, *sides),
            floor.detectable(name, *sides),
        )
        rows.append(FloorRow(name, metric.label, metric.unit, *map(significant, numbers)))
    tested = [row for row in rows if METRICS[row.name].role == "tested"]
    others = [row for row in rows if METRICS[row.name].role != "tested"]
    return FloorTable(floor.num_seeds, floor.num_prompts, sides, tested, others)


def missing(run: Run, result: Result | None) -> str:
    """Why there is no floor, in a sentence."""
    if run.space.floor == 0:
        return "The noise floor was not measured: this search was run without it (floor: 0)."
    if result is None:
        return "The noise floor has not been measured yet: it is measured at the end of a search."
    return "The noise floor could not be measured: fewer than 2 trainings of the default could be scored."


def _sides(run: Run, result: Result | None) -> tuple[int, int]:
    counts = {candidate.label: len(candidate.records) for candidate in result.candidates} if result else {}
    seeds = run.space.confirm.seeds
    won = result.winner if result else ""
    if won in counts and won != "default":
        return counts[won], counts.get("default", seeds)
    return seeds, seeds
