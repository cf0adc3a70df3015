"""Export and push: synthetic runs, a stand-in of the Hub, the command itself."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hub import Hub, Repo
from safetensors import safe_open
from safetensors.torch import save_file

from bench import cli
from bench.config import TrainingConfig, TrialConfig
from bench.export import SD_1, SDXL, kohya_metadata
from bench.exported import Exported, shared_name, trial_of, winner_of
from bench.naming import parse_key
from bench.run import Run
from bench.yaml import read

Bench = Callable[..., tuple[int, str, str]]
MODULE = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Bench:
    """`bench("export", …)` in tmp_path: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["bench", *arguments])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return int(exit_.value.code or 0), *capsys.readouterr()

    return run


def with_adapter(exported: Exported) -> None:
    rank = exported.config.rank
    tensors = {
        f"unet.{MODULE}.lora_A.weight": torch.ones(rank, 96),
        f"unet.{MODULE}.lora_B.weight": torch.ones(96, rank),
    }
    save_file(tensors, exported.adapter, {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 3})})


@pytest.fixture
def run(make_run: Callable[..., Run], tmp_path: Path) -> Run:
    """Of a folder of pictures on this machine, with a trigger."""
    data = str(tmp_path / "secret-place" / "my-foxes")
    space = (("trigger", "ohwx"), ("base", "emoji-xl"))
    found = make_run("runs/foxes", metadata=(("data", data),), space=space, caption="a | <b>fox</b> ![x](y)")
    with_adapter(winner_of(found))
    return found


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, framework="pt") as opened:
        found: dict[str, str] = opened.metadata()
        return found


def test_the_winner_is_exported_with_what_is_known_of_it(bench: Bench, run: Run, tmp_path: Path) -> None:
    code, output, _ = bench("export", "foxes")
    folder, winner = run.path / "export", winner_of(run)
    assert code == 0 and "Exported the winner: runs/foxes/export" in output
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "README.md",
        "images",
        "training_config.yaml",
        "foxes.safetensors",
        "pytorch_lora_weights.safetensors",
    }
    kohya = metadata(folder / "foxes.safetensors")
    config = winner.config
    assert kohya["ss_network_dim"] == str(config.rank)
    assert float(kohya["ss_network_alpha"]) == config.alpha
    assert kohya["ss_base_model_version"] == "sdxl_base_v1-0"
    assert float(kohya["ss_learning_rate"]) == config.learning_rate
    assert kohya["ss_num_epochs"] == str(config.epochs)
    assert kohya["modelspec.trigger_phrase"] == "ohwx"
    assert "similarity" in kohya["ss_training_comment"] and "±" in kohya["ss_training_comment"]
    plain = metadata(folder / "pytorch_lora_weights.safetensors")
    assert json.loads(plain["lora_adapter_metadata"]) == {"unet.lora_alpha": 3}
    assert "lora_adapter_metadata" not in kohya
    for found in (kohya, plain):
        scores = json.loads(found["bench_scores"])
        assert scores["similarity"]["stderr"] == winner.scores["similarity"].stderr
        assert json.loads(found["bench_noise_floor"])["num_seeds"] >= 2
        assert found["bench_base_sha256"] == run.metadata.base_fingerprint


