from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.errors import TrialError
from bench.run import Evaluation, read_evaluation, write_evaluation
from bench.scoring.distance import fid, kernel_distance
from bench.scoring.measure import (
    Reference,
    check_images,
    combine,
    evaluate,
    evaluate_features,
    gain_between,
)
from bench.scoring.metrics import METRICS
from bench.scoring.statistics import jackknife, mean_stderr

PROMPTS, SEEDS, DIM = 8, 2, 16


class MeanColours:
    """A scorer of one line: an image's feature is its four quarters' mean colours and a constant."""

    name = "mean-colours"

    def embed_images(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return unit(images.astype(np.float32).reshape(len(images), 4, -1, 3).mean(axis=2).reshape(-1, 12))


OWN = [name for name in METRICS if not name.endswith("_inception")]
"""What the scorer alone measures."""


def unit(rows: Any) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def draw(rows: int, seed: int, shift: float = 0.0) -> NDArray[np.float32]:
    features = np.random.default_rng(seed).normal(size=(rows, DIM))
    features[:, 0] += shift
    return unit(features)


@pytest.fixture
def reference() -> Reference:
    """Six of the prompts' true pictures are among ten held-out ones."""
    true = draw(PROMPTS, 1)
    return Reference(
        text_features=draw(PROMPTS, 0),
        num_seeds=SEEDS,
        true_features=true,
        real_features=np.concatenate([draw(4, 2), true]),
        base=None,
        extractor="tiny",
    )


@pytest.fixture
def with_base(reference: Reference) -> Reference:
    return replace(reference, base=evaluate_features(draw(PROMPTS * SEEDS, 3), reference))


def test_base_has_every_metric_but_drift_and_no_gain(reference: Reference) -> None:
    evaluation = evaluate_features(draw(PROMPTS * SEEDS, 4), reference)
    assert list(evaluation.scores) == [name for name in OWN if name != "drift"]
    assert all(score.gain is None and score.gain_stderr is None for score in evaluation.scores.values())
    assert set(evaluation.per_prompt) == {name for name, metric in METRICS.items() if metric.paired}


def test_trial_has_every_metric_and_gains(with_base: Reference) -> None:
    evaluation = evaluate_features(draw(PROMPTS * SEEDS, 4, shift=1), with_base)
    assert list(evaluation.scores) == OWN
    assert evaluation.scores["drift"].gain is None
    assert with_base.base is not None
    for name, score in evaluation.scores.items():
        assert (score.num_images, score.num_prompts, score.extractor) == (16, 8, "tiny")
        assert np.isfinite([score.value, score.stderr]).all()
        if name != "drift":
            assert score.gain == pytest.approx(score.value - with_base.base.scores[name].value)


def test_paired_scores_are_means_over_prompts(with_base: Reference) -> None:
    evaluation = evaluate_features(draw(PROMPTS * SEEDS, 4), with_base)
    assert with_base.base is not None
    for name, values in evaluation.per_prompt.items():
        score, base = evaluation.scores[name], np.array(with_base.base.per_prompt[name])
        assert (score.value, score.stderr) == pytest.approx(mean_stderr(values))
        assert (score.gain, score.gain_stderr) == pytest.approx(mean_stderr(np.array(values) - base))


def test_distances_and_their_errors_are_the_slow_ones(with_base: Reference) -> None:
    features = draw(PROMPTS * SEEDS, 4, shift=1)
    scores = evaluate_features(features, with_base).scores
    base, real, groups = with_base.base, with_base.real_features, with_base.image_prompts
    assert base is not None and real is not None
    pictures = np.r_[PROMPTS : PROMPTS + 4, 0:PROMPTS]

    def kd(side: Any, kept: Any) -> float:
        rows, columns = np.isin(groups, kept), np.isin(pictures, kept) | (pictures >= PROMPTS)
        return kernel_distance(side[rows], real[columns], groups[rows], pictures[columns])

    def distance(side: Any, other: Any, kept: Any) -> float:
        rows = np.isin(groups, kept)
        return fid(side[rows], other[rows] if len(other) == len(side) else _real(kept))

    def _real(kept: Any) -> Any:
        return real[np.isin(pictures, kept) | (pictures >= PROMPTS)]

    everyone = np.arange(PROMPTS)
    assert scores["kd"].value == pytest.approx(kd(features, everyone))
    assert scores["kd"].stderr == pytest.approx(jackknife(lambda kept: kd(features, kept), PROMPTS))
    gain = jackknife(lambda kept: kd(features, kept) - kd(base.features, kept), PROMPTS)
    assert scores["kd"].gain_stderr == pytest.approx(gain)
    assert scores["fid"].value == pytest.approx(distance(features, real, everyone))
    stderr = jackknife(lambda kept: distance(features, real, kept), PROMPTS)
    assert scores["fid"].stderr == pytest.approx(stderr, rel=1e-4)
    stderr = jackknife(lambda kept: distance(features, base.features, kept), PROMPTS)
    assert scores["drift"].stderr == pytest.approx(stderr, rel=1e-4)


def test_the_base_itself_gains_nothing(with_base: Reference) -> None:
    assert with_base.base is not None
    scores = evaluate_features(with_base.base.features, with_base).scores
    assert scores["drift"].value == pytest.approx(0, abs=1e-6)
    assert all(score.gain in (0, None) for score in scores.values())


def test_without_real_pictures_nothing_is_faked(reference: Reference) -> None:
    bare = replace(reference, true_features=None, real_features=None)
    evaluation = evaluate_features(draw(PROMPTS * SEEDS, 4), bare)
    assert list(evaluation.scores) == ["clip_score", "diversity", "vendi"]
    assert set(evaluation.per_prompt) == set(evaluation.scores)


def test_without_captions_of_real_pictures_similarity_is_absent(reference: Reference) -> None:
    evaluation = evaluate_features(draw(PROMPTS * SEEDS, 4), replace(reference, true_features=None))
    assert list(evaluation.scores) == ["clip_score", "diversity", "vendi", "kd", "fid"]


def test_two_prompts_are_too_few_for_distances(reference: Reference) -> None:
    assert reference.true_features is not None
    two = replace(
        reference,
        text_features=reference.text_features[:2],
        true_features=reference.true_features[:2],
        real_features=reference.true_features[:2],
    )
    base = evaluate_features(draw(2 * SEEDS, 3), two)
    evaluation = evaluate_features(draw(2 * SEEDS, 4), replace(two, base=base))
    assert list(evaluation.scores) == ["similarity", "clip_score", "diversity", "vendi"]


def test_three_prompts_are_enough_for_distances(reference: Reference) -> None:
    assert reference.true_features is not None
    three = replace(
        reference,
        text_features=reference.text_features[:3],
        true_features=reference.true_features[:3],
        real_features=reference.true_features[:3],
    )
    three = replace(three, base=evaluate_features(draw(3 * SEEDS, 3), three))
    scores = evaluate_features(draw(3 * SEEDS, 4), three).scores
    assert all(np.isfinite([scores[name].value, scores[name].stderr]).all() for name in OWN)


def test_features_that_are_not_finite_are_not_scored(reference: Reference) -> None:
    features = draw(PROMPTS * SEEDS, 4)
    features[3, 0] = np.nan
    with pytest.raises(TrialError, match="1 of 16 images have features that are not finite"):
        evaluate_features(features, reference)


def test_evaluation_survives_the_run_folder(with_base: Reference, tmp_path: Any) -> None:
    images = np.random.default_rng(0).integers(0, 255, (16, 8, 8, 3), dtype=np.uint8)
    evaluation = evaluate_features(draw(PROMPTS * SEEDS, 4), with_base)
    write_evaluation(tmp_path, evaluation, images)
    assert read_evaluation(tmp_path).scores == evaluation.scores


def test_evaluate_embeds_images() -> None:
    images = np.random.default_rng(0).integers(0, 255, (16, 8, 8, 3), dtype=np.uint8)
    scorer = MeanColours()
    true = scorer.embed_images(images[::2])
    bare = Reference(
        text_features=true, num_seeds=2, true_features=true, real_features=true, base=None, extractor="tiny"
    )
    evaluation = evaluate(images, bare, scorer)  # type: ignore[arg-type]
    np.testing.assert_array_equal(evaluation.features, scorer.embed_images(images))
    with pytest.raises(ValueError, match="expected 16 images"):
        evaluate(images[:7], bare, scorer)  # type: ignore[arg-type]


# Images that must not be scored


def pictures(count: int = 6) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 255, (count, 8, 8, 3), dtype=np.uint8)


