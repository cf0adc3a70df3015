"""What others made is read without running it: no pickle, no code of a model, no header that fills memory."""

import ast
import json
import os
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import bench
from bench import yaml
from bench.errors import UsageError
from bench.exported import winner_of
from bench.files import read_json, write_json
from bench.run import NAME, Run
from bench.scoring import embed, judge
from bench.space import SearchSpace, load_space
from bench.weights import MAX_HEADER, read_header
from reports.images import thumbnail
from trainers.adapters import read_adapter
from trainers.checkpoints import read_checkpoint
from trainers.lora import load_adapter

ROOT = Path(__file__).parent.parent
SOURCES = [
    path
    for package in ("bench", "search_spaces", "trainers", "reports")
    for path in (ROOT / package).rglob("*.py")
]
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
CALLS = {"torch.load", "torch.hub.load", "torch.jit.load", "pd.read_pickle", "pandas.read_pickle"}
RUNNING = {"trust_remote_code", "custom_pipeline", "custom_revision", "post_script"}
CPU = torch.device("cpu")


# The sources


def findings(tree: ast.AST) -> Iterator[str]:
    """Calls and imports that could run what a file holds."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = (
                [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            )
            yield from (f"imports {name}" for name in names if name.partition(".")[0] in UNPICKLERS)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            yield from [f"calls {called}"] if called in CALLS or called in {"eval", "exec"} else []
            yield from (f"passes {keyword.arg}" for keyword in node.keywords if not _is_safe(keyword))


def _is_safe(keyword: ast.keyword) -> bool:
    value = keyword.value.value if isinstance(keyword.value, ast.Constant) else ...
    safe = {"weights_only": True, "allow_pickle": False, "use_safetensors": True}
    return value is safe[keyword.arg] if keyword.arg in safe else keyword.arg not in RUNNING


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_unpickles_or_asks_for_a_models_own_code(path: Path) -> None:
    assert list(findings(ast.parse(path.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from dill import loads",
        "torch.load(file)",
        "torch.load(file, weights_only=True)",
        "read(file, weights_only=False)",
        "np.load(file, allow_pickle=True)",
        "Model.from_pretrained(name, trust_remote_code=False)",
        "Pipeline.from_pretrained(name, custom_pipeline='x')",
        "Pipeline.from_pretrained(name, use_safetensors=None)",
        "eval(text)",
    ],
)
def test_what_is_forbidden_is_found(line: str) -> None:
    assert list(findings(ast.parse(line)))


@pytest.mark.parametrize(
    "path", [ROOT / "bench" / "pipeline.py", ROOT / "bench" / "vae.py"], ids=lambda path: path.name
)
def test_models_in_folders_are_read_from_safetensors_alone(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    loads = [call for call in calls if ast.unparse(call.func).endswith("from_pretrained")]
    passed = [{keyword.arg for keyword in call.keywords} for call in loads]
    assert passed and all({"use_safetensors", "local_files_only"} <= names for names in passed)


def test_a_models_own_code_is_switched_off_whatever_the_environment_says() -> None:
    from diffusers.utils import constants

    assert bench.__version__ and os.environ["DIFFUSERS_DISABLE_REMOTE_CODE"] == "1"
    assert constants.DIFFUSERS_DISABLE_REMOTE_CODE


# Safetensors


def with_header(header: bytes, size: int | None = None, data: bytes = b"") -> bytes:
    """A file whose header says that it has `size` bytes."""
    return struct.pack("<Q", len(header) if size is None else size) + header + data


def entry(shape: list[int], end: int, kind: str = "F32") -> bytes:
    return json.dumps({"a": {"dtype": kind, "shape": shape, "data_offsets": [0, end]}}).encode()


BAD_FILES = {
    "empty": b"",
    "seven bytes": b"\0" * 7,
    "a pickle": b"\x80\x04\x95" + b"c" * 100,
    "a zip": b"PK\x03\x04" + b"\0" * 100,
    "header of 101 MB": with_header(b"{}", 101_000_000),
    "header of 2**63 bytes": with_header(b"{}", 2**63),
    "header longer than the file": with_header(entry([2], 8), 10_000),
    "header cut off": with_header(entry([2], 8), len(entry([2], 8)) - 9),
    "not JSON": with_header(b"{" * 64),
    "nested": with_header(b"[" * 100_000),
    "data cut off": with_header(entry([1024], 4096), data=b"\0" * 100),
    "more data than said": with_header(entry([2], 8), data=b"\0" * 64),
    "shape of another size": with_header(entry([2**40, 2**40], 8), data=b"\0" * 8),
    "no such type": with_header(entry([2], 8, "PYOBJECT"), data=b"\0" * 8),
    "not UTF-8": with_header(b"\xff\xfe{}"),
}


def _scorer(file: Path) -> object:
    return embed.load_scorer(str(_beside(file, "scorer", embed.WEIGHTS)), CPU)


def _judge(file: Path) -> object:
    return judge.load_judge(str(_beside(file, "judge", judge.WEIGHTS)), CPU)


def _beside(file: Path, bundled: str, weights: str) -> Path:
    """A folder of the bundled network with these weights."""
    folder = file.parent / bundled
    shutil.copytree(ROOT / "bench" / "builtin" / bundled, folder)
    (folder / weights).write_bytes(file.read_bytes())
    return folder


def _resumed(file: Path) -> object:
    folder = file.parent / "checkpoint-1"
    folder.mkdir()
    (folder / "optimizer.safetensors").write_bytes(file.read_bytes())
    return read_checkpoint(folder)


@pytest.mark.parametrize("read", [read_adapter, load_adapter, _resumed, _scorer, _judge])
@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_refused_in_one_line(tmp_path: Path, name: str, read: Callable[[Path], Any]) -> None:
    file = tmp_path / "bad.safetensors"
    file.write_bytes(BAD_FILES[name])
    with pytest.raises(UsageError) as caught:
        read(file)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
    assert len(str(caught.value)) < 1_000


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_checkpoint_is_refused_by_its_header(tmp_path: Path, name: str) -> None:
    file = tmp_path / "bad.safetensors"
    file.write_bytes(BAD_FILES[name])
    with pytest.raises(ValueError):
        read_header(file)
    assert MAX_HEADER < 100_000_000


# Folders of a model


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"unet": ["evil", "Model"]}, "unet would run code of 'evil'"),
        ({"scheduler": ["evil", "Model"]}, "scheduler would run code of 'evil'"),
        ({"extra": [["evil"], "Model"]}, "extra would run code of"),
        ({"_class_name": ["evil", "StableDiffusionXLPipeline"]}, "a .*evil.*; supported are"),
        ({"_class_name": {"evil": 1}}, "a .*evil.*; supported are"),
    ],
)
def test_a_folder_that_names_its_own_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: dict[str, Any], message: str
) -> None:
    from bench.sources import find_source

    (tmp_path / "evil.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    whole = {"_class_name": "StableDiffusionXLPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(whole | index))
    with pytest.raises(UsageError, match=message):
        find_source(str(tmp_path))
    assert not (tmp_path / "ran").exists() and "evil" not in sys.modules


# Names of runs, studies and folders


LEADING_OUT = [
    "", "/", "//", ".", "..", "../x", "./x", "a/b", "a/../../x", "..\\x", "a\\b", "C:\\x", "C:", "~", "~root",
    "-x", ".hidden", "a b", "a\n", "a\0b", "%2e%2e%2fx", "..%2fx", "file:///etc", "http://x", "a" * 65, "é",
    "a\u202eb", "\uff0e\uff0e", "<img src=x>/../../x", "$(true)", "`true`", "a;b", "a*", "?",
]  # fmt: skip
"""What no folder of ours is called; the first are MLflow's."""


