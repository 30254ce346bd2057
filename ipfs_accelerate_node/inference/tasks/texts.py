"""Text to token ids and back, by the tokenizers library alone: what transformers' fast tokenizers call underneath."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from tokenizers import Encoding

from ipfs_accelerate_node.errors import InvalidInput, ModelUnsupported, PayloadTooLarge
from ipfs_accelerate_node.inference.model import CutAt, Token
from ipfs_accelerate_node.inference.tasks.tokenizer_files import TokenizerFiles


@dataclass(frozen=True, slots=True)
class Row:
    """One input's tokens, special ones included, no more than the model takes. types: 0 for the first text, 1 for the
    second. spans: characters of the text that each token stands for; special: the ones that stand for none; both are
    empty where they were not asked for."""

    ids: list[int]
    types: list[int]
    truncated: bool
    spans: list[tuple[int, int]]
    special: list[int]


class TextTokens:
    """The tokenizer of one model. Truncation is a setting of the library's object, which is not changed while it is
    used: one thread at a time goes in."""

    def __init__(
        self,
        files: TokenizerFiles,
        *,
        max_tokens: int,
        vocab_size: int,
        lower_case: bool = False,
    ) -> None:
        """lower_case: before the tokenizer. Raises ModelUnsupported(bad_config): there is no room for text."""
        self.files = files
        self.max_tokens = max_tokens
        self.vocab_size = vocab_size
        self._lower_case = lower_case
        self._tokenizer = files.tokenizer
        self._tokenizer.no_padding()
        self._one = threading.RLock()
        if self._tokenizer.num_special_tokens_to_add(is_pair=False) >= max_tokens:
            raise ModelUnsupported(f"no room for text within {max_tokens} tokens", code="bad_config")

    def row(self, index: int, first: str, second: str | None = None, *, truncate: bool, special: bool = True) -> Row:
        """The tokens of a text, or of a pair. index: in errors. special: with the tokens that the model expects around
        a text.

        Raises InvalidInput: too long and not to be cut, no token at all, or a token that the model has no row for.
        """
        (row,) = self.rows([(index, first, second)], truncate=truncate, special=special)
        return row

    def rows(
        self,
        texts: Sequence[tuple[int, str, str | None]],
        *,
        truncate: bool,
        special: bool = True,
        spans: bool = True,
        cut_at: CutAt = None,
    ) -> list[Row]:
        """``row`` of many: (index, first, second) each. spans: False leaves them out, which is faster. cut_at: the end
        that is cut off, None: as the author wants it."""
        prepared = [self._prepared(first) if second is None else (self._prepared(first), self._prepared(second))
                    for _, first, second in texts]  # fmt: skip
        with self._one:
            self._cut(self.max_tokens, cut_at, pairs=any(second is not None for _, _, second in texts))
            encode = self._tokenizer.encode_batch if spans else self._tokenizer.encode_batch_fast
            encodings = encode(prepared, add_special_tokens=special)
        return [self._row(texts[at][0], encoding, truncate, spans) for at, encoding in enumerate(encodings)]

    def whole(self, index: int, text: str, *, special: bool = True) -> list[int]:
        """The tokens of a text of any length. Raises InvalidInput: no token, or one that the model has no row for."""
        with self._one:
            self._tokenizer.no_truncation()
            ids: list[int] = self._tokenizer.encode(self._prepared(text), add_special_tokens=special).ids
        return self.checked(index, ids)

    def spelled(self, text: str, *, special: bool) -> list[Token]:
        """The tokens of a text of any length, and where each stands in it."""
        with self._one:
            self._tokenizer.no_truncation()
            found = self._tokenizer.encode(self._prepared(text), add_special_tokens=special)
        rows = zip(found.ids, found.tokens, found.special_tokens_mask, found.offsets, strict=True)
        return [
            Token(number, name, True, None, None) if alone else Token(number, text[start:stop], False, start, stop)
            for number, name, alone, (start, stop) in rows
        ]

    def checked(self, index: int, ids: Sequence[int]) -> list[int]:
        """Ids of any length. Raises as ``whole``."""
        self._check(index, ids)
        return list(ids)

    def of_ids(self, index: int, ids: Sequence[int], *, truncate: bool, cut_at: CutAt = None) -> Row:
        """Token ids as they are: no special tokens are added. Raises as ``row``."""
        cut = len(ids) > self.max_tokens
        if cut and not truncate:
            too_long(index, f"has {len(ids)} tokens, the model takes {self.max_tokens}")
        taken = list(ids[-self.max_tokens :] if cut_at == "left" else ids[: self.max_tokens])
        self._check(index, taken)
        return Row(taken, [0] * len(taken), cut, [], [])

    def text(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """What the ids say. An incomplete UTF-8 sequence shows as U+FFFD."""
        with self._one:
            text = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special)
        return _cleaned(text) if self.files.clean_up else text

    def id_of(self, name: str) -> int | None:
        """The id of a special token by its role (``mask_token``, …)."""
        return self.files.id_of(name)

    def token(self, token_id: int) -> str:
        """A token as the vocabulary writes it."""
        return self._tokenizer.id_to_token(token_id) or ""

    def count_vocabulary(self) -> int:
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def _prepared(self, text: str) -> str:
        return text.lower() if self._lower_case else text

    def _cut(self, length: int, cut_at: CutAt, *, pairs: bool) -> None:
        around = self._tokenizer.num_special_tokens_to_add(is_pair=pairs)
        if around >= length:
            raise InvalidInput(f"no room for two texts within {length} tokens", param="input")
        own = "left" if self.files.truncate_left else "right"
        self._tokenizer.enable_truncation(length, direction=cut_at or own)

    def _row(self, index: int, encoding: Encoding, truncate: bool, spans: bool) -> Row:
        cut = bool(encoding.overflowing)
        if cut and not truncate:
            too_long(index, f"is longer than the model's {self.max_tokens} tokens")
        ids = encoding.ids
        self._check(index, ids)
        if not spans:
            return Row(ids, encoding.type_ids, cut, [], [])
        return Row(ids, encoding.type_ids, cut, encoding.offsets, encoding.special_tokens_mask)

    def _check(self, index: int, ids: Sequence[int]) -> None:
        if not ids:
            self._refuse(index, "has no token")
        if min(ids) < 0 or max(ids) >= self.vocab_size:
            self._refuse(index, f"has a token outside the model's vocabulary of {self.vocab_size}")

    @staticmethod
    def _refuse(index: int, why: str) -> NoReturn:
        raise InvalidInput(f"input {index} {why}", param="input", index=index)


def too_long(index: int, why: str) -> NoReturn:
    """Over the token limit, and not to be cut: HTTP 413, not 422."""
    raise PayloadTooLarge(f"input {index} {why}", param="input", index=index)


def _cleaned(text: str) -> str:
    """Source: clean_up_tokenization in transformers."""
    for spaced in (" .", " ?", " !", " ,"):
        text = text.replace(spaced, spaced[1:])
    text = text.replace(" ' ", "'")
    for spaced in (" n't", " 'm", " 's", " 've", " 're"):
        text = text.replace(spaced, spaced[1:])
    return text
