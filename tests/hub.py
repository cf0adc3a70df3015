"""A small stand-in of the Hub, over HTTP on 127.0.0.1: what uploads through the Hub's libraries ask for.

It keeps repositories in memory, checks tokens, and takes regular and LFS files, but not the Xet protocol.
`hub.environment(…)` leads a process to it.
"""

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LFS_SUFFIXES = {".parquet", ".safetensors", ".png", ".jpg", ".webp"}
REPO = r"(?P<id>[\w.-]+/[\w.-]+)"
API = rf"/api/(?P<type>model|dataset|space)s/{REPO}"
FILES = rf"/(?P<type>datasets/|spaces/|){REPO}"


@dataclass
class Repo:
    """A repository: its files, as they are after the last commit."""

    private: bool
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b""})
    messages: list[str] = field(default_factory=lambda: ["initial commit"])

    @property
    def sha(self) -> str:
        return hashlib.sha1(f"{len(self.messages)}{self.messages[-1]}".encode()).hexdigest()


@dataclass
class Hub:
    """Everything it knows, to be arranged and asserted on by tests."""

    endpoint: str = ""
    token: str = "hf_" + "s3cretT0ken" * 3
    """That of the user `someone`, who may write to their own namespace only."""
    repos: dict[tuple[str, str], Repo] = field(default_factory=dict)
    """By type (`model`, `dataset`) and id."""
    objects: dict[str, bytes] = field(default_factory=dict)
    """LFS files by sha256."""
    requests: list[str] = field(default_factory=list)
    """Method and path of each, in order."""
    broken: re.Pattern[str] | None = None
    """Requests that match it break the connection off."""

    def environment(self, home: Path, token: str | None) -> dict[str, str]:
        """For a process that is to meet this Hub and no other, with its own home."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        given = {"HF_TOKEN": token} if token else {}
        return {
            **kept,
            **given,
            "HF_HOME": str(home),
            "HF_ENDPOINT": self.endpoint,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }


@contextmanager
def serving() -> Iterator[Hub]:
    """The Hub on a free port of 127.0.0.1."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


@dataclass
class Call:
    """One request, and what answers it."""

    hub: Hub
    parts: dict[str, str]
    query: dict[str, list[str]]
    body: bytes
    is_user: bool

    @property
    def type(self) -> str:
        return self.parts["type"].rstrip("/").removesuffix("s") or "model"

    def json(self) -> Any:
        return json.loads(self.body)

    def repo(self) -> Repo:
        repo = self.hub.repos.get((self.type, self.parts["id"]))
        if repo is None or (repo.private and not self.is_user):
            raise Refused(404, "Repository Not Found", "RepoNotFound")
        return repo

    def writable(self) -> Repo:
        self.check_owner(self.parts["id"].partition("/")[0])
        return self.repo()

    def check_owner(self, owner: str) -> None:
        if not self.is_user:
            raise Refused(401, "Invalid credentials in Authorization header")
        if owner != "someone":
            raise Refused(403, f"You don't have the rights to create or write under the namespace {owner!r}")


def who(call: Call) -> Any:
    call.check_owner("someone")
    return {"type": "user", "name": "someone", "orgs": []}


def create(call: Call) -> Any:
    asked = call.json()
    call.check_owner(asked.get("organization") or "someone")
    key = asked.get("type", "model"), f"{asked.get('organization') or 'someone'}/{asked['name']}"
    url = f"{call.hub.endpoint}/{'datasets/' if key[0] == 'dataset' else ''}{key[1]}"
    if key in call.hub.repos:
        raise Refused(409, f"You already created this {key[0]} repo: {key[1]}")
    call.hub.repos[key] = Repo(private=asked.get("visibility") == "private" or bool(asked.get("private")))
    return {"url": url, "name": key[1]}


def info(call: Call) -> Any:
    repo = call.repo()
    siblings = [{"rfilename": name} for name in repo.files]
    return {
        "id": call.parts["id"],
        "sha": repo.sha,
        "private": repo.private,
        "siblings": siblings,
        "tags": [],
    }


def validate_yaml(call: Call) -> Any:
    return {"errors": [], "warnings": []}


def preupload(call: Call) -> Any:
    call.writable()
    names = [file["path"] for file in call.json()["files"]]
    modes = ["lfs" if Path(name).suffix in LFS_SUFFIXES else "regular" for name in names]
    return {
        "files": [
            {"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": None}
            for name, mode in zip(names, modes, strict=True)
        ]
    }


def lfs_batch(call: Call) -> Any:
    call.writable()
    verify = {"href": f"{call.hub.endpoint}/lfs-verify"}
    return {
        "transfer": "basic",
        "objects": [
            {
                **asked,
                "actions": {"upload": {"href": f"{call.hub.endpoint}/lfs/{asked['oid']}"}, "verify": verify},
            }
            for asked in call.json()["objects"]
        ],
    }


