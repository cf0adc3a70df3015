"""Reports of searches in every state in a browser: each renders, says what it is, and stays small."""

import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from browser.pages import MakeRun
from PIL import Image
from playwright.sync_api import Page, expect

from bench.run import Run
from reports import search
from reports.images import THUMBNAIL_PIXELS

OpenPage = Callable[..., Page]
MAX_BYTES = 15_000_000


def repeat(run: Run, trials: int) -> None:
    """Give a finished run more trials, which did as those before them did."""
    known = [trial for trial in run.trials() if trial.state == "complete"]
    for number in range(len(run.trials()), trials):
        shutil.copytree(known[number % len(known)].path, run.trial_folder(number), copy_function=os.link)


def fill(run: Run, pixels: int) -> None:
    """Put noise, which no compression makes small, in the place of every image of a run."""
    rng = np.random.default_rng(0)
    files = [run.path.with_name(f"noise-{index}.webp") for index in range(12)]
    for file in files:
        Image.fromarray(rng.integers(0, 255, (pixels, pixels, 3), np.uint8)).save(file, quality=90)
    images = [*run.path.rglob("*.webp")]
    for image, file in zip(images, itertools.cycle(files), strict=False):
        image.unlink()
        os.link(file, image)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("search", "Trial 2 wins."),
        ("search, interrupted", "The search has not finished."),
        ("search, only failures", "Every trial failed."),
        ("search, empty", "Nothing has been tried yet."),
    ],
)
def test_a_report_says_what_became_of_the_search(
    open_page: OpenPage, file_of: Callable[[str], Path], name: str, said: str
) -> None:
    page = open_page(file_of(name))
    expect(page.get_by_role("heading", name=said)).to_be_visible()
    for link in page.locator("nav.sections a").all():
        assert page.locator(link.get_attribute("href") or "").count() == 1


def test_a_hundred_trials_with_large_images_stay_small(open_page: OpenPage, keep_run: MakeRun) -> None:
    run = keep_run("large", trials=12, prompts=24)
    repeat(run, 100)
    fill(run, THUMBNAIL_PIXELS)  # larger ones take longer to read and are scaled down to this
    file = search.write(run)
    assert file.stat().st_size < MAX_BYTES
    page = open_page(file)
    assert page.locator("table.trials tbody tr").count() > 100
    assert page.locator(".gallery .prompt").count() > 5
    expect(page.get_by_text("prompts are shown, to keep this file small").first).to_be_visible()


def test_two_hundred_trials_are_all_there(open_page: OpenPage, keep_run: MakeRun) -> None:
    file = search.write(keep_run("many", trials=200, prompts=4))
    assert file.stat().st_size < MAX_BYTES
    page = open_page(file, width=768)
    trials = page.locator("table.trials tbody tr th").all_inner_texts()
    assert {text.split()[0] for text in trials} == {str(number) for number in range(200)}
    assert page.evaluate("document.documentElement.scrollWidth") == 768
