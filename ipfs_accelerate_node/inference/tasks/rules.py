"""What may come next: the author's rules over the scores of one sequence's next token, and the choice among the rest.

Source: the logits processors and warpers of transformers, in the order in which ``generate`` applies them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ipfs_accelerate_node.inference.model import Options
from ipfs_accelerate_node.inference.tasks.generation_settings import GenerationSettings

Scores = NDArray[np.float32]
_NEVER = np.float32(-np.inf)


@dataclass(frozen=True, slots=True)
class Rules:
    """prompt: tokens of the decoder before its answer begins. limit: tokens of prompt and answer together. source: what
    the encoder read."""

    settings: GenerationSettings
    prompt: int
    limit: int
    source: Sequence[int] = ()

    @property
    def none(self) -> bool:
        """Do they never change which token is the likeliest?"""
        s = self.settings
        never = (
            s.no_repeat_ngram, s.encoder_no_repeat_ngram, s.bad_words, s.min_length, s.min_new_tokens, s.forced_eos,
            s.suppress, s.begin_suppress,
        )  # fmt: skip
        return s.repetition_penalty == 1.0 and s.forced_bos is None and not any(never)

    def apply(self, history: Sequence[int], scores: Scores) -> Scores:
        """scores: (vocabulary,), of the token after ``history``; changed in place and returned."""
        settings, length = self.settings, len(history)
        if settings.repetition_penalty != 1.0:
            seen = np.unique(np.asarray(history, dtype=np.int64))
            found = scores[seen]
            penalty = np.float32(settings.repetition_penalty)
            scores[seen] = np.where(found < 0, found * penalty, found / penalty)
        if settings.no_repeat_ngram:
            scores[_ends_of(history, history, settings.no_repeat_ngram)] = _NEVER
        if settings.encoder_no_repeat_ngram:
            scores[_ends_of(history, self.source, settings.encoder_no_repeat_ngram)] = _NEVER
        for word in settings.bad_words:
            if len(word) == 1 or tuple(history[1 - len(word) :]) == word[:-1]:
                scores[word[-1]] = _NEVER
        if length < settings.min_length or length - self.prompt < settings.min_new_tokens:
            scores[list(settings.eos)] = _NEVER
        if settings.forced_bos is not None and length == 1:
            scores = _only(scores, (settings.forced_bos,))
        if settings.forced_eos and length == self.limit - 1:
            scores = _only(scores, settings.forced_eos)
        if settings.suppress:
            scores[list(settings.suppress)] = _NEVER
        if settings.begin_suppress and length == self._answer_begins():
            scores[list(settings.begin_suppress)] = _NEVER
        return scores

    def _answer_begins(self) -> int:
        """Where the first token lies that is not forced."""
        return self.prompt if self.prompt > 1 or self.settings.forced_bos is None else self.prompt + 1


def _only(scores: Scores, tokens: Sequence[int]) -> Scores:
    scores[:] = _NEVER
    scores[list(tokens)] = 0
    return scores


def _ends_of(history: Sequence[int], text: Sequence[int], size: int) -> list[int]:
    """Tokens that would finish a run of ``size`` tokens that occurs in ``text``, after the end of ``history``."""
    if len(history) + 1 < size:
        return []
    last = list(history[len(history) - size + 1 :])
    return [text[at + size - 1] for at in range(len(text) - size + 1) if list(text[at : at + size - 1]) == last]


Choose = Callable[[Scores], int]


def choice(options: Options, index: int) -> Choose:
    """The best token, or a drawn one when a temperature is given. index: of the item in its request; two items of one
    request draw differently, and a seed gives the same draws again whatever else is in the batch."""
    if not options.temperature:
        return greedy
    seed = None if options.seed is None else np.random.SeedSequence([options.seed, index])
    generator = np.random.default_rng(seed)

    def draw(scores: Scores) -> int:
        return _draw(generator.random(), *kept(scores, options))

    return draw


def greedy(scores: Scores) -> int:
    """Of equals, the first."""
    return int(scores.argmax())


def kept(scores: Scores, options: Options) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(tokens, probabilities) that temperature, top_k and top_p leave. Sorted is only what must be: the whole of a
    vocabulary of 50,000 takes milliseconds, for each text and token."""
    wide = scores.astype(np.float64)
    with np.errstate(over="ignore"):  # by the smallest temperatures all but the best come to minus infinity
        warm = (wide - wide.max()) / (options.temperature or 1.0)
    weights = np.exp(warm)
    if options.top_k is None and (options.top_p is None or options.top_p >= 1):
        return np.arange(len(weights)), weights / weights.sum()
    order = likeliest(warm, options.top_k or len(warm)) if options.top_k is not None else np.arange(len(warm))
    weights = weights[order] / weights[order].sum()
    if options.top_p is None or options.top_p >= 1:
        return order, weights
    among = _nucleus(weights, options.top_p)
    return order[among], weights[among] / weights[among].sum()


def _nucleus(weights: NDArray[np.float64], share: float) -> NDArray[np.int64]:
    """The likeliest ones that have ``share`` together, at least one."""
    for count in (64, 1024, len(weights)):
        order = likeliest(weights, count)
        before = np.cumsum(weights[order]) - weights[order]  # what the likelier ones have together
        found = int(np.count_nonzero(before < share))
        if found < len(order) or len(order) == len(weights):
            break
    return order[: max(1, found)]


def likeliest(scores: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """The first ``count``, the likeliest first; of equals, the lower number."""
    if count >= len(scores):
        return np.argsort(-scores, kind="stable")
    least = np.partition(scores, len(scores) - count)[len(scores) - count]
    among = np.flatnonzero(scores >= least)
    found: NDArray[np.int64] = among[np.argsort(-scores[among], kind="stable")][:count]
    return found


def _draw(number: float, tokens: NDArray[np.int64], weights: NDArray[np.float64]) -> int:
    """number: from 0 to below 1."""
    sums = np.cumsum(weights)
    at = int(np.searchsorted(sums, number * sums[-1], side="right"))
    return int(tokens[min(at, len(tokens) - 1)])
