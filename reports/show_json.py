"""A run for programs: what `bench show --json` prints.

    schema_version                          1
    outcome                                 the run in few numbers: see reports/outcome.py
    detail                                  the sentences under the verdict
    recommended                             null before there is a result
        config, default                     settings by their names in a space
        training_config, adapter            paths, or null
    candidates[]                            what was trained again, on the test prompts; empty before that
        label, kind                         kind: default, winner or sampled
        config, trainings, failed           trainings that are counted, and that failed
        scores                              metric -> value, stderr, num_prompts, and over the base
                                            gain, gain_stderr
        over_base                           verdict, reason, p_value, and of the metric that decides
                                            difference, stderr, low, high (95 %); or null
    over_default                            the same of the winner against the default; or null
    trials[]                                of the search, on the dev prompts
        number, label, state, origin, reason, seconds, config
        epochs[]                            epoch, and scores as above
    notes[]                                 what a reader of the scores should know

`bench show RUN --trial 7 --json` prints schema_version, and one of trials[] as `trial`. What is not known is
null.
"""

from collections.abc import Mapping
from typing import Any

from bench.comparison import Comparison
from bench.run import Candidate, Result, Run, TrialRecord, epoch_folder, read_evaluation
from bench.scoring.metrics import Score
from reports.outcome import Outcome, outcome_json
from reports.tables import kind_of, ranked
from reports.trials import read_points
from reports.verdict import Contests, contests, verdict, winner_of

SCHEMA_VERSION = 1


def as_json(found: Outcome) -> dict[str, Any]:
    """All of a run as plain data. Raises UsageError for a file that is damaged."""
    run, result = found.run, found.result
    assert run
    contested = contests(run, result) if result else Contests({}, None)
    return {
        "schema_version": SCHEMA_VERSION,
        "outcome": outcome_json(found),
        "detail": _detail(found, contested),
        "recommended": _recommended(run, result) if result else None,
        "candidates": [_candidate(each, result, contested) for each in ranked(result)] if result else [],
        "over_default": _comparison(contested.over_default),
        "trials": [_trial(record) for record in run.trials()],
        "notes": list(run.metadata.notes),
    }


def _detail(found: Outcome, contested: Contests) -> str:
    assert found.run
    is_running = found.state == "running"
    return verdict(found.run, found.result, read_points(found.run), contested, is_running=is_running).detail


def trial_as_json(record: TrialRecord) -> dict[str, Any]:
    return {"schema_version": SCHEMA_VERSION, "trial": _trial(record)}


def _recommended(run: Run, result: Result) -> dict[str, Any]:
    won, default = winner_of(result), result.candidate("default")
    files = {
        "training_config": run.path / "winner" / "training_config.yaml",
        "adapter": run.path / "winner" / "adapter.safetensors",
    }
    return {
        "config": won.config.model_dump(mode="json"),
        "default": (default.config if default else run.space.default).model_dump(mode="json"),
        **{name: str(file) if file.exists() else None for name, file in files.items()},
    }


def _candidate(candidate: Candidate, result: Result, contested: Contests) -> dict[str, Any]:
    return {
        "label": candidate.label,
        "kind": kind_of(candidate, result),
        "config": candidate.config.model_dump(mode="json"),
        "trainings": len(candidate.records),
        "failed": candidate.num_failed,
        "scores": _scores(candidate.scores),
        "over_base": _comparison(contested.over_base.get(candidate.label)),
    }


def _comparison(found: Comparison | None) -> dict[str, Any] | None:
    if found is None:
        return None
    main = found.main
    return {
        "verdict": found.verdict,
        "reason": found.reason,
        "p_value": found.p_value,
        "difference": main and main.mean,
        "stderr": main and main.stderr,
        "low": main and main.low,
        "high": main and main.high,
    }


def _trial(record: TrialRecord) -> dict[str, Any]:
    return {
        "number": int(record.label) if record.label.isdecimal() else None,
        "label": record.label,
        "state": record.state,
        "origin": record.origin,
        "reason": record.reason,
        "seconds": record.seconds,
        "config": record.config.model_dump(mode="json"),
        "epochs": [
            {"epoch": epoch, "scores": _scores(read_evaluation(epoch_folder(record.path, epoch)).scores)}
            for epoch in record.epochs
        ],
    }


def _scores(scores: Mapping[str, Score]) -> dict[str, Any]:
    return {
        name: {
            "value": score.value,
            "stderr": score.stderr,
            "gain": score.gain,
            "gain_stderr": score.gain_stderr,
            "num_prompts": score.num_prompts,
        }
        for name, score in scores.items()
    }
