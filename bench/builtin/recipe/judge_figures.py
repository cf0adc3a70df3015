"""What the judge and the scorer see in pictures of concepts that the judge never saw: its figures.

python -m bench.builtin.recipe.judge_figures --data emoji64.npz --judge bundled --scorer bundled
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor

from bench.builtin.recipe.examples import (
    PIXEL_SET,
    Examples,
    concept_ids,
    is_withheld,
    joined,
    pixel_art,
    read_examples,
    styled,
    target_concepts,
    withheld_concepts,
)
from bench.builtin.recipe.views import bent_pictures, box_blurred
from bench.scoring.embed import load_scorer
from bench.scoring.judge import load_judge

Embed = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
Figures = dict[str, Any]
Pictures = NDArray[np.uint8]

NUM_COPIED = 600
NUM_DRAWN = 64


def unseen_rows(examples: Examples) -> Examples:
    """Pictures of all concepts that the judge did not train on, in all styles."""
    held = is_withheld(examples, target_concepts(examples))
    rows = examples.where((examples.split == "val") | held)
    return joined(rows, pixel_art(rows.where(rows.set == "noto")))


def measure(examples: Examples, embed: Embed) -> Figures:
    """All figures of one network."""
    rows = unseen_rows(examples)
    features = embed(rows.images)
    return {
        "unseen_pictures": len(rows),
        "same_concept_in_another_style": _retrieval(examples, embed),
        "nearest_of_another_concept_has_the_same_style": _style(rows, features),
        "cosines": _cosines(rows, features) | _copies(rows, features, embed),
    }


def _retrieval(examples: Examples, embed: Embed) -> Figures:
    """How often the nearest picture of another vendor shows the same concept; the scorer's own rows."""
    unseen = examples.where((examples.role == "base") & (examples.split == "val"))
    held = is_withheld(examples, withheld_concepts(examples))
    targets = examples.where(held & (examples.role == "target"))
    pixels = pixel_art(examples.where(held & (examples.set == "noto")))
    noto = examples.where((examples.set == "noto") & (examples.split != "val"))
    found = {other: _nearest(unseen, "noto", unseen, other, embed) for other in ("twemoji", "fluent-flat")}
    for vendor in ("fluent-3d", "streamline"):
        found[vendor] = _nearest(targets, vendor, noto, "noto", embed)
    found[PIXEL_SET] = _nearest(pixels, PIXEL_SET, noto, "noto", embed)
    return found


def _nearest(rows: Examples, vendor: str, others: Examples, other: str, embed: Embed) -> Figures:
    rows, others = rows.where(rows.set == vendor), others.where(others.set == other)
    rows = rows.where(np.isin(rows.name, others.name))
    near = (embed(rows.images) @ embed(others.images).T).argmax(1)
    right = others.name[near] == rows.name
    return {"pictures": len(rows), "among": len(others), "share": float(right.mean())}


def _style(rows: Examples, features: NDArray[np.float32]) -> Figures:
    concepts = concept_ids(rows)
    cosines = np.where(concepts[:, None] == concepts[None, :], -2, features @ features.T)
    right = rows.set[cosines.argmax(1)] == rows.set
    return {"pictures": len(rows), "styles": len(set(rows.set.tolist())), "share": float(right.mean())}


def _cosines(rows: Examples, features: NDArray[np.float32]) -> dict[str, float]:
    """Mean cosines of pairs of different pictures."""
    concepts, cosines = concept_ids(rows), features @ features.T
    same_concept = concepts[:, None] == concepts[None, :]
    same_style = rows.set[:, None] == rows.set[None, :]
    return {
        "same concept, another style": float(cosines[same_concept & ~same_style].mean()),
        "another concept, same style": float(cosines[~same_concept & same_style].mean()),
        "another concept and style": float(cosines[~same_concept & ~same_style].mean()),
    }


def _copies(rows: Examples, features: NDArray[np.float32], embed: Embed) -> dict[str, float]:
    """Mean cosines of pictures, picked at random, with changed copies of themselves."""
    rng = np.random.default_rng(0)
    picked = rng.permutation(len(rows))[:NUM_COPIED]
    changes = copies(rows.images[picked], rng)
    return {name: float((features[picked] * embed(new)).sum(1).mean()) for name, new in changes.items()}


