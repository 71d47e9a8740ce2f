"""The server's counts and states as Prometheus' metric families; docs/monitoring.md describes each of them.

Names that begin with `:tensorflow:` are TensorFlow Serving's, with its labels and bounds. Prometheus' library
demands `_total` of a counter's name, which these lack: they are of the type "untyped", with the same values.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from serving import memory
from serving.monitoring.buckets import ROWS, SECONDS
from serving.monitoring.counts import COPIES, HISTOGRAMS, PREDICT, REQUEST, Counts, Key, RequestCounts
from serving.monitoring.timeline import PHASES
from serving.repository import ModelRepository

RUNTIME = "jaxrank"
"""The `runtime` of TensorFlow Serving's runtime_latency."""

_APIS = {"predict": "Predict", "classify": "Classify", "regress": "Regress"}
"""TensorFlow Serving's spelling of REST's calls where it does not tell entry points apart."""
_EXAMPLE_APIS = ("Classify", "Regress", "MultiInference")


class ServerCollector(Collector):
    """Everything about a server that is not about its process."""

    def __init__(
        self,
        counts: RequestCounts,
        repository: ModelRepository,
        own: Sequence[Callable[[], Iterable[Metric]]] = (),
    ):
        """`own` are further families, such as those of a recorder."""
        self._counts, self._repository, self._own = counts, repository, own

    def collect(self) -> Iterator[Metric]:
        """All families."""
        yield from _tensorflow(self._counts.read())
        yield from _requests(self._counts.of_versions())
        state = GaugeMetricFamily(
            "jaxrank_model_version_state",
            "1 for the state that a version is in.",
            labels=("model", "version", "state"),
        )
        for (name, version), status in self._repository.known_versions().items():
            state.add_metric((name, str(version), status.state), 1)
        yield state
        yield from _streams(self._repository)
        yield from _caches(self._repository)
        for families in self._own:
            yield from families()


class MemoryCollector(Collector):
    """What memory costs the process (`serving.memory`)."""

    def collect(self) -> Iterator[Metric]:
        now = memory.snapshot()
        faults = CounterMetricFamily(
            "jaxrank_page_faults",
            "Page faults of the process; major ones waited for a disk.",
            labels=("kind",),
        )
        faults.add_metric(("minor",), now.minor_faults)
        faults.add_metric(("major",), now.major_faults)
        yield faults
        yield GaugeMetricFamily(
            "jaxrank_peak_resident_bytes", "Most physical memory so far.", value=now.peak_resident_bytes
        )
        if now.live_bytes is not None:
            yield GaugeMetricFamily(
                "jaxrank_live_bytes", "Allocated and not freed, says the allocator.", value=now.live_bytes
            )
        if now.allocated_bytes is not None and now.allocations is not None:
            yield CounterMetricFamily(
                "jaxrank_allocated_bytes",
                "Bytes ever allocated; under jemalloc only.",
                value=now.allocated_bytes,
            )
            yield CounterMetricFamily(
                "jaxrank_allocations", "Calls that allocated; under jemalloc only.", value=now.allocations
            )


def registry_of(collector: ServerCollector) -> CollectorRegistry:
    """All families of a server and its process."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    registry.register(MemoryCollector())
    ProcessCollector(registry=registry)
    return registry


def _tensorflow(counted: Mapping[Key, Counts]) -> Iterator[Metric]:
    """TensorFlow Serving's families; versions are not told apart."""
    requests = Metric(":tensorflow:serving:request_count", "The total number of requests.", "unknown")
    by_status: dict[tuple[str, str], int] = {}
    calls: dict[tuple[str, str, str], Counts] = {}
    for key, counts in counted.items():
        for status, number in counts.statuses.items():
            by_status[key.model, status] = by_status.get((key.model, status), 0) + number
        if key.model:
            calls.setdefault((key.model, key.api, key.entrypoint), Counts()).add(counts)
    for (model, status), number in by_status.items():
        requests.add_sample(requests.name, {"model_name": model, "status": status}, number)
    yield requests
    latency = HistogramMetricFamily(
        ":tensorflow:serving:request_latency",
        "Wall time (in microseconds) of a request.",
        labels=("model_name", "API", "entrypoint"),
    )
    runtime: dict[tuple[str, str], Counts] = {}
    for (model, api, entrypoint), counts in calls.items():
        _add_microseconds(latency, (model, api, entrypoint), counts, REQUEST)
        runtime.setdefault((model, _APIS.get(api, api)), Counts()).add(counts)
    yield latency
    of_runtime = HistogramMetricFamily(
        ":tensorflow:serving:runtime_latency",
        "Wall time (in microseconds) of the model: its host program, waiting, its dense program.",
        labels=("model_name", "API", "runtime"),
    )
    examples = HistogramMetricFamily(
        ":tensorflow:serving:request_example_counts", "tf.Examples in a request.", labels=("model",)
    )
    total = Metric(
        ":tensorflow:serving:request_example_count_total", "The total number of tf.Examples.", "unknown"
    )
    of_examples: dict[str, Counts] = {}
    for (model, api), counts in runtime.items():
        _add_microseconds(of_runtime, (model, api, RUNTIME), counts, PREDICT)
        if api in _EXAMPLE_APIS:
            of_examples.setdefault(model, Counts()).add(counts)
    for model, counts in of_examples.items():
        examples.add_metric((model,), _cumulative(map(str, ROWS), counts.rows), counts.candidates)
        total.add_sample(total.name, {"model": model}, counts.candidates)
    yield from (of_runtime, examples, total)


