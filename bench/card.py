"""The model card of an exported adapter: README.md as the Hub shows it, with its images."""

import html
import math
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import yaml

import bench
from bench.comparison import base_side, candidate_side, compare_sides
from bench.config import TrainingConfig
from bench.errors import BenchError
from bench.exported import DIFFUSERS_FILE, PLACEHOLDER, Exported, shared_name
from bench.files import write_text
from bench.run import image_files
from bench.scoring.metrics import METRICS, Score, title
from bench.sources import BUNDLED

NUM_PROMPTS = 6
"""Prompts whose images are shown."""
TAGS = ("lora", "text-to-image", "diffusers", "template:sd-lora")
FLOOR = (
    "The noise floor is the difference from the base that the luck of training alone exceeds in 5 % of "
    "cases, for the default configuration"
)
MARKUP = re.compile(r"[\\`*_\[\]|]")
COMMENT = "# license: yours to choose; see what the base and your pictures allow\n"


class Shown(NamedTuple):
    """A prompt, with the files of the base's image and of the adapter's."""

    text: str
    base: str
    adapter: str


def write_card(exported: Exported, folder: Path) -> None:
    """README.md, and images/ beside it."""
    shown = _copied_images(exported, folder)
    base = exported.run.metadata.base
    parts = [
        _front_matter(base, exported.run.space.trigger, shown),
        f"# {exported.run.metadata.name}\n",
        _about(exported),
        _images(shown),
        _use(base, exported.kohya_file, folder, exported.config.dora),
        _scores(exported),
        _training(exported.training_config, " (their fingerprints are in the metadata of\nthe files)"),
    ]
    write_text(folder / "README.md", "\n".join(parts))


def write_training_card(
    config: TrainingConfig, name: str, num_images: int, drawn: list[Path], folder: Path
) -> None:
    """README.md of one training, beside its file; `config` as others may see it, `drawn` of its prompts."""
    shown = []
    for text, image in zip(config.sample_prompts, drawn, strict=False):
        (folder / "images").mkdir(exist_ok=True)
        shutil.copyfile(image, folder / "images" / image.name)
        shown.append(Shown(text, "", f"images/{image.name}"))
    parts = [
        _front_matter(config.model_name, config.trigger, shown),
        f"# {name}\n",
        f"A LoRA of rank {config.rank} for `{config.model_name}`, trained on {num_images} images of "
        f"`{config.dataset_name}` by bench {bench.__version__}. It has not been scored.\n",
        _call(config.trigger),
        _use(config.model_name, "", folder, config.dora),
        _training(config),
    ]
    write_text(folder / "README.md", "\n".join(parts))


def _copied_images(exported: Exported, folder: Path) -> list[Shown]:
    """Of the first seed of each prompt."""
    prompts = exported.run.metadata.prompts[exported.split]
    base, mine = image_files(exported.run.base_folder(exported.split)), image_files(exported.images)
    (folder / "images").mkdir(parents=True)
    shown, place = [], 0
    for number, prompt in enumerate(prompts[:NUM_PROMPTS], start=1):
        if place >= min(len(base), len(mine)):
            break
        of_base, of_adapter = f"images/{number:02d}-base.webp", f"images/{number:02d}-adapter.webp"
        shutil.copyfile(base[place], folder / of_base)
        shutil.copyfile(mine[place], folder / of_adapter)
        shown.append(Shown(prompt.text, of_base, of_adapter))
        place += len(prompt.seeds)
    return shown


def _front_matter(base: str, trigger: str | None, shown: list[Shown]) -> str:
    data: dict[str, object] = {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": list(TAGS),
    }
    if _is_on_hub(base):
        data["base_model"] = base
    if trigger:
        data["instance_prompt"] = trigger
    if shown:
        data["widget"] = [{"text": each.text, "output": {"url": each.adapter}} for each in shown]
    return f"---\n{yaml.safe_dump(data, sort_keys=False, allow_unicode=True)}{COMMENT}---\n"


def _is_on_hub(base: str) -> bool:
    is_path = base in BUNDLED or base.startswith((".", "~")) or Path(base).exists()
    return not is_path and base.count("/") == 1