OPTIONS: list[tuple[dict[str, Any], dict[str, str]]] = [
    (
        {},
        {
            "ss_optimizer": "torch.optim.adamw.AdamW(weight_decay=0.01)",
            "ss_lr_scheduler": "constant",
            "ss_max_grad_norm": "1.0",
            "ss_text_encoder_lr": "0.0",
            "ss_num_reg_images": "0",
            "ss_flip_aug": "False",
            "ss_random_crop": "False",
            "ss_shuffle_caption": "False",
            "ss_min_snr_gamma": "None",
            "ss_noise_offset": "None",
        },
    ),
    (
        {"optimizer": "prodigy", "learning_rate": 1, "lr_scheduler": "cosine", "warmup_steps": 20},
        {
            "ss_optimizer": "prodigyopt.prodigy.Prodigy(weight_decay=0.01,decouple=True,"
            "use_bias_correction=True,safeguard_warmup=True)",
            "ss_lr_scheduler": "cosine",
            "ss_lr_warmup_steps": "20",
            "ss_unet_lr": "1.0",
        },
    ),
    (
        {"optimizer": "adamw8bit", "weight_decay": 0.1},
        {"ss_optimizer": "bitsandbytes.optim.adamw.AdamW8bit(weight_decay=0.1)"},
    ),
    ({"warmup_steps": 20}, {"ss_lr_scheduler": "constant_with_warmup"}),
    (
        {"flip": True, "crops": 4, "shuffle_caption": True, "keep_tags": 2, "caption_dropout": 0.1},
        {
            "ss_flip_aug": "True",
            "ss_random_crop": "True",
            "ss_shuffle_caption": "True",
            "ss_keep_tokens": "2",
            "ss_caption_dropout_rate": "0.1",
        },
    ),
    ({"min_snr_gamma": 5, "noise_offset": 0.05}, {"ss_min_snr_gamma": "5.0", "ss_noise_offset": "0.05"}),
    ({"prior_weight": 0.5}, {"ss_num_reg_images": "64", "ss_prior_loss_weight": "0.5"}),
    ({"rank": 16, "alpha": 8, "rslora": True}, {"ss_network_dim": "16", "ss_network_alpha": "32.0"}),
    ({"lora_plus": 16}, {"ss_network_args": '{"loraplus_lr_ratio": "16"}'}),
    (
        {"rank": 4, "alpha": 2, "rank_mid": 8},
        {
            "ss_network_args": json.dumps(
                {
                    "block_dims": ",".join(["4"] * 10 + ["8"] * 3 + ["4"] * 10),
                    "block_alphas": ",".join(["2"] * 10 + ["4"] * 3 + ["2"] * 10),
                }
            )
        },
    ),
]


@pytest.mark.parametrize(("options", "expected"), OPTIONS)
def test_kohyas_metadata_say_how_it_was_trained(
    run: Run, options: dict[str, Any], expected: dict[str, str]
) -> None:
    winner = winner_of(run)
    config = TrialConfig.model_validate(winner.config.model_dump() | options)
    said = kohya_metadata(replace(winner, config=config), {}, SDXL)
    assert {key: said.get(key) for key in expected} == expected
    assert ("ss_network_args" in said) == ("ss_network_args" in expected)
    assert ("ss_prior_loss_weight" in said) == bool(config.prior_weight)


def test_kohyas_metadata_tell_of_convolutions(run: Run) -> None:
    winner = winner_of(run)
    config = TrialConfig.model_validate(winner.config.model_dump() | {"rank": 4, "alpha": 2})
    kernels = {"lora_unet_out_2.lora_down.weight": torch.zeros(4, 8, 3, 3)}
    same = kohya_metadata(replace(winner, config=config), kernels, SD_1)
    assert json.loads(same["ss_network_args"]) == {"conv_dim": "4", "conv_alpha": "2"}
    config = config.model_copy(update={"rank_up": 2})
    by_block = json.loads(kohya_metadata(replace(winner, config=config), kernels, SD_1)["ss_network_args"])
    assert by_block["conv_block_dims"] == by_block["block_dims"] == ",".join(["4"] * 13 + ["2"] * 12)


def test_the_config_reads_back_as_the_training(bench: Bench, run: Run) -> None:
    bench("export", "foxes")
    config = read(run.path / "export" / "training_config.yaml", TrainingConfig)
    fields = winner_of(run).config.model_dump(exclude={"target_modules"})
    assert {name: getattr(config, name) for name in fields} == fields
    assert (config.model_name, config.dataset_name, config.trigger) == ("emoji-xl", "my-foxes", "ohwx")


