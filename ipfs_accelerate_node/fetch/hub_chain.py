"""The steps by which a reference to the Hub is followed, each with what came of it: for receipts and errors."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal, TypeVar

from ipfs_accelerate_node.errors import NodeError

Step = Literal["here", "map", "hub", "mock"]
Outcome = Literal["used", "absent", "failed", "refused", "skipped"]
E = TypeVar("E", bound=NodeError)


@dataclass(frozen=True, slots=True)
class ChainStep:
    """outcome: used; absent (it has nothing), failed (it could not be asked, or broke off), refused (it denies us, or
    what it said was wrong), skipped (not tried). reason: one line for a person, empty for a step that did it all."""

    step: Step
    outcome: Outcome
    reason: str = ""


class Chain:
    """One reference's way. A step may stand in it twice: first tried, later taken up again."""

    def __init__(self) -> None:
        self._steps: list[ChainStep] = []

    @property
    def steps(self) -> tuple[ChainStep, ...]:
        return tuple(self._steps)

    def note(self, step: Step, outcome: Outcome, reason: object = "") -> None:
        self._steps.append(ChainStep(step, outcome, str(reason)))

    def told(self, error: E) -> E:
        """error, with all that was tried in its detail."""
        error.detail["chain"] = [asdict(step) for step in self._steps]
        return error
