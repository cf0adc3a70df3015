"""A folder of pictures -> its entries: captions from metadata.jsonl, metadata.csv or .txt files.

Concepts are named by a key `concept` there, or by subfolders.
"""

import csv
import io
import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PureWindowsPath

from bench.errors import UsageError
from bench.pictures import ANY_COLUMNS, MAX_BYTES, Columns, Entry, Fault, Flaw, read_file
from bench.tables import SPLITS

METADATA = ("metadata.jsonl", "metadata.csv")
IMAGE_COLUMNS, CAPTION_COLUMN = ("image", "file_name"), "text"
"""What a folder's columns are called where nothing in it names them."""
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
CONCEPT = re.compile(r"\d+_(?P<concept>.*\S.*)")
"""A folder of DreamBooth's trainers: `10_ohwx dog`, the repeats and the concept."""
UNSUPPORTED = {".gif", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jxl", ".svg", ".psd"}


def read_folder(root: Path, folder: Path, columns: Columns = ANY_COLUMNS) -> list[Entry | Fault]:
    """Entries of `folder`, sorted by name; names are relative to `root`, and no file lies outside it.

    Raises UsageError for a column that it cannot have.
    """
    if columns.image not in (None, *IMAGE_COLUMNS):
        raise UsageError(f"{root}: image_column {columns.image!r}: of a folder of pictures it is `image`")
    homes = (folder, folder / "images", folder / "train")
    for file in (home / name for home in homes for name in METADATA):
        if file.exists():
            return sorted(_metadata_entries(root, file, columns.caption), key=lambda entry: entry.name)
    if columns.caption not in (None, CAPTION_COLUMN):
        raise UsageError(
            f"{root}: caption_column {columns.caption!r}: no metadata.jsonl in it; captions of .txt files "
            f"are `{CAPTION_COLUMN}`"
        )
    if pictures := next(filter(None, map(pictures_in, homes)), []):
        return [_paired_entry(root, path) for path in pictures]
    folders = next(filter(None, map(concept_folders, homes)), [])
    return [
        _paired_entry(root, path, concept_of(folder.name) or folder.name, concept_of(folder.name))
        for folder in folders
        for path in pictures_in(folder)
    ]


def concept_folders(folder: Path) -> list[Path]:
    """Folders in it that have pictures, sorted; those that mean something else are left out."""
    folders = sorted(folder.iterdir()) if folder.is_dir() else ()
    taken = {*SPLITS, "images"}
    return [path for path in folders if path.name not in taken and path.name[0] != "." and pictures_in(path)]


def concept_of(name: str) -> str | None:
    """`10_ohwx_dog` -> ohwx dog; None for a folder that is not named as DreamBooth's trainers name them."""
    match = CONCEPT.fullmatch(name)
    return " ".join(match["concept"].replace("_", " ").split()) if match else None


def pictures_in(folder: Path) -> list[Path]:
    """Files that are named like pictures, sorted; also those of formats that are not read."""
    files = folder.iterdir() if folder.is_dir() else ()
    return sorted(
        path
        for path in files
        if path.suffix.lower() in SUFFIXES | UNSUPPORTED and not path.name.startswith(".")
    )


# Pairs: cat.png + cat.txt


def _paired_entry(root: Path, path: Path, concept: str = "", caption: str | None = None) -> Entry | Fault:
    """`caption` is for a picture without one of its own."""
    name = path.relative_to(root).as_posix()
    load = None
    try:
        check_file(root, path)
        load = partial(read_file, path)
        text = path.with_suffix(".txt")
        if text.exists():
            caption = read_text(root, text)
        if caption is None:
            raise Flaw(f"no caption: there is no {text.name}")
        return Entry(name=name, caption=caption, load=load, concept=concept)
    except Flaw as flaw:
        return Fault(name=name, problem=str(flaw), load=load)


# metadata.jsonl, metadata.csv

Row = dict[str, object]


def _metadata_entries(root: Path, file: Path, column: str | None) -> Iterator[Entry | Fault]:
    shown = file.relative_to(root).as_posix()
    try:
        rows = _rows(file.suffix, read_text(root, file))
    except Flaw as flaw:
        yield Fault(name=shown, problem=str(flaw))
        return
    listed: dict[Path, int] = {}
    for line, row in rows:
        try:
            yield _listed_entry(root, file.parent, _captioned(_parsed(row), column), line, listed)
        except Flaw as flaw:
            yield Fault(name=f"{shown} line {line}", problem=str(flaw))
    folders = {file.parent, file.parent / "images", *(path.parent for path in listed)}
    for path in (path for folder in sorted(folders) for path in pictures_in(folder)):
        if path not in listed:
            yield Fault(name=path.relative_to(root).as_posix(), problem=f"no entry in {file.name}")


def _rows(suffix: str, text: str) -> list[tuple[int, str | Row]]:
    """Line numbers with what stands there."""
    if suffix == ".jsonl":  # not splitlines(): a caption may hold U+2028 and the like
        lines = enumerate(text.split("\n"), start=1)
        return [(number, line) for number, line in lines if line.strip()]
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        return [(reader.line_num, dict(row)) for row in reader]
    except csv.Error as error:
        raise Flaw(f"line {reader.line_num + 1}: not valid CSV: {error}") from None


def _parsed(row: str | Row) -> Row:
    try:
        parsed = json.loads(row) if isinstance(row, str) else row
    except (ValueError, RecursionError) as error:
        raise Flaw(f"not valid JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise Flaw(f"expected an object, got {type(parsed).__name__}")
    return parsed


def _captioned(row: Row, column: str | None) -> Row:
    """The row with its caption where captions are looked for."""
    if column is None:
        return {**row, CAPTION_COLUMN: row.get(CAPTION_COLUMN, row.get("caption"))}
    return {**row, CAPTION_COLUMN: row.get(column)}


def _listed_entry(root: Path, home: Path, row: Row, line: int, listed: dict[Path, int]) -> Entry:
    name = row.get("file_name")
    if not isinstance(name, str) or not name.strip():
        raise Flaw(f"no file_name (keys found: {', '.join(map(str, row)) or 'none'})")
    if _leads_out(name):
        raise Flaw(f"file_name must be a path inside the folder, got {name!r}")
    path = next(filter(_exists, (home / name, home / "images" / name)), None)
    if path is None:
        raise Flaw(f"{name}: no such file")
    if (first := listed.setdefault(path, line)) != line:
        raise Flaw(f"{name} is listed twice, first on line {first}")
    check_file(root, path)
    caption = row[CAPTION_COLUMN]
    return Entry(
        name=path.relative_to(root).as_posix(),
        caption=caption if isinstance(caption, str) else "",
        load=partial(read_file, path),
        concept=_concept(row),
    )


def _concept(row: Row) -> str:
    concept = row.get("concept")
    if not isinstance(concept, str | None):
        raise Flaw(f"concept must be text, got {concept!r}")
    return " ".join((concept or "").split())


def _leads_out(name: str) -> bool:
    windows = PureWindowsPath(name)
    absolute = name.startswith("/") or bool(windows.anchor)
    return absolute or ".." in windows.parts or any(part in name for part in ("://", "\\", "\0"))


# Files


def _exists(path: Path) -> bool:
    try:
        return path.is_symlink() or path.exists()
    except OSError:  # a name that is too long
        return False


def check_file(root: Path, path: Path) -> None:
    """Raises Flaw if it is no file, or one that lies outside `root`."""
    name = path.name
    try:
        inside = path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):
        raise Flaw(f"{name} is a link that leads nowhere") from None
    if not inside:
        raise Flaw(f"{name} leads out of the folder")
    if not path.is_file():
        raise Flaw(f"{name} is not a file")


def read_text(root: Path, path: Path) -> str:
    """The text of a file inside `root`; raises Flaw."""
    check_file(root, path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise Flaw(f"{path.name} is larger than {MAX_BYTES // 1_000_000} MB")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise Flaw(f"{path.name} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Flaw(f"{path.name} is not UTF-8 text") from None
