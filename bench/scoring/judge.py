"""Judge: a second network that turns images into features, which confirms what the scorer chose.

The only module that imports timm. Weights are read from safetensors and nothing else: timm itself would fall
back to pickled checkpoints.
"""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from bench.errors import MissingError, UsageError
from bench.scoring import embed
from bench.scoring.embed import HUB, FeatureNetwork

BUNDLED = "emoji-judge"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
DINOV2 = "hf-hub:timm/vit_small_patch14_dinov2.lvd142m"
"""DINOv2 ViT-S/14, distilled (Oquab et al. 2023, arXiv:2304.07193): learned from pictures alone."""
PATCH_14_SIZE = 224
NEEDED = f"{CONFIG} and {WEIGHTS}, or {embed.CONFIG} and {embed.WEIGHTS}"


def find_judge(
    setting: str, scorer_setting: str, device: torch.device
) -> tuple[FeatureNetwork | None, str | None]:
    """The judge that a space's field `judge` asks for, or None and a line that says why there is none.

    `auto` is the bundled judge beside the bundled scorer, else DINOv2 if it is on this machine. `none` is no
    judge. Anything else is for `load_judge`, whose errors it raises; UsageError also for the scorer itself.
    """
    if setting == "none":
        return None, None
    if setting != "auto":
        judge = load_judge(setting, device)
        if judge.fingerprint == embed.scorer_fingerprint(scorer_setting):
            raise UsageError(f"judge {setting}: is the scorer itself; a judge must be another network")
        return judge, None
    if scorer_setting == "bundled":
        return load_judge("bundled", device), None
    try:
        return load_judge(DINOV2, device), None
    except MissingError:
        repository = DINOV2.removeprefix(HUB)
        return None, f"no judge: {repository} is not on this machine; get it with: hf download {repository}"


def load_judge(name: str, device: torch.device) -> FeatureNetwork:
    """`bundled`, a folder in timm's or open_clip's format, or `hf-hub:owner/name`, optionally `@revision`.

    Of a folder that holds open_clip's configuration the image tower is used. A vision transformer with
    patches of 14 pixels reads 224 pixels here, though DINOv2's own size is 518: a fifth of the patches, and
    so affordable for many images. Other networks read the size of their configuration; its cropping is not
    followed, so that nothing of an image is lost. Downloads nothing. Raises MissingError when the files are
    not here, UsageError when they do not fit.
    """
    what = f"judge {name}"
    folder = _folder(name, what)
    title = embed.network_name(name, BUNDLED)
    if (folder / embed.CONFIG).is_file():
        return embed.load_tower(folder, title, device, what)
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise MissingError(f"{what}: no {file} in {folder}; put {NEEDED} (safetensors only) there")
    with embed.one_line_error(what, folder):
        return _load(folder, title, device)


def _folder(name: str, what: str) -> Path:
    if name == "bundled":
        return Path(str(files("bench"))) / "builtin" / "judge"
    return embed.hub_folder(name, what, NEEDED) if name.startswith(HUB) else Path(name)


def _load(folder: Path, name: str, device: torch.device) -> FeatureNetwork:
    import timm
    from timm.data import resolve_model_data_config

    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    # With the classes that it was saved with, timm insists on every weight; the classifier goes afterwards.
    size = _smaller(config)
    model = timm.create_model(
        f"local-dir:{folder}", pretrained=True, num_classes=config.get("num_classes"), **size
    )
    model.reset_classifier(0)
    model = model.to(device).eval().requires_grad_(False)
    preprocess = resolve_model_data_config(model, args=size)
    _, height, width = preprocess["input_size"]
    return FeatureNetwork(
        name=name,
        fingerprint=embed.fingerprint_of(folder, CONFIG, WEIGHTS),
        dim=_dim(model, height, width, device),
        size=(height, width),
        mean=embed.channels(preprocess["mean"], device),
        std=embed.channels(preprocess["std"], device),
        forward=model,
    )


def _smaller(config: dict[str, Any]) -> dict[str, int]:
    """What makes a large vision transformer affordable; timm resamples its position embeddings."""
    patch_14 = config["architecture"].startswith("vit_") and "patch14" in config["architecture"]
    return {"img_size": PATCH_14_SIZE} if patch_14 else {}


def _dim(model: torch.nn.Module, height: int, width: int, device: torch.device) -> int:
    with torch.inference_mode():
        features = model(torch.zeros(1, 3, height, width, device=device))
    if features.ndim != 2:
        raise ValueError(f"gives features of shape {tuple(features.shape[1:])} an image, not a vector")
    return int(features.shape[1])
