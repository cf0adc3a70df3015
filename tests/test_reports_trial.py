"""The page of a trial: what it says, of every state, and when it is written again."""

import base64
import io
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from test_reports import CHROMIUM, HOSTILE, Page, hostile_run, in_browser

from bench.clean import removals, remove
from bench.run import Result, Run, end_trial, read_json, was_cleaned, write_json
from reports import search, trial
from reports.cards import page_of as page_path
from reports.trial_images import thumbnail

MakeRun = Callable[..., Run]


def page_of(run: Run, label: str) -> Page:
    trial.write_pages(run)
    return Page((run.path / page_path(label)).read_text(encoding="utf-8"))


def pages(run: Run) -> list[Page]:
    written = trial.write_pages(run)
    assert len(written) == len(run.trials())
    return [Page(file.read_text(encoding="utf-8")) for file in written]


# What it says


def test_it_says_where_the_trial_stands_and_what_it_scored(make_run: MakeRun) -> None:
    run = make_run(gain=0.2, prompts=12)
    text = page_of(run, "0002").text
    assert "Trial 2 winner complete" in text
    assert "The winner: rank 1 of 5 by similarity to the true picture." in text
    assert "Trained again with 2 fresh seeds: +" in text and "over the base on the test prompts" in text
    point = run.trials()[2]
    assert f"bench export {run.path.name} --trial 2 --epoch {point.epochs[-1]}" in text


def test_ranks_are_by_the_best_epoch_of_each_trial_in_the_metric_of_choice(make_run: MakeRun) -> None:
    run = make_run()
    shared = trial.overview(run)
    places = {label: trial.standing(shared, label) for label in shared.bests}
    values = {label: point.value("similarity") for label, point in shared.bests.items()}
    order = sorted(values, key=lambda label: -values[label])
    assert [place.rank for label in order if (place := places[label])] == [1, 2, 3, 4, 5]
    best = places[order[0]]
    assert best is not None and best.of == 5 and best.on_front
    assert trial.standing(shared, "0005") is None, "it failed"


def test_settings_that_differ_from_the_default_are_marked(make_run: MakeRun) -> None:
    run = make_run()
    page = page_of(run, "0002")
    rows = [attrs.get("class") for tag, attrs in page.tags if tag == "tr"]
    config, default = run.trials()[2].config, run.space.default
    changed = [name for name in type(config).model_fields if getattr(config, name) != getattr(default, name)]
    assert rows.count("differs") == len(changed) > 0
    assert "dataset_name: emoji-3d" in page.text and "bench train --config training_config.yaml" in page.text


def test_images_of_every_epoch_and_seed_are_links_to_what_was_drawn(make_run: MakeRun) -> None:
    run = make_run()
    page, record = page_of(run, "0002"), run.trials()[2]
    links = [link for link in page.values("a", "href") if link.endswith(".webp")]
    assert len(links) == len(set(links)) == 6 * (2 + 2 + 2 * len(record.epochs) + 1)
    assert all((record.path / link).resolve().is_file() for link in links)
    assert {f"epoch-{epoch:02d}/images/0011.webp" for epoch in record.epochs} <= set(links)
    assert page.values("input", "name").count("epoch") == (
        0 if len(record.epochs) == 1 else len(record.epochs)
    )
    assert page.values("input", "name").count("seed") == 2


def test_charts_need_no_script_and_the_page_is_small(make_run: MakeRun) -> None:
    run = make_run(prompts=24, pixels=64)
    page = page_of(run, "0002")
    charts = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert len(charts) == 6 and len(page.scripts) == 1
    assert (run.path / page_path("0002")).stat().st_size < 1_000_000


def test_large_pictures_fill_the_page_no_further_than_it_is_meant_to(make_run: MakeRun) -> None:
    run = make_run(trials=2, prompts=8, pixels=512)
    page_of(run, "0000")
    assert (run.path / page_path("0000")).stat().st_size < 1_000_000


def test_thumbnails_of_small_pixel_art_are_exact(tmp_path: Path) -> None:
    picture = Image.new("RGB", (64, 64), (200, 30, 40))
    picture.putpixel((5, 5), (0, 255, 0))
    picture.save(tmp_path / "a.webp", lossless=True)
    Image.effect_noise((400, 300), 90).convert("RGB").save(tmp_path / "b.webp")
    small, large = thumbnail(tmp_path / "a.webp"), thumbnail(tmp_path / "b.webp")
    assert small and large and small.pixelated and not large.pixelated
    assert decoded(small.uri).tobytes() == picture.tobytes()
    assert decoded(large.uri).size == (128, 96)
    (tmp_path / "c.webp").write_bytes(b"nothing")
    assert thumbnail(tmp_path / "c.webp") is None


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")


def test_held_out_loss_is_drawn_where_it_was_measured(make_run: MakeRun) -> None:
    run = make_run()
    assert "held-out pictures" not in page_of(run, "0002").text
    for file in run.trial_folder(2).glob("epoch-*/scores.json"):
        data = read_json(file)
        data["scores"]["held_out_loss"] = {**data["scores"]["similarity"], "value": 0.2, "gain": None}
        write_json(file, data)
    (run.path / page_path("0002")).unlink()
    assert "held-out pictures" in page_of(run, "0002").text


# Every state


def test_a_failed_trial_says_why_and_has_no_images(make_run: MakeRun) -> None:
    page = page_of(make_run(), "0005")
    assert "This trial failed. Loss is NaN at step 12." in page.text
    assert page.values("img", "src") == [] and "bench export" not in page.text


