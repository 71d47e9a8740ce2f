"""OpenTelemetry traces: a span for a request and one for each of its phases, sent to a collector.

Spans are made when a request has ended, of the times on its timeline: one that is not traced pays for a
comparison. OpenTelemetry's libraries are imported here and only where `--trace-endpoint` asks for traces.
"""

import os
import random
import time
from typing import Any

from serving.monitoring.errors import MonitoringError
from serving.monitoring.timeline import TRACEPARENT, Span, Timeline

_SPANS = ("turn", "decode", "host", "queue", "compute", "encode")
_EXPORT_SECONDS = 5


class Tracer:
    """Sends spans to an OTLP collector. OpenTelemetry's own variables describe the process
    (OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES); it is called jaxrank without them."""

    def __init__(self, endpoint: str, sample: float):
        """Raises `MonitoringError` where the libraries are missing, or the endpoint is no URL."""
        if not endpoint.startswith(("http://", "https://")):
            raise MonitoringError(
                f"--trace-endpoint is {endpoint!r}; give a URL such as http://localhost:4317"
            )
        try:
            from opentelemetry import trace
            from opentelemetry.context import Context
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise MonitoringError(
                f"--trace-endpoint needs OpenTelemetry: pip install 'jaxrank[traces]' ({error})"
            ) from error
        self._trace, self._propagator, self._no_parent = trace, TraceContextTextMapPropagator(), Context()
        self._sample = sample
        exporter = OTLPSpanExporter(
            endpoint=endpoint, insecure=endpoint.startswith("http://"), timeout=_EXPORT_SECONDS
        )
        resource = Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", "jaxrank")})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("jaxrank")

    def observe(self, timeline: Timeline) -> None:
        """Traces the request where its caller does; without a trace context, one of the sample."""
        if not timeline.api:
            return
        parent = self._parent(timeline.traceparent) if timeline.traceparent else None
        if parent is None:
            if random.random() >= self._sample:
                return
            parent = self._no_parent
        elif not self._trace.get_current_span(parent).get_span_context().trace_flags.sampled:
            return
        self._send(timeline, parent)

    def close(self) -> None:
        """Sends what is left, for a few seconds at most."""
        self._provider.shutdown()

    def _parent(self, traceparent: str) -> Any | None:
        """The caller's context; None where it sent none that can be read."""
        found = self._propagator.extract({TRACEPARENT: traceparent})
        return found if self._trace.get_current_span(found).get_span_context().is_valid else None

    def _send(self, timeline: Timeline, parent: Any) -> None:
        trace = self._trace
        offset = time.time_ns() - time.monotonic_ns()

        def ns(seconds: float) -> int:
            return round(seconds * 1e9) + offset

        attributes: dict[str, Any] = {
            "rpc.system": "grpc" if timeline.entrypoint == "GRPC" else "http",
            "rpc.method": timeline.api,
            "jaxrank.model": timeline.model,
            "jaxrank.version": timeline.version,
            "jaxrank.status": timeline.status,
            "jaxrank.candidates": timeline.candidates,
        }
        span = self._tracer.start_span(
            f"{timeline.api} {timeline.model}".strip(),
            context=parent,
            kind=trace.SpanKind.SERVER,
            attributes=attributes,
            start_time=ns(timeline.began),
        )
        if timeline.reason:
            span.set_status(trace.Status(trace.StatusCode.ERROR, timeline.reason))
        inside = trace.set_span_in_context(span)
        for name in _SPANS:
            times: Span | None = getattr(timeline, name)
            if times is None:
                continue
            own = {"jaxrank.transfer_seconds": timeline.transfer} if name == "compute" else None
            phase = self._tracer.start_span(name, context=inside, attributes=own, start_time=ns(times[0]))
            phase.end(ns(times[1]))
        span.end(ns(timeline.ended))
