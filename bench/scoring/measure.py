"""Measure: images of the fixed prompts -> an Evaluation: every metric with its error and its gain."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bench.errors import TrialError
from bench.run import Evaluation
from bench.scoring import alignment, distance, diversity, memorization, preservation
from bench.scoring.metrics import METRICS, PREFIX, Score
from bench.scoring.statistics import jackknife_stderr, mean_stderr

FLAT = 2
ROUNDED = 1e-3
"""Share of pixel values that may round otherwise in a batch of another size; 4e-5 was seen."""
MIN_SET = 3
"""Prompts, and real pictures, that a distance needs: its error leaves one out of at least three."""
SAME_PICTURE = 1 - 1e-5
UNRELATED = "unrelated"
"""The kind of probe prompts on which an adapter should change nothing."""

Features = NDArray[np.float32]


class Embedder(Protocol):
    """What turns images into features: `bench.scoring.embed.Scorer`, or a judge."""

    @property
    def name(self) -> str: ...

    def embed_images(self, images: NDArray[np.uint8]) -> Features:
        """Unit features (n, dim) of images (n, height, width, 3)."""
        ...


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class View:
    """What one network sees of all that is fixed on a split; unit features."""

    extractor: str
    """Name of the network."""
    true: Features | None
    """Of the real picture with the prompt's caption, shape (prompts, dim)."""
    real: Features | None
    """Of all held-out pictures of the split, shape (pictures, dim)."""
    train: Features | None
    """Of the training pictures, shape (n, dim)."""


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Reference:
    """What is fixed for every evaluation on one split: prompts, pictures and the base model's images."""

    text_features: Features
    """Unit features of the prompts by the scorer, shape (prompts, dim)."""
    num_seeds: int
    """Images of each prompt."""
    scorer: View
    judge: View | None
    """Of the network that had no part in training, search and choice."""
    base: Evaluation | None
    """The base model's; None while the base itself is evaluated."""
    inception_real: Features | None = None
    """Inception features (pictures, 2048) of the held-out pictures, where its weights are on disk."""
    inception_base: Features | None = None
    """The same of the base's images (prompts × seeds, 2048)."""

    @property
    def num_prompts(self) -> int:
        return len(self.text_features)

    @property
    def image_prompts(self) -> NDArray[np.intp]:
        """Prompt of each image, shape (prompts × seeds,)."""
        return np.repeat(np.arange(self.num_prompts), self.num_seeds)

    @property
    def picture_prompts(self) -> NDArray[np.intp]:
        """Group of each real picture: the prompt whose true picture it is, else one of its own.

        Groups are numbered without gaps: prompts first.
        """
        assert self.scorer.real is not None
        same = np.zeros((len(self.scorer.real), self.num_prompts), bool)
        if self.scorer.true is not None:
            same = self.scorer.real @ self.scorer.true.T > SAME_PICTURE
        own = ~same.any(axis=1)
        return np.where(own, self.num_prompts + np.cumsum(own) - 1, same.argmax(axis=1))


def evaluate(
    images: NDArray[np.uint8], reference: Reference, scorer: Embedder, judge: Embedder | None = None
) -> Evaluation:
    """Score images, shape (prompts × seeds, height, width, 3), prompt by prompt, seed by seed.

    Standard errors are over prompts: of the mean for paired metrics, by the delete-one-group jackknife for
    distances and c_t (kernel distances and c_t leave out real pictures too, FID and drift prompts alone), by
    the bootstrap for `nearest`. Absent are metrics whose pictures are missing, those of a judge that is
    missing, drifts when `reference.base` is None, and distances with fewer than three prompts or real
    pictures. All but Inception's are measured on unit features; memorisation by the judge where there is
    one.
    Raises TrialError when features are not finite: such images must not be scored; UsageError with fewer
    than two prompts or seeds.
    """
    _check_count(images, reference)
    seen = judge.embed_images(images) if judge and reference.judge else None
    evaluation = evaluate_features(scorer.embed_images(images), reference, seen)
    return replace(evaluation, scores=_ordered(evaluation.scores | _inception(images, reference)))


