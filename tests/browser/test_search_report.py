"""The report of a search in a browser: what its readers press, drag and type does what it says."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from browser.axe import barriers
from browser.pages import MakeRun, finished
from playwright.sync_api import Locator, Page, expect

OpenPage = Callable[..., Page]
FIRST_POINT = """() => {
  const path = document.querySelector("#figure-tradeoff-1 .scatterlayer .trace:last-child .points path");
  path.scrollIntoView({ block: "center" });
  const box = path.getBoundingClientRect();
  return { x: box.x + box.width / 2, y: box.y + box.height / 2 };
}"""


@pytest.fixture
def file(file_of: Callable[[str], Path]) -> Path:
    return file_of("search")


@pytest.fixture
def page(open_page: OpenPage, file: Path) -> Page:
    return open_page(file)


def shown(found: Locator) -> int:
    """How many of these are to be seen."""
    return sum(one.is_visible() for one in found.all())


# Images


@pytest.mark.parametrize("scripts", [True, False], ids=["with scripts", "without"])
def test_images_are_chosen_by_kind_and_seed(open_page: OpenPage, file: Path, scripts: bool) -> None:
    page = open_page(file, java_script_enabled=scripts)
    groups, gallery = page.locator(".gallery .group"), page.locator(".gallery")
    assert groups.count() == shown(groups) == 5
    labels = page.locator(".choices label")
    labels.filter(has_text="your subjects, changed").click()
    assert [group.is_visible() for group in groups.all()] == [False, False, True, False, False]
    labels.filter(has_text="held-out captions").click()
    shots = gallery.locator(".group").first.locator(".prompt").first.locator(".cell.winner .shot")
    for seed, expected in {"1": [True, False], "2": [False, True], "all": [True, True]}.items():
        page.locator(f"label[for=seed-{seed}]").click()
        assert [shot.is_visible() for shot in shots.all()] == expected, seed


def test_prompts_are_found_by_their_words(page: Page) -> None:
    prompts = page.locator(".gallery .prompt")
    page.get_by_label("Find").fill("APPLE 11")
    assert shown(prompts) == 1 and "number 11" in prompts.locator("visible=true").inner_text()
    page.get_by_label("Find").fill("no such word")
    assert shown(prompts) == 0 and page.get_by_text("No prompt holds these words.").is_visible()
    page.get_by_label("Find").fill("")
    assert shown(prompts) == prompts.count()


def test_an_image_opens_large_beside_another_and_gives_the_keys_back(page: Page, file: Path) -> None:
    link = page.locator(".gallery .prompt .cell.winner .seed-1 a.zoom").first
    link.focus()
    page.keyboard.press("Enter")
    viewer = page.get_by_role("dialog", name="Compare two models")
    expect(viewer).to_be_visible()
    assert selected(viewer.get_by_label("Left", exact=True)) == "base model"
    assert selected(viewer.get_by_label("Right", exact=True)).startswith("trial 2")
    assert barriers(page) == []
    before = edge(viewer)
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    assert edge(viewer) > before
    for model in viewer.get_by_label("Left", exact=True).locator("option").all_inner_texts():
        viewer.get_by_label("Left", exact=True).select_option(label=model)
        full = viewer.locator(".full a").first
        assert full.inner_text() == model
        address = full.evaluate("link => link.href")
        assert address.startswith("file://") and Path(address.removeprefix("file://")).is_file()
    page.keyboard.press("Escape")
    expect(viewer).to_be_hidden()
    assert link.evaluate("link => link === document.activeElement")


def selected(choice: Locator) -> str:
    return str(choice.evaluate("one => one.selectedOptions[0].textContent"))


def edge(viewer: Locator) -> float:
    """Where the edge between the two images is, in pixels from the left."""
    return float(viewer.locator(".edge").evaluate("one => one.getBoundingClientRect().x"))


def test_the_edge_follows_the_pointer_and_hides_half_of_the_image_above(page: Page) -> None:
    page.locator(".gallery a.zoom").first.click()
    viewer = page.get_by_role("dialog")
    box = viewer.locator(".wipe").bounding_box()
    assert box
    page.mouse.click(box["x"] + 0.25 * box["width"], box["y"] + box["height"] / 2)
    assert abs(edge(viewer) - (box["x"] + 0.25 * box["width"])) < 10
    hidden = viewer.locator(".over").evaluate("image => getComputedStyle(image).clipPath")
    assert abs(float(re.findall(r"([\d.]+)%", hidden)[-1]) - 25) < 2


def test_the_viewer_zooms_and_goes_from_prompt_to_prompt(page: Page) -> None:
    page.locator(".gallery a.zoom").first.click()
    viewer = page.get_by_role("dialog")
    captions = page.locator(".gallery .prompt figcaption").all_inner_texts()
    caption, width = viewer.locator(".caption"), "one => one.getBoundingClientRect().width"
    small = viewer.locator(".frame").evaluate(width)
    viewer.get_by_role("button", name="Zoom 4 times").click()
    assert viewer.locator(".frame").evaluate(width) == pytest.approx(4 * small, rel=0.01)
    assert viewer.locator("[aria-pressed=true]").all_inner_texts() == ["4×"]
    assert caption.inner_text() == captions[0]
    viewer.get_by_role("button", name="Next prompt").click()
    assert caption.inner_text() == captions[1]
    viewer.get_by_label("Seed").select_option(label="2")
    assert "seed 2" in (viewer.locator(".over").get_attribute("alt") or "")
    viewer.get_by_role("button", name="Previous prompt").click()
    page.keyboard.press("ArrowLeft")
    assert caption.inner_text() == page.locator(".gallery .prompt").last.get_attribute("data-caption")


# Figures


def test_a_point_shows_its_card_and_a_press_keeps_it(page: Page, file: Path) -> None:
    at, card = page.evaluate(FIRST_POINT), page.locator(".card")
    page.mouse.move(at["x"], at["y"])
    expect(card).to_be_visible()
    assert card.locator("dt").all_inner_texts()[-5:] == [
        "rank", "alpha", "learning rate", "dropout", "target modules"
    ]  # fmt: skip
    assert card.locator("img").evaluate("image => image.naturalWidth") > 0
    expect(card.get_by_role("link")).to_be_hidden()
    page.mouse.click(at["x"], at["y"])
    link = card.get_by_role("link", name="Open its page")
    expect(link).to_be_visible()
    page.mouse.move(5, 5)
    expect(link).to_be_visible()
    assert barriers(page) == []
    assert re.fullmatch(r"trials/\d{4}/trial\.html", link.get_attribute("href") or "")
    page.keyboard.press("Escape")
    expect(card).to_be_hidden()


def test_brushing_keeps_the_lines_and_the_rows_inside(page: Page) -> None:
    handle = page.get_by_role("slider", name="score: lower end")
    lines, rows = page.locator(".parallel .line"), page.locator("table.trials tbody tr")
    every = shown(rows)
    handle.focus()
    for _ in range(10):
        page.keyboard.press("ArrowUp")
    assert handle.get_attribute("aria-valuenow") == "50"
    kept = lines.count() - page.locator(".parallel .line.back").count()
    assert 0 < kept < lines.count() and shown(rows) == kept < every
    expect(page.locator(".brushed")).to_have_text(re.compile(f"^{kept} of {lines.count()} points"))
    page.keyboard.press("Home")
    assert page.locator(".parallel .line.back").count() == 0 and shown(rows) == every


def test_an_end_of_an_axis_is_dragged(page: Page) -> None:
    handle = page.get_by_role("slider", name="score: upper end")
    handle.scroll_into_view_if_needed()
    box = handle.locator(".grip").bounding_box()
    assert box
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x, y + 150, steps=4)
    page.mouse.up()
    assert 0 < int(handle.get_attribute("aria-valuenow") or 0) < 100
    assert page.locator(".parallel .line.back").count() > 0


# Tables, texts, places


def test_a_press_on_a_head_sorts_and_another_turns_it_round(page: Page) -> None:
    head = page.locator("table.trials thead th").filter(has_text="learning rate")
    column = head.evaluate("head => head.cellIndex + 1")
    cells = page.locator(f"table.trials tbody tr > :nth-child({column})")
    head.get_by_role("button").focus()
    for direction, is_down in (("ascending", False), ("descending", True)):
        page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == direction
        values = [float(value) for value in cells.evaluate_all("all => all.map(one => one.dataset.order)")]
        assert values == sorted(values, reverse=is_down) and len(set(values)) > 3


def test_copies_are_what_the_page_shows(open_page: OpenPage, file: Path, keep_run: MakeRun) -> None:
    page = open_page(file, permissions=["clipboard-read", "clipboard-write"])
    config = (finished(keep_run).path / "winner" / "training_config.yaml").read_text()
    place = f"{file.parent.parent.name}/{file.parent.name}"
    for name, text in [
        ("Copy config", config),
        ("Copy command", f"bench train --config {place}/winner/training_config.yaml"),
    ]:
        button = page.get_by_role("button", name=name)
        button.click()
        expect(page.get_by_role("button", name="Copied")).to_be_visible()
        assert page.evaluate("navigator.clipboard.readText()") == text
        expect(button).to_be_visible()


def test_the_section_that_is_read_is_marked(page: Page) -> None:
    links = page.locator("nav.sections a")
    for name in ("Scores", "Trials", "Images"):
        links.filter(has_text=name).click()
        expect(page.locator("nav.sections [aria-current]")).to_have_text(name)


def test_without_scripts_nothing_is_missing_but_figures(open_page: OpenPage, file: Path) -> None:
    page = open_page(file, java_script_enabled=False)
    assert shown(page.locator("table")) > 5 and shown(page.locator(".gallery img")) > 20
    assert shown(page.locator("svg.parallel, svg.track")) > 3
    assert shown(page.locator(".figure noscript p")) == page.locator(".figure").count() > 0
    assert shown(page.locator("button, .find")) == 0


def test_print_leaves_out_what_only_a_screen_needs(page: Page) -> None:
    page.emulate_media(media="print")
    assert shown(page.locator("nav, .copy, .choices, .skip, .handle")) == 0
    stuck = """() => [...document.querySelectorAll("body *")].filter((one) => one.checkVisibility()
      && ["sticky", "fixed"].includes(getComputedStyle(one).position)).map((one) => one.className)"""
    assert page.evaluate(stuck) == []
