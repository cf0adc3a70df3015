"""How good the trained models are: the figures and sample sheets of the model card."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bench.builtin.recipe.examples import Examples, base_rows, concept_ids, is_withheld, styled
from bench.builtin.recipe.pipeline import draw, load_pipeline
from bench.builtin.recipe.scorer import load_scorer
from bench.builtin.recipe.vae import reconstruction_psnr, to_unit

log = logging.getLogger(__name__)

GUIDANCES = (2.0, 3.0, 4.0, 5.0, 6.0)
GUIDANCE = 4.0
STEP_COUNTS = (15, 25)
STEPS = 20
UNSEEN_STYLE = "outline cartoon style"

Figures = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scorer:
    """The scorer with its tokenizer; embeddings are unit vectors [N, 256]."""

    model: Any
    tokenizer: Any
    device: torch.device

    @torch.no_grad()
    def pictures(self, images: NDArray[np.uint8]) -> Tensor:
        """Of uint8 [N, 64, 64, 3]."""
        parts = torch.split(torch.from_numpy(images).permute(0, 3, 1, 2), 256)
        return torch.cat([self.model.encode_image(to_unit(p.to(self.device)), normalize=True) for p in parts])

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(list(texts)).split(256)
        return torch.cat([self.model.encode_text(part.to(self.device), normalize=True) for part in tokens])

    def fit(self, images: NDArray[np.uint8], texts: Sequence[str]) -> float:
        """Mean cosine of each picture with its text."""
        return (self.pictures(images) * self.texts(texts)).sum(1).mean().item()


def evaluate(
    examples: Examples,
    withheld: frozenset[str],
    *,
    base: Path,
    scorer: Path,
    folder: Path,
    device: torch.device,
    num: int,
    steps: int = STEPS,
) -> Figures:
    """Write `figures.json` and `samples/*.webp` into the folder; `num` seen captions are drawn."""
    model, tokenizer = load_scorer(scorer, device)
    judge = Scorer(model=model, tokenizer=tokenizer, device=device)
    pipeline = load_pipeline(base, device)
    unseen = examples.where((examples.role == "base") & (examples.split == "val"))
    seen = _sample(base_rows(examples), num, seed=0)
    held = examples.where((examples.role == "target") & is_withheld(examples, withheld))
    figures: Figures = {
        "vae_psnr_unseen_db": reconstruction_psnr(pipeline.vae, unseen.images),
        "vae_pictures": len(unseen),
        "seen": _drawn_figures(judge, pipeline, seen, steps, GUIDANCES, STEP_COUNTS),
        "unseen": _drawn_figures(judge, pipeline, _one_each(unseen), steps, (GUIDANCE,), ()),
        "retrieval": _retrieval_figures(judge, examples, unseen, held),
        "vendors": _vendor_figures(judge, examples, unseen, held),
    }
    (folder / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    log.info("figures: %s", json.dumps(figures))
    _write_sheets(pipeline, folder / "samples", seen=seen, unseen=unseen, held=held, steps=steps)
    return figures


def _drawn_figures(
    judge: Scorer,
    pipeline: Any,
    rows: Examples,
    steps: int,
    guidances: Sequence[float],
    step_counts: Sequence[int],
) -> Figures:
    """Cosines of captions with real and drawn pictures, without and with the style phrase."""
    plain = [str(caption) for caption in rows.caption]
    full = [styled(c, s) for c, s in zip(rows.caption, rows.style, strict=True)]
    found: Figures = {"captions": len(rows)}
    for kind, texts in (("plain", plain), ("styled", full)):
        others = texts[1:] + texts[:1]
        found[kind] = {
            "real": judge.fit(rows.images, texts),
            "real_mismatched": judge.fit(rows.images, others),
        }
        for guidance in guidances:
            images = draw(pipeline, texts, guidance=guidance, steps=steps)
            found[kind][f"drawn_guidance_{guidance:g}"] = judge.fit(images, texts)
            if guidance == GUIDANCE:
                found[kind]["drawn_mismatched"] = judge.fit(images, others)
        for count in step_counts:
            images = draw(pipeline, texts, guidance=GUIDANCE, steps=count)
            found[kind][f"drawn_{count}_steps"] = judge.fit(images, texts)
    return found


def _retrieval_figures(judge: Scorer, examples: Examples, unseen: Examples, held: Examples) -> Figures:
    """How often a picture's own caption is the first, or in the first five, of all such captions."""
    found = {"unseen_concepts": _retrieval(judge, unseen)}
    for vendor in sorted(set(held.set.tolist())):
        found[f"withheld_{vendor}"] = _retrieval(judge, held.where(held.set == vendor))
    found["style_phrase"] = _style_accuracy(judge, examples, unseen, held)
    return found