def evaluate_features(
    features: Features, reference: Reference, judge_features: Features | None = None
) -> Evaluation:
    """`evaluate` for images that are embedded already, both of shape (prompts × seeds, dim)."""
    looks = _looks(features, judge_features, reference)
    per_prompt, scores = _text_means(features, reference), {}
    for look in looks:
        per_prompt |= _means(look, reference)
    per_prompt |= _memory_means(looks[-1], reference)
    for name, values in per_prompt.items():
        scores[name] = _paired_score(name, values, _look_of(name, looks), reference)
    if reference.num_prompts >= MIN_SET:
        for look in looks:
            scores |= _distances(look, reference)
        scores |= _memory_scores(looks[-1], reference)
    return Evaluation(
        scores=_ordered(scores),
        per_prompt={name: values.tolist() for name, values in per_prompt.items()},
        features=features,
        judge_features=judge_features,
    )


def evaluate_probes(
    images: NDArray[np.uint8],
    reference: Reference,
    kinds: Sequence[str],
    scorer: Embedder,
    judge: Embedder | None = None,
) -> Evaluation:
    """What an adapter does to prompts beside those it is judged by; `kinds` holds the kind of each prompt.

    Images have the shape (prompts × seeds, height, width, 3). `scores` (shift, shift_kd and clip_change, with
    errors over prompts) are of the prompts of kind `unrelated` alone, and empty for the base itself, with
    fewer than two such prompts; shift_kd needs three. `per_prompt` holds clip_score, shift (not the base's)
    and nearest (mean over seeds of the highest cosine to a training picture) of all prompts in order, and
    clip_change of the unrelated ones. shift, shift_kd and nearest are by the judge where there is one.
    Raises TrialError when features are not finite.
    """
    _check_count(images, reference)
    if len(kinds) != reference.num_prompts:
        raise ValueError(f"expected the kinds of {reference.num_prompts} prompts, got {len(kinds)}")
    features = scorer.embed_images(images)
    judge_features = judge.embed_images(images) if judge and reference.judge else None
    look = _looks(features, judge_features, reference)[-1]
    per_prompt = {"clip_score": alignment.cosines(features, reference.text_features)}
    scores: dict[str, Score] = {}
    if look.view.train is not None:
        per_prompt["nearest"] = _by_prompt(look, look.features, reference).mean(axis=1)
    if reference.base is not None and look.base is not None:
        unrelated = np.array([kind == UNRELATED for kind in kinds])
        per_prompt["shift"] = preservation.shift(look.features, look.base, reference.num_seeds)
        change = per_prompt["clip_score"] - np.array(reference.base.per_prompt["clip_score"])
        per_prompt["clip_change"] = change[unrelated]
        scores = _preservation(look, per_prompt["shift"][unrelated], change[unrelated], unrelated, reference)
    return Evaluation(
        scores=scores,
        per_prompt={name: values.tolist() for name, values in per_prompt.items()},
        features=features,
        judge_features=judge_features,
    )


def _check_count(images: NDArray[np.uint8], reference: Reference) -> None:
    expected = reference.num_prompts * reference.num_seeds
    if len(images) != expected:
        raise ValueError(f"expected {expected} images (prompts × seeds), got {len(images)}")


def _ordered(scores: dict[str, Score]) -> dict[str, Score]:
    return {name: scores[name] for name in METRICS if name in scores}


# What each network sees


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class _Look:
    """The images of one evaluation, and the base's, as one network sees them."""

    view: View
    features: Features
    base: Features | None
    is_judge: bool = False

    @property
    def prefix(self) -> str:
        return PREFIX if self.is_judge else ""


