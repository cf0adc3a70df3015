"""One self-contained HTML file: no remote resource, everything from users escaped."""

import json
from functools import cache
from importlib.resources import files
from typing import Any

import plotly.io
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup
from plotly.graph_objects import Figure
from plotly.offline import get_plotlyjs

from bench import __version__
from reports import wording

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'"
)
# blob: is for the figures' own "download as an image" button.


def render(template: str, *, figures: dict[str, Figure | None], **context: Any) -> str:
    """The page; `figures` are shown where the template names their fixed id."""
    data = {name: json.loads(plotly.io.to_json(figure)) for name, figure in figures.items() if figure}
    return environment().get_template(template).render(figures=data, **context)


@cache
def environment() -> Environment:
    """Templates of this package, escaped whatever their name ends with."""
    environment = Environment(
        autoescape=True,
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
    environment.globals |= {
        "policy": CONTENT_SECURITY_POLICY,
        "css": Markup(_text("page.css")),
        "script": Markup(_text("page.js")),
        "plotly_script": Markup(get_plotlyjs()),
        "version": __version__,
    }
    return environment


def _text(name: str) -> str:
    return (files("reports") / "templates" / name).read_text(encoding="utf-8")
