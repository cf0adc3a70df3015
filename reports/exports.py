"""The numbers of a run as pandas frames, and as files beside its report: data/{trials,scores,prompts}.*.

    trials    a row a scored epoch, and one of a trial that was never scored: trial, origin (default or
              sampled), state, epoch, winner (whether the winner was retrained from it), every parameter,
              and on the dev prompts METRIC, METRIC_stderr, METRIC_gain and METRIC_gain_stderr (over the
              base) of each metric; seconds, shared by the trials beside it; reason of its failing or pruning
    scores    a row a metric of the base and of each confirmed candidate, on the test prompts: candidate,
              kind, trainings, metric, label, direction, unit, role, extractor, num_images, num_prompts,
              value, stderr; gain over the base with gain_stderr, low and high (95 %), p_adjusted, floor (of
              luck) and verdict; the same over the default config, of the winner, as default_gain, …;
              seed_spread between trainings; caution
    prompts   a row a model, training and prompt: model (base, default or a trial's number), kind (base, trial
              or confirmed), training, epoch, split, prompt, text, prompt_kind, concept, and a column for
              each metric that is a mean over prompts

What is not known is missing. Frames hold what reports show; texts in them are without secrets.
"""

from collections.abc import Callable, Iterator
from io import BytesIO
from json import loads
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import pandas as pd

from bench.comparison import Comparison
from bench.config import TrialConfig
from bench.files import replacing
from bench.run import Candidate, Run, Split, TrialRecord, epoch_folder, has_evaluation, read_evaluation
from bench.scoring.metrics import METRICS, Score
from bench.secrets import masked
from bench.space import modules_to_text
from reports.tables import kind_of, ranked
from reports.trials import Point, read_points
from reports.verdict import Contests, contests
from reports.wording import metric_names


class Embedded(NamedTuple):
    """A frame, as a page offers it."""

    name: str
    title: str
    about: str
    num_rows: int | None
    """None: not counted."""
    table: dict[str, Any] | None
    """`columns`, and `rows` with numbers to DIGITS; None: the page does not carry it."""


Format = Literal["csv", "json", "parquet"]
FORMATS: tuple[Format, ...] = get_args(Format)
FOLDER = "data"
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""A cell that begins so is a formula to a spreadsheet: a text gets an apostrophe in front, in CSV alone."""
DIGITS = 6
"""Of numbers that a page carries along; files have all."""
ABOUT = {
    "trials": ("Trials", "every scored epoch: its settings, its scores on the dev prompts, what it took"),
    "scores": (
        "Confirmed scores",
        "every metric of each candidate, with gains, intervals and verdicts",
    ),
    "prompts": ("Prompts", "every value that was measured of one prompt, in the search and after it"),
}
"""Frame -> its title, and what it holds."""
COMPARED = ("gain", "gain_stderr", "low", "high", "p_adjusted", "floor", "verdict")
PARAMETERS = tuple(name for name in TrialConfig.model_fields if name != "seed")
KINDS: dict[Any, str] = {int: "Int64", int | None: "Int64", bool: "boolean", float: "float64"}
"""Annotation of a parameter -> type of its column; others are text."""
TEXTS = (
    *(
        "trial",
        "origin",
        "state",
        "reason",
        "candidate",
        "kind",
        "metric",
        "label",
        "direction",
        "unit",
        "role",
    ),
    *("extractor", "verdict", "default_verdict", "caution"),
    *("model", "training", "split", "text", "prompt_kind", "concept"),
)
WHOLE = ("epoch", "trainings", "num_images", "num_prompts", "prompt")
TYPES = {
    **{name: KINDS.get(TrialConfig.model_fields[name].annotation, "string") for name in PARAMETERS},
    **dict.fromkeys(TEXTS, "string"),
    **dict.fromkeys(WHOLE, "Int64"),
    "winner": "boolean",
}
"""Of columns; all others are floating-point numbers."""


def trials(run: Run, points: list[Point] | None = None) -> pd.DataFrame:
    """Every scored epoch of every trial, by number; `points` are the run's, if known already."""
    points = read_points(run) if points is None else points
    records = {trial.label: trial for trial in run.trials()}
    names = metric_names({name for point in points for name in point.scores})
    columns = ["trial", "origin", "state", "epoch", "winner", *PARAMETERS]
    columns += [column for name in names for column in _metric_columns(name)] + ["seconds", "reason"]
    rows = [_trial(point, records[point.label], names) for point in points]
    return _frame(rows, columns)