def _looks(features: Features, judge_features: Features | None, reference: Reference) -> list[_Look]:
    """The scorer's, then the judge's where there is one; raises TrialError."""
    base = reference.base
    looks = [_Look(view=reference.scorer, features=features, base=base.features if base else None)]
    if reference.judge is not None and judge_features is not None:
        other = base.judge_features if base else None
        looks.append(_Look(view=reference.judge, features=judge_features, base=other, is_judge=True))
    for look in looks:
        broken = int((~np.isfinite(look.features).all(axis=1)).sum())
        if broken:
            raise TrialError(f"{broken} of {len(features)} images have features that are not finite numbers")
    return looks


def _look_of(name: str, looks: list[_Look]) -> _Look:
    """The network that measures a metric: alarms are measured by the last, the judge where there is one."""
    by_judge = name.startswith(PREFIX) or METRICS[name].role == "alarm"
    return looks[-1] if by_judge else looks[0]


# Means over prompts


def _text_means(features: Features, reference: Reference) -> dict[str, NDArray[np.float64]]:
    return {
        "clip_score": alignment.cosines(features, reference.text_features),
        "vendi": diversity.vendi(features, reference.num_seeds),
    }


def _means(look: _Look, reference: Reference) -> dict[str, NDArray[np.float64]]:
    values = {look.prefix + "diversity": diversity.diversity(look.features, reference.num_seeds)}
    if look.view.true is not None:
        values[look.prefix + "similarity"] = alignment.cosines(look.features, look.view.true)
    return values


def _memory_means(look: _Look, reference: Reference) -> dict[str, NDArray[np.float64]]:
    values: dict[str, NDArray[np.float64]] = {}
    train, real = look.view.train, look.view.real
    if train is None or len(train) < 2:
        return values
    found = memorization.nearest(look.features, train)
    if real is not None and len(real):
        tau = memorization.threshold(memorization.nearest(real, train).cosines)
        values["copies"] = memorization.copies(found.cosines.reshape(-1, reference.num_seeds), tau)
    values["authentic"] = memorization.authentic(found, train, reference.num_seeds)
    return values


def _paired_score(name: str, values: NDArray[np.float64], look: _Look, reference: Reference) -> Score:
    score = _score(reference, look, *mean_stderr(values))
    if name == "copies":
        assert look.view.real is not None
        score = replace(score, caution=memorization.copies_caution(len(look.view.real)))
    if reference.base is None or look.base is None or name not in reference.base.per_prompt:
        return score
    gain, gain_stderr = mean_stderr(values - np.array(reference.base.per_prompt[name]))
    return replace(score, gain=gain, gain_stderr=gain_stderr)


# Distances between sets


@dataclass(frozen=True, eq=False, slots=True)
class _Estimate:
    """A value of the whole set, with its values when each group is left out in turn."""

    value: float
    leave_outs: NDArray[np.float64]


def _distances(look: _Look, reference: Reference) -> dict[str, Score]:
    scores = {}
    if look.view.real is not None and len(look.view.real) >= MIN_SET:
        for name in ("kd",) if look.is_judge else ("kd", "cmmd", "centroid", "fid"):
            scores[look.prefix + name] = _set_score(name, look, reference)
    if look.base is not None:
        drift = _judge_drift if look.is_judge else _drift
        scores[look.prefix + "drift"] = drift(look.features, look.base, look, reference)
    return scores


def _set_score(name: str, look: _Look, reference: Reference) -> Score:
    estimate = ESTIMATES[name](look.features, look.view, reference)
    score = _score(reference, look, estimate.value, jackknife_stderr(estimate.leave_outs))
    if name == "fid":
        assert look.view.real is not None
        score = _cautious(score, look.features, look.view.real)
    if look.base is None:
        return score
    base = _base_estimate(name, look.is_judge, reference)
    gain_stderr = jackknife_stderr(estimate.leave_outs - base.leave_outs)
    return replace(score, gain=estimate.value - base.value, gain_stderr=gain_stderr)


