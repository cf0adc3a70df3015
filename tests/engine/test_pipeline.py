"""Pipelines: encoders come when they are used and go when they are released; damage is found at the start."""

import gc
import os
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from bench import weights
from bench.base import BaseModel, load_base
from bench.errors import UsageError
from bench.families.sdxl import FAMILY
from bench.sources import Source, find_source

CPU = torch.device("cpu")
PROMPTS = ["a red apple", "b, c", ""]
ENCODERS, TEXT_ENCODERS = FAMILY.encoders, tuple(FAMILY.text_encoders)


def loaded(base: BaseModel) -> set[str]:
    return {part for part in ENCODERS if getattr(base._pipe, part) is not None}


@pytest.fixture
def copy(tiny_sdxl: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_sdxl, tmp_path / "base"))


# Loaded at first use


def test_encoders_are_loaded_when_they_are_used(tiny_sdxl: Path) -> None:
    base = load_base(str(tiny_sdxl), CPU)
    assert base.count_cut(["a" * 40, "a"]) == 1
    assert loaded(base) == set()
    base.decode(torch.zeros(1, *base.latent_shape))
    assert loaded(base) == {"vae"}
    base.encode_prompts(["a"])
    assert loaded(base) == {"vae", *TEXT_ENCODERS}
    assert all(not p.requires_grad for part in ENCODERS for p in getattr(base._pipe, part).parameters())


def test_released_encoders_leave_memory(tiny_sdxl: Path) -> None:
    base = load_base(str(tiny_sdxl), CPU)
    base.encode_prompts(["a"])
    parameters = [weakref.ref(p) for part in TEXT_ENCODERS for p in getattr(base._pipe, part).parameters()]
    gc.disable()  # not even a cycle may hold them: the collector may come too late
    try:
        base.release_encoders()
        assert all(weight() is None for weight in parameters)
    finally:
        gc.enable()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_prompts_are_encoded_as_the_pipeline_does(tiny_sdxl: Path, dtype: str) -> None:
    plain = StableDiffusionXLPipeline.from_pretrained(
        tiny_sdxl, dtype=getattr(torch, dtype), add_watermarker=False
    )
    hidden, _, pooled, _ = plain.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
    base = load_base(str(tiny_sdxl), CPU, dtype=dtype)
    for _ in range(2):
        ours = base.encode_prompts(PROMPTS)
        assert torch.equal(ours.hidden, hidden) and torch.equal(ours.pooled, pooled)
        base.release_encoders()


def test_images_go_through_the_vae_as_in_the_pipeline(tiny_sdxl: Path) -> None:
    plain = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl, add_watermarker=False)
    base = load_base(str(tiny_sdxl), CPU)
    latents = torch.randn(3, *base.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pixels = plain.vae.decode(latents / plain.vae.config.scaling_factor).sample
    expected = plain.image_processor.postprocess(pixels, output_type="np")
    assert abs(base.decode(latents) / 255 - expected).max() <= 0.51 / 255


# Checked at the start


def remove(file: Path) -> None:
    file.unlink()


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-4])


def garble(file: Path) -> None:
    file.write_bytes(b"\xff" * 100)


def leave_out(file: Path) -> None:
    tensors = load_file(file)
    tensors.pop(max(tensors, key=lambda name: tensors[name].numel()))
    save_file(tensors, file, {"format": "pt"})


@pytest.mark.parametrize("damage", [remove, truncate, garble, leave_out])
@pytest.mark.parametrize("part", ["unet", *ENCODERS])
def test_a_damaged_part_is_refused_before_anything_is_loaded(
    copy: Path, part: str, damage: Callable[[Path], None]
) -> None:
    (file,) = (copy / part).glob("*.safetensors")
    damage(file)
    with pytest.raises(UsageError, match=rf"^base .*: {part}: (cannot be read|incomplete): .*") as caught:
        load_base(str(copy), CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["unet", *ENCODERS])
@pytest.mark.parametrize("text", [None, "{", "[]", '{"hidden_size": "many", "in_channels": "many"}'])
def test_a_damaged_configuration_is_refused(copy: Path, part: str, text: str | None) -> None:
    config = copy / part / "config.json"
    config.unlink() if text is None else config.write_text(text)
    with pytest.raises(UsageError, match=rf"^base .*: {part}: cannot be read: ") as caught:
        load_base(str(copy), CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", [False, True])
def test_encoders_in_shards_are_found(copy: Path, missing: bool) -> None:
    plain = StableDiffusionXLPipeline.from_pretrained(copy, add_watermarker=False)
    (copy / "text_encoder_2" / "model.safetensors").unlink()
    plain.text_encoder_2.save_pretrained(copy / "text_encoder_2", max_shard_size="8KB")
    shards = sorted((copy / "text_encoder_2").glob("model-*.safetensors"))
    assert len(shards) > 1
    if missing:
        shards[-1].unlink()
        with pytest.raises(UsageError, match=f"text_encoder_2: cannot be read: no .*{shards[-1].name}"):
            load_base(str(copy), CPU)
        return
    expected = plain.encode_prompt(PROMPTS, do_classifier_free_guidance=False)[0]
    assert torch.equal(load_base(str(copy), CPU).encode_prompts(PROMPTS).hidden, expected)


# Fingerprints


def found(folder: Path) -> Source:
    return find_source(str(folder), None, torch.float32)


@pytest.mark.parametrize("large", [0, weights.LARGE])
def test_a_fingerprint_changes_with_any_weight(
    copy: Path, tmp_path: Path, large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "LARGE", large)
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    before = found(copy).fingerprint()
    assert found(copy).fingerprint() == before
    file = copy / "unet" / "diffusion_pytorch_model.safetensors"
    stat, content = file.stat(), file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as `cp -p` and `rsync -t` leave it
    assert found(copy).fingerprint() != before


def test_hashes_of_large_files_are_kept(
    copy: Path, tmp_path: Path, tiny_sdxl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = found(tiny_sdxl).fingerprint()
    monkeypatch.setattr(weights, "LARGE", 0)
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    assert found(copy).fingerprint() == plain
    hashed: list[Path] = []
    monkeypatch.setattr(weights, "_hash", hashed.append)
    assert found(copy).fingerprint() == plain
    assert hashed == []
