"""What the public way does after a training: draw with the pipeline, then FID by torch-fidelity.

Started by against_script.py in a process of its own, with a file that says what to draw.
"""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionXLPipeline


def main(task: Mapping[str, Any]) -> None:
    pipe = load_pipeline(task)
    started = time.monotonic()
    draw(pipe, task)
    drawn = time.monotonic()
    fid = measure(task) if task["adapter"] else None
    answer = {"drawing": drawn - started, "scoring": time.monotonic() - drawn, "fid": fid}
    Path(task["answer"]).write_text(json.dumps(answer))


def load_pipeline(task: Mapping[str, Any]) -> Any:
    pipe = StableDiffusionXLPipeline.from_pretrained(
        task["base"], dtype=getattr(torch, task["dtype"]), use_safetensors=True, add_watermarker=False
    )
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    if task["adapter"]:
        file = Path(task["adapter"])
        pipe.load_lora_weights(file.parent, weight_name=file.name)
    return pipe


def draw(pipe: Any, task: Mapping[str, Any]) -> None:
    """Write a PNG file an image; initial noise is drawn on the CPU, as bench does."""
    prompts, size = task["prompts"], task["prompts_per_call"]
    for start in range(0, len(prompts), size):
        texts, seeds = zip(*prompts[start : start + size], strict=True)
        images = pipe(
            list(texts),
            num_inference_steps=task["sampler_steps"],
            guidance_scale=task["guidance"],
            height=task["resolution"],
            width=task["resolution"],
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        ).images
        for number, image in enumerate(images, start):
            image.save(Path(task["images"]) / f"{number:04d}.png")


def measure(task: Mapping[str, Any]) -> float:
    """FID between the images and the base's; the features of the base's are kept for the next process."""
    from torch_fidelity import calculate_metrics

    from bench.base import find_device
    from bench.scoring.embed import fidelity_extractor, load_scorer

    result = calculate_metrics(
        input1=task["images"],
        input2=task["base_images"],
        input2_cache_name="base",
        cache_root=task["fidelity"],
        cuda=torch.cuda.is_available(),
        fid=True,
        feature_extractor=fidelity_extractor(load_scorer("bundled", find_device())),
        verbose=False,
    )
    return float(result["frechet_inception_distance"])


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
