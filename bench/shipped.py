"""The spaces in the package `search_spaces`, by their names; quick, so that a shell can complete them."""

from importlib.resources import files


def shipped_spaces() -> list[str]:
    """Sorted."""
    names = (entry.name for entry in files("search_spaces").iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))
