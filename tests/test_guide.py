"""The training guide step by step, as someone types it, with the bundled base in place of SDXL."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from bench.sources import BUNDLED

ROOT = Path(__file__).parent.parent
EMOJI = Path(str(files("bench") / BUNDLED["emoji-xl"]))
PICTURES = Path(str(files("bench"))) / "builtin" / "emoji" / "pixel16" / "train"
NUM_PICTURES, NUM_STEPS = 12, 24
"""12 pictures in batches of 4, 8 epochs."""
CONFIG = f"""
model_name: "emoji-xl"
vae_name: "{EMOJI}"
dataset_name: "pictures"
caption_column: "text"
image_column: "image"

lora_rank: 8
lora_alpha: 16
lora_dropout: 0.1
lora_target_modules:
  - "to_q"
  - "to_k"
  - "to_v"
  - "to_out.0"

learning_rate: 4e-3
num_train_epochs: 8
train_batch_size: 2
gradient_accumulation_steps: 2
mixed_precision: "no"

output_dir: "outputs"
save_steps: 4
save_total_limit: 2
"""
SPACE: dict[str, Any] = {
    "base": "emoji-xl",
    "data": "pictures",
    "parameters": {"rank": {"choices": [4, 8]}},
    "default": {"rank": 4, "alpha": 8, "learning_rate": 1e-3, "epochs": 2, "batch_size": 4},
    "prompts": {"dev": 2, "test": 2, "seeds": 2, "training": 0, "altered": 0, "style": 0, "unrelated": 0},
    "sampler": {"steps": 2, "guidance": 2},
    "confirm": {"finalists": 1, "seeds": 1},
    "floor": 0,
    "trials": 1,
    "weights": [1],
}


def started(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """`python -m bench …` in that folder."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "BENCH_CACHE": str(folder / "cache"),
        "COLUMNS": "200",
    }
    command = [sys.executable, "-m", "bench", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, **pipes)  # type: ignore[call-overload, no-any-return]


def bench(folder: Path, *arguments: str) -> str:
    """What the command said; it has to succeed."""
    process = started(folder, *arguments)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    return output


def captioned_pictures(folder: Path) -> None:
    """Pictures with a .txt beside each, as captioning tools leave them."""
    folder.mkdir()
    rows = map(json.loads, (PICTURES / "metadata.jsonl").read_text(encoding="utf-8").splitlines())
    for row in list(rows)[:NUM_PICTURES]:
        copy = Path(shutil.copy(PICTURES / row["file_name"], folder))
        copy.with_suffix(".txt").write_text(row["text"].replace(", pixel art style", ""), encoding="utf-8")


def trained_until_killed(folder: Path) -> None:
    """SIGKILL as soon as there is a checkpoint."""
    training = started(folder, "train", "--config", "training_config.yaml")
    while not (folder / "outputs" / "checkpoint-4").exists():
        assert training.poll() is None, training.communicate()[1]
        time.sleep(0.01)
    training.send_signal(signal.SIGKILL)
    training.communicate()
    assert training.returncode == -signal.SIGKILL
    assert not (folder / "outputs" / "pytorch_lora_weights.safetensors").exists()


def drawn_in_diffusers(*adapters: Path) -> list[NDArray[np.float32]]:
    """An image of the plain pipeline, then one through each adapter."""
    import torch
    from diffusers import StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline.from_pretrained(EMOJI, add_watermarker=False, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)

    def drawn() -> NDArray[np.float32]:
        generator = torch.Generator().manual_seed(0)
        asked = {"num_inference_steps": 3, "height": 64, "width": 64, "output_type": "np"}
        image: NDArray[np.float32] = pipeline("bird, in ohwx style", generator=generator, **asked).images[0]
        return image

    images = [drawn()]
    for adapter in adapters:
        pipeline.load_lora_weights(adapter.parent, weight_name=adapter.name)
        images.append(drawn())
        pipeline.unload_lora_weights()
    return images


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL")
def test_the_guide_step_by_step(tmp_path: Path) -> None:
    captioned_pictures(tmp_path / "pictures")
    (tmp_path / "training_config.yaml").write_text(CONFIG)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(SPACE))

    # Prepare
    template = ["--trigger", "ohwx", "--template", "{caption}, in {trigger} style"]
    said = bench(tmp_path, "data", "caption", "pictures", *template)
    rows = (tmp_path / "pictures" / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    captions = [json.loads(row)["text"] for row in rows]
    assert f"{NUM_PICTURES} captions in all" in said and len(captions) == NUM_PICTURES
    assert all(caption.endswith(", in ohwx style") for caption in captions)

    # Check
    checked = json.loads(bench(tmp_path, "data", "check", "pictures", "--json"))
    assert checked["usable"] and len(checked["pictures"]) == NUM_PICTURES
    assert (tmp_path / "runs" / "check-pictures.html").exists()

    # Search
    bench(tmp_path, "search", "--space", "mine.yaml")
    run = tmp_path / "runs" / "mine"
    assert "ohwx" in (run / "report.html").read_text(encoding="utf-8")

    # Train, and resume after a kill
    trained_until_killed(tmp_path)
    said = bench(tmp_path, "train", "--config", "training_config.yaml")
    assert "Going on from outputs/checkpoint-" in said and "Learned: loss of 8 training pictures" in said
    outputs = tmp_path / "outputs"
    kept = sorted(path.name for path in outputs.glob("checkpoint-*"))
    assert kept == ["checkpoint-20", f"checkpoint-{NUM_STEPS}"]
    assert len((outputs / "losses.csv").read_text().splitlines()) == 1 + NUM_STEPS

    # Evaluate
    scored = json.loads(bench(tmp_path, "score", "outputs/", "--space", "mine.yaml", "--json"))
    (training,) = scored["trainings"]
    found = [(entry["checkpoint"], entry["weight"]) for entry in training["scored"]]
    assert found == [("step 20", 1.0), (f"step {NUM_STEPS}", 1.0)]
    assert scored["comparison"]["pairs"][0]["b"] == "base"
    assert (tmp_path / scored["report"]).exists()

    # Export
    said = bench(tmp_path, "export", "mine")
    export = run / "export"
    assert "Exported the winner: runs/mine/export" in said
    again = yaml.safe_load((export / "training_config.yaml").read_text(encoding="utf-8"))
    assert (again["model_name"], again["dataset_name"]) == ("emoji-xl", "pictures")

    # Load in plain diffusers
    name = "pytorch_lora_weights.safetensors"
    plain, *adapted = drawn_in_diffusers(outputs / name, export / name, export / "mine.safetensors")
    assert all(np.isfinite(image).all() and np.abs(image - plain).max() > 0.01 for image in adapted)
    assert np.abs(adapted[1] - adapted[2]).max() < 0.01
