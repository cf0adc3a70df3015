"""Trainings from a training_config.yaml: the guide's file as it stands, killed, resumed, loaded elsewhere."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hub import Hub, Repo
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from bench.base import BaseModel, TrainingData
from bench.config import TrainingConfig, TrialConfig
from bench.errors import BenchError, MismatchError, MissingError, TrialError, UsageError
from bench.run import read_losses
from bench.yaml import parse
from trainers.checkpoints import (
    ADAPTER,
    EFFECTIVE_BATCH,
    SCHEMA,
    find_checkpoints,
    read_checkpoint,
    refuse_changed,
)
from trainers.loop import Pack, Trial, train
from trainers.single import describe_learning, run_training

GUIDE = """
model_name: "{base}"
vae_name: "{base}"
dataset_name: "{data}"
caption_column: "text"
image_column: "image"

lora_rank: 4
lora_alpha: 8
lora_dropout: 0.1
lora_target_modules:
  - "to_q"
  - "to_k"
  - "to_v"
  - "to_out.0"

learning_rate: 1e-4
num_train_epochs: 3
train_batch_size: 1
gradient_accumulation_steps: 2
mixed_precision: "no"

output_dir: "{output}"
save_steps: 4
save_total_limit: 2
"""
KILLED = '''
"""The training of a file, in a process that kills itself: argv is the file, the threads, what, and when."""
import os, signal, sys
import torch
from rich.console import Console
from bench import yaml
from bench.config import TrainingConfig
from trainers import checkpoints, loop, single

torch.set_num_threads(int(sys.argv[2]))
left = int(sys.argv[4])

def dying(function):
    def counted(*arguments):
        global left
        left -= 1
        if not left:
            os.kill(os.getpid(), SIGNAL)
        return function(*arguments)
    return counted

SIGNAL = signal.SIGINT if sys.argv[3] == "ctrl-c" else signal.SIGKILL
if sys.argv[3] == "flush":
    checkpoints._flush = dying(checkpoints._flush)
else:
    loop.Pack._step = dying(loop.Pack._step)
try:
    single.run_training(yaml.read(__import__("pathlib").Path(sys.argv[1]), TrainingConfig), Console())
except KeyboardInterrupt:
    sys.exit(130)
'''
ROOT = Path(__file__).parents[2]
ROUNDING = 1e-2 if torch.cuda.is_available() else 0.0
"""What two trainings that are the same may differ by, in parts of the norm of all."""
Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache-single"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven, with metadata.jsonl."""
    folder = tmp_path_factory.mktemp("pictures")
    generator, rows = np.random.default_rng(0), []
    for number in range(7):
        pixels = generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows.append(
            f'{{"file_name": "{number}.png", "text": "a red fox {"abcdefg"[number]}", "other": "x"}}\n'
        )
    (folder / "metadata.jsonl").write_text("".join(rows))
    return folder


@pytest.fixture
def write(tmp_path: Path, tiny_sdxl: Path, pictures: Path) -> Write:
    """`write(output, **fields)`: the guide's file with the tiny base, its fields changed so."""

    def written(output: str = "out", **fields: Any) -> Path:
        text = GUIDE.format(base=tiny_sdxl, data=pictures, output=tmp_path / output)
        file = tmp_path / f"{output}.yaml"
        file.write_text(yaml.safe_dump({**yaml.safe_load(text), **fields}) if fields else text)
        return file

    return written


def run(file: Path) -> tuple[Path, str]:
    """The adapter's file, and what was said."""
    said = io.StringIO()
    config = parse(file.read_text(), TrainingConfig, str(file))
    return run_training(config, Console(file=said, width=200)), said.getvalue()


def killed(file: Path, what: str, when: int) -> int:
    """The exit code of a training in a process that is killed."""
    arguments = [str(file), str(torch.get_num_threads()), what, str(when)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *_python_path()])}
    ended = subprocess.run([sys.executable, "-c", KILLED, *arguments], env=environment, capture_output=True)
    return ended.returncode


def _python_path() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


def same(a: Path, b: Path) -> bool:
    """To the bit on a CPU; on a GPU nearly, as attention's backward pass adds in another order there."""
    return alike(load_file(a), load_file(b))


