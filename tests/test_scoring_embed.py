import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch_fidelity
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch.utils.data import Dataset

from bench.errors import MissingError, UsageError
from bench.scoring import embed
from bench.scoring.distance import fid, kernel_distance
from bench.scoring.embed import (
    CONFIG,
    INCEPTION,
    WEIGHTS,
    Scorer,
    fidelity_extractor,
    inception_features,
    load_scorer,
)
from bench.scoring.measure import Reference, View, evaluate

CPU = torch.device("cpu")
MODEL = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
PREPROCESS = {"mean": [0.4, 0.5, 0.6], "std": [0.3, 0.3, 0.2], "interpolation": "bicubic"}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny scorer with random weights, in open_clip's format."""
    path = tmp_path_factory.mktemp("scorers") / "tiny"
    path.mkdir()
    (path / CONFIG).write_text(json.dumps({"model_cfg": MODEL, "preprocess_cfg": PREPROCESS}))
    torch.manual_seed(0)
    state = open_clip.CLIP(**MODEL).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path / WEIGHTS)
    return path


@pytest.fixture(scope="session")
def tiny(folder: Path) -> Scorer:
    return load_scorer(str(folder), CPU)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A scorer that a test may damage."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def pictures(count: int = 6, height: int = 16, width: int = 16) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 255, (count, height, width, 3), dtype=np.uint8)


def test_features_are_unit_float32(tiny: Scorer) -> None:
    for features in (tiny.embed_images(pictures()), tiny.embed_texts(["a", "b", "c"] * 2)):
        assert (features.dtype, features.shape) == (np.float32, (6, tiny.dim))
        np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-5)


def test_nothing_gives_no_features(tiny: Scorer) -> None:
    assert tiny.embed_images(pictures(0)).shape == tiny.embed_texts([]).shape == (0, 8)


def test_images_are_prepared_as_open_clip_does(tiny: Scorer, folder: Path) -> None:
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    inputs = torch.stack([preprocess(Image.fromarray(image)) for image in pictures()])
    with torch.no_grad():
        oracle = model.eval().encode_image(inputs, normalize=True).numpy()
    np.testing.assert_allclose(tiny.embed_images(pictures()), oracle, atol=1e-5)


def test_texts_are_those_of_open_clip(tiny: Scorer, folder: Path) -> None:
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(["a red apple"])
    with torch.no_grad():
        oracle = tiny.model.encode_text(tokens, normalize=True).numpy()
    np.testing.assert_allclose(tiny.embed_texts(["a red apple"]), oracle, atol=1e-6)


def test_texts_that_are_cut_are_counted(tiny: Scorer) -> None:
    fits, cut = "a " * 14, "a " * 15  # 16 tokens are read, two of them begin and end the text
    assert tiny.count_cut([]) == tiny.count_cut(["", "a", fits]) == 0
    assert tiny.count_cut(["", cut, fits, "a " * 200]) == 2


def test_batches_do_not_matter(tiny: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"picture {index}" for index in range(6)]
    whole = tiny.embed_images(pictures()), tiny.embed_texts(texts)
    monkeypatch.setattr(embed, "BATCH", 4)
    np.testing.assert_allclose(tiny.embed_images(pictures()), whole[0], atol=1e-5)
    np.testing.assert_allclose(tiny.embed_texts(texts), whole[1], atol=1e-5)


def test_the_order_of_images_does_not_matter(tiny: Scorer) -> None:
    backwards = tiny.embed_images(pictures()[::-1])
    np.testing.assert_allclose(backwards[::-1], tiny.embed_images(pictures()), atol=1e-5)


def test_large_images_are_resized_with_antialiasing(tiny: Scorer) -> None:
    images = pictures(3, 128, 128)
    small = np.stack(
        [np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BICUBIC)) for image in images]
    )
    np.testing.assert_allclose(tiny.embed_images(images), tiny.embed_images(small), atol=0.02)


@pytest.mark.parametrize(("height", "width"), [(16, 40), (40, 16)])
def test_edges_of_wide_images_count(tiny: Scorer, height: int, width: int) -> None:
    image = np.full((1, height, width, 3), 200, np.uint8)
    marked = image.copy()
    marked[:, -4:, -4:] = [0, 255, 0]
    assert np.abs(tiny.embed_images(image) - tiny.embed_images(marked)).max() > 1e-4


