"""Spans of inference requests, for who runs an OpenTelemetry collector: one for each request to a model, below the
caller's own span if it sent ``traceparent``, with the attributes of the conventions for generative AI. Never a prompt,
an answer, or anything else of what was asked.

OpenTelemetry is imported only where the setting ``otlp_endpoint`` names a collector (it is what
``OTEL_EXPORTER_OTLP_ENDPOINT`` says), and is the extra ``otel``. Its other variables mean what they always do.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Protocol

from aiohttp import web

from ipfs_accelerate_node.errors import NodeError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span as OtelSpan

log = logging.getLogger(__name__)

SERVICE = "ipfs-accelerate-node"
FLUSH_S = 2.0  # at the end, for a collector that does not answer
GONE = "client_gone"
Value = str | int | float | bool | list[str]


class Span(Protocol):
    def note(self, attributes: Mapping[str, Value]) -> None: ...


class Tracing(Protocol):
    """span: open as long as the request is at work; a failure inside is noted on it by its code."""

    def span(
        self, name: str, headers: Mapping[str, str], attributes: Mapping[str, Value]
    ) -> AbstractContextManager[Span]: ...

    async def close(self) -> None: ...


class _NoSpan:
    def note(self, attributes: Mapping[str, Value]) -> None:
        return


class NoTracing:
    """Nobody wants any."""

    _NONE = _NoSpan()

    def span(
        self, name: str, headers: Mapping[str, str], attributes: Mapping[str, Value]
    ) -> AbstractContextManager[Span]:
        return nullcontext(self._NONE)

    async def close(self) -> None:
        return


class _Noted:
    def __init__(self, span: OtelSpan) -> None:
        self._span = span

    def note(self, attributes: Mapping[str, Value]) -> None:
        self._span.set_attributes(attributes)


class OpenTelemetry:
    """A provider of its own: that of the process, if anybody set one, is left alone. Raises ImportError."""

    def __init__(self, endpoint: str, exporter: SpanExporter | None = None) -> None:
        """endpoint: of a collector, by OTLP over HTTP; ``/v1/traces`` is added. exporter: instead of one to there."""
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        if exporter is None:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
        named = Resource({SERVICE_NAME: SERVICE}).merge(Resource.create())
        if named.attributes.get(SERVICE_NAME, "").startswith("unknown_service"):  # type: ignore[union-attr]
            named = named.merge(Resource({SERVICE_NAME: SERVICE}))
        self._provider = TracerProvider(resource=named, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer(SERVICE)
        self._parents = TraceContextTextMapPropagator()

    @contextmanager
    def span(self, name: str, headers: Mapping[str, str], attributes: Mapping[str, Value]) -> Iterator[Span]:
        from opentelemetry.trace import SpanKind, Status, StatusCode

        parent = self._parents.extract({key.lower(): value for key, value in headers.items()})
        opened = self._tracer.start_span(name, parent, SpanKind.SERVER, attributes)
        try:
            yield _Noted(opened)
        except asyncio.CancelledError:
            opened.set_attribute("error.type", GONE)
            raise
        except NodeError as exc:
            opened.set_attribute("error.type", exc.code)
            opened.set_status(Status(StatusCode.ERROR))
            raise
        finally:
            opened.end()

    async def close(self) -> None:
        """Sends what is left, as far as that goes in ``FLUSH_S``."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def flush() -> None:
            self._provider.shutdown()
            if not loop.is_closed():
                loop.call_soon_threadsafe(done.set)

        threading.Thread(target=flush, name="flush spans", daemon=True).start()
        try:
            async with asyncio.timeout(FLUSH_S):
                await done.wait()
        except TimeoutError:
            log.warning("tracing.unsent waited_s=%.0f", FLUSH_S)


TRACING: web.AppKey[Tracing] = web.AppKey("tracing", Tracing)


def tracing_to(endpoint: str | None) -> Tracing:
    if endpoint is None:
        return NoTracing()
    try:
        tracing = OpenTelemetry(endpoint)
    except ImportError:
        log.warning("tracing.off OpenTelemetry is not installed: pip install 'ipfs-accelerate-node[otel]'")
        return NoTracing()
    log.info("tracing.on")
    return tracing
