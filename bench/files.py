"""Files of a run: replaced whole or not at all, and read with errors that name them."""

import json
import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.errors import UsageError
from bench.secrets import masked


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it once it is written and flushed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Threads may write the same file, as a report that is served while its search ends.
    temporary = path.with_name(f".{path.name}.{threading.get_ident()}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What goes wrong while a file of a run is read is one UsageError that names it."""
    from safetensors import SafetensorError

    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, OSError, SafetensorError) as error:
        reason = " ".join(f"{type(error).__name__} {error}".split())[:200]
        raise UsageError(f"{path}: damaged: {reason}; delete that folder to have it made again") from None


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, data: dict[str, Any]) -> None:
    """See `json_text`."""
    write_text(path, json_text(data))


def json_text(data: dict[str, Any]) -> str:
    """Strict JSON, without secrets: NaN and infinity become null, so that any reader can load it."""
    return masked(json.dumps(_finite(data), indent=1, ensure_ascii=False, allow_nan=False)) + "\n"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises UsageError naming the file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise UsageError(f"{path}: expected an object, got {type(data).__name__}")
    return data


def size_text(size: int) -> str:
    """Bytes in words."""
    if size >= 1e9:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.1f} MB" if size < 1e7 else f"{size / 1e6:.0f} MB"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
