"""Tiny pipelines of each family with random weights, as diffusers' folders, and data to train them on."""

import io
import json
import string
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from latents import random_latents
from rich.console import Console
from small_space import SMALL

from bench.base import BaseModel, TrainingData, find_device, load_base
from bench.packs import Trainer
from bench.run import Run
from bench.session import Command, Engine, run_search
from bench.space import load_space
from trainers.adapters import attach
from trainers.loop import train

SPACE: dict[str, Any] = {
    **SMALL,
    "name": "small",
    "prompts": SMALL["prompts"] | {"training": 1},
    "floor": 2,
    "prune": {"fraction": 0},
    "trials": 4,
    "slots": 2,
}
MakeCommand = Callable[..., Command]


@pytest.fixture(scope="session")
def make_command(tiny_sdxl: Path) -> MakeCommand:
    """`make_command(folder, trainer, **fields)`: a search in a folder, of SPACE changed so."""

    def make(folder: Path, trainer: Trainer = train, **fields: Any) -> Command:
        file = folder / "small.yaml"
        file.write_text(yaml.safe_dump({**SPACE, "base": str(tiny_sdxl), **fields}))
        return Command(
            space=load_space(str(file)),
            name=None,
            folder=folder / "runs",
            seed=0,
            engine=Engine(train=trainer, attach=attach),
            console=Console(file=io.StringIO(), width=200),
        )

    return make


@dataclass(frozen=True, kw_only=True, slots=True)
class Searched:
    """A search that has ended."""

    run: Run
    said: str
    states: int
    """Bytes of what its trials would have gone on from, at most."""
    cache: Path


@pytest.fixture(scope="session")
def searched(tmp_path_factory: pytest.TempPathFactory, make_command: MakeCommand) -> Searched:
    """Made once: a test that changes the run folder works on a copy."""
    folder, most = tmp_path_factory.mktemp("searched"), 0

    def watched(*arguments: Any) -> Iterator[Any]:
        nonlocal most
        for rung in train(*arguments):
            yield rung
            states = (file.stat().st_blocks * 512 for file in folder.rglob("begun.safetensors"))
            most = max(most, sum(states))

    command = make_command(folder, watched)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_CACHE", str(folder / "cache"))
        run = run_search(command)
    said = command.console.file.getvalue()  # type: ignore[attr-defined]
    return Searched(run=run, said=said, states=most, cache=folder / "cache")


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `write_tiny_sdxl`."""
    return write_tiny_sdxl(tmp_path_factory.mktemp("tiny-sdxl"))


def write_tiny_sdxl(folder: Path) -> Path:
    """Folder of a pipeline of 32 pixels whose UNet has all kinds of modules that a preset names."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    text = _text_config()
    unet = UNet2DConditionModel(
        **UNET,
        cross_attention_dim=32,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16 + 6 * 8,
    )
    pipeline = StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(text),
        text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer=_tokenizer(folder / "words"),
        tokenizer_2=_tokenizer(folder / "words"),
        unet=unet,
        scheduler=EulerDiscreteScheduler(**NOISE),
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder / "pipeline")
    return folder / "pipeline"


@pytest.fixture(scope="session")
def tiny_sd1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Likewise of SD 1.x: blocks project with convolutions, and the UNet predicts the noise."""
    from diffusers import PNDMScheduler

    folder = tmp_path_factory.mktemp("tiny-sd1")
    return _tiny_sd(folder, PNDMScheduler(**NOISE, skip_prk_steps=True), attention_head_dim=2)


@pytest.fixture(scope="session")
def tiny_sd2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Likewise of SD 2.x: blocks project with linears, and the UNet predicts the velocity."""
    from diffusers import DDIMScheduler

    folder = tmp_path_factory.mktemp("tiny-sd2")
    scheduler = DDIMScheduler(**NOISE, clip_sample=False, prediction_type="v_prediction")
    return _tiny_sd(folder, scheduler, attention_head_dim=(2, 4), use_linear_projection=True)


UNET = {
    "sample_size": 16,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 8,
}


NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def _tiny_sd(folder: Path, scheduler: Any, **unet: Any) -> Path:
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

    torch.manual_seed(0)
    pipeline = StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_text_config()),
        tokenizer=_tokenizer(folder / "words"),
        unet=UNet2DConditionModel(**UNET, cross_attention_dim=16, **unet),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder / "pipeline")
    return folder / "pipeline"


def _text_config() -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=60,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def _vae() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        norm_num_groups=8,
        latent_channels=4,
        sample_size=32,
        force_upcast=False,
    )


def _tokenizer(folder: Path) -> object:
    from transformers import CLIPTokenizer

    letters = [letter + end for end in ("", "</w>") for letter in string.ascii_lowercase + ","]
    vocabulary = {token: number for number, token in enumerate(["<start>", "<end>", *letters])}
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = {"bos_token": "<start>", "eos_token": "<end>", "unk_token": "<end>", "pad_token": "<end>"}
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16, **special
    )


@pytest.fixture(scope="session")
def base(tiny_sdxl: Path) -> BaseModel:
    """On the GPU where there is one: packs, graphs and kernels are held to plain PEFT there too.

    Else without lanes, however many cores there are.
    """
    torch.backends.cudnn.allow_tf32 = False
    base = _loaded(tiny_sdxl, find_device(), num_threads=1)
    base.twins.clear()
    return base


@pytest.fixture(scope="session")
def wide(tiny_sdxl: Path) -> BaseModel:
    """With two lanes, however many cores there are."""
    if find_device().type == "cuda":
        pytest.skip("a GPU has no lanes")
    return _loaded(tiny_sdxl, torch.device("cpu"), num_threads=2)


def _loaded(folder: Path, device: torch.device, num_threads: int) -> BaseModel:
    with threads(num_threads):
        return load_base(str(folder), device)


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Of torch, for one operation."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Of whoever draws without lanes: two sum in another order on some processors."""
    with threads(1):
        yield


@pytest.fixture
def two_cores() -> Iterator[None]:
    """Two lanes of whoever loads a base, however many cores there are."""
    with threads(2):
        yield


@pytest.fixture(scope="session")
def data(base: BaseModel) -> TrainingData:
    """Ten images' worth of latents with captions."""
    return random_latents(base)


@pytest.fixture(scope="session", params=["tiny_sd1", "tiny_sd2"])
def sd_folder(request: pytest.FixtureRequest) -> Path:
    """Each of the tiny SDs."""
    folder: Path = request.getfixturevalue(request.param)
    return folder


@pytest.fixture(scope="session")
def sd(sd_folder: Path) -> BaseModel:
    return load_base(str(sd_folder), torch.device("cpu"))


@pytest.fixture(scope="session")
def sd_data(sd: BaseModel) -> TrainingData:
    return random_latents(sd)
