"""The report of a search while it runs: what is shown when, and to whom."""

import contextlib
import http.client
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from conftest import config_of
from test_reports import Page

from bench.errors import UsageError
from bench.run import Run, end_trial, start_trial
from reports import exports
from reports.growing import PAUSE, SHARE, Growing
from reports.guard import HOST
from reports.served import served

MakeRun = Callable[..., Run]


class Clock:
    """Time that passes when a test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def growing(make_run: MakeRun, clock: Clock) -> Growing:
    """Of an interrupted run."""
    found = Growing(clock)
    found.follow(make_run("runs/one", ending="interrupted").path)
    return found


def run_of(tmp_path: Path) -> Run:
    return Run.open(tmp_path / "runs" / "one")


def add_failure(run: Run, number: int, reason: str = "out of luck") -> None:
    folder = run.trial_folder(number)
    start_trial(folder, config_of(number), "sampled")
    end_trial(folder, "failed", 1.0, reason)


def test_before_there_is_a_run_it_says_so(tmp_path: Path) -> None:
    growing = Growing()
    assert "The search is starting." in growing.page()
    growing.follow(tmp_path / "runs" / "one")
    assert "The search is starting." in growing.page()


def test_what_was_rendered_is_kept_until_something_changes(
    growing: Growing, clock: Clock, tmp_path: Path
) -> None:
    page = growing.page()
    assert "The search is running." in page and growing.status()["version"] in page
    clock.now += 100 * PAUSE
    assert growing.page() is page
    add_failure(run_of(tmp_path), 6)
    assert growing.status()["version"] not in page
    assert "out of luck" in growing.page()


def test_it_is_rendered_seldom(growing: Growing, clock: Clock, tmp_path: Path) -> None:
    page, version = growing.page(), growing.status()["version"]
    add_failure(run_of(tmp_path), 6)
    clock.now += PAUSE / 2
    assert growing.status()["version"] == version and growing.page() is page
    clock.now += PAUSE
    assert growing.status()["version"] != version and growing.page() is not page


def test_a_slow_rendering_is_followed_by_a_long_pause(growing: Growing, tmp_path: Path) -> None:
    ticks = iter([0.0, 0.0, 10.0, 10.0])  # asked, begun, ended, ended
    growing._clock = lambda: next(ticks, 10.0 + 10.0 * SHARE - 1)
    page = growing.page()
    add_failure(run_of(tmp_path), 6)
    assert growing.page() is page


def test_a_damaged_folder_does_not_end_it(growing: Growing, clock: Clock, tmp_path: Path) -> None:
    run = run_of(tmp_path)
    before = (run.path / "run.json").read_text()
    (run.path / "run.json").write_text("<b>{", encoding="utf-8")
    page = Page(growing.page())
    assert "There is no report now." in page.text and "cannot be read" in page.text
    (run.path / "run.json").write_text(before)
    clock.now += PAUSE
    assert "The search is running." in growing.page()


def test_the_last_page_says_that_it_is_the_last(growing: Growing) -> None:
    growing.page()
    growing.end("The search has ended: <b>hf_abcdefghijklmnopqrstuvwxyz012345</b>")
    assert growing.status()["over"] is True
    page = growing.page()  # at once, however lately the last was rendered
    assert 'data-over="1"' in page and "The search has not finished." in page
    assert "has ended: &lt;b&gt;***" in page


def test_nobody_is_waited_for_who_does_not_look(growing: Growing, clock: Clock) -> None:
    growing.page()
    growing.end("over")
    growing.wait_for_readers(1000)  # nobody ever asked
    growing._over = ""
    growing.status()
    growing.wait_for_readers(1000)  # it has not ended
    clock.now += 1001
    growing._over = "over"
    growing.wait_for_readers(1000)  # whoever asked has gone
    growing.status()
    growing.page()
    growing.wait_for_readers(1000)  # has the last page


@pytest.mark.parametrize(
    "name",
    [
        "../two/real/dev/0000.webp",
        "run.json",
        "real",
        "/etc/passwd",
        ".hidden/a.webp",
        "real/dev/none.webp",
        "link.webp",
    ],
)
def test_only_images_and_pages_of_the_run_are_given(
    growing: Growing, make_run: MakeRun, tmp_path: Path, name: str
) -> None:
    make_run("runs/two", ending="empty")
    hidden = tmp_path / "runs" / "one" / ".hidden"
    hidden.mkdir()
    (hidden / "a.webp").touch()
    (hidden.parent / "link.webp").symlink_to(tmp_path / "runs" / "two" / "real" / "dev" / "0000.webp")
    assert growing.file(name) is None
    assert growing.file("real/dev/0000.webp")


# Over real sockets


@pytest.fixture
def address(growing: Growing) -> Iterator[str]:
    with served(growing, (0,)) as found:
        yield found


def ask(address: str, path: str, *, known: bool = True, host: str = "") -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body; `known`: with the cookie of whoever opened the address."""
    parts = urlsplit(address)
    token = parse_qs(parts.query)["token"][0]
    headers = {"Cookie": f"bench-{parts.port}={token}"} if known else {}
    with contextlib.closing(http.client.HTTPConnection(HOST, parts.port, timeout=60)) as connection:
        connection.request("GET", path, headers=headers | ({"Host": host} if host else {}))
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.headers.items()}, answer.read()


