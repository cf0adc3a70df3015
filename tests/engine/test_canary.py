"""Secrets are planted in the environment and in an error of a whole search: none is in anything it leaves."""

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from bench.run import Run

ROOT = Path(__file__).parent.parent.parent
PLANTED = {
    "HF_TOKEN": "hf_" + "aB3" * 12,
    "WANDB_API_KEY": "0d1e2a3d" * 5,
    "AWS_ACCESS_KEY_ID": "AKIA" + "Q7" * 8,
    "AWS_SECRET_ACCESS_KEY": "wJalr/XUtnFEMI+K7MDENG0bPxRfiCYzzzzzzzzz",
    "PGPASSWORD": "canary-in-the-mine-7",
}
URL = "postgresql://me:canary-of-a-url@db/x?sslpassword=canary-of-a-key"
HEADER = "Bearer canary.1234567890"
CANARIES = [*PLANTED.values(), "canary-of-a-url", "canary-of-a-key", "canary.1234567890"]
SPACE: dict[str, Any] = {
    "name": "tiny",
    "data": "emoji/pixel16",
    "parameters": {"rank": {"choices": [2, 4]}},
    "default": {"rank": 4, "alpha": 8, "learning_rate": 1e-4, "epochs": 1, "batch_size": 20},
    "prompts": {"dev": 4, "test": 4, "seeds": 2, "training": 0, "altered": 0, "style": 0},
    "sampler": {"steps": 1, "guidance": 1},
    "confirm": {"finalists": 1, "seeds": 1},
    "floor": 0,
    "judge": "none",
    "trials": 2,
    "slots": 2,
}
TRAINER = """
from trainers.loop import train

begun = []

def breaks(*arguments):
    begun.append(1)
    if len(begun) == 1:
        raise RuntimeError("lost " + " and ".join(SECRETS))
    return train(*arguments)
"""
"""A module of its own: workers import it."""
SEARCH = """
import sys
import canary
from bench import cli
from trainers import loop

loop.train = canary.breaks
sys.argv = ["bench", "search", "--space", "canary.yaml"]
cli.main()
"""


def test_no_secret_is_in_what_a_search_leaves(tmp_path: Path, tiny_sdxl: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "canary.yaml").write_text(yaml.safe_dump({**SPACE, "base": str(tiny_sdxl)}))
    (tmp_path / "canary.py").write_text(f"SECRETS = {[*PLANTED.values(), URL, HEADER]!r}\n{TRAINER}")
    path = os.pathsep.join([str(tmp_path), str(ROOT), *sys.path])
    places = {"BENCH_CACHE": str(out / "cache"), "PYTHONPATH": path}
    environment = os.environ | PLANTED | places | {"DATABASE_URL": URL}
    ended = subprocess.run([sys.executable, "-c", SEARCH], cwd=out, env=environment, capture_output=True)
    said = ended.stdout + ended.stderr
    assert ended.returncode == 0, said
    run = Run.open(out / "runs" / "tiny")
    (failed,) = [trial for trial in run.trials() if trial.state == "failed"]
    expected = "RuntimeError: lost " + " and ".join(
        ["***"] * len(PLANTED) + ["postgresql://me:***@db/x?sslpassword=***", "Bearer ***"]
    )
    assert failed.reason == expected
    with sqlite3.connect(run.path / "study.db") as database:
        attributes = [row[0] for row in database.execute("SELECT value_json FROM trial_user_attributes")]
    assert json.dumps(expected) in attributes
    assert expected.encode() in said
    assert "lost *** and ***" in (run.path / "report.html").read_text(encoding="utf-8")
    left = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} | {out: said}
    assert len(left) > 20
    assert [
        (file, canary) for file, text in left.items() for canary in CANARIES if canary.encode() in text
    ] == []
