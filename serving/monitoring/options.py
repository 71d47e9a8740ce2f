"""What a server tells its operators, as the command line or a program asks for it."""

from dataclasses import dataclass
from pathlib import Path

from serving.model_config import ConfigError, read_text_proto
from serving.wire import server_config_pb2 as pb

METRICS_PATH = "/monitoring/prometheus/metrics"
"""TensorFlow Serving's default."""


@dataclass(frozen=True)
class MonitoringOptions:
    """
    Attributes:
        metrics_path: of Prometheus' metrics, beside `/metrics`; None: there are none on the HTTP port.
        access_log_sample: share of the requests that the log has a line of.
        trace_endpoint: an OTLP collector's gRPC endpoint, `http://host:4317`; None: no traces.
        trace_sample: share of the requests without a trace context that begin a trace.
        record: file of recorded requests; None: none are recorded.
        record_sample: share of the answered requests that are.
        record_max_mb: megabytes of the file, after which it becomes `FILE.1` in place of an earlier one.
    """

    metrics_path: str | None = METRICS_PATH
    access_log_sample: float = 0.0
    trace_endpoint: str | None = None
    trace_sample: float = 0.01
    record: Path | None = None
    record_sample: float = 0.01
    record_max_mb: int = 1024


def read_metrics_path(path: Path) -> str | None:
    """The path that a `--monitoring_config_file` names; None where it says that there are to be no metrics,
    as in TensorFlow Serving. Raises `ConfigError`."""
    config = read_text_proto(path, pb.MonitoringConfig).prometheus_config
    if not config.enable:
        return None
    found = config.path or METRICS_PATH
    if not found.startswith("/") or found == "/" or found.startswith(("/v1/", "/v2")):
        raise ConfigError(
            f"{path}: prometheus_config.path is {found[:200]!r}; it must begin with / and not be a path of "
            "another protocol"
        )
    return found
