"""The loop that writes: one token after the other for a batch of sequences, over an engine's decoder.

Greedy answers are those of transformers' ``generate``, token by token. Every sequence goes by its own rules and its own
length, so that an answer does not depend on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ipfs_accelerate_node.inference.session import Array, Decoder
from ipfs_accelerate_node.inference.tasks.answers import Answer
from ipfs_accelerate_node.inference.tasks.batches import padded
from ipfs_accelerate_node.inference.tasks.numbers import check_finite
from ipfs_accelerate_node.inference.tasks.rules import Choose, Rules

# Tokens of a prompt that go through at once: bounds how long a pass may go without a sign of life.
_PREFILL = 1024


@dataclass(frozen=True, slots=True)
class Writing:
    """One sequence to be written. index: of its item. prompt: what the decoder has read when the answer begins."""

    index: int
    prompt: Sequence[int]
    rules: Rules
    choose: Choose
    answer: Answer


def generate(
    decoder: Decoder,
    encoded: Mapping[str, Array] | None,
    sequences: Sequence[Writing],
    *,
    pad: int,
    between: Callable[[], None],
) -> None:
    """Write every sequence's answer to its end. encoded: see ``Decoder.start``. between: called before every token.

    Raises InferenceFailed: the model's scores are no numbers.
    """
    decoder.start(encoded)
    ids, mask = padded([sequence.prompt for sequence in sequences], pad, left=True)
    logits = _read_prompts(decoder, ids, mask, between)
    histories = [list(sequence.prompt) for sequence in sequences]
    while True:
        tokens = np.full((len(sequences), 1), pad, dtype=np.int64)
        for at, sequence in enumerate(sequences):
            if sequence.answer.finish is None:
                tokens[at, 0] = _next(sequence, histories[at], logits[at])
        if all(sequence.answer.finish for sequence in sequences):
            return
        between()
        mask = np.concatenate([mask, np.ones_like(tokens)], axis=1)
        logits = decoder.step(tokens, mask)


def _next(sequence: Writing, history: list[int], logits: NDArray[np.float32]) -> int:
    """The sequence's next token; marks the answer's end."""
    check_finite(logits[None], [sequence.index])
    token = sequence.choose(sequence.rules.apply(history, np.array(logits, dtype=np.float32)))
    history.append(token)
    sequence.answer.add(token)
    if sequence.answer.finish is None and len(history) >= sequence.rules.limit:
        sequence.answer.finish = "length"
    return token


def _read_prompts(
    decoder: Decoder, ids: NDArray[np.int64], mask: NDArray[np.int64], between: Callable[[], None]
) -> NDArray[np.float32]:
    """Logits after the prompts. In pieces where no row would begin with nothing but padding."""
    between()
    first = _PREFILL if mask[:, :_PREFILL].any(axis=1).all() else ids.shape[1]
    done = min(first, ids.shape[1])
    logits = decoder.step(ids[:, :done], mask[:, :done])
    while done < ids.shape[1]:
        between()
        piece = min(_PREFILL, ids.shape[1] - done)
        logits = decoder.step(ids[:, done : done + piece], mask[:, : done + piece])
        done += piece
    return logits


def forced(
    decoder: Decoder, encoded: Mapping[str, Array] | None, prompt: Sequence[int], following: Sequence[int]
) -> NDArray[np.float32]:
    """Logits after ``prompt`` and after each of the tokens that are then given to it: (1 + following, vocabulary)."""
    decoder.start(encoded)
    given = [list(prompt), *([token] for token in following)]
    rows, length = [], 0
    for tokens in given:
        length += len(tokens)
        step = decoder.step(np.array([tokens], dtype=np.int64), np.ones((1, length), dtype=np.int64))
        rows.append(np.array(step[0], dtype=np.float32))
    return np.stack(rows)
