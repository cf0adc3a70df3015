"""Secrets are hidden wherever text leaves; `engine/test_canary.py` plants some in a whole search."""

import json
import logging
from collections.abc import Callable, Iterator

import click
import pytest
import typer.main

from bench import cli, secrets
from bench.config import TrialConfig
from bench.errors import BenchError, UsageError, one_line
from bench.files import json_text
from bench.run import Run
from bench.secrets import held_by, masked
from bench.shared import Place
from reports import search

HUB = "hf_" + "aB3" * 12
AWS = "AKIA" + "Q7" * 8
PASSWORD = "s3cret/of+mine="
LOGIN = "postgresql+psycopg://me:p4ss@word@db.example:5432/study?sslmode=require"


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """The environment is read once a process."""
    secrets._held.cache_clear()
    yield
    secrets._held.cache_clear()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (LOGIN, "postgresql+psycopg://me:***@db.example:5432/study?sslmode=require"),
        ("mysql://:hidden1@host/x", "mysql://:***@host/x"),
        ("at mysql://db/x?user=me&password=hidden1&ssl=on", "at mysql://db/x?user=me&password=***&ssl=on"),
        ("host=db password=hidden1 sslpassword=hidden2 a=b", "host=db password=*** sslpassword=*** a=b"),
        ("https://host/x?access_token=hidden1#a", "https://host/x?access_token=***"),
        (f"401 for {HUB}.", "401 for ***."),
        ("Authorization: Bearer ab12.cd-34_ef==", "Authorization: Bearer ***"),
        (f"HF_TOKEN={HUB}", "HF_TOKEN=***"),
        ("{'WANDB_API_KEY': 'hidden1', 'A': 1}", "{'WANDB_API_KEY': '***', 'A': 1}"),
        ("PGPASSWORD: hidden1", "PGPASSWORD: ***"),
        (f"key {AWS} and AWS_SECRET_ACCESS_KEY=ab/cd+ef", "key *** and AWS_SECRET_ACCESS_KEY=***"),
    ],
)  # fmt: skip
def test_every_form_is_hidden(text: str, shown: str) -> None:
    assert masked(text) == shown
    assert masked(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////home/me/runs/mine/study.db",
        "https://example.org:8080/a@b",
        "a photo of a bearer certificate, 77 tokens: it is no secret",
        "max_tokens=77; tokenizer=CLIPTokenizer",
        "hf_hub_download and owner/hf_model",
        "rank 8, alpha 16, learning_rate 0.0001",
    ],
)
def test_other_text_stays(text: str) -> None:
    assert masked(text) == text


def test_long_text_is_read_in_no_time() -> None:
    for text in ("a" * 2_000_000, "A_" * 500_000, "x://" * 200_000, "token" * 200_000, "Bearer " * 100_000):
        masked(text)


def test_what_variables_hold_is_known_by_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {
        "WANDB_API_KEY": "0123456789abcdef",
        "AWS_SECRET_ACCESS_KEY": PASSWORD,
        "MY_SECRET_THING": "another-one",
        "PGPASSWORD": "pictures",
        "HF_TOKEN": "",
        "TOKENIZERS_PARALLELISM": "12345678",
        "HF_TOKEN_PATH": "/home/me/token",
        "BENCH_STORAGE": "mysql://me:h1dden-too@db/x",
    }
    assert held_by(variables) == ("0123456789abcdef", PASSWORD, "another-one", "h1dden-too")
    monkeypatch.setenv("DATABASE_PASSWORD", PASSWORD)
    assert masked(f"cannot log in as {PASSWORD}!") == "cannot log in as ***!"


def test_errors_json_and_logs_are_masked(caplog: pytest.LogCaptureFixture) -> None:
    assert one_line(UsageError(f"no\nway: {LOGIN}")).endswith("me:***@db.example:5432/study?sslmode=require")
    assert json.loads(json_text({"a": [LOGIN], HUB: f"Bearer {HUB}"})) == {
        "a": [masked(LOGIN)],
        "***": "Bearer ***",
    }
    before = logging.getLogRecordFactory()
    try:
        secrets.mask_logs()
        logging.getLogger("other").warning("as %s with %s", HUB, 7)
    finally:
        logging.setLogRecordFactory(before)
    assert caplog.messages == ["as *** with 7"]


@pytest.mark.parametrize(
    ("error", "code"), [(UsageError(f"bad: {LOGIN}"), 2), (RuntimeError(f"bad: {LOGIN}"), 1)]
)
def test_what_the_command_says_of_an_error_is_masked(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise error

    monkeypatch.setattr(cli, "app", fails)
    before = logging.getLogRecordFactory()
    try:
        with pytest.raises(SystemExit) as exit_:
            cli.main()
    finally:
        logging.setLogRecordFactory(before)
    said = capsys.readouterr().err
    assert (exit_.value.code, "p4ss" in said) == (code, False)
    assert "bad: postgresql+psycopg://me:***@db.example" in said
    assert ("Traceback" in said) == (code == 1)


def test_a_report_of_a_run_that_was_written_elsewhere_is_masked(make_run: Callable[..., Run]) -> None:
    run = make_run(caption=f"a {HUB} b", reason=f"cannot reach {LOGIN}")
    (run.path / "run.json").write_text((run.path / "run.json").read_text().replace("***", HUB))
    page = search.write(Run.open(run.path)).read_text(encoding="utf-8")
    assert "cannot reach postgresql+psycopg://me:***@db.example" in page
    assert HUB not in page and "p4ss" not in page and "a *** b" in page


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hunter22@127.0.0.1:1/x?password=hunter22",
        "mysql://me:hunter22@127.0.0.1:1/x",
        "grpc://me:hunter22@127.0.0.1:1",
        "grpc://127.0.0.1:hunter22",
        "no address: hunter22",
    ],
)
def test_a_storage_that_does_not_answer_is_named_without_its_password(url: str) -> None:
    place = Place(url=url, artifacts="out")
    with pytest.raises(BenchError) as caught, place.opened():
        pass
    assert "hunter22" not in str(caught.value)
    assert "\n" not in str(caught.value)


# The command line


def options(command: click.Command) -> Iterator[str]:
    yield from (name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts))
    for child in getattr(command, "commands", {}).values():
        yield from options(child)


def test_no_secret_is_an_option() -> None:
    """Every user of a machine sees the arguments of its processes."""
    names = set(options(typer.main.get_command(cli.app)))
    assert "--space" in names
    assert not [name for name in names if secrets.HOLDERS.search(name.replace("-", "_"))]


def test_no_configuration_holds_a_secret() -> None:
    from bench.config import TrainingConfig
    from bench.space import SearchSpace

    fields = {*TrainingConfig.model_fields, *SearchSpace.model_fields, *TrialConfig.model_fields}
    assert not [name for name in fields if secrets.HOLDERS.search(name)]
