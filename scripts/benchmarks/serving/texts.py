"""The texts of the load: lengths as they are in life, every word in the model's vocabulary, no two the same."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

import tokenizers

MEDIAN_WORDS, SPREAD = 40, 0.9
SHORT_WORDS = 8
MIN_LETTERS = 3


class Words:
    """model: its folder. most: tokens of a text, those that the model puts around it included."""

    def __init__(self, model: Path, *, most: int = 256) -> None:
        self._most = most
        self._tokenizer = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        known = json.loads(self._tokenizer.to_str())["model"]["vocab"]
        names = known if isinstance(known, dict) else [entry[0] for entry in known]
        plain = (name.lstrip("Ġ▁") for name in names)
        self._words = sorted({word for word in plain if word.isascii() and word.isalpha() and word.islower()})
        self._words = [word for word in self._words if len(word) >= MIN_LETTERS] or self._words

    def short(self, count: int, *, seed: int = 0) -> list[str]:
        draw = random.Random(f"short {seed}")
        return [self._text(draw, SHORT_WORDS) for _ in range(count)]

    def mixed(self, count: int, *, seed: int = 0, median: int = MEDIAN_WORDS) -> list[str]:
        """Log-normal, median 40 words, none longer than the model reads."""
        draw = random.Random(f"mixed {seed}")
        return [self._text(draw, round(draw.lognormvariate(math.log(median), SPREAD))) for _ in range(count)]

    def _text(self, draw: random.Random, words: int) -> str:
        chosen = draw.choices(self._words, k=max(1, min(words, self._most)))
        while len(chosen) > 1 and self.tokens([" ".join(chosen)]) > self._most:
            chosen = chosen[:-1]
        return " ".join(chosen)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoded.ids for encoded in self._tokenizer.encode_batch(list(texts))]

    def tokens(self, texts: Sequence[str]) -> int:
        """Real ones."""
        return sum(len(row) for row in self.ids(texts))