def test_nothing_names_a_folder_of_this_machine(bench: Bench, run: Run, tmp_path: Path) -> None:
    bench("export", "foxes")
    for file in (run.path / "export").rglob("*"):
        if file.is_file():
            assert b"secret-place" not in file.read_bytes()
            assert str(tmp_path).encode() not in file.read_bytes()


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("/home/me/sdxl/", "sdxl"),
        ("~/sdxl", "sdxl"),
        ("./sdxl", "sdxl"),
        ("owner/name", "owner/name"),
        ("emoji-xl", "emoji-xl"),
    ],
)
def test_of_a_path_the_last_part_is_told(given: str, shown: str) -> None:
    assert shared_name(given) == shown


def test_the_card_shows_images_scores_and_how_sure_they_are(bench: Bench, run: Run) -> None:
    bench("export", "foxes")
    card = (run.path / "export" / "README.md").read_text()
    _, front, text = card.split("---\n", 2)
    data: dict[str, Any] = yaml.safe_load(front)
    assert data["instance_prompt"] == "ohwx" and "lora" in data["tags"]
    assert "license" not in data and "# license:" in front and "base_model" not in data
    for each in data["widget"]:
        assert (run.path / "export" / each["output"]["url"]).exists()
    assert "a \\| &lt;b&gt;fox&lt;/b&gt; !\\[x\\](y)" in text and "<b>" not in text and "![x]" not in text
    score = winner_of(run).scores["similarity"]
    assert f"{score.value:.4f} ± {score.stderr:.4f}" in text and f"{score.gain:+.4f}" in text
    floor = run.floor()
    assert floor is not None
    smallest = floor.smallest("similarity", 2, float("inf"))
    assert f"| {smallest:.4f} |" in text
    assert re.search(r"Against the base: (WIN|TIE|LOSS), ", text)
    assert "means over 2 trainings; the file is the first of them" in text


def test_a_trial_is_exported_with_the_scores_that_chose(bench: Bench, run: Run) -> None:
    with_adapter(trial_of(run, 1, None))
    code, output, _ = bench("export", "foxes", "--trial", "1", "--as", "kohya")
    folder = run.path / "export"
    assert code == 0 and f"trial 1, epoch {trial_of(run, 1, None).config.epochs}" in output
    assert not (folder / "pytorch_lora_weights.safetensors").exists()
    assert metadata(folder / "foxes.safetensors")["bench_scored_on"] == "dev prompts"
    card = (folder / "README.md").read_text()
    assert "flattered by chance: no verdict is given" in card and "Against the base" not in card
    assert "weight_name='foxes.safetensors'" in card


def test_a_base_of_the_hub_is_linked(bench: Bench, make_run: Callable[..., Run]) -> None:
    run = make_run("runs/one", metadata=(("base", "owner/sdxl"),))
    with_adapter(winner_of(run))
    assert bench("export", "one", "--as", "diffusers")[0] == 0
    front = (run.path / "export" / "README.md").read_text().split("---\n")[1]
    assert yaml.safe_load(front)["base_model"] == "owner/sdxl"
    code, _, errors = bench("export", "one")
    assert code == 2 and "get it with: hf download owner/sdxl" in errors
    assert (run.path / "export" / "README.md").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--trial", "77"), "--trial 77: no such trial of runs/foxes was scored; there are: 0, 1, 2, 3, 4"),
        (("--trial", "0", "--epoch", "3"), "--epoch 3: trial 0 was scored at 2, 4"),
        (("--epoch", "2"), "--epoch: only with --trial"),
        (("--trial", "0"), "adapter.safetensors: not a readable adapter"),
    ],
)
@pytest.mark.usefixtures("run")
def test_what_cannot_be_exported_is_one_line(bench: Bench, arguments: tuple[str, ...], message: str) -> None:
    code, _, errors = bench("export", "foxes", *arguments)
    assert code == 2 and message in errors and len(errors.splitlines()) == 1


def test_a_search_without_a_result_is_said(bench: Bench, make_run: Callable[..., Run]) -> None:
    make_run("runs/one", ending="interrupted")
    assert "no result yet; `bench search` has to finish first, or give --trial" in bench("export", "one")[2]