def scores(run: Run, found: Contests | None = None) -> pd.DataFrame:
    """The base and every confirmed candidate in every metric; `found` are the contests, if known already."""
    result = run.result()
    columns = ["candidate", "kind", "trainings", "metric", "label", "direction", "unit", "role", "extractor"]
    columns += ["num_images", "num_prompts", "value", "stderr", *COMPARED]
    columns += [f"default_{name}" for name in COMPARED] + ["seed_spread", "caution"]
    if result is None:
        return _frame([], columns)
    found = found or contests(run, result)
    base = run.base_scores("test")
    rows = [_score("base", "base", None, name, base[name]) for name in metric_names(set(base))]
    for candidate in ranked(result):
        over_default = found.over_default if candidate.label == result.winner else None
        kind = kind_of(candidate, result)
        rows += _candidate(candidate, kind, found.over_base.get(candidate.label), over_default)
    return _frame(rows, columns)


def prompts(run: Run) -> pd.DataFrame:
    """Every value that was measured of one prompt: of the base, of trials and of retrainings."""
    rows = [row for drawn in _drawings(run) for row in _per_prompt(run, *drawn)]
    known = {name for row in rows for name in row}
    columns = ["model", "kind", "training", "epoch", "split", "prompt", "text", "prompt_kind", "concept"]
    return _frame(rows, columns + metric_names(known))


def embedded(run: Run, points: list[Point], found: Contests | None) -> list[Embedded]:
    """For a page: trials and scores, which it carries along, and prompts, which are too many."""
    frames = {"trials": trials(run, points), "scores": scores(run, found)}
    kept = [Embedded(name, *ABOUT[name], len(frame), _rounded(frame)) for name, frame in frames.items()]
    shown = [table for table in kept if table.num_rows]
    return [*shown, Embedded("prompts", *ABOUT["prompts"], None, None)] if shown else []


def write(run: Run, found: Contests | None = None) -> list[Path]:
    """All frames in all formats, into the run's folder `data`; returns the files."""
    for name, frame in {"trials": trials(run), "scores": scores(run, found), "prompts": prompts(run)}.items():
        for format in FORMATS:
            write_frame(frame, run.path / FOLDER / f"{name}.{format}", format)
    return files(run)


def files(run: Run) -> list[Path]:
    """Those that `write` writes."""
    return [run.path / FOLDER / f"{name}.{format}" for name in ABOUT for format in FORMATS]


