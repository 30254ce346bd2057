"""Layer 0: every failure that may reach a user, with its code, HTTP status and CLI exit code.

Foreign exceptions become one of these once, in the module that owns the foreign library. A class says *what kind* of
failure it is and so fixes status and exit code (two tables below, walked by a test); ``code`` says *which* one, in the
words of the bad-input catalogue.
"""

from __future__ import annotations

from typing import Protocol


class _Printable(Protocol):
    def __str__(self) -> str: ...


class NodeError(Exception):
    """Base of all our errors. ``str()`` is one line for a person: what happened, to what, and how to mend it.

    code: machine-readable, snake_case; part of the HTTP contract.
    detail: further JSON-able fields for the problem body (``source``, ``cid``, ``param``, …); never a secret.
    """

    code: str = "error"
    retry_after_s: float | None = None

    def __init__(self, message: str, *, code: str | None = None, **detail: object) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code
        self.detail: dict[str, object] = detail


class BadRequest(NodeError):
    """The caller's input is wrong; the same request can never succeed."""

    code = "bad_request"


class InvalidCid(BadRequest):
    """Not a CID that the hash policy admits. code: invalid_cid, digest_too_small, digest_too_large,
    hash_not_allowed or unsupported_codec."""

    code = "invalid_cid"


class InvalidConfig(BadRequest):
    """A setting of the node is unusable; raised at start, names the key."""

    code = "invalid_config"


class InvalidInput(BadRequest):
    """Well-formed JSON whose values cannot be used; ``param`` (and ``index``) in detail say which."""

    code = "invalid_input"


class PayloadTooLarge(BadRequest):
    """Over a byte, token or item limit."""

    code = "payload_too_large"


class UnsupportedMediaType(BadRequest):
    """A body of a type that is not spoken here (also the shield against form posts by web pages)."""

    code = "unsupported_media_type"


class MethodNotAllowed(BadRequest):
    """The path exists, the method does not."""

    code = "method_not_allowed"


class ModelUnsupported(BadRequest):
    """A model that is here but cannot be run. code: bad_weights, bad_config, format_refused, remote_code_refused,
    model_too_large or task_unsupported."""

    code = "model_unsupported"


class UnsafeContent(BadRequest):
    """A directory to add, or a DAG to write, holds a name or a node type that is refused. code: invalid_path or
    unsafe_file."""

    code = "invalid_path"


class Unauthorized(NodeError):
    """No key, or a key that is not known."""

    code = "unauthorized"


class Forbidden(NodeError):
    """A known caller without the right, or a caller from a place that has none (foreign Host or Origin)."""

    code = "forbidden"


class NotFound(NodeError):
    """Nothing of that name or CID is here, and (where that was asked) no source has it."""

    code = "not_found"


class Conflict(NodeError):
    """The state does not allow it now: a name that means another root, a model in use."""

    code = "conflict"


class AlreadyRunning(Conflict):
    """Another daemon holds this cache."""

    code = "already_running"


class Unavailable(NodeError):
    """Cannot be had now; may work later. ``retry_after_s`` says when, if known."""

    code = "unavailable"

    def __init__(
        self, message: str, *, code: str | None = None, retry_after_s: float | None = None, **detail: object
    ) -> None:
        super().__init__(message, code=code, **detail)
        self.retry_after_s = retry_after_s


class SourceUnavailable(Unavailable):
    """A source did not deliver. code: source_unavailable, truncated, stalled, missing_block, tls_error,
    budget_exceeded, auth_required, ...; detail has ``source`` and, where one was asked for, ``cid``."""

    code = "source_unavailable"

    def __init__(
        self,
        message: str,
        *,
        source: str,
        cid: _Printable | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
        **detail: object,
    ) -> None:
        named = {"source": source, **({} if cid is None else {"cid": str(cid)}), **detail}
        super().__init__(message, code=code, retry_after_s=retry_after_s, **named)
        self.source = source


class NoSource(SourceUnavailable):
    """Every source was tried; ``attempts`` lists each with its reason."""

    code = "no_source"


class AuthRequired(SourceUnavailable):
    """The upstream wants a token, or refuses this one."""

    code = "auth_required"


class DeviceUnavailable(Unavailable):
    """A named device is not there; never replaced silently by another."""

    code = "device_unavailable"


class Overloaded(Unavailable):
    """Too much work queued; come back after ``retry_after_s``."""

    code = "overloaded"


class Loading(Unavailable):
    """The model is on its way; come back after ``retry_after_s``."""

    code = "loading"


