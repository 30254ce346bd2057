"""An answer told while it is written: whole characters only, and nothing that may turn out to belong to a stop text.

What is told comes to the answer's text, piece by piece. Only the last tokens are decoded each time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ipfs_accelerate_node.inference.tasks.answers import Answer

_BROKEN = "\N{REPLACEMENT CHARACTER}"
_CLEANED = 4  # characters at the end that cleaning up may still change: " n't"
_CONTEXT = 6


@dataclass(slots=True)
class Telling:
    """answer: as it grows."""

    answer: Answer
    text: str = ""  # told so far
    _held: str = ""  # decoded, not told
    _from: int = 0  # tokens before this one are not decoded any more
    _upto: int = 0  # of those after it, so many are decoded
    _ids: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._ids = list(self.answer.after[-_CONTEXT:])
        self._upto = len(self._ids)

    def more(self) -> str:
        """What can be told now and was not yet. After the answer's end: all the rest."""
        if self.answer.finish is not None:
            return self._tell(self._rest())
        known = len(self._ids) - len(self.answer.after[-_CONTEXT:])
        self._ids += self.answer.ids[known:]
        before = self.answer.tokens.text(self._ids[self._from : self._upto])
        whole = self.answer.tokens.text(self._ids[self._from :])
        if whole.endswith(_BROKEN) or not whole.startswith(before):
            return ""
        self._held += whole[len(before) :]
        self._from, self._upto = self._upto, len(self._ids)
        return self._tell(self._held[: len(self._held) - self._unsure()])

    def _rest(self) -> str:
        text = self.answer.text()
        return text[len(self.text) :] if text.startswith(self.text) else ""

    def _unsure(self) -> int:
        """Characters at the end that may be changed by what follows, or be a stop text's beginning."""
        held = self._held
        least = _CLEANED if self.answer.tokens.files.clean_up else len(held) - len(held.rstrip(" "))
        for stop in self.answer.stop:
            for size in range(min(len(stop) - 1, len(held)), least, -1):
                if held.endswith(stop[:size]):
                    least = size
                    break
        return min(least, len(held))

    def _tell(self, text: str) -> str:
        self._held = self._held[len(text) :]
        self.text += text
        return text
