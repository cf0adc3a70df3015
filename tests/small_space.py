"""A space of seconds on the tiny SDXL, which tests change."""

from typing import Any

SMALL: dict[str, Any] = {
    "data": "emoji/pixel16",
    "parameters": {
        "rank": {"choices": [2, 4]},
        "learning_rate": {"low": "1e-4", "high": "1e-2", "log": True},
        "epochs": {"choices": [1, 2]},
    },
    "default": {"rank": 4, "alpha": 8, "learning_rate": "1e-4", "epochs": 2, "batch_size": 20},
    "prompts": {"dev": 4, "test": 4, "seeds": 2, "training": 0, "altered": 0, "style": 0, "unrelated": 0},
    "sampler": {"steps": 2, "guidance": 2},
    "confirm": {"finalists": 1, "seeds": 1},
    "floor": 0,
    "judge": "none",
    "slots": 1,
}
