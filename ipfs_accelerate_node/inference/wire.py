"""What daemon and worker say to each other; ``frames`` says how it is framed.

What is asked under a job's number may be asked while other jobs are computed, and is answered when it is done; the rest
is asked one after the other. Times are those of the monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec

from ipfs_accelerate_node import errors
from ipfs_accelerate_node.errors import NodeError, Unavailable
from ipfs_accelerate_node.inference.model import (
    NO_TIME,
    Entities,
    Fills,
    Generated,
    Item,
    Options,
    Scores,
    Timing,
    Token,
)


class Inspect(msgspec.Struct, tag=True, frozen=True):
    """Check a model directory, load nothing. Answered by Described or Failure."""

    path: str


class Load(msgspec.Struct, tag=True, frozen=True):
    """Check and load a model. task: None is the model's first. artefact: folder of the converted model, for OpenVINO.
    Answered by Progress, then Loaded or Failure."""

    path: str
    task: str | None
    device: str
    precision: str
    artefact: str | None = None


class Infer(msgspec.Struct, tag=True, frozen=True, omit_defaults=True):
    """Answered by Outputs, Failure or Dropped, alone or within Answers; with ``stream`` by Deltas before that.

    since: when it was accepted. expires: when nobody waits for it any more; None: never.
    """

    job: int
    items: list[Item]
    options: Options
    since: float = 0.0
    expires: float | None = None
    stream: bool = False


class Primary(msgspec.Struct, tag=True, frozen=True):
    """What engines are compared by. Answered by Array, Failure or Dropped."""

    job: int
    item: Item


class Examples(msgspec.Struct, tag=True, frozen=True):
    """Sample inputs number ``first`` to ``first + count - 1`` of the loaded task. Answered by Samples or Failure."""

    job: int
    first: int
    count: int


class Calibrate(msgspec.Struct, tag=True, frozen=True):
    """Time sample inputs one by one, for at most so many seconds. Answered by Progress, then Timings or Failure."""

    seconds: float


class Shown(msgspec.Struct, tag=True, frozen=True):
    """What engines are compared by, of a sample input, for who loads the model. Answered by Array or Failure."""

    number: int


class Cancel(msgspec.Struct, tag=True, frozen=True):
    """Nobody waits for this job any more. Not answered itself."""

    job: int


class Devices(msgspec.Struct, tag=True, frozen=True):
    """What the worker's own runtime reports. Answered by DeviceList."""


class Imports(msgspec.Struct, tag=True, frozen=True):
    """Answered by Imported."""

    job: int


class Tokenize(msgspec.Struct, tag=True, frozen=True):
    """What tokens texts have, of any length. special: with those that the model expects around a text. Answered by
    Tokenized or Failure."""

    job: int
    texts: list[str]
    special: bool


class Decode(msgspec.Struct, tag=True, frozen=True):
    """What token ids say. Answered by Decoded or Failure."""

    job: int
    rows: list[list[int]]
    skip_special: bool


Phase = Literal["loading", "warming", "computing"]


class Work(msgspec.Struct, frozen=True, array_like=True):
    """What was done since it was told last, and what stands there now.

    passes, rows, tokens: real ones that went through the model; padded: tokens with their padding. compute_s: of the
    device; tokenize_s: of the tokenizer. dropped, expired: jobs. last_*: of the last pass. waiting_*: tokenized, not
    computed.
    """

    passes: int = 0
    rows: int = 0
    tokens: int = 0
    padded: int = 0
    compute_s: float = 0.0
    tokenize_s: float = 0.0
    dropped: int = 0
    expired: int = 0
    last_rows: int = 0
    last_tokens: int = 0
    last_padded: int = 0
    waiting_rows: int = 0
    waiting_tokens: int = 0


class Progress(msgspec.Struct, tag=True, frozen=True):
    """A sign of life: what the worker is at."""

    phase: Phase
    work: Work | None = None


class Described(msgspec.Struct, tag=True, frozen=True):
    """A model that passed the checks. estimate_bytes: of memory for its weights, by precision."""

    tasks: tuple[str, ...]
    architecture: str
    estimate_bytes: dict[str, int]


class Loaded(msgspec.Struct, tag=True, frozen=True):
    """device, engine, precision: as read back. width: of its vectors, 0 where it gives none. device_bytes: of a
    device's own memory. rowwise: jobs share passes. together: texts that are written at once; 0: none are.
    pass_tokens: that may go through together."""

    device: str
    engine: Literal["torch", "openvino"]
    precision: str
    task: str
    tasks: tuple[str, ...]
    width: int
    max_tokens: int
    vocab_size: int
    architecture: str
    pooling: tuple[str, ...]
    normalize: bool
    notes: tuple[str, ...]
    versions: dict[str, str]
    device_bytes: int
    rowwise: bool = False
    together: int = 0
    pass_tokens: int = 0


