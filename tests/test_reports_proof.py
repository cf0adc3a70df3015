"""The evidence in a search report: the choice, the noise floor, epochs, memorisation, preservation."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bench.run import Candidate, Result, Run, read_json, write_json
from bench.scoring.metrics import Score
from reports import checkpoints, choice, floor, images, memorization, preservation, proof, search, tables
from reports.verdict import contests, winner_of

MakeRun = Callable[..., Run]


def score(value: float, stderr: float = 0.01, **fields: Any) -> Score:
    given = {"num_images": 24, "num_prompts": 12, "extractor": "emoji-clip"}
    return Score(**{"value": value, "stderr": stderr, **given, **fields})


def finished(run: Run) -> Result:
    result = run.result()
    assert result is not None
    return result


def change_scores(run: Run, label: str, change: Callable[[dict[str, Any]], object]) -> Result:
    """Rewrite result.json with `change` made to the confirmed scores of a candidate."""
    data = read_json(run.path / "result.json")
    for candidate in data["candidates"]:
        if candidate["label"] == label:
            change(candidate["scores"])
    write_json(run.path / "result.json", data)
    return finished(run)


def text_of(run: Run) -> str:
    return " ".join(search.render(run).split())


# The choice


def test_search_choice_and_result_stand_side_by_side_as_gains(make_run: MakeRun) -> None:
    result = finished(make_run())
    candidate = winner_of(result)
    row = next(row for row in choice.rows(result) if row.kind == "winner")
    assert row.searched == (candidate.search["similarity"].gain, candidate.search["similarity"].gain_stderr)
    assert row.retrained and row.retrained.value == candidate.by_epoch[row.epochs]["similarity"].gain
    assert row.confirmed and row.confirmed.value == candidate.scores["similarity"].gain


def test_what_the_search_never_tried_has_no_searched_gain(make_run: MakeRun) -> None:
    result = finished(make_run())
    candidates = tuple(replace(candidate, search={}, search_epochs=None) for candidate in result.candidates)
    rows = choice.rows(replace(result, candidates=candidates))
    assert all(row.searched is None and row.faded == "–" for row in rows)


def test_regret_is_nothing_where_the_winner_is_the_best_on_the_test_prompts(make_run: MakeRun) -> None:
    run = make_run(gain=0.3)
    found = choice.regret(run, finished(run))
    assert (found.label, found.value) == ("0002", 0.0)
    assert "Regret 0." in found.sentence(winner_of(finished(run)))


def test_regret_is_the_lead_of_the_best_over_the_chosen_with_its_error(make_run: MakeRun) -> None:
    run = make_run(gain=0.3, prompts=12)
    result = replace(finished(run), winner="0001")
    found = choice.regret(run, result)
    best, chosen = (
        np.mean([e.per_prompt["similarity"] for e in run.evaluations(c, "test")], axis=0)
        for label in ("0002", "0001")
        for c in result.candidates
        if c.label == label
    )
    assert found.label == "0002" and found.value == pytest.approx(best.mean() - chosen.mean())
    assert found.stderr >= np.std(best - chosen, ddof=1) / np.sqrt(12) - 1e-12
    assert "trial 2 scores better than trial 1" in found.sentence(winner_of(result))


# The noise floor


def test_the_floor_of_the_table_is_that_of_the_winner_against_the_default(make_run: MakeRun) -> None:
    run = make_run(training_seeds=3)
    found, measured = floor.floor_table(run, finished(run)), run.floor()
    assert found is not None and measured is not None
    assert found.sides == (3, 3) and found.tested[0].name == "similarity"
    assert float(found.tested[0].smallest) == pytest.approx(measured.smallest("similarity", 3, 3), rel=0.05)
    assert {row.name for row in found.others} >= {"fid", "nearest"}


def test_gains_are_shown_with_the_bands_in_which_they_are_a_tie(make_run: MakeRun) -> None:
    run = make_run(training_seeds=3)
    result = finished(run)
    found = contests(run, result)
    base, default = proof.bands(result, "similarity", found)
    gain = next(c for c in result.candidates if c.label == "default").scores["similarity"].gain
    assert found.over_default is not None and found.over_default.main is not None
    assert base.low == -base.high and (default.low + default.high) / 2 == pytest.approx(gain)
    assert default.high - default.low == pytest.approx(2 * (found.over_default.main.floor or 0))


def test_lines_of_gains_are_the_intervals_of_the_comparison_with_the_base(make_run: MakeRun) -> None:
    run = make_run(training_seeds=3)
    found = contests(run, finished(run))
    shown = proof.gains(finished(run), "similarity", found)
    won = next(row for row in shown.rows if row.kind == "winner")
    main = found.over_base["0002"].main
    assert main is not None and shown.lines == "95 % intervals" and len(shown.rows) == 3
    assert (won.gain, won.low, won.high) == (main.mean, main.low, main.high)
    assert won.high - won.low > 4 * main.stderr
    assert "lines: 95 % intervals" in text_of(run)


def test_where_one_gain_was_not_compared_all_lines_are_two_standard_errors(make_run: MakeRun) -> None:
    run = make_run(training_seeds=3)
    found = contests(run, finished(run))
    del found.over_base["0001"]
    shown = proof.gains(finished(run), "similarity", found)
    assert shown.lines == "± 2 standard errors" and len(shown.rows) == 3
    assert [row.high - row.gain for row in shown.rows] == pytest.approx([2 * r.stderr for r in shown.rows])


def test_the_floor_is_said_to_be_the_luck_of_the_default_alone(make_run: MakeRun) -> None:
    text = text_of(make_run(training_seeds=3))
    assert "It is the luck of the default configuration; a stronger one may vary much more" in text
    assert "exceeds the floor 4 times<br>of 5" in text and "A WIN needs more than that" in text


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"space": (("floor", 0),), "floor": False}, "without it (floor: 0)"),
        ({"training_seeds": 1}, "fewer than 2 trainings of the default"),
        ({"ending": "interrupted"}, "has not been measured yet"),
    ],
)
def test_a_missing_floor_is_said(make_run: MakeRun, fields: dict[str, Any], sentence: str) -> None:
    run = make_run(**fields)
    assert run.floor() is None and sentence in text_of(run)


# Scores of two networks


def test_scores_are_told_apart_by_the_network_that_measured(make_run: MakeRun) -> None:
    run = make_run()
    groups = tables.confirmed(finished(run), {}).groups
    assert [group.title.split(":")[0] for group in groups] == ["The scorer", "The judge"]
    assert [row.heading.name.startswith("judge_") for row in groups[1].rows] == [True] * 3


def test_a_caution_stands_beside_its_number(make_run: MakeRun) -> None:
    run = make_run()
    reason = "12 images < 2 × 256 dimensions: mostly bias"
    result = change_scores(run, "0002", lambda scores: scores["fid"].update(caution=reason))
    rows = {row.heading.name: row for row in tables.confirmed(result, {}).groups[0].rows}
    assert rows["fid"].caution == reason and [bool(c.caution) for c in rows["fid"].cells].count(True) == 1
    assert rows["similarity"].caution == ""
    assert '<span class="caution" title="12 images &lt; 2' in text_of(run)


def test_the_clip_score_is_said_in_the_scales_of_papers() -> None:
    assert tables.clip_scales(0.31) == "raw 0.31 = 31 on the ×100 scale = 0.78 on Hessel's"


# Epochs


EPOCHS = {
    2: {"similarity": score(0.5), "nearest": score(0.6), "diversity": score(0.3)},
    4: {"similarity": score(0.6), "nearest": score(0.65), "diversity": score(0.28)},
    8: {"similarity": score(0.6), "nearest": score(0.75), "diversity": score(0.2)},
}


def test_over_training_is_more_memory_and_less_variety_for_nothing() -> None:
    assert checkpoints.overtrained_after(EPOCHS, "similarity") == 4


@pytest.mark.parametrize(
    ("name", "value"),
    [("similarity", 0.7), ("nearest", 0.65), ("nearest", 0.66), ("diversity", 0.29)],
)
def test_over_training_needs_all_of_it(name: str, value: float) -> None:
    changed = EPOCHS | {8: EPOCHS[8] | {name: score(value)}}
    assert checkpoints.overtrained_after(changed, "similarity") is None


def test_without_memorisation_metrics_nothing_is_said_of_over_training() -> None:
    bare = {epoch: {"similarity": scores["similarity"]} for epoch, scores in EPOCHS.items()}
    assert checkpoints.overtrained_after(bare, "similarity") is None


def test_epochs_are_shown_with_the_chosen_one_and_the_warning(make_run: MakeRun) -> None:
    run = make_run()
    result = with_epochs(finished(run))
    found = checkpoints.checkpoints(result)
    assert found is not None and found.epochs == [2, 4, 8]
    line = next(line for line in found.lines if line.kind == "winner")
    assert line.values == [0.5, 0.6, 0.6] and line.chosen == winner_of(result).config.epochs
    assert "after 4 epochs it memorises more and varies less without getting better" in found.warnings[0]
    run.write_result(result)
    assert found.warnings[0] in text_of(run)


def with_epochs(result: Result) -> Result:
    def changed(candidate: Candidate) -> Candidate:
        return replace(candidate, by_epoch=EPOCHS) if candidate.label == result.winner else candidate

    return replace(result, candidates=tuple(map(changed, result.candidates)))


def test_one_epoch_has_no_section(make_run: MakeRun) -> None:
    result = finished(make_run())
    kept = tuple(replace(c, by_epoch={2: c.search}) for c in result.candidates)
    assert checkpoints.checkpoints(replace(result, candidates=kept)) is None


# Memorisation


def test_the_nearest_pairs_are_those_of_the_features(make_run: MakeRun) -> None:
    run = make_run()
    found = memorization.panel(run, finished(run), {})
    assert found is not None and len(found.pairs) == 2
    evaluation, pictures = run.evaluations(winner_of(finished(run)), "test")[0], run.pictures("train")
    assert pictures is not None and pictures.judge_features is not None
    cosines = evaluation.judge_features @ pictures.judge_features.T
    first = found.pairs[1].rows[0]
    assert first.cells[0].value == pytest.approx(cosines.max(), abs=1e-6)
    prompt, picture = np.argwhere(cosines == cosines.max())[0]
    assert first.caption == run.metadata.prompts["test"][prompt // 2].text
    file = run.path / "real" / "train" / f"{picture:04d}.webp"
    assert first.cells[1].thumbnails == [images.thumbnail(file)]
    assert [row.caption for row in found.pairs[0].rows] == ["training 0"]


def test_no_alarm_is_said_and_an_alarm_too(make_run: MakeRun) -> None:
    run = make_run()
    change_scores(run, "0002", lambda scores: scores["loss_gap"].update(value=0.0))
    assert "No sign of memorisation was found." in text_of(run)
    copied = {"value": 0.9, "stderr": 0.02, "gain": 0.89, "gain_stderr": 0.02}
    change_scores(run, "0002", lambda scores: scores["copies"].update(copied))
    text = text_of(run)
    assert "Look closely" in text and "No sign of memorisation" not in text
    assert "90.0% of the images are nearer to a training picture" in text
    assert "not a verdict" in text


def test_without_training_features_there_are_numbers_and_no_pairs(make_run: MakeRun) -> None:
    run = make_run()
    (run.path / "real" / "train" / "features.safetensors").unlink()
    found = memorization.panel(run, finished(run), {})
    assert found is not None and found.pairs == [] and found.rows and found.threshold is None


# Preservation


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.001, "Trial 2 still draws what unrelated prompts say"),
        (-0.003, "It was not shown that trial 2 still draws what unrelated prompts say"),
        (-0.03, "Trial 2 follows unrelated prompts less well than the base"),
    ],
)
def test_preservation_is_non_inferiority_in_words(make_run: MakeRun, value: float, words: str) -> None:
    won = winner_of(finished(make_run()))
    won.scores["clip_change"] = score(value, 0.002)
    assert preservation.sentence(won).startswith(words)


def test_without_probes_there_is_no_preservation(make_run: MakeRun) -> None:
    run = make_run(probes=False)
    assert preservation.panel(finished(run)) is None
    assert "What happened to everything else?" not in text_of(run)


# Every state


@pytest.mark.parametrize(
    "fields",
    [
        {"judge": False},
        {"floor": False},
        {"probes": False},
        {"judge": False, "floor": False, "probes": False, "training_seeds": 1},
        {"winner": "default"},
        {"space": (("select_by", "kd"), ("objectives", ["kd", "similarity"]))},
        {"space": (("select_by", "diversity"), ("objectives", ["diversity", "similarity"]))},
    ],
    ids=str,
)
def test_a_page_is_written_whatever_was_measured(make_run: MakeRun, fields: dict[str, Any]) -> None:
    text = text_of(make_run(**fields))
    assert "Did the search flatter its finds?" in text
    assert ("had no judge" in text) == (fields.get("judge") is False)


def test_a_run_that_lost_its_evaluations_still_has_a_report(make_run: MakeRun) -> None:
    run = make_run()
    for file in [*run.path.glob("confirm/*/*/test/scores.json"), run.path / "base" / "test" / "scores.json"]:
        file.unlink()
    assert "Confirmed scores" in text_of(run)


def test_origin_names_the_judge_and_what_a_reader_should_know(make_run: MakeRun) -> None:
    run = make_run(metadata=(("notes", ("3 captions were cut at 77 <tokens>",)),))
    text = text_of(run)
    assert "emoji-judge (1d1d1d1d1d1d)" in text and "3 captions were cut at 77 &lt;tokens&gt;" in text
    assert "none: no second network confirms" in text_of(make_run("run-b", judge=False))
