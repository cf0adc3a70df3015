"""Writes docs/reference.md from the code's own models: `python docs/make_reference.py`.

Keys, types, bounds and defaults are those of the pydantic models, meanings are the docstrings of their
fields; verbs, options and examples are the command's, metrics those of `bench/scoring/metrics.py`.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import typer.main
import typer.models
from pydantic import AliasChoices, BaseModel
from rich.text import Text

from bench import cli, config, space
from bench.scoring import metrics
from bench.shipped import shipped_spaces
from reports import compare_json, outcome, runs, score_json, show_json

FILE = Path(__file__).with_name("reference.md")
NUMBERS = {"integer": "whole number", "number": "number"}
BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
}
WORDS = {"boolean": "true or false", "string": "text", "object": "keys and values"}
WRITTEN = (
    space.Range,
    space.Choices,
    space.IntRange,
    space.IntChoices,
    space.AlphaRatio,
    space.ModuleChoices,
    space.WordChoices,
    space.Flags,
)
"""Ways to write a parameter."""
JSON = {
    "What a run came to (`bench search`, `bench runs`, `bench show`)": outcome,
    "`bench runs --json`": runs,
    "`bench show RUN --json`": show_json,
    "`bench compare --json`": compare_json,
    "`bench score --json`": score_json,
}
"""Modules whose docstrings name the keys."""


def reference() -> str:
    """The page."""
    parts = [
        "# Reference",
        "Made by `python docs/make_reference.py` from the code: change that, not this file.",
        *_spaces(),
        *_configs(),
        *_metrics(),
        *_verbs(),
        *_json(),
    ]
    return "\n\n".join(parts) + "\n"


def _spaces() -> Iterator[str]:
    yield "## Spaces"
    yield (
        f"A YAML file for `--space`; shipped are {_listed(shipped_spaces())}. "
        "Unknown keys are refused, and the known ones named."
    )
    yield _model(space.SearchSpace)
    for model in (space.Parameters, *WRITTEN, space.Prompts, space.Sampler, space.Prune, space.Confirm):
        yield f"### {model.__name__}"
        yield _paragraph(model)
        yield _model(model)


def _configs() -> Iterator[str]:
    yield "## Configurations"
    yield "### TrialConfig"
    yield _paragraph(config.TrialConfig)
    yield _model(config.TrialConfig)
    presets = ((f"`{name}`", _listed(endings)) for name, endings in config.PRESETS.items())
    yield "Presets of `target_modules`:"
    yield _table(("preset", "endings of module names"), presets)
    yield "### TrainingConfig"
    yield f"{_paragraph(config.TrainingConfig)} Beside the keys of a TrialConfig it has these:"
    yield _model(config.TrainingConfig, left_out=set(config.TrialConfig.model_fields))


def _metrics() -> Iterator[str]:
    yield "## Metrics"
    yield (
        "Of *tested* metrics WIN, TIE or LOSS may be said; *shown* ones are reported without a verdict; "
        "an *alarm* is about memorisation. How to read them: [metrics.md](metrics.md)."
    )
    better = {"maximize": "higher", "minimize": "lower"}
    rows = (
        (
            f"`{metric.name}`",
            metric.label,
            better[metric.direction],
            metric.unit,
            metric.role,
            metric.question,
            metric.source,
        )
        for metric in metrics.METRICS.values()
    )
    yield _table(("name", "label", "better", "unit", "role", "question", "formula or source"), rows)


def _verbs() -> Iterator[str]:
    yield "## Verbs"
    for name, function in verbs():
        yield f"### bench {name}"
        yield _unwrapped(function.__doc__ or "")
        types = get_type_hints(function, include_extras=True)
        parameters = inspect.signature(function).parameters
        rows = [_option(key, types[key], parameters[key].default) for key in parameters]
        yield _table(("argument or option", "value", "default", "meaning"), rows)
        if lines := examples(name):
            yield "\n".join(f"    {line}" for line in lines)


def examples(name: str) -> list[str]:
    """Those at the end of a verb's help."""
    command: Any = typer.main.get_command(cli.app)
    for word in name.split():
        command = command.commands[word]
    lines = Text.from_markup(command.epilog or "").plain.splitlines()
    return [line.strip() for line in lines if line.strip().startswith("bench ")]


