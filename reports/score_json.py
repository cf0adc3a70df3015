"""Scored adapter files for programs: what `bench score --json` prints.

schema_version, select_by, report   1; the metric that recommends; the HTML page
trainings[]
    name
    recommended                     file, checkpoint, epoch, step (null where the name does not say), weight
    as_good[]                       checkpoint and weight of others that the dev prompts do not tell apart
    scored[]                        every checkpoint at every weight, on the dev prompts:
        file, checkpoint, epoch, step, weight
        scores                      metric -> value, stderr, gain and gain_stderr (over the base; or null)
        concepts                    the same of each concept, with num_prompts: see reports/compare_json.py
    refused[]                       what could not be scored, with the reason
    verdict, reason, p_value        of what is recommended against the base, on the test prompts
    advice[]                        what to do next: kind, title, evidence, step
    test                            metric -> value, stderr, gain, gain_stderr there
comparison                          of what is recommended and the base, in pairs: see reports/compare_json.py
"""

from collections.abc import Mapping, Sequence
from typing import Any

from bench.comparison import Comparison, Side
from bench.run import Run
from bench.scoring.concepts import plain
from bench.scoring.metrics import Score
from bench.sheet import Entry, Sheet
from reports import compare_json
from reports.score import advice, over_the_base

SCHEMA_VERSION = 1


def as_json(
    sheets: Sequence[Sheet], sides: Sequence[Side], comparisons: Sequence[Comparison], report: str
) -> dict[str, Any]:
    """All sheets as plain data."""
    over_base = over_the_base(sides, comparisons)
    return {
        "schema_version": SCHEMA_VERSION,
        "select_by": sheets[0].select_by,
        "report": report,
        "trainings": [_training(*both) for both in zip(sheets, over_base, strict=True)],
        "comparison": compare_json.as_json(sides, comparisons, report),
    }


def _training(sheet: Sheet, comparison: Comparison) -> dict[str, Any]:
    return {
        "name": sheet.series.name,
        "recommended": _setting(sheet.best),
        "as_good": [
            {"checkpoint": entry.checkpoint.title, "weight": entry.weight} for entry in sheet.as_good
        ],
        "scored": [_scored(comparison.a.run, entry) for entry in sheet.entries],
        "refused": list(sheet.refused),
        "verdict": comparison.verdict,
        "reason": comparison.reason,
        "p_value": comparison.p_value,
        "advice": [finding._asdict() for finding in advice(sheet, comparison)],
        "test": _scores(comparison.a.scores),
    }


def _scored(run: Run, entry: Entry) -> dict[str, Any]:
    concepts = plain(run.by_concept("dev", [entry.evaluation]))
    return _setting(entry) | {"scores": _scores(entry.scores), "concepts": concepts}


def _setting(entry: Entry) -> dict[str, Any]:
    return {
        "file": str(entry.checkpoint.file),
        "checkpoint": entry.checkpoint.title,
        "epoch": entry.checkpoint.epoch,
        "step": entry.checkpoint.step,
        "weight": entry.weight,
    }


def _scores(scores: Mapping[str, Score]) -> dict[str, Any]:
    return {
        name: {
            "value": score.value,
            "stderr": score.stderr,
            "gain": score.gain,
            "gain_stderr": score.gain_stderr,
        }
        for name, score in scores.items()
    }
