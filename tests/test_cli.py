"""The command: its flags are frozen, and what is wrong is one line and exit code 2."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main

from bench import cli
from bench.comparison import compare
from bench.lock import locked
from bench.run import Run
from reports import compare_json, search_json

Command = Callable[..., tuple[int, str, str]]
"""The fixture `bench`."""


@pytest.fixture
def two_runs(tmp_path: Path, make_run: Callable[..., Run]) -> None:
    make_run("runs/one")
    make_run("runs/two", gain=0.3)


def test_flags_are_frozen() -> None:
    commands = dict(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]
    data = commands.pop("data").commands
    commands |= {f"data {name}": command for name, command in data.items()}
    flags = {name: [parameter.name for parameter in command.params] for name, command in commands.items()}
    assert flags == {
        "search": [
            *("space", "base", "data", "name", "trials", "budget", "seed", "floor"),
            *("new_run", "yes", "quiet", "as_json", "storage", "artifacts", "executor", "force", "live"),
        ],
        "worker": ["run", "storage", "artifacts", "base", "data", "quiet", "force"],
        "floor": ["space", "base", "data", "name", "seeds", "seed", "quiet"],
        "train": ["config", "hub_model_id", "quiet"],
        "runs": ["as_json"],
        "show": ["run", "trial", "as_json"],
        "report": ["run", "as_json"],
        "index": ["folder"],
        "compare": ["sides", "fail_on", "as_json", "space", "base", "data", "name", "quiet"],
        "score": ["adapters", "weights", "as_json", "space", "base", "data", "name", "quiet"],
        "export": ["run", "layout", "trial", "epoch"],
        "push": ["run", "target", "public", "yes"],
        "try": ["run", "base", "port"],
        "dashboard": ["run", "storage", "port"],
        "speed": ["space", "base", "as_json"],
        "clean": ["run", "dry_run"],
        "doctor": ["run", "fix", "as_json"],
        "data check": ["source", "base", "strict", "as_json"],
        "data caption": ["folder", "template", "trigger", "force"],
        "data push": ["source", "target", "public", "yes"],
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("search", "--space", "nope"), "bench: --space nope: no such space; shipped are default"),
        (("search", "--space", "my.yaml"), "bench: my.yaml: no such file"),
        (("search", "--name", "../up"), "bench: --name '../up': use up to 64 letters"),
        (("search", "--name", "a" * 65), "use up to 64 letters"),
        (("search", "--data", "./none"), "bench: ./none: no such folder"),
        (("search", "--data", "emoji/none!"), "emoji/pixel16"),
        (("search", "--budget", "soon"), "bench: --budget: budget"),
        (("search", "--base", "./none"), "bench: base ./none: no such folder"),
        (("search", "--base", "someone/something"), "get it with: hf download someone/something"),
        (("search", "--space", "sdxl"), "bench: --data: the space 'sdxl' names none"),
        (("score", "none"), "bench: none: no such file or folder"),
        (("score", "."), "bench: .: holds no adapters (.safetensors files, or folders checkpoint-N"),
        (("speed", "--space", "nope"), "bench: --space nope: no such space"),
        (("speed", "--base", "./none"), "bench: base ./none: no such folder"),
        (("data", "check", "./none"), "bench: ./none: no such folder"),
        (("data", "check", ".", "--base", "./none"), "bench: base ./none: no such folder"),
        (("data", "check", "."), "bench: .: no pictures in it"),
        (("data", "caption", "none"), "bench: none: no such folder"),
        (("data", "caption", "."), "bench: .: no pictures in it; nothing was written"),
        (("data", "caption", ".", "--template", "{trigger}"), "give the word with --trigger"),
        (("data", "push", ".", "mine"), "bench: mine: give OWNER/NAME"),
        (("data", "push", ".", "someone/mine@main"), "bench: someone/mine@main: give OWNER/NAME"),
        (("data", "push", ".", "up/../there"), "bench: up/../there: give OWNER/NAME"),
        (("search", "--artifacts", "a"), "bench: --artifacts: only with --storage"),
        (("search", "--storage", "sqlite:///a.db"), "bench: --artifacts: say where trained adapters go"),
        (("worker", "mine"), "bench: --storage: say where the search's study is"),
        (
            ("worker", "mine", "--storage", "postgresql://me:secret@127.0.0.1:1/db", "--artifacts", "a"),
            "bench: postgresql://me:***@127.0.0.1:1/db: cannot be used: connection",
        ),
        (
            ("worker", "mine", "--storage", "nothing", "--artifacts", "a"),
            "bench: --storage: cannot be used: it is no",
        ),
        (("report", "none"), "bench: none: no such run; in runs/ are: none"),
        (("dashboard", "none"), "bench: none: no such run; in runs/ are: none"),
        (("index",), "bench: runs: no such folder; `bench search` makes it with the first run"),
        (("doctor", "none"), "bench: none: no such run; in runs/ are: none"),
        (("doctor", "--fix"), "bench: --fix: only with a run"),
        (("clean", "none"), "bench: none: no such run; in runs/ are: none"),
        (("compare", "none", "other"), "bench: none: no such run"),
        (("compare", "none"), "bench: compare: needs at least two sides, got none"),
        (("compare", "none", "none"), "bench: compare: none is named twice"),
        (("compare", "base", "none"), "bench: none: no such run"),
        (("compare", "base", "a.safetensors"), "bench: a.safetensors: no such file"),
        (("compare", "one", "two", "--space", "smoke"), "bench: --space: only for adapter files"),
    ],
)
def test_what_is_wrong_is_one_line(
    bench: Command, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    code, _, errors = bench(*arguments)
    assert code == 2
    assert message in errors
    assert len(errors.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("search", "--trials", "0"),
        ("search", "--seed", "-1"),
        ("search", "--nope"),
        ("compare", "a", "b", "--fail-on", "win"),
    ],
)
def test_a_wrong_flag_is_refused(bench: Command, arguments: tuple[str, ...]) -> None:
    assert bench(*arguments)[0] == 2


def test_what_is_wrong_with_data_is_all_listed(bench: Command, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.png").write_bytes(b"not a picture")
    (tmp_path / "mine" / "b.png").write_bytes(b"")
    code, _, errors = bench("search", "--data", "./mine")
    assert code == 2
    assert "a.png" in errors and "b.png" in errors
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("two_runs")
def test_compare_prints_a_verdict_and_writes_a_page(bench: Command, tmp_path: Path) -> None:
    code, output, _ = bench("compare", "one", "two")
    assert code == 0
    assert "Similarity to the true picture" in output
    assert (tmp_path / "runs" / "compare-one-two.html").exists()


@pytest.mark.usefixtures("two_runs")
def test_quiet_leaves_the_last_line(bench: Command) -> None:
    assert bench("compare", "one", "two", "--quiet") == (0, "Report: runs/compare-one-two.html\n", "")
    code, output, errors = bench("compare", "one", "none", "-q")
    assert (code, output, len(errors.splitlines())) == (2, "", 1)


@pytest.mark.usefixtures("two_runs")
def test_several_sides_are_compared_in_pairs(bench: Command, tmp_path: Path) -> None:
    code, output, _ = bench("compare", "one", "runs/two", "base")
    assert code == 0
    assert "against 2 others" in output
    assert "all 3 pairs together (Holm)" in " ".join(output.split())
    assert (tmp_path / "runs" / "compare-one-two-base.html").exists()


def strict(text: str) -> dict[str, Any]:
    """JSON without NaN or infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(name)

    data: dict[str, Any] = json.loads(text, parse_constant=refuse)
    return data


