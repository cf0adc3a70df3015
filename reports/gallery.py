"""The images of a search report: base, default, winner and true picture, by kinds of prompts."""

from typing import NamedTuple

from bench.run import Candidate, PromptRecord, Result, Run, Split
from reports.images import NUM_AT_A_GLANCE, Column, Grid, column, grid
from reports.trials import Point, best, point_folder, scored
from reports.verdict import winner_of
from reports.wording import model_name, trial_name

HELD_OUT_SHARE, PROBES_SHARE = 0.5, 0.05
"""Of the page's room for images: the prompts that decide, and each kind of probes."""
PROBES = {
    "training": ("Captions of training pictures", "It has seen these: look for copies."),
    "altered": (
        "Your subjects, changed",
        "What the pictures show, in other colours, places, poses.",
    ),
    "style": ("The style on other subjects", "What no training picture shows."),
    "unrelated": ("Nothing to do with your data", "These should look as the base draws them."),
}
SHIFT = "shift"
"""Under probes stands how much they changed, not how good they are."""


class Group(NamedTuple):
    """Prompts of one kind."""

    key: str
    title: str
    note: str
    grid: Grid


class Gallery(NamedTuple):
    groups: list[Group]
    """Those that decide first."""
    seeds: int
    """The most of any group."""


def gallery(run: Run, result: Result | None, points: list[Point]) -> Gallery | None:
    """Confirmed images once there are any, else those of the best trial so far; None without an image."""
    groups = [*_held_out(run, result, points), *(_probes(run, result) if result else ())]
    return Gallery(groups, max(group.grid.seeds for group in groups)) if groups else None


def _held_out(run: Run, result: Result | None, points: list[Point]) -> list[Group]:
    """One group, or one a concept."""
    split: Split = "test" if result else "dev"
    columns = [column("base model", "base", [run.base_folder(split)], run.space.select_by)]
    columns += _confirmed_columns(run, result) if result else _dev_columns(run, points)
    columns = [found for found in columns if found.images]
    prompts = run.metadata.prompts.get(split, [])
    if not columns or not prompts:
        return []
    concepts = list(dict.fromkeys(prompt.concept for prompt in prompts))
    groups = []
    for index, concept in enumerate(concepts):
        order = [number for number, prompt in enumerate(prompts) if prompt.concept == concept]
        shown = grid(
            run,
            prompts,
            columns,
            order,
            HELD_OUT_SHARE / len(concepts),
            at_a_glance=0 if index else NUM_AT_A_GLANCE,
            page=run.path,
        )
        title = f"Held-out captions of {concept}" if concept else "Held-out captions"
        groups.append(Group(f"held-out-{index}" if index else "held-out", title, "", shown))
    return groups


def _confirmed_columns(run: Run, result: Result) -> list[Column]:
    won, default = winner_of(result), result.candidate("default")
    shown = [("default config", "default", default)] if default else []
    if won.label != "default":
        shown.append((trial_name(won.label), "winner", won))
    return [
        column(title, kind, run.exam_folders(candidate, "test"), result.select_by)
        for title, kind, candidate in shown
    ]


def _dev_columns(run: Run, points: list[Point]) -> list[Column]:
    known = scored(points, run.space.select_by)
    default = best([point for point in known if point.kind == "default"], run.space.select_by)
    found = best(known, run.space.select_by)
    shown = [("default config", "default", default)] if default else []
    if found and found.kind != "default":
        shown.append((f"{trial_name(found.label)}: best yet", "winner", found))
    return [
        column(title, kind, [point_folder(run, point)], run.space.select_by) for title, kind, point in shown
    ]


def _probes(run: Run, result: Result) -> list[Group]:
    """Base, default and winner on each kind of probes that was drawn."""
    prompts = run.metadata.prompts.get("probe", [])
    by_label = {candidate.label: candidate for candidate in result.candidates}
    labels = [label for label in dict.fromkeys(["default", result.winner]) if label in by_label]
    columns = [column("base model", "base", [run.base_folder("probe")], SHIFT)]
    columns += [_probe_column(run, by_label[label], result.winner) for label in labels]
    columns = [found for found in columns if found.images]
    groups = []
    for kind, (title, note) in PROBES.items():
        order = _of_kind(prompts, kind)
        shown = grid(run, prompts, columns, order, PROBES_SHARE, at_a_glance=0, page=run.path)
        if columns and shown.rows:
            groups.append(Group(kind, title, note, shown))
    return groups


def _probe_column(run: Run, candidate: Candidate, winner: str) -> Column:
    kind = "winner" if candidate.label == winner != "default" else "default"
    return column(model_name(candidate.label).lower(), kind, run.exam_folders(candidate, "probe"), SHIFT)


def _of_kind(prompts: list[PromptRecord], kind: str) -> list[int]:
    return [index for index, prompt in enumerate(prompts) if prompt.kind == kind]