def lfs_put(call: Call) -> Any:
    if hashlib.sha256(call.body).hexdigest() != call.parts["oid"]:
        raise Refused(400, "not what its name says")
    call.hub.objects[call.parts["oid"]] = call.body
    return {}


def lfs_verify(call: Call) -> Any:
    if len(call.hub.objects[call.json()["oid"]]) != call.json()["size"]:
        raise Refused(400, "not whole")
    return {}


def commit(call: Call) -> Any:
    repo = call.writable()
    lines = [json.loads(line) for line in call.body.splitlines()]
    files = dict(repo.files)
    for value in (line["value"] for line in lines if line["key"] == "file"):
        files[value["path"]] = base64.b64decode(value["content"])
    for value in (line["value"] for line in lines if line["key"] == "lfsFile"):
        files[value["path"]] = call.hub.objects[value["oid"]]
    for value in (line["value"] for line in lines if line["key"].startswith("deleted")):
        files = {name: data for name, data in files.items() if not name.startswith(value["path"])}
    repo.files = files
    repo.messages.append(lines[0]["value"]["summary"])
    url = f"{call.hub.endpoint}/{call.parts['id']}/commit/{repo.sha}"
    return {"success": True, "commitOid": repo.sha, "commitUrl": url, "hookOutput": ""}


def tree(call: Call) -> Any:
    repo, top = call.repo(), unquote(call.parts["path"] or "").strip("/")
    below = [name for name in repo.files if not top or name.startswith(f"{top}/")]
    if top and not below:
        raise Refused(404, "Entry not found", "EntryNotFound")
    entries = {}
    for name in below:
        rest = name.removeprefix(f"{top}/") if top else name
        for folder in list(Path(rest).parents)[:-1]:
            path = f"{top}/{folder.as_posix()}".strip("/")
            entries[path] = {"type": "directory", "path": path, "oid": _oid(path.encode()), "size": 0}
        entries[name] = _entry(name, repo.files[name])
    recursive = "true" in [value.lower() for value in call.query.get("recursive", [])]
    depth = top.count("/") + 1 if top else 0
    return [entry for path, entry in entries.items() if recursive or path.count("/") == depth]


def paths_info(call: Call) -> Any:
    repo = call.repo()
    asked = parse_qs(call.body.decode()).get("paths", [])
    found = [_entry(path, repo.files[path]) for path in asked if path in repo.files]
    folders = [path for path in asked if any(name.startswith(f"{path}/") for name in repo.files)]
    return found + [{"type": "directory", "path": path, "oid": _oid(path.encode())} for path in folders]


def resolve(call: Call) -> bytes:
    repo, path = call.repo(), unquote(call.parts["path"])
    if path not in repo.files:
        raise Refused(404, "Entry not found", "EntryNotFound")
    return repo.files[path]


ROUTES: list[tuple[str, str, Callable[[Call], Any]]] = [
    ("GET", r"/api/whoami-v2", who),
    ("POST", r"/api/repos/create", create),
    ("POST", r"/api/validate-yaml", validate_yaml),
    ("GET", rf"{API}(/revision/[^/]+)?", info),
    ("GET", rf"{API}/tree/[^/]+(?P<path>/.*)?", tree),
    ("POST", rf"{API}/paths-info/[^/]+", paths_info),
    ("POST", rf"{API}/preupload/[^/]+", preupload),
    ("POST", rf"{API}/commit/[^/]+", commit),
    ("POST", rf"{FILES}\.git/info/lfs/objects/batch", lfs_batch),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", lfs_put),
    ("POST", r"/lfs-verify", lfs_verify),
    ("GET", rf"{FILES}/resolve/[^/]+/(?P<path>.+)", resolve),
]


def _route(method: str, path: str) -> tuple[re.Match[str], Callable[[Call], Any]]:
    for verb, pattern, answer in ROUTES:
        if verb == method and (match := re.fullmatch(pattern, path)):
            return match, answer
    raise Refused(404, f"the stand-in knows no {method} {path}")


def _entry(path: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": _oid(data)}
    if Path(path).suffix in LFS_SUFFIXES:
        sha256 = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 134}
    return entry


def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer("GET")

    def do_HEAD(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def _answer(self, method: str) -> None:
        body = self._body()
        url = urlsplit(self.path)
        self.hub.requests.append(f"{self.command} {url.path}")
        if self.hub.broken and self.hub.broken.search(self.hub.requests[-1]):
            self.close_connection = True
            return
        try:
            match, answer = _route(method, url.path)
            is_user = self.headers.get("Authorization") == f"Bearer {self.hub.token}"
            query = parse_qs(url.query)
            call = Call(hub=self.hub, parts=match.groupdict(), query=query, body=body, is_user=is_user)
            self._send(200, answer(call))
        except Refused as refused:
            self._send(refused.status, {"error": str(refused)}, str(refused), refused.code)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _send(self, status: int, answer: Any, error: str = "", code: str = "") -> None:
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/json")
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", f'"{_oid(data)}"')
        if error:
            self.send_header("X-Error-Message", error)
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: `requests` is the log."""
