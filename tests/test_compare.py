"""Comparison of sides: differences, verdicts and refusals, against scipy, statsmodels and brute force."""

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from bench.comparison import (
    Comparison,
    MetricComparison,
    Side,
    adapter_side,
    base_side,
    candidate_side,
    compare,
    compare_all,
    compare_sides,
    winner_side,
)
from bench.errors import MismatchError, MissingError, UsageError
from bench.floor import Floor, MetricFloor
from bench.run import Run, epoch_folder, image_files, read_evaluation, start_adapter, write_evaluation
from bench.scoring.metrics import METRICS, Score

MakeRun = Callable[..., Run]
PAIRED = ["similarity", "clip_score", "diversity", "judge_similarity", "judge_diversity"]


def winner_folders(run: Run) -> list[Path]:
    """Of the winner's trainings, found without the code under test."""
    result = json.loads((run.path / "result.json").read_text())
    winner = next(entry for entry in result["candidates"] if entry["label"] == result["winner"])
    return [
        epoch_folder(run.path / "confirm" / record, winner["config"]["epochs"])
        for record in winner["records"]
    ]


def per_prompt(run: Run, metric: str, split: str = "test") -> np.ndarray:
    files = [folder / split / "scores.json" for folder in winner_folders(run)]
    return np.mean([json.loads(file.read_text())["per_prompt"][metric] for file in files], axis=0)


def edit(file: Path, change: Callable[[Any], object]) -> None:
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def shift(run: Run, metric: str, by: float) -> None:
    """Add to every prompt's value of the winner."""

    def change(data: Any) -> None:
        data["per_prompt"][metric] = [value + by for value in data["per_prompt"][metric]]

    for folder in winner_folders(run):
        edit(folder / "test" / "scores.json", change)


def row_of(comparison: Comparison, metric: str) -> MetricComparison:
    row = comparison.row(metric)
    assert row is not None
    return row


def without_floor(*runs: Run) -> None:
    for run in runs:
        (run.path / "floor.json").unlink(missing_ok=True)


@pytest.fixture
def clear(make_run: MakeRun) -> tuple[Run, Run]:
    """A is far better than B, in all that is tested of test prompts."""
    a = make_run("run-a", gain=0.4, prompts=12, training_seeds=3)
    return a, make_run("run-b", gain=0.0, prompts=12, training_seeds=3, random=1)


# One metric


@pytest.mark.parametrize("metric", PAIRED)
def test_differences_are_those_of_the_files(make_run: MakeRun, metric: str) -> None:
    a, b = make_run("run-a", gain=0.2), make_run("run-b", gain=0.1, random=1)
    expected = per_prompt(a, metric) - per_prompt(b, metric)
    comparison = compare(a, b)
    row = row_of(comparison, metric)
    np.testing.assert_allclose(comparison.differences[metric], expected)
    assert row.mean == pytest.approx(expected.mean())
    assert row.low < row.mean < row.high


@pytest.mark.parametrize("metric", PAIRED)
def test_means_are_tested_by_sign_flips_and_have_students_interval(make_run: MakeRun, metric: str) -> None:
    a = make_run("run-a", prompts=8, training_seeds=1)
    b = make_run("run-b", prompts=8, training_seeds=1, random=1, gain=0.09)
    values = per_prompt(a, metric) - per_prompt(b, metric)
    oracle = stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf)
    ends = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    row = row_of(compare(a, b), metric)
    assert row.p_value == pytest.approx(oracle.pvalue)
    assert (row.low, row.high) == pytest.approx((ends.low, ends.high))


def kernel_distance(x: np.ndarray, y: np.ndarray, x_groups: np.ndarray, y_groups: np.ndarray) -> float:
    """Mean over all pairs of different groups, pair by pair."""

    def mean(u: np.ndarray, v: np.ndarray, gu: np.ndarray, gv: np.ndarray) -> float:
        pairs = itertools.product(zip(u, gu, strict=True), zip(v, gv, strict=True))
        kept = [(float(one @ other) + 1) ** 3 for (one, g), (other, h) in pairs if g != h]
        return math.fsum(kept) / len(kept)

    return 1000 * (
        mean(x, x, x_groups, x_groups) + mean(y, y, y_groups, y_groups) - 2 * mean(x, y, x_groups, y_groups)
    )


