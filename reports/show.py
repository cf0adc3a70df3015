"""What `bench show` prints of a run, or of one of its trials, in any state."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from bench.dataset import printable
from bench.errors import MissingError
from bench.run import (
    Run,
    Split,
    TrialRecord,
    adapter_file,
    epoch_folder,
    image_files,
)
from bench.scoring.metrics import METRICS, Score
from reports import tables
from reports.outcome import Outcome
from reports.runs import STYLES, TONES
from reports.tables import Confirmed, Model, ScoreCell, Setting, confirmed, costs, score_rows, setting_rows
from reports.trials import Point, read_points, scored
from reports.verdict import contests, verdict, winner_of
from reports.wording import capital, duration, settings, trial_name

NUM_TRIALS = 10
"""That are shown, the best first."""
NUM_PROMPTS = 3
"""Whose images are shown."""
TONE = {"win": "bold green", "tie": "bold yellow", "open": "bold cyan"}


class ImageRow(NamedTuple):
    """One prompt: the images of several models with the same seed, and the true picture."""

    caption: str
    titles: list[str]
    files: list[Path | None]


def show(found: Outcome) -> Group:
    """The verdict, what is recommended, confirmed scores, the best trials, failures and the cost.

    Raises UsageError for a file of the run that is damaged.
    """
    run, result = found.run, found.result
    assert run
    points = read_points(run)
    contested = contests(run, result) if result else None
    said = verdict(run, result, points, contested, is_running=found.state == "running")
    headline = Text(printable(said.headline), TONE[said.tone])
    parts: list[RenderableType] = [_head(found), headline, Text(printable(said.detail))]
    if result and contested:
        parts += _section("Recommended", _recommended(found))
        scores = confirmed(result, run.base_scores("test"), contested.over_base)
        parts += _section("Confirmed scores, and their gains over the base", _confirmed(scores))
    if best := best_points(points, run.space.select_by):
        parts += _section(f"Trials, the best {len(best)} on the dev prompts", _trials(run, best))
    if failed := [point for point in points if point.state == "failed"]:
        parts += _section("Failures", *(Text(_failure(point)) for point in failed))
    return Group(*parts, *_section("Cost", _pairs(costs(run, result))))


def best_points(points: Sequence[Point], metric: str) -> list[Point]:
    """Scored points of trials that did not fail, the best first."""
    known = [point for point in scored(list(points), metric) if point.state != "failed"]
    return sorted(known, key=lambda point: -METRICS[metric].sign * point.value(metric))[:NUM_TRIALS]


def _head(found: Outcome) -> Text:
    assert found.run
    metadata = found.run.metadata
    state = Text(found.state, STYLES.get(found.state, "dim"))
    rest = (
        f", {found.trials_done} of {found.run.space.trials} trials; base {metadata.base}, "
        f"data {metadata.data}, begun {metadata.created[:16].replace('T', ' ')} on {metadata.device}"
    )
    return Text.assemble((printable(found.name), "bold"), ": ", state, printable(rest))


def _section(title: str, *parts: RenderableType) -> list[RenderableType]:
    return [
        Text(),
        Text(title, "bold underline"),
        *(Padding(part, (0, 0, 0, 2), expand=False) for part in parts),
    ]


def _recommended(found: Outcome) -> Group:
    run, result = found.run, found.result
    assert run and result
    won, default = winner_of(result), result.candidate("default") or winner_of(result)
    rows = _searched(run, setting_rows(settings(won.config), settings(default.config)))
    files = [run.path / "winner" / name for name in ("training_config.yaml", "adapter.safetensors")]
    paths = [Text(printable(str(file))) for file in files if file.exists()]
    return Group(_settings(rows, "recommended", "default"), *paths)


def _searched(run: Run, rows: Sequence[Setting]) -> list[Setting]:
    """Those that are searched, or differ all the same."""
    return [row for row in rows if row.differs or row.name in run.space.distributions]


def _settings(rows: Sequence[Setting], first: str, second: str) -> Table:
    """Those that differ stand out."""
    table = _table("", first, second)
    for row in rows:
        style = "bold" if row.differs else "dim"
        table.add_row(*(Text(printable(text), style) for text in row))
    return table


def _confirmed(found: Confirmed) -> Table:
    """A row a metric that is tested, a column a model: the score, its gain and what may be said of that."""
    table = _table("", *(model.title for model in found.models))
    for row in (row for group in found.groups for row in group.rows):
        if METRICS[row.heading.name].role == "tested":
            name = f"{row.heading.label}\n({row.heading.direction})"
            table.add_row(Text(name), *(_score_cell(cell) for cell in row.cells))
    return table


def _score_cell(cell: ScoreCell) -> Text:
    return Text.assemble(f"{cell.text}\n{cell.gain} ", (cell.verdict, TONES[cell.verdict]))


def _trials(run: Run, points: Sequence[Point]) -> Table:
    """With the scores by which they are searched."""
    shown: set[str] = {*run.space.objectives, run.space.select_by}
    kept = [point._replace(scores=_only(point.scores, shown)) for point in points]
    found = tables.trials(run.space, kept)
    table = _table(*found.columns, *(heading.label for heading in found.headings), "time")
    for row in found.rows:
        style = {"winner": "bold green", "default": "cyan"}.get(row.kind, "")
        table.add_row(*(Text(printable(cell.text), style) for cell in row.cells))
    return table


def _only(scores: dict[str, Score], names: set[str]) -> dict[str, Score]:
    return {name: score for name, score in scores.items() if name in names}


def _failure(point: Point) -> str:
    return printable(f"{trial_name(point.label)}: {point.reason or 'no reason recorded'}")


# One trial


def find_trial(run: Run, number: int) -> TrialRecord:
    """Raises MissingError naming those that there are."""
    known = {record.label: record for record in run.trials()}
    record = known.get(run.trial_folder(number).name)
    if record is None:
        there = f"there are {', '.join(str(int(label)) for label in known)}" if known else "there is none yet"
        raise MissingError(f"--trial {number}: {run.path} has no such trial; {there}")
    return record


def show_trial(run: Run, record: TrialRecord) -> Group:
    """Its settings beside the default's, its scores at every epoch, and where its files are."""
    points = [point for point in read_points(run) if point.label == record.label]
    head = f"{capital(trial_name(record.label))} of {run.metadata.name}: {record.state}"
    head += f", {record.origin}, {duration(record.seconds)}"
    parts: list[RenderableType] = [Text(printable(head), "bold")]
    if record.reason:
        parts.append(Text(printable(f"{record.state}: {record.reason}")))
    rows = _searched(run, setting_rows(settings(record.config), settings(run.space.default)))
    parts += _section("Settings", _settings(rows, trial_name(record.label), "default"))
    known = [point for point in points if point.scores]
    if known:
        parts += _section("Scores on the dev prompts, and their gains over the base", _by_epoch(known))
    return Group(*parts, *_section("Files", *(Text(printable(str(path))) for path in _files(record))))