@pytest.mark.parametrize("name", [*LEADING_OUT, "the temporary folder"])
def test_a_run_has_a_strict_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    from bench.asked import command_of
    from bench.session import open_session

    if name == "the temporary folder":
        name = str(tmp_path)
    monkeypatch.chdir(tmp_path)
    command = command_of("smoke", {}, name, 0, Console())
    with pytest.raises(UsageError, match="use up to 64 letters"), open_session(command, name):
        pass
    with pytest.raises(UsageError, match="space.yaml: name: "):
        yaml.validate({"name": name}, SearchSpace, "space.yaml")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a", "0", "my-run_2.5", "A" * 64, "v1..2"])
def test_ordinary_names_are_taken(name: str) -> None:
    assert NAME.fullmatch(name)


@pytest.mark.parametrize("name", ["../../../elsewhere", "/etc", "a/b", ""])
@pytest.mark.parametrize("key", ["label", "records"])
def test_a_result_that_names_folders_elsewhere_is_damaged(
    make_run: Callable[..., Run], key: str, name: str
) -> None:
    run = make_run()
    result = read_json(run.path / "result.json")
    result["candidates"][0][key] = [name] if key == "records" else name
    write_json(run.path / "result.json", result)
    with pytest.raises(UsageError, match=r"result\.json: damaged: .* no name of a trial") as caught:
        run.result()
    assert "\n" not in str(caught.value)


def test_an_export_is_not_written_elsewhere(make_run: Callable[..., Run], tmp_path: Path) -> None:
    run = make_run("runs/one", metadata=(("name", "../../../out"),))
    with pytest.raises(UsageError, match=r"run\.json: name '\.\./\.\./\.\./out': not the name of a run"):
        assert winner_of(run).kohya_file


# Files that have no end, or no bottom


def test_a_file_without_an_end_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "endless.yaml").symlink_to("/dev/zero")
    with pytest.raises(UsageError, match="larger than 1000000 bytes, not read"):
        load_space(str(tmp_path / "endless.yaml"))


@pytest.mark.parametrize("text", ["[" * 100_000, "{" * 100_000, '{"a":' * 100_000, "\xff", "null", "NaN"])
def test_json_that_is_no_record_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text, encoding="latin-1")
    with pytest.raises(UsageError, match=r"run\.json: (cannot be read|expected an object)") as caught:
        Run.open(tmp_path)
    assert "\n" not in str(caught.value)


def test_pictures_of_a_run_may_not_be_bombs(tmp_path: Path) -> None:
    Image.new("1", (9_600, 9_600)).save(tmp_path / "large.png")
    Image.new("L", (20, 20)).save(tmp_path / "other.tiff")
    assert thumbnail(tmp_path / "large.png") is None and thumbnail(tmp_path / "other.tiff") is None