@pytest.mark.parametrize("metric", ["kd", "judge_kd"])
def test_kernel_distances_are_tested_by_swaps_of_whole_prompts(make_run: MakeRun, metric: str) -> None:
    runs = make_run("run-a", training_seeds=1, prompts=5), make_run("run-b", training_seeds=1, prompts=5)
    shift_features(runs[0])
    pictures = runs[0].pictures("test")
    assert pictures is not None and pictures.judge_features is not None
    key = "features" if metric == "kd" else "judge_features"
    real, groups = getattr(pictures, key).astype(float), np.repeat(np.arange(5), 2)
    x, y = (
        getattr(read_evaluation(winner_folders(run)[0] / "test"), key).astype(float).reshape(5, 2, -1)
        for run in runs
    )

    def difference(swapped: tuple[bool, ...]) -> float:
        turn = np.array(swapped)[:, None, None]
        sides = (np.where(turn, y, x), np.where(turn, x, y))
        first, second = (
            kernel_distance(side.reshape(10, -1), real, groups, pictures.prompts) for side in sides
        )
        return first - second

    swaps = [difference(swapped) for swapped in itertools.product([False, True], repeat=5)]
    row = row_of(compare(*runs), metric)
    assert row.mean == pytest.approx(swaps[0], rel=1e-4)
    assert row.p_value == pytest.approx(np.mean(np.abs(swaps) >= abs(swaps[0]) * (1 - 1e-6)))


def shift_features(run: Run) -> None:
    """So that both sides of the same random numbers differ."""
    for folder in winner_folders(run):
        found = read_evaluation(folder / "test")
        rng = np.random.default_rng(8)
        moved = [
            (array + rng.normal(0, 0.2, array.shape)).astype(np.float32)
            for array in (found.features, found.judge_features)
            if array is not None
        ]
        first, second = (array / np.linalg.norm(array, axis=1, keepdims=True) for array in moved)
        images = np.zeros((len(first), 8, 8, 3), np.uint8)
        write_evaluation(folder / "test", replace(found, features=first, judge_features=second), images)


def test_p_values_are_corrected_by_holm_over_tested_metrics(make_run: MakeRun) -> None:
    comparison = compare(make_run("run-a", gain=0.13), make_run("run-b", random=1))
    raw = [row.p_value for row in comparison.metrics]
    assert [row.metric for row in comparison.metrics] == [m for m in METRICS if METRICS[m].role == "tested"]
    np.testing.assert_allclose(
        [row.p_adjusted for row in comparison.metrics], multipletests(raw, method="holm")[1]
    )


def test_noise_between_trainings_widens_errors_and_weakens_proof(make_run: MakeRun) -> None:
    a, b = make_run("run-a", gain=0.2, prompts=12), make_run("run-b", prompts=12, random=1)
    without_floor(a, b)
    calm = row_of(compare(a, b), "similarity")

    def wild(data: Any) -> None:
        for entry in data["candidates"]:
            entry["seed_spread"] = dict.fromkeys(METRICS, 0.2)

    for run in (a, b):
        edit(run.path / "result.json", wild)
    noisy = row_of(compare(a, b), "similarity")
    prompts = stats.sem(per_prompt(a, "similarity") - per_prompt(b, "similarity")) ** 2
    parts = [(prompts, 11), (0.2**2 / 2, 1), (0.2**2 / 2, 1)]
    stderr = math.sqrt(sum(variance for variance, _ in parts))
    freedom = stderr**4 / sum(variance**2 / degrees for variance, degrees in parts)
    assert noisy.stderr == pytest.approx(stderr)
    assert noisy.p_value == pytest.approx(2 * stats.t.sf(abs(noisy.mean) / stderr, freedom))
    assert (noisy.low, noisy.high) == pytest.approx(stats.t.interval(0.95, freedom, noisy.mean, stderr))
    assert (calm.verdict, noisy.verdict) == ("WIN", "TIE")


@pytest.mark.parametrize(("training_seeds", "alone"), [(2, []), (1, ["run-a"])])
def test_says_whose_noise_between_trainings_is_not_known(
    make_run: MakeRun, training_seeds: int, alone: list[str]
) -> None:
    a = make_run("run-a", training_seeds=training_seeds)
    comparison = compare(a, make_run("run-b", random=1))
    assert [side.name for side in comparison.one_training] == alone