def alike(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor], tolerance: float = ROUNDING) -> bool:
    """Whether all together differ by no more than a part of their norm; at 0, by not a bit."""
    if a.keys() != b.keys():
        return False
    if not tolerance:
        return all(torch.equal(a[key], b[key]) for key in a)
    difference, size = (
        torch.stack([each.norm() for each in parts]).norm()
        for parts in ([a[key] - b[key] for key in a], list(b.values()))
    )
    return bool(difference <= tolerance * size)


def test_the_guide_s_file_trains_as_it_stands(write: Write, tmp_path: Path) -> None:
    file, said = run(write())
    out = tmp_path / "out"
    assert file == out / ADAPTER
    assert [path.name for path in find_checkpoints(out)] == ["checkpoint-8", "checkpoint-11"]
    assert not list(out.glob(".checkpoint*"))
    assert len((out / "losses.csv").read_text().splitlines()) == 1 + 11  # ceil(3 epochs of 7 / 2)
    assert same(file, out / "checkpoint-11" / ADAPTER)
    assert any(tensor.any() for key, tensor in load_file(file).items() if "lora_B" in key)
    for words in ("7 images", "11 steps of 2", "step 11/11  loss", "rate 0.0001", "it/s", "0:00 left"):
        assert words in said
    again = parse((out / "training_config.yaml").read_text(), TrainingConfig, "x")
    assert again == parse(write().read_text(), TrainingConfig, "x")


def test_the_adapter_loads_in_plain_diffusers(write: Write, tiny_sdxl: Path) -> None:
    from diffusers import StableDiffusionXLPipeline

    file, _ = run(write())
    pipe = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl)
    pipe.load_lora_weights(file.parent)
    layers = [module for name, module in pipe.unet.named_modules() if name.endswith("to_q")]
    assert all(layer.scaling == {"default_0": 2.0} for layer in layers)
    key = next(key for key in load_file(file) if key.endswith("to_q.lora_A.weight"))
    layer = pipe.unet.get_submodule(key.removeprefix("unet.").removesuffix(".lora_A.weight"))
    assert torch.equal(layer.lora_A["default_0"].weight, load_file(file)[key])


@pytest.mark.fault(6, 14)
@pytest.mark.parametrize(
    ("what", "when", "code", "kept"),
    [
        ("step", 7, -signal.SIGKILL, "checkpoint-4"),
        ("flush", 7, -signal.SIGKILL, "checkpoint-4"),
        ("ctrl-c", 6, 130, "checkpoint-"),
    ],
    ids=["in a step", "while a checkpoint is written", "Ctrl-C"],
)
def test_a_training_that_was_ended_goes_on_to_the_same_bits(
    write: Write, tmp_path: Path, what: str, when: int, code: int, kept: str
) -> None:
    fields: dict[str, dict[str, Any]] = {
        "step": {"ema": 0.9, "lr_scheduler": "cosine", "text_encoder_learning_rate": 1e-3, "dora": True},
        "flush": {"optimizer": "prodigy", "learning_rate": 1},
        "ctrl-c": {},
    }
    whole, _ = run(write("whole", **fields[what]))
    file = write(**fields[what])
    assert killed(file, what, when) == code
    assert find_checkpoints(tmp_path / "out")[-1].name.startswith(kept)
    adapter, said = run(file)
    assert "Going on from" in said
    assert same(adapter, whole)
    ends = [tmp_path / name / "checkpoint-11" / "optimizer.safetensors" for name in ("out", "whole")]
    assert same(*ends)
    losses = [
        {"loss": torch.tensor(read_losses(tmp_path / name)["loss"].to_numpy())} for name in ("out", "whole")
    ]
    assert alike(*losses)


def test_a_checkpoint_from_before_there_were_processes_is_of_one(tmp_path: Path) -> None:
    made_by = {"rank": 4, "batch_size": 2, "gradient_accumulation_steps": 3}
    (tmp_path / "state.json").write_text(json.dumps({"schema": SCHEMA, "step": 1, "made_by": made_by}))
    refuse_changed(tmp_path, {"rank": 4, EFFECTIVE_BATCH: 6})
    with pytest.raises(MismatchError, match=f"begun with another {EFFECTIVE_BATCH};"):
        refuse_changed(tmp_path, {"rank": 4, EFFECTIVE_BATCH: 12})


