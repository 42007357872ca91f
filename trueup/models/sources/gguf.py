"""Models and tokenizers in GGUF files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase


def gguf_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """A GGUF file's tokenizer, with the BOS and EOS that the file names.

    transformers 5.17 swaps the two in the Llama family, and turns would be trained to end with BOS.
    """
    from gguf import GGUFReader

    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    fields = GGUFReader(path).fields
    for role in ("bos", "eos"):
        token_id = fields.get(f"tokenizer.ggml.{role}_token_id")
        if token_id is not None:
            setattr(tokenizer, f"{role}_token", tokenizer.convert_ids_to_tokens(int(token_id.contents())))
    return tokenizer


def gguf_stops(path: Path) -> list[int]:
    """Ids at which a GGUF file says that its model stops: end of text, end of turn, end of message."""
    from gguf import GGUFReader

    fields = GGUFReader(path).fields
    stops = (fields.get(f"tokenizer.ggml.{role}_token_id") for role in ("eos", "eot", "eom"))
    return [int(stop.contents()) for stop in stops if stop is not None]


def load_gguf(path: Path, kind: Any, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A GGUF file, dequantised. transformers refuses to save a model marked as quantised, so the mark is removed."""
    model = kind.from_pretrained(path.parent, gguf_file=path.name, dtype=dtype)
    tokenizer = gguf_tokenizer(path)
    model.hf_quantizer, model.is_quantized = None, False
    del model.quantization_method, model.config.quantization_config
    return model, tokenizer