def test_without_features_of_real_pictures_distances_are_not_tested(make_run: MakeRun) -> None:
    a, b = make_run("run-a", gain=0.3), make_run("run-b", random=1)
    (a.path / "real" / "test" / "features.safetensors").unlink()
    comparison = compare(a, b)
    assert comparison.untested == ("kd", "judge_kd")
    assert not {"kd", "judge_kd"} & {row.metric for row in comparison.metrics}


# Unrelated prompts


def test_the_change_of_unrelated_prompts_is_that_of_these_probes_alone(make_run: MakeRun) -> None:
    a, b = make_run("run-a"), make_run("run-b", random=1)
    kinds = [record.kind for record in a.metadata.prompts["probe"]]

    def lower(data: Any) -> None:
        values = data["per_prompt"]["clip_score"]
        data["per_prompt"]["clip_score"] = [
            value - (0.1 + 0.01 * index if kind == "unrelated" else 0.5)
            for index, (value, kind) in enumerate(zip(values, kinds, strict=True))
        ]

    for folder in winner_folders(a):
        edit(folder / "probe" / "scores.json", lower)
    at = [kind == "unrelated" for kind in kinds]
    expected = per_prompt(a, "clip_score", "probe")[at] - per_prompt(b, "clip_score", "probe")[at]
    comparison = compare(a, b)
    row = row_of(comparison, "clip_change")
    assert row.num_prompts == 3
    np.testing.assert_allclose(comparison.differences["clip_change"], expected)
    assert row.mean == pytest.approx(-0.14)


def test_non_inferiority_to_the_base_is_students_interval_against_the_margin(make_run: MakeRun) -> None:
    side = winner_side(make_run())
    found, score = side.preservation, side.scores["clip_change"]
    assert found is not None
    low, high = stats.t.interval(0.95, score.num_prompts - 1, score.value, score.stderr)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.verdict == ("kept" if low > -0.005 else "lost" if high < 0 else "not shown")


def test_the_base_has_not_changed_from_itself(make_run: MakeRun) -> None:
    run = make_run()
    base = base_side(run)
    assert (base.scores["clip_change"].value, base.preservation) == (0.0, None)
    assert row_of(compare_sides(winner_side(run), base, "similarity"), "clip_change").num_prompts == 3


# The floor


def flat_floor(run: Run, spread: float, num_seeds: int = 4) -> None:
    metrics = {name: MetricFloor(seed_spread=spread, image_spread=None) for name in METRICS}
    run.write_floor(Floor(num_seeds=num_seeds, num_prompts=12, metrics=metrics))


def test_a_difference_inside_the_floor_is_a_tie_whatever_its_p(clear: tuple[Run, Run]) -> None:
    a, b = clear
    without_floor(a, b)
    free = row_of(compare(a, b), "similarity")
    assert (free.floor, free.inside_floor, free.verdict) == (None, False, "WIN")
    spread = free.mean / (stats.t.ppf(0.975, 3) * math.sqrt(1 / 3 + 1 / 3))
    flat_floor(a, spread * 0.99)
    flat_floor(b, spread * 0.5)
    outside = row_of(compare(a, b), "similarity")
    assert (outside.inside_floor, outside.verdict) == (False, "WIN")
    flat_floor(b, spread * 1.01)
    comparison = compare(a, b)
    inside = row_of(comparison, "similarity")
    assert (inside.inside_floor, inside.verdict, inside.p_adjusted) == (True, "TIE", free.p_adjusted)
    assert (comparison.verdict, comparison.reason) == ("TIE", "the difference is inside the noise floor")
    assert inside.floor == pytest.approx(1.01 * free.mean)


def test_the_base_has_no_noise_of_training(clear: tuple[Run, Run]) -> None:
    a, _ = clear
    flat_floor(a, 0.01)
    comparison = compare_sides(winner_side(a), base_side(a), "similarity")
    assert row_of(comparison, "similarity").floor == pytest.approx(
        stats.t.ppf(0.975, 3) * 0.01 / math.sqrt(3)
    )
    assert (comparison.verdict, comparison.one_training) == ("WIN", ())


def test_says_that_no_floor_is_known(clear: tuple[Run, Run]) -> None:
    without_floor(*clear)
    comparison = compare(*clear)
    assert not comparison.floor_known
    assert "no noise floor being known" in comparison.reason


# The overall verdict


