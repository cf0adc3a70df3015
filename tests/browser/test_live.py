"""The live report in a real browser: it grows by itself, and moves nothing under a reader's eyes."""

import contextlib
import csv
import io
import json
import shutil
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Error, Page
from test_growing import Clock

from bench.run import Run
from reports import exports
from reports.growing import Growing
from reports.served import served
from reports.trials import read_points

MakeRun = Callable[..., Run]
TOP = "document.getElementById('trials').getBoundingClientRect().top"
SCORED = "Number(document.getElementById('live').dataset.scored)"
ROUNDS = 300


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A phone's window, whose time passes when a test says so; it must say nothing on its console."""
    context = browser.new_context(viewport={"width": 390, "height": 844})
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.clock.install()
    yield page
    context.close()
    assert said == []


def until(page: Page, true: str) -> None:
    """Let the page's time pass until an expression is true: answers of the server come in real time."""
    for _ in range(ROUNDS):
        with contextlib.suppress(Error):  # it is loaded again just now
            page.clock.run_for(3000)
            page.wait_for_timeout(50)
            if page.evaluate(true):
                return
    raise AssertionError(true)


def test_it_grows_while_it_is_read(make_run: MakeRun, page: Page) -> None:
    run, clock = make_run(ending="interrupted", prompts=4), Clock()
    growing = Growing(clock)
    growing.follow(run.path)

    def add_trial(number: int) -> None:
        """Of two scored epochs."""
        shutil.copytree(run.trial_folder(1), run.trial_folder(number))
        clock.now += 1000

    with served(growing, (0,)) as address:
        page.goto(address)
        assert "token" not in page.url
        # A reader is offered what is new, and finds the place again.
        page.evaluate("document.getElementById('trials').scrollIntoView({behavior: 'instant'})")
        page.locator("#trials details").first.evaluate("each => { each.open = true; }")
        before, scored = page.evaluate(TOP), page.evaluate(SCORED)
        add_trial(6)
        until(page, "!document.querySelector('#live button').hidden")
        assert page.locator("#live .says").inner_text() == "2 new scores."
        page.locator("#live button").click()
        until(page, f"{SCORED} === {scored + 2}")
        assert page.evaluate(TOP) == pytest.approx(before, abs=1)
        assert page.locator("#trials details[open]").count() == 1
        # Whoever watches the first lines sees them change.
        page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = false; })")
        page.evaluate("scrollTo({top: 0, behavior: 'instant'})")
        add_trial(7)
        until(page, f"{SCORED} === {scored + 4}")
        growing.end("The search has ended.")
        until(page, "document.querySelector('#live').dataset.over === '1'")
        assert page.locator("#live.over .says").inner_text() == "The search has ended."
    # The page stays, and asks no more.
    table = exports.embedded(run, read_points(run), None)[0].table
    assert table
    columns, *rows = saved(page, "csv")
    assert columns == table["columns"] and len(rows) == len(table["rows"])
    for written, row in zip(rows, table["rows"], strict=True):
        assert [json.dumps(told(cell)) for cell in written] == [json.dumps(told(str(cell))) for cell in row]
    page.clock.run_for(60_000)
    assert page.locator("#live.lost").count() == 0


def test_a_search_that_was_killed_is_said_to_be_gone(make_run: MakeRun, page: Page) -> None:
    growing = Growing()
    growing.follow(make_run(ending="empty").path)
    with served(growing, (0,)) as address:
        page.goto(address)
        # What a server answers that is none; one that is gone would be said on the console.
        page.route("**/version", lambda route: route.fulfill(body="<html>"))
        until(page, "document.querySelector('#live.lost') !== null")
    assert "does not answer" in page.locator("#live .says").inner_text()


def told(cell: str) -> object:
    """What a cell means, whichever language has written it."""
    with contextlib.suppress(ValueError):
        return float(cell)
    return {"": None, "None": None, "True": "true", "False": "false"}.get(cell, cell)


def saved(page: Page, format: str) -> list[list[str]]:
    """The trials as the page itself writes them."""
    with page.expect_download() as download:
        page.locator(f"button[data-table=trials][data-format={format}]").click()
    return list(csv.reader(io.StringIO(download.value.path().read_text(encoding="utf-8"))))
