"""Build the emoji data set from pinned npm packages: python -m bench.builtin.recipe.data --out FOLDER."""

import argparse
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.builtin.recipe import packages
from bench.builtin.recipe.captions import Concept, read_concepts
from bench.builtin.recipe.icons import icons_of
from bench.builtin.recipe.packages import SOURCES, Source
from bench.builtin.recipe.rasterise import is_blank
from bench.builtin.recipe.row import Row
from bench.builtin.recipe.splits import Splits, read_splits
from bench.builtin.recipe.targets import TARGETS, write_target

FILE_NAME = "emoji64.npz"
NEAR = 2.0  # grey levels of 255


def build(cache: Path) -> list[Row]:
    """Every row of the data set, set by set, each in the order of codepoints."""
    concepts = read_concepts(packages.unpacked(packages.CLDR, cache))
    splits = read_splits()
    return [row for source in SOURCES for row in rows_of(source, concepts, splits, cache)]


def rows_of(source: Source, concepts: Mapping[str, Concept], splits: Splits, cache: Path) -> list[Row]:
    """The rows of one vendor, without blank pictures and without exact copies of an earlier one."""
    rows, seen = [], set()
    for icon in icons_of(source, concepts, cache):
        pixels = icon.draw()
        if is_blank(pixels) or pixels.tobytes() in seen:
            continue
        seen.add(pixels.tobytes())
        concept = icon.concept
        rows.append(
            Row(
                set=source.name,
                role=source.role,
                split="val" if concept.codepoint in splits.val else "train",
                name=concept.name,
                caption=concept.caption,
                style=source.style,
                codepoint=concept.codepoint,
                group=concept.group,
                subgroup=concept.subgroup,
                flip_ok=concept.flip_ok,
                licence=source.licence,
                pixels=pixels,
            )
        )
    return sorted(rows, key=lambda row: (row.codepoint, row.name))


def as_arrays(rows: list[Row]) -> dict[str, NDArray[Any]]:
    """The rows as arrays of length N: `images` is uint8 [N, 64, 64, 3], the others one value a row."""
    names = [field.name for field in fields(Row) if field.name != "pixels"]
    arrays = {name: np.array([getattr(row, name) for row in rows]) for name in names}
    return {"images": np.stack([row.pixels for row in rows]), **arrays}


def count_lines(rows: list[Row]) -> list[str]:
    """Per set: how many pictures there are and how many there should be."""
    counts = Counter(row.set for row in rows)
    return [f"{source.name:12} {counts[source.name]:5} of {source.num_kept}" for source in SOURCES]


def compare_lines(ours: Mapping[str, NDArray[Any]], theirs: Mapping[str, NDArray[Any]]) -> list[str]:
    """How far two data sets agree, where a row is found again by its set, name, codepoint and turn."""
    index = {key: number for number, key in enumerate(_keys(theirs))}
    pairs = [(a, index[key]) for a, key in enumerate(_keys(ours)) if key in index]
    mine, other = (np.array(side, dtype=int) for side in zip(*pairs, strict=True))
    difference = np.abs(ours["images"][mine].astype(np.int16) - theirs["images"][other]).mean(axis=(1, 2, 3))
    num_theirs = len(theirs["set"])
    agreeing = {
        name: int((ours[name][mine] == theirs[name][other]).sum()) for name in ours if name != "images"
    }
    counted = {
        "rows found again": len(pairs),
        "pictures identical": int((difference == 0).sum()),
        f"pictures within {NEAR:g} grey levels": int((difference <= NEAR).sum()),
        **{f"equal {name}": count for name, count in agreeing.items()},
    }
    lines = [f"{what:32} {n:5} of {num_theirs} ({n / num_theirs:.2%})" for what, n in counted.items()]
    return [*lines, f"rows only here: {len(ours['set']) - len(pairs)}"]


def _keys(arrays: Mapping[str, NDArray[Any]]) -> list[tuple[str, str, str, int]]:
    turns: Counter[tuple[str, str, str]] = Counter()
    keys = []
    for name, label, codepoint in zip(arrays["set"], arrays["name"], arrays["codepoint"], strict=True):
        key = (str(name), str(label), str(codepoint))
        keys.append((*key, turns[key]))
        turns[key] += 1
    return keys


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for emoji64.npz and targets/")
    parser.add_argument("--cache", type=Path, help="folder for the npm packages (default: OUT/packages)")
    parser.add_argument("--targets-to", type=Path, help="also write the targets here, one folder a style")
    parser.add_argument("--compare", type=Path, help="another emoji64.npz to compare with")
    args = parser.parse_args()
    rows = build(args.cache or args.out / "packages")
    arrays = as_arrays(rows)
    args.out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(args.out / FILE_NAME, allow_pickle=False, **arrays)
    print("\n".join(count_lines(rows)))
    if args.compare:
        with np.load(args.compare) as other:
            print("\n".join(compare_lines(arrays, dict(other))))
    for folder in filter(None, [args.out / "targets", args.targets_to]):
        for target in TARGETS:
            write_target(target, rows, read_splits(), folder / target.name)


if __name__ == "__main__":
    main()