def test_good_images_pass() -> None:
    check_images(pictures(), None)
    check_images(pictures(), pictures()[::-1])


def test_black_images_are_refused() -> None:
    images = pictures()
    images[3:5] = 0
    message = r"2 of 6 images are one flat colour, the first is of prompt 1 \(black\)"
    with pytest.raises(TrialError, match=message):
        check_images(images, None, num_seeds=2)


def test_flat_colours_are_refused_unless_the_base_draws_them_too() -> None:
    images, base = pictures(), pictures()[::-1].copy()
    images[2] = [250, 10, 10]
    with pytest.raises(TrialError, match=r"1 of 6 images are one flat colour, the first is of prompt 2$"):
        check_images(images, base)
    base[2] = 255
    check_images(images, base)


def test_an_adapter_that_changes_nothing_is_refused() -> None:
    with pytest.raises(TrialError, match="all 6 images equal the base model's"):
        check_images(pictures(), pictures())


def test_one_changed_pixel_is_a_change() -> None:
    images = pictures()
    images[0, 0, 0, 0] ^= 1
    check_images(images, pictures())


# Several trainings


def trainings(reference: Reference, seeds: range, shift: float = 0.0) -> list[Evaluation]:
    return [evaluate_features(draw(PROMPTS * SEEDS, seed, shift), reference) for seed in seeds]


