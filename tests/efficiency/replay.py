"""Searches replayed on the table: seconds until the confirmed winner is as good as a random search's best.

    python tests/efficiency/replay.py                    # prints the tables, writes replay.csv

Asking, pruning and telling are the project's own Searcher; only training and scoring are looked up, and a
learning rate is that of the nearest column of the table. Seconds are trained samples and drawn images at the
measured pace of their module set, as slots share the machine. After each trial the search is confirmed as it
stands: the best two are retrained (fresh-1 chooses winner and epochs), and what the winner is worth is its
training fresh-2. The target is the mean worth of the winners of random searches of 64 trials.
"""

import argparse
import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from statistics import mean, median

import numpy as np
import optuna
from numpy.typing import NDArray
from scipy.stats import kendalltau
from table import MODULES, RATES, ROLES, Cell, Key, Row, grid, read_pace, read_table

from bench.config import TrialConfig
from bench.pareto import Point, finalists
from bench.scoring.metrics import METRICS
from bench.searcher import Sampling, Searcher, new_study, tpe
from bench.space import SearchSpace

HERE = Path(__file__).parent
SLOTS = 8
NUM_TRIALS = 64
FINALISTS = 2
FRESH = ("fresh-1", "fresh-2")
NUM_IMAGES = 48
NUM_TRAIN = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Seconds of a trained sample and of a drawn image by modules, and of an adapter's held-out loss."""

    sample: Mapping[str, float]
    image: Mapping[str, float]
    held_out: Mapping[str, float]


def cost_of(table: Path) -> Cost:
    """As measured when the table was made: drawing dev images and embedding them, other metrics left out."""
    pace = {key: work.seconds / work.units for key, work in read_pace(table).items()}
    drawing = min((kind for kind, _ in pace if kind.startswith("image of")), key=lambda k: int(k.split()[2]))
    return Cost(
        sample={modules: pace["trained sample", modules] for modules in MODULES},
        image={modules: pace[drawing, modules] + pace["image scored", modules] for modules in MODULES},
        held_out={modules: pace["held-out loss", modules] for modules in MODULES},
    )


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Method:
    """A way to search."""

    name: str
    sampling: Sampling
    nested: bool
    prune: Mapping[str, object]
    """Of the space."""
    most_trials: int = 128
    """At which a search that has not found the target is given up."""