def _retrieval(judge: Scorer, rows: Examples) -> Figures:
    concepts, first, own = np.unique(concept_ids(rows), return_index=True, return_inverse=True)
    texts = judge.texts([str(rows.caption[i]) for i in first])
    order = (judge.pictures(rows.images) @ texts.T).argsort(1, descending=True).cpu()
    hits = order == torch.from_numpy(own)[:, None]
    return {
        "pictures": len(rows),
        "captions": len(concepts),
        "rank_1": hits[:, 0].float().mean().item(),
        "first_5": hits[:, :5].any(1).float().mean().item(),
    }


def _style_accuracy(judge: Scorer, examples: Examples, unseen: Examples, held: Examples) -> Figures:
    """How often the right style phrase fits an unseen picture best, its caption being given."""
    styles = sorted(set(examples.style.tolist()))
    hits = []
    for rows in (unseen, held):
        pictures = judge.pictures(rows.images)
        texts = [judge.texts([styled(str(c), style) for c in rows.caption]) for style in styles]
        best = torch.stack([(pictures * text).sum(1) for text in texts]).argmax(0).cpu().numpy()
        hits.append(np.array(styles)[best] == rows.style)
    right = np.concatenate(hits)
    return {"pictures": len(right), "styles": len(styles), "accuracy": float(right.mean())}


def _vendor_figures(judge: Scorer, examples: Examples, unseen: Examples, held: Examples) -> Figures:
    """How often a picture's nearest neighbour among another vendor's pictures shows the same concept."""
    noto = examples.where((examples.set == "noto") & (examples.split != "val"))
    found = {"unseen_noto_in_twemoji": _nearest(judge, unseen, "noto", unseen, "twemoji")}
    found["unseen_noto_in_fluent-flat"] = _nearest(judge, unseen, "noto", unseen, "fluent-flat")
    for vendor in sorted(set(held.set.tolist())):
        found[f"withheld_{vendor}_in_noto"] = _nearest(judge, held, vendor, noto, "noto")
    return found


def _nearest(judge: Scorer, rows: Examples, vendor: str, others: Examples, other: str) -> Figures:
    rows, others = rows.where(rows.set == vendor), others.where(others.set == other)
    names, other_names = rows.name, others.name
    paired = np.isin(names, other_names)
    if not paired.any():
        return {"pictures": 0}
    near = (judge.pictures(rows.images[paired]) @ judge.pictures(others.images).T).argmax(1).cpu().numpy()
    raw = _raw_nearest(rows.images[paired], others.images)
    return {
        "pictures": int(paired.sum()),
        "among": len(others),
        "accuracy": float((other_names[near] == names[paired]).mean()),
        "raw_16x16_pixels": float((other_names[raw] == names[paired]).mean()),
    }


def _raw_nearest(images: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.int64]:
    small, small_others = (
        torch.from_numpy(x).float().reshape(len(x), 16, 4, 16, 4, 3).mean((2, 4)).flatten(1)
        for x in (images, others)
    )
    return np.asarray(torch.cdist(small, small_others).argmin(1).numpy(), dtype=np.int64)


def _one_each(rows: Examples) -> Examples:
    return rows.where(np.unique(concept_ids(rows), return_index=True)[1])


def _sample(rows: Examples, num: int, seed: int) -> Examples:
    return rows.where(np.random.default_rng(seed).permutation(len(rows))[:num])


def _write_sheets(
    pipeline: Any, folder: Path, *, seen: Examples, unseen: Examples, held: Examples, steps: int
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    new = _sample(_one_each(unseen), 48, seed=1)
    targets = _sample(_one_each(held.where(held.style == UNSEEN_STYLE)), 48, seed=1)
    sheets = {
        "seen_concepts": [str(c) for c in seen.caption[:48]],
        "unseen_concepts": [str(c) for c in new.caption],
        "unseen_style": [styled(str(c), UNSEEN_STYLE) for c in targets.caption],
    }
    for name, prompts in sheets.items():
        sheet = _sheet(draw(pipeline, prompts, guidance=GUIDANCE, steps=steps))
        sheet.save(folder / f"{name}.webp", quality=85)
        (folder / f"{name}.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")


def _sheet(images: NDArray[np.uint8], columns: int = 12) -> Image.Image:
    """Pictures side by side, in the order of the prompts, with a white pixel around each."""
    padded = np.pad(images, ((0, -len(images) % columns), (1, 1), (1, 1), (0, 0)), constant_values=255)
    rows = padded.reshape(-1, columns, *padded.shape[1:])
    return Image.fromarray(np.concatenate([np.concatenate(list(row), 1) for row in rows]))