@lru_cache(maxsize=32)
def _base_estimate(name: str, is_judge: bool, reference: Reference) -> _Estimate:
    """The base's distance to the real pictures: the same for every trial, so computed once."""
    assert reference.base is not None
    view = reference.judge if is_judge else reference.scorer
    features = reference.base.judge_features if is_judge else reference.base.features
    assert view is not None and features is not None
    return ESTIMATES[name](features, view, reference)


def _kernel_distance(
    features: Features, view: View, reference: Reference, kernel: distance.Kernel = distance.kernel
) -> _Estimate:
    assert view.real is not None
    sums = distance.KernelSums.of(
        features, view.real, reference.image_prompts, reference.picture_prompts, kernel
    )
    return _Estimate(sums.distance(), sums.leave_outs(sums.num_groups))


def _fid(features: Features, view: View, reference: Reference) -> _Estimate:
    assert view.real is not None
    prompts, groups = reference.image_prompts, reference.picture_prompts
    return _Estimate(
        distance.fid(features, view.real),
        distance.frechet_leave_outs(features, view.real, prompts, groups, reference.num_prompts),
    )


def _copying(features: Features, view: View, reference: Reference) -> _Estimate:
    assert view.real is not None and view.train is not None
    test = memorization.CopyingTest.of(
        memorization.nearest(features, view.train).cosines,
        memorization.nearest(view.real, view.train).cosines,
        reference.image_prompts,
        reference.picture_prompts,
    )
    return _Estimate(test.z(), test.leave_outs())


ESTIMATES: dict[str, Callable[[Features, View, Reference], _Estimate]] = {
    "kd": _kernel_distance,
    "cmmd": partial(_kernel_distance, kernel=distance.gaussian),
    "centroid": partial(_kernel_distance, kernel=distance.linear),
    "fid": _fid,
    "c_t": _copying,
}


def _drift(features: Features, base: Features, look: _Look, reference: Reference) -> Score:
    prompts = reference.image_prompts
    leave_outs = distance.frechet_leave_outs(features, base, prompts, prompts, reference.num_prompts)
    score = _score(reference, look, distance.fid(features, base), jackknife_stderr(leave_outs))
    return _cautious(score, features, base)


def _judge_drift(features: Features, base: Features, look: _Look, reference: Reference) -> Score:
    """Not FID: at this few images that is mostly bias, and blind to the prompts being the same."""
    sums = preservation.shift_sums(features, base, reference.num_seeds)
    return _score(reference, look, sums.distance(), jackknife_stderr(sums.leave_outs(sums.num_groups)))


def _inception(images: NDArray[np.uint8], reference: Reference) -> dict[str, Score]:
    """FID and drift through the Inception network; empty where its weights are not on disk."""
    if reference.inception_real is None or reference.num_prompts < MIN_SET:
        return {}
    from bench.scoring.embed import inception_features

    features, prompts = inception_features(images), reference.image_prompts
    assert features is not None
    others = {"fid_inception": (reference.inception_real, reference.picture_prompts)}
    if reference.inception_base is not None:
        others["drift_inception"] = (reference.inception_base, prompts)
    view = View(extractor="inception-v3", true=None, real=None, train=None)
    look = _Look(view=view, features=features, base=None)
    scores = {}
    for name, (other, groups) in others.items():
        leave_outs = distance.frechet_leave_outs(features, other, prompts, groups, reference.num_prompts)
        # Not torch-fidelity's: a matrix root of 2048 × 2048 takes seconds, the inner products do not.
        x, y = features.astype(np.float64), other.astype(np.float64)
        value = distance.frechet(x @ x.T, x @ y.T, y @ y.T)
        score = _score(reference, look, value, jackknife_stderr(leave_outs))
        scores[name] = _cautious(score, features, other)
    return scores


def _cautious(score: Score, x: Features, y: Features) -> Score:
    return replace(score, caution=distance.fid_caution(min(len(x), len(y)), x.shape[1]))


# Memorisation and preservation


