"""One self-contained HTML file: no remote resource, everything from users escaped."""

import base64
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import plotly.io
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup
from plotly.graph_objects import Figure
from plotly.offline import get_plotlyjs

from bench import __version__
from bench.secrets import masked
from reports import wording
from reports.cards import Card

SCRIPTS = ("page.js", "viewer.js", "cards.js", "parallel.js", "exports.js", "index.js")
EMPTY: Mapping[str, Card] = {}
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data: blob: 'self' file:; "
    "base-uri 'none'; form-action 'none'"
)
"""Scripts run that are known by their hash, no others: text that was not escaped could not run. Figures style
themselves; blob: is for their own "download as an image" button. Images in full size lie beside the page."""


class Live(NamedTuple):
    """What a page that is served while it grows has to know."""

    version: str
    """Of what it shows: the browser asks for newer ones."""
    num_scored: int
    """Evaluations that it shows."""
    over: str
    """What is said once no more will come; empty before."""


def render(
    template: str,
    *,
    figures: dict[str, Figure | None],
    cards: Mapping[str, Card] = EMPTY,
    live: Live | None = None,
    **context: Any,
) -> str:
    """The page; `figures` are shown where the template names their fixed id, `cards` at their points."""
    context |= {"cards": _plain(cards), "live": live} | ({"policy": live_policy()} if live else {})
    data = {name: json.loads(masked(plotly.io.to_json(figure))) for name, figure in figures.items() if figure}
    return environment().get_template(template).render(figures=data, **context)


@cache
def environment() -> Environment:
    """Templates of this package, escaped whatever their name ends with."""
    environment = Environment(
        autoescape=True,
        finalize=_shown,
        loader=FunctionLoader(_text),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": wording.number,
        "plus_minus": wording.plus_minus,
        "duration": wording.duration,
        "p_value": wording.p_value,
        "plural": wording.plural,
        "source_name": wording.source_name,
        "trial_name": wording.trial_name,
        "capital": wording.capital,
    }
    script, plotly_script = "\n".join(map(_text, SCRIPTS)), get_plotlyjs()
    live_script = _text("live.js")
    environment.globals |= {
        "policy": policy(script, plotly_script),
        "live_policy": policy(script, plotly_script, live_script),
        "css": Markup(_text("page.css")),
        "stylesheet": lambda name: Markup(_text(name)),
        "script": Markup(script),
        "live_script": Markup(live_script),
        "index_css": Markup(_text("index.css")),
        "plotly_script": Markup(plotly_script),
        "version": __version__,
    }
    return environment


def policy(*scripts: str) -> str:
    """That lets a page run these scripts and load nothing."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    return CONTENT_SECURITY_POLICY.format(scripts=" ".join(f"'sha256-{digest}'" for digest in digests))


def live_policy() -> str:
    """Of a page that this machine serves: it may also ask the server."""
    return str(environment().globals["live_policy"]).replace(" file:", "") + "; connect-src 'self'"


def _plain(cards: Mapping[str, Card]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(
        masked(json.dumps({k: c._asdict() for k, c in cards.items()}))
    )
    return found


def _shown(value: Any) -> Any:
    """What a template is about to write."""
    return masked(value) if type(value) is str else value


def _text(name: str) -> str:
    return (files("reports") / "templates" / name).read_text(encoding="utf-8")
