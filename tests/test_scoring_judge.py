"""The second network: loaded from timm's or open_clip's format, never from pickle or from the network."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

import bench
from bench.errors import MissingError, UsageError
from bench.scoring import embed
from bench.scoring.embed import FeatureNetwork, load_scorer
from bench.scoring.judge import CONFIG, DINOV2, WEIGHTS, find_judge, load_judge

CPU = torch.device("cpu")
VIT = {"embed_dim": 32, "depth": 1, "num_heads": 2, "img_size": 518}
CONVNEXT = {"patch_size": 2, "dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
CLIP = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def save_timm(folder: Path, architecture: str, size: int, classes: int, **model_args: Any) -> Path:
    """A random network in the format that timm's repositories on the Hub have."""
    folder.mkdir()
    torch.manual_seed(0)
    model = timm.create_model(architecture, num_classes=classes, **model_args)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / WEIGHTS)
    preprocess = {
        "input_size": [3, size, size],
        "mean": [0.4, 0.5, 0.6],
        "std": [0.3, 0.3, 0.2],
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "num_classes": classes,
        "first_conv": model.default_cfg["first_conv"],
        "classifier": model.default_cfg["classifier"],
        "fixed_input_size": "img_size" in model_args,
    }
    config = {
        "architecture": architecture,
        "num_classes": classes,
        "num_features": model.num_features,
        "model_args": model_args,
        "pretrained_cfg": preprocess,
    }
    (folder / CONFIG).write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def convnext(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judges") / "tiny"
    return save_timm(folder, "convnext_atto", 32, 5, **CONVNEXT)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DINOv2's architecture, small, with position embeddings for 518 pixels as the published one has."""
    folder = tmp_path_factory.mktemp("judges") / "dinov2"
    return save_timm(folder, "vit_small_patch14_dinov2", 518, 0, **VIT)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judges") / "clip"
    folder.mkdir()
    (folder / embed.CONFIG).write_text(json.dumps({"model_cfg": CLIP}))
    torch.manual_seed(0)
    state = open_clip.CLIP(**CLIP).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / embed.WEIGHTS)
    return folder


@pytest.fixture
def copy(convnext: Path, tmp_path: Path) -> Path:
    """A judge that a test may damage."""
    return Path(shutil.copytree(convnext, tmp_path / "copy"))


@pytest.fixture(scope="module")
def bundled() -> FeatureNetwork:
    return load_judge("bundled", CPU)


def pictures(count: int = 6, height: int = 64, width: int = 64) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 255, (count, height, width, 3), dtype=np.uint8)


def real_pictures() -> NDArray[np.uint8]:
    from PIL import Image

    folder = Path(bench.__file__).parent / "builtin" / "emoji" / "streamline" / "test"
    files = sorted(folder.glob("*.png"))[:24]
    return np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])


# The bundled judge


def test_the_bundled_judge_gives_unit_features(bundled: FeatureNetwork) -> None:
    features = bundled.embed_images(pictures())
    assert (bundled.name, bundled.size, bundled.dim) == ("emoji-judge", (64, 64), 224)
    assert (features.dtype, features.shape) == (np.float32, (6, 224))
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-5)
    assert bundled.embed_images(pictures(0)).shape == (0, 224)


def test_the_bundled_judge_sees_quality_and_content(bundled: FeatureNetwork) -> None:
    """Noise moves a picture further than a shift does, and another picture is further still."""
    images = real_pictures()
    features = bundled.embed_images(images)
    noise = np.random.default_rng(0).normal(0, 13, images.shape)
    noisy = (images + noise).clip(0, 255).round().astype(np.uint8)
    shifted = np.concatenate([np.full_like(images[:, :1], 255), images[:, :-1]], axis=1)
    still, harmed = ((features * bundled.embed_images(copies)).sum(1).mean() for copies in (shifted, noisy))
    others = (features @ features.T)[~np.eye(len(images), dtype=bool)].mean()
    assert still > 0.97 > 0.9 > harmed > others + 0.1


