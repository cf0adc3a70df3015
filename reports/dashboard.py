"""optuna-dashboard on the study of a run, served to this machine alone, to whoever has the address.

Its pages can change and delete what they show, so they are guarded like those of `bench try`.
"""

import wsgiref.simple_server
from collections.abc import Callable, Iterable
from functools import partial
from http import HTTPStatus
from importlib.util import find_spec
from socketserver import ThreadingMixIn
from typing import Any

from bench.errors import MissingError, UsageError
from reports.guard import HOST, Asking, address, new_token, protection, refusal

POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'; form-action 'self'"
)
"""Its own scripts need that; nothing is loaded from elsewhere."""
Respond = Callable[..., Any]
Application = Callable[[dict[str, Any], Respond], Iterable[bytes]]


def refuse_missing() -> None:
    """Raises MissingError without optuna-dashboard."""
    if find_spec("optuna_dashboard") is None:
        raise MissingError(
            "bench dashboard: optuna-dashboard is not installed; get it with: pip install optuna-dashboard"
        )


def serve(storage: Any, name: str, port: int, on_start: Callable[[str], None]) -> None:
    """Serve the study `name` of an Optuna storage until Ctrl-C; `on_start` is told the address.

    Raises UsageError for a port in use, MissingError for a study that is not there.
    """
    from optuna_dashboard import wsgi

    try:
        number = storage.get_study_id_from_name(name)
    except KeyError:
        raise MissingError(f"{name}: no such study in the database") from None
    token = new_token()
    with _bound(port) as server:
        server.set_app(guarded(wsgi(storage), token))
        on_start(address(server.server_port, token, f"/dashboard/studies/{number}"))
        server.serve_forever(poll_interval=0.2)


def guarded(application: Application, token: str) -> Application:
    """The application for those who know the token."""

    def asked(environ: dict[str, Any], respond: Respond) -> Iterable[bytes]:
        query, path = environ.get("QUERY_STRING", ""), environ.get("PATH_INFO", "/")
        refused = refusal(token, Asking.of(path, query, partial(_header, environ)))
        if refused is None:
            return application(environ, _protected(respond))
        phrase = f"{refused.status} {HTTPStatus(refused.status).phrase}"
        respond(phrase, [("content-type", "text/plain; charset=utf-8"), *refused.headers.items()])
        return [refused.text.encode()]

    return asked


def _header(environ: dict[str, Any], name: str) -> str | None:
    return environ.get(f"HTTP_{name.upper().replace('-', '_')}")


def _protected(respond: Respond) -> Respond:
    def responding(status: str, headers: list[tuple[str, str]], *error: Any) -> Any:
        return respond(status, [*headers, *protection(POLICY).items()], *error)

    return responding


def _bound(port: int) -> "_Server":
    try:
        return _Server((HOST, port), _Handler)
    except OSError as error:
        raise UsageError(f"--port {port}: {error.strerror or error}; give another") from None


class _Server(ThreadingMixIn, wsgiref.simple_server.WSGIServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is none."""


class _Handler(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: addresses say what is looked at."""
