"""Which concepts are kept for what: validation, and train / dev / test of the three LoRA targets."""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True, kw_only=True, slots=True)
class Splits:
    """Codepoints. `val` is withheld from the base model in every style; `dev` and `test` are the prompts
    of all targets; `train` gives each target's training pictures. Lists keep the order of the files."""

    val: frozenset[str]
    dev: tuple[str, ...]
    test: tuple[str, ...]
    train: dict[str, tuple[str, ...]]

    def of_target(self, style: str) -> dict[str, tuple[str, ...]]:
        """Split -> codepoints of one target."""
        return {"train": self.train[style], "dev": self.dev, "test": self.test}


@cache
def read_splits() -> Splits:
    """The splits, drawn once and then fixed by hand, so that they never move when the recipe changes."""
    table = json.loads(files(__package__).joinpath("splits.json").read_text("utf-8"))
    return Splits(
        val=frozenset(table["val"]),
        dev=tuple(table["dev"]),
        test=tuple(table["test"]),
        train={style: tuple(codes) for style, codes in table["train"].items()},
    )
