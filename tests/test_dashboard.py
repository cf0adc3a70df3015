"""optuna-dashboard on the study of a run: the real package, asked over real sockets."""

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from bench.errors import MissingError, UsageError
from bench.files import write_json
from bench.run import Run
from bench.searcher import open_study
from bench.shared import place_of
from reports.guard import HOST

pytest.importorskip("optuna_dashboard")
MakeRun = Callable[..., Run]


@pytest.fixture
def address(make_run: MakeRun, tmp_path: Path) -> Iterator[str]:
    """Of `bench dashboard one`, until it is interrupted."""
    run = make_run("runs/one")
    open_study(run.path / "study.db", run.metadata.name, run.space)
    command = [sys.executable, "-m", "bench", "dashboard", "one", "--port", "0"]
    path = os.pathsep.join(
        filter(None, [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    )
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout and process.stderr
    with process:
        line = process.stdout.readline()
        found = re.search(r"http://\S+(?=;)", line)
        assert found, line + process.stderr.read()
        yield found.group()
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (0, "Stopped.\n", "")


def test_it_shows_the_study_to_those_who_have_the_address(address: str) -> None:
    parts = urlsplit(address)
    token = parse_qs(parts.query)["token"][0]
    assert (parts.hostname, parts.path) == (HOST, "/dashboard/studies/1")

    def ask(path: str, **headers: str) -> tuple[int, str, bytes]:
        with contextlib.closing(http.client.HTTPConnection(HOST, parts.port, timeout=60)) as connection:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, str(answer.headers), answer.read()

    status, headers, _ = ask(f"{parts.path}?{parts.query}")
    assert status == 303 and f"location: {parts.path}\n" in headers and "HttpOnly" in headers
    cookie = f"bench-{parts.port}={token}"
    status, headers, body = ask("/api/studies", Cookie=cookie)
    (study,) = json.loads(body)["study_summaries"]
    assert (status, study["study_name"], study["study_id"]) == (200, "one", 1)
    assert "frame-ancestors 'none'" in headers and "no-referrer" in headers
    assert ask(parts.path, Cookie=cookie)[0] == 200
    assert [ask("/api/studies")[0], ask("/api/studies", Cookie=cookie, Host="evil.example")[0]] == [403, 400]


def test_a_run_without_a_study_says_so(make_run: MakeRun) -> None:
    with pytest.raises(MissingError, match="study.db: no such file"):
        place_of(make_run(), None)


def test_a_shared_study_is_opened_where_it_is(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()

    def record(storage: str) -> None:
        write_json(run.path / "shared.json", {"storage": storage, "artifacts": "a", "owner": "o"})

    record("postgresql://me@host/db")
    with pytest.raises(UsageError, match="give it as --storage"):
        place_of(run, None)
    assert place_of(run, "postgresql://me@host/db?sslmode=require").url.endswith("require")
    with pytest.raises(UsageError, match=r"its study is in postgresql://me@host/db, not in sqlite:///a\.db"):
        place_of(run, "sqlite:///a.db")
    record("postgresql://me:***@host/db")
    with pytest.raises(UsageError, match="give it as --storage"):
        place_of(run, None)
    assert place_of(run, "postgresql://me:secret@host/db").url == "postgresql://me:secret@host/db"