def test_batches_do_not_matter(bundled: FeatureNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bundled.embed_images(pictures())
    monkeypatch.setattr(embed, "BATCH", 4)
    np.testing.assert_allclose(bundled.embed_images(pictures()), whole, atol=1e-5)


def test_other_sizes_are_padded_with_white(bundled: FeatureNetwork) -> None:
    wide = pictures(2, 32, 64)
    square = np.full((2, 64, 64, 3), 255, np.uint8)
    square[:, 16:48] = wide
    np.testing.assert_allclose(bundled.embed_images(wide), bundled.embed_images(square), atol=1e-5)


# Folders


def test_a_classifier_is_left_out(convnext: Path) -> None:
    judge = load_judge(str(convnext), CPU)
    assert (judge.name, judge.size, judge.dim) == ("tiny", (32, 32), 16)
    model = timm.create_model("convnext_atto", num_classes=5, **CONVNEXT).eval()
    model.load_state_dict(load_file(convnext / WEIGHTS))
    x = (torch.from_numpy(pictures(3, 32, 32)).permute(0, 3, 1, 2) / 255 - judge.mean) / judge.std
    with torch.no_grad():
        oracle = model.forward_head(model.forward_features(x), pre_logits=True)
    oracle = torch.nn.functional.normalize(oracle, dim=-1).numpy()
    np.testing.assert_allclose(judge.embed_images(pictures(3, 32, 32)), oracle, atol=1e-5)
    np.testing.assert_allclose(judge.mean.flatten(), [0.4, 0.5, 0.6])


def test_a_transformer_with_patches_of_14_reads_224_pixels(vit: Path) -> None:
    judge = load_judge(str(vit), CPU)
    assert (judge.size, judge.dim) == ((224, 224), 32)
    assert np.isfinite(judge.embed_images(pictures(2))).all()


def test_of_an_open_clip_folder_the_image_tower_is_used(clip: Path) -> None:
    judge, scorer = load_judge(str(clip), CPU), load_scorer(str(clip), CPU)
    assert (judge.name, judge.fingerprint) == ("clip", scorer.fingerprint)
    np.testing.assert_array_equal(judge.embed_images(pictures()), scorer.embed_images(pictures()))


def test_judge_is_fingerprinted(convnext: Path, copy: Path) -> None:
    first = load_judge(str(convnext), CPU)
    assert load_judge(str(copy), CPU).fingerprint == first.fingerprint
    weights = load_file(copy / WEIGHTS)
    save_file({name: weight * 0.5 for name, weight in weights.items()}, copy / WEIGHTS)
    assert load_judge(str(copy), CPU).fingerprint != first.fingerprint


# What cannot be loaded


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS])
def test_missing_files_are_named(copy: Path, file: str) -> None:
    (copy / file).unlink()
    with pytest.raises(MissingError, match=rf"no {file} in .*copy; put config.json and model.safetensors"):
        load_judge(str(copy), CPU)


def test_pickled_weights_are_refused(copy: Path) -> None:
    torch.save(load_file(copy / WEIGHTS), copy / "pytorch_model.bin")
    (copy / WEIGHTS).unlink()
    with pytest.raises(MissingError, match="safetensors only"):
        load_judge(str(copy), CPU)


def test_pickled_weights_beside_safe_ones_are_not_read(copy: Path) -> None:
    before = load_judge(str(copy), CPU).embed_images(pictures())
    (copy / "pytorch_model.bin").write_bytes(b"not weights")
    np.testing.assert_array_equal(load_judge(str(copy), CPU).embed_images(pictures()), before)


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS])
def test_damaged_files_are_named_in_one_line(copy: Path, file: str) -> None:
    (copy / file).write_bytes((copy / file).read_bytes()[:100])
    with pytest.raises(UsageError, match="cannot be loaded from") as caught:
        load_judge(str(copy), CPU)
    assert "\n" not in str(caught.value)


def test_weights_of_another_network_are_refused(copy: Path) -> None:
    save_file({"stem.0.bias": torch.zeros(8)}, copy / WEIGHTS)
    with pytest.raises(UsageError, match="cannot be loaded"):
        load_judge(str(copy), CPU)


@pytest.mark.parametrize("config", ["[]", "{}", '{"architecture": "no_such_network", "pretrained_cfg": {}}'])
def test_a_config_of_something_else_is_refused(copy: Path, config: str) -> None:
    (copy / CONFIG).write_text(config)
    with pytest.raises(UsageError, match="cannot be loaded"):
        load_judge(str(copy), CPU)


def test_a_hub_judge_without_a_network_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(MissingError, match="hf download nobody/nothing --revision abc") as caught:
        load_judge("hf-hub:nobody/nothing@abc", CPU)
    assert "\n" not in str(caught.value)


# Which judge


@pytest.fixture
def cached(vit: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A Hub cache in which every repository is the tiny DINOv2; holds what was asked of it."""
    asked: dict[str, Any] = {}

    def snapshot(repository: str, **options: Any) -> str:
        asked.update(options, repository=repository)
        return str(vit)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    return asked


def test_auto_beside_the_bundled_scorer_is_the_bundled_judge() -> None:
    judge, note = find_judge("auto", "bundled", CPU)
    assert judge is not None and (judge.name, note) == ("emoji-judge", None)


def test_auto_beside_another_scorer_is_dinov2(cached: dict[str, Any]) -> None:
    judge, note = find_judge("auto", "hf-hub:owner/clip", CPU)
    assert judge is not None and (judge.name, note) == (DINOV2.removeprefix("hf-hub:"), None)
    assert cached["local_files_only"]  # nothing is downloaded silently


def test_auto_without_dinov2_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    judge, note = find_judge("auto", "hf-hub:owner/clip", CPU)
    assert judge is None and note is not None
    assert note.endswith("hf download timm/vit_small_patch14_dinov2.lvd142m") and "\n" not in note


def test_none_is_no_judge() -> None:
    assert find_judge("none", "bundled", CPU) == (None, None)


def test_the_scorer_cannot_be_the_judge(clip: Path) -> None:
    with pytest.raises(UsageError, match="is the scorer itself"):
        find_judge(str(clip), str(clip), CPU)
    judge, _ = find_judge(str(clip), "bundled", CPU)
    assert judge is not None