def test_the_page_is_for_those_who_have_the_address(address: str) -> None:
    parts = urlsplit(address)
    status, headers, body = ask(address, f"/?{parts.query}", known=False)
    assert (status, headers["location"], body) == (303, "/", b"")
    assert "HttpOnly; SameSite=Strict" in headers["set-cookie"]
    for path in ("/", "/version", "/data/trials.csv", "/real/dev/0000.webp", "/?token=wrong"):
        assert ask(address, path, known=False)[0] == 403
        assert ask(address, path, host=f"evil.example:{parts.port}")[0] == 400
    status, headers, body = ask(address, "/")
    assert (status, headers["cache-control"]) == (200, "no-store") and b"The search is running." in body


def test_the_page_may_ask_its_server_and_no_other(address: str) -> None:
    _, headers, body = ask(address, "/")
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'" and policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'" and "file:" not in policy["img-src"]
    (meta,) = [
        attrs["content"]
        for tag, attrs in Page(body.decode()).tags
        if tag == "meta" and attrs.get("http-equiv")
    ]
    assert meta and f"{meta}; frame-ancestors 'none'" == headers["content-security-policy"]


def test_numbers_images_and_versions_are_given(address: str, growing: Growing, tmp_path: Path) -> None:
    run = run_of(tmp_path)
    assert json.loads(ask(address, "/version")[2]) == growing.status()
    status, headers, body = ask(address, "/data/trials.csv")
    assert (status, body) == (200, exports.content(exports.trials(run), "csv"))
    assert headers["content-disposition"] == 'attachment; filename="trials.csv"'
    status, headers, body = ask(address, "/real/dev/0000.webp")
    assert (status, headers["content-type"]) == (200, "image/webp")
    assert body == (run.path / "real" / "dev" / "0000.webp").read_bytes()


@pytest.mark.parametrize(
    "path",
    ["/nothing", "/data/none.csv", "/data/trials.exe", "/%2e%2e/two/run.json", "/run.json", "/%00.webp"],
)
def test_nothing_else_is_given(address: str, path: str) -> None:
    assert ask(address, path)[0] == 404


def test_a_port_in_use_is_left_for_another(growing: Growing) -> None:
    with contextlib.closing(socket.create_server((HOST, 0))) as taken:
        port = taken.getsockname()[1]
        with served(growing, (port, 0)) as address:
            assert urlsplit(address).port != port and ask(address, "/version")[0] == 200
        with pytest.raises(UsageError, match="--live: no port"), served(growing, (port,)):
            pass


def test_a_browser_that_goes_away_is_no_trouble(address: str, capfd: pytest.CaptureFixture[str]) -> None:
    parts = urlsplit(address)
    for said in (b"", b"GET / HTTP/1.1\r\n", b"\x00\xff\r\n\r\n"):
        with contextlib.closing(socket.create_connection((HOST, parts.port or 0))) as leaving:
            leaving.sendall(said)
    assert ask(address, "/version")[0] == 200
    assert capfd.readouterr() == ("", "")


def test_other_addresses_of_the_machine_do_not_answer(address: str) -> None:
    with contextlib.closing(socket.socket()) as asking, pytest.raises(OSError):
        asking.connect(("127.0.0.2", urlsplit(address).port))


def test_it_ends_with_the_search(growing: Growing) -> None:
    with pytest.raises(KeyboardInterrupt), served(growing, (0,)) as address:
        raise KeyboardInterrupt
    with pytest.raises(ConnectionRefusedError):
        ask(address, "/version")
