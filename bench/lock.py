"""The lock of a run folder: one process at a time works on it. It ends with that, whatever ends it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from bench.errors import UsageError

PATIENCE = 0.2
"""Seconds that a lock is waited for: who only looks whether it is held, holds it for an instant."""


@contextmanager
def locked(path: Path, advice: str = "give another --name") -> Iterator[None]:
    """Raises UsageError, with that advice, if another process works on the run folder `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with held(_file(path), f"{path}: another bench search is working on it; {advice}"):
        yield


def is_locked(path: Path) -> bool:
    """Whether a process of this machine works on the run folder `path`, which may be read-only."""
    file = _file(path)
    if not file.exists():
        return False
    try:
        with FileLock(file).acquire(timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return False


def _file(path: Path) -> Path:
    return path.parent / f".{path.name}.lock"


@contextmanager
def held(file: Path, busy: str) -> Iterator[None]:
    """Hold a lock file; raises UsageError, with what `busy` says, if another process does."""
    lock = FileLock(file)
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        raise UsageError(busy) from None
    try:
        yield
    finally:
        lock.release()
