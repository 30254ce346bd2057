"""What a model is to the rest of the node: what to load, what is loaded, what goes in, what came out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

ModelSource = Literal["cid", "hf", "local", "mock"]
Implementation = Literal["REAL", "MOCK"]
EngineName = Literal["torch", "openvino", "mock"]
CutAt = Literal["left", "right"] | None  # an end of a text
State = Literal["absent", "fetching", "converting", "loading", "warming", "ready", "draining"]

TASKS = (
    "embedding",
    "text-classification",
    "rerank",
    "token-classification",
    "fill-mask",
    "zero-shot-image-classification",
    "text2text-generation",
    "text-generation",
    "automatic-speech-recognition",
    "image-classification",
)
PRECISIONS = ("f32", "bf16", "f16", "int8")


# Items: what one input of a request may be. They travel to the worker as MessagePack, as do Options and all outputs.


class Text(msgspec.Struct, tag=True, frozen=True, array_like=True):
    text: str


class Pair(msgspec.Struct, tag=True, frozen=True, array_like=True):
    """Two texts that are read together: query and document, premise and hypothesis."""

    first: str
    second: str


class Ids(msgspec.Struct, tag=True, frozen=True, array_like=True):
    """Token ids as the model's own tokenizer gives them, special ones included or not, as the caller wants."""

    ids: tuple[int, ...]


class Image(msgspec.Struct, tag=True, frozen=True, array_like=True):
    """An encoded picture (PNG, JPEG, WebP, …), as it lies in its file."""

    data: bytes


class Audio(msgspec.Struct, tag=True, frozen=True, array_like=True):
    """A WAV file."""

    data: bytes


class Message(msgspec.Struct, frozen=True, array_like=True):
    role: str
    content: str


class Chat(msgspec.Struct, tag=True, frozen=True, array_like=True):
    messages: tuple[Message, ...]


class ImageChoice(msgspec.Struct, tag=True, frozen=True, array_like=True):
    """Which of the labels says best what the picture shows?"""

    data: bytes
    labels: tuple[str, ...]


class PixelValues(msgspec.Struct, tag=True, frozen=True, array_like=True):
    """A picture as the model itself takes it. shape: (channels, height, width); data: float32, little-endian,
    row-major."""

    shape: tuple[int, int, int]
    data: bytes


Item = Text | Pair | Ids | Image | Audio | Chat | ImageChoice | PixelValues


