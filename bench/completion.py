"""What a shell completes: runs, shipped spaces and adapter files, by name. Imports nothing heavy."""

from collections.abc import Iterator
from pathlib import Path

from bench.shipped import shipped_spaces

RUNS = Path("runs")
ADAPTER = ".safetensors"


def run_names(incomplete: str) -> list[str]:
    """Of the runs in this folder."""
    names = (file.parent.name for file in RUNS.glob("*/run.json"))
    return sorted(name for name in names if name.startswith(incomplete))


def space_names(incomplete: str) -> list[str]:
    """Shipped ones, and YAML files here."""
    shipped = [name for name in shipped_spaces() if name.startswith(incomplete)]
    return [*shipped, *_paths(incomplete, (".yaml", ".yml"))]


def adapter_names(incomplete: str) -> list[str]:
    """LoRA files, and folders that may hold some."""
    return list(_paths(incomplete, (ADAPTER,)))


def run_or_adapter_names(incomplete: str) -> list[str]:
    return [*run_names(incomplete), *adapter_names(incomplete)]


def side_names(incomplete: str) -> list[str]:
    """What may be compared."""
    return [*(name for name in ("base",) if name.startswith(incomplete)), *run_or_adapter_names(incomplete)]


def _paths(incomplete: str, suffixes: tuple[str, ...]) -> Iterator[str]:
    """Folders, with a slash, and files with one of the suffixes, as they were begun to be written."""
    written, _, name = incomplete.rpartition("/")
    folder = Path(f"{written}/" if "/" in incomplete else ".")
    prefix = f"{written}/" if "/" in incomplete else ""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith(name) and not path.name.startswith("."):
            if path.is_dir():
                yield f"{prefix}{path.name}/"
            elif path.name.endswith(suffixes):
                yield f"{prefix}{path.name}"
