"""What the status page shows, as a document."""

import itertools
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from serving import memory
from serving.cpu_target import CpuTarget
from serving.degradation import Degradation
from serving.monitoring.buckets import SECONDS, percentile
from serving.monitoring.counts import HISTOGRAMS, REQUEST
from serving.monitoring.history import History, Moment
from serving.monitoring.timeline import PHASES
from serving.repository import ModelRepository
from serving.versions import VersionStatus

_PHASE_SECONDS = 60.0
"""Of the last minute are the percentiles of phases; a second has too few requests for a p99."""

Version = tuple[str, int]


class Status:
    """The document of `/status.json`."""

    def __init__(
        self, repository: ModelRepository, history: History, cpu: CpuTarget, degradation: Degradation | None
    ):
        self._repository, self._history = repository, history
        self._cpu, self._degradation = cpu, degradation
        self._began = time.monotonic()

    def document(self) -> dict[str, Any]:
        """Models with their versions, and the last two minutes in steps of a second. Seconds, bytes; rates
        are of a second, percentiles are None where nothing was answered."""
        moments = self._history.moments()
        pairs = list(itertools.pairwise(moments[:-1])) or [(moments[0], moments[-1])]
        recent = next(m for m in moments if m.at >= moments[-1].at - _PHASE_SECONDS)
        now = memory.snapshot()
        qualities = {} if self._degradation is None else self._degradation.qualities()
        return {
            "server": {
                "version": version("jaxrank"),
                "uptime_seconds": time.monotonic() - self._began,
            },
            "models": [
                {
                    "name": name,
                    "version": status.version,
                    "state": status.state,
                    "error": status.error,
                    "degradation_level": qualities[name].level if name in qualities else None,
                    **_of_version((name, status.version), recent, moments[-1]),
                    "history": _history((name, status.version), pairs),
                }
                for (name, _), status in sorted(self._repository.known_versions().items(), key=_order)
                if status.state != "END" or status.error
            ],
            "seconds_ago": [round(moments[-1].at - after.at, 2) for _, after in pairs],
            "unknown_models": {"refused": moments[-1].refused.get(("", 0), 0)},
            "devices": [_device(name, moments[-1], pairs) for name in moments[-1].loads],
            "cpu": {
                "cores": self._cpu.cores,
                "target": self._cpu.share,
                "history": {
                    "utilisation": [
                        (after.cpu_seconds - before.cpu_seconds)
                        / (max(after.at - before.at, 1e-9) * self._cpu.cores)
                        for before, after in pairs
                    ]
                },
            },
            "memory": {
                "resident_bytes": now.resident_bytes,
                "peak_resident_bytes": now.peak_resident_bytes,
                "live_bytes": now.live_bytes,
                "minor_faults": now.minor_faults,
                "major_faults": now.major_faults,
                "history": {"resident_bytes": [after.resident_bytes for _, after in pairs]},
            },
        }


def _order(known: tuple[Version, VersionStatus]) -> tuple[str, int]:
    """By name, the highest version first."""
    (name, version), _ = known
    return name, -version


def _between(of: Version, before: Moment, after: Moment) -> tuple[np.ndarray, int]:
    """Requests by seconds, `[histograms, buckets]`, and how many were refused."""
    last = after.buckets.get(of)
    if last is None:
        last = np.zeros((len(HISTOGRAMS), len(SECONDS) + 1), np.int64)
    first = before.buckets.get(of)
    refused = after.refused.get(of, 0) - before.refused.get(of, 0)
    return (last if first is None else last - first), refused


def _of_version(of: Version, before: Moment, now: Moment) -> dict[str, Any]:
    """The last minute."""
    counts, refused = _between(of, before, now)
    seconds = max(now.at - before.at, 1e-9)
    total = now.buckets.get(of)
    answered = int(counts[HISTOGRAMS.index(REQUEST)].sum())
    return {
        "answered": 0 if total is None else int(total[HISTOGRAMS.index(REQUEST)].sum()),
        "refused": now.refused.get(of, 0),
        "rate": answered / seconds,
        "refused_rate": refused / seconds,
        "phases": {
            name: {
                f"p{share:g}": percentile(SECONDS, counts[HISTOGRAMS.index(name)], share / 100)
                for share in (50, 90, 99)
            }
            for name in (REQUEST, *PHASES)
        },
    }


def _history(of: Version, pairs: Sequence[tuple[Moment, Moment]]) -> dict[str, list[float | None]]:
    found: dict[str, list[float | None]] = {"rate": [], "refused_rate": [], "p50": [], "p99": []}
    for before, after in pairs:
        counts, refused = _between(of, before, after)
        whole, seconds = counts[HISTOGRAMS.index(REQUEST)], max(after.at - before.at, 1e-9)
        found["rate"].append(float(whole.sum()) / seconds)
        found["refused_rate"].append(refused / seconds)
        found["p50"].append(percentile(SECONDS, whole, 0.5))
        found["p99"].append(percentile(SECONDS, whole, 0.99))
    return found


def _device(name: str, now: Moment, pairs: Sequence[tuple[Moment, Moment]]) -> dict[str, Any]:
    utilisation: list[float] = []
    waiting: list[int] = []
    for before, after in pairs:
        first, last = before.loads.get(name), after.loads.get(name)
        busy = 0.0 if first is None or last is None else last.busy_seconds - first.busy_seconds
        streams = 1 if last is None else last.streams
        utilisation.append(min(busy / (streams * max(after.at - before.at, 1e-9)), 1.0))
        waiting.append(0 if last is None else last.waiting)
    load = now.loads[name]
    return {
        "name": name,
        "streams": load.streams,
        "running": load.running,
        "waiting": load.waiting,
        "history": {"utilisation": utilisation, "waiting": waiting},
    }
