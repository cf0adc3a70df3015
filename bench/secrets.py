"""Passwords and tokens never leave the program as text: `masked` stands where text is shown or written.

That is the error on a terminal, what libraries log, reasons of trials, attributes of a study, every JSON file
and every value on a page. A secret is known by its form, or because a variable of the environment holds it.
"""

import logging
import os
import re
from collections.abc import Mapping
from functools import cache

HIDDEN = "***"
END = r"[^\s\"'\\<>&,;|)\]}]+"
"""The rest of a value, in a sentence, an address or JSON."""
NAMES = r"TOKEN|PASSWORD|PASSWD|SECRET|API_?KEY|ACCESS_?KEY(?:_ID)?"
FORMS = (
    re.compile(r"(?P<kept>\b[a-z][a-z0-9+.-]{0,30}://[^\s:/@\"'<>]*:)[^\s/\"'<>]+(?=@)", re.I),
    re.compile(rf"(?P<kept>\b\w*(?:token|password|passwd|pwd|secret|api_?key|access_?key)=){END}", re.I),
    re.compile(rf"(?P<kept>\b(?:[A-Z0-9]+_)*[A-Z0-9]*(?:{NAMES})\b[\"']?\s*[:=]\s*[\"']?){END}"),
    re.compile(r"(?P<kept>\bBearer\s+)(?=\S*\d)[\w.~+/=-]{8,}", re.I),
    re.compile(r"(?P<kept>\b)hf_[A-Za-z0-9]{20,}"),
    re.compile(r"(?P<kept>\b)A[KS]IA[A-Z0-9]{16}\b"),
)
"""Addresses with a password, parameters of addresses and of libpq, variables, headers, tokens of the Hub and
keys of AWS. What is `kept` says what was there."""
HOLDERS = re.compile(rf"(?:{NAMES})$|(?:^|_)SECRET_", re.I)
"""Names of variables whose values are secrets."""
LOGIN = re.compile(r"://[^\s:/@]*:([^\s/]+)@")
"""The password in a variable's address, which a driver may repeat alone."""
SHORTEST = 8
"""Characters of a value by which it is known: hiding a short one would hide ordinary words."""


def masked(text: str) -> str:
    """The text with *** in place of every secret in it."""
    for value in _held():
        text = text.replace(value, HIDDEN)
    for form in FORMS:
        text = form.sub(rf"\g<kept>{HIDDEN}", text)
    return text


@cache
def _held() -> tuple[str, ...]:
    """By the environment, as it was when a text was first masked."""
    return held_by(os.environ)


def held_by(variables: Mapping[str, str]) -> tuple[str, ...]:
    """Secrets among the values, the longest first: one may be part of another."""
    found = {value for name, value in variables.items() if HOLDERS.search(name)}
    found |= {each for value in variables.values() for each in LOGIN.findall(value)}
    return tuple(sorted(filter(_is_told_apart, found), key=len, reverse=True))


def _is_told_apart(value: str) -> bool:
    """From a word."""
    return len(value) >= (2 * SHORTEST if value.isalpha() else SHORTEST)


def mask_logs() -> None:
    """What this and other libraries log from now on is masked."""
    logging.setLogRecordFactory(_record)


def _record(*args: object, **kwargs: object) -> logging.LogRecord:
    record = logging.LogRecord(*args, **kwargs)  # type: ignore[arg-type]
    try:
        record.msg, record.args = masked(record.getMessage()), ()
    except (TypeError, ValueError, KeyError):
        pass  # logging itself says what is wrong with such a message
    return record
