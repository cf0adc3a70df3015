"""CLIP's text side, which several families share: its configuration at two sizes, and its tokenizer."""

import gzip
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.errors import MissingError

CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
}
"""ViT-L/14 of OpenAI (Radford et al. 2021, arXiv 2103.00020)."""
MAX_TOKENS = 77
START, END = "<|startoftext|>", "<|endoftext|>"
NUM_MERGES = 49152 - 256 - 2
"""Of those in the file: the rest was never used."""


def clip_tokenizer(pad: str) -> Any:
    """The tokenizer of all CLIPs, of the vocabulary that open_clip brings; `pad` is its padding token.

    Ids as in Radford et al.'s code: 256 bytes, the same at a word's end, then what merges make. Raises
    MissingError if open_clip has no vocabulary where it is expected.
    """
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    lines = gzip.decompress(_vocabulary().read_bytes()).decode().split("\n")
    merges = lines[1 : NUM_MERGES + 1]
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += [merge.replace(" ", "") for merge in merges]
    vocabulary = {token: number for number, token in enumerate([*tokens, START, END])}
    return CLIPTokenizer(
        vocabulary, [tuple(merge.split()) for merge in merges], pad_token=pad, model_max_length=MAX_TOKENS
    )


def _vocabulary() -> Path:
    found = find_spec("open_clip")
    path = Path(found.origin if found and found.origin else "").with_name("bpe_simple_vocab_16e6.txt.gz")
    if not path.exists():
        raise MissingError(f"no CLIP vocabulary at {path}; get it with: pip install open_clip_torch")
    return path
