"""Images in a terminal: kitty's graphics protocol, iTerm2's inline images, else none.

A terminal is known by its environment, and asked nothing. Both protocols are escape sequences around PNG in
base64: https://sw.kovidgoyal.net/kitty/graphics-protocol/ and https://iterm2.com/documentation-images.html.
"""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from PIL import Image

from bench.pictures import FORMATS

Protocol = Literal["kitty", "iterm2"]
CHUNK = 4096
"""Most characters of base64 in one of kitty's sequences."""
HEIGHT = 160
"""Pixels of a row of images."""
GAP = 8
"""Pixels between two."""
PROGRAMS: dict[str, Protocol] = {"iTerm.app": "iterm2", "WezTerm": "iterm2", "ghostty": "kitty"}
TERMINALS: dict[str, Protocol] = {"xterm-kitty": "kitty", "xterm-ghostty": "kitty"}
"""By `TERM`."""


def protocol_of(environment: Mapping[str, str]) -> Protocol | None:
    """How the terminal shows images; None if it does not, or something lies between that may not let them
    through (tmux, screen)."""
    term = environment.get("TERM", "")
    if "TMUX" in environment or term.startswith(("screen", "tmux")):
        return None
    if "KITTY_WINDOW_ID" in environment:
        return "kitty"
    return PROGRAMS.get(environment.get("TERM_PROGRAM", "")) or TERMINALS.get(term)


def strip(files: Sequence[Path | None]) -> Image.Image | None:
    """The images side by side, each HEIGHT high; room is left for one that is not there. None without any."""
    pictures = [_read(file) if file else None for file in files]
    if not any(pictures):
        return None
    tiles = [picture or Image.new("RGB", (HEIGHT, HEIGHT), "gray") for picture in pictures]
    sheet = Image.new("RGBA", (sum(tile.width + GAP for tile in tiles) - GAP, HEIGHT))
    left = 0
    for tile in tiles:
        sheet.paste(tile, (left, 0))
        left += tile.width + GAP
    return sheet


def escaped(image: Image.Image, protocol: Protocol) -> str:
    """The escape sequences that draw an image where the cursor is."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    text = base64.b64encode(buffer.getvalue()).decode("ascii")
    if protocol == "iterm2":
        size = f"size={len(buffer.getvalue())};width={image.width}px;height={image.height}px"
        return f"\x1b]1337;File=inline=1;{size}:{text}\x07"
    return "".join(_kitty(text))


def _kitty(text: str) -> Iterator[str]:
    """f=100: PNG; a=T: show it now; m=1: more follows."""
    for start in range(0, len(text), CHUNK):
        keys = ("a=T,f=100," if start == 0 else "") + f"m={int(start + CHUNK < len(text))}"
        yield f"\x1b_G{keys};{text[start : start + CHUNK]}\x1b\\"


def _read(file: Path) -> Image.Image | None:
    """HEIGHT high, small ones without smoothing; None for what is no readable image."""
    try:
        with Image.open(file, formats=FORMATS) as opened:
            picture = opened.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    smooth = Image.Resampling.LANCZOS if picture.height > HEIGHT else Image.Resampling.NEAREST
    return picture.resize((max(1, picture.width * HEIGHT // picture.height), HEIGHT), smooth)
