"""Traces, received by a gRPC service of OpenTelemetry's own protocol."""

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as otlp_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from serving.grpc_server import Server
from serving.monitoring.errors import MonitoringError
from serving.monitoring.options import MonitoringOptions
from serving.monitoring.traces import Tracer
from serving.wire import predict_pb2 as pb
from serving.wire.codec import encode_content
from serving.wire.reflection import PREDICTION_SERVICE

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector(otlp_grpc.TraceServiceServicer):
    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.services: set[str] = set()
        self._lock = threading.Lock()

    def Export(self, request, context):  # noqa: ANN001, ANN201, N802
        with self._lock:
            for of_process in request.resource_spans:
                names = {a.key: a.value.string_value for a in of_process.resource.attributes}
                self.services.add(names["service.name"])
                self.spans += [span for scope in of_process.scope_spans for span in scope.spans]
        return otlp.ExportTraceServiceResponse()


@pytest.fixture
def collector() -> Iterator[tuple[Collector, str]]:
    server = grpc.server(ThreadPoolExecutor(2))
    collector = Collector()
    otlp_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield collector, f"http://127.0.0.1:{port}"
    server.stop(0).wait()


def _call(server: Server, traceparent: str | None, model: str = "half_plus_three") -> None:
    request = pb.PredictRequest(model_spec=pb.ModelSpec(name=model))
    request.inputs["x"].CopyFrom(encode_content(np.ones(4, np.float32)))
    metadata = [] if traceparent is None else [("traceparent", traceparent)]
    with grpc.insecure_channel(server.address) as channel:
        call = channel.unary_unary(f"/{PREDICTION_SERVICE}/Predict", pb.PredictRequest.SerializeToString)
        call(request, metadata=metadata, timeout=30)


def _server(start_server: Callable, example_models: Path, endpoint: str, sample: float) -> Server:
    options = MonitoringOptions(trace_endpoint=endpoint, trace_sample=sample)
    return start_server(example_models / "models", workers=2, monitoring=options)


def test_a_callers_trace_goes_on(
    collector: tuple[Collector, str], start_server: Callable, example_models: Path
) -> None:
    received, endpoint = collector
    server = _server(start_server, example_models, endpoint, sample=0.0)
    _call(server, f"00-{TRACE}-{CALLER}-01")
    with pytest.raises(grpc.RpcError):
        _call(server, f"00-{TRACE}-{CALLER}-01", model="classifier")
    _call(server, f"00-{TRACE}-{CALLER}-00")  # its caller does not record it
    _call(server, "no trace context")
    _call(server, None)
    server.stop()
    assert received.services == {"jaxrank"}
    assert {span.trace_id.hex() for span in received.spans} == {TRACE}
    whole = {s.name: s for s in received.spans if s.kind == Span.SPAN_KIND_SERVER}
    assert whole.keys() == {"Predict half_plus_three", "Predict classifier"}
    assert {span.parent_span_id.hex() for span in whole.values()} == {CALLER}
    refused, answered = whole["Predict classifier"], whole["Predict half_plus_three"]
    assert (refused.status.code, refused.status.message) == (Status.STATUS_CODE_ERROR, "invalid_request")
    attributes = {a.key: a.value for a in answered.attributes}
    assert attributes["jaxrank.version"].int_value == 1
    assert attributes["jaxrank.candidates"].int_value == 4
    phases = [s for s in received.spans if s.parent_span_id == answered.span_id]
    phases.sort(key=lambda span: span.start_time_unix_nano)
    assert [span.name for span in phases] == ["turn", "decode", "host", "queue", "compute", "encode"]
    times = [answered.start_time_unix_nano]
    for span in phases:
        times += [span.start_time_unix_nano, span.end_time_unix_nano]
    assert [*times, answered.end_time_unix_nano] == sorted([*times, answered.end_time_unix_nano])


def test_a_sample_of_the_others_begins_traces(
    collector: tuple[Collector, str], start_server: Callable, example_models: Path
) -> None:
    received, endpoint = collector
    server = _server(start_server, example_models, endpoint, sample=1.0)
    _call(server, None)
    _call(server, "no trace context")
    server.stop()
    whole = [s for s in received.spans if s.kind == Span.SPAN_KIND_SERVER]
    assert len({span.trace_id for span in whole}) == 2
    assert {span.parent_span_id for span in whole} == {b""}


def test_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MonitoringError, match="give a URL"):
        Tracer("localhost:4317", 0.1)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(MonitoringError, match=r"pip install 'jaxrank\[traces\]'"):
        Tracer("http://localhost:4317", 0.1)
