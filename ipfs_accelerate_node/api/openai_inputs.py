"""Texts or token ids of a request, alone or many, as OpenAI's clients send them."""

from __future__ import annotations

from collections.abc import Sequence

from ipfs_accelerate_node.errors import InvalidInput

MAX_INPUTS = 2048  # OpenAI's own limit
MAX_TOKEN_ID = 2**31 - 1


def text_or_tokens(value: object, param: str) -> list[str] | list[list[int]]:
    """A text, texts, token ids, or lists of token ids, as a batch. Raises InvalidInput with ``param`` and the index of
    the item that cannot be used."""
    match value:
        case str():
            return [_text(value, param, None)]
        case []:
            raise InvalidInput(f"{param} has no item", param=param)
        case [str(), *_]:
            _check_count(value, param)
            return [_text(item, param, index) for index, item in enumerate(value)]
        case [int(), *_]:
            return [_tokens(value, param, None)]
        case [list(), *_]:
            _check_count(value, param)
            return [_tokens(item, param, index) for index, item in enumerate(value)]
        case _:
            raise InvalidInput(f"{param} must be a text, a list of texts, or token ids", param=param)


def _check_count(items: Sequence[object], param: str) -> None:
    if len(items) > MAX_INPUTS:
        raise InvalidInput(f"{param} has {len(items)} items, {MAX_INPUTS} are possible", param=param, index=MAX_INPUTS)


def _text(item: object, param: str, index: int | None) -> str:
    if not isinstance(item, str):
        raise InvalidInput(f"every item of {param} must be a text, like the first", param=param, index=index)
    if not item:
        raise InvalidInput("a text must not be empty", param=param, index=index)
    if "\0" in item:
        raise InvalidInput("a text must not hold a NUL", param=param, index=index)
    return item


def _tokens(item: object, param: str, index: int | None) -> list[int]:
    if not isinstance(item, list) or not item:
        raise InvalidInput(f"every item of {param} must be a list of token ids", param=param, index=index)
    if not all(type(token) is int and 0 <= token <= MAX_TOKEN_ID for token in item):
        raise InvalidInput("a token id must be a whole number, not negative", param=param, index=index)
    return item