def _memory_scores(look: _Look, reference: Reference) -> dict[str, Score]:
    """The alarms that are no means over prompts; empty without training pictures."""
    if look.view.train is None or not len(look.view.train):
        return {}
    own = _by_prompt(look, look.features, reference)
    score = _score(reference, look, *memorization.high(own))
    if look.base is not None:
        gain, gain_stderr = memorization.high(own, _by_prompt(look, look.base, reference))
        score = replace(score, gain=gain, gain_stderr=gain_stderr)
    scores = {"nearest": score}
    if look.view.real is not None and len(look.view.real) >= MIN_SET:
        scores["c_t"] = _set_score("c_t", look, reference)
    return scores


def _by_prompt(look: _Look, features: Features, reference: Reference) -> NDArray[np.float64]:
    """Cosines to the nearest training picture, shape (prompts, seeds)."""
    assert look.view.train is not None
    return memorization.nearest(features, look.view.train).cosines.reshape(-1, reference.num_seeds)


def _preservation(
    look: _Look,
    shift: NDArray[np.float64],
    change: NDArray[np.float64],
    unrelated: NDArray[np.bool_],
    reference: Reference,
) -> dict[str, Score]:
    """Scores of the unrelated prompts; `shift` and `change` hold one value for each of these."""
    count = len(shift)
    if count < 2:
        return {}
    assert look.base is not None
    texts = reference.scorer.extractor
    own = replace(
        _score(reference, look, 0.0, 0.0), num_images=count * reference.num_seeds, num_prompts=count
    )
    scores = {}
    for name, values, extractor in (
        ("shift", shift, look.view.extractor),
        ("clip_change", change, texts),
    ):
        value, stderr = mean_stderr(values)
        scores[name] = replace(own, value=value, stderr=stderr, extractor=extractor)
    if count >= MIN_SET:
        rows = np.repeat(unrelated, reference.num_seeds)
        sums = preservation.shift_sums(look.features[rows], look.base[rows], reference.num_seeds)
        stderr = jackknife_stderr(sums.leave_outs(count))
        scores["shift_kd"] = replace(own, value=sums.distance(), stderr=stderr)
    return _ordered(scores)


def _score(reference: Reference, look: _Look, value: float, stderr: float) -> Score:
    return Score(
        value=value,
        stderr=stderr,
        num_images=reference.num_prompts * reference.num_seeds,
        num_prompts=reference.num_prompts,
        extractor=look.view.extractor,
    )


def check_images(
    images: NDArray[np.uint8], base_images: NDArray[np.uint8] | None, num_seeds: int = 1
) -> None:
    """Raise TrialError for images, shape (n, height, width, 3), that must not be scored.

    That is when any of them is one flat colour (NaN latents decode to black) where the base's is not, or
    when all of them equal the base's: then the adapter was not loaded or learned nothing.
    """
    flat = _flat(images)
    if base_images is not None:
        flat[flat] = ~_flat(base_images[flat])
    if flat.any():
        first = int(flat.argmax())
        black = " (black)" if images[first].max() <= FLAT else ""
        raise TrialError(
            f"{flat.sum()} of {len(images)} images are one flat colour, "
            f"the first is of prompt {first // num_seeds}{black}"
        )
    if base_images is not None and _same(images, base_images):
        raise TrialError(f"all {len(images)} images equal the base model's: the adapter changes nothing")


def _same(images: NDArray[np.uint8], others: NDArray[np.uint8]) -> bool:
    """But for rounding: images that are drawn beside others differ in a few values by one level."""
    differences = np.abs(images.astype(np.int16) - others)
    return bool(differences.max() <= 1 and (differences > 0).mean() < ROUNDED)


