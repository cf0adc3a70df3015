import pytest

from bench.scoring.metrics import METRICS, PREFIX, Score, best, judged, title

ROLES = {
    "tested": "similarity clip_score diversity kd judge_similarity judge_diversity judge_kd clip_change",
    "shown": "vendi cmmd centroid fid drift judge_drift fid_inception drift_inception shift shift_kd "
    "held_out_loss",
    "alarm": "nearest copies authentic c_t loss_gap",
}


@pytest.mark.parametrize("role", ROLES)
def test_every_metric_has_its_role(role: str) -> None:
    assert {name for name, metric in METRICS.items() if metric.role == role} == set(ROLES[role].split())


def test_every_metric_says_what_it_is() -> None:
    for name, metric in METRICS.items():
        assert metric.name == name
        assert metric.question.endswith("?") or metric.question.endswith(".")
        assert metric.label and metric.unit and metric.source
        assert metric.sign == (1 if metric.direction == "maximize" else -1)


def test_the_judge_has_counterparts_that_ask_the_same() -> None:
    assert judged("similarity") == "judge_similarity"
    assert judged("vendi") is None and judged("judge_kd") is None and judged("unknown") is None
    for name in METRICS:
        counterpart = judged(name)
        if counterpart:
            own, other = METRICS[name], METRICS[counterpart]
            assert counterpart == PREFIX + name
            assert (own.sign, own.paired, own.role) == (other.sign, other.paired, other.role)
    assert {n for n in METRICS if n.startswith(PREFIX)} == {PREFIX + n for n in METRICS if judged(n)}


def test_best_follows_the_direction() -> None:
    assert best([1, 3, 2], "similarity", float) == 3
    assert best([1, 3, 2], "kd", float) == 1


def test_title_names_network_and_images() -> None:
    score = Score(value=0.3, stderr=0.1, num_images=48, num_prompts=24, extractor="emoji-clip")
    assert title(METRICS["clip_score"], score) == "CLIP score (emoji-clip, 48 images)"
