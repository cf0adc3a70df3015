"""A comparison for programs: what `bench compare --json` prints.

    schema_version, select_by, report       1; the metric of the overall verdicts; the HTML page
    sides[]       name, run, label, trained, trainings (null of the base), device
        concepts                            concept -> metric -> value, stderr (null of one prompt),
                                            num_prompts, gain, gain_stderr; empty of one concept
    pairs[]       of sides a and b, two names; every difference is a minus b
        verdict, reason, p_value            WIN, TIE or LOSS of a; p_value by Holm over metrics and pairs
        judge                               the judge's verdict on the same metric, or null
        floor_known, one_training[]         sides whose noise between trainings is not known
        tested[]  metric, a, b, difference, stderr, low, high (95 %), p_value, p_adjusted (Holm), floor,
                  inside_floor, verdict, num_prompts
        shown[]   metric, role (shown or alarm), a, b, difference, stderr: never a verdict
        untested[]                          metrics whose features are not in the run folders
        preservation                        side -> verdict, change, low, high, margin

a and b are values in the metric's unit. What is not known is null.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bench.comparison import Comparison, MetricComparison, ShownMetric, Side
from bench.scoring.concepts import plain
from bench.scoring.metrics import METRICS

SCHEMA_VERSION = 1


def as_json(sides: Sequence[Side], comparisons: Sequence[Comparison], report: str) -> dict[str, Any]:
    """All pairs as plain data."""
    return {
        "schema_version": SCHEMA_VERSION,
        "select_by": comparisons[0].select_by,
        "report": report,
        "sides": [_side(side) for side in sides],
        "pairs": [_pair(comparison) for comparison in comparisons],
    }


def _side(side: Side) -> dict[str, Any]:
    return {
        "name": side.name,
        "run": str(side.run.path),
        "label": side.label,
        "trained": side.trained,
        "trainings": len(side.evaluations) if side.trained else None,
        "device": side.run.metadata.device,
        "concepts": plain(side.concepts),
    }


def _pair(comparison: Comparison) -> dict[str, Any]:
    kept = {side.name: side.preservation for side in (comparison.a, comparison.b)}
    return {
        "a": comparison.a.name,
        "b": comparison.b.name,
        "verdict": comparison.verdict,
        "reason": comparison.reason,
        "p_value": comparison.p_value,
        "judge": comparison.judge.verdict if comparison.judge else None,
        "floor_known": comparison.floor_known,
        "one_training": [side.name for side in comparison.one_training],
        "tested": [_tested(row) for row in comparison.metrics],
        "shown": [_shown(row) for row in comparison.shown],
        "untested": list(comparison.untested),
        "preservation": {name: asdict(found) for name, found in kept.items() if found},
    }


def _tested(row: MetricComparison) -> dict[str, Any]:
    return {
        "metric": row.metric,
        "a": row.a.value,
        "b": row.b.value,
        "difference": row.mean,
        "stderr": row.stderr,
        "low": row.low,
        "high": row.high,
        "p_value": row.p_value,
        "p_adjusted": row.p_adjusted,
        "floor": row.floor,
        "inside_floor": row.inside_floor,
        "verdict": row.verdict,
        "num_prompts": row.num_prompts,
    }


def _shown(row: ShownMetric) -> dict[str, Any]:
    return {
        "metric": row.metric,
        "role": METRICS[row.metric].role,
        "a": row.a.value if row.a else None,
        "b": row.b.value if row.b else None,
        "difference": row.mean,
        "stderr": row.stderr,
    }
