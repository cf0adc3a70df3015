"""Hyperparameter search and benchmarking for LoRA fine-tuning of diffusion models."""

import logging
import os

from bench.api import compare, open_run, score, search

__version__ = "0.1.0"
__all__ = ["compare", "open_run", "score", "search"]

# A model's own code is never run, whoever asks for it; read when diffusers is imported.
os.environ["DIFFUSERS_DISABLE_REMOTE_CODE"] = "1"

# It warns whoever imports it, as PEFT does, of what its kernels of 4 bits lack; none is used here.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
