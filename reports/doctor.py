"""What `bench doctor` found: a table, lines where nobody looks at a terminal, or JSON.

The JSON is `{"mended": [...], "checks": [...]}`: what was done, in words, and of each check its `name`, its
`level` (ok, warning or problem), what was `found` and the `advice`, which may be empty.
"""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.dataset import printable
from bench.doctor import Check
from bench.files import json_text

STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}


def show(checks: Sequence[Check], mended: Sequence[str], console: Console) -> None:
    for line in mended:
        console.print(f"Mended {printable(line)}", markup=False, highlight=False, soft_wrap=True)
    if console.is_terminal:
        console.print(_table(checks))
    else:
        console.print("\n".join(_lines(checks)), markup=False, highlight=False, soft_wrap=True)


def as_json(checks: Sequence[Check], mended: Sequence[str]) -> str:
    names = ("name", "level", "found", "advice")
    listed = [{name: getattr(check, name) for name in names} for check in checks]
    return json_text({"mended": list(mended), "checks": listed})


def _table(checks: Sequence[Check]) -> Table:
    table = Table("", "check", "found", "what to do")
    for check in checks:
        level = Text(check.level, STYLES[check.level])
        table.add_row(level, *(Text(printable(text)) for text in (check.name, check.found, check.advice)))
    return table


def _lines(checks: Sequence[Check]) -> list[str]:
    """One a check: level, name, what was found and what to do."""
    lines = []
    for check in checks:
        advice = f"; {check.advice}" if check.advice else ""
        lines.append(printable(f"{check.level:<8} {check.name}: {check.found}{advice}"))
    return lines
