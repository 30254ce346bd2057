"""Which nodes a request to the Hub has come through, so that one node can be another's upstream and none its own.

Each node adds an identifier of its own to the header of what it asks on behalf of a request, and answers 508 to what
bears it already. The identifier is made anew at each start and says nothing of who the node is.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ipfs_accelerate_node.errors import BadRequest

HOP_HEADER = "X-Ipfs-Accelerate-Node-Hop"  # identifiers, commas between
MAX_NODES = 8  # that a request may come through

_ID = re.compile(r"[A-Za-z0-9]{1,64}")
_MAX_LETTERS = 1024
_passed: ContextVar[tuple[str, ...]] = ContextVar("hub_hops", default=())


def new_id() -> str:
    return secrets.token_hex(8)


def read_hops(text: str) -> tuple[str, ...]:
    """Of a header, "" where there is none. Raises BadRequest (code bad_hops)."""
    hops = tuple(part.strip() for part in text.split(",")) if text.strip() else ()
    if len(text) > _MAX_LETTERS or not all(_ID.fullmatch(hop) for hop in hops):
        raise BadRequest(f"{HOP_HEADER} is a list of identifiers", code="bad_hops")
    return hops


def goes_round(hops: tuple[str, ...], own: str) -> bool:
    """Whether a request that came so has been here, or comes from too far to be going anywhere."""
    return own in hops or len(hops) >= MAX_NODES


@contextmanager
def on_behalf(hops: tuple[str, ...]) -> Iterator[None]:
    """What is asked inside, and in tasks begun inside, is asked for a request that came through these nodes."""
    reset = _passed.set(hops)
    try:
        yield
    finally:
        _passed.reset(reset)


def onward(own: str) -> tuple[str, ...]:
    """For the header of what this node asks now."""
    return (*_passed.get(), own)
