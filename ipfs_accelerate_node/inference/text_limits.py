"""How many tokens a model takes at once: the least of what its author, its tokenizer and its positions allow."""

from __future__ import annotations

from collections.abc import Mapping

from ipfs_accelerate_node.errors import ModelUnsupported
from ipfs_accelerate_node.inference.families import ModelType
from ipfs_accelerate_node.inference.sentence_files import SentenceFiles
from ipfs_accelerate_node.inference.strict_json import JsonObject

_UNLIMITED = 4096  # tokens, for relative positions of which nothing says how far they reach
_AFTER_PADDING = ("roberta", "xlm-roberta", "camembert", "roberta-prelayernorm", "mpnet")
# Where transformers' own configuration class differs from 512.
_DEFAULT_POSITIONS: Mapping[str, int] = {
    "clip": 77, "siglip": 64, "bart": 1024, "mbart": 1024, "marian": 1024, "pegasus": 1024, "m2m_100": 1024,
    "blenderbot": 128, "llama": 2048, "mistral": 131072, "qwen2": 32768, "qwen3": 32768, "gpt2": 1024, "gpt_neo": 2048,
    "gpt_neox": 2048, "gptj": 2048, "phi": 2048, "phi3": 4096, "opt": 2048, "gemma": 8192, "gemma2": 8192,
    "granite": 2048, "olmo": 2048, "olmo2": 2048, "stablelm": 4096, "starcoder2": 4096, "smollm3": 32768,
    "modernbert": 8192, "whisper": 448,
}  # fmt: skip


def max_tokens_of(
    kind: ModelType, config: JsonObject, tokenizer_config: JsonObject, sentence: SentenceFiles | None
) -> int:
    """Tokens, special ones included; 0 for a model that takes no text. Raises ModelUnsupported(bad_config)."""
    if kind.family == "image":
        return 0
    limits = [_positions(kind, config, sentence)]
    declared = tokenizer_config.get("model_max_length")  # transformers writes 10**30 for "none"
    if sentence is not None and sentence.settings.max_tokens is not None:
        limits.append(sentence.settings.max_tokens)
    elif isinstance(declared, int | float) and not isinstance(declared, bool) and declared >= 1:
        limits.append(int(declared))
    known = [limit for limit in limits if limit is not None]
    least = min(known, default=_UNLIMITED)
    if least < 1:
        raise ModelUnsupported("config.json: no position is left for a token", code="bad_config")
    return least


def _positions(kind: ModelType, config: JsonObject, sentence: SentenceFiles | None) -> int | None:
    """None where positions are relative and any number goes."""
    if sentence is not None and sentence.encoder is not None:
        return sentence.encoder.max_tokens
    if kind.name in ("t5", "mt5", "umt5", "bloom"):
        return None
    if kind.family == "speech":
        return _count(config, "max_target_positions", kind)
    text = config.get("text_config")
    part = text if kind.family == "dual" and isinstance(text, dict) else config
    positions = _count(part, "n_positions" if "n_positions" in part else "max_position_embeddings", kind)
    if kind.name not in _AFTER_PADDING and part.get("model_type") not in _AFTER_PADDING:
        return positions
    padding = part.get("pad_token_id")
    return positions - 1 - (padding if type(padding) is int else 1)


def _count(part: JsonObject, key: str, kind: ModelType) -> int:
    value = part.get(key, _DEFAULT_POSITIONS.get(kind.name, 512))
    assert type(value) is int, "sizes are checked before"
    return value