class Options(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a caller may ask for beside the items; what a task has no use for is ignored.

    dimensions: cut vectors to so many, then normalise again. normalize: None is as the model's author wants it.
    truncate: False refuses an item that is longer than the model takes. top_k: as many labels or candidates; None is
    the task's own default. raw_scores: as the model gives them, not as probabilities. temperature: None or 0 is greedy.
    stop: generation ends before any of these texts. seed: of sampling. language: of speech, as ``en``. prompt_name: a
    prompt that the model's author named. cut_at: the end of a text that is cut off; None is as the author wants it.
    output: a Tensor instead of what the task makes of it: ``hidden``, the last layer's vectors of an encoder's tokens;
    ``logits`` of a classifier or a masked language model.
    """

    dimensions: int | None = None
    normalize: bool | None = None
    truncate: bool = True
    top_k: int | None = None
    raw_scores: bool = False
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    language: str | None = None
    prompt_name: str | None = None
    cut_at: CutAt = None
    output: Literal["hidden", "logits"] | None = None


# Outputs: one per item, in the order of the items. tokens_in: real tokens that went through the model, special ones
# included; 0 where the input has none. truncated: the item was cut to what the model takes.


class Vector(msgspec.Struct, tag=True, frozen=True, eq=False):
    """values: (width,) float32; they travel beside the header, not in it."""

    values: NDArray[np.float32]
    tokens_in: int = 0
    truncated: bool = False


class Tensor(msgspec.Struct, tag=True, frozen=True, eq=False):
    """What the model itself gave for an item, without padding: (tokens, width), or (labels,). values: float32; they
    travel as a Vector's do."""

    values: NDArray[np.float32]
    tokens_in: int = 0
    truncated: bool = False


class Score(msgspec.Struct, frozen=True):
    label: str
    score: float


class Scores(msgspec.Struct, tag=True, frozen=True):
    """Best first. A reranker has one, the relevance."""

    items: tuple[Score, ...]
    tokens_in: int = 0
    truncated: bool = False


class Entity(msgspec.Struct, frozen=True):
    """start, end: characters of the text, end excluded."""

    label: str
    score: float
    start: int
    end: int
    text: str


class Entities(msgspec.Struct, tag=True, frozen=True):
    """In the order of the text."""

    items: tuple[Entity, ...]
    tokens_in: int = 0
    truncated: bool = False


class Fill(msgspec.Struct, frozen=True):
    """token: what stands for the mask; text: the whole text with it."""

    token: str
    token_id: int
    score: float
    text: str


class Fills(msgspec.Struct, tag=True, frozen=True):
    """Best first; of a text with several masks, those of the first, then of the next."""

    items: tuple[Fill, ...]
    tokens_in: int = 0
    truncated: bool = False


class Generated(msgspec.Struct, tag=True, frozen=True):
    """ids: what was generated, without the prompt and without special tokens at the end."""

    text: str
    ids: tuple[int, ...]
    finish: Literal["stop", "length"]
    tokens_in: int = 0
    truncated: bool = False


class Token(msgspec.Struct, frozen=True, array_like=True):
    """text: as it stands in the input from character start to stop; of a special token, which stands nowhere, its
    name."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class Timing(msgspec.Struct, frozen=True, array_like=True):
    """Seconds of a request's way through the node: waiting, at the tokenizer, and in passes that it shared."""

    queue_s: float = 0.0
    tokenize_s: float = 0.0
    compute_s: float = 0.0


NO_TIME = Timing()
Output = Vector | Tensor | Scores | Entities | Fills | Generated


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model to load.

    root: its CID in canonical form, or ``mock:TASK``. path: read-only directory that stays as it is while the model is
    loaded; None for a mock. names: further names it answers to, the first is shown. task: None: the first that its own
    config says.
    """

    root: str
    path: Path | None
    names: tuple[str, ...] = ()
    source: ModelSource = "local"
    task: str | None = None
    mock: bool = False


@dataclass(frozen=True, slots=True)
class Candidate:
    """A device that ``auto`` looked at. median_ms: of its calibration, None where it was not measured; reason says why
    not, or where the figure is from. chosen: at most one of a choice."""

    device: str
    precision: str
    median_ms: float | None
    reason: str
    chosen: bool = False


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory, or on its way there; a snapshot.

    id: alias, first name or root. device, engine, precision: as read back; device is empty until it is loaded, as are
    width, max_tokens, vocab_size, versions. load_s: seconds from the call to the first output. memory_bytes: resident
    size of its process at the time of the snapshot; device_bytes: what it takes of a device's own memory. notes: what a
    person should know: settings that were assumed, tensors that were ignored. choice: what ``auto`` looked at, empty
    for a named device. keep_alive_s: idle seconds after which it is unloaded, None: never. pinned: never unloaded to
    make room. tasks: all that the model can do; task: what it is loaded for.
    """

    id: str
    root: str
    names: tuple[str, ...]
    device: str
    engine: EngineName
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
    tasks: tuple[str, ...] = ()
    device_bytes: int = 0
    choice: tuple[Candidate, ...] = ()
    keep_alive_s: float | None = None
    pinned: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Inferred:
    """outputs: one per item, in their order. tokens: real ones that went through the model. seconds: queued and
    computed; timing: where they went."""

    outputs: tuple[Output, ...]
    model: LoadedModel
    tokens: int
    seconds: float
    timing: Timing = NO_TIME


@dataclass(frozen=True, slots=True, eq=False)
class Embeddings:
    """vectors: (inputs, width) float32, row i for input i. prompt_tokens: real tokens that went through the model,
    special ones included. truncated: how many inputs were cut to the model's max_tokens. seconds: queued and computed;
    timing: where they went.
    """

    vectors: NDArray[np.float32]
    prompt_tokens: int
    model: LoadedModel
    seconds: float
    truncated: int = 0
    timing: Timing = NO_TIME


@dataclass(frozen=True, slots=True)
class ModelStats:
    """What a loaded model is at, and what it did since it was loaded.

    waiting: requests in the daemon; flying: those that its worker has. waiting_tokens: of both, estimated until they
    are tokenized. rows, tokens, padded: that went through the model, ``padded`` with padding; last_*: of its last pass.
    dropped: requests whose caller had gone; expired: whose deadline had passed; shed: that were refused at once.
    shared: answered by the computation of an identical one. tokens_per_s: as measured lately, 0 while unknown.
    load_phases: seconds of its last load by phase.
    """

    model: str
    root: str
    task: str
    waiting: int
    flying: int
    waiting_tokens: int
    requests: int
    failed: int
    dropped: int
    expired: int
    shed: int
    shared: int
    passes: int
    rows: int
    tokens: int
    padded: int
    truncated: int
    last_rows: int
    last_tokens: int
    last_padded: int
    tokenize_s: float
    queue_s: float
    compute_s: float
    tokens_per_s: float
    device: str = ""
    load_phases: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Accelerator:
    """A device that a runtime reports on this machine. available: a model can be loaded on it now; else reason says why
    not. total_bytes: its memory, None when the runtime does not say; free_bytes: of it, what nobody takes now.
    precisions: those that make sense on it; native: of them, those that its hardware computes in."""

    device: str
    runtime: str
    name: str
    available: bool
    reason: str = ""
    total_bytes: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
    free_bytes: int | None = None
    precisions: tuple[str, ...] = ()
    native: tuple[str, ...] = ()
