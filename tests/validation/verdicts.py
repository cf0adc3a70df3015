"""How often `bench compare` calls luck a WIN, and how often it finds a difference that is there.

    bench floor --space tests/validation/pool.yaml --seeds 84
    bench floor --space tests/validation/better.yaml --seeds 60
    python tests/validation/verdicts.py runs/pool runs/better

A side is two or three trainings. The noise floor is that of the default's side, as in a search.
In the first tables no training is used twice. The last deals the same trainings anew many times: a finer
estimate of the same rate, whose comparisons are not independent.
"""

import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.stats import binomtest, ttest_rel

from bench.comparison import Comparison, Side, candidate_side, compare_sides
from bench.floor import measure_floor
from bench.run import Candidate, Run, exam_folder, read_evaluation
from bench.scoring.measure import combine

DEALS = 20


def main(pool: Path, better: Path) -> None:
    default, good = Run.open(pool), Run.open(better)
    with tempfile.TemporaryDirectory() as folder:
        for seeds in (2, 3):
            print_rates(
                "The default against itself, other training seeds", null(default, seeds, Path(folder))
            )
        poor = sides(default, 3, Path(folder) / "poor")
        strong = sides(good, 3, Path(folder) / "strong", floor_every=0)
        power = [compare_sides(a, b, "similarity") for a, b in zip(strong, poor, strict=False)]
        print_rates("A better configuration against the default", power)
        again = [c for deal in range(1, DEALS) for c in null(default, 3, Path(folder), deal)]
        print_rates(f"The default against itself, dealt anew {DEALS - 1} times", again)
        naive = [ttest_rel(*pair).pvalue < 0.05 for pair in single_trainings(again)]
        print_rate("one training each, paired t-test over prompts, p < 0.05", sum(naive), len(naive))


def null(pool: Run, seeds: int, folder: Path, deal: int = 0) -> list[Comparison]:
    found = list(sides(pool, seeds, folder / f"{seeds}-{deal}", deal=deal, floor_every=2))
    return [compare_sides(a, b, "similarity") for a, b in zip(found[::2], found[1::2], strict=False)]


def sides(pool: Run, seeds: int, folder: Path, *, deal: int = 0, floor_every: int = 1) -> Iterator[Side]:
    """The pool's trainings, so many a side, each side as a run of its own.

    Every (second, third, …) side has the noise floor that it measures; with 0 none has.
    """
    labels = sorted((r.label for r in pool.confirmations()), key=lambda label: int(label.rsplit("-", 1)[1]))
    if deal:
        labels = list(np.random.default_rng(deal).permutation(labels))
    for number, start in enumerate(range(0, len(labels) - seeds + 1, seeds), start=1):
        run = Run.create(folder / str(start), pool.metadata)
        for name in ("real", "base", "confirm"):
            (run.path / name).symlink_to((pool.path / name).resolve())
        side = candidate_side(run, _candidate(run, tuple(labels[start : start + seeds])))
        if floor_every and number % floor_every == 0:
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
        num_failed=0,
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
    number = len(comparisons[0].a.evaluations)
    print(f"\n{title}: {len(comparisons)} comparisons of {number} against {number} trainings")
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