def test_a_clear_lead_is_a_win_and_a_loss_seen_from_the_other_side(clear: tuple[Run, Run]) -> None:
    a, b = clear
    won, lost = compare(a, b), compare(b, a)
    assert (won.verdict, lost.verdict) == ("WIN", "LOSS")
    assert won.reason.endswith("and outside the noise floor, and the judge confirms it")
    assert [row.mean for row in won.metrics] == pytest.approx([-row.mean for row in lost.metrics])
    assert [row.p_adjusted for row in won.metrics] == pytest.approx([row.p_adjusted for row in lost.metrics])


def test_less_is_a_win_where_less_is_better(clear: tuple[Run, Run]) -> None:
    row = row_of(compare(*clear), "kd")
    assert (row.mean < 0, row.verdict) == (True, "WIN")


@pytest.mark.parametrize(
    ("by", "verdict", "reason"),
    [(0.0, "WIN", "the judge confirms it"), (-3.0, "TIE", "the judge sees the opposite")],
)
def test_the_judge_must_say_the_same(clear: tuple[Run, Run], by: float, verdict: str, reason: str) -> None:
    shift(clear[0], "judge_similarity", by)
    comparison = compare(*clear)
    assert (row_of(comparison, "similarity").verdict, comparison.verdict) == ("WIN", verdict)
    assert comparison.reason.endswith(reason)


def test_a_judge_that_cannot_tell_confirms_nothing(clear: tuple[Run, Run]) -> None:
    a, b = clear
    without_floor(a, b)
    lead = float((per_prompt(a, "judge_similarity") - per_prompt(b, "judge_similarity")).mean())
    shift(a, "judge_similarity", -lead)
    comparison = compare(a, b)
    assert comparison.verdict == "TIE"
    assert comparison.reason.startswith(
        "the judge does not confirm it: its difference is no more than chance"
    )


def test_without_a_judge_the_metric_of_choice_decides_and_that_is_said(clear: tuple[Run, Run]) -> None:
    def forget(data: Any) -> None:
        for entry in data["candidates"]:
            entry["scores"] = {k: v for k, v in entry["scores"].items() if not k.startswith("judge_")}

    for run in clear:
        edit(run.path / "result.json", forget)
    comparison = compare(*clear)
    assert (comparison.judge, comparison.verdict) == (None, "WIN")
    assert comparison.reason.endswith("no judge was there to confirm it")


def test_too_few_prompts_prove_nothing(make_run: MakeRun) -> None:
    a = make_run("run-a", gain=0.4, prompts=5)
    comparison = compare(a, make_run("run-b", gain=0.0, prompts=5, random=1))
    assert comparison.verdict == "TIE"
    assert comparison.reason.startswith("the difference is no more than chance may give, p = ")


def test_a_metric_that_is_only_shown_decides_nothing(clear: tuple[Run, Run]) -> None:
    comparison = compare_sides(*map(winner_side, clear), "fid")
    assert (comparison.main, comparison.verdict) == (None, "TIE")
    assert comparison.reason == "FID to real images is shown without a verdict: it is never tested"


def test_a_run_against_itself_is_a_tie_in_everything(make_run: MakeRun) -> None:
    run = make_run()
    comparison = compare(run, run)
    assert {row.verdict for row in comparison.metrics} == {"TIE"}
    assert {row.p_adjusted for row in comparison.metrics} == {1.0}


# What is shown


def test_metrics_that_are_not_tested_are_shown_with_their_difference(make_run: MakeRun) -> None:
    a, b = make_run("run-a", gain=0.2), make_run("run-b", random=1)
    comparison = compare(a, b)
    shown = {row.metric: row for row in comparison.shown}
    assert set(shown) == {"vendi", "fid", "drift", "nearest", "copies", "shift", "loss_gap"}
    assert not set(shown) & {row.metric for row in comparison.metrics}
    expected = per_prompt(a, "vendi") - per_prompt(b, "vendi")
    assert shown["vendi"].mean == pytest.approx(expected.mean())


def test_what_the_base_has_no_score_of_is_shown_of_the_other_alone(make_run: MakeRun) -> None:
    run = make_run()
    comparison = compare_sides(winner_side(run), base_side(run), "similarity")
    row = next(row for row in comparison.shown if row.metric == "shift")
    assert (row.a is not None, row.b, row.mean) == (True, None, None)


# Sides