def _by_epoch(points: Sequence[Point]) -> Table:
    """Likewise, a column an epoch."""
    models = [Model(f"epoch {point.epoch}", point.kind, point.scores, {}) for point in points]
    table = _table("", *(model.title for model in models))
    for row in score_rows(models, list(METRICS)):
        name = f"{row.heading.label}\n({row.heading.direction})"
        table.add_row(Text(name), *(_score_cell(cell) for cell in row.cells))
    return table


def _files(record: TrialRecord) -> Iterator[Path]:
    yield record.path / "config.yaml"
    for epoch in record.epochs:
        files = (adapter_file(record.path, epoch), epoch_folder(record.path, epoch) / "images")
        yield from (file for file in files if file.exists())


# Images


def images_of_run(found: Outcome) -> list[ImageRow]:
    """Base, default, winner and true picture of the first prompts, with one seed; none before a result."""
    run, result = found.run, found.result
    if run is None or result is None:
        return []
    won, default = winner_of(result), result.candidate("default")
    folders = {"base model": [run.base_folder("test")]}
    if default:
        folders["default config"] = run.exam_folders(default, "test")
    folders[trial_name(won.label).removeprefix("the ")] = run.exam_folders(won, "test")
    return _image_rows(run, "test", folders)


def images_of_trial(run: Run, record: TrialRecord) -> list[ImageRow]:
    """Base, the trial at each epoch, and true picture of the first prompts."""
    if not record.epochs:
        return []
    folders = {"base model": [run.base_folder("dev")]}
    folders |= {f"epoch {epoch}": [epoch_folder(record.path, epoch)] for epoch in record.epochs}
    return _image_rows(run, "dev", folders)


def _image_rows(run: Run, split: Split, folders: dict[str, list[Path]]) -> list[ImageRow]:
    columns = {title: _images(found) for title, found in folders.items()}
    rows = []
    first = 0
    for prompt in run.metadata.prompts.get(split, [])[:NUM_PROMPTS]:
        files = [images[first] if first < len(images) else None for images in columns.values()]
        titles = [*columns]
        if prompt.real and (run.path / prompt.real).resolve().is_relative_to(run.path.resolve()):
            titles, files = [*titles, "real picture"], [*files, run.path / prompt.real]
        rows.append(ImageRow(prompt.text, titles, files))
        first += len(prompt.seeds)
    return rows


def _images(folders: Sequence[Path]) -> list[Path]:
    """Of the first training whose images are there."""
    return next((files for folder in folders if (files := image_files(folder))), [])


def image_paths(row: ImageRow) -> Text:
    """For a terminal that shows no images."""
    lines = [f"{title}: {file}" for title, file in zip(row.titles, row.files, strict=True) if file]
    return Text("\n".join(printable(line) for line in [row.caption, *(f"  {line}" for line in lines)]))


def image_caption(row: ImageRow) -> Text:
    """Above images that stand side by side in this order."""
    return Text(printable(f"{row.caption}  ({' | '.join(row.titles)})"))


# Tables


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(Text(printable(column)))
    return table


def _pairs(rows: Iterable[tuple[str, str]]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in rows:
        table.add_row(Text(name, "dim"), Text(printable(value)))
    return table
