"""Captions from what people have already, text files, folder names or file names, -> metadata.jsonl."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.dataset import split_folders, text_problem
from bench.errors import UsageError
from bench.files import write_text
from bench.folder import METADATA, SUFFIXES, check_file, concept_of, pictures_in, read_text
from bench.pictures import Flaw

CAPTION, TRIGGER = "{caption}", "{trigger}"
FIELD = re.compile(r"\{[^{}]*\}")
FILE_NAME = re.compile(
    r"\S+\.(png|jpe?g|webp|bmp|gif|tiff?|heic)"
    r"|[^\s_]*_\S*|[\w-]*\d{3,}[\w-]*"  # a word with an underscore or a number
    r"|(img|image|dscn?|dscf|pxl|photo|picture|scan|screenshot|untitled)[\W_]*(\d[\W\d_apmt]*)?",
    re.IGNORECASE,
)

HASH = re.compile(r"[0-9a-f-]{16,}", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Captioned:
    """What `write_captions` wrote."""

    files: tuple[Path, ...]
    """The metadata.jsonl of the folder, or of each of its train, dev and test."""
    captions: dict[str, str]
    """By picture, relative to the folder."""
    left_out: dict[str, str]
    """Pictures without a caption, and why."""


def like_a_file_name(caption: str) -> bool:
    """`IMG_0123`, `red_fox.png`, `00017`: what a camera or a tool wrote, not a person."""
    return bool(FILE_NAME.fullmatch(caption.strip()))


def write_captions(
    folder: Path, template: str | None = None, trigger: str | None = None, *, force: bool = False
) -> Captioned:
    """Write metadata.jsonl for all pictures below `folder`; the file is whole or not there.

    A caption comes from the picture's .txt, else from a folder above it such as `10_ohwx dog` (the number,
    of repeats, is left out), else from its file name. `template` may contain {caption} and {trigger}; without
    one the trigger is put in front of each caption that does not contain it.

    Raises UsageError for a template that cannot be filled, if there is nothing to write, or if there is a
    metadata file already and `force` is not given.
    """
    _check_template(template, trigger)
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder")
    homes = list(split_folders(folder).values())
    if not force:
        _check_free(homes)
    captions: dict[Path, str] = {}
    left_out: dict[Path, str] = {}
    for picture in (picture for home in homes for picture in _all_pictures(home)):
        try:
            captions[picture] = _filled(_caption(folder, picture), template, trigger)
        except Flaw as flaw:
            left_out[picture] = str(flaw)
    if not captions:
        reason = f"a caption for none of {len(left_out)}" if left_out else "no pictures in it"
        raise UsageError(f"{folder}: {reason}; nothing was written")
    return Captioned(
        files=tuple(_write(home, captions) for home in homes),
        captions={path.relative_to(folder).as_posix(): text for path, text in captions.items()},
        left_out={path.relative_to(folder).as_posix(): reason for path, reason in left_out.items()},
    )


def _check_free(homes: list[Path]) -> None:
    """Wherever a data set's reader would find it."""
    places = (home / part / name for home in homes for part in ("", "images", "train") for name in METADATA)
    if taken := next((file for file in places if file.exists()), None):
        raise UsageError(f"{taken}: is there already; --force writes captions anew")


def _write(home: Path, captions: dict[Path, str]) -> Path:
    file = home / METADATA[0]
    of_home = {path: text for path, text in captions.items() if path.is_relative_to(home)}
    concepts = {path: _concept(home, path) for path in of_home}
    several = len(set(concepts.values())) > 1
    rows = (
        {"file_name": path.relative_to(home).as_posix(), "text": text}
        | ({"concept": concept} if several and (concept := concepts[path]) else {})
        for path, text in of_home.items()
    )
    write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return file


# The template


def _check_template(template: str | None, trigger: str | None) -> None:
    fields = set(FIELD.findall(template or ""))
    if unknown := sorted(fields - {CAPTION, TRIGGER}):
        raise UsageError(f"--template: {unknown[0]}: known are {CAPTION} and {TRIGGER}")
    if TRIGGER in fields and not (trigger or "").strip():
        raise UsageError(f"--template: contains {TRIGGER}: give the word with --trigger")
    if template and trigger and TRIGGER not in fields:
        raise UsageError(f"--trigger: the template does not contain {TRIGGER}")


def _filled(caption: str | None, template: str | None, trigger: str | None) -> str:
    """Raises Flaw where the template needs a caption and there is none."""
    trigger = (trigger or "").strip()
    if template is None:
        contained = re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", caption or "", re.IGNORECASE)
        template = f"{TRIGGER}, {CAPTION}" if trigger and not contained else CAPTION
    if caption is None and CAPTION in template:
        raise Flaw("no .txt, no folder such as `10_ohwx dog`, and a file name that says nothing")
    values = {CAPTION: caption or "", TRIGGER: trigger}
    text = " ".join(FIELD.sub(lambda field: values[field[0]], template).split())
    if problem := text_problem(text, "caption"):
        raise Flaw(problem)
    return text


# Where a caption comes from


def _all_pictures(home: Path) -> Iterator[Path]:
    """Pictures in `home` and below, in order; hidden folders are left out."""
    folders = (path for path in home.rglob("*") if path.is_dir())
    for folder in [home, *sorted(folders)]:
        if not any(part.startswith(".") for part in folder.relative_to(home).parts):
            yield from pictures_in(folder)


def _caption(root: Path, picture: Path) -> str | None:
    """Raises Flaw for a file that cannot be read, or that lies elsewhere."""
    check_file(root, picture)
    if picture.suffix.lower() not in SUFFIXES:
        raise Flaw("not in PNG, JPEG, WebP or BMP format")
    if problem := text_problem(picture.name, "file name"):
        raise Flaw(problem)
    text = picture.with_suffix(".txt")
    written = " ".join(read_text(root, text).split()) if text.exists() else ""
    return written or _concept(root, picture) or _from_name(picture.stem)


def _concept(root: Path, picture: Path) -> str | None:
    """Of the nearest folder that is named like one of DreamBooth's."""
    names = [*(parent.name for parent in picture.relative_to(root).parents), root.absolute().name]
    return next(filter(None, map(concept_of, names)), None)


def _from_name(stem: str) -> str | None:
    """`003_red-fox (2)` -> red fox; None where a camera or a tool gave the name."""
    if HASH.fullmatch(stem):
        return None
    words = " ".join(re.sub(r"\(\d+\)|[\s_-]", " ", stem).split())
    words = re.sub(r"^(\d+ )+|( \d+)+$", "", words)
    return words if re.search(r"[^\W\d]{2}", words) and not like_a_file_name(words) else None