def test_candidates_of_one_run_can_be_compared(make_run: MakeRun) -> None:
    run = make_run(gain=0.4, prompts=12, training_seeds=3)
    result = run.result()
    assert result is not None
    sides = {c.label: candidate_side(run, c) for c in result.candidates}
    comparison = compare_sides(sides["0002"], sides["default"], "similarity")
    assert (comparison.verdict, comparison.a.name, comparison.b.name) == ("WIN", "0002", "default")
    assert winner_side(run).name == run.metadata.name


def add_adapter(run: Run, label: str, file: Path) -> Side:
    """As if the first training of the winner had been an adapter file."""
    source = winner_folders(run)[0]
    start_adapter(run.adapter_folder(label), file, label * 8)
    for split in ("test", "probe"):
        images = np.zeros((len(image_files(source / split)), 8, 8, 3), np.uint8)
        write_evaluation(run.adapter_folder(label) / split, read_evaluation(source / split), images)
    return adapter_side(run, label)


def test_an_adapter_is_one_training(make_run: MakeRun) -> None:
    run = make_run(gain=0.4, prompts=12)
    side = add_adapter(run, "0a1b2c3d4e5f", Path("some/where.safetensors"))
    flat_floor(run, 0.01)
    comparison = compare_sides(side, base_side(run), "similarity")
    assert (side.name, side.config, side.num_trainings) == ("where", None, 1)
    assert [entry.name for entry in comparison.one_training] == ["where"]
    assert row_of(comparison, "similarity").floor == pytest.approx(stats.t.ppf(0.975, 3) * 0.01)
    assert comparison.verdict == "WIN"


def test_an_adapter_that_was_not_scored_is_missing(make_run: MakeRun) -> None:
    with pytest.raises(MissingError, match="no such adapter"):
        adapter_side(make_run(), "0a1b2c3d4e5f")


def test_a_run_without_result_says_what_has_to_happen(make_run: MakeRun) -> None:
    with pytest.raises(MissingError, match="run-b: no result yet; `bench search` has to finish first"):
        compare(make_run("run-a"), make_run("run-b", ending="interrupted"))


def test_a_lost_evaluation_is_missing_not_a_crash(make_run: MakeRun) -> None:
    run = make_run("run-a")
    (winner_folders(run)[0] / "test" / "scores.json").unlink()
    with pytest.raises(MissingError, match="not scored"):
        compare(run, make_run("run-b"))


def test_a_side_without_the_metric_of_choice_is_refused(make_run: MakeRun) -> None:
    with pytest.raises(MissingError, match="run-a is not scored by cmmd"):
        compare_sides(winner_side(make_run("run-a")), winner_side(make_run("run-b")), "cmmd")


# Several pairs


def test_overall_verdicts_are_corrected_for_all_pairs(make_run: MakeRun) -> None:
    runs = [make_run(f"run-{i}", gain=g, prompts=12, random=i) for i, g in enumerate((0.3, 0.1, 0.1))]
    sides = [winner_side(run) for run in runs]
    alone = [compare_sides(a, b, "similarity") for a, b in itertools.combinations(sides, 2)]
    together = compare_all(sides, "similarity")
    both = [max(row_of(c, "similarity").p_adjusted, row_of(c, "judge_similarity").p_adjusted) for c in alone]
    np.testing.assert_allclose([c.p_value for c in alone], both)
    np.testing.assert_allclose([c.p_value for c in together], multipletests(both, method="holm")[1])
    assert [(c.a.name, c.b.name) for c in together] == [
        ("run-0", "run-1"),
        ("run-0", "run-2"),
        ("run-1", "run-2"),
    ]
    assert {c.num_pairs for c in together} == {3}


def test_a_win_that_does_not_survive_the_correction_for_pairs_is_a_tie(make_run: MakeRun) -> None:
    sketch = {"prompts": 10, "training_seeds": 1}
    first = make_run("run-0", gain=0.5, **sketch)
    others = [make_run(f"run-{i}", gain=0.1, random=i, **sketch) for i in (1, 2, 3)]
    sides = [winner_side(run) for run in (first, *others)]
    alone, corrected = compare_sides(sides[0], sides[1], "similarity"), compare_all(sides, "similarity")[0]
    assert (alone.verdict, corrected.verdict) == ("WIN", "TIE")
    assert "p = 0.094 after correction for 6 pairs" in corrected.reason


