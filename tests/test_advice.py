"""Advice: each trouble from constructed records, with its number and its next step."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bench.advice import Failure, Observed, advise, of_search
from bench.config import TrialConfig
from bench.run import Run, write_losses
from bench.scoring.metrics import Score
from reports.search import render

IMAGES = {"train": 40, "dev": 8, "test": 8}


def score(value: float, gain: float | None = None, stderr: float = 0.01, **fields: Any) -> Score:
    known = {"num_images": 96, "num_prompts": 48, "extractor": "x", **fields}
    return Score(value=value, stderr=stderr, gain=gain, gain_stderr=None if gain is None else stderr, **known)


def failure(reason: str, rate: float) -> Failure:
    return Failure(reason=reason, config=TrialConfig(rank=4, alpha=4, learning_rate=rate, epochs=1))


def seen(**fields: Any) -> Observed:
    """Of a search in which nothing went wrong, but for these fields."""
    good = {"similarity": score(0.6, 0.1), "diversity": score(0.3, -0.02), "clip_score": score(0.3, 0.01)}
    scores = good | fields.pop("scores", {})
    return Observed(
        **{"select_by": "similarity", "num_images": IMAGES, "num_tried": 12, "scores": scores} | fields
    )


FALLING = list(np.linspace(0.5, 0.1, 60))
LEVEL = list(0.3 + 0.05 * np.tile([1, -1], 30))


@pytest.mark.parametrize(
    ("fields", "kind", "evidence", "step"),
    [
        (
            {"failures": [failure("OutOfMemoryError: CUDA out of memory. Tried", 1e-3)] * 2},
            "memory",
            "2 of 12 failed for want of memory",
            "dtype: bfloat16",
        ),
        (
            {
                "failures": [
                    failure("the loss was no longer finite at step 12", 5e-3),
                    failure("1 of 8 images are one flat colour, the first is of prompt 0 (black)", 2e-3),
                ]
            },
            "divergence",
            "2 of 12 .* lowest learning rate of them 0.002",
            "lower values of learning_rate",
        ),
        (
            {"failures": [failure("all 8 images equal the base model's: the adapter changes nothing", 1e-5)]},
            "unchanged",
            "1 of 12 drew exactly the base's images",
            "higher values of learning_rate",
        ),
        (
            {"scores": {"similarity": score(0.5, 0.01)}, "losses": LEVEL},
            "nothing-learned",
            r"\+0.0100 ± 0.0100 over the base; the training loss did not fall, by halves 0.3 and 0.3",
            "higher values of learning_rate",
        ),
        (
            {"scores": {"similarity": score(0.5, 0.01)}, "losses": FALLING},
            "nothing-learned",
            "the training loss fell, by halves 0.402 and 0.198",
            "bench data check",
        ),
        (
            {"scores": {"similarity": score(0.4, -0.1)}},
            "worse",
            "-0.1000 ± 0.0100 over the base",
            "lower learning_rate",
        ),
        (
            {"scores": {"loss_gap": score(0.02, stderr=0.002)}},
            "over-fitting",
            r"held-out pictures \(by 0.02 ± 0.002\)",
            "fewer epochs",
        ),
        (
            {"scores": {"diversity": score(0.1, -0.2)}},
            "low-diversity",
            "diversity 0.100, the base's 0.300",
            "lower weight",
        ),
        (
            {"scores": {"clip_score": score(0.2, -0.1)}},
            "disobedience",
            "test prompts -0.1000 ± 0.0100",
            "caption_dropout",
        ),
        (
            {"scores": {"clip_change": score(-0.05, stderr=0.004)}},
            "disobedience",
            "unrelated prompts -0.0500 ± 0.0040",
            "fewer epochs",
        ),
        (
            {"num_images": {"train": 7, "dev": 5, "test": 8}},
            "few-pictures",
            r"7 in train \(at least 10 are advised\), 5 in dev \(at least 6",
            "bench data check",
        ),
    ],
)
def test_a_trouble_is_found_with_its_number_and_the_next_step(
    fields: dict[str, Any], kind: str, evidence: str, step: str
) -> None:
    (finding,) = advise(seen(**fields))
    assert finding.kind == kind and finding.title
    assert re.search(evidence, finding.evidence) and step in finding.step


def test_a_metric_that_is_better_lower_is_read_so() -> None:
    assert not advise(seen(select_by="kd", scores={"kd": score(5, -2, 0.1)}))
    (finding,) = advise(seen(select_by="kd", scores={"kd": score(9, 2, 0.1)}))
    assert finding.kind == "worse"


def test_what_is_well_needs_no_advice() -> None:
    assert advise(seen(losses=FALLING)) == []
    assert advise(seen(scores={"diversity": score(0.25, -0.04)})) == []


def test_what_stops_a_training_comes_first() -> None:
    found = advise(
        seen(
            failures=[failure("the loss was no longer finite at step 1", 1e-2)],
            scores={"diversity": score(0.1, -0.2)},
            num_images={"train": 4, "dev": 8, "test": 8},
        )
    )
    assert [finding.kind for finding in found] == ["divergence", "low-diversity", "few-pictures"]


def test_the_report_of_a_search_says_what_to_do_next(make_run: Callable[..., Run]) -> None:
    run = make_run("one", ending="failed", reason="<b>the loss was no longer finite at step 3")
    (finding,) = advise(of_search(run, run.result()))
    assert finding.kind == "divergence"
    page = render(run)
    assert "What to do next" in page and finding.step in page and finding.evidence in page
    assert "<b>the loss" not in page
    healthy = make_run("two", gain=0.3)
    result = healthy.result()
    assert result
    won = next(each for each in result.candidates if each.label == result.winner)
    write_losses(healthy.path / "confirm" / won.records[0], LEVEL)
    assert of_search(healthy, result).losses == pytest.approx(LEVEL)
    assert "What to do next" in render(healthy)


def test_nothing_is_advised_before_anything_was_tried(make_run: Callable[..., Run]) -> None:
    assert "What to do next" not in render(make_run("one", ending="empty"))
