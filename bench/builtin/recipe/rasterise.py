"""Vector and WebP drawings as 64x64 RGB pictures on white, with a margin of 2 pixels."""

import io
from pathlib import Path

import numpy as np
import resvg_py
from numpy.typing import NDArray
from PIL import Image

SIZE = 64
MARGIN = 2
OVERSAMPLING = 4

Pixels = NDArray[np.uint8]


def svg(body: str, width: float, height: float) -> str:
    """An SVG document around the drawing commands of one icon, `width` by `height` units."""
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        f' width="{width}" height="{height}" viewBox="0 0 {width} {height}">{body}</svg>'
    )


def draw_svg(document: str) -> Pixels:
    """Draw at 4 times the size and average each 4x4 block: uint8 [64, 64, 3]."""
    inner = (SIZE - 2 * MARGIN) * OVERSAMPLING
    png = resvg_py.svg_to_bytes(
        svg_string=document,
        width=inner,
        height=inner,  # the renderer keeps the proportions
        skip_system_fonts=True,  # the same pictures on every machine
    )
    return _framed(Image.open(io.BytesIO(bytes(png))))


def draw_file(path: Path) -> Pixels:
    """A raster file, averaged down: uint8 [64, 64, 3]."""
    with Image.open(path) as drawing:
        return _framed(drawing)


def is_blank(picture: Pixels) -> bool:
    """Whether every pixel has the same colour."""
    return bool((picture == picture[0, 0]).all())


def _framed(drawing: Image.Image) -> Pixels:
    """The drawing on white, its longer side averaged down to 60 pixels, in the middle of 64x64."""
    opaque = Image.new("RGBA", drawing.size, "white")
    opaque.alpha_composite(drawing.convert("RGBA"))
    scale = (SIZE - 2 * MARGIN) / max(drawing.size)
    width, height = (max(1, round(side * scale)) for side in drawing.size)
    small = opaque.convert("RGB").resize((width, height), Image.Resampling.BOX)
    picture = Image.new("RGB", (SIZE, SIZE), "white")
    picture.paste(small, ((SIZE - width) // 2, (SIZE - height) // 2))
    return np.asarray(picture)
