"""The tokenizer of a task's processing, for those who ask for tokens themselves."""

from __future__ import annotations

from collections.abc import Sequence

from ipfs_accelerate_node.errors import ModelUnsupported
from ipfs_accelerate_node.inference.model import Token
from ipfs_accelerate_node.inference.tasks.text_graphs import TextGraph
from ipfs_accelerate_node.inference.tasks.texts import TextTokens


def tokens_of(processing: object) -> TextTokens:
    """Raises ModelUnsupported(task_unsupported): the model takes no texts."""
    for name in ("tokens", "graph", "texts"):
        found = getattr(processing, name, None)
        if isinstance(found, TextGraph):
            found = found.tokens
        if isinstance(found, TextTokens):
            return found
    raise ModelUnsupported("the model has no tokenizer", code="task_unsupported")


def tokenized(processing: object, texts: Sequence[str], *, special: bool) -> list[list[Token]]:
    tokens = tokens_of(processing)
    return [tokens.spelled(text, special=special) for text in texts]


def decoded(processing: object, rows: Sequence[Sequence[int]], *, skip_special: bool) -> list[str]:
    """Raises InvalidInput: an id that the model has no row for."""
    tokens = tokens_of(processing)
    return [tokens.text(tokens.checked(at, row), skip_special=skip_special) for at, row in enumerate(rows)]
