"""What this machine serves, asked over real sockets: who is let in, and what every answer carries."""

import contextlib
import http.client
import socket
import threading
from collections.abc import Iterator
from http.cookiejar import CookieJar
from urllib.request import HTTPCookieProcessor, build_opener

import pytest

from reports.guard import HOST, Guard, Receive, Scope, Send

uvicorn = pytest.importorskip("uvicorn")
POLICY = "default-src 'self'"


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """What is guarded: says which path was asked."""
    if scope["type"] == "lifespan":
        for state in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{state}.complete"})
        return
    assert scope["type"] == "http", "only what is let in comes here"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-mine", b"1")]})
    await send({"type": "http.response.body", "body": f"secret {scope['path']}".encode()})


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[int, Guard]]:
    """The port, and the Guard at it."""
    guard = Guard(application=application, policy=POLICY)
    listening = socket.create_server((HOST, 0))
    server = uvicorn.Server(uvicorn.Config(guard, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield listening.getsockname()[1], guard
    server.should_exit = True
    thread.join()
    listening.close()


def ask(port: int, path: str = "/", host: str | None = None, **headers: str) -> tuple[int, str]:
    """The status of the answer, and all that it says."""
    with contextlib.closing(http.client.HTTPConnection(HOST, port, timeout=60)) as connection:
        named = {"Host": f"{HOST}:{port}" if host is None else host}
        connection.request("GET", path, headers=named | headers)
        answer = connection.getresponse()
        return answer.status, f"{answer.headers}{answer.read().decode()}"


def test_a_browser_that_opens_the_address_is_let_in(served: tuple[int, Guard]) -> None:
    port, guard = served
    jar = CookieJar()
    with build_opener(HTTPCookieProcessor(jar)).open(guard.address(port), timeout=60) as answer:
        assert (answer.status, answer.read(), answer.url) == (200, b"secret /", f"http://{HOST}:{port}/")
        assert answer.headers["Content-Security-Policy"] == POLICY
        assert answer.headers["Referrer-Policy"] == "no-referrer" and answer.headers["X-Mine"] == "1"
    (cookie,) = jar
    assert cookie.has_nonstandard_attr("HttpOnly")
    assert cookie.get_nonstandard_attr("SameSite") == "Strict"


@pytest.mark.parametrize(
    "cookie",
    [
        "",
        "bench-{port}=wrong",
        "bench-{port}=",
        "bench-1={token}",
        "x={token}",
        "bench-{port}=\xe4",
        "=;;=",
        "[]=x",
    ],
)
def test_whoever_lacks_the_token_is_refused(served: tuple[int, Guard], cookie: str) -> None:
    port, guard = served
    status, said = ask(port, "/any", Cookie=cookie.format(port=port, token=guard.token))
    assert (status, "secret" in said, guard.token in said) == (403, False, False)


@pytest.mark.parametrize(
    "query", ["", "?token=", "?token=wrong", "?Token={token}", "?x={token}", "?token=%ff"]
)
def test_another_token_in_the_address_is_refused(served: tuple[int, Guard], query: str) -> None:
    port, guard = served
    assert ask(port, f"/{query.format(token=guard.token)}")[0] == 403


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example", "", "0.0.0.0"]
)
def test_another_host_name_is_refused_even_with_the_token(served: tuple[int, Guard], host: str) -> None:
    port, guard = served
    status, said = ask(port, "/", host.format(port=port), Cookie=f"bench-{port}={guard.token}")
    assert (status, "secret" in said) == (400, False)


@pytest.mark.parametrize(
    "header",
    [{"Sec-Fetch-Site": "same-site"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://127.0.0.1:9"}],
)
def test_pages_of_another_port_are_refused_even_with_the_cookie(
    served: tuple[int, Guard], header: dict[str, str]
) -> None:
    port, guard = served
    status, said = ask(port, "/", Cookie=f"bench-{port}={guard.token}", **header)
    assert (status, "secret" in said) == (403, False)
    own = {"Sec-Fetch-Site": "same-origin", "Origin": f"http://{HOST}:{port}"}
    assert ask(port, "/", Cookie=f"bench-{port}={guard.token}", **own)[0] == 200


def test_websockets_are_refused_alike(served: tuple[int, Guard]) -> None:
    port, _ = served
    headers = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    status, said = ask(port, "/ws", **headers, **{"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="})
    assert (status, "secret" in said) == (403, False)


def test_other_addresses_of_the_machine_do_not_answer(served: tuple[int, Guard]) -> None:
    port, _ = served
    with contextlib.closing(socket.socket()) as asking:
        with pytest.raises(OSError):
            asking.connect(("127.0.0.2", port))


def test_every_guard_has_a_token_of_its_own() -> None:
    tokens = {Guard(application=application, policy=POLICY).token for _ in range(9)}
    assert len(tokens) == 9 and min(map(len, tokens)) >= 40
    assert tokens.isdisjoint(repr(Guard(application=application, policy=POLICY, token=t)) for t in tokens)
