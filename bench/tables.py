"""Parquet and arrow files, local or on the Hub, -> entries, through the `datasets` library."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import MissingError, UsageError, one_line
from bench.pictures import ANY_COLUMNS, Columns, Entry, Fault, Flaw, read_bytes, read_file

if TYPE_CHECKING:
    from PIL import Image

SPLITS = {"train": "train", "dev": "dev", "validation": "dev", "valid": "dev", "val": "dev", "test": "test"}
"""What a split may be called -> what it is called here."""

CONCEPT = "concept"
"""The column of what pictures show, in data of several concepts."""

Tables = dict[str, list[Entry | Fault]]
"""Entries by split: `train`, `dev` and `test`, or one of any name."""


def table_files(folder: Path) -> list[Path]:
    """Parquet files at most two folders down, or else arrow files; none in a folder of pictures."""
    for suffix in ("parquet", "arrow"):
        files = [file for depth in ("", "*/", "*/*/") for file in folder.glob(f"{depth}*.{suffix}")]
        if files := sorted(file for file in files if not _hidden(file.relative_to(folder))):
            return files
    return []


def read_tables(folder: Path, columns: Columns = ANY_COLUMNS) -> Tables:
    """A data set that was downloaded from the Hub, or saved with `save_to_disk`."""
    import datasets

    saved = (folder / "state.json").exists() or (folder / "dataset_dict.json").exists()
    try:
        with no_bars():
            data = datasets.load_from_disk(str(folder)) if saved else _load_files(folder)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UsageError(f"{folder}: cannot be read as a data set: {one_line(error)[:300]}") from None
    return _tables(data, str(folder), columns, cache=None)


def _load_files(folder: Path) -> Any:
    import datasets

    files = table_files(folder)
    by_split: dict[str, list[str]] = {}
    for file in files:
        by_split.setdefault(_split_of(file.relative_to(folder)), []).append(str(file))
    return datasets.load_dataset(files[0].suffix.removeprefix("."), data_files=by_split)


def read_hub(name: str, revision: str | None, columns: Columns = ANY_COLUMNS) -> Tables:
    """A data set on the Hub; with HF_HUB_OFFLINE=1, an earlier download of it."""
    import datasets
    from huggingface_hub.constants import HF_HUB_CACHE

    try:
        _ask_hub(name, revision)
        data = datasets.load_dataset(name, revision=revision)
    except OSError:
        at = f" --revision {revision}" if revision else ""
        raise MissingError(
            f"{name}: neither a folder here nor a data set that can be reached on the Hub; get it with "
            f"`hf download {name} --repo-type dataset{at} --local-dir DIR`, then give `--data DIR`"
        ) from None
    except (ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UsageError(f"{name}: cannot be read as a data set: {one_line(error)[:300]}") from None
    return _tables(data, name, columns, cache=Path(HF_HUB_CACHE))


def _ask_hub(name: str, revision: str | None) -> None:
    """Raises OSError if the Hub cannot give it; `datasets` alone would try for half a minute."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        HfApi().dataset_info(name, revision=revision, timeout=10)
    except OfflineModeIsEnabled:
        return  # `datasets` then looks into its cache, and does not wait
    except Exception as error:  # those of its HTTP library have no common base that is ours to name
        raise ConnectionError(str(error)) from None


# Rows


def _tables(data: Any, source: str, columns: Columns, cache: Path | None) -> Tables:
    splits = dict(data) if hasattr(data, "keys") else {"train": data}
    named = {SPLITS[name]: rows for name, rows in splits.items() if name in SPLITS}
    if set(named) != {"train", "dev", "test"}:
        name = "train" if "train" in splits else next(iter(splits))
        return {name: list(_entries(splits[name], source, columns, "row", cache))}
    return {
        split: list(_entries(rows, source, columns, f"{split} row", cache)) for split, rows in named.items()
    }


def _entries(
    rows: Any, source: str, columns: Columns, label: str, cache: Path | None
) -> Iterator[Entry | Fault]:
    import datasets

    image, text = _columns(rows.features, source, columns)
    try:
        wanted = [image, text, *([CONCEPT] if _is_text(rows.features.get(CONCEPT)) else [])]
        rows = rows.select_columns(wanted).cast_column(image, datasets.Image(decode=False))
    except (TypeError, ValueError, RuntimeError):  # as pyarrow finds fit
        raise UsageError(f"{source}: the column {image} does not hold pictures") from None
    concepts = rows[CONCEPT] if CONCEPT in wanted else [None] * len(rows)
    for index, (caption, concept) in enumerate(zip(rows[text], concepts, strict=True)):
        load = partial(_picture, rows, image, index, cache)
        concept = " ".join((concept or "").split())
        yield Entry(name=f"{label} {index}", caption=caption or "", load=load, concept=concept)


def _columns(features: dict[str, Any], source: str, wanted: Columns) -> tuple[str, str]:
    """The columns of pictures and captions."""
    import datasets

    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    texts = [name for name, kind in features.items() if _is_text(kind) and name != CONCEPT]
    for key, name in (("image_column", wanted.image), ("caption_column", wanted.caption)):
        if name is not None and name not in features:
            raise UsageError(f"{source}: {key} {name!r}: columns found: {', '.join(features)}")
    image = wanted.image or next(iter(images), "image" if "image" in features else None)
    text = wanted.caption or next((name for name in ("text", "caption", *texts) if name in texts), None)
    if image is None or text is None:
        missing = "pictures (an image column)" if image is None else "captions (a text column)"
        raise UsageError(f"{source}: no {missing} in it; columns found: {', '.join(features)}")
    return image, text


def _is_text(kind: Any) -> bool:
    """Of a column."""
    return getattr(kind, "dtype", "") in ("string", "large_string")


def _picture(rows: Any, column: str, index: int, cache: Path | None) -> Image.Image:
    value = rows[index][column] or {}
    if value.get("bytes") is not None:
        return read_bytes(value["bytes"])
    path = Path(value.get("path") or "")
    # A row may name any file of this machine: only what came from the Hub with it is opened.
    if cache is None or not path.resolve().is_relative_to(cache.resolve()):
        raise Flaw("no picture is stored in it")
    return read_file(path)


# Files


def _split_of(file: Path) -> str:
    """`data/train-00000-of-00001.parquet` -> train."""
    words = re.findall(r"[a-z]+", file.as_posix().lower())
    return next((SPLITS[word] for word in words if word in SPLITS), "train")


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


@contextmanager
def no_bars() -> Iterator[None]:
    """`datasets` shows no progress."""
    import datasets

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
