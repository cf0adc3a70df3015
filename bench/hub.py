"""The Hub: names there, its token, and what goes wrong in one line."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from bench.errors import BenchError, MissingError, UsageError, one_line

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def check_name(target: str) -> None:
    """Raises UsageError for what is no name of a repository."""
    if not NAME.fullmatch(target):
        raise UsageError(f"{target}: give OWNER/NAME, of letters, digits, dots, dashes and underscores")


def find_token() -> str:
    """Raises MissingError where there is none."""
    from huggingface_hub import get_token

    if token := get_token():
        return token
    raise MissingError("no token of the Hub on this machine: `hf auth login` keeps one, or set HF_TOKEN")


@contextmanager
def explained(target: str, token: str) -> Iterator[None]:
    """What goes wrong is one line, without the token."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    owner = target.partition("/")[0]
    reasons = {
        401: "the Hub refuses the token: `hf auth login` keeps another, or set HF_TOKEN",
        403: f"the token may not write to {owner}: it needs the right to write there",
        409: "there is one of that name already; choose another name, or delete that one first",
    }
    try:
        yield
    except HfHubHTTPError as error:
        said = f"the Hub answers {error.response.status_code}: {_one_line(error, token)}"
        raise UsageError(f"{target}: {reasons.get(error.response.status_code, said)}") from None
    except HFValidationError as error:
        raise UsageError(f"{target}: {_one_line(error, token)}") from None
    except Exception as error:  # those of its HTTP library have no common base that is ours to name
        said = f"{type(error).__name__}: {_one_line(error, token)}"
        raise BenchError(f"{target}: the Hub cannot be reached, or broke off: {said}") from None


def _one_line(error: Exception, token: str) -> str:
    return one_line(error).replace(token, "***")[:300]
