"""The noise floor as a table for the terminal."""

from rich.table import Table

from bench.run import Run
from bench.scoring.metrics import METRICS
from reports.wording import short


def table(run: Run) -> Table:
    """Of each metric: the luck of training and of drawing, and what a comparison can tell apart."""
    floor, seeds = run.floor(), run.space.confirm.seeds
    assert floor is not None
    table = Table(
        title=f"Noise floor: {floor.num_seeds} trainings of the default config, {floor.num_prompts} prompts"
    )
    sides = f"{seeds} against {seeds} trainings"
    columns = ("spread of\ntraining seeds", "spread of\nimage seeds")
    for name in ("metric", *columns, f"a TIE below\n({sides})", "found 4 times\nof 5 above"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for name, found in floor.metrics.items():
        smallest, detectable = floor.smallest(name, seeds, seeds), floor.detectable(name, seeds, seeds)
        image = "" if found.image_spread is None else short(found.image_spread)
        assert smallest is not None and detectable is not None
        table.add_row(
            METRICS[name].label, short(found.seed_spread), image, short(smallest), short(detectable)
        )
    return table
