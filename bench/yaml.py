"""YAML files from users, read safely into pydantic models with one-line errors."""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from bench.errors import UsageError

MAX_BYTES = 1_000_000


def _number(value: object) -> object:
    # PyYAML reads 1e-4 as text: it wants a dot in the number.
    return float(value) if isinstance(value, str) else value


Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]


class Spec(BaseModel):
    """Base of all models read from YAML: frozen, unknown keys refused; docstrings describe the fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses aliases: a few lines of them can expand to gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed")
        return super().compose_node(parent, index)


Model = TypeVar("Model", bound=BaseModel)


def read(path: Path, model: type[Model]) -> Model:
    """The YAML file at `path` as a `model`; raises UsageError naming the file and the key."""
    found: Model = _parsed(_text(path), model, str(path))
    return found


# A report reads the configuration of every trial several times, and parsing is slow.
@lru_cache(maxsize=4096)
def _parsed(text: str, model: type[BaseModel], source: str) -> Any:
    return parse(text, model, source)


def parse(text: str, model: type[Model], source: str) -> Model:
    """YAML `text` as a `model`; `source` names it in errors."""
    try:
        data = yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, RecursionError, ValueError, KeyError, AttributeError) as error:
        raise UsageError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise UsageError(f"{source}: expected keys and values, got {type(data).__name__}")
    return validate(data, model, source)


def validate(data: dict[str, Any], model: type[Model], source: str) -> Model:
    """`data` as a `model`; raises UsageError with the first problem on one line."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise UsageError(f"{source}: {_first_problem(error, model)}") from None


def dump(model: BaseModel) -> str:
    """A model as YAML, keys in the order of its fields."""
    data = model.model_dump(mode="json", exclude_none=True)
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:  # a device has no size
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise UsageError(f"{path}: larger than {MAX_BYTES} bytes, not read")
        return content.decode("utf-8")
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from None


def _first_problem(error: ValidationError, model: type[BaseModel]) -> str:
    problem = error.errors()[0]
    location = [str(part) for part in problem["loc"]]
    tags = {option.__name__ for option in _all_models(model)}  # which model a union was read as: no key
    where = "".join(f"{part}." for part in location if part not in tags)
    prefix = f"{where[:-1]}: " if where else ""
    if problem["type"] == "extra_forbidden":
        return f"{prefix}unknown key; known keys: {', '.join(_known_keys(model, location[:-1]))}"
    if problem["type"] == "missing":
        return f"{prefix}required key is missing"
    if problem["type"] == "value_error":
        return f"{prefix}{problem['msg'].removeprefix('Value error, ')}"
    return f"{prefix}{problem['msg']}, got {problem['input']!r}"


def _known_keys(model: type[BaseModel], path: list[str]) -> list[str]:
    current: Any = model
    for part in path:
        options = [option for option in _models(current) if option.__name__ == part]
        if options:
            current = options[0]
        else:
            current = current.model_fields[part].annotation
    return list(next(_models(current)).model_fields)


def _all_models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        for option in _models(field.annotation):
            yield from _all_models(option)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models in a type such as `A | Annotated[B, …] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)
