"""Comparison of two runs: differences, verdicts and refusals."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from bench.compare import compare
from bench.errors import MismatchError, MissingError
from bench.run import Run, epoch_folder
from bench.scoring.metrics import METRICS

MakeRun = Callable[..., Run]


def per_prompt(run: Run, metric: str) -> np.ndarray:
    """The winner's values, read from the files without the code under test."""
    result = json.loads((run.path / "result.json").read_text())
    winner = next(entry for entry in result["candidates"] if entry["label"] == result["winner"])
    files = [
        epoch_folder(run.path / "confirm" / record, winner["config"]["epochs"]) / "scores.json"
        for record in winner["records"]
    ]
    return np.mean([json.loads(file.read_text())["per_prompt"][metric] for file in files], axis=0)


@pytest.mark.parametrize("metric", [name for name in METRICS if METRICS[name].paired])
def test_differences_are_those_of_the_files(make_run: MakeRun, metric: str) -> None:
    a, b = make_run("run-a", gain=0.2), make_run("run-b", gain=0.1, random=1)
    expected = per_prompt(a, metric) - per_prompt(b, metric)
    comparison = compare(a, b)
    row = next(row for row in comparison.metrics if row.metric == metric)
    np.testing.assert_allclose(comparison.differences[metric], expected)
    assert row.mean == pytest.approx(expected.mean())
    assert row.low < row.mean < row.high


def test_a_clear_lead_is_a_win_and_a_loss_seen_from_the_other_side(make_run: MakeRun) -> None:
    a = make_run("run-a", gain=0.4, prompts=12, training_seeds=3)
    b = make_run("run-b", gain=0.0, prompts=12, training_seeds=3, random=1)
    assert compare(a, b).verdict == "WIN"
    assert compare(b, a).verdict == "LOSS"


def test_less_is_a_win_where_less_is_better(make_run: MakeRun) -> None:
    a = make_run("run-a", gain=0.0, prompts=12, training_seeds=3)
    b = make_run("run-b", gain=0.4, prompts=12, training_seeds=3, random=1)
    row = next(row for row in compare(a, b).metrics if row.metric == "drift")
    assert (row.mean < 0, row.verdict) == (True, "WIN")


def test_a_run_against_itself_is_a_tie_in_everything(make_run: MakeRun) -> None:
    run = make_run()
    comparison = compare(run, run)
    assert {row.verdict for row in comparison.metrics} == {"TIE"}
    assert {row.p_adjusted for row in comparison.metrics} == {1.0}


def test_equal_settings_are_a_tie(make_run: MakeRun) -> None:
    assert compare(make_run("run-a"), make_run("run-b", random=1)).verdict == "TIE"


def test_noise_between_trainings_widens_errors_and_weakens_proof(make_run: MakeRun) -> None:
    a, b = make_run("run-a", gain=0.13, prompts=12), make_run("run-b", prompts=12, random=1)
    calm = compare(a, b).main
    result = a.result()
    assert result is not None
    wild = json.loads((a.path / "result.json").read_text())
    for entry in wild["candidates"]:
        entry["seed_spread"] = {name: 0.2 for name in METRICS}
    (a.path / "result.json").write_text(json.dumps(wild))
    noisy = compare(a, b).main
    variance = calm.stderr**2 - result.candidates[1].seed_spread["similarity"] ** 2 / 2 + 0.2**2 / 2
    assert noisy.stderr == pytest.approx(variance**0.5)
    assert (calm.verdict, noisy.verdict) == ("WIN", "TIE")


@pytest.mark.parametrize(("training_seeds", "known"), [(2, True), (1, False)])
def test_says_whether_noise_between_trainings_is_in_it(
    make_run: MakeRun, training_seeds: int, known: bool
) -> None:
    a = make_run("run-a", training_seeds=training_seeds)
    assert compare(a, make_run("run-b", random=1)).seed_noise is known


def test_distances_need_the_features_of_the_real_pictures(make_run: MakeRun) -> None:
    a, b = make_run("run-a", gain=0.3), make_run("run-b", random=1)
    assert {"kd", "fid"} <= set(compare(a, b).untested)
    real = np.random.default_rng(3).normal(0, 1, (9, 8)).astype(np.float32)
    save_file({"features": real, "prompts": np.arange(9)}, a.path / "real" / "test" / "features.safetensors")
    comparison = compare(a, b)
    assert {"kd", "fid", "drift"} <= {row.metric for row in comparison.metrics}
    assert not {"kd", "fid", "drift"} & set(comparison.untested)


def test_distances_on_features_of_another_network_are_not_tested_on_ours(make_run: MakeRun) -> None:
    a, b = make_run("run-a", gain=0.3), make_run("run-b", random=1)
    other = {"value": 1.0, "stderr": 0.1, "num_images": 12, "num_prompts": 6, "extractor": "inception-v3"}
    for run in (a, b):
        data = json.loads((run.path / "result.json").read_text())
        for entry in data["candidates"]:
            entry["scores"]["drift_inception"] = other
        (run.path / "result.json").write_text(json.dumps(data))
    assert "drift_inception" in compare(a, b).untested


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("base_fingerprint", {"metadata": (("base_fingerprint", "0" * 64),)}),
        ("data_fingerprint", {"metadata": (("data_fingerprint", "0" * 64),)}),
        ("scorer_fingerprint", {"metadata": (("scorer_fingerprint", "0" * 64),)}),
        ("prompts_fingerprint", {"metadata": (("prompts_fingerprint", "0" * 64),)}),
        ("sampler.steps", {"space": (("sampler", {"steps": 30}),)}),
        ("sampler.guidance", {"space": (("sampler", {"guidance": 7.5}),)}),
        ("resolution", {"space": (("resolution", 128),)}),
        ("dtype", {"space": (("dtype", "bfloat16"),)}),
    ],
)
def test_unlike_runs_are_refused_by_the_field_that_differs(
    make_run: MakeRun, field: str, changes: dict[str, object]
) -> None:
    with pytest.raises(MismatchError) as caught:
        compare(make_run("run-a"), make_run("run-b", **changes))
    message = str(caught.value)
    assert f" {field} (" in message
    assert "\n" not in message and len(message) < 200


def test_every_field_that_differs_is_named(make_run: MakeRun) -> None:
    other = make_run("run-b", metadata=(("base_fingerprint", "0" * 64),), space=(("dtype", "bfloat16"),))
    with pytest.raises(MismatchError, match=r"base_fingerprint \(.*\), dtype \(float32 and bfloat16\)"):
        compare(make_run("run-a"), other)


def test_the_same_content_under_another_name_is_comparable(make_run: MakeRun) -> None:
    other = make_run("run-b", metadata=(("base", "./emoji-xl"), ("data", "./emoji-3d")))
    assert compare(make_run("run-a"), other).metrics


def test_a_run_without_result_says_what_has_to_happen(make_run: MakeRun) -> None:
    with pytest.raises(MissingError, match="run-b: no result yet; `bench search` has to finish first"):
        compare(make_run("run-a"), make_run("run-b", ending="interrupted"))


def test_a_lost_evaluation_is_missing_not_a_crash(make_run: MakeRun) -> None:
    run = make_run("run-a")
    lost: Path = next((run.path / "confirm").glob("0002-*/epoch-*/scores.json"))
    lost.unlink()
    with pytest.raises(MissingError, match="not scored"):
        compare(run, make_run("run-b"))
