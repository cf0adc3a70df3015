"""Every page in a browser: quiet, inside its window, open to all readers, with keys alone."""

from collections.abc import Callable
from pathlib import Path

import pytest
from browser.axe import barriers
from browser.pages import HOSTILE, HOSTILE_PAGES, PAGES
from playwright.sync_api import Page

OpenPage = Callable[..., Page]
FileOf = Callable[[str], Path]
SCHEMES = {1440: ["light"], 768: ["dark"], 390: ["light", "dark"]}
"""In which colours a page of so many pixels is looked through."""
OUTSIDE = """() => [...document.querySelectorAll(".figure:not(.wide)")].flatMap((box) => {
  const outer = box.getBoundingClientRect();
  return [...box.querySelectorAll(".main-svg, .main-svg text")].filter((part) => {
    const inner = part.getBoundingClientRect();
    return inner.width && (inner.left < outer.left - 1 || inner.right > outer.right + 1
      || inner.top < outer.top - 1 || inner.bottom > outer.bottom + 1);
  }).map((part) => `${box.firstElementChild.id}: ${part.textContent.slice(0, 60)}`);
})"""
MARK_REACHABLE = """() => {
  const all = [...document.querySelectorAll("a[href], button, input, select, summary, [tabindex='0']")];
  return all.filter((one) => one.checkVisibility({ visibilityProperty: true }) && !one.disabled
    && (one.type !== "radio" || one.checked)).map((one, index) => (one.dataset.reachable = String(index)));
}"""


@pytest.fixture(params=PAGES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("width", SCHEMES)
def test_a_page_fits_its_window_and_shuts_nobody_out(
    open_page: OpenPage, file_of: FileOf, name: str, width: int
) -> None:
    page = open_page(file_of(name), width=width)
    assert page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [width, width]
    assert page.evaluate(OUTSIDE) == []
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    for scheme in SCHEMES[width]:
        page.emulate_media(color_scheme=scheme)
        assert barriers(page) == [], scheme
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_keys_alone_reach_everything(open_page: OpenPage, file_of: FileOf, name: str) -> None:
    page = open_page(file_of(name))
    reachable = page.evaluate(MARK_REACHABLE)
    assert reachable
    reached = []
    for _ in reachable:
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.dataset.reachable"))
    assert reached == reachable
    page.locator(".skip").press("Enter")
    assert page.locator("[data-reachable]").first.get_attribute("class") == "skip"
    assert page.evaluate("location.hash") == "#answer"


@pytest.mark.parametrize("name", HOSTILE_PAGES)
def test_hostile_text_stays_text(open_page: OpenPage, file_of: FileOf, name: str) -> None:
    """That no dialog opened and nothing was said on the console is asserted of every page."""
    page = open_page(file_of(name))
    made = "[onerror], [onfocus], [onload], [autofocus], [src=x], [href^=javascript]"
    assert page.locator(made).count() == 0
    assert HOSTILE in page.locator("body").inner_text()
    for point in page.locator(".scatterlayer .points path").all()[:12]:
        point.hover(force=True)
    for link in page.locator("a.zoom").locator("visible=true").all()[:2]:
        link.click()
        assert HOSTILE in page.locator(".viewer .caption").inner_text()
        page.keyboard.press("Escape")
    assert page.locator(made).count() == 0
