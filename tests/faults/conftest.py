"""The tiny SDXL, where every test and the soak train it."""

from pathlib import Path

import pytest
from engine.conftest import write_tiny_sdxl


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `write_tiny_sdxl`."""
    return write_tiny_sdxl(tmp_path_factory.mktemp("tiny-sdxl"))