def test_a_finished_training_stays_and_may_be_made_longer(write: Write) -> None:
    whole, _ = run(write("whole"))
    first, _ = run(write(num_train_epochs=2))
    content = load_file(first)
    again, said = run(write(num_train_epochs=2))
    assert all(torch.equal(tensor, content[key]) for key, tensor in load_file(again).items())
    assert "checkpoint-7" in said
    longer, _ = run(write())
    assert same(longer, whole)
    with pytest.raises(MismatchError, match="beyond the 7 steps of num_train_epochs 2"):
        run(write(num_train_epochs=2))


def test_another_config_is_refused_by_the_names_of_its_keys(write: Write, tmp_path: Path) -> None:
    run(write(num_train_epochs=1))
    with pytest.raises(MismatchError, match="another learning_rate, lora_dropout; give another output_dir"):
        run(write(num_train_epochs=1, learning_rate="2e-4", lora_dropout=0))
    for checkpoint in find_checkpoints(tmp_path / "out"):
        checkpoint.rename(tmp_path / checkpoint.name)
    with pytest.raises(MismatchError, match="holds an adapter but no checkpoint"):
        run(write(num_train_epochs=1))


@pytest.mark.fault(13)
def test_a_damaged_checkpoint_is_named(write: Write, tmp_path: Path) -> None:
    run(write(num_train_epochs=1))
    file = find_checkpoints(tmp_path / "out")[-1] / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UsageError, match=r"checkpoint-4: damaged"):
        run(write(num_train_epochs=1))


