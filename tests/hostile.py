"""Text that would do harm if a page took it for anything else, and a run that is full of it."""

from collections.abc import Callable

from bench.run import Run, read_json, write_json

MakeRun = Callable[..., Run]
HOSTILE = "</script><img src=x onerror=alert(1)>"


def hostile_run(make_run: MakeRun, name: str, text: str = HOSTILE) -> Run:
    """A finished search whose every text field is `text`, which holds no single quote."""
    metadata = [(field, text) for field in ("base", "data", "scorer", "device", "machine", "created")]
    run = make_run(name, caption=text, reason=text, metadata=tuple(metadata))
    data = read_json(run.path / "run.json")
    data |= {"name": text, "versions": {text: text}}
    data["space"]["data"] = text
    write_json(run.path / "run.json", data)
    for file in (run.path / "trials").glob("*/config.yaml"):
        file.write_text(file.read_text().replace("attention+ff", f"['{text}']"))
    result = read_json(run.path / "result.json")
    for candidate in result["candidates"]:
        for score in candidate["scores"].values():
            score["extractor"] = text
        candidate["config"]["target_modules"] = [text]
    write_json(run.path / "result.json", result)
    return Run.open(run.path)
