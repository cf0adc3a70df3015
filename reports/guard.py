"""Guard: what this machine serves is for whoever was told the token, in a browser of this machine.

The address that is printed holds the token; the browser then keeps it in a cookie, which it sends to no other
site and for no other site, and the address is shown without it. Other users of the machine, and pages of the
internet that know the port, are refused. So are requests under another host name: a name that someone else
owns could lead here (DNS rebinding).
"""

import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Any, NamedTuple
from urllib.parse import parse_qs

HOST = "127.0.0.1"
NAMES = (HOST, "localhost")
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class Answer(NamedTuple):
    """To whoever is not let in, as plain text."""

    status: int
    text: str
    headers: dict[str, str]


class Asking(NamedTuple):
    """A request, as far as it decides whether it is let in."""

    path: str
    query: str
    host: str
    cookies: str
    origin: str
    """Of the page that asks, and whether it is of the same site, as browsers say; empty where they do not."""
    site: str

    @classmethod
    def of(cls, path: str, query: str, header: Callable[[str], str | None]) -> "Asking":
        """`header` gives a header of the request by its name, in lower case."""
        names = ("host", "cookie", "origin", "sec-fetch-site")
        return cls(path, query, *(header(name) or "" for name in names))

    @property
    def is_foreign(self) -> bool:
        """From a page that was not served here: another port of this machine may be someone else's."""
        return self.site not in ("", "same-origin", "none") or self.origin not in ("", f"http://{self.host}")


def refusal(token: str, asking: Asking) -> Answer | None:
    """What a request is answered unless it knows the token, None if it is let in.

    The token in the query is answered with a cookie and the same address without it.
    """
    name, _, port = asking.host.partition(":")
    cookie = f"bench-{port}"  # a browser sends a cookie to every port of a host
    if name not in NAMES:
        return Answer(400, f"{HOST} and localhost alone are served\n", {})
    if _is_same(parse_qs(asking.query).get("token", [""])[0], token):
        kept = f"{cookie}={token}; HttpOnly; SameSite=Strict; Path=/"
        return Answer(303, "", {"location": asking.path, "set-cookie": kept})
    if not asking.is_foreign and _is_same(_cookie(asking.cookies, cookie), token):
        return None
    return Answer(403, "Open the whole address that bench has printed.\n", {})


def new_token() -> str:
    return secrets.token_urlsafe(32)


def address(port: int, token: str, path: str = "/") -> str:
    """To be opened by whoever may see the page."""
    return f"http://{HOST}:{port}{path}?token={token}"


def protection(policy: str) -> dict[str, str]:
    """Headers of every answer."""
    return {
        "content-security-policy": policy,
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Guard:
    """An ASGI application in front of another."""

    application: Application
    policy: str
    """The Content-Security-Policy of every answer."""
    token: str = field(default_factory=new_token, repr=False)

    def address(self, port: int) -> str:
        """To be opened by whoever may see the page."""
        return address(port, self.token)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.application(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        asking = Asking.of(scope["path"], scope["query_string"].decode("latin-1"), headers.get)
        refused = refusal(self.token, asking)
        if refused is None:
            await self.application(scope, receive, self._with_policy(send))
        else:
            await _answer(send, scope, refused)

    def _with_policy(self, send: Send) -> Send:
        async def sending(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_headers(self.policy)]
            await send(message)

        return sending


def _headers(policy: str) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in protection(policy).items()]


def _is_same(given: str, token: str) -> bool:
    return secrets.compare_digest(given.encode(), token.encode())


def _cookie(header: str, name: str) -> str:
    try:
        found = SimpleCookie(header).get(name)
    except CookieError:
        return ""
    return str(found.value) if found else ""


async def _answer(send: Send, scope: Scope, answer: Answer) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    given = {"content-type": "text/plain; charset=utf-8", "cache-control": "no-store", **answer.headers}
    encoded = [(name.encode(), value.encode()) for name, value in given.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": encoded})
    await send({"type": "http.response.body", "body": answer.text.encode()})
