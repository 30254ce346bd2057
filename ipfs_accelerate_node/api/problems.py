"""How a failure leaves: problem+json on native routes, on others the shape that their clients read; never a traceback.

Status and code come from the error's class (one table, `errors.HTTP_STATUS`). OpenAI clients expect 400 where the
values of a well-formed body are wrong, and read ``error.message``; older relatives read the same fields at top level.
Text-embeddings-inference says 424 for what its model cannot do, and names the kind of a failure in ``error_type``;
KServe has nothing but ``error``, a text. The Pinning Service API has a ``reason`` and 400 or 409 for what others tell
apart.
"""

from __future__ import annotations

import enum
import math

from aiohttp import web

from ipfs_accelerate_node.api.wire import json_bytes
from ipfs_accelerate_node.errors import (
    BadRequest,
    InferenceFailed,
    InvalidInput,
    MethodNotAllowed,
    NodeError,
    NotFound,
    PayloadTooLarge,
    QuotaExceeded,
    http_status,
    problem,
)

_OPENAI_TYPE = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_PINNING_REASON = {400: "BAD_REQUEST", 401: "UNAUTHORIZED", 404: "NOT_FOUND"}
_ABOUT_MODEL = ("model_not_found", "invalid_reference", "invalid_cid", "invalid_path")
INTERNAL = "internal_error"


class Dialect(enum.Enum):
    """Whose words a route's errors speak."""

    NATIVE = "native"
    OPENAI = "openai"
    TEI = "tei"
    KSERVE = "kserve"
    PINNING = "pinning"


def error_reply(error: NodeError, dialect: Dialect) -> web.Response:
    """The response to a failure of ours, with Retry-After where waiting helps and WWW-Authenticate where a key does."""
    status, body = failure(error, dialect)
    reply = _reply(body, status, "application/problem+json" if dialect is Dialect.NATIVE else "application/json")
    if error.retry_after_s is not None:
        reply.headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if status == 401:
        reply.headers["WWW-Authenticate"] = "Bearer"
    if isinstance(allow := error.detail.get("allow"), str):
        reply.headers["Allow"] = allow
    return reply


def failure(error: NodeError, dialect: Dialect) -> tuple[int, dict[str, object]]:
    """Status and body."""
    status = http_status(error)
    match dialect:
        case Dialect.NATIVE:
            return status, problem(error)
        case Dialect.OPENAI:
            status = 400 if isinstance(error, InvalidInput) else status
            return status, _openai(error, status)
        case Dialect.TEI:
            return _tei(error, status)
        case Dialect.KSERVE:
            return 400 if isinstance(error, InvalidInput) else status, {"error": str(error), "code": error.code}
        case Dialect.PINNING:
            return _pinning(error, status)


def internal_reply(request_id: str, dialect: Dialect) -> web.Response:
    """The response to a bug: no more than the request id, under which the log has the rest."""
    return error_reply(
        NodeError("something went wrong inside the node; its log has more", code=INTERNAL, request_id=request_id),
        dialect,
    )


def of_framework(error: web.HTTPException, request: web.BaseRequest) -> NodeError:
    """What the router or the parser refused, in our words."""
    match error:
        case web.HTTPMethodNotAllowed():
            allow = ", ".join(sorted(error.allowed_methods))
            return MethodNotAllowed(f"{request.method} is not for this path, {allow} is", allow=allow)
        case web.HTTPNotFound():
            return NotFound("there is no such path here", code="no_route")
        case web.HTTPRequestEntityTooLarge():
            return PayloadTooLarge("the body is over its limit")
        case _:
            return BadRequest(f"the request was refused: {error.reason}")


def _openai(error: NodeError, status: int) -> dict[str, object]:
    kind = _OPENAI_TYPE.get(status, "invalid_request_error" if status < 500 else "server_error")
    fields: dict[str, object] = {
        "message": str(error),
        "type": kind,
        "param": error.detail.get("param", "model" if error.code in _ABOUT_MODEL else None),
        "code": error.code,
    }
    extra = {k: v for k, v in error.detail.items() if v is not None and k not in fields}
    return {"error": {**fields, **extra}, **fields}


def _tei(error: NodeError, status: int) -> tuple[int, dict[str, object]]:
    """error_type: one of the words that clients of text-embeddings-inference know. A model that cannot do what a route
    is for is a failure of its backend there, as is one that raised."""
    if error.code == "task_unsupported" or isinstance(error, InferenceFailed):
        status, kind = 424, "Backend"
    elif error.code == "empty_input":
        status, kind = 400, "Empty"
    elif status == 429:
        kind = "Overloaded"
    elif isinstance(error, PayloadTooLarge) and error.detail.get("param") is not None:  # not the body: an item of it
        status, kind = 422, "Validation"
    else:
        kind = "Unhealthy" if status >= 500 else "Validation"
    extra = {k: v for k, v in error.detail.items() if k in ("param", "index") and v is not None}
    return status, {"error": str(error), "error_type": kind, "code": error.code, **extra}


def _pinning(error: NodeError, status: int) -> tuple[int, dict[str, object]]:
    if isinstance(error, QuotaExceeded):
        status, reason = 409, "INSUFFICIENT_FUNDS"
    elif status in _PINNING_REASON:
        reason = _PINNING_REASON[status]
    elif isinstance(error, BadRequest) and status in (413, 415, 422):
        status, reason = 400, "BAD_REQUEST"
    else:
        reason = "INTERNAL_SERVER_ERROR" if status >= 500 else error.code.upper()
    return status, {"error": {"reason": reason, "details": str(error)}}


def _reply(body: dict[str, object], status: int, content_type: str) -> web.Response:
    return web.Response(
        body=json_bytes(body), status=status, content_type=content_type, headers={"Cache-Control": "no-store"}
    )
