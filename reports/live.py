"""The page of `bench try`: base and adapter side by side, served to this machine alone, by Gradio.

Nothing leaves the machine: no share link and no analytics; fonts are the system's, and a policy in every
answer forbids the browser to load anything from elsewhere. A Guard refuses whoever lacks the token.
"""

import os
import socket
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from bench.easel import Easel
from bench.errors import BenchError, MissingError, UsageError
from reports.guard import HOST, Guard

MAX_WEIGHT = 2.0
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'; form-action 'self'"
)
"""Gradio's own page needs inline scripts."""


def refuse_missing() -> None:
    """Raises MissingError without Gradio."""
    if find_spec("gradio") is None:
        raise MissingError("bench try: gradio is not installed; get it with: pip install gradio")


def serve(easel: Easel, port: int, on_start: Callable[[str], None]) -> None:
    """Serve the page until Ctrl-C; `on_start` is told its address. Raises UsageError for a port in use."""
    import uvicorn

    with _bound(port) as listening:
        guard = Guard(application=application(easel), policy=POLICY)
        config = uvicorn.Config(guard, log_level="error", access_log=False)
        on_start(guard.address(listening.getsockname()[1]))
        uvicorn.Server(config).run(sockets=[listening])


def _bound(port: int) -> socket.socket:
    listening = socket.socket()
    try:
        listening.bind((HOST, port))
        listening.listen()  # whoever reads the address may come before the server does
    except OSError as error:
        listening.close()
        raise UsageError(f"--port {port}: {error.strerror or error}; give another") from None
    return listening


def application(easel: Easel) -> Any:
    """The page as an ASGI application."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported
    import gradio
    from fastapi import FastAPI

    theme = gradio.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    return gradio.mount_gradio_app(
        FastAPI(openapi_url=None),
        _page(easel),
        path="/",
        server_name=HOST,
        ssr_mode=False,
        pwa=False,
        footer_links=[],
        theme=theme,
    )


def _page(easel: Easel) -> Any:
    import gradio

    def draw(prompt: str, seed: float, weight: float) -> Any:
        try:
            return easel.draw(prompt or "", int(seed or 0), float(weight))
        except BenchError as error:
            raise gradio.Error(str(error)) from None

    with gradio.Blocks(title=f"bench try {easel.name}", analytics_enabled=False) as page:
        with gradio.Row():
            prompt = gradio.Textbox(easel.prompt, label="Prompt", scale=4)
            seed = gradio.Number(easel.seed, label="Seed", precision=0, minimum=0, scale=1)
            weight = gradio.Slider(0, MAX_WEIGHT, 1, step=0.05, label="Weight of the adapter", scale=2)
        button = gradio.Button("Draw", variant="primary")
        with gradio.Row():
            images = [
                gradio.Image(label=label, format="png", interactive=False, height=512)
                for label in (f"base: {easel.base.name}", f"with {easel.name}")
            ]
        asked: dict[str, Any] = {"inputs": [prompt, seed, weight], "outputs": images}
        button.click(draw, **asked, api_name="draw", concurrency_limit=1, concurrency_id="draw")
        for event in (prompt.submit, seed.submit, weight.release):
            event(draw, **asked, api_visibility="private", concurrency_limit=1, concurrency_id="draw")
    return page
