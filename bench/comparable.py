"""Comparable: what two runs must have in common before their scores may be compared."""

from collections.abc import Iterator

from bench.errors import MismatchError
from bench.run import Run

PACKAGES = ("torch", "diffusers", "transformers", "open_clip_torch", "timm", "torch-fidelity")
"""They draw and score: their major and minor versions must agree. Device and machine need not."""
SHORT = 40


def check_comparable(run_a: Run, run_b: Run) -> None:
    """Raises MismatchError naming each thing that must be the same and is not, with both values."""
    unlike = [f"{name} ({_short(a)} and {_short(b)})" for name, a, b in _unlike(run_a, run_b)]
    if unlike:
        names = f"{_short(run_a.metadata.name)} and {_short(run_b.metadata.name)}"
        raise MismatchError(f"{names} cannot be compared, they differ in {', '.join(unlike)}")


def _unlike(run_a: Run, run_b: Run) -> Iterator[tuple[str, object, object]]:
    """What differs, with both values as they are shown."""
    a, b = run_a.metadata, run_b.metadata
    for name in ("base", "data", "scorer", "judge"):
        key = f"{name}_fingerprint"
        if getattr(a, key) != getattr(b, key):
            first, second = (f"{getattr(m, name)} {str(getattr(m, key))[:8]}" for m in (a, b))
            yield name, first, second
    yield from _unlike_prompts(run_a, run_b)
    settings, others = _settings(run_a), _settings(run_b)
    for name in settings:
        if settings[name] != others[name]:
            yield name, settings[name], others[name]


def _unlike_prompts(run_a: Run, run_b: Run) -> Iterator[tuple[str, object, object]]:
    """The first text, seeds and kind that differ, of test prompts and of probes."""
    for split in ("test", "probe"):
        a, b = (run.metadata.prompts.get(split, []) for run in (run_a, run_b))
        if len(a) != len(b):
            yield f"number of {split} prompts", len(a), len(b)
            continue
        for field in ("text", "seeds", "kind"):
            for number, (one, other) in enumerate(zip(a, b, strict=True)):
                if getattr(one, field) != getattr(other, field):
                    yield f"{field} of {split} prompt {number}", getattr(one, field), getattr(other, field)
                    break


def _settings(run: Run) -> dict[str, object]:
    space = run.space
    settings: dict[str, object] = {
        "sampler.steps": space.sampler.steps,
        "sampler.guidance": space.sampler.guidance,
        "resolution": space.resolution,
        "dtype": space.dtype,
    }
    versions = run.metadata.versions
    return settings | {name: ".".join(versions.get(name, "?").split(".")[:2]) for name in PACKAGES}


def _short(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= SHORT else text[: SHORT - 1] + "…"
