"""How often `bench compare` calls luck a WIN, and how often it finds a difference that is there.

    bench floor --space tests/validation/pool.yaml --seeds 84
    bench floor --space tests/validation/better.yaml --seeds 60
    python tests/validation/verdicts.py runs/pool runs/better

A side is three trainings. The noise floor is that of three trainings of the default, as in a search. No
training is used twice.
"""

import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.stats import binomtest, ttest_rel

from bench.compare import Comparison, Side, candidate_side, compare_sides
from bench.floor import measure_floor
from bench.run import Candidate, Run, exam_folder, read_evaluation
from bench.scoring.measure import combine

SEEDS = 3


def main(pool: Path, better: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        same = list(sides(Run.open(pool), Path(folder) / "same"))
        good = list(sides(Run.open(better), Path(folder) / "good", with_floor=False))
        null = [compare_sides(a, b, "similarity") for a, b in zip(same[::2], same[1::2], strict=False)]
        power = [compare_sides(a, b, "similarity") for a, b in zip(good, same, strict=False)]
        print_rates("The default configuration against itself, other training seeds", null)
        print_rates("A better configuration against the default", power)
        naive = [ttest_rel(*pair).pvalue < 0.05 for pair in single_trainings(null)]
        print_rate("one training each, paired t-test over prompts, p < 0.05", sum(naive), len(naive))


def sides(pool: Run, folder: Path, *, with_floor: bool = True) -> Iterator[Side]:
    """The pool's trainings by threes, each three as a run of its own, with the floor that they measure."""
    labels = sorted((r.label for r in pool.confirmations()), key=lambda label: int(label.rsplit("-", 1)[1]))
    for start in range(0, len(labels) - SEEDS + 1, SEEDS):
        run = Run.create(folder / str(start), pool.metadata)
        for name in ("real", "base", "confirm"):
            (run.path / name).symlink_to((pool.path / name).resolve())
        side = candidate_side(run, _candidate(run, tuple(labels[start : start + SEEDS])))
        if with_floor:
            run.write_floor(measure_floor([evaluation.scores for evaluation in side.evaluations]))
        yield side


def _candidate(run: Run, records: tuple[str, ...]) -> Candidate:
    config = run.space.default
    folders = [run.path / "confirm" / record for record in records]
    test = [read_evaluation(exam_folder(folder, config.epochs, "test")) for folder in folders]
    scores, spread = combine(test)
    return Candidate(
        label=records[0],
        config=config,
        records=records,
        scores=scores,
        seed_spread=spread,
        search={},
        search_epochs=None,
        by_epoch={},
    )


def single_trainings(comparisons: list[Comparison]) -> Iterator[tuple[list[float], list[float]]]:
    """What many papers compare: one training against one."""
    for comparison in comparisons:
        first, second = (
            side.evaluations[0].per_prompt["similarity"] for side in (comparison.a, comparison.b)
        )
        yield first, second


def print_rates(title: str, comparisons: list[Comparison]) -> None:
    print(f"\n{title}: {len(comparisons)} comparisons of {SEEDS} against {SEEDS} trainings")
    for outcome in ("WIN", "LOSS"):
        found = sum(comparison.verdict == outcome for comparison in comparisons)
        print_rate(f"overall {outcome}", found, len(comparisons))
    decided = sum(comparison.verdict != "TIE" for comparison in comparisons)
    print_rate("overall WIN or LOSS", decided, len(comparisons))
    rows = Counter((row.metric, row.verdict) for comparison in comparisons for row in comparison.metrics)
    for metric in [row.metric for row in comparisons[0].metrics]:
        means = [row.mean for c in comparisons if (row := c.row(metric))]
        floors = [row.floor for c in comparisons if (row := c.row(metric)) and row.floor is not None]
        print(
            f"  {metric:18} WIN {rows[metric, 'WIN']:3} TIE {rows[metric, 'TIE']:3} "
            f"LOSS {rows[metric, 'LOSS']:3}  difference {np.mean(means):+.4f}, spread {np.std(means):.4f}, "
            f"median floor {np.median(floors):.4f}"
        )


def print_rate(name: str, found: int, number: int) -> None:
    low, high = binomtest(found, number).proportion_ci()
    print(f"  {name}: {found} of {number} = {found / number:.1%} (95 % interval {low:.1%} to {high:.1%})")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