@dataclass(kw_only=True, slots=True)
class Running:
    """A trial in a slot."""

    label: str
    config: TrialConfig
    epoch: int = 0
    """At which it stands."""
    points: list[Point] = field(default_factory=list)
    """What it scored so far."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """The state of a search when a trial has ended."""

    trials: int
    seconds: float
    worth: float
    """Of the winner, if the search were confirmed now."""
    pruned: int


def random_sampling(seed: int, num_random: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.RandomSampler(seed=seed)


OFF = {"fraction": 0}
OURS = "TPE, nested, pruned"
METHODS = (
    Method(name="random", sampling=random_sampling, nested=False, prune=OFF, most_trials=256),
    Method(name="TPE", sampling=tpe, nested=False, prune=OFF),
    Method(name="TPE, nested", sampling=tpe, nested=True, prune=OFF),
    Method(name=OURS, sampling=tpe, nested=True, prune={}),
    Method(name="TPE, nested, pruned, loss", sampling=tpe, nested=True, prune={"held_out_loss": True}),
    Method(name="random, nested, pruned", sampling=random_sampling, nested=True, prune={}),
)


def space_of(table: Mapping[Key, Row], prune: Mapping[str, object]) -> SearchSpace:
    """The part of the grid that the table holds, as a search space; without a head start."""
    cells = {cell for cell, _, _ in table}
    epochs = sorted({epoch for _, _, epoch in table})
    return SearchSpace.model_validate(
        {
            "base": "emoji-xl",
            "data": "emoji/pixel16",
            "parameters": {
                "rank": {"choices": sorted({cell.rank for cell in cells})},
                "alpha": {"ratio": sorted({cell.ratio for cell in cells})},
                "learning_rate": {"low": min(RATES), "high": max(RATES), "log": True},
                "dropout": {"choices": sorted({cell.dropout for cell in cells})},
                "epochs": {"choices": epochs},
                "target_modules": {"choices": [m for m in MODULES if any(c.modules == m for c in cells)]},
            },
            "default": Cell(8, 2.0, 1e-4, 0.1, "attention").config(0).model_dump(),
            "prune": prune,
            "slots": SLOTS,
        }
    )


def cell_of(config: TrialConfig) -> Cell:
    """The nearest in the table."""
    rate = min(RATES, key=lambda known: abs(math.log(known / config.learning_rate)))
    return Cell(config.rank, config.scale, rate, config.dropout, str(config.target_modules))


class Replay:
    """One search on the table, with SLOTS trials side by side; a slot is filled as soon as it is free."""

    def __init__(self, table: Mapping[Key, Row], method: Method, seed: int, cost: Cost) -> None:
        self.space = space_of(table, method.prune)
        self.seconds, self.pruned = 0.0, 0
        self._table, self._method, self._cost = table, method, cost
        study = new_study(self.space)
        self._searcher = Searcher(study, self.space, seed, method.sampling, nested=method.nested)
        self._points: list[Point] = []
        self._cells: dict[str, Cell] = {}

    def steps(self, num_trials: int) -> Iterator[Step]:
        """One for every trial that ends."""
        running: list[Running] = []
        ended = 0
        while ended < num_trials:
            while len(running) < SLOTS and len(self._cells) < num_trials:
                running.append(self._asked())
            going_on = self._train(running)
            for _ in range(len(running) - len(going_on)):
                ended += 1
                yield Step(trials=ended, seconds=self.seconds, worth=self._worth(), pruned=self.pruned)
            running = going_on

    def _asked(self) -> Running:
        label = f"{len(self._cells):04d}"
        trial = Running(label=label, config=self._searcher.ask(label))
        self._cells[label] = cell_of(trial.config)
        return trial

    def _train(self, running: Sequence[Running]) -> list[Running]:
        """Until the first trials stand at a rung; returns those that go on from there."""
        rungs = self.space.rungs if self._method.nested else ()
        ahead = {t.label: min(e for e in (*rungs, t.config.epochs) if e > t.epoch) for t in running}
        epochs = min(ahead[trial.label] - trial.epoch for trial in running)
        for trial in running:
            trial.epoch += epochs
            self.seconds += epochs * NUM_TRAIN * self._cost.sample[str(trial.config.target_modules)]
        standing = [trial for trial in running if trial.epoch == ahead[trial.label]]
        failed = [trial for trial in standing if not self._is_scored(trial)]
        gone = failed + [trial for trial in standing if trial not in failed and self._ends(trial)]
        return [trial for trial in running if trial not in gone]

    def _is_scored(self, trial: Running) -> bool:
        """Score it; a trial that cannot be scored has failed."""
        row = self._table.get((self._cells[trial.label], "search", trial.epoch))
        modules = str(trial.config.target_modules)
        self.seconds += NUM_IMAGES * self._cost.image[modules]
        self.seconds += self._cost.held_out[modules] if self.space.prune.held_out_loss else 0
        if row is None or math.isnan(row.similarity):
            self._searcher.ended(trial.label, "failed", trial.config.epochs)
            return False
        self._searcher.scored(trial.label, trial.epoch, row.scores)
        values = tuple(row.scores[name] for name in self.space.objectives)
        trial.points.append(Point(label=trial.label, epochs=trial.epoch, values=values))
        return True

    def _ends(self, trial: Running) -> bool:
        if trial.epoch == trial.config.epochs:
            self._searcher.ended(trial.label, "complete", trial.epoch)
            self._points += trial.points
            return True
        if self._searcher.stops(trial.label, trial.epoch):
            self._searcher.ended(trial.label, "pruned", trial.config.epochs)
            self.pruned += 1
            return True
        return False

    def _worth(self) -> float:
        """Of the winner: one fresh training chooses among the finalists and their epochs, the other is what
        it is worth; the mean of both ways round. NaN while there is none."""
        directions = [METRICS[name].direction for name in self.space.objectives]
        column = self.space.objectives.index(self.space.select_by)
        found = finalists(self._points, directions, column, FINALISTS)
        most = {point.label: max(p.epochs for p in self._points if p.label == point.label) for point in found}
        keys = [
            (self._cells[label], epoch)
            for label, last in most.items()
            for epoch in (self.space.rungs if self._method.nested else (last,))
            if epoch <= last
        ]
        return mean(self._chosen(keys, *roles) for roles in (FRESH, FRESH[::-1])) if keys else math.nan

    def _chosen(self, keys: Sequence[tuple[Cell, int]], chooses: str, counts: str) -> float:
        values = {key: self._similarity(*key, chooses) for key in keys}
        winner = max(values, key=lambda key: values[key])
        return self._similarity(*winner, counts)

    def _similarity(self, cell: Cell, epoch: int, role: str) -> float:
        row = self._table.get((cell, role, epoch))
        return -math.inf if row is None or math.isnan(row.similarity) else row.similarity


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What one search came to."""

    method: str
    seed: int
    seconds_64: float
    """Of the whole search of 64 trials."""
    worth_64: float
    pruned_64: int
    seconds: float
    """Until the winner is as good as the target; infinite if it never was."""
    trials: float


