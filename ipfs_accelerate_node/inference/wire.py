"""What daemon and worker say to each other, and how it is framed.

A frame: 4 bytes length of the header, 8 bytes length of the payload (both little-endian), header (MessagePack of one of
the structs below), payload (raw bytes). Both ends bound what they accept: a worker parses strangers' files and is
trusted with nothing but its own answers.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any, Literal

import msgspec

from ipfs_accelerate_node import errors
from ipfs_accelerate_node.errors import NodeError, Unavailable

_LENGTHS = struct.Struct("<IQ")
MAX_HEADER_BYTES = 256 << 20
MAX_PAYLOAD_BYTES = 1 << 30


class Load(msgspec.Struct, tag=True, frozen=True):
    """Check and load a model directory. Answered by Progress, then Loaded or Failure."""

    path: str
    precision: str


class Embed(msgspec.Struct, tag=True, frozen=True):
    """Either texts or ids. Answered by Progress for each forward pass, then Vectors, Failure or Dropped."""

    job: int
    texts: list[str] | None
    ids: list[list[int]] | None
    dimensions: int | None
    normalize: bool | None
    truncate: bool


class Cancel(msgspec.Struct, tag=True, frozen=True):
    """Nobody waits for this job any more. Not answered itself."""

    job: int


class Devices(msgspec.Struct, tag=True, frozen=True):
    """Answered by DeviceList."""


Phase = Literal["loading", "warming", "computing"]


class Progress(msgspec.Struct, tag=True, frozen=True):
    """A sign of life: what the worker is at."""

    phase: Phase


class Loaded(msgspec.Struct, tag=True, frozen=True):
    device: str
    width: int
    max_tokens: int
    vocab_size: int
    architecture: str
    pooling: tuple[str, ...]
    normalize: bool
    notes: tuple[str, ...]
    versions: dict[str, str]


class Vectors(msgspec.Struct, tag=True, frozen=True):
    """The payload holds rows × width float32, little-endian."""

    job: int
    rows: int
    width: int
    prompt_tokens: int
    truncated: int


class Dropped(msgspec.Struct, tag=True, frozen=True):
    job: int


class DeviceList(msgspec.Struct, tag=True, frozen=True):
    """(device, name, bytes of memory) each."""

    cuda: list[tuple[str, str, int]]
    versions: dict[str, str]


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
            errors.ModelUnsupported, errors.InvalidInput, errors.PayloadTooLarge, errors.InferenceFailed,
            errors.DeviceUnavailable,
        )  # fmt: skip
        kind = next((k for k in known if k.__name__ == self.kind), Unavailable)
        raised = kind(self.message, code=self.code)
        raised.detail = dict(self.detail)
        raised.retry_after_s = self.retry_after_s
        return raised


Request = Load | Embed | Cancel | Devices
Reply = Progress | Loaded | Vectors | Dropped | DeviceList | Failure

_encoder = msgspec.msgpack.Encoder()
_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


class WireError(Exception):
    """The other side sent what is no frame."""


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