class IntegrityError(NodeError):
    """Bytes do not match their CID. Never retried on the same origin.

    code: hash_mismatch. detail: expected, actual, source, cid (= expected).
    """

    code = "hash_mismatch"

    def __init__(self, *, expected: _Printable, actual: _Printable, origin: str) -> None:
        super().__init__(
            f"{origin} sent {actual}, expected {expected}",
            expected=str(expected),
            actual=str(actual),
            source=origin,
            cid=str(expected),
        )
        self.origin = origin


class BadContent(NodeError):
    """Bytes that match their CID but do not make sense, or a stream of them that does not. code: bad_dag, bad_car,
    block_too_large, unsupported_codec, bad_record, bad_signature."""

    code = "bad_dag"


class StorageError(NodeError):
    """The disk refused: no space, I/O error, read-only, not ours."""

    code = "storage_error"


class QuotaExceeded(StorageError):
    """The reservation does not fit into the quota, also after evicting all that may go."""

    code = "quota_exceeded"


class InferenceFailed(NodeError):
    """The engine raised on valid input; the device's own error is the cause."""

    code = "inference_failed"


HTTP_STATUS: dict[type[NodeError], int] = {
    NodeError: 500,
    BadRequest: 400,
    InvalidCid: 400,
    InvalidConfig: 400,
    InvalidInput: 422,
    PayloadTooLarge: 413,
    UnsupportedMediaType: 415,
    MethodNotAllowed: 405,
    ModelUnsupported: 422,
    UnsafeContent: 400,
    Unauthorized: 401,
    Forbidden: 403,
    NotFound: 404,
    Conflict: 409,
    AlreadyRunning: 409,
    Unavailable: 503,
    SourceUnavailable: 503,
    NoSource: 503,
    AuthRequired: 503,
    DeviceUnavailable: 422,
    Overloaded: 429,
    Loading: 503,
    IntegrityError: 502,
    BadContent: 502,
    StorageError: 507,
    QuotaExceeded: 507,
    InferenceFailed: 500,
}

EXIT_OK, EXIT_FAILURE, EXIT_USAGE, EXIT_NOT_FOUND, EXIT_VERIFICATION, EXIT_UNAVAILABLE, EXIT_INTERRUPTED = (
    0, 1, 2, 3, 4, 5, 130,
)  # fmt: skip

EXIT_CODE: dict[type[NodeError], int] = {
    NodeError: EXIT_FAILURE,
    BadRequest: EXIT_USAGE,
    InvalidCid: EXIT_USAGE,
    InvalidConfig: EXIT_USAGE,
    InvalidInput: EXIT_USAGE,
    PayloadTooLarge: EXIT_USAGE,
    UnsupportedMediaType: EXIT_USAGE,
    MethodNotAllowed: EXIT_USAGE,
    ModelUnsupported: EXIT_FAILURE,
    UnsafeContent: EXIT_USAGE,
    Unauthorized: EXIT_FAILURE,
    Forbidden: EXIT_FAILURE,
    NotFound: EXIT_NOT_FOUND,
    Conflict: EXIT_FAILURE,
    AlreadyRunning: EXIT_FAILURE,
    Unavailable: EXIT_UNAVAILABLE,
    SourceUnavailable: EXIT_UNAVAILABLE,
    NoSource: EXIT_UNAVAILABLE,
    AuthRequired: EXIT_UNAVAILABLE,
    DeviceUnavailable: EXIT_UNAVAILABLE,
    Overloaded: EXIT_UNAVAILABLE,
    Loading: EXIT_UNAVAILABLE,
    IntegrityError: EXIT_VERIFICATION,
    BadContent: EXIT_VERIFICATION,
    StorageError: EXIT_FAILURE,
    QuotaExceeded: EXIT_FAILURE,
    InferenceFailed: EXIT_FAILURE,
}


def http_status(error: NodeError) -> int:
    return HTTP_STATUS[type(error)]


def exit_code(error: NodeError) -> int:
    return EXIT_CODE[type(error)]


Problem = dict[str, object]


def problem(error: NodeError) -> Problem:
    """RFC 9457 problem body of a native route: type, title, status, detail, code, exit_code and the error's fields."""
    return {
        "type": "about:blank",
        "title": type(error).__name__,
        "status": http_status(error),
        "detail": str(error),
        "code": error.code,
        "exit_code": exit_code(error),
        **{k: v for k, v in error.detail.items() if v is not None},
        **({} if error.retry_after_s is None else {"retry_after_s": error.retry_after_s}),
    }
