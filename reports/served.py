"""Serves a growing report to this machine alone, to whoever has the address, by the standard library.

GET /                       the page
GET /version                whether there is a newer one: `Growing.status` as JSON
GET /data/NAME.FORMAT       the frames of `reports/exports.py`, as they are now
GET /….webp, /….html        files of the run folder that the page links to
"""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from bench.errors import UsageError
from reports import exports
from reports.growing import SERVED, Growing
from reports.guard import HOST, Asking, address, new_token, protection, refusal
from reports.page import live_policy

PORTS = (7861, 0)
"""The first if it is free, so that a tunnel finds it; else any."""
FAREWELL = 10.0
"""Seconds that an ended search waits for a browser to fetch the last page, if one is looking."""
POLICY = live_policy() + "; frame-ancestors 'none'"
"""In a header; the page itself says all but the last."""
STALLED = 60
"""Seconds after which a browser that reads nothing is given up."""
TEXT = "text/plain; charset=utf-8"
TYPES: dict[exports.Format, str] = {
    "csv": "text/csv; charset=utf-8",
    "json": "application/json",
    "parquet": "application/vnd.apache.parquet",
}


class Content(NamedTuple):
    kind: str
    """Its media type."""
    body: bytes
    attached: str = ""
    """The name of a file that is to be saved."""


@contextmanager
def served(growing: Growing, ports: tuple[int, ...] = PORTS) -> Iterator[str]:
    """Serve until the end of the context; gives the address. Raises UsageError if no port can be had."""
    server = _bound(growing, ports)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True)
    thread.start()
    try:
        yield address(server.server_port, server.token)
    finally:
        growing.wait_for_readers(FAREWELL)
        server.shutdown()
        server.server_close()


def _bound(growing: Growing, ports: tuple[int, ...]) -> "_Server":
    problem: OSError | None = None
    for port in ports:
        try:
            return _Server(port, growing)
        except OSError as error:
            problem = error
    raise UsageError(f"--live: no port to serve the report at: {problem}")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a browser that is slow keeps no search from ending

    def __init__(self, port: int, growing: Growing) -> None:
        self.growing, self.token = growing, new_token()
        super().__init__((HOST, port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is none; the display of the search stays whole."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            logging.getLogger(__name__).error("bench: the live report: %r", error)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version, sys_version = "bench", ""
    timeout = STALLED

    def do_GET(self) -> None:
        path, query = urlsplit(self.path).path, urlsplit(self.path).query
        if refused := refusal(self.server.token, Asking.of(path, query, self.headers.get)):
            self._send(
                refused.status, Content("text/plain; charset=utf-8", refused.text.encode()), refused.headers
            )
        elif found := content(self.server.growing, unquote(path)):
            self._send(200, found, {})
        else:
            self._send(404, Content(TEXT, b"There is no such thing here.\n"), {})

    def _send(self, status: int, found: Content, headers: dict[str, str]) -> None:
        given = {
            "content-type": found.kind,
            "content-length": str(len(found.body)),
            "cache-control": "no-store",
        }
        if found.attached:
            given["content-disposition"] = f'attachment; filename="{found.attached}"'
        self.send_response(status)
        for name, value in (given | protection(POLICY) | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(found.body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal is the search's."""


def content(growing: Growing, path: str) -> Content | None:
    """What is at a path of the address; None if nothing is."""
    if path in ("/", "/report.html"):  # the second is where pages of trials lead
        return Content("text/html; charset=utf-8", growing.page().encode())
    if path == "/version":
        return Content("application/json", json.dumps(growing.status()).encode())
    if path == "/favicon.ico":  # every browser asks
        return Content("image/x-icon", b"")
    file = path.removeprefix("/")
    for name in exports.FRAMES:
        for format, kind in TYPES.items():
            if file == f"{exports.FOLDER}/{name}.{format}":
                body = growing.data(name, format)
                return Content(kind, body, f"{name}.{format}") if body is not None else None
    with suppress(OSError, ValueError):
        if found := growing.file(file):
            return Content(SERVED[found.suffix], found.read_bytes())
    return None