def test_padding_is_white(tiny: Scorer) -> None:
    image = pictures(1, 8, 16)
    square = np.full((1, 16, 16, 3), 255, np.uint8)
    square[:, 4:12] = image
    np.testing.assert_allclose(tiny.embed_images(image), tiny.embed_images(square), atol=1e-5)


@pytest.mark.parametrize("images", [pictures().astype(np.float32), pictures()[..., :2], pictures()[0]])
def test_other_arrays_are_refused(tiny: Scorer, images: Any) -> None:
    with pytest.raises(ValueError, match="images must be uint8"):
        tiny.embed_images(images)


# Loading


def test_scorer_is_named_and_fingerprinted(tiny: Scorer, copy: Path) -> None:
    other = load_scorer(str(copy), CPU)
    assert (tiny.name, other.name) == ("tiny", "copy")
    assert other.fingerprint == tiny.fingerprint
    (copy / CONFIG).write_text(json.dumps({"model_cfg": MODEL}))
    assert load_scorer(str(copy), CPU).fingerprint != tiny.fingerprint


def test_model_is_frozen_and_in_evaluation_mode(tiny: Scorer) -> None:
    assert not tiny.model.training
    assert not any(parameter.requires_grad for parameter in tiny.model.parameters())


def test_a_missing_folder_says_what_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=rf"no {CONFIG} in .*nowhere; put .*{WEIGHTS}"):
        load_scorer(str(tmp_path / "nowhere"), CPU)


def test_pickled_weights_are_refused(copy: Path) -> None:
    (copy / WEIGHTS).rename(copy / "open_clip_pytorch_model.bin")
    with pytest.raises(MissingError, match="safetensors only"):
        load_scorer(str(copy), CPU)


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS])
def test_damaged_files_are_named_in_one_line(copy: Path, file: str) -> None:
    (copy / file).write_bytes((copy / file).read_bytes()[:100])
    with pytest.raises(UsageError, match="cannot be loaded from") as caught:
        load_scorer(str(copy), CPU)
    assert "\n" not in str(caught.value)


def test_weights_of_another_model_are_refused(copy: Path) -> None:
    save_file({"logit_scale": torch.tensor(1.0)}, copy / WEIGHTS)
    with pytest.raises(UsageError, match="cannot be loaded"):
        load_scorer(str(copy), CPU)


def test_a_config_that_would_run_code_is_refused(copy: Path) -> None:
    text = {**MODEL["text_cfg"], "tokenizer_kwargs": {"trust_remote_code": True}}  # type: ignore[dict-item]
    (copy / CONFIG).write_text(json.dumps({"model_cfg": {**MODEL, "text_cfg": text}}))
    with pytest.raises(UsageError, match="must not run code"):
        load_scorer(str(copy), CPU)


def test_a_hub_scorer_without_a_network_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(MissingError, match="hf download nobody/no-such-scorer"):
        load_scorer("hf-hub:nobody/no-such-scorer", CPU)


