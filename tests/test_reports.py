"""The HTML pages: what they say, and that they hold together whatever is in a run."""

import base64
import hashlib
import io
import itertools
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hostile import HOSTILE, hostile_run
from PIL import Image
from rich.console import Console

from bench.comparison import Side, adapter_side, base_side, compare, compare_all, winner_side
from bench.floor import Floor, MetricFloor
from bench.run import Run, adapter_label, read_json, start_adapter, write_json
from bench.scoring.metrics import METRICS, title
from bench.series import Checkpoint, Series
from bench.sheet import read_sheet
from reports import (
    cards,
    course,
    failures,
    images,
    parallel,
    pruning,
    search,
    slices,
    tracks,
    trials,
    wording,
)
from reports import compare as compare_report
from reports import score as score_report
from reports.gallery import Gallery, gallery
from reports.page import policy as policy_for
from reports.verdict import contests, verdict

MakeRun = Callable[..., Run]
LEADING = ("#", "winner/", "trials/", "confirm/", "base/", "real/", "data/", "run-a/", "run-b/", "floor.html")
"""How links of pages may begin."""
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
VOID = {"meta", "input", "img", "br", "link", "hr"}


class Page(HTMLParser):
    """Tags with their attributes, the text outside scripts and styles, and whether tags are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: set[str] = set()
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.words.append(data)
        elif self.open[-1] == "script" and "type" not in self.tags[-1][1]:
            self.scripts.add(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def values(self, tag: str, name: str) -> list[str]:
        return [attrs[name] or "" for found, attrs in self.tags if found == tag and name in attrs]


def page_of(run: Run) -> Page:
    return Page(search.write(run).read_text(encoding="utf-8"))


# What a search report says


def lower_on_test(run: Run, label: str, by: float, *metrics: str) -> None:
    """Make a candidate worse in `metrics` on every test prompt, by nearly the same."""
    for file in (run.path / "confirm").glob(f"{label}-seed-*/epoch-*/test/scores.json"):
        data = read_json(file)
        for name in metrics:
            values = data["per_prompt"][name]
            data["per_prompt"][name] = [value - by - 0.001 * i for i, value in enumerate(values)]
        write_json(file, data)


def test_the_answer_names_the_winner_its_lead_and_how_sure_it_is(make_run: MakeRun) -> None:
    run = make_run(gain=0.2, prompts=12)
    said = verdict(run, run.result(), trials.read_points(run))
    assert (said.tone, said.headline) == ("win", "Trial 2 wins.")
    assert "Against the default config: WIN, " in said.detail and "the judge confirms it" in said.detail
    assert "on 12 test prompts that no choice has touched, with 2 fresh trainings." in said.detail
    facts = {fact.label: fact for fact in said.facts}
    assert facts["against the default"].verdict == "WIN" and "±" in facts["against the default"].value
    assert facts["against the base"].note.startswith("95 %: +")
    assert facts["the judge, against the default"].verdict == "WIN"


def test_a_win_that_the_judge_does_not_confirm_is_a_tie_and_says_so(make_run: MakeRun) -> None:
    run = make_run(gain=0.2, prompts=12)
    lower_on_test(run, "0002", 0.2, "judge_similarity")
    said = verdict(run, run.result(), trials.read_points(run))
    assert (said.tone, said.headline) == ("tie", "No setting was shown to beat the default config.")
    assert "Against the default config: TIE, the judge does not confirm it" in said.detail


def test_a_lead_inside_the_noise_floor_is_a_tie_and_says_so(make_run: MakeRun) -> None:
    run = make_run(gain=0.2, prompts=12)
    data = read_json(run.path / "floor.json")
    data["metrics"]["similarity"]["seed_spread"] = 0.5
    write_json(run.path / "floor.json", data)
    said = verdict(run, run.result(), trials.read_points(run))
    assert said.tone == "tie" and "TIE, the difference is inside the noise floor" in said.detail


def test_a_choice_that_loses_on_the_test_prompts_is_not_recommended(make_run: MakeRun) -> None:
    run = make_run(gain=0.2, prompts=12)
    lower_on_test(run, "0002", 0.35, "similarity", "judge_similarity")
    said = verdict(run, run.result(), [])
    assert said.headline in ("Keep the default config.", "No adapter beats the base model.")


def test_without_a_confirmed_default_there_is_no_win(make_run: MakeRun) -> None:
    run = make_run(gain=0.2)
    data = read_json(run.path / "result.json")
    data["candidates"] = [entry for entry in data["candidates"] if entry["label"] != "default"]
    write_json(run.path / "result.json", data)
    text = page_of(run).text
    assert "the default config could not be confirmed" in text and "Trial 2 wins" not in text


def test_a_winning_default_is_said_plainly(make_run: MakeRun) -> None:
    run = make_run(winner="default", gain=-0.02)
    said = verdict(run, run.result(), trials.read_points(run))
    assert (said.tone, said.headline) == ("tie", "Keep the default config.")
    assert len(page_of(run).values("img", "alt")) > 0


def test_an_adapter_that_does_not_beat_the_base_is_not_praised(make_run: MakeRun) -> None:
    run = make_run(winner="default", prompts=12)
    lower_on_test(run, "default", 0.3, "similarity", "judge_similarity")
    said = verdict(run, run.result(), [])
    assert (said.tone, said.headline) == ("tie", "No adapter beats the base model.")
    assert "Against the base model: LOSS" in said.detail


def test_one_training_seed_is_said_to_be_one(make_run: MakeRun) -> None:
    run = make_run(training_seeds=1, gain=0.2, prompts=12)
    said = verdict(run, run.result(), [])
    assert (said.tone, said.headline) == ("tie", "Trial 2 leads, on one training seed.")
    assert "with 1 fresh training. What another training would change is not known" in said.detail
    assert "a WIN may be the luck of that training" in page_of(run).text


def test_trainings_that_failed_are_counted(make_run: MakeRun) -> None:
    run = make_run(gain=0.2, prompts=12)
    assert "failed" not in verdict(run, run.result(), []).detail
    data = read_json(run.path / "result.json")
    next(entry for entry in data["candidates"] if entry["label"] == "0002")["num_failed"] = 1
    write_json(run.path / "result.json", data)
    detail, text = verdict(run, run.result(), []).detail, page_of(run).text
    assert "with 2 fresh trainings (1 of 3 trainings failed)." in detail
    assert "Trial 2 winner 1 of 3 trainings failed" in text
    assert "Trainings that failed could not be scored" in text


def test_only_the_prompts_are_said_to_be_untouched(make_run: MakeRun) -> None:
    text = page_of(make_run(gain=0.2, prompts=12)).text
    assert "The same trainings chose it, on dev prompts, so some of their luck remains" in text
    assert "some of their luck flatters the winner there: on average by at most about 0.3" in text
    assert "tests on test prompts that you have seen" in text


@pytest.mark.fault(23)
@pytest.mark.parametrize(
    ("ending", "sentence"),
    [
        ("finished", "Trial 2 wins."),
        ("interrupted", "The search has not finished."),
        ("failed", "Every trial failed."),
        ("empty", "Nothing has been tried yet."),
    ],
)
def test_every_state_of_a_run_has_its_page(make_run: MakeRun, ending: str, sentence: str) -> None:
    page = page_of(make_run(ending=ending, gain=0.2, prompts=12))
    assert sentence in page.text
    assert page.open == []


def test_an_interrupted_run_warns_that_nothing_is_confirmed(make_run: MakeRun) -> None:
    text = page_of(make_run(ending="interrupted")).text
    assert "Best so far: trial 2 at epoch" in text and "nothing is confirmed yet" in text
    assert "Confirmed scores" not in text


@pytest.mark.fault(23)
def test_failures_are_listed_with_their_reason(make_run: MakeRun) -> None:
    assert "6 trials: loss is NaN at step 12." in page_of(make_run(ending="failed")).text


def test_scores_carry_extractor_and_number_of_images(make_run: MakeRun) -> None:
    run = make_run()
    result, text = run.result(), page_of(run).text
    assert result is not None
    for name, score in result.candidates[0].scores.items():
        assert title(METRICS[name], score) in text


def test_the_config_of_the_winner_is_ready_to_copy(make_run: MakeRun) -> None:
    run = make_run()
    written = (run.path / "winner" / "training_config.yaml").read_text()
    assert " ".join(written.split()) in page_of(run).text


# Data behind the figures


def test_points_are_scored_epochs_and_trials_without_a_score(make_run: MakeRun) -> None:
    points = trials.read_points(make_run())
    assert [point.kind for point in points].count("winner") == 1
    assert [point.label for point in points if not point.scores] == ["0005"]


def test_best_so_far_never_falls(make_run: MakeRun) -> None:
    points = trials.scored(trials.read_points(make_run()), "similarity")
    best = trials.best_so_far(points, "similarity")
    assert best == list(np.maximum.accumulate([point.value("similarity") for point in points]))


def test_no_point_beats_the_front_in_both(make_run: MakeRun) -> None:
    points = trials.scored(trials.read_points(make_run()), "kd", "similarity")
    front = trials.front(points, "kd", "similarity")
    for kept in front:
        assert not any(
            point.value("kd") < kept.value("kd") and point.value("similarity") > kept.value("similarity")
            for point in points
        )


def test_importances_find_what_decides_the_score(make_run: MakeRun) -> None:
    run = make_run(trials=2)
    first = trials.scored(trials.read_points(run), "similarity")[0]
    points = []
    for index in range(40):
        rate, dropout = 1e-5 * 10 ** (index / 20), [0, 0.05, 0.1][index % 3]
        config = first.config.model_copy(update={"learning_rate": rate, "dropout": dropout})
        score = replace(first.scores["similarity"], value=rate)
        points.append(first._replace(config=config, scores={"similarity": score}))
    shares = trials.importances(run, points).shares
    assert max(shares, key=lambda name: shares[name]) == "learning_rate"


def test_few_trials_have_no_importances(make_run: MakeRun) -> None:
    run = make_run(trials=2)
    found = trials.importances(run, trials.read_points(run))
    assert found.shares == {} and "too few" in found.missing


def test_parallel_axes_leave_out_what_never_varied(make_run: MakeRun) -> None:
    points = trials.read_points(make_run())
    flat = [point._replace(config=point.config.model_copy(update={"dropout": 0.0})) for point in points]
    data = parallel.parallel(flat, "similarity")
    assert data is not None
    assert "dropout" not in [axis.name for axis in data.axes]
    assert all(0 <= height <= 1 for line in data.lines for height in line.heights)
    assert max(line.strength for line in data.lines) == 1


def test_cards_hold_what_is_known_of_a_point(make_run: MakeRun) -> None:
    run = make_run()
    points = trials.read_points(run)
    found = cards.cards(run, points)
    assert list(found) == [cards.key_of(point) for point in points if point.scores]
    card = found["0002@4"]
    assert (card.title, card.href) == ("Trial 2, epoch 4", "trials/0002/trial.html")
    assert card.sheet.startswith("data:image/webp;base64,")
    assert dict(card.settings)["rank"] == wording.settings(points[0].config)["rank"]


def test_slices_are_of_parameters_that_varied(make_run: MakeRun) -> None:
    run = make_run()
    points = trials.scored(trials.read_points(run), "similarity")
    found = slices.slices(run, points, {})
    for name in run.space.distributions:
        assert (f"slice-{name}" in found) == (len({str(getattr(point.config, name)) for point in points}) > 1)
    drawn = [list(trace.y) for trace in found["slice-learning_rate"].data]
    assert sorted(sum(drawn, [])) == sorted(point.value("similarity") for point in points)


def test_the_expected_best_is_the_mean_over_all_draws() -> None:
    values = [0.3, 0.1, 0.7, 0.2]
    draws = itertools.product(values, repeat=3)
    assert course.expected_best(values, 3) == pytest.approx(np.mean([max(draw) for draw in draws]))


def test_what_a_longer_search_would_add_is_said_beside_the_floor(make_run: MakeRun) -> None:
    run = make_run(trials=8)
    found = course.longer(run, run.result(), trials.read_points(run))
    assert found is not None and found.half == found.trials // 2 and found.added >= 0
    assert "noise floor" in " ".join(found.sentences)
    assert course.longer(run, None, trials.read_points(run)[:3]) is None


def test_rungs_are_held_against_the_end(make_run: MakeRun) -> None:
    run = make_run(trials=8)
    figure = pruning.prediction(run, trials.read_points(run))
    rungs = run.space.rungs
    assert (figure is not None) == (len(rungs) > 1)


def test_failures_are_grouped_by_their_reason(make_run: MakeRun) -> None:
    (found,) = failures.failures(make_run(ending="failed"))
    assert found.reason == "loss is NaN at step 12" and len(found.trials) == 6
    assert found.trials[0] == ("trial 0", "trials/0000/trial.html")


def test_tracks_of_a_metric_share_a_scale_and_turn_right_for_better(make_run: MakeRun) -> None:
    run = make_run(gain=0.2, prompts=12)
    result = run.result()
    assert result is not None
    comparison = contests(run, result).over_default
    assert comparison is not None
    row = next(row for row in comparison.metrics if row.metric == "similarity")
    half = replace(row, mean=row.mean / 2, low=row.low / 2, high=row.high / 2)
    found = tracks.tracks([row, half, replace(row, metric="kd")])
    assert found[0].zero == found[1].zero and found[0].mean > found[1].mean > found[0].zero
    assert found[2].mean < found[2].zero  # lower is better
    for track in found:
        assert 0 <= track.low <= track.mean <= track.high <= 100


@pytest.mark.parametrize(
    ("value", "stderr", "text"),
    [
        (0.5234, 0.0123, "0.523 ± 0.012"),
        (-3.1, 0.52, "−3.10 ± 0.52"),
        (412.0, 31.0, "412 ± 31"),
        (0.5, None, "0.500"),
        (0.5, 0.0, "0.500"),
        (None, None, "–"),
        (float("nan"), 0.1, "–"),
    ],
)
def test_values_show_two_digits_of_their_error(value: float | None, stderr: float | None, text: str) -> None:
    assert wording.plus_minus(value, stderr) == text


@pytest.mark.parametrize(
    ("source", "name"),
    [("/home/me/bases/xl/", "xl"), ("./data", "data"), ("emoji/pixel16", "emoji/pixel16"), ("a", "a")],
)
def test_headings_show_of_a_path_the_last_part(source: str, name: str) -> None:
    assert wording.source_name(source) == name


# Images


def shown_of(run: Run) -> Gallery:
    found = gallery(run, run.result(), trials.read_points(run))
    assert found is not None
    return found


def test_images_stand_beside_the_picture_of_their_prompt(make_run: MakeRun) -> None:
    run = make_run()
    shown = shown_of(run).groups[0].grid
    assert len(shown.rows) == 6
    titles = [cell.title for cell in shown.rows[0].cells]
    assert titles == ["base model", "default config", "trial 2", "real picture"]
    assert [len(cell.thumbnails) for cell in shown.rows[0].cells] == [2, 2, 2, 1]


def test_probes_are_shown_by_kind_beside_the_base(make_run: MakeRun) -> None:
    found = shown_of(make_run())
    kinds = {group.key: len(group.grid.rows) for group in found.groups}
    assert kinds == {"held-out": 6, "training": 1, "altered": 1, "style": 1, "unrelated": 3}
    titles = [cell.title for cell in found.groups[2].grid.rows[0].cells]
    assert titles == ["base model", "default config", "trial 2"]


def test_prompts_of_several_concepts_are_groups_of_their_own(make_run: MakeRun) -> None:
    run = make_run()
    data = read_json(run.path / "run.json")
    for index, prompt in enumerate(data["prompts"]["test"]):
        prompt["concept"] = ("cats", "dogs")[index % 2]
    write_json(run.path / "run.json", data)
    titles = [group.title for group in shown_of(Run.open(run.path)).groups]
    assert titles[:2] == ["Held-out captions of cats", "Held-out captions of dogs"]


def test_thumbnails_lead_to_the_image_in_full_size(make_run: MakeRun) -> None:
    run = make_run()
    links = [
        shown.href
        for row in shown_of(run).groups[0].grid.rows
        for cell in row.cells
        for shown in cell.thumbnails
        if shown
    ]
    assert links and all((run.path / link).is_file() for link in links)


def test_large_images_are_scaled_down_and_small_ones_kept(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (1024, 1024, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "large.webp")
    Image.fromarray(pixels[:64, :64]).save(tmp_path / "small.webp")
    large, small = images.thumbnail(tmp_path / "large.webp"), images.thumbnail(tmp_path / "small.webp")
    assert large is not None and not large.pixelated and len(large.uri) < 60_000
    assert small is not None and small.pixelated


def test_unreadable_images_and_names_that_lead_out_leave_a_gap(make_run: MakeRun) -> None:
    run = make_run()
    (run.path / "base" / "test" / "images" / "0000.webp").write_bytes(b"not an image")
    Image.new("RGB", (8, 8)).save(run.path.parent / "secret.webp")
    data = read_json(run.path / "run.json")
    data["prompts"]["test"][1]["real"] = "../secret.webp"
    write_json(run.path / "run.json", data)
    run = Run.open(run.path)
    shown = shown_of(run).groups[0].grid
    assert shown.rows[0].cells[0].thumbnails[0] is None
    assert shown.rows[1].cells[-1].thumbnails == [None]
    assert page_of(run).open == []


def test_the_page_stays_small_with_many_large_images(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(trials=3, prompts=8)
    heavy = images.Thumbnail("data:image/webp;base64," + "A" * 300_000, False)
    monkeypatch.setattr(images, "thumbnail", lambda path, page=None: heavy)
    shown = shown_of(run).groups[0].grid
    assert 0 < len(shown.rows) < 8
    assert search.write(run).stat().st_size < 15_000_000


# Safety


def pages(make_run: MakeRun) -> list[Page]:
    a, b = hostile_run(make_run, "run-a"), hostile_run(make_run, "run-b")
    sides = [winner_side(a), winner_side(b), base_side(a)]
    return [page_of(a), compared(sides[:2]), compared(sides), scored(a)]


def scored(run: Run) -> Page:
    """The page of two adapters, of which one could be scored at one weight only."""
    series = []
    for number, name in enumerate((HOSTILE, f"other {HOSTILE}")):
        checkpoint = Checkpoint(file=Path(HOSTILE) / "a.safetensors", digest=f"{number}" * 64, epoch=4)
        series.append(Series(name=name, checkpoints=(checkpoint,)))
        for weight in run.space.weights[: 1 + number]:
            folder = run.adapter_folder(adapter_label(checkpoint.digest, weight))
            start_adapter(folder, checkpoint.file, checkpoint.digest, weight)
            trained = run.confirm_folder("default", 1) / "epoch-04"
            shutil.copytree(trained, folder / "dev")
            for split in ("test", "probe"):
                shutil.copytree(trained / split, folder / split)
    sheets = [read_sheet(run, each, {}) for each in series]
    refused = tuple(f"{HOSTILE}: {reason}" for reason in sheets[0].refused)
    sheets[0] = replace(sheets[0], refused=refused)
    sides = [*(adapter_side(run, sheet.best.label, sheet.name) for sheet in sheets), base_side(run)]
    path = run.path / score_report.file_name(sheets)
    score_report.write(sheets, sides, compare_all(sides, run.space.select_by), path)
    return Page(path.read_text(encoding="utf-8"))


def compared(sides: list[Side]) -> Page:
    """The page of a comparison of all these."""
    comparisons = compare_all(sides, "similarity")
    path = compare_report.write(sides, comparisons, sides[0].run.path.parent / "compare.html")
    return Page(path.read_text(encoding="utf-8"))


def test_hostile_text_stays_text(make_run: MakeRun) -> None:
    for page in pages(make_run):
        assert page.open == []
        assert HOSTILE in page.text
        assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
        assert all(source.startswith("data:image/") for source in page.values("img", "src"))


def test_pages_load_nothing_and_say_so_to_the_browser(make_run: MakeRun) -> None:
    for page in pages(make_run):
        assert {tag for tag, attrs in page.tags if "src" in attrs} == {"img"}
        assert page.values("link", "href") == []
        for link in page.values("a", "href"):
            assert link.startswith(LEADING) and ".." not in link
        policy = next(value for value in page.values("meta", "content") if "default-src" in value)
        assert "default-src 'none'" in policy and "http" not in policy and "unsafe-eval" not in policy


def test_only_scripts_of_this_package_run(make_run: MakeRun) -> None:
    for page in pages(make_run):
        policy = next(value for value in page.values("meta", "content") if "default-src" in value)
        allowed = policy.split("script-src ")[1].split(";")[0].split()
        found = {base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in page.scripts}
        assert 1 <= len(found) <= 2 and {f"'sha256-{digest}'" for digest in found} <= set(allowed)
        assert len(allowed) == 2
        assert page.tags[2][0] == "meta" and page.tags[3] == (
            "meta", {"http-equiv": "Content-Security-Policy", "content": policy}
        )  # fmt: skip


@pytest.mark.parametrize("ending", ["interrupted", "failed", "empty"])
def test_hostile_text_stays_text_whatever_became_of_the_search(make_run: MakeRun, ending: str) -> None:
    metadata = [(field, HOSTILE) for field in ("name", "base", "data", "scorer", "device", "machine")]
    page = page_of(make_run(ending=ending, caption=HOSTILE, reason=HOSTILE, metadata=tuple(metadata)))
    assert page.open == [] and HOSTILE in page.text
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    assert all(source.startswith("data:image/") for source in page.values("img", "src"))


@pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")
def test_pages_work_in_a_browser_under_their_policy(make_run: MakeRun, tmp_path: Path) -> None:
    pages(make_run)
    files = [*tmp_path.glob("run-a/*.html"), tmp_path / "compare.html"]
    assert len(files) == 4
    for file in files:
        shown, said = in_browser(file, tmp_path / "profile")
        assert said == []
        assert '<img src="x"' not in shown


def test_the_browser_says_what_a_policy_forbids(tmp_path: Path) -> None:
    """Else the test above would show nothing."""
    if not CHROMIUM:
        pytest.skip("Chromium is not installed")
    text = (
        f'<meta http-equiv="Content-Security-Policy" content="{policy_for("1")}">{HOSTILE}<script>2</script>'
    )
    (tmp_path / "page.html").write_text(text)
    _, said = in_browser(tmp_path / "page.html", tmp_path / "profile")
    assert len(said) >= 2 and "Content Security Policy" in "".join(said)


def in_browser(file: Path, profile: Path) -> tuple[str, list[str]]:
    """The document once its scripts have run, and the lines of the console."""
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}",
        "--enable-logging=stderr", "--virtual-time-budget=20000", "--dump-dom", file.as_uri(),
    ]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    return ended.stdout, [line for line in ended.stderr.splitlines() if "CONSOLE" in line]


def test_ids_are_fixed_and_every_figure_has_its_place(make_run: MakeRun) -> None:
    for page in pages(make_run):
        ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
        assert len(ids) == len(set(ids))
        assert set(page.values("script", "data-for")) <= set(ids)


def test_every_image_and_table_is_described(make_run: MakeRun) -> None:
    for page in pages(make_run):
        assert len(page.values("img", "alt")) == len(page.values("img", "src"))
        heads = [attrs for tag, attrs in page.tags if tag == "th"]
        assert heads and all(attrs.get("scope") in {"row", "col", "rowgroup"} for attrs in heads)


# The comparison


def clear_lead(make_run: MakeRun) -> list[Side]:
    a = make_run("run-a", gain=0.4, prompts=12, training_seeds=3)
    return [winner_side(a), winner_side(make_run("run-b", gain=0.0, prompts=12, training_seeds=3, random=1))]


def test_a_comparison_leads_with_its_verdict_and_why(make_run: MakeRun) -> None:
    text = compared(clear_lead(make_run)).text
    assert "WIN: A (run-a) beats B (run-b). The difference is beyond chance (p = " in text
    assert "outside the noise floor, and the judge confirms it." in text
    assert "the judge (emoji-judge) says WIN" in text
    assert "Noise between training seeds is part of every error." in text
    assert "Where A does best against B" in text
    assert text.index("WIN: A") < text.index("Shown without a verdict") < text.index("Alarms: has it copied")


def test_a_comparison_says_what_is_not_known(make_run: MakeRun) -> None:
    sides = [winner_side(make_run(name, training_seeds=1, random=i)) for i, name in enumerate(("one", "two"))]
    text = compared(sides).text
    assert "There is only one training of one and two, whose training noise is not known" in text
    assert "a WIN or LOSS may be the luck of that training; no noise floor was measured." in text
    assert "No noise floor was measured for these runs" in text
    assert "There is one training only of at least one side" in text


def test_the_floor_is_not_said_to_stand_in_for_the_noise_of_one_training(make_run: MakeRun) -> None:
    a, b = make_run("run-a", training_seeds=1), make_run("run-b", training_seeds=1, random=1)
    a.write_floor(
        Floor(
            num_seeds=3,
            num_prompts=12,
            metrics={"similarity": MetricFloor(seed_spread=0.001, image_spread=None)},
        )
    )
    text = compared([winner_side(a), winner_side(b)]).text
    assert "that training; the noise floor is the luck of the default configuration, and others may" in text
    assert "the noise floor does not say it" in text


def test_a_tie_inside_the_floor_is_said_to_be_one(make_run: MakeRun) -> None:
    sides = clear_lead(make_run)
    metrics = {name: MetricFloor(seed_spread=1.0, image_spread=None) for name in METRICS}
    sides[0].run.write_floor(Floor(num_seeds=3, num_prompts=12, metrics=metrics))
    text = compared(sides).text
    assert (
        "TIE: A (run-a) and B (run-b) cannot be told apart. The difference is inside the noise floor." in text
    )
    assert "inside the noise floor, 3.5" in text


def test_what_unrelated_prompts_keep_is_said_of_each_adapter(make_run: MakeRun) -> None:
    run = make_run(gain=0.2)
    text = compared([winner_side(run), base_side(run)]).text
    assert "A (run-a) keeps what it was not trained on" in text and "B (base) keeps" not in text


def test_several_sides_have_a_matrix_and_a_section_each(make_run: MakeRun) -> None:
    sides = clear_lead(make_run)
    sides.append(base_side(sides[0].run))
    page = compared(sides)
    assert "A (run-a) against 2 others: 2 won." in page.text
    assert "corrected (Holm) for 3 pairs looked at together" in page.text
    assert "A against B: run-b" in page.text and "A against C: base" in page.text
    assert {"metrics-1", "metrics-2"} <= set(page.values("section", "id"))
    assert len(page.values("svg", "aria-label")) > 10, "differences beside the floor"


def test_the_matrix_is_its_own_mirror(make_run: MakeRun) -> None:
    sides = clear_lead(make_run)
    sides.append(base_side(sides[0].run))
    rows = compare_report.matrix(sides, compare_all(sides, "similarity"))
    mirror = {"WIN": "LOSS", "LOSS": "WIN", "TIE": "TIE"}
    for i, j in [(0, 1), (0, 2), (1, 2)]:
        one, other = rows[i][j], rows[j][i]
        assert one is not None and other is not None
        assert one.verdict == mirror[other.verdict]
        assert one.difference[1:] == other.difference[1:] and one.difference[0] != other.difference[0]
    assert [rows[i][i] for i in range(3)] == [None] * 3


def test_the_terminal_table_has_a_row_a_metric_and_takes_names_as_text(make_run: MakeRun) -> None:
    a, b = make_run("run-a", metadata=(("name", "[red]a"),)), make_run("run-b", random=1)
    sides = [winner_side(a), winner_side(b)]
    text = terminal(sides)
    assert "[red]a" in text and "floor" in text
    assert all(METRICS[row.metric].label in text for row in compare(a, b).metrics)
    several = terminal([*sides, base_side(a)])
    assert "[red]a" in several and "all 3 pairs together (Holm)" in " ".join(several.split())


def terminal(sides: list[Side]) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(compare_report.table(sides, compare_all(sides, "similarity")))
    return console.export_text()


def test_the_file_of_a_page_is_named_safely(make_run: MakeRun) -> None:
    side = replace(base_side(make_run()), name="../<b>")
    assert compare_report.file_name([side, side]) == "compare-..-b--..-b-.html"
    assert len(compare_report.file_name([replace(side, name="x" * 80)] * 9)) < 200


def test_every_prompt_has_a_bar_with_its_images(make_run: MakeRun) -> None:
    comparison = compare(make_run("run-a", gain=0.1), make_run("run-b", random=1))
    found = compare_report.bars(comparison)
    assert found is not None
    values = comparison.differences["similarity"]
    order = sorted(range(6), key=lambda index: -values[index])
    prompts = comparison.a.run.metadata.prompts["test"]
    assert [bar.caption for bar in found.rows] == [prompts[index].text for index in order]
    assert [bar.better for bar in found.rows] == ["a" if values[index] > 0 else "b" for index in order]
    whole = max(0, *values) - min(0, *values)
    assert [bar.part for bar in found.rows] == pytest.approx(
        [abs(values[i]) / whole for i in order], abs=1e-4
    )
    assert found.zero == pytest.approx(max(0, *values) / whole, abs=1e-4)
    assert all([kind for _, kind, _ in bar.images] == ["a", "b"] for bar in found.rows)


def test_a_metric_that_is_not_paired_has_no_bars_and_still_a_page(make_run: MakeRun) -> None:
    sides = [winner_side(make_run("run-a")), winner_side(make_run("run-b", random=1))]
    comparisons = compare_all(sides, "kd")
    assert compare_report.bars(comparisons[0]) is None
    page = Page(compare_report.render(sides, comparisons))
    assert page.open == [] and "Every prompt, from A" not in page.text and page.values("img", "src")


def test_a_comparison_leads_to_the_reports_that_are_there(make_run: MakeRun) -> None:
    sides = clear_lead(make_run)
    assert "run-a/report.html" not in compared(sides).values("a", "href")
    search.write(sides[0].run)
    page, folder = compared(sides), sides[0].run.path.parent
    links = [link for link in page.values("a", "href") if link.endswith(".html")]
    assert {"run-a/report.html", "run-a/trials/0002/trial.html"} == set(links)
    assert all((folder / link).is_file() for link in page.values("a", "href") if not link.startswith("#"))


def test_settings_of_all_sides_stand_side_by_side(make_run: MakeRun) -> None:
    sides = clear_lead(make_run)
    sides.append(base_side(sides[0].run))
    rows = compare_report.side_settings(sides)
    config = sides[0].config
    assert config is not None
    assert next(row.values for row in rows if row.name == "rank") == [str(config.rank)] * 2 + ["–"]
    assert [row.differs for row in rows] == sorted((row.differs for row in rows), reverse=True)
    assert compare_report.side_settings(sides[1:]) == [], "there is one configuration only"


def test_a_comparison_without_images_says_so(make_run: MakeRun) -> None:
    sides = clear_lead(make_run)
    for side in sides:
        for folder in [*side.run.path.glob("*/*/*/test/images"), side.run.path / "real" / "test"]:
            shutil.rmtree(folder)
    page = compared(sides)
    assert page.open == [] and page.values("img", "src") == [] and "no image" in page.text


def test_best_and_worst_prompts_are_those_of_the_differences(make_run: MakeRun) -> None:
    comparison = compare(make_run("run-a", gain=0.2), make_run("run-b", random=1))
    order = list(np.argsort(comparison.differences["similarity"]))
    best, worst = compare_report.extremes(comparison)
    assert (worst, best) == (order[:3], order[::-1][:3])
