"""What is installed: requirements.txt locks constraints.txt's versions by hash."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PINNED = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>\S+)(?P<rest>.*)")


def test_every_requirement_is_pinned_and_hashed() -> None:
    lines = [line for line in locked().splitlines() if not line.startswith("#")]
    entries = "\n".join(lines).replace("\\\n", " ").splitlines()
    assert len(entries) > 100
    for entry in entries:
        match = PINNED.fullmatch(entry)
        assert match, entry
        hashes = re.findall(r"--hash=(\S+)", match["rest"])
        assert hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64}", found) for found in hashes), entry


def test_requirements_are_the_versions_that_the_tests_run_with() -> None:
    constraints = versions((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    found = versions(locked())
    assert {name: found.get(name) for name in constraints} == constraints, "run .ci/lock"


def test_requirements_name_no_place_to_get_them() -> None:
    assert not re.search(r"://|--(extra-)?index-url|--find-links|--trusted-host", locked())


def test_versions_that_run_code_of_a_model_or_leave_a_folder_are_refused() -> None:
    """CVE-2026-4372 and -5241 in transformers; datasets' issue 8324."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {"transformers>=5.3", "datasets>=5.2"} <= set(project["dependencies"])


def locked() -> str:
    return (ROOT / "requirements.txt").read_text(encoding="utf-8")


def versions(text: str) -> dict[str, str]:
    pins = (PINNED.match(line) for line in text.splitlines())
    return {re.sub(r"[-_.]+", "-", pin["name"]).lower(): pin["version"] for pin in pins if pin}