def replayed(table: Mapping[Key, Row], method: Method, seed: int, cost: Cost) -> list[Step]:
    return list(Replay(table, method, seed, cost).steps(method.most_trials))


def outcome(method: Method, seed: int, steps: Sequence[Step], target: float) -> Outcome:
    whole = steps[NUM_TRIALS - 1]
    reached = next((step for step in steps if step.worth >= target), None)
    return Outcome(
        method=method.name,
        seed=seed,
        seconds_64=whole.seconds,
        worth_64=whole.worth,
        pruned_64=whole.pruned,
        seconds=reached.seconds if reached else math.inf,
        trials=reached.trials if reached else math.inf,
    )


def correlations(table: Mapping[Key, Row]) -> list[str]:
    """Kendall's tau between what a search may look at and what it wants to know."""
    cells = sorted({cell for cell, _, _ in table})
    last = max(epoch for _, _, epoch in table)

    def column(role: str, epoch: int, name: str) -> NDArray[np.float64]:
        rows = [table.get((cell, role, epoch)) for cell in cells]
        return np.array([getattr(row, name) if row else math.nan for row in rows])

    worth = (column("fresh-1", last, "similarity") + column("fresh-2", last, "similarity")) / 2
    end = column("search", last, "similarity")
    pairs = {
        f"dev at epoch {last} by rung steps, by all steps": (end, column("search", last, "full_similarity"))
    }
    for epoch in sorted({epoch for _, _, epoch in table}):
        seen, loss = (column("search", epoch, name) for name in ("similarity", "held_out_loss"))
        pairs[f"dev at epoch {epoch}, at epoch {last}"] = seen, end
        pairs[f"dev at epoch {epoch}, test at epoch {last} on fresh seeds"] = seen, worth
        pairs[f"held-out loss at epoch {epoch}, test at epoch {last} on fresh seeds"] = -loss, worth
    pairs[f"test at epoch {last}: fresh seed, other fresh seed"] = (
        column("fresh-1", last, "similarity"),
        column("fresh-2", last, "similarity"),
    )
    return [f"{name:64} {_tau(*pair)}" for name, pair in pairs.items()]


def _tau(x: NDArray[np.float64], y: NDArray[np.float64]) -> str:
    known = np.isfinite(x) & np.isfinite(y)
    return f"{kendalltau(x[known], y[known]).statistic:+.2f} of {known.sum()}"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--table", type=Path, default=HERE / "table.csv")
    options.add_argument("--seeds", type=int, default=10)
    options.add_argument("--out", type=Path, default=HERE / "replay.csv")
    options.add_argument("--pace", type=Path, help="the table whose measured pace is the cost; its own")
    given = options.parse_args()
    cost = cost_of(given.pace or given.table)
    table = whole(read_table(given.table))
    print(
        f"{len({cell for cell, _, _ in table})} configurations\n" + "\n".join(correlations(table)), flush=True
    )
    searches = [(method, seed) for method in METHODS for seed in range(given.seeds)]
    runs = {(method, seed): replayed(table, method, seed, cost) for method, seed in searches}
    target = mean(runs[METHODS[0], seed][NUM_TRIALS - 1].worth for seed in range(given.seeds))
    outcomes = [outcome(method, seed, steps, target) for (method, seed), steps in runs.items()]
    with given.out.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, [f.name for f in fields(Outcome)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(found) for found in outcomes)
    print(f"\ntarget: {target:.4f}\n" + "\n".join(summary(outcomes)))


def whole(table: Mapping[Key, Row]) -> dict[Key, Row]:
    """The halves of the grid, by dropout, in which every configuration was trained in every role."""
    last = max(epoch for _, _, epoch in table)
    cells = list(grid())
    missing = {c.dropout for c in cells if any((c, role, last) not in table for role in ROLES)}
    return {key: row for key, row in table.items() if key[0].dropout not in missing}


def summary(outcomes: Sequence[Outcome]) -> list[str]:
    """Rows of the table in BENCHMARKS.md."""
    rows = [
        "| search | seconds to the target: median (all seeds) | trials | reached | 64 trials: seconds "
        "| worth | pruned |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(found.method for found in outcomes):
        mine = [found for found in outcomes if found.method == name]
        seconds = sorted(found.seconds for found in mine)
        rows.append(
            f"| {name} | {median(seconds):.0f} ({seconds[0]:.0f} to {seconds[-1]:.0f}) "
            f"| {median(found.trials for found in mine):.0f} "
            f"| {sum(math.isfinite(s) for s in seconds)} of {len(seconds)} "
            f"| {mean(found.seconds_64 for found in mine):.0f} "
            f"| {mean(found.worth_64 for found in mine):.4f} "
            f"| {mean(found.pruned_64 for found in mine):.1f} |"
        )
    return rows


if __name__ == "__main__":
    main()
