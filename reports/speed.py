"""The table that `bench speed` prints."""

from rich.console import Group
from rich.table import Table
from rich.text import Text

from bench.speed import Mode, Rate, Speed

GIGABYTE, TERA = 1e9, 1e12


def table(speed: Speed) -> Group:
    """Rates alone and packed, the limit they are held against, and what a search would take."""
    rows = Table("", "alone", f"{speed.packed.slots} side by side", title=f"{speed.base} on {speed.device}")
    for name, cells in _rows(speed).items():
        rows.add_row(name, *cells)
    return Group(rows, *(Text(line) for line in _lines(speed)))


def _rows(speed: Speed) -> dict[str, list[str]]:
    modes = (speed.alone, speed.packed)
    return {
        "samples trained a second": [_rate(mode.samples) for mode in modes],
        "  of the limit": [f"{mode.samples_share:.0%}" for mode in modes],
        "images drawn a second": [_rate(mode.images) for mode in modes],
        "  of the limit ": [f"{mode.images_share:.0%}" for mode in modes],
        "memory": [_memory(mode) for mode in modes],
    }


def _lines(speed: Speed) -> list[str]:
    limit, study = speed.product_flops, speed.study
    return [
        f"Trained: {speed.config}; {speed.resolution} pixels, {speed.dtype}; "
        f"{speed.sample_flops / TERA:.3g} TFLOP a sample.",
        f"Drawn: {speed.steps} steps with guidance; {speed.image_flops / TERA:.3g} TFLOP an image.",
        f"Limit: {limit.median / TERA:.3g} TFLOP/s (± {limit.spread / 2:.0%}) in a large matrix product; "
        "convolutions may pass it.",
        f"Side by side: {speed.packed.slots}: {speed.slots_reason}.",
        f"A search of {study.num_images} images: {_duration(study.trial_seconds)} a trial, "
        f"{_duration(study.study_seconds)} in all, training and drawing alone.",
    ]


def _rate(rate: Rate) -> str:
    return f"{rate.median:.3g} ± {rate.spread / 2:.0%}"


def _memory(mode: Mode) -> str:
    return f"{mode.memory / GIGABYTE:.1f} GB"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} minutes" if seconds < 3600 else f"{seconds / 3600:.1f} hours"
