"""What daemon and worker say to each other, and how it is framed.

A frame: 4 bytes length of the header, 8 bytes length of the payload (both little-endian), header (MessagePack of one of
the structs below), payload (raw bytes). Both ends bound what they accept: a worker parses strangers' files and is
trusted with nothing but its own answers.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from ipfs_accelerate_node import errors
from ipfs_accelerate_node.errors import NodeError, Unavailable
from ipfs_accelerate_node.inference.model import Entities, Fills, Generated, Item, Options, Output, Scores, Vector

_LENGTHS = struct.Struct("<IQ")
MAX_HEADER_BYTES = 256 << 20
MAX_PAYLOAD_BYTES = 1 << 30


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


class Infer(msgspec.Struct, tag=True, frozen=True):
    """Answered by Progress for each pass, then Outputs, Failure or Dropped."""

    job: int
    items: list[Item]
    options: Options


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


class Cancel(msgspec.Struct, tag=True, frozen=True):
    """Nobody waits for this job any more. Not answered itself."""

    job: int


class Devices(msgspec.Struct, tag=True, frozen=True):
    """What the worker's own runtime reports. Answered by DeviceList."""


class Imports(msgspec.Struct, tag=True, frozen=True):
    """Answered by Imported."""

    job: int


Phase = Literal["loading", "warming", "computing"]


class Progress(msgspec.Struct, tag=True, frozen=True):
    """A sign of life: what the worker is at."""

    phase: Phase


class Described(msgspec.Struct, tag=True, frozen=True):
    """A model that passed the checks. estimate_bytes: of memory for its weights, by precision."""

    tasks: tuple[str, ...]
    architecture: str
    estimate_bytes: dict[str, int]


class Loaded(msgspec.Struct, tag=True, frozen=True):
    """device, engine, precision: as read back. width: of its vectors, 0 where it gives none. device_bytes: of a
    device's own memory."""

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


class VectorHead(msgspec.Struct, tag=True, frozen=True):
    """A Vector whose ``width`` numbers stand in the payload, after those of the vectors before it."""

    width: int
    tokens_in: int
    truncated: bool


Head = VectorHead | Scores | Entities | Fills | Generated


class Outputs(msgspec.Struct, tag=True, frozen=True):
    """The payload holds the vectors' numbers, float32, little-endian."""

    job: int
    heads: list[Head]


class Array(msgspec.Struct, tag=True, frozen=True):
    """The payload holds float32, little-endian, row-major."""

    job: int
    shape: tuple[int, ...]


class Samples(msgspec.Struct, tag=True, frozen=True):
    job: int
    items: list[Item]


class Timings(msgspec.Struct, tag=True, frozen=True):
    """Of one item each, warmed up, in nanoseconds."""

    samples_ns: list[int]


class Dropped(msgspec.Struct, tag=True, frozen=True):
    job: int


class Found(msgspec.Struct, frozen=True):
    """A device. total_bytes, free_bytes: None when the runtime does not say."""

    device: str
    name: str
    total_bytes: int | None
    free_bytes: int | None
    precisions: tuple[str, ...]


class DeviceList(msgspec.Struct, tag=True, frozen=True):
    devices: list[Found]
    versions: dict[str, str]


class Imported(msgspec.Struct, tag=True, frozen=True):
    """Top-level modules in the worker's ``sys.modules``."""

    job: int
    modules: list[str]


class Failure(msgspec.Struct, tag=True, frozen=True):
    """One of our errors, to be raised on the other side."""

    kind: str
    code: str
    message: str
    detail: dict[str, Any]
    retry_after_s: float | None = None

    @classmethod
    def of(cls, error: NodeError) -> Failure:
        detail = {k: v if isinstance(v, str | int | float | list) else str(v) for k, v in error.detail.items()}
        return cls(type(error).__name__, error.code, str(error), detail, error.retry_after_s)

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


Request = Inspect | Load | Infer | Primary | Examples | Calibrate | Cancel | Devices | Imports
Reply = Progress | Described | Loaded | Outputs | Array | Samples | Timings | Dropped | DeviceList | Imported | Failure

_encoder = msgspec.msgpack.Encoder()
_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


class WireError(Exception):
    """The other side sent what is no frame, or no answer."""


def pack_outputs(job: int, outputs: Sequence[Output]) -> tuple[Outputs, bytes]:
    heads: list[Head] = []
    numbers: list[NDArray[np.float32]] = []
    for output in outputs:
        if isinstance(output, Vector):
            numbers.append(np.ascontiguousarray(output.values, dtype="<f4"))
            heads.append(VectorHead(output.values.size, output.tokens_in, output.truncated))
        else:
            heads.append(output)
    return Outputs(job, heads), b"".join(array.data for array in numbers)


def unpack_outputs(reply: Outputs, payload: bytes) -> list[Output]:
    """The outputs again; vectors are views of the payload. Raises WireError: the payload is not all of them."""
    numbers = np.frombuffer(payload, dtype="<f4") if len(payload) % 4 == 0 else None
    outputs: list[Output] = []
    reached = 0
    for head in reply.heads:
        if not isinstance(head, VectorHead):
            outputs.append(head)
            continue
        until = reached + head.width
        if numbers is None or head.width < 1 or until > len(numbers):
            raise WireError(f"{len(payload)} bytes of vectors, announced were more")
        outputs.append(Vector(numbers[reached:until], head.tokens_in, head.truncated))
        reached = until
    if reached * 4 != len(payload):
        raise WireError(f"{len(payload)} bytes of vectors, announced were {reached * 4}")
    return outputs


def frame(message: Request | Reply, payload: bytes = b"") -> bytes:
    header = _encoder.encode(message)
    return _LENGTHS.pack(len(header), len(payload)) + header + payload


def _lengths(prefix: bytes) -> tuple[int, int]:
    header, payload = _LENGTHS.unpack(prefix)
    if header > MAX_HEADER_BYTES or payload > MAX_PAYLOAD_BYTES:
        raise WireError(f"a frame of {header} + {payload} bytes")
    return header, payload


async def read_reply(reader: asyncio.StreamReader) -> tuple[Reply, bytes]:
    """The next reply and its payload. Raises asyncio.IncompleteReadError at the end, WireError for nonsense."""
    header, payload = _lengths(await reader.readexactly(_LENGTHS.size))
    text = await reader.readexactly(header)
    try:
        return _replies.decode(text), await reader.readexactly(payload)
    except msgspec.DecodeError as exc:
        raise WireError(str(exc)) from exc


def read_request(connection: socket.socket) -> Request | None:
    """The next request, blocking; None when the daemon has hung up."""
    prefix = _receive(connection, _LENGTHS.size)
    if prefix is None:
        return None
    header, payload = _lengths(prefix)
    text = _receive(connection, header + payload)
    return None if text is None else _requests.decode(text[:header])


def _receive(connection: socket.socket, length: int) -> bytes | None:
    buffer = bytearray(length)
    view, reached = memoryview(buffer), 0
    while reached < length:
        count = connection.recv_into(view[reached:])
        if count == 0:
            return None
        reached += count
    return bytes(buffer)
