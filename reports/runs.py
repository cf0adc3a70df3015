"""The table that `bench runs` prints, and its JSON.

`bench runs --json` prints `schema_version` (1) and `runs`, a list of what `reports/outcome.py` documents.
"""

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from bench.dataset import printable
from bench.files import size_text
from reports.outcome import Lead, Outcome, outcome_json
from reports.wording import MISSING, plus_minus, source_name, trial_name

SCHEMA_VERSION = 1
STYLES = {
    "finished": "green",
    "running": "cyan",
    "unfinished": "yellow",
    "failed": "bold red",
    "damaged": "bold red",
}
TONES = {"WIN": "green", "TIE": "", "LOSS": "red", "": ""}


def table(found: Sequence[Outcome]) -> Table:
    """One row a folder; a folder that is no run, or damaged, says at its end why."""
    rows = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("name", "state", "trials", "winner", "over the default", "over the base", "begun"):
        rows.add_column(heading)
    rows.add_column("size", justify="right")
    rows.add_column("of")
    for outcome in found:
        rows.add_row(*_cells(outcome))
    return rows


def as_json(found: Sequence[Outcome]) -> dict[str, Any]:
    return {"schema_version": SCHEMA_VERSION, "runs": [outcome_json(outcome) for outcome in found]}


def _cells(found: Outcome) -> list[Text]:
    name, state = Text(printable(found.name), "bold"), Text(found.state, STYLES.get(found.state, "dim"))
    size = Text(size_text(found.size))
    if found.run is None:
        return [name, state, *[Text(MISSING)] * 5, size, Text(printable(found.problem))]
    metadata = found.run.metadata
    searched = f"{source_name(metadata.base)}, {source_name(metadata.data)}"
    return [
        name,
        state,
        Text(f"{found.trials_done}/{found.run.space.trials}"),
        Text(trial_name(found.winner).removeprefix("the ") if found.winner else MISSING),
        _lead(found.over_default),
        _lead(found.over_base),
        Text(printable(metadata.created[:16].replace("T", " "))),
        size,
        Text(printable(searched)),
    ]


def _lead(lead: Lead | None) -> Text:
    if lead is None:
        return Text(MISSING)
    return Text(f"{lead.verdict} {plus_minus(lead.gain, lead.stderr, signed=True)}", TONES[lead.verdict])
