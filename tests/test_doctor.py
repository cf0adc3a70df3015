"""The doctor's look at the machine, and the command."""

import io
import json
import shutil
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest
from hub import Hub
from huggingface_hub import constants
from packaging.requirements import Requirement
from rich.console import Console

from bench import cli, sources
from bench.doctor import Check, examine, file_system, wrong_versions
from bench.run import Run
from reports import doctor as page

Bench = Callable[..., tuple[int, str, str]]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Bench:
    """`bench("doctor", …)` in tmp_path, away from the Hub: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["bench", *arguments])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return int(exit_.value.code or 0), *capsys.readouterr()

    return run


def check(name: str, folder: Path) -> Check:
    return next(check for check in examine(folder) if check.name == name)


def test_this_machine_can_run_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    checks = {check.name: check for check in examine(tmp_path / "runs")}
    assert [check for check in checks.values() if check.level == "problem"] == []
    assert checks["packages"].found == "all are there, as new as is needed"
    assert checks["bundled models"].found == "base, scorer and judge are whole"
    assert checks["Hub"].found == "not asked: HF_HUB_OFFLINE is set"
    assert str(tmp_path / "runs") in checks["disk of runs"].found
    assert not (tmp_path / "runs").exists()


def test_packages_that_are_missing_or_too_old_are_named() -> None:
    wanted = ["numpy>=1", "numpy>=999", "no-such-package-here>=1"]
    numpy = __import__("numpy").__version__
    assert wrong_versions(map(Requirement, wanted)) == [
        f"numpy is {numpy}, needs >=999",
        "no-such-package-here is missing",
    ]


def test_the_hub_is_asked_and_the_token_never_shown(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    checks = examine(tmp_path)
    found = {check.name: (check.level, check.found) for check in checks}
    assert found["Hub"] == ("ok", f"{hub.endpoint} answers")
    assert found["Hub token"] == ("ok", "there is one")
    assert hub.token not in page.as_json(checks, [])


def test_a_hub_that_cannot_be_reached_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    found = check("Hub", tmp_path)
    assert (found.level, found.found.split(":", 2)[-1].partition(" ")[2][:17]) == (
        "warning",
        "cannot be reached",
    )
    assert "HF_HUB_OFFLINE=1" in found.advice


@pytest.mark.parametrize("torn", ["unet/diffusion_pytorch_model.safetensors", "model_index.json"])
def test_a_bundled_model_that_is_torn_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: str
) -> None:
    copy = shutil.copytree(Path(str(files("bench"))) / "builtin" / "emoji-xl", tmp_path / "emoji-xl")
    (copy / torn).write_bytes((copy / torn).read_bytes()[:-10])
    monkeypatch.setitem(sources.BUNDLED, "emoji-xl", str(copy))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    found = check("bundled models", tmp_path)
    assert (found.level, found.found) == ("problem", "not as shipped: base")
    assert found.advice == "install bench again"


def test_file_systems_are_told_apart() -> None:
    assert file_system(Path("/proc/self")) == "proc"
    assert file_system(Path("/proc/self/none/at/all")) == "proc"


def test_json_is_all_there_is_on_stdout(bench: Bench, make_run: Callable[..., Run]) -> None:
    run = make_run("runs/one", trials=3, ending="interrupted")
    (run.path / ".run.json.999999999.tmp").write_bytes(b"")
    code, output, _ = bench("doctor", "one", "--json")
    told = json.loads(output)
    assert list(told) == ["mended", "checks"]
    assert set(told["checks"][0]) == {"name", "level", "found", "advice"}
    levels = {check["name"]: check["level"] for check in told["checks"]}
    assert levels["leftovers"] == "warning"
    assert levels["lock"] == levels["run.json"] == levels["study.db"] == "ok"
    assert code == int("problem" in levels.values())


def test_problems_make_the_exit_code_until_they_are_mended(
    bench: Bench, make_run: Callable[..., Run]
) -> None:
    run = make_run("runs/one", ending="empty")
    assert bench("doctor", "one")[0] == 0
    (run.path / "floor.json").write_text("{")
    code, output, _ = bench("doctor", "one")
    assert code == 1
    assert "problem  files: " in output and "floor.json: cannot be read" in output and "--fix" in output
    code, output, _ = bench("doctor", "one", "--fix")
    assert code == 0
    assert output.startswith("Mended files: floor.json: set aside into damaged/")
    assert "ok       files: all that is recorded can be read" in output


def test_what_files_say_does_not_move_the_cursor_or_make_markup(tmp_path: Path) -> None:
    hostile = Check(name="files", level="problem", found="[red]a\x1b[2Jb[/red]", advice="[bold]c")
    for is_terminal in (False, True):
        written = io.StringIO()
        page.show([hostile], ["a\x1b[2J"], Console(file=written, force_terminal=is_terminal, width=120))
        assert "\x1b[2J" not in written.getvalue()
        assert "[red]a" in written.getvalue() and "[bold]c" in written.getvalue()