@pytest.mark.usefixtures("two_runs")
def test_json_is_all_there_is_on_stdout_and_holds_what_is_documented(bench: Command, tmp_path: Path) -> None:
    code, output, _ = bench("compare", "one", "two", "base", "--json")
    data = strict(output)
    assert code == 0
    assert list(data) == ["schema_version", "select_by", "report", "sides", "pairs"]
    assert [side["name"] for side in data["sides"]] == ["one", "two", "base"]
    assert [side["trainings"] for side in data["sides"]] == [2, 2, None]
    assert [(pair["a"], pair["b"]) for pair in data["pairs"]] == [
        ("one", "two"),
        ("one", "base"),
        ("two", "base"),
    ]
    assert Path(data["report"]).exists()
    comparison = compare(Run.open(tmp_path / "runs" / "one"), Run.open(tmp_path / "runs" / "two"))
    for told, row in zip(data["pairs"][0]["tested"], comparison.metrics, strict=True):
        assert (told["metric"], told["difference"], told["verdict"]) == (row.metric, row.mean, row.verdict)
    documented = str(compare_json.__doc__)
    keys = {key for pair in data["pairs"] for key in [*pair, *pair["tested"][0], *pair["shown"][0]]}
    assert all(re.search(rf"\b{key}\b", documented) for key in keys | set(data) | set(data["sides"][0]))


