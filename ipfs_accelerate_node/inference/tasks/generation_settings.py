"""How a model wants its answers generated: generation_config.json, or what older models say in config.json.

Source: GenerationConfig of transformers. What is not known here is named in the notes, never silently different.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ipfs_accelerate_node.errors import ModelUnsupported
from ipfs_accelerate_node.inference.strict_json import JsonObject

# Of an answer, when neither caller nor author says anything.
DEFAULT_NEW_TOKENS = 128
_MOST_IDS = 1 << 16

# Settings of transformers that change greedy answers and are not followed; the values that change nothing.
_NOT_FOLLOWED: Mapping[str, tuple[object, ...]] = {
    "num_beams": (None, 1),
    "encoder_repetition_penalty": (None, 1.0, 1),
    "exponential_decay_length_penalty": (None,),
    "guidance_scale": (None, 1.0, 1),
    "sequence_bias": (None,),
    "penalty_alpha": (None, 0, 0.0),
    "dola_layers": (None,),
    "watermarking_config": (None,),
    "constraints": (None,),
    "force_words_ids": (None,),
}


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """start: the first token that a decoder with an encoder is given. eos: any of them ends the answer. max_length,
    min_length: of all tokens of the decoder, its prompt included; max_new_tokens, min_new_tokens: of the answer alone.
    forced: (position, token) pairs that follow the start token. bad_words: sequences that never come out."""

    start: int | None
    eos: tuple[int, ...]
    pad: int
    max_length: int | None = None
    max_new_tokens: int | None = None
    min_length: int = 0
    min_new_tokens: int = 0
    forced_bos: int | None = None
    forced_eos: tuple[int, ...] = ()
    suppress: tuple[int, ...] = ()
    begin_suppress: tuple[int, ...] = ()
    forced: tuple[tuple[int, int], ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0
    encoder_no_repeat_ngram: int = 0
    notes: tuple[str, ...] = ()

    def limit(self, prompt: int, asked: int | None, *, positions: int) -> int:
        """The most tokens of prompt and answer together. asked: of the answer, by the caller. positions: that the model
        has, its own limit."""
        if asked is not None:
            return min(prompt + asked, positions)
        if self.max_new_tokens is not None:
            return min(prompt + self.max_new_tokens, positions)
        if self.max_length is not None and self.max_length > prompt:
            return min(self.max_length, positions)
        return min(prompt + DEFAULT_NEW_TOKENS, positions)


def read_generation(
    config: JsonObject, generation: JsonObject, *, vocab_size: int, eos_id: int | None = None
) -> GenerationSettings:
    """config, generation: config.json and generation_config.json; the first counts where the second is empty. eos_id:
    the tokenizer's, for models that say nothing.

    Raises ModelUnsupported(bad_config): a token id out of the vocabulary, a number of no use.
    """
    said = _Said(generation or config, vocab_size)
    eos = said.ids("eos_token_id") or (() if eos_id is None else (eos_id,))
    pad = said.ids("pad_token_id") or said.ids_of(config, "pad_token_id") or eos[:1] or (0,)
    start = said.ids("decoder_start_token_id") or said.ids_of(config, "decoder_start_token_id")
    if not start and config.get("is_encoder_decoder"):
        start = said.ids("bos_token_id")
    return GenerationSettings(
        start=start[0] if start else None,
        eos=eos,
        pad=pad[0],
        max_length=said.count("max_length"),
        max_new_tokens=said.count("max_new_tokens"),
        min_length=said.count("min_length") or 0,
        min_new_tokens=said.count("min_new_tokens") or 0,
        forced_bos=next(iter(said.ids("forced_bos_token_id")), None),
        forced_eos=said.ids("forced_eos_token_id"),
        suppress=said.ids("suppress_tokens"),
        begin_suppress=said.ids("begin_suppress_tokens"),
        forced=said.forced(),
        bad_words=said.sequences("bad_words_ids", leave_out=eos),
        repetition_penalty=said.penalty(),
        no_repeat_ngram=said.count("no_repeat_ngram_size") or 0,
        encoder_no_repeat_ngram=said.count("encoder_no_repeat_ngram_size") or 0,
        notes=said.notes(),
    )


class _Said:
    """One JSON object's settings, checked as they are read."""

    def __init__(self, values: JsonObject, vocab_size: int) -> None:
        self._values = values
        self._vocab_size = vocab_size

    def _bad(self, key: str, value: object) -> ModelUnsupported:
        return ModelUnsupported(f"generation settings: {key} is {str(value)[:60]!r}", code="bad_config")

    def ids(self, key: str) -> tuple[int, ...]:
        """One id or several; none where there is no such setting."""
        return self.ids_of(self._values, key)

    def ids_of(self, values: JsonObject, key: str) -> tuple[int, ...]:
        value = values.get(key)
        listed = [] if value is None else value if isinstance(value, list) else [value]
        if len(listed) > _MOST_IDS or not all(self._is_id(one) for one in listed):
            # -1 stands for no token in some old configs
            if listed == [-1]:
                return ()
            raise self._bad(key, value)
        return tuple(listed)

    def _is_id(self, value: object) -> bool:
        return type(value) is int and 0 <= value < (self._vocab_size or 1 << 31)

    def count(self, key: str) -> int | None:
        value = self._values.get(key)
        if value is None:
            return None
        if type(value) is not int or not 0 <= value <= 1 << 30:
            raise self._bad(key, value)
        return value

    def penalty(self) -> float:
        value = self._values.get("repetition_penalty")
        if value is None:
            return 1.0
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0.01 <= value <= 100:
            raise self._bad("repetition_penalty", value)
        return float(value)

    def forced(self) -> tuple[tuple[int, int], ...]:
        value = self._values.get("forced_decoder_ids")
        pairs: list[tuple[int, int]] = []
        for pair in value if isinstance(value, list) else []:
            if not isinstance(pair, list) or len(pair) != 2 or type(pair[0]) is not int:
                raise self._bad("forced_decoder_ids", value)
            if pair[1] is None:  # the language, which is asked for or detected
                continue
            if not self._is_id(pair[1]):
                raise self._bad("forced_decoder_ids", value)
            pairs.append((pair[0], pair[1]))
        return tuple(pairs)

    def sequences(self, key: str, *, leave_out: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        value = self._values.get(key)
        found: list[tuple[int, ...]] = []
        for words in value if isinstance(value, list) else []:
            if not isinstance(words, list) or not words or not all(self._is_id(word) for word in words):
                raise self._bad(key, value)
            if not (len(words) == 1 and words[0] in leave_out):
                found.append(tuple(words))
        return tuple(found)

    def notes(self) -> tuple[str, ...]:
        notes = [
            f"{key} of the author is not followed: answers are greedy"
            for key, plain in _NOT_FOLLOWED.items()
            if self._values.get(key) not in plain
        ]
        return tuple(notes)
