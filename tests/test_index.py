"""The page over all runs of a folder: an entry each, whatever is in it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from test_reports import HOSTILE, Page

from bench.errors import MissingError
from bench.lock import locked
from bench.run import Run
from reports import index
from reports.verdict import contests

MakeRun = Callable[..., Run]


def page_of(folder: Path) -> Page:
    return Page(index.write(folder).read_text(encoding="utf-8"))


def entries_of(folder: Path) -> dict[str, index.Entry]:
    return {entry.folder: entry for entry in index.read_entries(folder)}


def test_a_run_is_told_as_its_report_tells_it(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("runs/one", gain=0.2, prompts=12)
    (run.path / "report.html").touch()
    (entry,) = index.read_entries(tmp_path / "runs")
    assert (entry.state, entry.verdict, entry.headline) == ("finished", "WIN", "Trial 2 wins.")
    assert [(fact.label, fact.verdict) for fact in entry.facts] == [
        ("against the default", "WIN"),
        ("against the base", "WIN"),
    ]
    result = run.result()
    assert result
    main = contests(run, result).over_base["0002"].main
    assert main and entry.gain_order == str(main.mean)
    assert entry.link == "one/report.html" and entry.trials == "6 of 16 trials"
    assert len(entry.pairs) == 3 and all(pair.base and pair.best for pair in entry.pairs)


@pytest.mark.parametrize(
    ("ending", "state", "sentence"),
    [
        ("interrupted", "unfinished", "The search has not finished."),
        ("failed", "failed", "Every trial failed."),
        ("empty", "empty", "Nothing has been tried yet."),
    ],
)
def test_every_state_has_its_entry(
    make_run: MakeRun, tmp_path: Path, ending: str, state: str, sentence: str
) -> None:
    make_run("runs/one", ending=ending)
    entry = entries_of(tmp_path / "runs")["one"]
    assert (entry.state, entry.headline, entry.link, entry.gain_order) == (state, sentence, "", "")
    assert entry.verdict == "not confirmed" and not entry.facts


def test_a_run_that_is_worked_on_is_running(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("runs/one", ending="interrupted")
    with locked(run.path):
        entry = entries_of(tmp_path / "runs")["one"]
    assert (entry.state, entry.headline) == ("running", "The search is running.")
    assert entries_of(tmp_path / "runs")["one"].state == "unfinished"


def test_what_is_no_run_and_what_is_damaged_say_so(make_run: MakeRun, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    make_run("runs/good")
    for name in ("foreign", "broken", ".hidden"):
        (runs / name).mkdir()
    (runs / "broken" / "run.json").write_text("{nope")
    (runs / "check-mine.html").touch()
    shutil.copytree(runs / "good", runs / "half")
    (runs / "half" / "result.json").write_text('{"winner": 3}')
    found = entries_of(runs)
    assert {name: entry.state for name, entry in found.items()} == {
        "good": "finished",
        "half": "damaged",
        "broken": "damaged",
        "foreign": "foreign",
    }
    assert "result.json: damaged" in found["half"].headline and "run.json" in found["foreign"].headline
    assert index.summary(list(found.values())) == ("1 run: 1 finished; 3 folders could not be read as a run")
    assert page_of(runs).open == []


def test_an_empty_folder_says_how_to_begin(tmp_path: Path) -> None:
    assert "There are no runs here yet." in page_of(tmp_path).text


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="none: no such folder"):
        index.write(tmp_path / "none")


def test_hostile_text_stays_text_and_nothing_is_loaded(make_run: MakeRun, tmp_path: Path) -> None:
    fields = {name: HOSTILE for name in ("name", "base", "data")}
    make_run("runs/one", caption=HOSTILE, metadata=tuple(fields.items()))
    make_run("runs/%3Cb%3E two?", ending="empty")
    (tmp_path / "runs" / "%3Cb%3E two?" / "report.html").touch()
    page = page_of(tmp_path / "runs")
    assert HOSTILE in page.text and not [attrs for _, attrs in page.tags if "onerror" in attrs]
    assert all(source.startswith("data:") for source in page.values("img", "src"))
    assert "%253Cb%253E%20two%3F/report.html" in page.values("a", "href")


def test_filters_offer_what_there_is(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("runs/one")
    make_run("runs/two", ending="empty", metadata=(("base", "other"),))
    page = page_of(tmp_path / "runs")
    offered = page.values("option", "value")
    assert {"finished", "empty", "emoji-xl", "other"} <= set(offered) and "running" not in offered
    assert page.values("form", "hidden") == [""]  # until the script shows it
    assert len(page.values("li", "data-state")) == 2
