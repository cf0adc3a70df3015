"""A small CLIP tokenizer: byte-pair encoding of the captions' words, complete for any other text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTokenizer

VOCABULARY_SIZE = 2048
CONTEXT_LENGTH = 32
START, END = "<|startoftext|>", "<|endoftext|>"
END_ID = VOCABULARY_SIZE - 1
"""The end comes last, because open_clip pools where the id is highest."""


def train_tokenizer(texts: Iterable[str], folder: Path) -> None:
    """Learn merges from the texts and write a folder that `CLIPTokenizer.from_pretrained` loads."""
    characters = _byte_characters()
    symbols = characters + [f"{c}</w>" for c in characters if _may_end_a_word(c)]
    merges = _learned_merges(texts, VOCABULARY_SIZE - len(symbols) - 2)
    entries = [*symbols, *("".join(pair) for pair in merges), START, END]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    _write_json(folder / "vocab.json", vocabulary)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    _write_json(folder / "tokenizer_config.json", _config())


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder, as transformers' CLIPTokenizer."""
    return CLIPTokenizer.from_pretrained(folder)


def encode(tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """Token ids, int64 [N, 32]: start, words, then the end up to the full length."""
    ids = tokenizer(
        list(texts), padding="max_length", max_length=CONTEXT_LENGTH, truncation=True, return_tensors="pt"
    ).input_ids
    return torch.as_tensor(ids, dtype=torch.int64)


def _learned_merges(texts: Iterable[str], num: int) -> list[tuple[str, str]]:
    model = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=2 * VOCABULARY_SIZE,
        end_of_word_suffix="</w>",
        initial_alphabet=_byte_characters(),
        min_frequency=1,
        show_progress=False,
    )
    model.train_from_iterator((text.lower() for text in texts), trainer)
    merges = [tuple(pair) for pair in json.loads(model.to_str())["model"]["merges"]]
    if len(merges) < num:
        raise ValueError(f"The texts give {len(merges)} merges, but {num} are needed for the vocabulary.")
    return merges[:num]


def _byte_characters() -> list[str]:
    """Byte-level BPE's stand-ins for the bytes that occur in lower-case UTF-8 text without spaces."""
    raw = [*range(0x21, 0x41), *range(0x5B, 0x7F), *range(0x80, 0xC0), *range(0xC2, 0xF5)]
    return [_stand_in(byte) for byte in raw]


def _may_end_a_word(character: str) -> bool:
    leading = {_stand_in(byte) for byte in range(0xC2, 0xF5)}
    return character not in leading


def _stand_in(byte: int) -> str:
    """Printable bytes stand for themselves, others for U+0100 and on, in order (GPT-2's table)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in shown]
    return chr(byte) if byte in shown else chr(256 + hidden.index(byte))


def _config() -> dict[str, Any]:
    special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    return {"tokenizer_class": "CLIPTokenizer", "model_max_length": CONTEXT_LENGTH, **special}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