def test_a_hub_scorer_is_loaded_from_its_snapshot(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def snapshot(repository: str, **options: Any) -> str:
        asked.update(options, repository=repository)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert load_scorer("hf-hub:owner/name@abc", CPU).name == "owner/name@abc"
    assert (asked["repository"], asked["revision"]) == ("owner/name", "abc")
    assert asked["local_files_only"]  # nothing is downloaded silently


# The bundled scorer


@pytest.fixture(scope="session")
def scorer() -> Scorer:
    return load_scorer("bundled", CPU)


def test_texts_that_the_bundled_scorer_cuts_are_counted(scorer: Scorer) -> None:
    words = ["red apple", "red " * 30, "red " * 31]
    assert [scorer.count_cut([text]) for text in words] == [0, 0, 1]
    assert scorer.count_cut(words) == 1


def test_bundled_scorer_tells_pictures_apart_by_their_text(scorer: Scorer) -> None:
    grey = np.mgrid[-1:1:64j, -1:1:64j]
    disc = np.hypot(*grey)[..., None] < 0.7
    images = [np.where(disc, colour, 255).astype(np.uint8) for colour in ([220, 30, 30], [30, 60, 220])]
    cosines = scorer.embed_images(np.stack(images)) @ scorer.embed_texts(["red circle", "blue circle"]).T
    assert scorer.name == "emoji-clip"
    assert cosines.argmax(axis=1).tolist() == [0, 1]


# torch-fidelity


class Pictures(Dataset[torch.Tensor]):
    """What torch-fidelity reads: uint8 tensors, channels first."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index]


def test_torch_fidelity_measures_with_our_features(tiny: Scorer) -> None:
    images = pictures(24), pictures(48)[24:] // 2
    options = {
        "fid": True,
        "kid": True,
        "kid_subset_size": 24,
        "kid_subsets": 1,
        # Its gamma is 1 / dim of features as they are; ours is 1 on unit features (see distance.kernel).
        "kid_kernel_poly_gamma": 1.0,
        "feature_extractor": fidelity_extractor(tiny),
        "cuda": False,
        "save_cpu_ram": True,
        "cache": False,
        "verbose": False,
    }
    assert set(options) <= set(torch_fidelity.defaults.DEFAULTS)  # it ignores keys that it does not know
    values = torch_fidelity.calculate_metrics(
        input1=Pictures(images[0]), input2=Pictures(images[1]), **options
    )
    x, y = (tiny.embed_images(side) for side in images)
    assert values["frechet_inception_distance"] == pytest.approx(fid(x, y), abs=1e-5)
    ours = kernel_distance(x, y, np.arange(24), np.arange(24, 48))
    assert 1000 * values["kernel_inception_distance_mean"] == pytest.approx(ours, abs=0.01)
    assert fidelity_extractor(tiny) == options["feature_extractor"]


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    yield tmp_path / "checkpoints"
    embed._inception.cache_clear()


def test_without_inception_weights_there_are_no_features(checkpoints: Path) -> None:
    assert inception_features(pictures()) is None


@pytest.fixture
def inception_weights(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights under the name of the real ones."""
    from torch_fidelity import feature_extractor_inceptionv3 as inception

    with monkeypatch.context() as patch:
        patch.setattr(inception, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(inception.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        model = inception.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    file = checkpoints / INCEPTION
    torch.save(model.state_dict(), file)
    monkeypatch.setattr(embed, "INCEPTION_SHA256", hashlib.sha256(file.read_bytes()).hexdigest())


@pytest.mark.usefixtures("inception_weights")
def test_inception_weights_on_disk_are_used() -> None:
    features = inception_features(pictures(2))
    assert features is not None and features.shape == (2, 2048) and np.isfinite(features).all()


@pytest.mark.usefixtures("inception_weights")
def test_inception_scores_join_the_others_under_their_own_extractor(tiny: Scorer) -> None:
    images, real = pictures(6), pictures(4)[::-1]
    unit = tiny.embed_images(images)
    reference = Reference(
        text_features=unit[::2],
        num_seeds=2,
        scorer=View(extractor="tiny", true=None, real=tiny.embed_images(real), train=None),
        judge=None,
        base=None,
        inception_real=inception_features(real),
        inception_base=inception_features(images),
    )
    scores = evaluate(images, reference, tiny).scores
    features, others = inception_features(images), reference.inception_real
    assert features is not None and others is not None
    assert scores["fid_inception"].extractor == "inception-v3"
    assert scores["fid_inception"].value == pytest.approx(fid(features, others), abs=1e-3)
    assert scores["drift_inception"].value == pytest.approx(0, abs=1e-6)
    assert scores["fid"].extractor == "tiny"


@pytest.mark.parametrize("content", [b"", b"not weights"])
def test_damaged_inception_weights_are_refused(checkpoints: Path, content: bytes) -> None:
    (checkpoints / INCEPTION).write_bytes(content)
    with pytest.raises(UsageError, match="not the Inception weights"):
        inception_features(pictures(2))


def test_inception_weights_that_run_code_are_refused_unread(checkpoints: Path, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"weights": Payload()}, checkpoints / INCEPTION)
    with pytest.raises(UsageError, match="not the Inception weights"):
        inception_features(pictures(2))
    assert not (tmp_path / "ran").exists()