def _add_microseconds(
    family: HistogramMetricFamily, labels: Sequence[str], counts: Counts, histogram: str
) -> None:
    number = HISTOGRAMS.index(histogram)
    bounds = [f"{bound * 1e6:.6g}" for bound in SECONDS[::2]]
    family.add_metric(labels, _cumulative(bounds, _coarse(counts.seconds[number])), counts.sums[number] * 1e6)


def _coarse(fine: Sequence[int]) -> list[int]:
    """Counts in the buckets of every second bound, which are TensorFlow Serving's."""
    return [fine[0], *(a + b for a, b in zip(fine[1:-1:2], fine[2:-1:2], strict=True)), fine[-1]]


def _requests(counted: Mapping[tuple[str, int], Counts]) -> Iterator[Metric]:
    """Our own families, for each version of each model."""
    labels = ("model", "version")
    whole = HistogramMetricFamily(
        "jaxrank_request_seconds", "An answered request, from its first byte to its answer's.", labels=labels
    )
    phases = HistogramMetricFamily(
        "jaxrank_phase_seconds", "A phase of a request.", labels=(*labels, "phase")
    )
    candidates = HistogramMetricFamily("jaxrank_candidates", "Candidates of a request.", labels=labels)
    refusals = CounterMetricFamily(
        "jaxrank_refusals", "Requests without an answer.", labels=(*labels, "reason")
    )
    remarks = CounterMetricFamily("jaxrank_remarks", "Answers with a remark.", labels=(*labels, "remark"))
    defaults = CounterMetricFamily(
        "jaxrank_default_rows", "Rows whose store did not give them in time.", labels=(*labels, "table")
    )
    copied = CounterMetricFamily("jaxrank_copied_bytes", "Bytes copied.", labels=(*labels, "step"))
    transfers = CounterMetricFamily(
        "jaxrank_device_transfers", "Movements between host arrays and a device's buffers.", labels=labels
    )
    bounds = [f"{bound:g}" for bound in SECONDS]
    for (model, version), counts in counted.items():
        of = (model, str(version))
        for reason, number in counts.reasons.items():
            refusals.add_metric((*of, reason), number)
        if not model:
            continue
        whole.add_metric(of, _cumulative(bounds, counts.seconds[0]), counts.sums[0])
        for phase in PHASES:
            number = HISTOGRAMS.index(phase)
            # A scrape's time is that of writing buckets, and most of them are phases'.
            buckets = _cumulative(bounds[::2], _coarse(counts.seconds[number]))
            phases.add_metric((*of, phase), buckets, counts.sums[number])
        candidates.add_metric(of, _cumulative(map(str, ROWS), counts.rows), counts.candidates)
        for family, found in ((remarks, counts.remarks), (defaults, counts.default_rows)):
            for name, number in found.items():
                family.add_metric((*of, name), number)
        for step, number in zip(COPIES, counts.copied, strict=True):
            copied.add_metric((*of, step), number)
        transfers.add_metric(of, counts.transfers)
    yield from (whole, phases, candidates, refusals, remarks, defaults, copied, transfers)


def _streams(repository: ModelRepository) -> Iterator[Metric]:
    loads = repository.loads()
    for name, text, values in (
        ("jaxrank_streams", "Calls that a device runs at once.", {d: x.streams for d, x in loads.items()}),
        ("jaxrank_running_calls", "Calls that run now.", {d: x.running for d, x in loads.items()}),
        ("jaxrank_waiting_requests", "Requests that wait now.", {d: x.waiting for d, x in loads.items()}),
    ):
        gauge = GaugeMetricFamily(name, text, labels=("device",))
        for device, value in values.items():
            gauge.add_metric((device,), value)
        yield gauge
    busy = CounterMetricFamily(
        "jaxrank_stream_busy_seconds",
        "Time of all calls; jaxrank_streams for each second is all.",
        labels=("device",),
    )
    for device, load in loads.items():
        busy.add_metric((device,), load.busy_seconds)
    yield busy


def _caches(repository: ModelRepository) -> Iterator[Metric]:
    labels = ("model", "version", "table")
    lookups = CounterMetricFamily(
        "jaxrank_hot_row_lookups", "Rows of a stored table that were looked for in memory.", labels=labels
    )
    hits = CounterMetricFamily("jaxrank_hot_row_hits", "Of these, found.", labels=labels)
    for (model, version), tables in repository.caches().items():
        for table, counts in tables.items():
            lookups.add_metric((model, str(version), table), counts.looked_up)
            hits.add_metric((model, str(version), table), counts.hits)
    yield from (lookups, hits)


def _cumulative(bounds: Iterable[str], counts: Sequence[int]) -> list[tuple[str, float]]:
    total, found = 0, []
    for bound, count in zip([*bounds, "+Inf"], counts, strict=True):
        total += count
        found.append((bound, float(total)))
    return found