def _about(exported: Exported) -> str:
    run, config = exported.run, exported.config
    lines = [
        f"A LoRA of rank {config.rank} for `{shared_name(run.metadata.base)}`, trained on "
        f"{run.metadata.num_images['train']} images of `{shared_name(run.metadata.data)}`. "
        f"Found, trained and scored by bench {bench.__version__}: {exported.name} of a search.",
        "",
        _call(run.space.trigger),
    ]
    return "\n".join(lines)


def _call(trigger: str | None) -> str:
    return f"Put `{trigger}` into the prompt.\n" if trigger else ""


def _images(shown: list[Shown]) -> str:
    if not shown:
        return ""
    rows = [f"| {_text(each.text)} | ![base]({each.base}) | ![adapter]({each.adapter}) |" for each in shown]
    lines = ["| prompt | base | with the adapter |", "|---|---|---|", *rows, ""]
    note = "The first prompts and their first seeds, not selected; both from the same noise.\n"
    return "\n".join([*lines, note])


def _use(base: str, kohya_file: str, folder: Path, dora: bool) -> str:
    lost = "; diffusers would leave the magnitudes of DoRA out of it" if dora else ""
    layouts = {
        DIFFUSERS_FILE: "in diffusers' layout",
        kohya_file: f"in kohya's layout, for ComfyUI, Forge, InvokeAI and others{lost}",
    }
    files = {name: layout for name, layout in layouts.items() if (folder / name).is_file()}
    listed = "\n".join(f"- `{name}`: {layout}" for name, layout in files.items())
    if dora and DIFFUSERS_FILE not in files:
        return f"## Use\n\n{listed}\n"
    return f"""## Use

```python
from diffusers import AutoPipelineForText2Image

pipe = AutoPipelineForText2Image.from_pretrained({shared_name(base)!r})
pipe.load_lora_weights("{PLACEHOLDER}", weight_name={next(iter(files))!r})
```

{listed}
"""


# Scores


def _scores(exported: Exported) -> str:
    run, scores = exported.run, exported.scores
    count = scores[run.space.select_by].num_prompts
    where = f"{count} {exported.split} prompts"
    lines = [f"## Scores\n\n{_evidence(exported, where)}\n"]
    lines += ["| metric | score | over the base | noise floor |", "|---|---|---|---|"]
    floor = run.floor()
    for name in (name for name in METRICS if name in scores):
        smallest = floor.smallest(name, exported.num_trainings, math.inf) if floor else None
        lines.append(_row(name, scores[name], smallest))
    seeds = ", and training seeds" if exported.num_trainings > 1 else ""
    measured = "." if floor else "; none was measured."
    lines += ["", f"± is one standard error over prompts{seeds}. {FLOOR}{measured}"]
    return "\n".join([*lines, ""])


def _row(name: str, score: Score, smallest: float | None) -> str:
    gain = "" if score.gain is None else f"{score.gain:+.4f} ± {score.gain_stderr:.4f}"
    caution = f" (caution: {score.caution})" if score.caution else ""
    floor = "" if smallest is None or score.gain is None else f"{smallest:.4f}"
    label = _text(title(METRICS[name], score) + caution)
    return f"| {label} | {score.value:.4f} ± {score.stderr:.4f} | {gain} | {floor} |"


def _evidence(exported: Exported, where: str) -> str:
    """What the numbers rest on."""
    if exported.candidate is None:
        return (
            f"Of one training, on {where} by which the search chose. The best of many is flattered by "
            "chance: no verdict is given."
        )
    count = exported.num_trainings
    trainings = (
        f"means over {count} trainings; the file is the first of them" if count > 1 else "one training"
    )
    return f"On {where} that no choice has touched, {trainings}. {_verdict(exported)}"


def _verdict(exported: Exported) -> str:
    """Of the winner against the base; empty where the run has lost what is needed."""
    assert exported.candidate is not None
    try:
        sides = candidate_side(exported.run, exported.candidate), base_side(exported.run)
        comparison = compare_sides(*sides, exported.run.space.select_by)
    except BenchError:
        return ""
    return f"Against the base: {comparison.verdict}, {comparison.reason}."


def _training(config: TrainingConfig, where: str = "") -> str:
    return f"""## Training

`training_config.yaml` trains it again, with the same base and data{where}:

```yaml
{config.guide_yaml()}```
"""


def _text(text: str) -> str:
    """In a table's cell, as it is: neither HTML nor Markdown."""
    return MARKUP.sub(r"\\\g<0>", html.escape(" ".join(text.split()), quote=False))
