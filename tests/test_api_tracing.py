"""Spans of requests to models: below the caller's own, with what the conventions for generative AI name, and nothing of
what was asked."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from ipfs_accelerate_node.api.tracing import TRACING, NoTracing, OpenTelemetry, tracing_to
from tests.support.models import tiny_model
from tests.support.node import NodeProcess, environment
from tests.support.running import Running, running

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(90)]

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CALLER = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
SECRET = "cat mat three"
TINY = "org/tiny"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def here(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    folder = tmp_path_factory.mktemp("tracing")
    async with running(folder / "cache", threads=1) as node:
        await node.node.add(tiny_model(folder / "tiny"), name=TINY)
        yield node


class Kept:
    """Spans that ended."""

    def __init__(self, tracing: OpenTelemetry, exporter: InMemorySpanExporter) -> None:
        self._tracing = tracing
        self._exporter = exporter

    def taken(self) -> list[ReadableSpan]:
        self._tracing._provider.force_flush()
        spans = list(self._exporter.get_finished_spans())
        self._exporter.clear()
        return spans


@pytest_asyncio.fixture(loop_scope="module")
async def kept(here: Running, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Kept]:
    exporter = InMemorySpanExporter()
    tracing = OpenTelemetry("http://127.0.0.1:9", exporter)
    monkeypatch.setitem(here.served.app._state, TRACING, tracing)
    yield Kept(tracing, exporter)
    await tracing.close()


def attributes(span: ReadableSpan) -> Mapping[str, Any]:
    return span.attributes or {}


async def test_a_request_to_a_model_is_one_span_below_the_callers(here: Running, kept: Kept) -> None:
    body = {"model": TINY, "input": [SECRET], "dimensions": 8}
    reply = await here.ask("POST", "/v1/embeddings", json=body, headers={**CALLER, "x-request-id": "mine"})
    assert (reply.status, reply.headers["x-request-id"]) == (200, "mine")
    (span,) = kept.taken()
    assert span.kind is SpanKind.SERVER
    assert span.context is not None
    assert span.parent is not None
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == PARENT
    assert span.name == f"embeddings {TINY}"
    found = attributes(span)
    assert found["gen_ai.operation.name"] == "embeddings"
    assert found["gen_ai.request.model"] == found["gen_ai.response.model"] == TINY
    assert found["gen_ai.usage.input_tokens"] == 5
    assert found["gen_ai.embeddings.dimension.count"] == 8
    assert found["http.route"] == "/v1/embeddings"
    assert found["ipfs_accelerate_node.implementation"] == "REAL"
    assert span.resource.attributes["service.name"] == "ipfs-accelerate-node"


async def test_without_a_caller_that_traces_it_is_the_root_of_its_own(here: Running, kept: Kept) -> None:
    for headers in ({}, {"traceparent": "junk"}, {"traceparent": f"00-{'0' * 32}-{PARENT}-01"}):
        reply = await here.ask("POST", "/embed?model=mock:embedding", json={"inputs": SECRET}, headers=headers)
        assert reply.status == 200
        (span,) = kept.taken()
        assert span.parent is None


async def test_a_caller_that_samples_nothing_gets_nothing(here: Running, kept: Kept) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
    await here.ask("POST", "/embed?model=mock:embedding", json={"inputs": SECRET}, headers=headers)
    assert kept.taken() == []


async def test_what_is_written_says_how_it_ended(here: Running, kept: Kept) -> None:
    chat = {"model": "mock:text-generation", "messages": [{"role": "user", "content": SECRET}], "max_tokens": 5}
    for stream in (False, True):
        reply = await here.ask("POST", "/v1/chat/completions", json={**chat, "stream": stream})
        assert reply.status == 200
        (span,) = kept.taken()
        found = attributes(span)
        assert span.name == "chat mock:text-generation"
        assert found["gen_ai.request.max_tokens"] == 5
        assert found["gen_ai.usage.output_tokens"] > 0
        assert set(found["gen_ai.response.finish_reasons"]) <= {"stop", "length"}


async def test_a_failure_is_told_by_its_code(here: Running, kept: Kept) -> None:
    await here.ask("POST", "/v1/embeddings", json={"model": "nobody/nothing", "input": SECRET})
    (span,) = kept.taken()
    assert span.status.status_code is StatusCode.ERROR
    assert attributes(span)["error.type"] == "model_not_found"
    assert not span.events


async def test_no_span_holds_anything_of_what_was_asked_or_answered(here: Running, kept: Kept) -> None:
    texts = {"inputs": SECRET}
    await here.ask("POST", f"/embed?model={TINY}", json=texts)
    await here.ask("POST", "/predict?model=mock:text-classification", json=texts)
    await here.ask("POST", "/v1/completions", json={"model": "mock:text-generation", "prompt": SECRET})
    await here.ask("POST", "/v1/rerank", json={"model": "mock:rerank", "query": SECRET, "documents": [SECRET]})
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [SECRET]}
    await here.ask("POST", "/v2/models/mock:embedding/infer", json={"inputs": [tensor]})
    spans = kept.taken()
    assert len(spans) == 5
    for span in spans:
        assert SECRET not in span.to_json()
        assert not span.events


async def test_probes_and_lists_make_no_span(here: Running, kept: Kept) -> None:
    for path in ("/healthz", "/metrics", "/v1/models", "/v2"):
        await here.ask("GET", path, headers=CALLER)
    assert kept.taken() == []


async def test_who_wants_none_imports_none(tmp_path: Path) -> None:
    assert isinstance(tracing_to(None), NoTracing)
    code = (
        "import sys; from ipfs_accelerate_node.api.app import build_app; "
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment(tmp_path / "cache")
    )
    assert done.stdout.strip() == "[]"


async def test_where_it_is_not_installed_the_node_runs_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)  # as if it were not there
    assert isinstance(tracing_to("http://127.0.0.1:4318"), NoTracing)
    assert "ipfs-accelerate-node[otel]" in caplog.text


async def test_spans_reach_the_collector_of_the_variable(tmp_path: Path, unused_tcp_port: int) -> None:
    """The variable of OpenTelemetry itself, a whole node, and OTLP as it goes over the wire."""

    received: list[ExportTraceServiceRequest] = []

    async def traces(request: web.Request) -> web.Response:
        body = await request.read()
        received.append(ExportTraceServiceRequest.FromString(body))
        return web.Response()

    app = web.Application()
    app.router.add_post("/v1/traces", traces)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", unused_tcp_port).start()
    node = NodeProcess(tmp_path / "cache", env={"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{unused_tcp_port}"})
    try:
        await asyncio.to_thread(node.start)
        body = {"model": "mock:embedding", "input": SECRET}
        await asyncio.to_thread(node.request, "POST", "/v1/embeddings", body)
        assert await asyncio.to_thread(node.stop) == 0
    finally:
        await asyncio.to_thread(node.stop)
        await runner.cleanup()
    names = [s.name for r in received for part in r.resource_spans for scope in part.scope_spans for s in scope.spans]
    assert names == ["embeddings mock:embedding"]
    assert SECRET not in json.dumps([str(one) for one in received])


async def test_a_collector_that_is_not_there_does_not_hold_up_the_end(tmp_path: Path) -> None:

    node = NodeProcess(tmp_path / "cache", "--otlp-endpoint", "http://127.0.0.1:9")
    await asyncio.to_thread(node.start)
    await asyncio.to_thread(node.request, "POST", "/v1/embeddings", {"model": "mock:embedding", "input": "a"})
    assert await asyncio.to_thread(node.stop, 8.0) == 0
