"""The page of a noise floor: what it draws, and what it says of more trainings."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_reports import CHROMIUM, HOSTILE, Page, hostile_run, in_browser

from bench.floor import Floor, MetricFloor
from bench.run import Run, read_json, write_json
from reports import floor_page, search

MakeRun = Callable[..., Run]


def page_of(run: Run) -> Page:
    file = floor_page.write(run)
    assert file is not None
    return Page(file.read_text(encoding="utf-8"))


def floor_of(run: Run) -> Floor:
    floor = run.floor()
    assert floor is not None
    return floor


def test_it_says_how_small_a_difference_is_luck(make_run: MakeRun) -> None:
    run = make_run(training_seeds=4)
    text = page_of(run).text
    smallest = floor_of(run).smallest("similarity", 4, 4)
    found = re.search(
        r"In similarity to the true picture, a difference below (\S+) may be luck alone\.", text
    )
    assert found and float(found[1]) == pytest.approx(smallest, rel=0.05)
    assert "4 trainings of the default config, which differ in their seed alone, drew the same 6 test" in text


def test_each_training_is_a_dot_and_the_floor_a_band(make_run: MakeRun) -> None:
    run = make_run(training_seeds=3)
    page = page_of(run)
    shown = floor_page.trainings(run)
    values = [each.evaluation.scores["similarity"].value for each in shown]
    titles = [f"training {n}: {value:.4g}" for n, value in enumerate(values, start=1)]
    assert all(title in page.text for title in titles)
    kinds = [attrs["class"] or "" for tag, attrs in page.tags if tag in ("circle", "rect")]
    drawn = [name for name in page.values("title", "id") if name.startswith("floor-")]
    assert kinds.count("band") == len(drawn) > 3 and "floor-similarity-title" in drawn
    assert [each.record.config.seed for each in shown] == [1, 2, 3]


def test_more_trainings_shrink_it_by_the_formula(make_run: MakeRun) -> None:
    floor = floor_of(make_run(training_seeds=3))
    rows = floor_page.more("similarity", floor, (3, 3))
    assert [row.num for row in rows] == [3, 5, 8, 12, 20, 30] and rows[0].now
    # t(0.975, 4)·√(2/5) over t(0.975, 2)·√(2/3), of tables of Student's t
    assert rows[1].share == f"{2.776 * (2 / 5) ** 0.5 / (4.303 * (2 / 3) ** 0.5):.0%}"
    shares = [int(row.share.rstrip("%")) for row in rows[1:]]
    assert shares == sorted(shares, reverse=True)
    assert floor_page.more("nothing", floor, (3, 3)) == []


def test_the_interval_of_the_spread_holds_it_19_times_of_20() -> None:
    rng, held = np.random.default_rng(0), 0
    for _ in range(2000):
        spread = float(rng.normal(0, 2.037, 4).std(ddof=1))
        floor = Floor(
            num_seeds=4, num_prompts=8, metrics={"kd": MetricFloor(seed_spread=spread, image_spread=None)}
        )
        interval = floor_page.spread_interval("kd", floor)
        assert interval is not None
        held += float(interval[0]) <= 2.037 <= float(interval[1])
    assert held / 2000 == pytest.approx(0.95, abs=0.015)


def test_images_of_one_prompt_by_several_trainings_stand_side_by_side(make_run: MakeRun) -> None:
    run = make_run(training_seeds=3, prompts=12)
    shown = floor_page.luck(run, floor_page.trainings(run))
    assert [title for title, _ in shown] == ["Where they differ most", "Where they differ as usual"]
    titles = [cell.title for cell in shown[0][1].rows[0].cells]
    assert titles == ["training 1", "training 2", "training 3", "real picture"]
    spreads = [np.std([cell.value for cell in row.cells[:3]]) for _, part in shown for row in part.rows]
    assert spreads == sorted(spreads, reverse=True)
    captions = [row.caption for _, part in shown for row in part.rows]
    assert len(set(captions)) == len(captions) == 8


def test_without_a_floor_there_is_no_page(make_run: MakeRun) -> None:
    run = make_run(floor=False)
    assert floor_page.write(run) is None
    search.write(run)
    assert not (run.path / floor_page.FILE).exists()


def test_a_report_writes_the_page_of_a_floor(make_run: MakeRun) -> None:
    run = make_run()
    search.write(run)
    assert (run.path / floor_page.FILE).exists()


def test_a_floor_whose_trainings_were_lost_still_has_its_numbers(make_run: MakeRun) -> None:
    run = make_run()
    for file in run.path.glob("confirm/default-*/*/test/scores.json"):
        file.unlink()
    page = page_of(run)
    assert page.open == [] and "may be luck alone." in page.text and page.values("img", "src") == []


@pytest.mark.parametrize("select_by", ["kd", "diversity"])
def test_it_is_written_whatever_decides(make_run: MakeRun, select_by: str) -> None:
    space = (("select_by", select_by), ("objectives", [select_by, "similarity"]))
    assert page_of(make_run(space=space)).open == []


def test_trainings_that_are_all_alike_are_no_fault(make_run: MakeRun) -> None:
    run = make_run()
    data = read_json(run.path / "floor.json")
    for metric in data["metrics"].values():
        metric["seed_spread"] = 0.0
    write_json(run.path / "floor.json", data)
    assert "a difference below 0 may be luck alone" in page_of(run).text


def test_hostile_text_stays_text(make_run: MakeRun) -> None:
    page = page_of(hostile_run(make_run, "run-a"))
    assert page.open == [] and HOSTILE in page.text
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    assert all(link.startswith("#") or link == "report.html" for link in page.values("a", "href"))
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))


@pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")
def test_it_works_in_a_browser_under_its_policy(make_run: MakeRun, tmp_path: Path) -> None:
    file = floor_page.write(hostile_run(make_run, "run-a"))
    assert file is not None
    shown, said = in_browser(file, tmp_path / "profile")
    assert said == [] and '<img src="x"' not in shown
