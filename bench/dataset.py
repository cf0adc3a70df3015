"""A folder, a Hub data set or a bundled one -> checked images with captions: train, dev and test."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path

from PIL import Image

from bench.errors import MissingError, UsageError
from bench.folder import read_folder
from bench.pictures import ANY_COLUMNS, Columns, Entry, Fault, Flaw, digest
from bench.tables import SPLITS, Tables, read_hub, read_tables, table_files
from bench.variants import mentions

BUILTIN = ("emoji/streamline", "emoji/pixel16", "emoji/fluent-3d")
MIN_IMAGES = 6
MIN_HELD_OUT = 2
MIN_OF_STRATUM = 3
MAX_CAPTION = 2_000
MAX_LISTED = 50
HUB_ID = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?", re.ASCII)


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One image with its caption; the pixels are read when they are asked for."""

    name: str
    """File relative to the data set's folder, or `row 17`."""
    caption: str
    digest: str
    """sha256 over the size and the RGB pixels."""
    size: tuple[int, int]
    """Width and height in pixels."""
    load: Callable[[], Image.Image] = field(repr=False, compare=False)
    concept: str = ""
    """What it shows, in data of several concepts."""

    def image(self) -> Image.Image:
        """The image upright, in RGB; raises UsageError if it is no longer what was checked."""
        try:
            image = self.load()
        except Flaw as flaw:
            raise UsageError(f"{self.name}: {flaw}") from None
        if digest(image) != self.digest:
            raise UsageError(f"{self.name}: has changed since it was checked")
        return image


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    """What a source holds, usable or not."""

    source: str
    """As the user gave it."""
    splits: dict[str, list[Example]]
    """`train`, `dev` and `test`, or one of any name; a caption may still be one of the faults."""
    faults: list[Fault]
    num_entries: int
    """Pictures that there are, usable or not."""

    def check(self) -> None:
        """Raises one UsageError with everything that is wrong."""
        if self.faults:
            raise UsageError(_listing(self.source, self.faults, self.num_entries))


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """Images to train on, and two held-out sets of them."""

    name: str
    """As the user gave it."""
    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    test: tuple[Example, ...]

    @property
    def fingerprint(self) -> str:
        """sha256 over captions, pixels and concepts, split by split and in order; file names do not count."""
        content = [content_of(split) for split in (self.train, self.dev, self.test)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def content_of(examples: Iterable[Example]) -> list[tuple[str, ...]]:
    """All of images that decides what is learned."""
    return [(each.caption, each.digest, *([each.concept] if each.concept else [])) for each in examples]


def load_dataset(source: str, trigger: str | None = None) -> Dataset:
    """Read and check everything; `trigger` is put in front of each caption that does not contain it."""
    return split(read_contents(source), trigger)


def read_contents(source: str, columns: Columns = ANY_COLUMNS) -> Contents:
    """Read everything; raises UsageError or MissingError only where there is nothing to read."""
    tables = _read(source, columns)
    num_entries = sum(len(entries) for entries in tables.values())
    if num_entries == 0:
        raise UsageError(
            f"{source}: no pictures in it; expected metadata.jsonl with file_name and text, "
            "or PNG, JPEG, WebP or BMP files each with a .txt of the same name"
        )
    faults: list[Fault] = []
    seen: dict[str, str] = {}
    splits = {name: list(_examples(entries, seen, faults)) for name, entries in tables.items()}
    return Contents(source=source, splits=splits, faults=faults, num_entries=num_entries)


def split(contents: Contents, trigger: str | None = None) -> Dataset:
    """The data set that `load_dataset` gives; raises UsageError if anything is wrong."""
    contents.check()
    source, splits = contents.source, contents.splits
    if set(splits) != {"train", "dev", "test"}:
        splits = _split(source, [example for examples in splits.values() for example in examples])
    for name, examples in splits.items():
        if len(examples) < MIN_HELD_OUT:
            raise UsageError(f"{source}: {name} has {_count(len(examples), 'image')}, needs {MIN_HELD_OUT}")
    return Dataset(name=source, **{name: _triggered(examples, trigger) for name, examples in splits.items()})


def load_training_images(
    source: str, trigger: str | None = None, columns: Columns = ANY_COLUMNS, *, hold_out: bool = False
) -> tuple[Example, ...]:
    """What one training without a search sees: all images, or the `train` split of data that have splits.

    With `hold_out`, what a search of the same data trains on. Raises UsageError with everything wrong.
    """
    contents = read_contents(source, columns)
    if hold_out:
        return split(contents, trigger).train
    contents.check()
    examples = contents.splits if len(contents.splits) == 1 else {"train": contents.splits["train"]}
    return _triggered(next(iter(examples.values())), trigger)


# Where it is


def _read(source: str, columns: Columns) -> Tables:
    if source in BUILTIN:
        folder = Path(str(files("bench"))) / "builtin" / source
        if not folder.is_dir():
            raise MissingError(f"{source}: not in this installation; install bench again")
        return _read_folder(folder, columns)
    if source.startswith(("./", "../", "/", "~")) or (source and Path(source).exists()):
        return _read_path(source, columns)
    if hub := HUB_ID.fullmatch(source):
        return read_hub(hub["name"], hub["revision"], columns)
    raise UsageError(
        f"{source}: no such folder; give a folder, owner/name of a data set on the Hub, "
        f"or one of {', '.join(BUILTIN)}"
    )


def _read_path(source: str, columns: Columns) -> Tables:
    try:
        path = Path(source).expanduser().absolute()  # a worker may run in another folder
        if path.is_dir():
            return read_tables(path, columns) if table_files(path) else _read_folder(path, columns)
        problem = "is a file; give the folder it is in" if path.exists() else "no such folder"
    except (OSError, RuntimeError) as error:
        problem = f"cannot be read: {error}"
    raise UsageError(f"{source}: {problem}")


def _read_folder(root: Path, columns: Columns) -> Tables:
    return {name: read_folder(root, folder, columns) for name, folder in split_folders(root).items()}


def split_folders(root: Path) -> dict[str, Path]:
    """Folders of `train`, `dev` and `test` if there are all three, else `all` in the folder itself."""
    folders = {SPLITS[path.name]: path for path in root.iterdir() if path.name in SPLITS and path.is_dir()}
    if set(folders) == {"train", "dev", "test"}:
        return {name: folders[name] for name in ("train", "dev", "test")}
    return {"all": root}


# Whether it is usable


def _examples(
    entries: Iterable[Entry | Fault], seen: dict[str, str], faults: list[Fault]
) -> Iterable[Example]:
    """The usable ones; `seen` (digest -> name) and `faults` are added to."""
    for entry in entries:
        if isinstance(entry, Fault):
            faults.append(entry)
            continue
        caption = " ".join(entry.caption.split())
        if problem := _caption_problem(caption):
            faults.append(Fault(name=entry.name, problem=problem))
        try:
            image = entry.load()
            pixels = digest(image)
            if (first := seen.setdefault(pixels, entry.name)) != entry.name:
                raise Flaw(f"the same pixels as {first}")
            yield Example(
                name=entry.name,
                caption=caption,
                digest=pixels,
                size=image.size,
                load=entry.load,
                concept=entry.concept,
            )
        except Flaw as flaw:
            faults.append(Fault(name=entry.name, problem=str(flaw), load=entry.load))


def _caption_problem(caption: str) -> str | None:
    return text_problem(caption, "caption") if caption else "no caption"


def text_problem(text: str, noun: str) -> str | None:
    """Why a caption or prompt cannot be used."""
    if len(text) > MAX_CAPTION:
        return f"{noun} of {len(text)} characters; at most {MAX_CAPTION} are read"
    if any("\ud800" <= character <= "\udfff" for character in text):
        return f"{noun} is not valid Unicode"
    return None


def _listing(source: str, faults: list[Fault], num_entries: int) -> str:
    lines = [f"{source}: {_count(len(faults), 'problem')} in {_count(num_entries, 'image')}"]
    lines += [printable(f"{fault.name}: {fault.problem}") for fault in faults[:MAX_LISTED]]
    if len(faults) > MAX_LISTED:
        lines.append(f"... and {len(faults) - MAX_LISTED} more")
    return "\n".join(lines)


def printable(text: str) -> str:
    """A file name may hold what would move a terminal's cursor."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


# What is held out


def _split(source: str, examples: list[Example]) -> dict[str, list[Example]]:
    """Held-out images, of every concept, are chosen by their pixels, so no file name and no order decides."""
    if len(examples) < MIN_IMAGES:
        raise UsageError(
            f"{source}: {_count(len(examples), 'image')}; at least {MIN_IMAGES} are needed, "
            "because some are held out to measure what was learned"
        )
    test: list[Example] = []
    dev: list[Example] = []
    strata = _strata(examples)
    for stratum in strata:
        size = max(MIN_HELD_OUT if len(strata) == 1 else 1, round(0.15 * len(stratum)))
        by_pixels = sorted(stratum, key=lambda example: example.digest)
        test += by_pixels[:size]
        dev += by_pixels[size : 2 * size]
    held_out = {example.digest for example in test + dev}
    return {
        "train": [example for example in examples if example.digest not in held_out],
        "dev": dev,
        "test": test,
    }


def _strata(examples: list[Example]) -> list[list[Example]]:
    """Each concept of enough pictures, and the others together; all as one if that leaves fewer than two."""
    concepts = list(by_concept(examples).values())
    rest = [each for few in concepts if len(few) < MIN_OF_STRATUM for each in few]
    strata = [each for each in (*concepts, rest) if len(each) >= MIN_OF_STRATUM]
    return strata if len(strata) > 1 else [examples]


def by_concept(examples: Iterable[Example]) -> dict[str, list[Example]]:
    """In the order in which concepts first come."""
    concepts: dict[str, list[Example]] = {}
    for example in examples:
        concepts.setdefault(example.concept, []).append(example)
    return concepts


def balanced(examples: Sequence[Example]) -> list[int]:
    """How often an epoch shows each image, so that it shows each concept as often as the largest one."""
    concepts = by_concept(examples)
    most = max(map(len, concepts.values()))
    shares = {concept: divmod(most, len(members)) for concept, members in concepts.items()}
    seen = dict.fromkeys(concepts, 0)
    repeats = []
    for example in examples:
        times, rest = shares[example.concept]
        repeats.append(times + (seen[example.concept] < rest))
        seen[example.concept] += 1
    return repeats


def _triggered(examples: list[Example], trigger: str | None) -> tuple[Example, ...]:
    trigger = (trigger or "").strip()
    if not trigger:
        return tuple(examples)
    return tuple(
        example
        if mentions(example.caption, trigger)
        else replace(example, caption=f"{trigger}, {example.caption}")
        for example in examples
    )