def copies(images: Pictures, rng: np.random.Generator) -> dict[str, Pictures]:
    """Changed copies of pictures, uint8 [N, 64, 64, 3] each."""
    found = {f"shifted {n} px": _shifted(images, n) for n in (1, 2, 4)}
    for sigma in (0.02, 0.05, 0.1, 0.2):
        noise = rng.normal(0, 255 * sigma, images.shape)
        found[f"noise {sigma:g}"] = np.clip(images + noise, 0, 255).round().astype(np.uint8)
    found["blurred once"] = _through(images, box_blurred)
    found["blurred three times"] = _through(images, lambda x: box_blurred(box_blurred(box_blurred(x))))
    found["bent by 1 px"] = _through(images, lambda x: bent_pictures(x, 1 / 32))
    found["bent by 3 px"] = _through(images, lambda x: bent_pictures(x, 3 / 32))
    found["a quarter of another picture"] = images.copy()
    found["a quarter of another picture"][:, 32:, 32:] = np.roll(images, 1, 0)[:, 32:, 32:]
    found["a tenth paler"] = (255 - 0.9 * (255 - images.astype(np.float64))).round().astype(np.uint8)
    return found


def _shifted(images: Pictures, pixels: int) -> Pictures:
    wide = np.pad(images, ((0, 0), (0, 0), (pixels, 0), (0, 0)), constant_values=255)
    return wide[:, :, : images.shape[2]]


def _through(images: Pictures, change: Callable[[Tensor], Tensor]) -> Pictures:
    torch.manual_seed(0)
    ink = 1 - torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    changed = (255 * (1 - change(ink).clamp(0, 1))).round().byte()
    return np.asarray(changed.permute(0, 2, 3, 1).numpy())


def agreement(rows: Examples, first: Embed, second: Embed) -> dict[str, float]:
    """How alike two networks see pairs of pictures: of any, and of different concepts in one style."""
    cosines = [(features := embed(rows.images)) @ features.T for embed in (first, second)]
    concepts = concept_ids(rows)
    above = np.triu(np.ones_like(cosines[0], dtype=bool), 1)
    other = above & (concepts[:, None] != concepts[None, :])
    one_style = other & (rows.set[:, None] == rows.set[None, :])
    pairs = {"any pair": above, "another concept, same style": one_style}
    return {name: float(spearmanr(*(c[mask] for c in cosines)).statistic) for name, mask in pairs.items()}


def drawn_figures(examples: Examples, base: Path, embeds: dict[str, Embed], device: torch.device) -> Figures:
    """Mean cosine of training pictures of the base, which it knows by heart, with what it draws for them.

    Of concepts that the judge never saw; and how often the drawn picture is nearest to its own original.
    """
    from bench.builtin.recipe.pipeline import draw, load_pipeline

    held = is_withheld(examples, target_concepts(examples))
    rows = examples.where((examples.role == "base") & (examples.split != "val") & held)
    rows = rows.where(np.random.default_rng(0).permutation(len(rows))[:NUM_DRAWN])
    prompts = [styled(str(c), str(s)) for c, s in zip(rows.caption, rows.style, strict=True)]
    images = draw(load_pipeline(base, device), prompts, guidance=4.0, steps=20)
    found = {}
    for name, embed in embeds.items():
        cosines = embed(images) @ embed(rows.images).T
        own = cosines.argmax(1) == np.arange(len(rows))
        found[name] = {"cosine": float(cosines.diagonal().mean()), "own_first": float(own.mean())}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Figures of a judge, beside those of a scorer.")
    parser.add_argument("--data", type=Path, required=True, help="emoji64.npz, as the data recipe writes it")
    parser.add_argument("--base", type=Path, help="a base model in diffusers' format, to draw with")
    parser.add_argument("--judge", default="bundled")
    parser.add_argument("--scorer", default="bundled")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    examples = read_examples(args.data)
    judge = load_judge(args.judge, device).embed_images
    scorer = load_scorer(args.scorer, device).embed_images
    found = {
        "judge": measure(examples, judge),
        "scorer": measure(examples, scorer),
        "rank_correlation": agreement(unseen_rows(examples), judge, scorer),
    }
    if args.base:
        found["drawn"] = drawn_figures(examples, args.base, {"judge": judge, "scorer": scorer}, device)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
