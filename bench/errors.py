"""Every error that a user can meet.

BenchError              shown as one line, exit code 2
├── UsageError          a file, key, flag or value from the user is wrong; nothing was written
├── MissingError        something is not on this machine; the message says how to get it
├── MismatchError       two things that must agree do not (runs to compare, a run to resume)
├── DeviceError         a device no longer works; what it trained starts again
├── TrialError          one trial cannot be scored; recorded with its reason, the study goes on
└── StudyError          too many trainings failed: there is nothing to confirm, or no floor to measure
"""

from pathlib import Path

from bench.secrets import masked


class BenchError(Exception):
    """Base of all errors above."""


class UsageError(BenchError):
    """A file, key, flag or value from the user is wrong."""


class MissingError(BenchError):
    """Weights, data or a run is not on this machine."""


class MismatchError(BenchError):
    """Two things that must agree do not."""


class DeviceError(BenchError):
    """A device no longer works."""


class TrialError(BenchError):
    """A trial whose result must not be scored."""


class StudyError(BenchError):
    """A search that has nothing to confirm; its failures are in the run folder."""

    def __init__(self, message: str, run: Path) -> None:
        super().__init__(message)
        self.run = run


def one_line(error: Exception) -> str:
    """What an error says, without line breaks and without secrets."""
    return masked(" ".join(str(error).split()))
