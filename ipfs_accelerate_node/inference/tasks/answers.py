"""Generated tokens to text: where an answer ends, and what it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from ipfs_accelerate_node.inference.tasks.texts import TextTokens

Finish = Literal["stop", "length"]

# Tokens of the prompt that are decoded with the answer: tokenizers of the SentencePiece kind drop the space before the
# first token they are given.
_CONTEXT = 6
_BROKEN = "\N{REPLACEMENT CHARACTER}"


@dataclass(slots=True)
class Answer:
    """One sequence's answer as it grows. after: the end of the prompt, for text that goes on from it."""

    tokens: TextTokens
    eos: tuple[int, ...]
    stop: tuple[str, ...] = ()
    after: Sequence[int] = ()
    ids: list[int] = field(default_factory=list)
    finish: Finish | None = None
    _cut: int | None = None

    def add(self, token: int) -> None:
        """Ends the answer (``finish``) when the token is one that ends it, or completes a stop text."""
        if token in self.eos:
            self.finish = "stop"
            return
        self.ids.append(token)
        if self.stop and self._may_stop():
            text = self._decoded(self.ids)
            found = [at for stop in self.stop if (at := text.find(stop)) >= 0]
            if found:
                self._cut, self.finish = min(found), "stop"

    def _may_stop(self) -> bool:
        """Is it worth while to decode the whole answer, after each token? Only where its end holds a stop text."""
        longest = max(map(len, self.stop))
        count = 4 * longest + _CONTEXT  # a character has up to four tokens
        while count < len(self.ids):
            tail = self.tokens.text(self.ids[-count:])
            if len(tail) >= longest + len(self.tokens.text(self.ids[-1:])) + _CONTEXT:
                return any(stop in tail for stop in self.stop)
            count *= 2  # tokens without a text are among them
        return True

    def text(self) -> str:
        """Whole characters only: of one whose last bytes never came, nothing is shown."""
        text = self._decoded(self.ids)
        if self._cut is not None:
            return text[: self._cut]
        return text.rstrip(_BROKEN) if self.finish == "length" else text

    def kept_ids(self) -> tuple[int, ...]:
        """Without what lies behind the cut of a stop text."""
        if self._cut is None:
            return tuple(self.ids)
        count = len(self.ids)
        while count and len(self._decoded(self.ids[: count - 1])) >= self._cut:
            count -= 1
        return tuple(self.ids[:count])

    def _decoded(self, ids: Sequence[int]) -> str:
        before = list(self.after[-_CONTEXT:])
        known = self.tokens.text(before) if before else ""
        whole = self.tokens.text([*before, *ids])
        return whole[len(known) :] if known and whole.startswith(known) else self.tokens.text(ids)
