"""Frames between daemon and worker, and which answers count: a worker has read strangers' files."""

from __future__ import annotations

import socket
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipfs_accelerate_node.errors import InferenceFailed, InvalidInput, NodeError, PayloadTooLarge, Unavailable
from ipfs_accelerate_node.inference import frames, wire
from ipfs_accelerate_node.inference.jobs import Job, size_of
from ipfs_accelerate_node.inference.model import (
    Audio,
    Chat,
    Entities,
    Entity,
    Fill,
    Fills,
    Generated,
    Ids,
    Image,
    ImageChoice,
    Item,
    Message,
    Options,
    Output,
    Pair,
    Score,
    Scores,
    Text,
    Vector,
)

ITEMS: tuple[Item, ...] = (
    Text("a"),
    Pair("query", "document"),
    Ids((1, 2, 3)),
    Image(b"\x89PNG"),
    Audio(b"RIFF"),
    Chat((Message("user", "hello"), Message("assistant", ""))),
    ImageChoice(b"\xff\xd8", ("cat", "dog")),
)
OUTPUTS: tuple[Output, ...] = (
    Vector(np.array([1.5, -2.0], np.float32), 4, True),
    Scores((Score("yes", 0.75), Score("no", 0.25)), 7),
    Vector(np.array([3.0], np.float32)),
    Entities((Entity("PER", 0.5, 0, 3, "Ada"),)),
    Fills((Fill("paris", 17, 0.5, "paris."),)),
    Generated("text", (5, 6), "length", 3),
)


def through(message: wire.Reply, payload: bytes = b"") -> tuple[wire.Reply, bytes]:
    ((reply, received),) = frames.Replies().feed(frames.frame(message, payload))
    return reply, bytes(received)


def test_every_item_reaches_the_worker_as_it_was() -> None:
    ours, theirs = socket.socketpair()
    request = wire.Infer(7, list(ITEMS), Options(top_k=3, stop=("\n",), temperature=0.5))
    with ours, theirs:
        ours.sendall(frames.frame(request))
        assert frames.read_request(theirs) == request
        ours.close()
        assert frames.read_request(theirs) is None


def test_every_output_comes_back_as_it_was() -> None:
    header, payload = frames.pack_outputs(7, OUTPUTS)
    reply, received = through(header, payload)
    assert isinstance(reply, wire.Outputs)
    found = frames.unpack_outputs(reply, received)
    for output, expected in zip(found, OUTPUTS, strict=True):
        if isinstance(expected, Vector):
            assert isinstance(output, Vector)
            np.testing.assert_array_equal(output.values, expected.values)
            assert (output.tokens_in, output.truncated) == (expected.tokens_in, expected.truncated)
        else:
            assert output == expected


@given(st.lists(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=9), max_size=9))
def test_vectors_of_any_widths(rows: list[list[float]]) -> None:
    outputs = [Vector(np.array(row, np.float32)) for row in rows]
    found = frames.unpack_outputs(*frames.pack_outputs(1, outputs))
    assert [list(v.values) for v in found if isinstance(v, Vector)] == [list(v.values) for v in outputs]


@pytest.mark.parametrize(
    ("heads", "payload"),
    [
        ([wire.VectorHead(2, 1, False)], bytes(4)),
        ([wire.VectorHead(2, 1, False)], bytes(12)),
        ([wire.VectorHead(0, 1, False)], b""),
        ([wire.VectorHead(-1, 1, False)], b""),
        ([wire.VectorHead(1, 1, False)], bytes(3)),
        ([], bytes(4)),
    ],
)
def test_vectors_that_are_not_all_there(heads: Sequence[wire.Head], payload: bytes) -> None:
    with pytest.raises(frames.WireError):
        frames.unpack_outputs(wire.Outputs(1, list(heads)), payload)


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 12,
        frames._LENGTHS.pack(4, 0) + b"\x00\x01\x02\x03",
        frames._LENGTHS.pack(0, 0),
        frames._LENGTHS.pack(frames.MAX_HEADER_BYTES + 1, 0),
        frames._LENGTHS.pack(1, frames.MAX_PAYLOAD_BYTES + 1),
    ],
)
def test_nonsense_is_no_frame(data: bytes) -> None:
    with pytest.raises(frames.WireError):
        list(frames.Replies().feed(data))


@given(st.lists(st.integers(0, 300), max_size=5), st.integers(1, 97))
def test_frames_come_in_pieces_of_any_size(sizes: list[int], piece: int) -> None:
    payloads = [bytes(size) for size in sizes]
    stream = b"".join(frames.frame(wire.Dropped(job), payload) for job, payload in enumerate(payloads))
    replies, found = frames.Replies(), []
    for at in range(0, len(stream), piece):
        found += [(reply, bytes(payload)) for reply, payload in replies.feed(stream[at : at + piece])]
    assert found == [(wire.Dropped(job), payload) for job, payload in enumerate(payloads)]


@pytest.mark.parametrize(
    "error",
    [
        InvalidInput("wrong", param="input", index=3),
        PayloadTooLarge("too much"),
        InferenceFailed("no"),
        Unavailable("later", code="out_of_memory", retry_after_s=5.0),
    ],
)
def test_errors_are_raised_again_on_our_side(error: NodeError) -> None:
    reply, _ = through(wire.Failure.of(error))
    assert isinstance(reply, wire.Failure)
    raised = reply.error()
    assert (type(raised), raised.code, str(raised)) == (type(error), error.code, str(error))
    assert (raised.detail, raised.retry_after_s) == (error.detail, error.retry_after_s)


async def test_a_class_that_a_worker_has_no_business_with_is_not_raised() -> None:
    reply = wire.Failure("Unauthorized", "unauthorized", "you there", {})
    assert type(reply.error()) is Unavailable


async def test_only_a_whole_answer_to_its_own_job_counts() -> None:
    job = Job.infer([Text("a"), Text("b")], Options())
    caller = job.join()
    two = [wire.VectorHead(3, 1, False)] * 2
    assert job.answered_by(wire.Outputs(job.number, list(two)), bytes(24))
    narrow = [wire.VectorHead(9, 1, False), wire.VectorHead(-3, 1, False)]
    for heads, size, number in ((narrow, 24, 0), (two, 23, 0), (two[:1], 12, 0), (two, 24, 1), (two, 28, 0)):
        assert not job.answered_by(wire.Outputs(job.number + number, list(heads)), bytes(size))
    assert not job.answered_by(wire.Array(job.number, (6,)), bytes(24))
    assert not job.answered_by(wire.Dropped(job.number), b"")
    assert job.leave(caller)
    assert job.answered_by(wire.Dropped(job.number), b"")
    asked = Job.primary(Text("a"))
    assert asked.answered_by(wire.Array(asked.number, (2, 3)), bytes(24))
    assert not asked.answered_by(wire.Array(asked.number, (-2, -3)), bytes(24))
    examples = Job.examples(0, 2)
    assert examples.answered_by(wire.Samples(examples.number, [Text("a"), Text("b")]), b"")
    assert not examples.answered_by(wire.Samples(examples.number, [Text("a")]), b"")


def test_what_an_item_costs_to_keep() -> None:
    assert [size_of(item) for item in ITEMS] == [1, 13, 3, 4, 4, 5, 8]
