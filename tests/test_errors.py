"""Every failure has a status, an exit code and a problem body."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from ipfs_accelerate_node.api.problems import Dialect, error_reply
from ipfs_accelerate_node.api.wire import json_bytes
from ipfs_accelerate_node.errors import (
    EXIT_CODE,
    HTTP_STATUS,
    IntegrityError,
    InvalidInput,
    Loading,
    NodeError,
    NotFound,
    SourceUnavailable,
    Unauthorized,
    Unavailable,
    exit_code,
    http_status,
    problem,
)


def subclasses(kind: type[NodeError]) -> Iterator[type[NodeError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from subclasses(below)


def made(kind: type[NodeError]) -> NodeError:
    if issubclass(kind, IntegrityError):
        return kind(expected="bafyA", actual="bafyB", origin="http://gateway.example")
    if issubclass(kind, SourceUnavailable):
        return kind("went away", source="http://gateway.example")
    return kind("went wrong")


ALL = sorted(set(subclasses(NodeError)), key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_error_has_a_row_in_both_tables(kind: type[NodeError]) -> None:
    assert 400 <= HTTP_STATUS[kind] <= 599
    assert EXIT_CODE[kind] in (1, 2, 3, 4, 5)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_error_is_told_in_both_dialects(kind: type[NodeError]) -> None:
    error = made(kind)
    body = json.loads(json_bytes(problem(error)))
    assert body["code"] == error.code
    assert body["status"] == http_status(error)
    assert body["exit_code"] == exit_code(error)
    native, openai = error_reply(error, Dialect.NATIVE), error_reply(error, Dialect.OPENAI)
    assert native.content_type == "application/problem+json"
    assert openai.content_type == "application/json"
    assert isinstance(openai.body, bytes)
    told = json.loads(openai.body)
    assert told["error"]["message"] == told["message"] == str(error)
    assert set(told["error"]) >= {"message", "type", "param", "code"}


def test_no_row_is_left_of_an_error_that_is_gone() -> None:
    assert set(HTTP_STATUS) == set(EXIT_CODE) == set(ALL)


def test_waiting_is_told_in_whole_seconds_of_at_least_one() -> None:
    assert error_reply(Loading("soon", retry_after_s=0.2), Dialect.OPENAI).headers["Retry-After"] == "1"
    assert error_reply(Loading("later", retry_after_s=4.1), Dialect.NATIVE).headers["Retry-After"] == "5"
    assert "Retry-After" not in error_reply(Unavailable("who knows"), Dialect.NATIVE).headers


def test_openai_says_400_for_values_and_names_the_parameter() -> None:
    error = InvalidInput("an empty text", param="input", index=3)
    assert error_reply(error, Dialect.NATIVE).status == 422
    reply = error_reply(error, Dialect.OPENAI)
    assert isinstance(reply.body, bytes)
    body = json.loads(reply.body)
    assert reply.status == 400
    assert body["error"]["param"] == "input"
    assert body["error"]["index"] == 3
    assert body["error"]["type"] == body["type"] == "invalid_request_error"


def test_who_has_no_key_is_told_how_to_send_one() -> None:
    assert error_reply(Unauthorized("no key"), Dialect.NATIVE).headers["WWW-Authenticate"] == "Bearer"


def test_fields_without_a_value_are_left_out() -> None:
    assert "param" not in problem(NotFound("nothing", param=None))
