"""The batch edge: where the libraries' errors become ours, so that a request's fault costs that request alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ipfs_accelerate_node.errors import InferenceFailed, InvalidInput, ModelUnsupported, NodeError, Unavailable

Result = TypeVar("Result")


class Cancelled(Exception):
    """Nobody waits for the job any more."""


def attempt(call: Callable[[], Result], *, loading: bool = False) -> Result | NodeError:
    """What the call gave, or why it failed. loading: it reads a model's files. Raises Cancelled if the call does."""
    try:
        return call()
    except NodeError as exc:
        return exc
    except Cancelled:
        raise
    except MemoryError as exc:
        return _out_of_memory(exc)
    except Exception as exc:  # batch edge
        return _translated(exc, loading)


def _out_of_memory(exc: BaseException) -> Unavailable:
    return Unavailable(f"not enough memory: {str(exc)[:200]}", code="out_of_memory", retry_after_s=5.0)


def _translated(exc: Exception, loading: bool) -> NodeError:
    """A library's error as one of ours, by what was asked for."""
    said = f"{type(exc).__name__}: {str(exc).strip()[:300]}"
    if "allocate memory" in str(exc) or "out of memory" in str(exc):
        return _out_of_memory(exc)
    if loading:
        return ModelUnsupported(f"the model cannot be loaded: {said}", code="bad_config")
    if isinstance(exc, UnicodeError):
        return InvalidInput(f"a text is not valid Unicode: {said}", param="input")
    return InferenceFailed(f"the model failed: {said}")
