"""Adapters that are broken on purpose: does `bench compare` notice, and what does it say?

    python tests/validation/faults.py

Trains on twelve pictures of emoji/pixel16 (some minutes on two CPU cores) and prints one row an adapter:
its gains over the base with standard errors, memorisation alarms, and the verdict against a sound adapter.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from bench.base import BaseModel, TrainingData
from bench.cli import command_of
from bench.comparison import adapter_side, compare_sides
from bench.config import TrialConfig
from bench.dataset import load_dataset
from bench.encoding import encode
from bench.errors import BenchError
from bench.run import adapter_label, file_digests
from bench.scoring.memorization import alarms
from bench.session import open_session, run_adapters
from trainers.loop import train

COMMAND = command_of(str(Path(__file__).with_name("faults.yaml")), {}, None, 0, Console(quiet=True))
NUM_PICTURES = 12
SHOWN = ("similarity", "judge_similarity", "clip_score", "diversity", "kd")
SOUND = TrialConfig(
    rank=16, alpha=32, learning_rate=1e-3, epochs=40, target_modules="all", batch_size=4, seed=1
)


def main() -> None:
    few_pictures(Path("few"))
    folder = Path("adapters")
    folder.mkdir(exist_ok=True)
    with open_session(COMMAND, "faults") as session:
        data = encode(session.loaded.base, session.loaded.dataset.train)
        make_adapters(session.loaded.base, data, folder)
    for file in sorted(folder.glob("*.safetensors")):
        try:
            print(row(file, folder / "1-sound.safetensors"), flush=True)
        except BenchError as error:
            print(f"{file.stem:18} refused: {error}", flush=True)


def few_pictures(folder: Path) -> None:
    """The bundled data with its first pictures only to train on."""
    source = Path(str(files("bench"))) / "builtin" / "emoji" / "pixel16"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    metadata = folder / "train" / "metadata.jsonl"
    lines = metadata.read_text(encoding="utf-8").splitlines()
    metadata.write_text("\n".join(lines[:NUM_PICTURES]) + "\n", encoding="utf-8")
    for extra in sorted((folder / "train").glob("*.png"))[NUM_PICTURES:]:
        extra.unlink()


def make_adapters(base: BaseModel, data: TrainingData, folder: Path) -> None:
    (all_pictures,) = data.buckets
    first = torch.zeros(len(data), dtype=torch.long)
    one = replace(data, buckets=(replace(all_pictures[first], text=all_pictures.text),))
    trained: dict[str, tuple[TrainingData, TrialConfig]] = {
        "1-sound": (data, SOUND),
        "2-over-trained": (data, SOUND.model_copy(update={"epochs": 400, "learning_rate": 2e-3})),
        "3-collapsed": (one, SOUND.model_copy(update={"epochs": 60})),
        "4-learned-nothing": (data, SOUND.model_copy(update={"learning_rate": 1e-6, "epochs": 1})),
    }
    for name, (pictures, config) in trained.items():
        file = folder / f"{name}.safetensors"
        if not file.exists():
            for rung in train(base, pictures, iter([config]), [config.epochs], 1):
                rung.save_adapter(0, file)
    sound = folder / "1-sound.safetensors"
    generator = torch.Generator().manual_seed(0)
    changed(sound, folder / "5-noisy.safetensors", lambda t: t + 4 * t.std() * noise(t, generator))
    changed(sound, folder / "6-nan-latents.safetensors", lambda tensor: tensor * 1e18)
    changed(sound, folder / "7-nan-weights.safetensors", lambda tensor: tensor * float("nan"))
    changed(sound, folder / "8-changes-nothing.safetensors", lambda tensor: tensor * 0)
    changed(sound, folder / "9-wrong-prefix.safetensors", lambda tensor: tensor, ("unet.", "lora_unet."))


def noise(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(tensor.shape, generator=generator)


def changed(
    source: Path,
    target: Path,
    change: Callable[[torch.Tensor], torch.Tensor],
    rename: tuple[str, str] = ("", ""),
) -> None:
    """A copy with every B changed; without metadata, so alpha is folded into B."""
    tensors = {}
    for key, tensor in load_file(source).items():
        scaled = tensor * SOUND.scale if "lora_B" in key else tensor
        tensors[key.replace(*rename)] = (change(scaled) if "lora_B" in key else scaled).contiguous()
    save_file(tensors, target)


def row(file: Path, sound: Path) -> str:
    digests = file_digests([file] if file == sound else [file, sound])
    run = run_adapters(COMMAND, digests)
    side = adapter_side(run, adapter_label(digests[file]))
    gains = ", ".join(
        f"{name} {side.scores[name].gain:+.3f} ± {side.scores[name].gain_stderr:.3f}" for name in SHOWN
    )
    text = f"{file.stem:18} {gains}; drift {side.scores['drift'].value:.3f}"
    for name in ("nearest", "copies", "c_t", "loss_gap"):
        score = side.scores[name]
        text += f"; {name} {score.value:.3f} ± {score.stderr:.3f}"
    if file != sound:
        comparison = compare_sides(side, adapter_side(run, adapter_label(digests[sound])), "similarity")
        text += f"; against sound: {comparison.verdict} ({comparison.reason})"
    return text + f"; alarms: {alarms(side.scores, len(load_dataset('./few').test)) or 'none'}"


if __name__ == "__main__":
    main()
