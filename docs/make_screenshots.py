"""The pictures of the README, from a finished run: python docs/make_screenshots.py runs/default

Needs playwright and Chromium, as the tests of the pages do.
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

FOLDER = Path(__file__).parent / "images"
WIDE, PHONE = (1280, 800), (390, 844)


def main() -> None:
    report = Path(sys.argv[1]).resolve() / "report.html"
    FOLDER.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        answer(opened(browser, report, WIDE, "light"))
        slider(opened(browser, report, WIDE, "light"))
        tradeoffs(opened(browser, report, WIDE, "light"))
        keep(opened(browser, report, PHONE, "dark"), "phone")
        browser.close()


def opened(browser: Browser, report: Path, size: tuple[int, int], scheme: str) -> Page:
    viewport = {"width": size[0], "height": size[1]}
    context = browser.new_context(viewport=viewport, color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(report.as_uri())
    return page


def answer(page: Page) -> None:
    keep(page, "answer")


def slider(page: Page) -> None:
    """Base and winner of a prompt under the slider."""
    page.locator(".gallery .cell.winner a.zoom").nth(4).click()
    page.get_by_label("Slide from left to right").fill("52")
    keep(page, "slider")


def tradeoffs(page: Page) -> None:
    """The card of the winner's point."""
    page.locator("#tradeoffs").evaluate("section => section.scrollIntoView()")
    point = page.locator("#figure-tradeoff-2 .point").last
    point.wait_for()
    box = point.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.locator(".card").wait_for()
    keep(page, "tradeoffs")


def keep(page: Page, name: str) -> None:
    picture = Image.open(io.BytesIO(page.screenshot()))
    picture.save(FOLDER / f"{name}.webp", "WEBP", quality=84, method=6)


if __name__ == "__main__":
    main()
