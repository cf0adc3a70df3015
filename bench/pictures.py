"""One picture from a user -> RGB pixels, or the Flaw that keeps it out."""

import hashlib
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
MIN_SIDE = 16
MAX_PIXELS = 100_000_000
MAX_BYTES = 100_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """Where pictures and captions stand in a table, or in metadata.jsonl; None: found by itself."""

    image: str | None = None
    caption: str | None = None


ANY_COLUMNS = Columns()


class Flaw(Exception):
    """What is wrong with one file or row; a line in the list of problems."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A caption and how to get its picture; neither has been checked."""

    name: str
    caption: str
    load: Callable[[], Image.Image]
    concept: str = ""
    """What it shows, in data of several concepts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """An entry that cannot be used."""

    name: str
    problem: str
    load: Callable[[], Image.Image] | None = field(default=None, repr=False, compare=False)
    """Its picture, if there is one to show."""


def read_file(path: Path) -> Image.Image:
    """The picture at `path` upright and in RGB, what is transparent on white; raises Flaw."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise Flaw(f"larger than {MAX_BYTES // 1_000_000} MB")
        return read_bytes(path.read_bytes())
    except OSError as error:
        raise Flaw(f"cannot be read: {error.strerror}") from None


def read_bytes(content: bytes) -> Image.Image:
    """As `read_file`, from the content of a file."""
    if not content:
        raise Flaw("an empty file")
    if len(content) > MAX_BYTES:
        raise Flaw(f"larger than {MAX_BYTES // 1_000_000} MB")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return _decode(content)


def digest(image: Image.Image) -> str:
    """sha256 over the size and the pixels."""
    size = f"{image.width}x{image.height}:".encode()
    return hashlib.sha256(size + image.tobytes()).hexdigest()


def _decode(content: bytes) -> Image.Image:
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            _check(image)
            image.load()  # verify() does not notice a truncated file
            upright = _rgb(ImageOps.exif_transpose(image))
            upright.info = {}  # where and when it was taken stays behind
            return upright
    except Flaw:
        raise
    except UnidentifiedImageError:
        raise Flaw("not a picture in PNG, JPEG, WebP or BMP format") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise Flaw("has too many pixels") from None
    except Exception as error:  # decoders raise every kind of error on damaged data
        raise Flaw(f"damaged: {' '.join(str(error).split())}") from None


def _check(image: Image.Image) -> None:
    size = f"{image.width}x{image.height} pixels"
    if min(image.size) < MIN_SIDE:
        raise Flaw(f"{size}; each side needs at least {MIN_SIDE}")
    if image.width * image.height > MAX_PIXELS:
        raise Flaw(f"{size}; at most {MAX_PIXELS // 1_000_000} million are read")
    # Phones write JPEG files with a depth map or a preview as a second picture (MPO): those are no animation.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise Flaw("animated")


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel; convert() would clip instead of scale
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
