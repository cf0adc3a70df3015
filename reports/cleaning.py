"""What `bench clean` removed or would remove, in words."""

from collections.abc import Sequence
from pathlib import Path

from bench.clean import Removal
from bench.dataset import printable
from bench.files import size_text


def text(found: Sequence[Removal], folder: Path, *, is_done: bool) -> str:
    """A line for each trial and temporary file, and the sum."""
    lines = [
        f"{printable(str(removal.path.relative_to(folder)))}  {removal.reason}  {size_text(removal.size)}"
        for removal in found
    ]
    total = size_text(sum(removal.size for removal in found))
    if not found:
        said = f"{folder}: nothing to remove"
    elif is_done:
        said = f"Freed {total} of {folder}; scores, losses and configurations stay."
    else:
        said = f"Would free {total} of {folder}; scores, losses and configurations would stay."
    return "\n".join([*lines, said])
