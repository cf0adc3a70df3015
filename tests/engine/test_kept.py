"""What is kept between runs: each thing that decides a value, once changed, has it computed again."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.base import BaseModel, load_base
from bench.cache import cache_folder
from bench.conditioning import conditioning, empty_conditioning
from bench.prompts import Prompt
from bench.scoring.embed import Scorer, load_scorer
from bench.scoring.exam import Exam, base_images
from bench.scoring.judge import load_judge
from bench.scoring.kept import Kept, text_features
from bench.scoring.measure import Reference, View
from bench.space import Sampler

PROMPTS = (
    Prompt(text="a red apple", seeds=(1, 2), kind="held-out"),
    Prompt(text="a pear", seeds=(3, 4), kind="held-out"),
)
SAMPLER = Sampler(steps=1, guidance=2)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return load_scorer("bundled", CPU)


@pytest.fixture
def changed_base(tiny_sdxl: Path, tmp_path: Path) -> BaseModel:
    """With one weight of the UNet changed a little."""
    folder = tmp_path / "changed"
    shutil.copytree(tiny_sdxl, folder)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    first = min(weights)
    save_file(weights | {first: weights[first] + 1e-4}, file, {"format": "pt"})
    return load_base(str(folder), CPU)


def computes(value: Callable[[], object]) -> bool:
    """Whether something had to be computed: then the cache holds more than before."""
    before = count()
    value()
    return count() > before


def count() -> int:
    return len(list(cache_folder().glob("*.safetensors")))


def exam_of(base: BaseModel, scorer: Scorer, prompts: tuple[Prompt, ...], sampler: Sampler) -> Exam:
    text = base.encode_prompts([prompt.text for prompt in prompts])
    features = scorer.embed_texts([prompt.text for prompt in prompts])
    num_seeds = len(prompts[0].seeds)
    return Exam(
        split="dev",
        prompts=tuple(prompt.text for prompt in prompts),
        base=base,
        scorer=scorer,
        judge=None,
        sampler=sampler,
        text=text[np.repeat(np.arange(len(prompts)), num_seeds)],
        empty=base.encode_empty(),
        seeds=tuple(seed for prompt in prompts for seed in prompt.seeds),
        concepts=(),
        kinds=tuple(prompt.kind for prompt in prompts),
        reference=Reference(
            text_features=features,
            num_seeds=num_seeds,
            scorer=View(extractor=scorer.name, true=None, real=None, train=None),
            judge=None,
            base=None,
        ),
        base_images=None,
    )


def draws(
    base: BaseModel,
    scorer: Scorer,
    prompts: tuple[Prompt, ...] = PROMPTS,
    sampler: Sampler = SAMPLER,
) -> bool:
    return computes(lambda: base_images(exam_of(base, scorer, prompts, sampler), prompts))


def test_the_base_draws_once_and_its_images_come_back_bit_by_bit(base: BaseModel, scorer: Scorer) -> None:
    exam = exam_of(base, scorer, PROMPTS, SAMPLER)
    first = base_images(exam, PROMPTS)
    assert count() == 1
    assert base_images(exam, PROMPTS).tobytes() == first.tobytes()
    assert count() == 1


def test_what_decides_the_images_of_the_base_has_them_drawn_again(
    base: BaseModel, tiny_sdxl: Path, changed_base: BaseModel, scorer: Scorer
) -> None:
    assert draws(base, scorer) and not draws(base, scorer)
    first, second = PROMPTS
    for prompts in (
        (replace(first, text="a red pear"), second),
        (replace(first, seeds=(1, 5)), second),
        (second, first),
        (first,),
    ):
        assert draws(base, scorer, prompts)
    assert draws(base, scorer, sampler=Sampler(steps=2, guidance=2))
    assert draws(base, scorer, sampler=Sampler(steps=1, guidance=3))
    assert draws(load_base(str(tiny_sdxl), CPU, resolution=16), scorer)
    assert draws(load_base(str(tiny_sdxl), CPU, dtype="bfloat16"), scorer)
    assert draws(changed_base, scorer)
    assert not draws(base, scorer)


def test_conditioning_is_that_of_the_base_bit_by_bit(base: BaseModel) -> None:
    texts = [prompt.text for prompt in PROMPTS]
    for _ in range(2):
        for kept, plain in (
            (conditioning(base, texts), base.encode_prompts(texts)),
            (empty_conditioning(base), base.encode_empty()),
        ):
            assert torch.equal(kept.hidden, plain.hidden) and kept.hidden.dtype == plain.hidden.dtype
            assert torch.equal(kept.pooled, plain.pooled) and kept.pooled.dtype == plain.pooled.dtype
    assert count() == 2


def test_what_decides_conditioning_has_it_computed_again(
    base: BaseModel, tiny_sdxl: Path, changed_base: BaseModel
) -> None:
    half = load_base(str(tiny_sdxl), CPU, dtype="bfloat16")
    assert computes(lambda: conditioning(base, ["a", "b"]))
    assert not computes(lambda: conditioning(base, ["a", "b"]))
    assert computes(lambda: conditioning(base, ["b", "a"]))
    assert computes(lambda: conditioning(base, ["a"]))
    assert computes(lambda: conditioning(half, ["a", "b"]))
    assert computes(lambda: conditioning(changed_base, ["a", "b"]))
    assert computes(lambda: conditioning(base, [""]))
    assert computes(lambda: empty_conditioning(base)), "the empty prompt may be zeros instead"
    assert computes(lambda: empty_conditioning(half))
    assert not computes(lambda: empty_conditioning(base))


def test_kept_prompts_need_no_text_encoder(base: BaseModel, tiny_sdxl: Path) -> None:
    texts = ["a", "b"]
    conditioning(base, texts)
    empty_conditioning(base)
    other = load_base(str(tiny_sdxl), CPU)
    conditioning(other, texts)
    empty_conditioning(other)
    assert other._pipe.text_encoder is None and other._pipe.text_encoder_2 is None
    other.encode_prompts(texts)
    assert other._pipe.text_encoder is not None


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3)).astype(np.uint8)


def test_features_are_those_of_the_network_bit_by_bit(scorer: Scorer, images: np.ndarray) -> None:
    judge = load_judge("bundled", CPU)
    for network in (scorer, judge):
        assert Kept(network).name == network.name
        for _ in range(2):
            assert Kept(network).embed_images(images).tobytes() == network.embed_images(images).tobytes()
    assert count() == 2
    texts = ["a red apple", "a pear"]
    for _ in range(2):
        assert text_features(scorer, texts).tobytes() == scorer.embed_texts(texts).tobytes()
    assert count() == 3


def test_what_decides_features_has_them_computed_again(
    scorer: Scorer, images: np.ndarray, tmp_path: Path
) -> None:
    other = changed_scorer(tmp_path / "other")
    changed = images.copy()
    changed[0, 0, 0, 0] ^= 1
    assert computes(lambda: Kept(scorer).embed_images(images))
    assert not computes(lambda: Kept(scorer).embed_images(images.copy()))
    for seen in (changed, images[::-1], images[:2], images.reshape(3, 16, 64, 3)):
        assert computes(lambda seen=seen: Kept(scorer).embed_images(seen))
    assert computes(lambda: Kept(other).embed_images(images))
    assert computes(lambda: text_features(scorer, ["a", "b"]))
    assert not computes(lambda: text_features(scorer, ["a", "b"]))
    assert computes(lambda: text_features(scorer, ["b", "a"]))
    assert computes(lambda: text_features(other, ["a", "b"]))


def changed_scorer(folder: Path) -> Scorer:
    """The bundled scorer with another normalisation: only its configuration differs."""
    from bench.scoring.embed import CONFIG, scorer_folder

    shutil.copytree(scorer_folder("bundled"), folder)
    config = json.loads((folder / CONFIG).read_text())
    config.setdefault("preprocess_cfg", {})["mean"] = [0.4, 0.5, 0.5]
    (folder / CONFIG).write_text(json.dumps(config))
    return load_scorer(str(folder), CPU)