@pytest.mark.fault(13)
@pytest.mark.parametrize("name", [ADAPTER, "optimizer.safetensors"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(
    write: Write, tmp_path: Path, name: str, record_property: Callable[[str, object], None]
) -> None:
    whole, _ = run(write("whole"))
    run(write())
    last, before = tmp_path / "out" / "checkpoint-11", tmp_path / "out" / "checkpoint-8"
    (last / name).write_bytes((last / name).read_bytes()[:-100])
    adapter, said = run(write())
    assert f"Going on from {before}" in " ".join(said.split())
    assert last.with_name("checkpoint-11.damaged").is_dir()
    assert same(adapter, whole)
    record_property(
        "seen", f"a truncated {name}: set aside, trained again from checkpoint-8 to the same bits"
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"learning_rat": 1e-4}, "learning_rat: unknown key; known keys: rank, alpha"),
        ({"mixed_precision": "fp8"}, "mixed_precision: Input should be 'no', 'fp16' or 'bf16'"),
        ({"mixed_precision": "bf16", "dtype": "float32"}, "dtype float32 and mixed_precision bf16 differ"),
        ({"train_batch_size": 1000}, "gradient_accumulation_steps must be at most 1024, got 2000"),
        ({"report_to": "paper"}, "report_to"),
        ({"image_column": "photo"}, "image_column 'photo': of a folder of pictures it is `image`"),
        ({"caption_column": "words"}, "0.png: no caption"),
        ({"vae_name": "someone/something"}, "get it with: hf download someone/something"),
        ({"vae_name": "./none"}, "vae_name ./none: no such folder"),
        ({"lora_target_modules": ["to_z"]}, "'to_z' matches no"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(write: Write, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchError, match=message.replace("(", r"\(").replace("[", r"\[")):
        run(write(**fields))


def test_the_captions_of_another_column_are_read(write: Write) -> None:
    file, _ = run(write(caption_column="other", num_train_epochs=1))
    other, _ = run(write("second", num_train_epochs=1))
    first, second = (read_losses(path.parent)["loss"][0] for path in (file, other))
    assert first != pytest.approx(second, rel=1e-5)


def test_accumulated_batches_are_the_whole_batch(base: BaseModel, data: TrainingData) -> None:
    """Gradients of the parts are that of the whole, to rounding; without dropout, whose masks differ."""
    config = TrialConfig(rank=4, alpha=8, learning_rate=1e-3, epochs=2, batch_size=4, dropout=0)
    adapters = []
    for parts in (1, 2, 4):
        trial = Trial(0, config, [(2, 5)])
        with Pack(base, data, [trial], num_parts=parts) as pack:
            pack.advance(lambda number: None)
            adapters.append(pack.slots.adapter(0))
    for adapter in adapters[1:]:
        for key, tensor in adapter.items():
            torch.testing.assert_close(tensor, adapters[0][key], rtol=1e-3, atol=2e-5)


def test_a_training_gives_what_a_trial_of_a_search_gives(write: Write, tmp_path: Path) -> None:
    from bench.base import find_device, load_base
    from bench.dataset import load_dataset
    from bench.encoding import encode

    text = write(hold_out=True, gradient_accumulation_steps=1, train_batch_size=2).read_text()
    config = parse(text, TrainingConfig, "x")
    single = load_file(run_training(config, Console(file=io.StringIO())))
    base = load_base(config.model_name, find_device())
    data = encode(base, load_dataset(config.dataset_name).train)
    rungs = train(base, data, iter([config.trial]), [3], 1)
    rung = next(rungs)
    assert alike({f"unet.{key}": tensor for key, tensor in rung.adapter(0).items()}, single)


@pytest.mark.fault(9)
def test_a_loss_that_is_not_finite_names_its_step_and_the_remedy(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, made = Pack._step, []

    def broken(pack: Pack) -> torch.Tensor:
        made.append(pack)
        return step(pack) * (torch.nan if len(made) == 6 else 1)

    monkeypatch.setattr(Pack, "_step", broken)
    with pytest.raises(TrialError, match=r"at step 6: lower learning_rate \(it is 0.0001\).*checkpoint-4"):
        run(write())


def test_text_encoders_are_frozen_with_prodigy(write: Write) -> None:
    fields = {"optimizer": "prodigy", "learning_rate": 1, "text_encoder_learning_rate": 1e-4}
    message = "text_encoder_learning_rate must be 0 with optimizer prodigy, got 0.0001"
    with pytest.raises(UsageError, match=message):
        run(write(**fields))


def test_what_was_learned_is_said_in_words() -> None:
    config = TrainingConfig(rank=4, alpha=8, learning_rate=1e-4, epochs=1, model_name="m", dataset_name="d")
    before, noise = np.linspace(0.4, 0.6, 8), 0.01 * np.tile([1, -1], 4)
    assert describe_learning(before, before - 0.02 + noise, config).startswith("Learned: loss of 8")
    assert "did not fall beyond chance; raise learning_rate" in describe_learning(
        before, before + noise, config
    )
    assert "made it worse; lower learning_rate" in describe_learning(before, before + 0.1 + noise, config)
    assert "did not fall" in describe_learning(before, before, config)


def test_several_processes_need_a_launcher(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="WORLD_SIZE is 2, but .* `accelerate launch --multi_gpu"):
        run(write())


def test_fp16_is_trained_in_bfloat16_and_says_so(write: Write, tmp_path: Path) -> None:
    _, said = run(write(mixed_precision="fp16", num_train_epochs=1))
    assert "mixed_precision fp16: trained in bfloat16" in said
    with pytest.raises(MismatchError, match="another dtype"):
        run(write(mixed_precision=False, num_train_epochs=1))


def test_tensorboard_shows_loss_and_rate(write: Write, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(write(report_to="tensorboard", num_train_epochs=1))
    folder = next((tmp_path / "out" / "logs").rglob("events.*")).parent
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    assert events.Scalars("learning_rate")[0].value == pytest.approx(1e-4)
    state = read_checkpoint(find_checkpoints(tmp_path / "out")[-1])
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(state.losses)


def test_a_tracker_that_is_not_installed_says_how_to_get_it(write: Write) -> None:
    with pytest.raises(
        MissingError, match="report_to: wandb is not installed; get it with: pip install wandb"
    ):
        run(write(report_to=["wandb"]))


# Sample images


def test_samples_are_drawn_from_the_same_noise_and_change_no_bit(write: Write, tmp_path: Path) -> None:
    plain, _ = run(write("plain"))
    drawn, _ = run(write(sample_prompts=["a fox", "a cat"], sample_steps=5))
    folder = tmp_path / "out" / "samples"
    names = [f"step-{step:06d}/{number:04d}.webp" for step in (5, 10, 11) for number in (0, 1)]
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.webp")) == names
    assert same(drawn, plain)
    assert same(*(tmp_path / name / "checkpoint-11" / "optimizer.safetensors" for name in ("out", "plain")))
    images = [np.asarray(Image.open(folder / name), dtype=float) for name in names]
    assert images[0].shape == (32, 32, 3)
    between_steps, between_prompts = abs(images[0] - images[2]).mean(), abs(images[0] - images[1]).mean()
    assert 0 < between_steps < between_prompts


def test_samples_come_with_checkpoints_and_from_the_adapter(write: Write, tmp_path: Path) -> None:
    run(write(sample_prompts="a fox", learning_rate=1e-2, text_encoder_learning_rate=1e-2))
    folder = tmp_path / "out" / "samples"
    assert sorted(path.name for path in folder.iterdir()) == ["step-000004", "step-000008", "step-000011"]
    assert len({path.read_bytes() for path in folder.rglob("*.webp")}) == 3


def test_tensorboard_shows_samples(write: Write, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(write(report_to="tensorboard", num_train_epochs=1, sample_prompts=["a fox", "a cat"]))
    events = EventAccumulator(str(next((tmp_path / "out" / "logs").rglob("events.*")).parent))
    events.Reload()
    assert [event.step for event in events.Images("samples")] == [4]


# Uploads


@pytest.fixture
def command(tmp_path: Path, hub: Hub) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`bench …` in a process that knows no Hub but the stand-in; nothing that it says is a token."""

    def start(*arguments: str, token: str | None = hub.token) -> subprocess.CompletedProcess[str]:
        environment = hub.environment(tmp_path / "home", token)
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *_python_path()])
        done = subprocess.run(
            [sys.executable, "-m", "bench", *arguments],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert "hf_" not in done.stdout + done.stderr and "Traceback" not in done.stderr
        return done

    return start


Command = Callable[..., subprocess.CompletedProcess[str]]


def test_the_adapter_is_uploaded_with_its_card(
    write: Write, command: Command, hub: Hub, tmp_path: Path
) -> None:
    file = write(num_train_epochs=1, trigger="ohwx", sample_prompts=["ohwx, a fox"])
    done = command("train", "--config", str(file), "--hub_model_id", "someone/fox")
    assert done.returncode == 0 and f"Uploaded: {hub.endpoint}/someone/fox" in done.stdout
    repo = hub.repos["model", "someone/fox"]
    assert repo.private
    names = {"README.md", "training_config.yaml", ADAPTER, "images/0000.webp"}
    assert set(repo.files) == {".gitattributes", *names}
    assert repo.files[ADAPTER] == (tmp_path / "out" / ADAPTER).read_bytes()
    card = repo.files["README.md"].decode()
    widget = yaml.safe_load(card.split("---\n")[1])["widget"]
    assert widget == [{"text": "ohwx, a fox", "output": {"url": "images/0000.webp"}}]
    assert "# fox" in card and "Put `ohwx` into the prompt" in card
    assert 'load_lora_weights("someone/fox", weight_name=' in card
    config = parse(repo.files["training_config.yaml"].decode(), TrainingConfig, "x")
    assert (config.rank, config.output_dir, config.hub_model_id) == (4, "out", None)
    assert not any(str(tmp_path).encode() in content for content in repo.files.values())


@pytest.mark.parametrize(
    ("target", "token", "message"),
    [
        ("fox", "", "bench: fox: give OWNER/NAME"),
        ("someone/fox", None, "bench: no token of the Hub on this machine: `hf auth login` keeps one"),
        ("someone/fox", "hf_wrong", "bench: someone/fox: the Hub refuses the token"),
        ("other/fox", "", "bench: other/fox: the token may not write to other"),
        ("someone/open", "", "bench: someone/open: exists and is public"),
    ],
)
def test_what_an_upload_needs_is_known_before_training(
    write: Write, command: Command, hub: Hub, tmp_path: Path, target: str, token: str | None, message: str
) -> None:
    hub.repos["model", "someone/open"] = Repo(private=False)
    file = write(hub_model_id=target)
    done = command("train", "--config", str(file), token=hub.token if token == "" else token)
    assert done.returncode == 2
    assert done.stderr.startswith(message) and len(done.stderr.splitlines()) == 1
    assert not list((tmp_path / "out").glob("checkpoint*"))


@pytest.mark.fault(24)
def test_an_upload_that_fails_loses_nothing_and_says_what_to_do(
    write: Write, command: Command, hub: Hub, tmp_path: Path
) -> None:
    file = write(num_train_epochs=1)
    hub.broken = re.compile("POST .*/commit/")
    done = command("train", "--config", str(file), "--hub-model-id", "someone/fox")
    later = f"bench push {tmp_path / 'out'} someone/fox"
    assert done.returncode == 2 and f"`{later}` uploads it" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and (tmp_path / "out" / ADAPTER).exists()
    hub.broken = None
    assert command(*later.split()[1:], "--yes").returncode == 0
    repo = hub.repos["model", "someone/fox"]
    assert repo.private and repo.files[ADAPTER] == (tmp_path / "out" / ADAPTER).read_bytes()
