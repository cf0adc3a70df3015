"""The lock of a run folder: one process at a time works on it. It ends with that, whatever ends it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from bench.errors import UsageError


@contextmanager
def locked(path: Path, advice: str = "give another --name") -> Iterator[None]:
    """Raises UsageError, with that advice, if another process works on the run folder `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with held(_file(path), f"{path}: another bench search is working on it; {advice}"):
        yield


@contextmanager
def held(file: Path, busy: str) -> Iterator[None]:
    """Hold a lock file; raises UsageError, with what `busy` says, if another process does."""
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(busy) from None
    try:
        yield
    finally:
        lock.release()


def is_locked(path: Path) -> bool:
    """Whether a process works on the run folder `path` now; makes no lock file."""
    file = _file(path)
    if not file.exists():
        return False
    try:
        with held(file, ""):
            return False
    except (UsageError, OSError):  # held, or another user's
        return True


def _file(path: Path) -> Path:
    return path.parent / f".{path.name}.lock"
