"""What a model is to the rest of the node: what to load, what is loaded, what came out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

ModelSource = Literal["cid", "hf", "local", "mock"]
Implementation = Literal["REAL", "MOCK"]
State = Literal["absent", "loading", "warming", "ready", "draining"]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model to load.

    root: its CID in canonical form, or ``mock:TASK``. path: read-only directory that stays as it is while the model is
    loaded; None for a mock. names: further names it answers to, the first is shown.
    """

    root: str
    path: Path | None
    names: tuple[str, ...] = ()
    source: ModelSource = "local"
    task: Literal["embedding"] = "embedding"
    mock: bool = False


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory, or on its way there; a snapshot.

    device: as read back from the weights; empty until they are loaded, as are width, max_tokens, vocab_size, versions.
    load_s: seconds from the call to the first vector. memory_bytes: resident size of its process at the time of the
    snapshot. notes: what a person should know: settings that were assumed, tensors that were ignored.
    """

    id: str
    root: str
    names: tuple[str, ...]
    device: str
    engine: Literal["torch", "mock"]
    precision: str
    implementation: Implementation
    source: ModelSource
    task: str
    width: int
    max_tokens: int
    state: State
    load_s: float
    pid: int | None
    versions: dict[str, str]
    memory_bytes: int
    vocab_size: int = 0
    architecture: str = ""
    pooling: tuple[str, ...] = ()
    normalize: bool = True
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Embeddings:
    """vectors: (inputs, width) float32, row i for input i. prompt_tokens: real tokens that went through the model,
    special ones included. truncated: how many inputs were cut to the model's max_tokens. seconds: queued and computed.
    """

    vectors: NDArray[np.float32]
    prompt_tokens: int
    model: LoadedModel
    seconds: float
    truncated: int = 0


@dataclass(frozen=True, slots=True)
class Accelerator:
    """A device that a runtime reports on this machine. available: a model can be loaded on it now; else reason says why
    not. total_bytes: its memory, None when the runtime does not say."""

    device: str
    runtime: str
    name: str
    available: bool
    reason: str = ""
    total_bytes: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