def test_combining_one_training_changes_nothing(with_base: Reference) -> None:
    (only,) = trainings(with_base, range(10, 11))
    scores, spread = combine([only])
    for name, score in scores.items():
        assert (score.value, score.stderr) == pytest.approx(
            (only.scores[name].value, only.scores[name].stderr)
        )
        assert score.gain == only.scores[name].gain
    assert np.isnan(list(spread.values())).all()


def test_combining_joins_prompts_and_training_seeds(with_base: Reference) -> None:
    several = trainings(with_base, range(10, 13))
    scores, spread = combine(several)
    for name, score in scores.items():
        values = [evaluation.scores[name].value for evaluation in several]
        assert score.value == pytest.approx(np.mean(values))
        assert spread[name] == pytest.approx(np.std(values, ddof=1))
        assert score.stderr >= spread[name] / np.sqrt(3)
    means = np.mean([evaluation.per_prompt["similarity"] for evaluation in several], axis=0)
    expected = np.hypot(mean_stderr(means)[1], spread["similarity"] / np.sqrt(3))
    assert scores["similarity"].stderr == pytest.approx(expected)


def test_gain_between_pairs_prompts(with_base: Reference) -> None:
    (a,), (b,) = (trainings(with_base, range(seed, seed + 1)) for seed in (10, 20))
    gains = gain_between([a], [b])
    difference = np.array(a.per_prompt["clip_score"]) - np.array(b.per_prompt["clip_score"])
    assert gains["clip_score"] == pytest.approx(mean_stderr(difference))
    assert gains["kd"][0] == pytest.approx(a.scores["kd"].value - b.scores["kd"].value)
    assert gains["kd"][1] == pytest.approx(np.hypot(a.scores["kd"].stderr, b.scores["kd"].stderr))


def test_gain_between_a_configuration_and_itself_is_zero(with_base: Reference) -> None:
    several = trainings(with_base, range(10, 12))
    assert all(gain == 0 for gain, _ in gain_between(several, several).values())


def test_gain_between_adds_the_spread_of_both_sides(with_base: Reference) -> None:
    a, b = trainings(with_base, range(10, 12)), trainings(with_base, range(20, 22))
    one, both = gain_between(a[:1], b[:1]), gain_between(a, b)
    spread = [combine(side)[1]["vendi"] for side in (a, b)]
    assert both["vendi"][1] ** 2 > sum(np.square(spread)) / 2
    assert one.keys() == both.keys()
