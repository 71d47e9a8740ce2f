"""Requests that a second version scores, too, after the first one answered.

What is sampled waits in a short queue for one thread, whose work on the streams comes after every client's.
Where there is no time for it, it is dropped and counted: a shadow never delays an answer for its own sake.
"""

import copy
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, field

import numpy as np

from serving.errors import DeadlineError, OverloadedError
from serving.lifecycle.differences import Differences, OutputDifference
from serving.model import Model
from serving.scheduling import SHADOW, Urgency
from serving.validation import validate

log = logging.getLogger("jaxrank")

MAX_WAITING = 8
"""Samples; each holds the features of a request."""
SECONDS = 1.0
"""From when it is taken up, after which a sample is dropped."""
LOG_SECONDS = 60.0


@dataclass(frozen=True)
class Sample:
    """A request that `version` answered with `scores`, for `other` to score."""

    model: str
    version: int
    other: int
    inputs: Mapping[str, np.ndarray]
    outputs: Sequence[str] | None
    scores: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class ShadowReport:
    """How version `other` scored requests that `version` answered, since the two are beside each other.
    `dropped` samples found no time, `failed` ones were not answered by `other`."""

    version: int
    other: int
    compared: int
    dropped: int
    failed: int
    last_failure: str
    outputs: Mapping[str, OutputDifference]


@dataclass
class _Tally:
    version: int
    other: int
    compared: int = 0
    dropped: int = 0
    failed: int = 0
    last_failure: str = ""
    differences: Differences = field(default_factory=Differences)

    def report(self) -> ShadowReport:
        return ShadowReport(
            self.version,
            self.other,
            self.compared,
            self.dropped,
            self.failed,
            self.last_failure,
            self.differences.report(),
        )


class Shadow:
    """Scores samples on another version. `offer` and `report` are safe from any thread."""

    def __init__(self, lend: Callable[[str, int], AbstractContextManager[tuple[Model, int]]]):
        """`lend` gives the model of a name and version, as `ModelRepository.lend` does."""
        self._lend = lend
        self._samples: queue.Queue[Sample | None] = queue.Queue(MAX_WAITING)
        self._tallies: dict[str, _Tally] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    def offer(self, sample: Sample) -> None:
        """Takes a sample, or drops it. Never waits."""
        with self._lock:
            if self._closed:
                return
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="shadow", daemon=True)
                self._thread.start()
            try:
                self._samples.put_nowait(sample)
            except queue.Full:
                self._tally(sample).dropped += 1

    def report(self, model: str) -> ShadowReport | None:
        """None before the first sample of a model."""
        with self._lock:
            tally = self._tallies.get(model)
            return None if tally is None else tally.report()

    def close(self) -> None:
        """Ends after the sample that is scored now; those that wait are forgotten."""
        with self._lock:
            self._closed = True
            with suppress(queue.Empty):
                while True:
                    self._samples.get_nowait()
            self._samples.put_nowait(None)
        if self._thread is not None:
            self._thread.join()

    def _tally(self, sample: Sample) -> _Tally:
        """Of the sample's two versions. `_lock` is held."""
        tally = self._tallies.get(sample.model)
        if tally is None or (tally.version, tally.other) != (sample.version, sample.other):
            tally = self._tallies[sample.model] = _Tally(sample.version, sample.other)
        return tally

    def _work(self) -> None:
        logged: dict[str, int] = {}
        log_at = time.monotonic() + LOG_SECONDS
        while True:
            try:
                sample = self._samples.get(timeout=max(0.0, log_at - time.monotonic()))
                if sample is None:
                    return
                self._score(sample)
            except queue.Empty:
                pass
            if time.monotonic() >= log_at:
                log_at = time.monotonic() + LOG_SECONDS
                self._log(logged)

    def _score(self, sample: Sample) -> None:
        try:
            with self._lend(sample.model, sample.other) as (model, _):
                inputs = validate(sample.inputs, model.manifest.signature, model.manifest.max_candidates)
                known = {spec.name for spec in model.manifest.signature.outputs}
                wanted = None if sample.outputs is None else [o for o in sample.outputs if o in known]
                found = model.predict(inputs, wanted, Urgency(time.monotonic() + SECONDS, SHADOW))
        except (OverloadedError, DeadlineError):
            with self._lock:
                self._tally(sample).dropped += 1
            return
        except Exception as error:  # whatever a version on trial does is a finding, not an end
            with self._lock:
                tally = self._tally(sample)
                tally.failed += 1
                tally.last_failure = str(error) or repr(error)
            return
        # Inversions of thousands of candidates take a while, and `offer` runs on the server's event thread.
        with self._lock:
            tally = self._tally(sample)
            differences = copy.deepcopy(tally.differences)
        differences.add(sample.scores, found)
        with self._lock:
            tally.compared += 1
            tally.differences = differences

    def _log(self, logged: dict[str, int]) -> None:
        """The report of every model with samples since the last time."""
        with self._lock:
            reports = {model: tally.report() for model, tally in self._tallies.items()}
        for model, report in reports.items():
            done = report.compared + report.failed + report.dropped
            if logged.get(model) == done:
                continue
            logged[model] = done
            found = "; ".join(
                f"{name}: " + ", ".join(f"{key} {value:.3g}" for key, value in asdict(output).items())
                for name, output in report.outputs.items()
            )
            log.info(
                "model %s: version %d in the shadow of %d: %d compared, %d dropped, %d failed%s; %s",
                model,
                report.other,
                report.version,
                report.compared,
                report.dropped,
                report.failed,
                f" ({report.last_failure})" if report.last_failure else "",
                found or "no scores",
            )
