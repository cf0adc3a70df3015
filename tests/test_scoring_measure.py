from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.errors import TrialError
from bench.run import Evaluation, read_evaluation, write_evaluation
from bench.scoring import memorization
from bench.scoring.distance import fid, gaussian, kernel, kernel_distance, linear
from bench.scoring.measure import (
    Reference,
    View,
    check_images,
    combine,
    evaluate,
    evaluate_features,
    evaluate_probes,
    gain_between,
)
from bench.scoring.metrics import METRICS, PREFIX, judged
from bench.scoring.statistics import jackknife, mean_stderr

PROMPTS, SEEDS, DIM = 8, 2, 16
JUDGE_DIM = 12


class MeanColours:
    """A scorer of one line: an image's feature is its four quarters' mean colours and a constant."""

    name = "mean-colours"

    def embed_images(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return unit(images.astype(np.float32).reshape(len(images), 4, -1, 3).mean(axis=2).reshape(-1, 12))


class Quarters(MeanColours):
    """Another network: the same colours against grey."""

    name = "quarters"

    def embed_images(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return unit(super().embed_images(images) - 0.28)


PROBES = {"shift", "shift_kd", "clip_change"}
ELSEWHERE = PROBES | {"loss_gap", "held_out_loss", "fid_inception", "drift_inception"}
"""Not measured on the features of the split's images."""
ALL = [name for name in METRICS if name not in ELSEWHERE]
OWN = [name for name in ALL if not name.startswith(PREFIX)]
"""What the scorer measures where there is no judge."""
DRIFTS = ("drift", "judge_drift")
QUALITY = ["similarity", "clip_score", "diversity", "vendi", "kd", "cmmd", "centroid", "fid"]


def unit(rows: Any) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def draw(rows: int, seed: int, shift: float = 0.0, dim: int = DIM) -> NDArray[np.float32]:
    features = np.random.default_rng(seed).normal(size=(rows, dim))
    features[:, 0] += shift
    return unit(features)


def judge_of(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a second network makes of the same pictures."""
    return unit(features @ np.random.default_rng(99).normal(size=(DIM, JUDGE_DIM)))


@pytest.fixture
def reference() -> Reference:
    """The prompts' true pictures are among twelve held-out ones; twenty were trained on."""
    true = draw(PROMPTS, 1)
    real, train = np.concatenate([draw(4, 2), true]), draw(20, 5)
    return Reference(
        text_features=draw(PROMPTS, 0),
        num_seeds=SEEDS,
        scorer=View(extractor="tiny", true=true, real=real, train=train),
        judge=None,
        base=None,
    )


@pytest.fixture
def with_base(reference: Reference) -> Reference:
    return replace(reference, base=evaluate_features(draw(PROMPTS * SEEDS, 3), reference))


@pytest.fixture
def with_judge(reference: Reference) -> Reference:
    """With a judge and the base's images through both."""
    scorer = reference.scorer
    assert scorer.true is not None and scorer.real is not None and scorer.train is not None
    judge = View(
        extractor="judge",
        true=judge_of(scorer.true),
        real=judge_of(scorer.real),
        train=judge_of(scorer.train),
    )
    judged = replace(reference, judge=judge)
    return replace(judged, base=through_both(draw(PROMPTS * SEEDS, 3), judged))


def through_both(features: NDArray[np.float32], reference: Reference) -> Evaluation:
    return evaluate_features(features, reference, judge_of(features))


def few(reference: Reference, prompts: int) -> Reference:
    true = reference.scorer.true
    assert true is not None
    view = replace(reference.scorer, true=true[:prompts], real=true[:prompts])
    return replace(reference, text_features=reference.text_features[:prompts], scorer=view)


def test_base_has_every_metric_but_drift_and_no_gain(reference: Reference) -> None:
    evaluation = evaluate_features(draw(PROMPTS * SEEDS, 4), reference)
    assert list(evaluation.scores) == [name for name in OWN if name != "drift"]
    assert all(score.gain is None and score.gain_stderr is None for score in evaluation.scores.values())
    assert set(evaluation.per_prompt) == {name for name in OWN if METRICS[name].paired}


def test_trial_has_every_metric_and_gains(with_judge: Reference) -> None:
    evaluation = through_both(draw(PROMPTS * SEEDS, 4, shift=1), with_judge)
    assert list(evaluation.scores) == ALL
    assert with_judge.base is not None
    for name, score in evaluation.scores.items():
        by_judge = name.startswith(PREFIX) or METRICS[name].role == "alarm"
        assert (score.num_images, score.num_prompts) == (16, 8)
        assert score.extractor == ("judge" if by_judge else "tiny")
        assert np.isfinite([score.value, score.stderr]).all()
        if name in DRIFTS:
            assert score.gain is None
        else:
            assert score.gain == pytest.approx(score.value - with_judge.base.scores[name].value)


def test_without_a_judge_the_scorer_raises_the_alarms(with_base: Reference) -> None:
    evaluation = evaluate_features(draw(PROMPTS * SEEDS, 4), with_base)
    assert list(evaluation.scores) == OWN
    assert {score.extractor for score in evaluation.scores.values()} == {"tiny"}


def test_the_judge_measures_by_the_same_formulas(with_judge: Reference) -> None:
    features = draw(PROMPTS * SEEDS, 4)
    scores = through_both(features, with_judge).scores
    assert with_judge.judge is not None and with_judge.base is not None
    texts = judge_of(with_judge.text_features)
    swapped = replace(with_judge, text_features=texts, scorer=with_judge.judge, judge=None, base=None)
    # The groups come from the scorer's pictures: the judge finds the same.
    np.testing.assert_array_equal(swapped.picture_prompts, with_judge.picture_prompts)
    alone = evaluate_features(judge_of(features), swapped).scores
    for name in ("similarity", "diversity", "kd", *(n for n, m in METRICS.items() if m.role == "alarm")):
        if name in alone:
            theirs = scores[judged(name) or name]
            assert (theirs.value, theirs.stderr) == pytest.approx((alone[name].value, alone[name].stderr))
    base = with_judge.base.judge_features
    assert base is not None
    groups = with_judge.image_prompts
    drift = kernel_distance(judge_of(features), base, groups, groups)
    assert scores["judge_drift"].value == pytest.approx(drift)


def test_a_base_without_a_judge_gives_the_judge_no_gain(with_judge: Reference) -> None:
    assert with_judge.base is not None
    old = replace(with_judge, base=evaluate_features(with_judge.base.features, with_judge))
    scores = through_both(draw(PROMPTS * SEEDS, 4), old).scores
    by_judge = [score for score in scores.values() if score.extractor == "judge"]
    assert by_judge and all(score.gain is None for score in by_judge)
    assert "judge_drift" not in scores


def test_paired_scores_are_means_over_prompts(with_judge: Reference) -> None:
    evaluation = through_both(draw(PROMPTS * SEEDS, 4), with_judge)
    assert with_judge.base is not None
    for name, values in evaluation.per_prompt.items():
        score, base = evaluation.scores[name], np.array(with_judge.base.per_prompt[name])
        assert (score.value, score.stderr) == pytest.approx(mean_stderr(values))
        assert (score.gain, score.gain_stderr) == pytest.approx(mean_stderr(np.array(values) - base))


@pytest.mark.parametrize(("name", "of"), [("kd", kernel), ("cmmd", gaussian), ("centroid", linear)])
def test_kernel_distances_and_their_errors_are_the_slow_ones(
    with_base: Reference, name: str, of: Any
) -> None:
    """Each of the eight prompts, and each of the four pictures of no prompt, is left out in turn."""
    features = draw(PROMPTS * SEEDS, 4, shift=1)
    score = evaluate_features(features, with_base).scores[name]
    base, real, groups = with_base.base, with_base.scorer.real, with_base.image_prompts
    assert base is not None and real is not None
    pictures = np.r_[PROMPTS : PROMPTS + 4, 0:PROMPTS]

    def distance(side: Any, kept: Any) -> float:
        rows, columns = np.isin(groups, kept), np.isin(pictures, kept)
        return kernel_distance(side[rows], real[columns], groups[rows], pictures[columns], of)

    assert score.value == pytest.approx(distance(features, np.arange(12)))
    assert score.stderr == pytest.approx(jackknife(lambda kept: distance(features, kept), 12))
    gain = jackknife(lambda kept: distance(features, kept) - distance(base.features, kept), 12)
    assert score.gain_stderr == pytest.approx(gain)


def test_frechet_distances_and_their_errors_are_the_slow_ones(with_base: Reference) -> None:
    features = draw(PROMPTS * SEEDS, 4, shift=1)
    scores = evaluate_features(features, with_base).scores
    base, real, groups = with_base.base, with_base.scorer.real, with_base.image_prompts
    assert base is not None and real is not None
    pictures = np.r_[PROMPTS : PROMPTS + 4, 0:PROMPTS]

    def distance(other: Any, kept: Any) -> float:
        numbers = groups if len(other) == len(features) else pictures
        return fid(features[np.isin(groups, kept)], other[np.isin(numbers, kept) | (numbers >= PROMPTS)])

    assert scores["fid"].value == pytest.approx(distance(real, np.arange(PROMPTS)))
    for name, other in (("fid", real), ("drift", base.features)):
        stderr = jackknife(lambda kept, other=other: distance(other, kept), PROMPTS)  # type: ignore[misc]
        assert scores[name].stderr == pytest.approx(stderr, rel=1e-4)


def test_frechet_distances_of_few_images_carry_a_caution(with_base: Reference) -> None:
    scores = evaluate_features(draw(PROMPTS * SEEDS, 4), with_base).scores
    assert scores["fid"].caution == "12 images < 2 × 16 dimensions: mostly bias"
    assert scores["drift"].caution == "16 images < 2 × 16 dimensions: mostly bias"
    assert "12 held-out pictures" in (scores["copies"].caution or "")
    cautious = {name for name, score in scores.items() if score.caution}
    assert cautious == {"fid", "drift", "copies"}


def test_the_base_itself_gains_nothing(with_judge: Reference) -> None:
    assert with_judge.base is not None
    scores = through_both(with_judge.base.features, with_judge).scores
    assert scores["drift"].value == pytest.approx(0, abs=1e-6)
    assert scores["judge_drift"].value == pytest.approx(0, abs=1e-4)
    assert all(score.gain in (0, None) for score in scores.values())


def test_copied_training_pictures_raise_the_alarm_and_others_do_not(with_judge: Reference) -> None:
    train = with_judge.scorer.train
    assert train is not None
    copied = through_both(unit(train[:16] + draw(16, 6) * 0.05), with_judge).scores
    assert copied["copies"].value == 1 and copied["authentic"].value == 0
    assert copied["nearest"].value > 0.95 and copied["c_t"].value < -3
    assert len(memorization.alarms(copied, 12)) == 2
    assert not memorization.alarms(through_both(draw(16, 7), with_judge).scores, 12)


def test_without_pictures_nothing_is_faked(reference: Reference) -> None:
    blind = View(extractor="tiny", true=None, real=None, train=None)
    evaluation = evaluate_features(draw(PROMPTS * SEEDS, 4), replace(reference, scorer=blind))
    assert list(evaluation.scores) == ["clip_score", "diversity", "vendi"]
    assert set(evaluation.per_prompt) == set(evaluation.scores)


def test_without_training_pictures_there_is_no_alarm(reference: Reference) -> None:
    view = replace(reference.scorer, train=None)
    evaluation = evaluate_features(draw(PROMPTS * SEEDS, 4), replace(reference, scorer=view))
    assert list(evaluation.scores) == QUALITY


def test_without_captions_of_real_pictures_similarity_is_absent(reference: Reference) -> None:
    view = replace(reference.scorer, true=None, train=None)
    evaluation = evaluate_features(draw(PROMPTS * SEEDS, 4), replace(reference, scorer=view))
    assert list(evaluation.scores) == [name for name in QUALITY if name != "similarity"]


def test_two_prompts_are_too_few_for_distances(reference: Reference) -> None:
    two = few(reference, 2)
    base = evaluate_features(draw(2 * SEEDS, 3), two)
    evaluation = evaluate_features(draw(2 * SEEDS, 4), replace(two, base=base))
    means = ["similarity", "clip_score", "diversity", "vendi", "copies", "authentic"]
    assert list(evaluation.scores) == means


def test_three_prompts_are_enough_for_distances(reference: Reference) -> None:
    three = few(reference, 3)
    three = replace(three, base=evaluate_features(draw(3 * SEEDS, 3), three))
    scores = evaluate_features(draw(3 * SEEDS, 4), three).scores
    assert all(np.isfinite([scores[name].value, scores[name].stderr]).all() for name in OWN)


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_prompts_and_pictures_does_not_matter(with_judge: Reference, seed: int) -> None:
    rng = np.random.default_rng(seed)
    prompts, pictures, training = (rng.permutation(size) for size in (PROMPTS, 12, 20))
    images = (prompts[:, None] * SEEDS + rng.permutation(SEEDS)).ravel()

    def reordered(view: View | None) -> View:
        assert view and view.true is not None and view.real is not None and view.train is not None
        return replace(view, true=view.true[prompts], real=view.real[pictures], train=view.train[training])

    assert with_judge.base is not None
    other = replace(
        with_judge,
        text_features=with_judge.text_features[prompts],
        scorer=reordered(with_judge.scorer),
        judge=reordered(with_judge.judge),
        base=None,
    )
    other = replace(other, base=through_both(with_judge.base.features[images], other))
    features = draw(PROMPTS * SEEDS, 4)
    first = through_both(features, with_judge).scores
    second = through_both(features[images], other).scores
    for name, score in first.items():
        assert second[name].value == pytest.approx(score.value, abs=1e-4)
        if name != "nearest":  # its error is a bootstrap's
            assert second[name].stderr == pytest.approx(score.stderr, abs=1e-4)


@pytest.mark.fault(9)
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


def tiny_images(count: int = 16) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 255, (count, 8, 8, 3), dtype=np.uint8)


def colours_reference(images: NDArray[np.uint8], prompts: int, seeds: int) -> Reference:
    scorer, judge = MeanColours(), Quarters()
    true = images[: prompts * seeds : seeds]
    views = [
        View(
            extractor=eye.name,
            true=eye.embed_images(true),
            real=eye.embed_images(true),
            train=eye.embed_images(images),
        )
        for eye in (scorer, judge)
    ]
    texts = scorer.embed_images(true)
    return Reference(text_features=texts, num_seeds=seeds, scorer=views[0], judge=views[1], base=None)


def test_evaluate_embeds_images() -> None:
    images = tiny_images()
    reference, scorer, judge = colours_reference(images, 8, 2), MeanColours(), Quarters()
    evaluation = evaluate(images, reference, scorer, judge)
    np.testing.assert_array_equal(evaluation.features, scorer.embed_images(images))
    np.testing.assert_array_equal(evaluation.judge_features, judge.embed_images(images))
    assert list(evaluation.scores) == [name for name in ALL if name not in DRIFTS]
    assert evaluate(images, reference, scorer).judge_features is None
    with pytest.raises(ValueError, match="expected 16 images"):
        evaluate(images[:7], reference, scorer)


# Probes


KINDS = ["training", "unrelated", "altered", *["unrelated"] * 5]


def probe(
    seed: int, reference: Reference, kinds: list[str] = KINDS, judge: MeanColours | None = None
) -> Evaluation:
    images = np.random.default_rng(seed).integers(0, 255, (16, 8, 8, 3), dtype=np.uint8)
    return evaluate_probes(images, reference, kinds, MeanColours(), judge or Quarters())


@pytest.fixture
def probes() -> Reference:
    reference = colours_reference(tiny_images(), 8, 2)
    return replace(reference, base=probe(1, reference))


def test_the_base_itself_has_values_of_probes_but_no_scores(probes: Reference) -> None:
    assert probes.base is not None
    assert probes.base.scores == {}
    assert {name: len(values) for name, values in probes.base.per_prompt.items()} == {
        "clip_score": 8,
        "nearest": 8,
    }


def test_probes_score_unrelated_prompts_alone(probes: Reference) -> None:
    evaluation, base = probe(2, probes), probes.base
    assert base is not None and base.judge_features is not None and evaluation.judge_features is not None
    assert set(evaluation.scores) == PROBES
    unrelated = np.array([kind == "unrelated" for kind in KINDS])
    cosines = (evaluation.judge_features * base.judge_features).sum(axis=1)
    shift = (1 - cosines).reshape(8, 2).mean(axis=1)
    np.testing.assert_allclose(evaluation.per_prompt["shift"], shift, atol=1e-6)
    change = np.array(evaluation.per_prompt["clip_score"]) - np.array(base.per_prompt["clip_score"])
    score = evaluation.scores["clip_change"]
    assert (score.value, score.stderr) == pytest.approx(mean_stderr(change[unrelated]))
    assert (score.num_prompts, score.num_images, score.extractor) == (6, 12, "mean-colours")
    assert evaluation.scores["shift"].value == pytest.approx(shift[unrelated].mean(), abs=1e-6)
    rows, groups = np.repeat(unrelated, 2), np.repeat(np.arange(6), 2)
    kd = kernel_distance(evaluation.judge_features[rows], base.judge_features[rows], groups, groups)
    assert evaluation.scores["shift_kd"].value == pytest.approx(kd)
    assert evaluation.scores["shift_kd"].extractor == "quarters"


def test_images_that_do_not_change_have_not_shifted(probes: Reference) -> None:
    scores = probe(1, probes).scores
    assert all(score.value == pytest.approx(0, abs=1e-4) for score in scores.values())


def test_few_unrelated_prompts_are_not_scored(probes: Reference) -> None:
    assert probe(2, probes, ["unrelated", *["style"] * 7]).scores == {}
    assert set(probe(2, probes, [*["unrelated"] * 2, *["style"] * 6]).scores) == {"shift", "clip_change"}
    with pytest.raises(ValueError, match="expected the kinds of 8 prompts, got 7"):
        probe(2, probes, KINDS[1:])


def test_probes_of_several_trainings_are_combined(probes: Reference) -> None:
    several = [probe(seed, probes) for seed in (2, 3, 4)]
    scores, spread = combine(several)
    assert set(scores) == set(spread) == PROBES
    means = np.mean([evaluation.per_prompt["clip_change"] for evaluation in several], axis=0)
    expected = np.hypot(mean_stderr(means)[1], spread["clip_change"] / np.sqrt(3))
    assert scores["clip_change"].stderr == pytest.approx(expected)
    assert all(gain == 0 for gain, _ in gain_between(several, several).values())


# Images that must not be scored


def pictures(count: int = 6) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 255, (count, 8, 8, 3), dtype=np.uint8)


def test_good_images_pass() -> None:
    check_images(pictures(), None)
    check_images(pictures(), pictures()[::-1])


@pytest.mark.fault(10)
def test_black_images_are_refused() -> None:
    images = pictures()
    images[3:5] = 0
    message = r"2 of 6 images are one flat colour, the first is of prompt 1 \(black\)"
    with pytest.raises(TrialError, match=message):
        check_images(images, None, num_seeds=2)


@pytest.mark.fault(10)
def test_flat_colours_are_refused_unless_the_base_draws_them_too() -> None:
    images, base = pictures(), pictures()[::-1].copy()
    images[2] = [250, 10, 10]
    with pytest.raises(TrialError, match=r"1 of 6 images are one flat colour, the first is of prompt 2$"):
        check_images(images, base)
    base[2] = 255
    check_images(images, base)


@pytest.mark.fault(11)
def test_an_adapter_that_changes_nothing_is_refused() -> None:
    with pytest.raises(TrialError, match="all 6 images equal the base model's"):
        check_images(pictures(), pictures())


def test_rounding_is_no_change_but_one_changed_pixel_is() -> None:
    images = pictures()
    images[0, 0, 0, 0] ^= 1
    with pytest.raises(TrialError, match="all 6 images equal the base model's"):
        check_images(images, pictures())
    images[0, 0, 0, 0] ^= 6
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
