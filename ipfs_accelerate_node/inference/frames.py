"""Frames between daemon and worker.

A frame: 4 bytes length of the header, 8 bytes length of the payload (both little-endian), header (MessagePack of one of
the structs of ``wire``), payload (raw bytes). Both ends bound what they accept: a worker parses strangers' files and is
trusted with nothing but its own answers.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from ipfs_accelerate_node.inference.model import NO_TIME, Output, Tensor, Timing, Vector
from ipfs_accelerate_node.inference.wire import Head, Outputs, Payload, Reply, Request, TensorHead, VectorHead

_LENGTHS = struct.Struct("<IQ")
MAX_HEADER_BYTES = 256 << 20
MAX_PAYLOAD_BYTES = 1 << 30

_encoder = msgspec.msgpack.Encoder()
_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


class WireError(Exception):
    """The other side sent what is no frame, or no answer."""


def pack_outputs(job: int, outputs: Sequence[Output], timing: Timing = NO_TIME) -> tuple[Outputs, bytes]:
    heads: list[Head] = []
    numbers: list[NDArray[np.float32]] = []
    for output in outputs:
        if isinstance(output, Vector):
            numbers.append(np.ascontiguousarray(output.values, dtype="<f4"))
            heads.append(VectorHead(output.values.size, output.tokens_in, output.truncated))
        elif isinstance(output, Tensor):
            numbers.append(np.ascontiguousarray(output.values, dtype="<f4").reshape(-1))
            heads.append(TensorHead(output.values.shape, output.tokens_in, output.truncated))
        else:
            heads.append(output)
    return Outputs(job, heads, timing), b"".join(array.data for array in numbers)


def unpack_outputs(reply: Outputs, payload: Payload) -> list[Output]:
    """The outputs again; numbers are views of the payload. Raises WireError: the payload is not all of them."""
    numbers = np.frombuffer(payload, dtype="<f4") if len(payload) % 4 == 0 else None
    outputs: list[Output] = []
    reached = 0
    for head in reply.heads:
        if not isinstance(head, VectorHead | TensorHead):
            outputs.append(head)
            continue
        until = reached + head.width
        if numbers is None or head.width < 1 or until > len(numbers):
            raise WireError(f"{len(payload)} bytes of vectors, announced were more")
        own = numbers[reached:until]
        if isinstance(head, TensorHead):
            outputs.append(Tensor(own.reshape(head.shape), head.tokens_in, head.truncated))
        else:
            outputs.append(Vector(own, head.tokens_in, head.truncated))
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


class Replies:
    """A stream of bytes to replies."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._needed = _LENGTHS.size  # bytes until something can be read

    def feed(self, data: bytes) -> Iterator[tuple[Reply, memoryview]]:
        """The replies that are whole now, each with its payload. Raises WireError for nonsense."""
        self._buffer += data
        if len(self._buffer) < self._needed:
            return
        whole, reached = bytes(self._buffer), 0
        while (end := self._end(whole, reached)) <= len(whole):
            header, _ = _lengths(whole[reached : reached + _LENGTHS.size])
            text = memoryview(whole)[reached + _LENGTHS.size :][:header]
            try:
                reply = _replies.decode(text)
            except msgspec.DecodeError as exc:
                raise WireError(str(exc)) from exc
            yield reply, memoryview(whole)[reached + _LENGTHS.size + header : end]
            reached = end
        self._buffer = bytearray(whole[reached:])
        self._needed = end - reached

    @staticmethod
    def _end(whole: bytes, reached: int) -> int:
        """Where the frame that begins there ends, as far as can be said."""
        begins = reached + _LENGTHS.size
        return begins if begins > len(whole) else begins + sum(_lengths(whole[reached:begins]))


def payload_bytes(reply: Outputs) -> int:
    """Bytes of the payload that are this job's."""
    return 4 * sum(head.width for head in reply.heads if isinstance(head, VectorHead | TensorHead))


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