@pytest.mark.parametrize(
    ("sides", "fail_on", "expected"),
    [
        (("better", "worse"), "loss", 0),
        (("better", "worse"), "tie", 0),
        (("worse", "better"), "loss", 1),
        (("worse", "better", "base"), "tie", 1),
        (("worse", "like"), "loss", 0),
        (("worse", "like"), "tie", 1),
    ],
)
def test_fail_on_decides_the_exit_code(
    bench: Command, make_run: Callable[..., Run], sides: tuple[str, ...], fail_on: str, expected: int
) -> None:
    for name, gain, random in (("better", 0.5, 0), ("worse", 0.0, 1), ("like", 0.0, 2)):
        if name in sides:
            make_run(f"runs/{name}", gain=gain, random=random, prompts=12, training_seeds=3)
    code, output, _ = bench("compare", *sides, "--fail-on", fail_on)
    assert code == expected
    assert "Report: " in output


def test_runs_that_cannot_be_compared_are_one_line(bench: Command, make_run: Callable[..., Run]) -> None:
    make_run("runs/one")
    make_run("runs/two", space=(("dtype", "bfloat16"), ("resolution", 64)))
    code, output, errors = bench("compare", "one", "two", "--json")
    assert (code, output) == (2, "")
    assert errors == (
        "bench: one and two cannot be compared, "
        "they differ in resolution (None and 64), dtype (float32 and bfloat16)\n"
    )


def test_a_run_under_two_names_is_still_the_same(bench: Command, make_run: Callable[..., Run]) -> None:
    make_run("runs/one")
    code, _, errors = bench("compare", "one", "runs/one")
    assert (code, errors) == (2, "bench: one and runs/one are the same: there is nothing to compare\n")


@pytest.mark.usefixtures("two_runs")
def test_report_is_written_again(bench: Command, tmp_path: Path) -> None:
    assert bench("report", "one")[0] == 0
    assert bench("report", "runs/two")[0] == 0
    assert (tmp_path / "runs" / "two" / "report.html").exists()


@pytest.mark.usefixtures("two_runs")
def test_a_report_for_programs_is_documented(bench: Command, tmp_path: Path) -> None:
    code, output, _ = bench("report", "one", "--json")
    data, run = strict(output), Run.open(tmp_path / "runs" / "one")
    assert code == 0 and (data["state"], data["winner"]["label"]) == ("finished", "0002")
    assert Path(data["report"]).exists() and all(Path(file).exists() for file in data["data_files"])
    assert data["trials"] == json.loads((run.path / "data" / "trials.json").read_text(encoding="utf-8"))
    assert data["scores"] == json.loads((run.path / "data" / "scores.json").read_text(encoding="utf-8"))
    documented = str(search_json.__doc__)
    keys = {key for part in (data, data["verdict"], data["winner"], *data["advice"]) for key in part}
    assert all(re.search(rf"\b{key}\b", documented) for key in keys)


@pytest.mark.parametrize("ending", ["interrupted", "failed", "empty"])
def test_a_search_without_a_result_is_told_to_programs_too(
    bench: Command, make_run: Callable[..., Run], ending: str
) -> None:
    make_run("runs/one", ending=ending)
    code, output, _ = bench("report", "one", "--json")
    data = strict(output)
    assert code == 0 and (data["winner"], data["seconds"], data["scores"]) == (None, None, [])
    assert data["state"] == {"interrupted": "unfinished"}.get(ending, ending)


@pytest.mark.usefixtures("two_runs")
def test_an_index_links_to_the_reports(bench: Command, tmp_path: Path) -> None:
    bench("report", "one")
    code, output, _ = bench("index")
    assert (code, output) == (0, "Index: runs/index.html\n")
    page = (tmp_path / "runs" / "index.html").read_text(encoding="utf-8")
    assert 'href="one/report.html"' in page and 'href="two/report.html"' not in page


@pytest.mark.usefixtures("two_runs")
def test_a_run_that_does_not_exist_names_those_that_do(bench: Command) -> None:
    assert "in runs/ are: one, two" in bench("report", "three")[2]


def test_clean_says_what_goes_and_removes_it_once(bench: Command, tmp_path: Path, make_run: Any) -> None:
    run = make_run("runs/one", trials=4)
    adapter = run.trial_folder(3) / "epoch-02" / "adapter.safetensors"
    adapter.parent.mkdir(exist_ok=True)
    adapter.write_bytes(bytes(2_000_000))
    code, output, _ = bench("clean", "one", "--dry-run")
    assert code == 0 and adapter.exists()
    assert "trials/0003  failed  2.0 MB\n" in output
    assert "Would free 2.0 MB of runs/one; scores, losses and configurations would stay.\n" in output
    code, output, _ = bench("clean", "runs/one")
    assert code == 0 and not adapter.exists()
    assert output.endswith("Freed 2.0 MB of runs/one; scores, losses and configurations stay.\n")
    assert bench("clean", "one")[1] == "runs/one: nothing to remove\n"
    with locked(run.path):
        code, _, errors = bench("clean", "one")
    assert (code, len(errors.splitlines())) == (2, 1)
    assert "another bench search is working on it; clean it when that has ended" in errors