# Push


@pytest.fixture
def push(bench: Bench, run: Run, hub: Hub, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`push("someone/fox", …)` of the exported run, in a process that knows no Hub but the stand-in."""
    bench("export", "foxes")

    def start(*arguments: str, token: str | None = hub.token, answer: str = "") -> Any:
        environment = hub.environment(tmp_path / "home", token) | {"PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-m", "bench", "push", "foxes", *arguments]
        return subprocess.run(
            command, env=environment, cwd=tmp_path, input=answer, capture_output=True, text=True, check=False
        )

    return start


Push = Callable[..., subprocess.CompletedProcess[str]]


def test_push_asks_first_and_makes_a_private_model(push: Push, hub: Hub, run: Run) -> None:
    refused = push("someone/fox", answer="n\n")
    assert refused.returncode == 1 and not hub.repos
    assert "to someone/fox, a new private model:" in refused.stdout
    assert not any(request.startswith("POST /api/repos") for request in hub.requests)
    done = push("someone/fox", answer="y\n")
    repo = hub.repos["model", "someone/fox"]
    assert (done.returncode, repo.private) == (0, True)
    assert f"Uploaded: {hub.endpoint}/someone/fox" in done.stdout
    sent = run.path / "export"
    names = {str(path.relative_to(sent)) for path in sent.rglob("*") if path.is_file()}
    assert set(repo.files) - {".gitattributes"} == names
    assert repo.files["foxes.safetensors"] == (sent / "foxes.safetensors").read_bytes()
    assert b'load_lora_weights("someone/fox"' in repo.files["README.md"]
    assert hub.token not in done.stdout + done.stderr + refused.stdout + refused.stderr


def test_push_uploads_again_but_not_into_what_others_see(push: Push, hub: Hub) -> None:
    hub.repos["model", "someone/fox"] = Repo(private=False)
    refused = push("someone/fox", "--yes")
    assert refused.returncode == 2
    assert refused.stderr.startswith("bench: someone/fox: exists and is public; give --public")
    assert push("someone/fox", "--yes", "--public").returncode == 0
    assert "README.md" in hub.repos["model", "someone/fox"].files


@pytest.mark.parametrize(
    ("target", "token", "message"),
    [
        ("someone/fox", None, "bench: no token of the Hub on this machine"),
        ("someone/fox", "hf_wrong" * 4, "bench: someone/fox: the Hub refuses the token"),
        ("other/fox", "", "bench: other/fox: the token may not write to other"),
        ("fox", "", "bench: fox: give OWNER/NAME"),
    ],
)
def test_what_cannot_be_pushed_is_one_line(
    push: Push, hub: Hub, target: str, token: str | None, message: str
) -> None:
    done = push(target, "--yes", token=hub.token if token == "" else token)
    assert done.returncode == 2
    assert done.stderr.startswith(message) and len(done.stderr.splitlines()) == 1
    assert "hf_" not in done.stderr


def test_a_connection_that_breaks_is_one_line(push: Push, hub: Hub) -> None:
    hub.broken = re.compile("POST .*/commit/")
    done = push("someone/fox", "--yes")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("bench: someone/fox: the Hub cannot be reached, or broke off: ")


def test_what_was_not_exported_is_not_pushed(bench: Bench, make_run: Callable[..., Run]) -> None:
    make_run("runs/one")
    code, _, errors = bench("push", "one", "someone/fox")
    assert code == 2 and "nothing to upload; `bench export one` writes it" in errors


def test_kohyas_keys_are_all_of_its_layout(bench: Bench, run: Run) -> None:
    bench("export", "foxes")
    with safe_open(run.path / "export" / "foxes.safetensors", framework="pt") as opened:
        keys = list(opened.keys())
    name = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    assert sorted(keys) == [f"{name}.alpha", f"{name}.lora_down.weight", f"{name}.lora_up.weight"]
    assert {parse_key(key) is not None for key in keys} == {True}
