"""The table: real trainings of all configurations of a grid, scored at every rung; read and written here."""

import csv
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench.config import TrialConfig

RATES = tuple(float(f"{rate:.3g}") for rate in np.geomspace(1e-4, 5e-3, 8))
MODULES = ("attention", "attention+ff", "all")
EPOCHS = (2, 4, 8)
ROLES = {"search": 0, "fresh-1": 1_000_000, "fresh-2": 1_000_001}
"""Role of a training -> its seed. What a search sees is scored on dev prompts, the others on test prompts."""
SCORES = ("similarity", "clip_score", "diversity")


class Cell(NamedTuple):
    """A configuration of the grid; all are trained for the most epochs."""

    rank: int
    ratio: float
    learning_rate: float
    dropout: float
    modules: str

    def config(self, seed: int) -> TrialConfig:
        return TrialConfig(
            rank=self.rank,
            alpha=self.ratio * self.rank,
            learning_rate=self.learning_rate,
            dropout=self.dropout,
            epochs=max(EPOCHS),
            target_modules=self.modules,
            batch_size=4,
            seed=seed,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One training after some epochs; scores are NaN where it failed or where they were not measured."""

    rank: int
    ratio: float
    learning_rate: float
    dropout: float
    modules: str
    role: str
    epoch: int
    similarity: float = math.nan
    clip_score: float = math.nan
    diversity: float = math.nan
    held_out_loss: float = math.nan
    full_similarity: float = math.nan
    """With all sampler steps, of the search's trainings at the last epoch."""
    full_clip_score: float = math.nan
    full_diversity: float = math.nan

    @property
    def cell(self) -> Cell:
        return Cell(self.rank, self.ratio, self.learning_rate, self.dropout, self.modules)

    @property
    def scores(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in (*SCORES, "held_out_loss")}


Key = tuple[Cell, str, int]
"""Cell, role, epoch."""


def grid() -> Iterator[Cell]:
    """Half of it is whole in itself: dropout changes last."""
    for dropout, modules in itertools.product((0.1, 0.0), MODULES):
        for rank, ratio, rate in itertools.product((4, 8, 16), (0.5, 1.0, 2.0), RATES):
            yield Cell(rank, ratio, rate, dropout, modules)


def read_table(file: Path) -> dict[Key, Row]:
    """By cell, role and epoch; empty if there is no file."""
    if not file.exists():
        return {}
    with file.open(newline="") as lines:
        rows = [_row(line) for line in csv.DictReader(lines)]
    return {(row.cell, row.role, row.epoch): row for row in rows}


def append_rows(file: Path, rows: Iterable[Row]) -> None:
    new = not file.exists()
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", newline="") as lines:
        writer = csv.writer(lines, lineterminator="\n")
        if new:
            writer.writerow(field.name for field in fields(Row))
        for row in rows:
            writer.writerow(_text(value) for value in astuple(row))


class Work(NamedTuple):
    """Seconds that some work of one kind took, on adapters of one set of modules."""

    kind: str
    modules: str
    seconds: float
    units: int


def append_pace(table: Path, work: Iterable[Work]) -> None:
    """Beside the table."""
    file = table.with_suffix(".pace.csv")
    new = not file.exists()
    with file.open("a", newline="") as lines:
        writer = csv.writer(lines, lineterminator="\n")
        if new:
            writer.writerow(Work._fields)
        writer.writerows((kind, modules, f"{seconds:.4f}", units) for kind, modules, seconds, units in work)


def read_pace(table: Path) -> dict[tuple[str, str], Work]:
    """All work of a kind on the same modules added up."""
    found: dict[tuple[str, str], Work] = {}
    with table.with_suffix(".pace.csv").open(newline="") as lines:
        for line in csv.DictReader(lines):
            key = line["kind"], line["modules"]
            before = found.get(key, Work(*key, 0.0, 0))
            seconds, units = before.seconds + float(line["seconds"]), before.units + int(line["units"])
            found[key] = Work(*key, seconds, units)
    return found


def _text(value: object) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.5g}"
    return str(value)


def _row(line: Mapping[str, str]) -> Row:
    kinds = {field.name: field.type for field in fields(Row)}
    values = {name: kinds[name](text) if text else math.nan for name, text in line.items()}  # type: ignore[operator]
    return Row(**values)
