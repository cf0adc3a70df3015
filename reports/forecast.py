"""A forecast of a search in words, and whether it is more than was asked for."""

from bench.forecast import Forecast
from reports.wording import duration, plural

LONG = 3600.0
"""Seconds from which a search is long, where nobody gave a budget."""


def sentence(found: Forecast, budget: float | None) -> str:
    """`budget` in seconds, for the whole search."""
    trials = f"{plural(found.num_trials, 'trial')}, about {duration(found.trial_seconds)} each, and "
    said = f"Estimate: about {duration(found.seconds)}: {trials if found.num_trials else ''}"
    said += f"about {duration(found.confirm_seconds)} to confirm the best."
    if budget is None or not is_long(found, budget):
        return said
    within = found.num_within(budget)
    fit = f"{plural(within, 'trial')} fit" if within > 1 else "no more than the first trials fit, if they do"
    left = f"what is left of the budget, {duration(max(0.0, budget - found.spent))}"
    allowed = left if found.spent else f"the budget of {duration(budget)}"
    return f"{said} That is more than {allowed}{f': {fit}' if found.num_trials else ''}."


def is_long(found: Forecast, budget: float | None) -> bool:
    """Worth a question."""
    return found.seconds > (LONG if budget is None else budget - found.spent)
