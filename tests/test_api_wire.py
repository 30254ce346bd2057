"""What leaves as JSON, and single ranges of bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipfs_accelerate_node.api.ranges import matches, requested
from ipfs_accelerate_node.api.wire import json_bytes, plain
from ipfs_accelerate_node.content.cid import Cid


@dataclass(frozen=True, slots=True)
class Inner:
    cid: Cid
    digest: bytes


@dataclass(frozen=True, slots=True)
class Outer:
    path: Path
    inner: tuple[Inner, ...]
    tags: frozenset[str]
    more: Mapping[str, object]


def test_our_types_become_json() -> None:
    old = Cid.parse("QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn")
    value = Outer(Path("/a/b"), (Inner(old, b"\x00\xff"),), frozenset({"y", "x"}), {"n": None, "f": 0.5, "t": True})
    assert json.loads(json_bytes(value)) == {
        "path": "/a/b",
        "inner": [{"cid": str(old.canonical), "digest": "00ff"}],
        "tags": ["x", "y"],
        "more": {"n": None, "f": 0.5, "t": True},
    }


def test_what_has_no_json_form_is_noticed() -> None:
    for value in (object(), Outer, 1j):
        with pytest.raises(TypeError):
            plain(value)


@given(st.integers(0, 1000), st.integers(0, 1200), st.integers(0, 1200))
def test_a_range_lies_within_the_file_and_starts_where_it_was_asked(size: int, first: int, last: int) -> None:
    span = requested(f"bytes={first}-{last}", size)
    if last < first:
        assert span is not None
        assert (span.start, span.stop, span.partial) == (0, size, False)
    elif first >= size:
        assert span is None
    else:
        assert span is not None
        assert (span.start, span.stop, span.partial) == (first, min(last + 1, size), True)


@given(st.text(max_size=30), st.integers(0, 100))
def test_no_range_header_crashes(header: str, size: int) -> None:
    span = requested(header, size)
    assert span is None or 0 <= span.start <= span.stop <= size


def test_entity_tags() -> None:
    assert matches('"a", W/"b"', '"b"')
    assert matches('W/"c"', 'W/"c"')
    assert not matches('"ab"', '"b"')
    assert not matches(None, '"b"')
