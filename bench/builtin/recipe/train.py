"""Train the bundled base model `emoji-xl`, its scorer and its judge from the emoji data set, on one GPU.

    python -m bench.builtin.recipe.train --data emoji64.npz --out FOLDER

A stage whose folder exists is not done again.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from bench.builtin.recipe import evaluate as evaluation
from bench.builtin.recipe.examples import (
    PIXEL_STYLE,
    Examples,
    base_rows,
    judge_rows,
    read_examples,
    scorer_rows,
    styled,
    withheld_concepts,
)
from bench.builtin.recipe.judge import train_judge
from bench.builtin.recipe.loop import Machine, Outcome, Schedule
from bench.builtin.recipe.pipeline import assemble
from bench.builtin.recipe.scorer import train_scorer
from bench.builtin.recipe.text_encoders import TextEncoders, train_text_encoders
from bench.builtin.recipe.tokenizer import train_tokenizer
from bench.builtin.recipe.unet import train_unet
from bench.builtin.recipe.vae import load_vae, train_vae

log = logging.getLogger("bench.builtin.recipe.train")


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """One run of the recipe."""

    examples: Examples
    withheld: frozenset[str]
    out: Path
    machine: Machine
    pace: float
    smoke: bool

    def schedule(self, seconds: float, learning_rate: float, weight_decay: float = 0.01) -> Schedule:
        return Schedule(
            seconds=seconds * self.pace,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            max_steps=2 if self.smoke else None,
        )

    def batch(self, size: int) -> int:
        return 8 if self.smoke else size


def make_tokenizer(work: Work, folder: Path) -> Outcome | None:
    rows = work.examples.where(work.examples.split != "val")
    texts = [styled(str(c), str(s)) for c, s in zip(rows.caption, rows.style, strict=True)]
    train_tokenizer([*texts, *[PIXEL_STYLE] * 100], folder)
    return None


def make_scorer(work: Work, folder: Path) -> Outcome:
    rows = scorer_rows(work.examples, work.withheld)
    log.info("scorer: %d pictures", len(rows))
    schedule = work.schedule(150, 1e-3, weight_decay=0.2)
    return train_scorer(rows, work.out / "tokenizer", folder, schedule, work.machine, work.batch(1024))


def make_judge(work: Work, folder: Path) -> Outcome:
    rows = judge_rows(work.examples)
    log.info("judge: %d pictures", len(rows))
    schedule = replace(work.schedule(140, 1e-3, weight_decay=0.05), warm_up_steps=300, average_decay=0.98)
    return train_judge(rows, folder, schedule, work.machine, work.batch(512))


def make_text_encoders(work: Work, folder: Path) -> Outcome:
    rows = base_rows(work.examples)
    log.info("text encoders: %d pictures", len(rows))
    schedule = work.schedule(60, 1e-3, weight_decay=0.1)
    return train_text_encoders(rows, work.out / "tokenizer", folder, schedule, work.machine, work.batch(1024))


def make_vae(work: Work, folder: Path) -> Outcome:
    schedule = work.schedule(110, 1e-3)
    features = work.out / "text-encoders"
    return train_vae(base_rows(work.examples), features, folder, schedule, work.machine, work.batch(256))


def make_unet(work: Work, folder: Path) -> Outcome:
    device = work.machine.device
    encoders = TextEncoders(work.out / "text-encoders", work.out / "tokenizer", device)
    vae = load_vae(work.out / "vae", device)
    rows = base_rows(work.examples)
    if work.smoke:
        rows = rows.where(np.arange(0, len(rows), 300))
    schedule = work.schedule(740, 1e-3)
    return train_unet(rows, encoders, vae, folder, schedule, work.machine, work.batch(512))


def make_base(work: Work, folder: Path) -> None:
    out = work.out
    assemble(
        folder,
        tokenizer=out / "tokenizer",
        text_encoders=out / "text-encoders",
        vae=out / "vae",
        unet=out / "unet",
    )


def make_figures(work: Work, folder: Path) -> None:
    examples = work.examples
    if work.smoke:
        examples = examples.where(np.arange(0, len(examples), 20))
    evaluation.evaluate(
        examples,
        work.withheld,
        base=work.out / "emoji-xl",
        scorer=work.out / "scorer",
        folder=folder,
        device=work.machine.device,
        num=4 if work.smoke else max(4, round(400 * min(1.0, work.pace))),
        steps=2 if work.smoke else evaluation.STEPS,
    )


STAGES: tuple[tuple[str, Callable[[Work, Path], Outcome | None]], ...] = (
    ("tokenizer", make_tokenizer),
    ("scorer", make_scorer),
    ("judge", make_judge),
    ("text-encoders", make_text_encoders),
    ("vae", make_vae),
    ("unet", make_unet),
    ("emoji-xl", make_base),
    ("evaluation", make_figures),
)


def run_stages(work: Work) -> None:
    """Each stage writes to a `.partial` folder, which gets its name when the stage is done."""
    for name, make in STAGES:
        folder = work.out / name
        if folder.exists():
            log.info("%s: done before", name)
            continue
        partial = work.out / f"{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        torch.manual_seed(0)
        started = time.monotonic()
        outcome = make(work, partial)
        partial.rename(folder)
        seconds = time.monotonic() - started
        log.info("%s: stage took %.0f s", name, seconds)
        record = {"stage_seconds": seconds, "training": asdict(outcome) if outcome else None}
        (work.out / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train emoji-xl, its scorer and its judge.")
    parser.add_argument("--data", type=Path, required=True, help="emoji64.npz, as the data recipe writes it")
    parser.add_argument("--out", type=Path, required=True, help="folder for the stages' outputs")
    parser.add_argument("--pace", type=float, default=1.0, help="share of the published training times")
    parser.add_argument("--smoke", action="store_true", help="two steps a stage on tiny batches, for tests")
    parser.add_argument("--eager", action="store_true", help="do without torch.compile")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("bench").setLevel(logging.INFO)
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    examples = read_examples(args.data)
    work = Work(
        examples=examples,
        withheld=withheld_concepts(examples),
        out=args.out,
        machine=Machine(device=device, eager=args.eager),
        pace=args.pace,
        smoke=args.smoke,
    )
    run_stages(work)


if __name__ == "__main__":
    main()
