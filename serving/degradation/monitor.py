"""Once a second: what the models' requests were given, and the level that follows from it."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from jaxrank.manifest import Manifest
from serving.cpu_target import CpuTarget
from serving.degradation.answer import DEGRADATION, DegradedModel, Lend
from serving.degradation.config import (
    DegradationConfig,
    DegradationError,
    ModelSteps,
    Reductions,
    reductions,
)
from serving.degradation.controller import Controller, Observed
from serving.degradation.reductions import check_reductions, check_replacement
from serving.degradation.tally import Quality, Tally
from serving.errors import (
    QUOTA,
    DeadlineError,
    ModelNotFoundError,
    ModelUnavailableError,
    OverloadedError,
)
from serving.model import Model
from serving.scheduling import KeyLoad, Urgency

log = logging.getLogger("jaxrank")

_PERIOD = 1.0
_ABSENT = (ModelNotFoundError, ModelUnavailableError)

Waits = Callable[[], tuple[int, float]]
"""Requests that were given a worker thread since the start, and the seconds they waited for it in all."""


class Degradation:
    """The levels of all models of a config. Thread-safe."""

    def __init__(
        self, config: DegradationConfig, lend: Lend, waits: Waits, cpu: CpuTarget, period: float = _PERIOD
    ):
        """
        Args:
            lend: gives the served models.
            waits: what the server's workers say of their queue.
            cpu: what may be used of the CPU.
            period: seconds between looks.
        """
        self._lend, self._waits, self._cpu, self._period = lend, waits, cpu, period
        self._governed = {name: _Governed(name, steps, lend) for name, steps in config.models.items()}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="degradation", daemon=True)
        self._thread.start()

    @contextmanager
    def answering(self, name: str, model: Model, urgency: Urgency) -> Iterator["Model | DegradedModel"]:
        """What answers a request to a model of that name, which ends with the block: the model itself, where
        the config does not name it."""
        governed = self._governed.get(name)
        if governed is None:
            yield model
        else:
            with governed.answering(model, urgency) as answering:
                yield answering

    def check(self) -> None:
        """Raises `DegradationError` for a step that does not fit a model that is served now. Versions that
        come later are looked at by their requests."""
        for governed in self._governed.values():
            governed.check()

    def qualities(self) -> dict[str, Quality]:
        """Levels and counts of the config's models by name."""
        return {name: g.quality() for name, g in self._governed.items()}

    def close(self) -> None:
        """Ends the looks; levels stay."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        machine = _Machine(self._waits, self._cpu)
        while not self._stop.wait(self._period):
            seen = machine.look()
            for name, governed in self._governed.items():
                try:
                    governed.look(seen)
                except Exception:  # the levels of the others, and of the next second, must not end with it
                    log.exception("model %s: its load cannot be observed; the level stays", name)


@dataclass(frozen=True)
class _Interval:
    """What the process did since the last look."""

    seconds: float
    cpu: float
    """Share of what may be used of the CPU; above 1 only where a target was exceeded."""
    queue_s: float
    """Mean wait for a worker."""


class _Machine:
    """The process as a whole."""

    def __init__(self, waits: Waits, cpu: CpuTarget):
        self._waits, self._cpu = waits, cpu
        self._last = self._totals()

    def _totals(self) -> tuple[float, float, int, float]:
        return time.monotonic(), self._cpu.used(), *self._waits()

    def look(self) -> _Interval:
        now = self._totals()
        seconds, used, requests, waited = (a - b for a, b in zip(now, self._last, strict=True))
        self._last = now
        cpu = used / (seconds * self._cpu.seconds_per_second)
        if self._cpu.share is None:
            cpu = min(cpu, 1.0)
        return _Interval(seconds, cpu, waited / requests if requests else 0.0)


class _Governed:
    """One model of the config."""

    def __init__(self, name: str, steps: ModelSteps, lend: Lend):
        self._name, self._lend, self._fixed = name, lend, steps.fixed_level
        self._reductions = reductions(steps)
        self._controller = Controller(len(steps.steps), steps.queue_ms / 1e3)
        self._level = steps.fixed_level or 0
        self._tally = Tally(name)
        self._last = (0, 0)
        self._load: dict[str, KeyLoad] = {}

    @contextmanager
    def answering(self, model: Model, urgency: Urgency) -> Iterator[DegradedModel]:
        level = self._level
        try:
            yield DegradedModel(model, level, self._reductions[level], self._lend, self._tally)
        except (DeadlineError, OverloadedError) as error:
            if error.reason != QUOTA:  # that says nothing of the server
                self._tally.count(missed=1)
            raise
        self._tally.answered(level if DEGRADATION in urgency.remarks else 0)

    def quality(self) -> Quality:
        return self._tally.quality(self._level, self._controller.changes)

    def check(self) -> None:
        """Raises `DegradationError`."""
        try:
            with self._lend(self._name) as (model, _):
                for level, wanted in enumerate(self._reductions):
                    self._check_level(level, wanted, model.manifest)
        except _ABSENT:
            log.warning("the degradation config names the model %s, which is not served yet", self._name)

    def _check_level(self, level: int, wanted: Reductions, manifest: Manifest) -> None:
        try:
            check_reductions(wanted, manifest)
            for name in wanted.models:
                with self._lend(name) as (other, _):
                    check_replacement(other.manifest, manifest)
        except (DegradationError, *_ABSENT) as error:
            raise DegradationError(
                f"the degradation config does not fit: models.{self._name}.steps[{level - 1}]: {error}"
            ) from error

    def look(self, interval: _Interval) -> None:
        """Sets the level for the next second."""
        seen = self._observed(interval)
        if self._fixed is not None:
            return
        level = self._controller.update(seen)
        if level != self._level:
            log.info(
                "model %s: degradation level %d to %d (%.0f requests/s, %d missed, %.0f ms queue, %d%% busy)",
                self._name, self._level, level, seen.rate, seen.missed, seen.queue_s * 1e3,
                100 * seen.utilisation,
            )  # fmt: skip
        self._level = level

    def _observed(self, interval: _Interval) -> Observed:
        totals = self._tally.totals()
        answered, missed = (now - then for now, then in zip(totals, self._last, strict=True))
        self._last = totals
        load = self._streams()
        own, busy, queue = interval.cpu, interval.cpu, interval.queue_s
        if load is not None:
            busy = max(busy, min(load.all_seconds / (interval.seconds * load.streams), 1.0))
            own = busy * min(load.own_seconds / load.all_seconds, 1.0) if load.all_seconds > 0 else 0.0
            queue += load.waited_seconds / load.started if load.started else 0.0
        return Observed(
            seconds=interval.seconds,
            answered=answered,
            missed=missed,
            queue_s=queue,
            utilisation=busy,
            own=own,
        )

    def _streams(self) -> KeyLoad | None:
        """Since the last look, of the model and what answers in its place; None where an engine has no
        streams of ours."""
        whole: KeyLoad | None = None
        for name in {self._name, *(name for r in self._reductions for name in r.models)}:
            try:
                with self._lend(name) as (model, _):
                    load = model.stream_load()
            except _ABSENT:
                continue
            if load is None:
                continue
            last = self._load.get(name)
            self._load[name] = load
            part = load if last is None else load.since(last)
            whole = part if whole is None else whole.plus(part)
        return whole
