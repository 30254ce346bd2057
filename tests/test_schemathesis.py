"""Requests made up from the document that describes the routes, right and wrong ones, to a whole node with a model: no
answer is a bug, each is as the document says, and what needs a key is refused without.

A few requests for each route; with the marker ``full`` many more.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy
from schemathesis import Case, GenerationMode
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    response_schema_conformance,
    status_code_conformance,
)

from ipfs_accelerate_node.api import openapi
from ipfs_accelerate_node.api.app import ROUTES
from ipfs_accelerate_node.api.problems import INTERNAL
from tests.support.models import tiny_model
from tests.support.node import NodeProcess
from tests.support.running import running

pytestmark = pytest.mark.timeout(600)

FEW, MANY = 4, 80
# What takes minutes when it is asked for in earnest, or never ends; it is asked with other tests' requests.
LEFT_OUT = {"POST /api/benchmarks", "POST /api/report", "POST /api/results/verify", "GET /dashboard/events"}
CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]
MODELS = ("org/tiny", "mock:text-generation", "mock:embedding", "mock:rerank", "mock:text-classification")
DOCUMENT = openapi.document(list(ROUTES), loopback=True)
_FOUND = [one.ok() for one in schemathesis.openapi.from_dict(DOCUMENT).get_all_operations() if isinstance(one, Ok)]
OPERATIONS = {found.label: found for found in _FOUND}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    folder = tmp_path_factory.mktemp("schemathesis")
    offline = {"IPFS_ACCELERATE_NODE_HF_UPSTREAM": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
    with NodeProcess(folder / "cache", "--no-tunnels", env=offline) as started:
        started.cli("add", str(tiny_model(folder / "tiny")), "--name", "org/tiny")
        started.request("POST", "/api/loads", {"ref": "org/tiny", "device": "cpu"})
        yield started
        assert started.stop() == 0
    assert "Traceback" not in started.log.read_text()


def made_up(label: str) -> SearchStrategy[Case[Any]]:
    """Requests as the document has them, and such as it has not."""
    right, wrong = (OPERATIONS[label].as_strategy(generation_mode=mode) for mode in GenerationMode)
    both: SearchStrategy[Case[Any]] = right | wrong
    return both


def named(case: Case[Any], number: int) -> None:
    """Most requests mean a model that is here: what is made up names none."""
    model = MODELS[number % len(MODELS)]
    if number % 3 == 2:
        return
    body: Any = case.body
    if isinstance(body, dict):
        body.update({name: model for name in ("model", "ref") if name in body})
    places: list[Any] = [case.path_parameters, case.query, case.headers]
    for place, names in zip(places, (("name", "id"), ("model",), ("x-model",)), strict=True):
        for name in names:
            if place and name in place:
                place[name] = model


def ask(node: NodeProcess, label: str, count: int) -> None:
    numbers = itertools.count()
    key = {"Authorization": f"Bearer {node.key}"}

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=count == FEW,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(case=made_up(label))
    def one(case: Case[Any]) -> None:
        named(case, next(numbers))
        reply = case.call(base_url=node.url, headers=key, timeout=60, allow_redirects=False)
        assert reply.status_code != 500 or INTERNAL not in reply.text, case.as_curl_command()
        assert "Traceback" not in reply.text
        assert reply.headers["x-request-id"]
        case.validate_response(reply, checks=CHECKS)

    one()


@pytest.mark.parametrize("label", sorted(OPERATIONS.keys() - LEFT_OUT))
def test_a_few_requests_to_each_route(node: NodeProcess, label: str) -> None:
    ask(node, label, FEW)


@pytest.mark.full
@pytest.mark.parametrize("label", sorted(OPERATIONS.keys() - LEFT_OUT))
def test_many_requests_to_each_route(node: NodeProcess, label: str) -> None:
    ask(node, label, MANY)


KEYED = sorted(
    label
    for label in OPERATIONS
    if {} not in DOCUMENT["paths"][label.partition(" ")[2]][label.partition(" ")[0].lower()]["security"]
)


@pytest.mark.parametrize("label", KEYED)
def test_what_needs_a_key_is_refused_without_or_with_a_wrong_one(node: NodeProcess, label: str) -> None:
    """By schemathesis' own check, which takes the key away, and puts another one in its place."""

    @settings(max_examples=1, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(case=OPERATIONS[label].as_strategy(generation_mode=GenerationMode.POSITIVE))
    def one(case: Case[Any]) -> None:
        for key in ({}, {"Authorization": "Bearer nonsense"}):
            reply = case.call(base_url=node.url, headers=key, timeout=60, allow_redirects=False)
            assert reply.status_code == 401, (label, reply.status_code)
            case.validate_response(reply, checks=[*CHECKS, ignored_auth])

    one()


async def test_what_needs_a_key_on_an_open_address_is_refused_without(tmp_path: Path) -> None:
    async with running(tmp_path / "cache", host="0.0.0.0") as here:
        document = openapi.document(list(ROUTES), loopback=False)
        walked = 0
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                if {} in operation["security"]:
                    continue
                walked += 1
                asked = path
                for parameter in operation["parameters"]:
                    asked = asked.replace(f"{{{parameter['name']}}}", "x")
                for key in (None, "nonsense"):
                    reply = await here.ask(method.upper(), asked, key=key)
                    hub = operation["operationId"].partition("_")[2].startswith("hub_")
                    assert reply.status in ((401, 403) if hub else (401,)), (method, path, reply.status)
    assert walked > 80
