"""Trains and scores every configuration of the grid with the real engine: the table that searches replay.

    python tests/efficiency/make_table.py --slots 72 --minutes 5     # on a GPU; again to go on

Each configuration is trained with the search's seed and scored on the dev prompts at every rung (with the
sampler's rung_steps, at the end with all steps too, and the held-out loss), and with two fresh seeds scored
on the test prompts. Beside the table, in FILE.pace.csv, are the seconds that it took by kind of work and
set of target modules; their means are printed. What is in the table is not trained again.
"""

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from table import (
    EPOCHS,
    ROLES,
    SCORES,
    Cell,
    Row,
    Work,
    append_pace,
    append_rows,
    grid,
    read_pace,
    read_table,
)

from bench.asked import command_of
from bench.base import TrainingData
from bench.config import TrialConfig
from bench.errors import TrialError
from bench.packs import Rung, Trainer
from bench.progress import PlainProgress
from bench.scoring.alignment import cosines
from bench.scoring.diversity import diversity
from bench.scoring.exam import Exam
from bench.scoring.measure import check_images
from bench.session import open_session, packs_of

HERE = Path(__file__).parent
WARM = 1.15
"""A pack is only started if this many times the last one's seconds are left."""


@dataclass(kw_only=True)
class Maker:
    """Trains cells and appends their rows to the file."""

    file: Path
    trainer: Trainer
    data: TrainingData
    dev: Exam
    dev_full: Exam
    test: Exam
    slots: int
    ends: float
    pace: list[Work] = field(default_factory=list)
    """Of the pack that is being made."""
    pack_seconds: float = 0.0
    trained: int = 0

    @property
    def time_is_up(self) -> bool:
        return time.monotonic() + WARM * self.pack_seconds >= self.ends

    def make(self, cells: Sequence[Cell], role: str) -> None:
        """Train cells of the same modules."""
        for start in range(0, len(cells), self.slots):
            if self.time_is_up:
                return
            began = time.monotonic()
            self._make_pack(cells[start : start + self.slots], role)
            self.pack_seconds = time.monotonic() - began
            append_pace(self.file, self.pace)
            self.pace.clear()
            print(f"{role} {cells[0].modules}: {self.trained} trained, {self.pack_seconds:.1f} s", flush=True)

    def _make_pack(self, cells: Sequence[Cell], role: str) -> None:
        modules, configs = cells[0].modules, [cell.config(ROLES[role]) for cell in cells]
        steps = [0]

        def on_step(num_trials: int) -> None:
            steps[0] += num_trials

        rungs = self.trainer(self.dev.base, self.data, iter(configs), EPOCHS, len(configs), on_step)
        while True:
            began, steps[0] = time.monotonic(), 0
            rung = next(rungs, None)
            if rung is None:
                break
            samples = steps[0] * configs[0].batch_size
            self._did("trained sample", modules, began, samples)
            append_rows(self.file, self._rows(rung, cells, configs, role))
        self.trained += len(cells)

    def _rows(
        self, rung: Rung, cells: Sequence[Cell], configs: Sequence[TrialConfig], role: str
    ) -> Iterator[Row]:
        for index in rung.diverged:  # that of its last epoch says that it has ended
            yield Row(**cells[index]._asdict(), role=role, epoch=max(EPOCHS))
        if not rung.alive:
            return
        rows = [Row(**cells[index]._asdict(), role=role, epoch=rung.epoch(index)) for index in rung.alive]
        for slot, scores in enumerate(self._drawn(self.dev if role == "search" else self.test, rows)):
            rows[slot] = replace(rows[slot], **scores)
        if role == "search":
            began = time.monotonic()
            for slot, losses in enumerate(self.dev.denoise(len(rows))):
                assert losses is not None
                rows[slot] = replace(rows[slot], held_out_loss=float(losses.mean()))
            self._did("held-out loss", rows[0].modules, began, len(rows))
            if all(row.epoch == max(EPOCHS) for row in rows):
                for slot, scores in enumerate(self._drawn(self.dev_full, rows)):
                    full = {f"full_{name}": value for name, value in scores.items()}
                    rows[slot] = replace(rows[slot], **full)
        yield from rows

    def _drawn(self, exam: Exam, rows: Sequence[Row]) -> list[dict[str, float]]:
        """Scores of each slot's images; none where they must not be scored."""
        began = time.monotonic()
        images = np.stack(list(exam.draw(len(rows))))
        kind = f"image of {exam.sampler.steps} steps"
        self._did(kind, rows[0].modules, began, len(rows) * exam.num_images)
        began = time.monotonic()
        features = exam.scorer.embed_images(images.reshape(-1, *images.shape[2:]))
        found = [
            scores_of(exam, drawn, seen)
            for drawn, seen in zip(images, np.split(features, len(rows)), strict=True)
        ]
        self._did("image scored", rows[0].modules, began, len(rows) * exam.num_images)
        return found

    def _did(self, kind: str, modules: str, began: float, units: int) -> None:
        self.pace.append(Work(kind, modules, time.monotonic() - began, units))


def scores_of(exam: Exam, images: NDArray[np.uint8], features: NDArray[np.float32]) -> dict[str, float]:
    """Only the objectives: the other metrics would take longer than the training."""
    try:
        check_images(images, exam.base_images, exam.reference.num_seeds)
    except TrialError:
        return {}
    true = exam.reference.scorer.true
    assert true is not None
    values = (
        cosines(features, true),
        cosines(features, exam.reference.text_features),
        diversity(features, exam.reference.num_seeds),
    )
    return {name: float(value.mean()) for name, value in zip(SCORES, values, strict=True)}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--slots", type=int, default=6, help="trials trained side by side")
    options.add_argument("--minutes", type=float, default=math.inf, help="for all, loading included")
    options.add_argument("--every", type=int, default=1, help="only every n-th configuration, to try it out")
    options.add_argument("--out", type=Path, default=HERE / "table.csv")
    options.add_argument("--space", default=str(HERE / "table.yaml"), help="base, data, prompts and sampler")
    given = options.parse_args()
    ends = time.monotonic() + 60 * given.minutes
    command = command_of(given.space, {"slots": given.slots}, None, 0, Console())
    with open_session(command, "table") as session:
        packs = packs_of(session, command.engine, PlainProgress(command.console))
        dev, test = session.exam("dev", packs), session.exam("test", packs)
        maker = Maker(
            file=given.out,
            trainer=command.engine.train,
            data=packs.data,
            dev=dev,
            dev_full=replace(dev, sampler=session.run.space.sampler),
            test=test,
            slots=given.slots,
            ends=ends,
        )
        make_all(maker, list(grid())[:: given.every])
    print_pace(given.out)


def make_all(maker: Maker, cells: Sequence[Cell]) -> None:
    """What the table does not hold yet."""
    done = read_table(maker.file)
    for _, half in groupby(cells, key=lambda cell: cell.dropout):
        of_half = list(half)
        for role in ROLES:
            for _, same in groupby(of_half, key=lambda cell: cell.modules):
                maker.make([cell for cell in same if (cell, role, max(EPOCHS)) not in done], role)
    left = sum((c, role, max(EPOCHS)) not in read_table(maker.file) for c in cells for role in ROLES)
    print(f"{len(ROLES) * len(cells) - left} of {len(ROLES) * len(cells)} trainings are in {maker.file}")


def print_pace(file: Path) -> None:
    print(f"{'ms':>9}  {'number':>8}  of")
    for work in read_pace(file).values():
        print(f"{1000 * work.seconds / work.units:9.3f}  {work.units:8}  {work.kind}, {work.modules}")


if __name__ == "__main__":
    main()
