"""How reports write numbers, configurations and durations."""

import html
import math

from bench.config import TrialConfig
from bench.scoring.metrics import METRICS, Metric, Score
from bench.space import modules_to_text

MISSING = "–"
MAX_DECIMALS = 4


def number(value: float | None, decimals: int = 3, *, signed: bool = False) -> str:
    """Fixed decimals with a true minus sign; a dash for what is missing or not finite."""
    if value is None or not math.isfinite(value):
        return MISSING
    text = f"{value:{'+' if signed else ''}.{decimals}f}"
    return text.replace("-", "−")


def plus_minus(value: float | None, stderr: float | None, *, signed: bool = False) -> str:
    """A value with as many decimals as two digits of its standard error: `0.523 ± 0.012`."""
    if stderr is None or not math.isfinite(stderr) or stderr <= 0:
        return number(value, signed=signed)
    decimals = decimals_of(stderr)
    text = number(value, decimals, signed=signed)
    return text if text == MISSING else f"{text} ± {number(stderr, decimals)}"


def decimals_of(stderr: float) -> int:
    """Decimals that show two digits of a standard error."""
    return min(MAX_DECIMALS, max(0, 1 - math.floor(math.log10(stderr))))


def significant(value: float | None, digits: int = 2) -> str:
    """A small number without an exponent, to so many digits: `0.0083`, `−12`."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    return number(value, max(0, digits - 1 - math.floor(math.log10(abs(value)))))


def span(low: float, high: float) -> str:
    """A 95 % interval with as many decimals as its standard error has: `+0.012 to +0.050`."""
    stderr = (high - low) / 4
    decimals = decimals_of(stderr) if math.isfinite(stderr) and stderr > 0 else 3
    return f"{number(low, decimals, signed=True)} to {number(high, decimals, signed=True)}"


def short(value: float) -> str:
    """A setting as people write it: `8`, `0.05`, `1.2e-04`."""
    return f"{value:.1e}" if 0 < abs(value) < 0.01 else f"{value:.3g}"


def clipped(text: str, length: int = 20) -> str:
    """Its beginning, where it is too long for a figure."""
    return text if len(text) < length else text[: length - 2] + "…"


def source_name(source: str) -> str:
    """A base or data set in a heading: of a path its last part, else the whole."""
    return source.rstrip("/").rsplit("/", 1)[-1] if source.startswith(("/", ".", "~")) else source


def p_value(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return MISSING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def duration(seconds: float | None) -> str:
    """`48 s`, `12 min`, `3 h 05 min`."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def trial_name(label: str) -> str:
    """`default` -> `the default config`, `0007` -> `trial 7`."""
    if label == "default":
        return "the default config"
    return f"trial {int(label)}" if label.isdecimal() else f"trial {label}"


def model_name(label: str) -> str:
    """As the head of a column or the label of a line: `Default config`, `Trial 7`."""
    return capital(trial_name(label).removeprefix("the "))


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def settings(config: TrialConfig) -> dict[str, str]:
    """Every field of a configuration as text."""
    texts = {}
    for name, value in config.model_dump().items():
        if name == "target_modules":
            texts[name] = modules_to_text(value)
        elif isinstance(value, float):
            texts[name] = short(value)
        else:
            texts[name] = "–" if value is None else str(value)
    return texts


def qualifier(score: Score) -> str:
    """The part of a score's title after the metric's label."""
    return f"({score.extractor}, {score.num_images} images)"


def axis_title(metric: Metric, score: Score | None) -> str:
    """A score's full name on two lines, for a figure, where lines do not break."""
    return f"{metric.label}<br>{html.escape(clipped(qualifier(score), 44))}" if score else metric.label


def direction(metric: Metric) -> str:
    return "higher is better" if metric.direction == "maximize" else "lower is better"


def metric_names(names: set[str]) -> list[str]:
    """Known metrics among `names`, in the order of METRICS."""
    return [name for name in METRICS if name in names]
