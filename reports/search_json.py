"""A search for programs: what `bench report RUN --json` prints.

    schema_version, name, created, state    1; of the run; finished, running, unfinished, failed or empty
    report, data_files[]                    the HTML page, and the files of reports/exports.py
    base, data, scorer, judge, device, machine, versions, num_images, seed, notes[]
                                            what was searched and where; judge is null if there was none
    space, select_by                        as resolved; the metric that ranks
    num_trials, seconds                     trials there are; wall-clock of the search, null until it ends
    verdict       tone (win, tie or open), headline, lead (by how much, or empty), detail
        facts[]                             label, value, note, verdict: the numbers beside it, as text
    winner        null until the search ends
        label, config, adapter, is_default  the candidate, what trains it again, its file (or null)
    advice[]                                what to do next: kind, title, evidence, step
    importances                             parameter -> share; empty where they are not known
    trials[], scores[]                      rows of the frames of reports/exports.py, by their column names

Values per prompt are in data/prompts.*. What is not known is null.
"""

from json import loads
from pathlib import Path
from typing import Any

from bench import advice
from bench.run import Result, Run
from reports import exports
from reports.state import state_of
from reports.trials import importances, read_points
from reports.verdict import contests_of, verdict, winner_of

SCHEMA_VERSION = 1
TOLD = ("base", "data", "scorer", "judge", "device", "machine", "versions", "num_images", "seed", "notes")


def as_json(run: Run, report: Path) -> dict[str, Any]:
    """What the page `report` of a run says, as plain data."""
    points, result = read_points(run), run.result()
    found = contests_of(run)
    advised = advice.advise(advice.of_search(run, result)) if points else []
    state = state_of(run)
    said = verdict(run, result, points, found, is_running=state == "running")
    return {
        "schema_version": SCHEMA_VERSION,
        "name": run.metadata.name,
        "created": run.metadata.created,
        "state": state,
        "report": str(report),
        "data_files": [str(file) for file in exports.files(run)],
        **{name: getattr(run.metadata, name) for name in TOLD},
        "space": run.metadata.space,
        "select_by": run.space.select_by,
        "num_trials": len(run.trials()),
        "seconds": result.seconds if result else None,
        "verdict": {**said._asdict(), "facts": [fact._asdict() for fact in said.facts]},
        "winner": _winner(run, result) if result else None,
        "advice": [finding._asdict() for finding in advised],
        "importances": importances(run, points).shares,
        "trials": loads(exports.json(exports.trials(run, points))),
        "scores": loads(exports.json(exports.scores(run, found))),
    }


def _winner(run: Run, result: Result) -> dict[str, Any]:
    won, adapter = winner_of(result), run.path / "winner" / "adapter.safetensors"
    return {
        "label": won.label,
        "config": run.training_config(won.config).model_dump(mode="json"),
        "adapter": str(adapter) if adapter.exists() else None,
        "is_default": won.label == "default",
    }
