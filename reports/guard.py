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
from typing import Any
from urllib.parse import parse_qs

HOST = "127.0.0.1"
NAMES = (HOST, "localhost")
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Guard:
    """An ASGI application in front of another."""

    application: Application
    policy: str
    """The Content-Security-Policy of every answer."""
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)

    def address(self, port: int) -> str:
        """To be opened by whoever may see the page."""
        return f"http://{HOST}:{port}/?token={self.token}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.application(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        name, _, port = headers.get("host", "").partition(":")
        cookie = f"bench-{port}"  # a browser sends a cookie to every port of a host
        if name not in NAMES:
            await _answer(send, scope, 400, f"{HOST} and localhost alone are served\n")
        elif self._is_known(_cookie(headers.get("cookie", ""), cookie)):
            await self.application(scope, receive, self._with_policy(send))
        elif self._is_known(_asked(scope)):
            kept = f"{cookie}={self.token}; HttpOnly; SameSite=Strict; Path=/"
            await _answer(send, scope, 303, "", location=scope["path"], **{"set-cookie": kept})
        else:
            await _answer(send, scope, 403, "Open the whole address that bench has printed.\n")

    def _is_known(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), self.token.encode())

    def _with_policy(self, send: Send) -> Send:
        async def sending(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_headers(self.policy)]
            await send(message)

        return sending


def _headers(policy: str) -> list[tuple[bytes, bytes]]:
    return [
        (b"content-security-policy", policy.encode()),
        (b"referrer-policy", b"no-referrer"),
        (b"x-content-type-options", b"nosniff"),
    ]


def _cookie(header: str, name: str) -> str:
    try:
        found = SimpleCookie(header).get(name)
    except CookieError:
        return ""
    return str(found.value) if found else ""


def _asked(scope: Scope) -> str:
    """The token in the address."""
    query: bytes = scope["query_string"]
    return parse_qs(query.decode("latin-1")).get("token", [""])[0]


async def _answer(send: Send, scope: Scope, status: int, text: str, **headers: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    given = {"content-type": "text/plain; charset=utf-8", "cache-control": "no-store", **headers}
    encoded = [(name.encode(), value.encode()) for name, value in given.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": text.encode()})
