"""`bench search --live`: a real search on a tiny SDXL, and someone who looks on."""

import contextlib
import http.client
import io
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from rich.console import Console
from small_space import SMALL

from bench import cli
from bench.errors import BenchError
from bench.session import Command, Engine
from bench.space import load_space
from trainers.adapters import attach
from trainers.loop import train

EVERY = 0.5
"""Seconds between two questions."""


@pytest.fixture
def command(tmp_path: Path, tiny_sdxl: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump({**SMALL, "name": "small", "base": str(tiny_sdxl), "trials": 2}))
    return Command(
        space=load_space(str(file)),
        name=None,
        folder=tmp_path / "runs",
        seed=0,
        engine=Engine(train=train, attach=attach),
        console=Console(file=io.StringIO(), width=200),
    )


def address_in(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    end = time.monotonic() + 60
    while not (found := re.search(r"Live report: (\S+)\n", console.file.getvalue())):
        assert time.monotonic() < end
        time.sleep(EVERY)
    return found[1]


def pages_of(console: Console) -> list[str]:
    """What a browser shows until there is no more: it loads the page where its version has changed."""
    parts = urlsplit(address_in(console))
    cookie = f"bench-{parts.port}={parse_qs(parts.query)['token'][0]}"

    def ask(path: str) -> str:
        with contextlib.closing(
            http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=60)
        ) as connection:
            connection.request("GET", path, headers={"Cookie": cookie})
            return connection.getresponse().read().decode()

    pages = [ask("/")]
    while 'data-over="1"' not in pages[-1]:
        time.sleep(EVERY)
        status = json.loads(ask("/version"))
        if f'data-version="{status["version"]}"' not in pages[-1]:
            pages.append(ask("/"))
    return pages


def test_a_search_is_seen_until_it_has_ended(command: Command) -> None:
    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(pages_of, command.console)
        cli._search_live(command)
        pages = looking.result()
    report = command.folder / "small" / "report.html"
    assert report.exists() and (command.folder / "small" / "data" / "trials.parquet").exists()
    assert f"The search has ended. This page is now {report}." in pages[-1]
    assert 'id="scores"' in pages[-1] and "connect-src" not in report.read_text(encoding="utf-8")


def test_a_search_that_cannot_begin_ends_the_server_too(command: Command, tmp_path: Path) -> None:
    (tmp_path / "runs" / "small").mkdir(parents=True)
    (tmp_path / "runs" / "small" / "run.json").write_text("{")
    with pytest.raises(BenchError, match=r"run\.json"):
        cli._search_live(command)
    with pytest.raises(ConnectionRefusedError):
        http.client.HTTPConnection(str(urlsplit(address_in(command.console)).netloc)).connect()
