"""What a request may hold: kinds of items, their sizes, the options. Checked before anything is computed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import NoReturn

from ipfs_accelerate_node.errors import InvalidInput, PayloadTooLarge
from ipfs_accelerate_node.inference.model import (
    Audio,
    Chat,
    Ids,
    Image,
    ImageChoice,
    Item,
    Options,
    Pair,
    PixelValues,
    Text,
)
from ipfs_accelerate_node.inference.tasks.pictures import MAX_PICTURE_BYTES
from ipfs_accelerate_node.inference.tasks.wav import MAX_AUDIO_BYTES

MAX_ITEMS = 4096
MAX_CHARS = 8 << 20  # of all texts together
MAX_IDS = 1 << 20  # of all token ids together
MAX_PIXEL_BYTES = 64 << 20  # of one picture that is prepared already
MAX_MEDIA_BYTES = 256 << 20  # of all pictures and sounds together
MAX_LABELS = 1024
MAX_STOPS = 16
MAX_NEW_TOKENS = 1 << 17
_UNUSABLE = re.compile("[\x00\ud800-\udfff]")


def refuse(index: int, why: str) -> NoReturn:
    raise InvalidInput(f"input {index} {why}", param="input", index=index)


def check_items(items: Sequence[Item], kinds: Sequence[type], *, task: str) -> None:
    """Raises InvalidInput with the index of the first item that is of another kind, empty, or has a text with NUL or
    half a surrogate pair; PayloadTooLarge over the limits above."""
    if not items:
        raise InvalidInput("input is an empty list", param="input")
    if len(items) > MAX_ITEMS:
        raise PayloadTooLarge(f"{len(items)} inputs, at most {MAX_ITEMS} in one request", param="input")
    chars = ids = media = 0
    for index, item in enumerate(items):
        if not isinstance(item, tuple(kinds)):
            wanted = " or ".join(kind.__name__.lower() for kind in kinds)
            refuse(index, f"is of kind {type(item).__name__.lower()}, {task} takes {wanted}")
        texts, tokens, data = _parts(index, item)
        for text in texts:
            _check_text(index, text)
        chars, ids, media = chars + sum(map(len, texts)), ids + tokens, media + data
    if chars > MAX_CHARS:
        raise PayloadTooLarge(f"the texts have over {MAX_CHARS:,} characters together", param="input")
    if ids > MAX_IDS:
        raise PayloadTooLarge(f"over {MAX_IDS:,} token ids together", param="input")
    if media > MAX_MEDIA_BYTES:
        raise PayloadTooLarge(f"over {MAX_MEDIA_BYTES >> 20} MiB of pictures or sound together", param="input")


def _parts(index: int, item: Item) -> tuple[tuple[str, ...], int, int]:
    """(texts, number of token ids, bytes) of an item."""
    match item:
        case Text(text):
            return (text,), 0, 0
        case Pair(first, second):
            return (first, second), 0, 0
        case Ids(ids):
            if not ids:
                refuse(index, "is empty")
            return (), len(ids), 0
        case Chat(messages):
            if not messages:
                refuse(index, "has no message")
            return tuple(part for m in messages for part in (m.role, m.content or " ")), 0, 0
        case Image(data):
            return (), 0, _size(index, data, MAX_PICTURE_BYTES)
        case Audio(data):
            return (), 0, _size(index, data, MAX_AUDIO_BYTES)
        case PixelValues(shape, data):
            if min(shape) < 1 or len(data) != 4 * math.prod(shape):
                refuse(index, f"has {len(data)} bytes of pixels, not those of the shape {shape}")
            return (), 0, _size(index, data, MAX_PIXEL_BYTES)
        case ImageChoice(data, labels):
            if not 1 <= len(labels) <= MAX_LABELS:
                refuse(index, f"has {len(labels)} labels, 1 to {MAX_LABELS} are expected")
            return labels, 0, _size(index, data, MAX_PICTURE_BYTES)


def _size(index: int, data: bytes, most: int) -> int:
    if not data:
        refuse(index, "is empty")
    if len(data) > most:
        raise PayloadTooLarge(f"input {index} is longer than {most >> 20} MiB", param="input", index=index)
    return len(data)


def _check_text(index: int, text: str) -> None:
    if not text:
        refuse(index, "is empty")
    if found := _UNUSABLE.search(text):
        what = "a NUL character" if found[0] == "\0" else "half a surrogate pair"
        refuse(index, f"has {what} at position {found.start()}")


_RANGES: tuple[tuple[str, Callable[[object], bool], str], ...] = (
    ("dimensions", lambda v: _whole(v, 1, 1 << 20), "a whole number from 1"),
    ("top_k", lambda v: _whole(v, 1, 1 << 20), "a whole number from 1"),
    ("max_new_tokens", lambda v: _whole(v, 1, MAX_NEW_TOKENS), f"a whole number from 1 to {MAX_NEW_TOKENS:,}"),
    ("seed", lambda v: _whole(v, 0, (1 << 64) - 1), "a whole number from 0 below 2⁶⁴"),
    ("temperature", lambda v: _between(v, 0, 100), "a number from 0 to 100"),
    ("top_p", lambda v: _between(v, 1e-9, 1), "a number above 0, at most 1"),
)


def check_options(options: Options) -> None:
    """Raises InvalidInput with ``param``."""
    for name, fits, wanted in _RANGES:
        value = getattr(options, name)
        if value is not None and not fits(value):
            raise InvalidInput(f"{name} is {str(value)[:40]}, expected {wanted}", param=name)
    if len(options.stop) > MAX_STOPS or any(not 1 <= len(text) <= 1024 for text in options.stop):
        raise InvalidInput(f"stop: at most {MAX_STOPS} texts of 1 to 1024 characters", param="stop")


def _whole(value: object, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _between(value: object, least: float, most: float) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return math.isfinite(value) and least <= value <= most