def _json() -> Iterator[str]:
    yield "## JSON"
    yield "What `--json` prints; NaN and infinity are null."
    for title, module in JSON.items():
        yield f"### {title}"
        yield f"```text\n{inspect.getdoc(module)}\n```"


def verbs() -> Iterator[tuple[str, Callable[..., Any]]]:
    """All verbs with their functions, those of groups by both words."""
    groups = [("", cli.app), *((f"{g.name} ", g.typer_instance) for g in cli.app.registered_groups)]
    for prefix, app in groups:
        for command in app.registered_commands:
            assert command.callback
            yield f"{prefix}{command.name or command.callback.__name__}", command.callback


def _option(key: str, annotated: Any, default: Any) -> tuple[str, str, str, str]:
    kind, info = get_args(annotated)[:2]
    if isinstance(info, typer.models.ArgumentInfo):
        name = info.metavar or key.upper()
    else:
        # Inside Annotated, typer holds the first name that is given as a default.
        given = [info.default] if isinstance(info.default, str) else []
        word = key.replace("_", "-")
        both = [f"--{word}", f"--no-{word}"] if kind is bool else [f"--{word}"]
        name = ", ".join([*given, *(info.param_decls or ())] or both)
    shown = "required" if default is inspect.Parameter.empty else "" if default in (None, False) else default
    value = _bounded(_typed(kind), {"minimum": info.min, "maximum": info.max})
    return f"`{name}`", value, "" if shown is True else str(shown), info.help or ""


def _typed(kind: Any) -> str:
    """A Python type in words."""
    words = {str: "text", int: "whole number", bool: "flag", Path: "path"}
    inner = [each for each in get_args(kind) if each is not type(None)]
    if get_origin(kind) is Literal:
        return " or ".join(f"`{choice}`" for choice in inner)
    if get_origin(kind) is list:
        return f"list of: {_typed(inner[0])}"
    return words.get(kind) or _typed(inner[0])


# Models, by their JSON schemas


def _model(model: type[BaseModel], left_out: Iterable[str] = ()) -> str:
    schema = model.model_json_schema()
    required, kinds = set(schema.get("required", ())), schema["properties"]
    rows = [
        (
            _key(model, name),
            _kind(kinds[name]),
            _default(kinds[name], name in required),
            _meaning(model, name),
        )
        for name in kinds
        if name not in left_out
    ]
    return _table(("key", "value", "default", "meaning"), rows)


def _key(model: type[BaseModel], name: str) -> str:
    """With the training guide's name of it."""
    alias = model.model_fields[name].validation_alias
    return _listed(alias.choices if isinstance(alias, AliasChoices) else [name])


def _kind(schema: Mapping[str, Any]) -> str:
    """A JSON schema in words; null, which is a key that is left out, goes without saying."""
    options = schema.get("anyOf") or schema.get("oneOf")
    if options:
        found = dict.fromkeys(_kind(option) for option in options if option.get("type") != "null")
        return " or ".join(found)
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})"
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if schema.get("type") == "array":
        return f"list of: {_kind(schema['items'])}" if "items" in schema else "list"
    kind = schema.get("type", "")
    return _bounded(NUMBERS.get(kind) or WORDS.get(kind, "anything"), schema)


def _bounded(kind: str, schema: Mapping[str, Any]) -> str:
    bounds = [text.format(schema[name]) for name, text in BOUNDS.items() if schema.get(name) is not None]
    return ", ".join([kind, " and ".join(bounds)]) if bounds else kind


def _default(schema: Mapping[str, Any], required: bool) -> str:
    if required:
        return "required"
    value = schema.get("default")
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case dict():
            return "as below"
        case list():
            return _listed(value) if value else "none"
        case _:
            return f"{value:g}" if isinstance(value, float) else str(value)


def _meaning(model: type[BaseModel], name: str) -> str:
    return model.model_fields[name].description or ""


def _paragraph(model: type[BaseModel]) -> str:
    return _unwrapped(model.__doc__ or "")


# Markdown


def _unwrapped(text: str) -> str:
    paragraphs = re.split(r"\n\s*\n", text.strip())
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _listed(values: Iterable[object]) -> str:
    return ", ".join(f"`{value}`" for value in values)


def _table(heads: tuple[str, ...], rows: Iterable[Iterable[str]]) -> str:
    lines = [_row(heads), "|" + "---|" * len(heads), *(_row(row) for row in rows)]
    return "\n".join(lines)


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    FILE.write_text(reference(), encoding="utf-8")
