"""Safetensors files: looked at, counted and hashed without loading a tensor."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.cache import cached
from bench.errors import UsageError

LARGE = 64 * 1024**2
"""Bytes from which a file's hash is kept: an SDXL takes half a minute to hash, at every start."""
MAX_HEADER = 16 * 1024**2
"""Bytes of a header: that of a whole SDXL has about 300 kB, and some hold a preview picture."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of its tensors."""

    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]

    def count(self, prefix: str = "") -> int:
        """Numbers in all tensors whose names begin so."""
        return sum(torch.Size(s).numel() for name, s in self.shapes.items() if name.startswith(prefix))


def read_header(file: Path) -> Header:
    """Raises OSError or ValueError for a file that is missing, damaged or cut off."""
    from safetensors import SafetensorError, safe_open

    if not file.exists():
        raise FileNotFoundError(f"no {file.parent.name}/{file.name} in {file.parent.parent}")
    with file.open("rb") as content:
        size = int.from_bytes(content.read(8), "little")
    if size > MAX_HEADER:
        raise ValueError(f"no safetensors file: its header would have {size:,} bytes")
    try:
        with safe_open(file, framework="pt") as tensors:
            names = tensors.keys()
            shapes = {name: tuple(tensors.get_slice(name).get_shape()) for name in names}
            return Header(shapes, tensors.metadata() or {})
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def refuse_incomplete(where: str, held: int, needed: int) -> None:
    """Raises UsageError for a part with fewer numbers than its configuration needs.

    Names differ between versions of libraries, numbers do not.
    """
    if held < needed:
        raise UsageError(
            f"{where}: incomplete: its weights are {held:,} numbers, its configuration needs {needed:,}"
        )


def digest(path: Path) -> bytes:
    """sha256 of a file; of a large one kept by its place, size and times, which a changed file changes."""
    stat = path.stat()
    if stat.st_size < LARGE:
        return _hash(path)
    known_by = (path.resolve(), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    inputs = ["file digest 1", *map(str, known_by)]
    kept = cached(inputs, lambda: {"sha256": torch.tensor(list(_hash(path)))}, torch.device("cpu"))
    return bytes(kept["sha256"].tolist())


def _hash(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
