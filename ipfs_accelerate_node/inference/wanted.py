"""What is asked for of a model's place, and the place that it got."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ipfs_accelerate_node.inference import wire
from ipfs_accelerate_node.inference.model import Candidate, State
from ipfs_accelerate_node.inference.process import WorkerProcess

AUTO = "auto"
EXACT, NARROW = "f32", "bf16"  # what ``auto`` chooses between

Tell = Callable[[State], None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """task: None is the model's first. device, precision: ``auto`` is for us to choose."""

    task: str | None = None
    device: str = AUTO
    precision: str = AUTO


@dataclass(frozen=True, slots=True)
class Placed:
    """A worker that answers. wanted: what would bring the same again. choice: empty for a named device. notes: why it
    computes in this precision, where that was for us to choose. measured: every device that runs the model has a
    figure, so that another choice would be the same."""

    worker: WorkerProcess
    loaded: wire.Loaded
    wanted: Wanted
    choice: tuple[Candidate, ...] = ()
    notes: tuple[str, ...] = ()
    measured: bool = True
