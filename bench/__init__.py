"""Hyperparameter search and benchmarking for LoRA fine-tuning of diffusion models."""

import os

__version__ = "0.1.0"

# A model's own code is never run, whoever asks for it; read when diffusers is imported.
os.environ["DIFFUSERS_DISABLE_REMOTE_CODE"] = "1"