class VectorHead(msgspec.Struct, tag=True, frozen=True):
    """A Vector whose ``width`` numbers stand in the payload, after those of the vectors before it."""

    width: int
    tokens_in: int
    truncated: bool


class TensorHead(msgspec.Struct, tag=True, frozen=True):
    """A Tensor, likewise, row-major."""

    shape: tuple[int, ...]
    tokens_in: int
    truncated: bool

    @property
    def width(self) -> int:
        """How many numbers it has; 0 for a shape that is none."""
        return math.prod(self.shape) if self.shape and min(self.shape) > 0 else 0


Head = VectorHead | TensorHead | Scores | Entities | Fills | Generated


class Outputs(msgspec.Struct, tag=True, frozen=True):
    """The payload holds the vectors' numbers, float32, little-endian."""

    job: int
    heads: list[Head]
    timing: Timing = NO_TIME


class Delta(msgspec.Struct, tag=True, frozen=True):
    """What was added to the answer for item ``index``. text: whole characters only, and nothing that might yet turn out
    to be the beginning of a stop text. finish, tokens_in, tokens_out: with the last one of an item; tokens_out: of its
    whole answer, which may be fewer than were told, where a stop text began in them."""

    job: int
    index: int
    text: str
    ids: tuple[int, ...] = ()
    finish: Literal["stop", "length"] | None = None
    tokens_in: int = 0
    tokens_out: int = 0


class Array(msgspec.Struct, tag=True, frozen=True):
    """The payload holds float32, little-endian, row-major. job: None where who loads the model asked."""

    job: int | None
    shape: tuple[int, ...]


class Samples(msgspec.Struct, tag=True, frozen=True):
    job: int
    items: list[Item]


class Timings(msgspec.Struct, tag=True, frozen=True):
    """Of one item each, warmed up, in nanoseconds."""

    samples_ns: list[int]


class Dropped(msgspec.Struct, tag=True, frozen=True):
    """Nobody waits for it, or nobody does any more because it is too late (expired)."""

    job: int
    expired: bool = False


class Found(msgspec.Struct, frozen=True):
    """A device. total_bytes, free_bytes: None when the runtime does not say. native: of its precisions, those that the
    hardware computes in."""

    device: str
    name: str
    total_bytes: int | None
    free_bytes: int | None
    precisions: tuple[str, ...]
    native: tuple[str, ...] = ()


class DeviceList(msgspec.Struct, tag=True, frozen=True):
    devices: list[Found]
    versions: dict[str, str]


class Imported(msgspec.Struct, tag=True, frozen=True):
    """Top-level modules in the worker's ``sys.modules``."""

    job: int
    modules: list[str]


class Tokenized(msgspec.Struct, tag=True, frozen=True):
    """One row of tokens for each text."""

    job: int
    rows: list[list[Token]]


class Decoded(msgspec.Struct, tag=True, frozen=True):
    job: int
    texts: list[str]


class Failure(msgspec.Struct, tag=True, frozen=True):
    """One of our errors, to be raised on the other side."""

    kind: str
    code: str
    message: str
    detail: dict[str, Any]
    retry_after_s: float | None = None
    job: int | None = None

    @classmethod
    def of(cls, error: NodeError, job: int | None = None) -> Failure:
        detail = {k: v if isinstance(v, str | int | float | list) else str(v) for k, v in error.detail.items()}
        return cls(type(error).__name__, error.code, str(error), detail, error.retry_after_s, job)

    def error(self) -> NodeError:
        """The error again, of its own class where that takes no further arguments."""
        known = (
            errors.ModelUnsupported,
            errors.InvalidInput,
            errors.PayloadTooLarge,
            errors.InferenceFailed,
            errors.DeviceUnavailable,
        )
        kind = next((k for k in known if k.__name__ == self.kind), Unavailable)
        raised = kind(self.message, code=self.code)
        raised.detail = dict(self.detail)
        raised.retry_after_s = self.retry_after_s
        return raised


class Answers(msgspec.Struct, tag=True, frozen=True):
    """All jobs that one pass completed, after what it added to others; the payload holds the numbers of the first, one
    job's after the other's."""

    answers: list[Outputs | Failure | Dropped]
    work: Work
    deltas: list[Delta] = []


Request = (
    Inspect | Load | Infer | Primary | Examples | Calibrate | Shown | Cancel | Devices | Imports | Tokenize
    | Decode
)  # fmt: skip
Reply = (
    Progress | Described | Loaded | Outputs | Array | Samples | Timings | Dropped | DeviceList | Imported
    | Tokenized | Decoded | Failure | Answers
)  # fmt: skip
Payload = bytes | memoryview
