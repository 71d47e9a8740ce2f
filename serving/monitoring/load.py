"""What the server did about its load, as Prometheus' metric families: CPU time, bytes of messages, levels of
degradation, request sides that were kept."""

from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from serving.cpu_target import CpuTarget
from serving.degradation import Quality
from serving.message_bytes import MessageBytes
from serving.repository import ModelRepository


def cpu_families(cpu: CpuTarget) -> Iterator[Metric]:
    """`rate()` of the seconds over the cores is what `--cpu-target` bounds."""
    yield GaugeMetricFamily("jaxrank_usable_cores", "CPUs that the process may use.", value=cpu.cores)
    yield GaugeMetricFamily(
        "jaxrank_cpu_target",
        "Share of them that it stays under.",
        value=1.0 if cpu.share is None else cpu.share,
    )
    yield CounterMetricFamily(
        "jaxrank_cpu_seconds", "CPU time of everything but loading at low priority.", value=cpu.used()
    )


def message_families(messages: MessageBytes) -> Iterator[Metric]:
    """What `--max-in-flight-mib` bounds."""
    yield GaugeMetricFamily(
        "jaxrank_message_bytes", "Of the requests that wait or are answered now.", value=messages.held
    )


def degradation_families(qualities: Mapping[str, Quality]) -> Iterator[Metric]:
    """For each model of the degradation config."""
    level = GaugeMetricFamily("jaxrank_degradation_level", "Level now; 0 is full quality.", labels=("model",))
    changes = CounterMetricFamily("jaxrank_degradation_changes", "Changes of the level.", labels=("model",))
    answers = CounterMetricFamily(
        "jaxrank_degradation_answers", "Answers at a level.", labels=("model", "level")
    )
    missed = CounterMetricFamily(
        "jaxrank_degradation_missed", "Requests that were refused for load, or late.", labels=("model",)
    )
    left_out = CounterMetricFamily(
        "jaxrank_degradation_left_out",
        "Candidates that the model did not score, dropped values of histories, calls of other models.",
        labels=("model", "what"),
    )
    skipped = CounterMetricFamily(
        "jaxrank_degradation_skipped",
        "Answers that a step could not be applied to.",
        labels=("model", "step"),
    )
    for name, quality in qualities.items():
        level.add_metric((name,), quality.level)
        changes.add_metric((name,), quality.level_changes)
        missed.add_metric((name,), quality.missed)
        for at, count in quality.answered.items():
            answers.add_metric((name, str(at)), count)
        for what, count in (
            ("candidates", quality.candidates_ranked_below),
            ("history_values", quality.history_values),
            ("other_model", quality.other_model),
        ):
            left_out.add_metric((name, what), count)
        for step, count in quality.skipped.items():
            skipped.add_metric((name, step), count)
    yield from (level, changes, answers, missed, left_out, skipped)


def state_families(repository: ModelRepository) -> Iterator[Metric]:
    """For each served version of each model, where states are kept."""
    labels = ("model", "version")
    lookups = CounterMetricFamily(
        "jaxrank_state_lookups",
        "Request sides that were looked for: hit, shared with a request that computed it, miss.",
        labels=(*labels, "outcome"),
    )
    removals = CounterMetricFamily(
        "jaxrank_state_removals", "Kept request sides that went, and why.", labels=(*labels, "reason")
    )
    entries = GaugeMetricFamily("jaxrank_state_entries", "Request sides that are kept now.", labels=labels)
    size = GaugeMetricFamily("jaxrank_state_bytes", "Bytes of these.", labels=labels)
    for (model, version), counts in repository.state_counts().items():
        of = (model, str(version))
        for outcome, count in (
            ("hit", counts.hits - counts.shared),
            ("shared", counts.shared),
            ("miss", counts.misses),
        ):
            lookups.add_metric((*of, outcome), count)
        removals.add_metric((*of, "room"), counts.evictions)
        removals.add_metric((*of, "age"), counts.expirations)
        entries.add_metric(of, counts.entries)
        size.add_metric(of, counts.bytes)
    yield from (lookups, removals, entries, size)