def test_a_run_of_failures_has_a_page_of_each(make_run: MakeRun) -> None:
    for page in pages(make_run(ending="failed")):
        assert "This trial failed." in page.text and page.open == []


def test_a_running_and_a_pruned_trial_say_so(make_run: MakeRun) -> None:
    run = make_run(ending="interrupted")
    for number, state in ((1, "running"), (2, "pruned")):
        file = run.trial_folder(number) / "trial.json"
        write_json(
            file, {**read_json(file), "state": state, "reason": "rank 5 of 5 at epoch 2", "seconds": None}
        )
    begun = run.trial_folder(3)
    for folder in begun.glob("epoch-*"):
        shutil.rmtree(folder)
    (begun / "losses.csv").unlink()
    write_json(begun / "trial.json", {"state": "running", "origin": "sampled"})
    found = {record.label: page.text for record, page in zip(run.trials(), pages(run), strict=True)}
    assert "Rank" in found["0001"] and "It had not ended when this page was written" in found["0001"]
    assert "Pruned: rank 5 of 5 at epoch 2." in found["0002"]
    assert "Still training." in found["0003"]


def test_a_default_that_won_is_both(make_run: MakeRun) -> None:
    text = page_of(make_run(winner="default", gain=-0.02), "0000").text
    assert "Trial 0 default chosen complete" in text and "Chosen: rank " in text


def test_trials_are_linked_to_those_beside_them_and_to_the_report(make_run: MakeRun) -> None:
    run = make_run(trials=3)
    search.write(run)
    first, middle = page_of(run, "0000"), page_of(run, "0001")
    assert {"../../trials/0000/trial.html", "../../trials/0002/trial.html", "../../report.html"} <= set(
        middle.values("a", "href")
    )
    assert not any(
        "../-" in link or "0000" in link for link in first.values("a", "href") if "trial.html" in link
    )
    for link in middle.values("a", "href"):
        assert link.startswith("#") or (run.trial_folder(1) / link).is_file()


# Writing again


def test_a_page_is_written_only_if_it_shows_something_else(make_run: MakeRun) -> None:
    run = make_run()
    assert len(trial.write_pages(run)) == 6 and trial.write_pages(run) == []
    end_trial(run.trial_folder(1), "failed", 3.0, "the disk is full")
    labels = [path.parent.name for path in trial.write_pages(run)]
    assert "0001" in labels
    (run.path / page_path("0004")).unlink()
    assert [path.parent.name for path in trial.write_pages(run)] == ["0004"]


def test_while_a_search_goes_on_a_new_trial_changes_only_the_page_before_it(make_run: MakeRun) -> None:
    run = make_run(ending="interrupted")
    trial.write_pages(run, is_growing=True)
    shutil.copytree(run.trial_folder(4), run.trial_folder(6))
    (run.trial_folder(6) / "trial.html").unlink()
    assert [path.parent.name for path in trial.write_pages(run, is_growing=True)] == ["0005", "0006"]
    assert len(trial.write_pages(run)) == 6  # of all that have a rank


def test_pages_keep_the_images_that_were_cleaned_away(make_run: MakeRun) -> None:
    run = make_run()
    before = {record.label: page_of(run, record.label).values("img", "src") for record in run.trials()}
    remove(removals(run))
    cleaned = [record.label for record in run.trials() if was_cleaned(record)]
    assert cleaned
    run.write_result(replace(finished(run), winner="default"))
    trial.write_pages(run)
    for label in cleaned:
        kept = Page((run.path / page_path(label)).read_text(encoding="utf-8"))
        assert kept.values("img", "src") == before[label] != []


def finished(run: Run) -> Result:
    found = run.result()
    assert found is not None
    return found


def test_a_page_written_after_cleaning_says_that_images_are_gone(make_run: MakeRun) -> None:
    run = make_run()
    for folder in run.trial_folder(3).glob("epoch-*/images"):
        shutil.rmtree(folder)
    text = page_of(run, "0003").text
    assert "Images of this trial were removed with bench clean" in text and "bench export" not in text


def test_the_report_writes_the_pages_too(make_run: MakeRun) -> None:
    run = make_run()
    search.write(run)
    assert trial.write_pages(run) == []


# Safety


def test_hostile_text_stays_text(make_run: MakeRun) -> None:
    for page in pages(hostile_run(make_run, "run-a")):
        assert page.open == [] and HOSTILE in page.text
        assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
        assert all(source.startswith("data:image/") for source in page.values("img", "src"))
        assert all(link.startswith(("#", "../", "epoch-")) for link in page.values("a", "href"))
        ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
        assert len(ids) == len(set(ids))
        assert len(page.values("img", "alt")) == len(page.values("img", "src"))


def test_a_true_picture_outside_the_run_is_not_shown(make_run: MakeRun) -> None:
    run = make_run()
    Image.new("RGB", (8, 8)).save(run.path.parent / "secret.webp")
    data = read_json(run.path / "run.json")
    data["prompts"]["dev"][0]["real"] = "../secret.webp"
    write_json(run.path / "run.json", data)
    assert not any("secret" in link for link in page_of(Run.open(run.path), "0002").values("a", "href"))


@pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")
def test_it_works_in_a_browser_under_its_policy(make_run: MakeRun, tmp_path: Path) -> None:
    run = hostile_run(make_run, "run-a")
    trial.write_pages(run)
    shown, said = in_browser(run.path / page_path("0002"), tmp_path / "profile")
    assert said == [] and '<img src="x"' not in shown
    assert 'data-copy="training-config">Copy' in shown, "its script has run: the button is not hidden"