def test_a_side_given_twice_is_refused(make_run: MakeRun) -> None:
    run = make_run()
    with pytest.raises(UsageError, match="run-a and run-a are the same: there is nothing to compare"):
        compare_all([winner_side(run), winner_side(Run.open(run.path))], "similarity")


# Refusal


def fingerprint(name: str) -> dict[str, object]:
    return {"metadata": ((f"{name}_fingerprint", "0" * 64),)}


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("base (emoji-xl b4b4b4b4 and emoji-xl 00000000)", fingerprint("base")),
        ("data (emoji-3d dadadada and emoji-3d 00000000)", fingerprint("data")),
        ("scorer (bundled 5c5c5c5c and bundled 00000000)", fingerprint("scorer")),
        ("judge (emoji-judge 1d1d1d1d and emoji-judge 00000000)", fingerprint("judge")),
        ("number of test prompts (6 and 7)", {"prompts": 7}),
        ("text of test prompt 0 (a red apple, number 0 and a pear, number 0)", {"caption": "a pear"}),
        ("seeds of test prompt 0 ((1000, 1001) and (1000, 1001, 1002))", {"seeds": 3}),
        ("sampler.steps (20 and 30)", {"space": (("sampler", {"steps": 30}),)}),
        ("sampler.guidance (5.0 and 7.5)", {"space": (("sampler", {"guidance": 7.5}),)}),
        ("resolution (None and 128)", {"space": (("resolution", 128),)}),
        ("dtype (float32 and bfloat16)", {"space": (("dtype", "bfloat16"),)}),
        ("torch (2.11 and 2.12)", {"metadata": (("versions", {"torch": "2.12.0", "diffusers": "0.42.0"}),)}),
    ],
)
def test_unlike_runs_are_refused_with_both_values(
    make_run: MakeRun, message: str, changes: dict[str, object]
) -> None:
    with pytest.raises(MismatchError) as caught:
        compare(make_run("run-a"), make_run("run-b", **changes))
    assert str(caught.value) == f"run-a and run-b cannot be compared, they differ in {message}"


def test_kinds_of_probes_must_agree(make_run: MakeRun) -> None:
    a, b = make_run("run-a"), make_run("run-b")

    def other(data: Any) -> None:
        data["prompts"]["probe"][1]["kind"] = "style"

    edit(b.path / "run.json", other)
    with pytest.raises(MismatchError, match=r"kind of probe prompt 1 \(altered and style\)"):
        compare(a, Run.open(b.path))


def test_every_field_that_differs_is_named(make_run: MakeRun) -> None:
    metadata = [(f"{name}_fingerprint", "0" * 64) for name in ("base", "data", "scorer", "judge")]
    metadata += [("versions", {"torch": "2.12.0", "diffusers": "0.42.0"})]  # type: ignore[list-item]
    space = (("dtype", "bfloat16"), ("sampler", {"steps": 30, "guidance": 7.5}), ("resolution", 64))
    other = make_run("run-b", metadata=tuple(metadata), space=space, caption="a\nb", seeds=3)
    with pytest.raises(MismatchError) as caught:
        compare(make_run("run-a"), other)
    message = str(caught.value)
    named = ["base", "data", "scorer", "judge", "text of test prompt 0", "seeds of test prompt 0"]
    named += ["sampler.steps", "sampler.guidance", "resolution", "dtype", "torch"]
    assert all(f" {name} (" in message for name in named)
    assert "\n" not in message


@pytest.mark.parametrize(
    "metadata",
    [
        (("base", "./emoji-xl"), ("data", "./emoji-3d")),
        (("device", "cuda"), ("machine", "another")),
        (
            (
                "versions",
                {"bench": "9", "torch": "2.11.1+cpu", "diffusers": "0.42.3", "numpy": "9", "optuna": "9"},
            ),
        ),
    ],
)
def test_other_names_machines_and_patches_do_not_matter(
    make_run: MakeRun, metadata: tuple[tuple[str, object], ...]
) -> None:
    assert compare(make_run("run-a"), make_run("run-b", metadata=metadata)).metrics


def test_scores_survive_as_they_are(make_run: MakeRun) -> None:
    run = make_run()
    result = run.result()
    assert result is not None
    row = row_of(compare(run, run), "similarity")
    winner = next(c for c in result.candidates if c.label == result.winner)
    assert asdict(row.a) == asdict(winner.scores["similarity"])
    assert isinstance(row.b, Score)
