"""What a request may hold: checked in the daemon, before anything is queued."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ipfs_accelerate_node.errors import InvalidInput, ModelUnsupported, PayloadTooLarge
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
from ipfs_accelerate_node.inference.tasks import checks

MAX_INPUTS = 4096
MAX_CHARS = 8 << 20  # of all texts together
MAX_IDS = 1 << 20  # of all token-id inputs together

_UNUSABLE = re.compile("[\x00\ud800-\udfff]")

Inputs = list[str] | list[list[int]]

# The kinds of items of each task; a model may take fewer of them, which its worker then says.
KINDS: dict[str, tuple[type, ...]] = {
    "embedding": (Text, Ids, Image, PixelValues),
    "text-classification": (Text, Pair, Ids),
    "rerank": (Pair,),
    "token-classification": (Text,),
    "fill-mask": (Text,),
    "zero-shot-image-classification": (ImageChoice,),
    "text2text-generation": (Text, Ids),
    "text-generation": (Text, Chat, Ids),
    "automatic-speech-recognition": (Audio,),
    "image-classification": (Image, PixelValues),
}

# The same where the model's own output is asked for, not what the task makes of it.
TENSORS: dict[str, dict[str, tuple[type, ...]]] = {
    "hidden": {"embedding": (Text, Ids)},
    "logits": {
        "text-classification": (Text, Pair, Ids),
        "rerank": (Pair,),
        "token-classification": (Text, Ids),
        "fill-mask": (Text, Ids),
        "image-classification": (Image, PixelValues),
    },
}


def _refuse(message: str, index: int | None = None) -> InvalidInput:
    if index is None:
        return InvalidInput(message, param="input")
    return InvalidInput(message, param="input", index=index)


def check_inputs(inputs: object, *, vocab_size: int) -> Inputs:
    """The inputs, if they are all texts or all token ids.

    vocab_size: ids are below it (0: unknown). Raises InvalidInput with ``index`` of the first that is wrong: empty, NUL
    or half a surrogate pair in a text, not an int, an id out of range; PayloadTooLarge over the limits above.
    """
    if not isinstance(inputs, Sequence) or isinstance(inputs, str | bytes | bytearray):
        raise _refuse("input must be a list of texts or of lists of token ids")
    if not inputs:
        raise _refuse("input is an empty list")
    if len(inputs) > MAX_INPUTS:
        raise PayloadTooLarge(f"{len(inputs)} inputs, at most {MAX_INPUTS} in one request", param="input")
    if isinstance(inputs[0], str):
        return _texts(inputs)
    return _token_ids(inputs, vocab_size)


def _texts(inputs: Sequence[object]) -> list[str]:
    texts: list[str] = []
    for index, text in enumerate(inputs):
        if not isinstance(text, str):
            raise _refuse(f"input {index} is a {type(text).__name__}, the ones before are texts", index)
        if not text:
            raise _refuse(f"input {index} is empty", index)
        if found := _UNUSABLE.search(text):
            what = "a NUL character" if found[0] == "\0" else "half a surrogate pair"
            raise _refuse(f"input {index} has {what} at position {found.start()}", index)
        texts.append(text)
    if sum(map(len, texts)) > MAX_CHARS:
        raise PayloadTooLarge(f"the texts have over {MAX_CHARS:,} characters together", param="input")
    return texts


def _token_ids(inputs: Sequence[object], vocab_size: int) -> list[list[int]]:
    rows: list[list[int]] = []
    for index, ids in enumerate(inputs):
        if not isinstance(ids, Sequence) or isinstance(ids, str | bytes | bytearray):
            raise _refuse(f"input {index} is a {type(ids).__name__}, expected a list of token ids", index)
        if not ids:
            raise _refuse(f"input {index} is empty", index)
        for token in ids:
            if type(token) is not int:
                raise _refuse(f"input {index} has a {type(token).__name__} among its token ids", index)
            if token < 0 or (token >= vocab_size if vocab_size else token >= 1 << 63):
                raise _refuse(f"input {index} has token id {token}, the model knows 0 to {vocab_size - 1}", index)
        rows.append(list(ids))
    if sum(map(len, rows)) > MAX_IDS:
        raise PayloadTooLarge(f"over {MAX_IDS:,} token ids together", param="input")
    return rows


def check_dimensions(dimensions: int | None, *, width: int) -> None:
    """Raises InvalidInput unless the vectors can be cut to so many."""
    if dimensions is not None and (type(dimensions) is not int or not 1 <= dimensions <= width):
        raise InvalidInput(f"dimensions must be a whole number from 1 to {width}", param="dimensions")


def check_items(items: Sequence[Item], options: Options, task: str) -> None:
    """Raises InvalidInput with the index of the first item that the task cannot use, or ``param`` of an option;
    PayloadTooLarge; ModelUnsupported: the task has not the output."""
    kinds = KINDS if options.output is None else TENSORS[options.output]
    if task not in kinds:
        raise ModelUnsupported(f"a model of {task} gives no {options.output}", code="task_unsupported")
    checks.check_items(items, kinds[task], task=task)
    checks.check_options(options)
