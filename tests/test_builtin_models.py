"""The bundled base model, scorer and judge load, work together, and stay small."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from PIL import Image

import bench

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what the libraries deprecate in each other is not this project's
    from diffusers import StableDiffusionXLPipeline

BUILTIN = Path(bench.__file__).parent / "builtin"
BASE, SCORER, JUDGE = (BUILTIN / name for name in ("emoji-xl", "scorer", "judge"))
TARGETS = BUILTIN / "emoji"
SAFE_SUFFIXES = {
    "", ".json", ".jsonl", ".md", ".png", ".py", ".pyi", ".safetensors", ".txt", ".typed", ".webp", ".yaml",
}  # fmt: skip
CAPTION, OTHER = "red apple, fruit", "red car, vehicle"


@pytest.fixture(scope="module")
def pipeline() -> Any:
    loaded = StableDiffusionXLPipeline.from_pretrained(BASE)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def scorer() -> tuple[Any, Any, Any]:
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{SCORER}")
    return model.eval(), preprocess, open_clip.get_tokenizer(f"local-dir:{SCORER}")


def draw(pipeline: Any, prompt: str, steps: int = 15) -> Image.Image:
    generator = torch.Generator().manual_seed(0)
    image: Image.Image = pipeline(prompt, num_inference_steps=steps, generator=generator).images[0]
    return image


def fits(scorer: tuple[Any, Any, Any], image: Image.Image, captions: list[str]) -> list[float]:
    """Cosine of the picture with each caption."""
    model, preprocess, tokenizer = scorer
    with torch.no_grad():
        picture = model.encode_image(preprocess(image)[None], normalize=True)
        texts = model.encode_text(tokenizer(captions), normalize=True)
    return [float(value) for value in (texts @ picture.T)[:, 0]]


def test_the_pipeline_draws_a_picture_of_64_pixels(pipeline: Any) -> None:
    image = draw(pipeline, CAPTION)
    assert image.size == (64, 64)
    assert np.asarray(image).std() > 10


def test_an_empty_prompt_works(pipeline: Any) -> None:
    assert draw(pipeline, "", steps=2).size == (64, 64)


def test_the_seed_decides_the_picture(pipeline: Any) -> None:
    first, second = (np.asarray(draw(pipeline, CAPTION, steps=2)) for _ in range(2))
    assert (first == second).all()


def test_the_pipeline_needs_no_safety_options(pipeline: Any) -> None:
    assert pipeline.config.force_zeros_for_empty_prompt is True
    assert pipeline.watermark is None


def test_all_parts_load_in_one_precision(pipeline: Any) -> None:
    parts = (pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2)
    assert {part.dtype for part in parts} == {torch.float32}


def test_the_unet_is_small(pipeline: Any) -> None:
    assert sum(p.numel() for p in pipeline.unet.parameters()) <= 10_000_000


def test_latents_need_no_scaling(pipeline: Any) -> None:
    assert pipeline.vae.config.scaling_factor == 1.0
    assert pipeline.vae_scale_factor == 4


@pytest.mark.parametrize("style", ["streamline", "pixel16", "fluent-3d"])
def test_real_pictures_fit_their_captions_better_than_others(
    style: str, scorer: tuple[Any, Any, Any]
) -> None:
    folder = TARGETS / style / "test"
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()[:12]
    items = [json.loads(line) for line in lines]
    captions = [item["text"] for item in items]
    images = [Image.open(folder / item["file_name"]).convert("RGB") for item in items]
    cosines = np.array([fits(scorer, image, captions) for image in images])
    others = (cosines.sum(1) - cosines.diagonal()) / (len(items) - 1)
    assert (cosines.diagonal() > others).mean() > 0.9
    assert cosines.diagonal().mean() > others.mean() + 0.2


def test_a_drawn_picture_fits_its_prompt(pipeline: Any, scorer: tuple[Any, Any, Any]) -> None:
    right, wrong = fits(scorer, draw(pipeline, CAPTION), [CAPTION, OTHER])
    assert right > wrong + 0.1


def test_the_judge_is_in_the_format_of_timm() -> None:
    judge = timm.create_model(f"local-dir:{JUDGE}", pretrained=True).eval()
    preprocess = timm.data.resolve_model_data_config(judge)
    assert (list(preprocess["input_size"]), preprocess["crop_pct"]) == ([3, 64, 64], 1.0)
    with torch.no_grad():
        features = judge(torch.zeros(2, 3, 64, 64))
    assert features.shape == (2, 224) and features.isfinite().all()
    assert (JUDGE / "model.safetensors").stat().st_size < 4_500_000


def test_the_tokenizers_know_any_text(scorer: tuple[Any, Any, Any]) -> None:
    tokens = scorer[2](["", "Žluťoučký 漢字 🍎", "word " * 100])
    assert tokens.shape == (3, 32)
    assert tokens[:, 0].tolist() == [2046] * 3
    assert (tokens == 2047).any(1).all()


def test_bundled_files_hold_no_code_to_run_and_are_small() -> None:
    files = [path for path in BUILTIN.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {path.suffix for path in files} <= SAFE_SUFFIXES
    assert sum(path.stat().st_size for path in files) < 38_500_000


def test_weights_are_half_precision() -> None:
    for path in BUILTIN.rglob("*.safetensors"):
        header = json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])
        dtypes = {entry["dtype"] for name, entry in header.items() if name != "__metadata__"}
        assert dtypes <= {"F16", "I64"}