def write_frame(frame: pd.DataFrame, path: Path, format: Format) -> Path:
    """One file, replaced whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content(frame, format))
    return path


def content(frame: pd.DataFrame, format: Format) -> bytes:
    """Of a file."""
    if format == "parquet":
        buffer = BytesIO()
        frame.to_parquet(buffer, index=False)
        return buffer.getvalue()
    return (csv(frame) if format == "csv" else json(frame)).encode()


def csv(frame: pd.DataFrame) -> str:
    """With a head; text that a spreadsheet would take for a formula begins with an apostrophe."""
    texts = [name for name in frame if frame[name].dtype == "string"]
    safe = {str(name): frame[name].map(_not_a_formula, na_action="ignore") for name in texts}
    return str(frame.assign(**safe).to_csv(index=False, lineterminator="\n"))


def json(frame: pd.DataFrame) -> str:
    """A list of rows; null for what is missing."""
    return str(frame.to_json(orient="records", force_ascii=False, double_precision=15, indent=1)) + "\n"


def _rounded(frame: pd.DataFrame) -> dict[str, Any]:
    floats = frame.select_dtypes("float64").map(lambda value: float(f"{value:.{DIGITS}g}"))
    rows = frame.assign(**{str(name): floats[name] for name in floats}).to_json(
        orient="values", double_precision=15
    )
    return {"columns": list(frame), "rows": loads(rows)}


FRAMES: dict[str, Callable[[Run], pd.DataFrame]] = {"trials": trials, "scores": scores, "prompts": prompts}


def _not_a_formula(text: str) -> str:
    return f"'{text}" if text.startswith(FORMULA) else text


def _trial(point: Point, record: TrialRecord, names: list[str]) -> dict[str, Any]:
    """`epochs` are those that it was to train, `epoch` is when it was scored."""
    row: dict[str, Any] = {
        "trial": point.label,
        "origin": record.origin,
        "state": point.state,
        "epoch": point.epoch,
        "winner": point.kind == "winner",
    }
    row |= {name: getattr(record.config, name) for name in PARAMETERS}
    row["target_modules"] = modules_to_text(record.config.target_modules)
    for name in names:
        if score := point.scores.get(name):
            values = (score.value, score.stderr, score.gain, score.gain_stderr)
            row |= dict(zip(_metric_columns(name), values, strict=True))
    return row | {"seconds": point.seconds, "reason": point.reason}


def _metric_columns(name: str) -> tuple[str, str, str, str]:
    return name, f"{name}_stderr", f"{name}_gain", f"{name}_gain_stderr"


def _candidate(
    candidate: Candidate, kind: str, over_base: Comparison | None, over_default: Comparison | None
) -> Iterator[dict[str, Any]]:
    for name in metric_names(set(candidate.scores)):
        score = candidate.scores[name]
        row = _score(candidate.label, kind, len(candidate.records), name, score)
        row |= {"gain": score.gain, "gain_stderr": score.gain_stderr}
        row |= _compared(over_base, name)
        row |= {f"default_{key}": value for key, value in _compared(over_default, name).items()}
        yield row | {"seed_spread": candidate.seed_spread.get(name)}


def _score(label: str, kind: str, trainings: int | None, name: str, score: Score) -> dict[str, Any]:
    metric = METRICS[name]
    return {
        "candidate": label,
        "kind": kind,
        "trainings": trainings,
        "metric": name,
        **{key: getattr(metric, key) for key in ("label", "direction", "unit", "role")},
        **{key: getattr(score, key) for key in ("extractor", "num_images", "num_prompts", "value", "stderr")},
        "caution": score.caution,
    }


def _compared(comparison: Comparison | None, metric: str) -> dict[str, Any]:
    """What a comparison says of a metric that it tests."""
    row = comparison.row(metric) if comparison else None
    if row is None:
        return {}
    values = (row.mean, row.stderr, row.low, row.high, row.p_adjusted, row.floor, row.verdict)
    return dict(zip(COMPARED, values, strict=True))


def _drawings(run: Run) -> Iterator[tuple[Path, Split, dict[str, Any]]]:
    """Folders of evaluations, the split of their prompts, and whose they are."""
    for split in run.metadata.prompts:
        yield run.base_folder(split), split, {"model": "base", "kind": "base"}
    for trial in run.trials():
        for epoch in trial.epochs:
            model = {"model": trial.label, "kind": "trial", "training": trial.label, "epoch": epoch}
            yield epoch_folder(trial.path, epoch), "dev", model
    result = run.result()
    for candidate in result.candidates if result else ():
        model = {"model": candidate.label, "kind": "confirmed", "epoch": candidate.config.epochs}
        for split in run.metadata.prompts:
            folders = run.exam_folders(candidate, split)
            for training, folder in zip(candidate.records, folders, strict=True):
                yield folder, split, model | {"training": training}


def _per_prompt(run: Run, folder: Path, split: Split, model: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if not has_evaluation(folder):
        return
    values = read_evaluation(folder).per_prompt
    for number, prompt in enumerate(run.metadata.prompts[split]):
        row: dict[str, Any] = {"split": split, "prompt": number, "text": prompt.text}
        row |= {"prompt_kind": prompt.kind, "concept": prompt.concept or None}
        row |= {name: column[number] for name, column in values.items() if number < len(column)}
        yield model | row


def _frame(rows: list[dict[str, Any]], columns: list[str]) -> pd.DataFrame:
    """Every column has its type, whether there are rows or not."""
    frame = pd.DataFrame(rows, columns=pd.Index(columns), dtype=object)
    types: dict[str, Any] = {name: TYPES.get(name, "float64") for name in columns}
    for name in (name for name in columns if types[name] == "string"):
        frame[name] = frame[name].map(masked, na_action="ignore")
    return frame.astype(types)