def _flat(images: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which have no more than one colour, (n); where some pixels already differ, no others are looked at."""
    flat = _no_spread(images[:, ::16, ::16])
    flat[flat] = _no_spread(images[flat])
    return flat


def _no_spread(images: NDArray[np.uint8]) -> NDArray[np.bool_]:
    spread = images.max(axis=(1, 2)) - images.min(axis=(1, 2))
    none: NDArray[np.bool_] = (spread <= FLAT).all(axis=1)
    return none


# Several trainings of one configuration


def combine(evaluations: Sequence[Evaluation]) -> tuple[dict[str, Score], dict[str, float]]:
    """Scores of one configuration over its training seeds, and each metric's deviation between them.

    A value is the mean over seeds. Its variance is that over prompts (paired: of the prompts' means over
    seeds; else, and for gains, the mean of the trainings' own) plus the variance between training seeds
    over their number. The deviation between seeds is NaN, and left out of the variance, with one seed.
    `num_images` stays that of one training: a distance is biased according to it.
    """
    names = evaluations[0].scores
    spread = {name: _spread([evaluation.scores[name].value for evaluation in evaluations]) for name in names}
    return {name: _combined(name, evaluations) for name in names}, spread


def _combined(name: str, evaluations: Sequence[Evaluation]) -> Score:
    scores = [evaluation.scores[name] for evaluation in evaluations]
    values = [score.value for score in scores]
    if _is_paired(name, evaluations):
        variance = mean_stderr(_prompt_means(name, evaluations))[1] ** 2
    else:
        variance = _mean_square([score.stderr for score in scores])
    gains = [score.gain for score in scores if score.gain is not None]
    gain_errors = [score.gain_stderr for score in scores if score.gain_stderr is not None]
    return Score(
        value=float(np.mean(values)),
        stderr=float(np.sqrt(variance + _seed_variance(values))),
        num_images=scores[0].num_images,
        num_prompts=scores[0].num_prompts,
        extractor=scores[0].extractor,
        gain=float(np.mean(gains)) if gains else None,
        gain_stderr=float(np.sqrt(_mean_square(gain_errors) + _seed_variance(gains))) if gains else None,
        caution=scores[0].caution,
    )


def gain_between(a: Sequence[Evaluation], b: Sequence[Evaluation]) -> dict[str, tuple[float, float]]:
    """Metric -> mean of `a` minus mean of `b`, with its standard error, for metrics that both hold.

    `a` and `b` are trainings of two configurations, scored on the same prompts and seeds. Paired metrics
    are compared prompt by prompt; for the others both errors are added, which is too wide rather than too
    narrow. The variance between training seeds of each side is added.
    """
    names = [name for name in a[0].scores if name in b[0].scores]
    return {name: _gain(name, a, b) for name in names}


def _gain(name: str, a: Sequence[Evaluation], b: Sequence[Evaluation]) -> tuple[float, float]:
    values = [[evaluation.scores[name].value for evaluation in side] for side in (a, b)]
    if _is_paired(name, [*a, *b]):
        variance = mean_stderr(_prompt_means(name, a) - _prompt_means(name, b))[1] ** 2
    else:
        errors = [[evaluation.scores[name].stderr for evaluation in side] for side in (a, b)]
        variance = sum(_mean_square(side) for side in errors)
    difference = float(np.mean(values[0]) - np.mean(values[1]))
    return difference, float(np.sqrt(variance + sum(_seed_variance(side) for side in values)))


def _is_paired(name: str, evaluations: Sequence[Evaluation]) -> bool:
    """Whether the values a prompt are those of the score: of probes, `shift` has those of all prompts."""
    return METRICS[name].paired and all(
        len(evaluation.per_prompt.get(name, ())) == evaluation.scores[name].num_prompts
        for evaluation in evaluations
    )


def _prompt_means(name: str, evaluations: Sequence[Evaluation]) -> NDArray[np.float64]:
    means: NDArray[np.float64] = np.mean([evaluation.per_prompt[name] for evaluation in evaluations], axis=0)
    return means


def _mean_square(errors: Sequence[float]) -> float:
    return float(np.mean(np.square(errors)))


def _spread(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def _seed_variance(values: Sequence[float]) -> float:
    """Of the mean over training seeds; 0 where one seed cannot tell."""
    return _spread(values) ** 2 / len(values) if len(values) > 1 else 0.0
