"""Debian's Chromium without a window, driven by playwright: one for all tests of a file."""

import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser.pages import PAGES, MakeRun
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ALLOWED = ("file://", "data:image/", "blob:")
DRAWN = """() => [...document.querySelectorAll("script.figure-data")].every((source) => {
  const box = document.getElementById(source.dataset.for);
  return !box || box.querySelector(".main-svg");
})"""


@pytest.fixture(scope="module")  # no longer: while it runs, no other test of the process can use asyncio
def browser() -> Iterator[Browser]:
    if not CHROMIUM:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--no-first-run"]
        )
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """`open_page(file, width=390, color_scheme="dark", ...)`: the page once its figures are drawn.

    Keywords are playwright's of a context. That the page says nothing on the console, raises nothing, opens
    no dialog and loads nothing but files, and those all, is asserted of every page when its test ends.
    """
    said: list[str] = []
    contexts = []

    def open_one(file: Path, *, width: int = 1440, **options: Any) -> Page:
        options = {"viewport": {"width": width, "height": 900}, "reduced_motion": "reduce", **options}
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("requestfailed", lambda request: said.append(f"failed: {request.url[:200]}"))
        page.on("request", lambda request: request.url.startswith(ALLOWED) or said.append(request.url))
        page.goto(file.as_uri())
        if options.get("java_script_enabled", True):
            page.wait_for_function(DRAWN)
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert said == []


@pytest.fixture(scope="session")
def file_of(keep_run: MakeRun) -> Callable[[str], Path]:
    """`file_of("search")`: the file of an entry of PAGES, written once."""
    return functools.cache(lambda name: PAGES[name](keep_run))
