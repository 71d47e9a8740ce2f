"""Puts together what a server tells its operators."""

from collections.abc import Callable, Iterable
from functools import partial

from prometheus_client.core import Metric

from serving import memory
from serving.cpu_target import CpuTarget
from serving.degradation import Degradation
from serving.message_bytes import MessageBytes
from serving.monitoring.counts import RequestCounts
from serving.monitoring.ended import Ended, Observer
from serving.monitoring.exposition import ServerCollector, registry_of
from serving.monitoring.history import History
from serving.monitoring.load import cpu_families, degradation_families, message_families, state_families
from serving.monitoring.logs import AccessLog
from serving.monitoring.options import MonitoringOptions
from serving.monitoring.recording import Recorder
from serving.monitoring.routes import OperatorRoutes
from serving.monitoring.status import Status
from serving.monitoring.traces import Tracer
from serving.repository import ModelRepository


class Monitor:
    """Counts, and what was asked for beside them. `ended` is told of every request.

    Attributes:
        routes: what HTTP answers for operators.
        keeps: whether requests are to leave what they asked and got on their timelines.
    """

    def __init__(
        self,
        options: MonitoringOptions,
        repository: ModelRepository,
        cpu: CpuTarget,
        messages: MessageBytes,
        degradation: Degradation | None = None,
    ):
        """Raises `MonitoringError` where traces or records cannot be had."""
        self.counts = RequestCounts()
        self.keeps = options.record is not None
        observers: list[Observer] = [self.counts.observe]
        if options.access_log_sample:
            observers.append(AccessLog(options.access_log_sample).observe)
        self._tracer = None
        if options.trace_endpoint is not None:
            self._tracer = Tracer(options.trace_endpoint, options.trace_sample)
            observers.append(self._tracer.observe)
        self._recorder = None
        if options.record is not None:
            self._recorder = Recorder(
                options.record, options.record_sample, options.record_max_mb * 1_000_000
            )
            observers.append(self._recorder.observe)
        self.ended = Ended(observers)
        self._history = History(
            self.counts,
            repository.loads,
            lambda: memory.snapshot().resident_bytes,
            cpu.used,
            repository.known_versions,
        )
        own: list[Callable[[], Iterable[Metric]]] = [
            partial(cpu_families, cpu),
            partial(state_families, repository),
            partial(message_families, messages),
        ]
        if self._recorder is not None:
            own.append(self._recorder.families)
        if degradation is not None:
            own.append(lambda: degradation_families(degradation.qualities()))
        self.routes = OperatorRoutes(
            registry_of(ServerCollector(self.counts, repository, own)),
            Status(repository, self._history, cpu, degradation),
            options.metrics_path,
        )

    def close(self) -> None:
        """After the last request: writes and sends what is left."""
        self._history.close()
        if self._recorder is not None:
            self._recorder.close()
        if self._tracer is not None:
            self._tracer.close()
