"""What every protocol does with a model: find it, decode, predict, encode, and stop in between when nobody
waits for the answer any more."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import numpy as np

from jaxrank.manifest import Manifest, Signature
from serving.auth import charge, require
from serving.cpu_target import CpuTarget
from serving.degradation import DEGRADATION, Degradation, DegradedModel
from serving.errors import InvalidRequestError, StateVersionError
from serving.host.program import count_candidates
from serving.lifecycle.rollback import fault_in, fault_of
from serving.lifecycle.shadow import Sample, Shadow
from serving.model import Model
from serving.monitoring.counts import RequestCounts
from serving.monitoring.timeline import Exchange
from serving.repository import ModelRepository
from serving.scheduling import Turns, Urgency
from serving.state import Handle
from serving.tiers.budget import DEFAULT_ROWS, LookupBudget, described
from serving.tiers.placement import Tiers

T = TypeVar("T")

VERSION = "jaxrank-version"
"""Remark with the version that answered."""


@dataclass(frozen=True)
class ModelRef:
    """Which model a request names: by its highest version, a version, or a label. `answering` is the version
    that the server chose for the first of several requests, and which answers the others."""

    name: str
    version: int | None = None
    label: str | None = None
    answering: int | None = None


@dataclass(frozen=True)
class Work:
    """A request after decoding: checked features, and the outputs that are wanted (None: all)."""

    inputs: Mapping[str, np.ndarray]
    outputs: Sequence[str] | None = None
    handle: Handle | None = None
    """Of the request's own features, which the server holds; `inputs` are decoded without them then."""


@dataclass(frozen=True)
class Prediction:
    """Outputs by name, and which version of the model made them."""

    version: int
    signature: Signature
    outputs: dict[str, np.ndarray]


@dataclass
class DataPlane:
    """The models of a repository as functions. Thread-safe.

    Attributes:
        turns: whose request is decoded and looked up next.
        counts: of the requests that the server answered.
        keeps: whether a request leaves its features and outputs on its timeline, for whoever records it.
    """

    repository: ModelRepository
    tiers: Tiers | None = None
    counts: RequestCounts = field(default_factory=RequestCounts)
    keeps: bool = False
    shadow: Shadow | None = None
    degradation: Degradation | None = None
    cpu: CpuTarget | None = None
    turns: Turns = field(default_factory=Turns)

    def run(
        self,
        ref: ModelRef,
        urgency: Urgency,
        decode: Callable[[Manifest], Work],
        encode: Callable[[Prediction], T],
    ) -> T:
        """Answers one request, and writes what happened on its timeline.

        Raises `InvalidRequestError` where it names no model, what `ModelRepository.lend` raises, what
        `Turns.turn`, `decode` and the model refuse, what `Urgency.check` raises before each of the steps,
        `StateVersionError` for a handle of another version, and `PermissionDeniedError` and
        `OverloadedError` as the caller's permissions and quotas are.
        """
        timeline = urgency.timeline
        check_name(ref)
        require("predict", ref.name)
        urgency.check()
        with (
            self._lent(ref, urgency) as (model, version),
            self._answering(ref.name, model, urgency) as answering,
            ExitStack() as turn,
        ):
            try:
                if self.cpu is not None:
                    self.cpu.check(urgency)
                answering.refuse_late(urgency)
                urgency = turn.enter_context(self.turns.turn(urgency))
                answering.refuse_late(urgency)  # what has come meanwhile may be more urgent
                work = decode(model.manifest)
                charge(max(1, count_candidates(work.inputs, model.manifest.signature)))
                timeline.decoded(work.inputs)
                urgency.check()
                prepared = None
                if work.handle is not None:
                    _check_version(work.handle, ref.name, version)
                    prepared = work.handle.digest
                    work = replace(work, inputs={**model.prepared_features(prepared), **work.inputs})
                with self._budget(urgency) as budget:
                    outputs = answering.predict(work.inputs, work.outputs, urgency, budget, prepared)
                timeline.candidates = max((len(value) for value in outputs.values() if value.ndim), default=0)
                urgency.check()
                begun = time.monotonic()
                answer = encode(Prediction(version, model.manifest.signature, outputs))
                timeline.encode = (begun, time.monotonic())
                timeline.encoded_bytes = sum(value.nbytes for value in outputs.values())
            except Exception as error:
                # A refusal says nothing of the version, and another model's fault in its place neither.
                if (fault := fault_of(error)) and not _by_other(answering):
                    self.repository.judge(ref.name, version, fault)
                raise
            if not _by_other(answering):
                self.repository.judge(ref.name, version, fault_in(outputs))
            if DEGRADATION not in urgency.remarks:  # degraded scores are not the model's
                if self.keeps:
                    timeline.exchange = Exchange(model.manifest.signature, work.inputs, outputs)
                if ref.version is None and ref.label is None:
                    self._shadow(ref.name, version, work, outputs, urgency)
        urgency.remarks[VERSION] = str(version)
        return answer

    def prepare(
        self, ref: ModelRef, urgency: Urgency, decode: Callable[[Manifest], Mapping[str, np.ndarray]]
    ) -> tuple[Handle, float]:
        """Prepares a request of the features that `decode` gives: its handle, and how many seconds it holds.
        Raises as `run` does.

        A fault counts against the version as one of `run` does. What goes well proves nothing: there are no
        scores. `Model.refuse_late` would estimate a whole ranking; the request tower's call, which is little
        of one, is refused when it comes.
        """
        check_name(ref)
        require("predict", ref.name)
        urgency.check()
        with self._lent(ref, urgency) as (model, version):
            if self.cpu is not None:
                self.cpu.check(urgency)
            try:
                with self.turns.turn(urgency) as urgency:
                    inputs = decode(model.manifest)
                    urgency.timeline.decoded(inputs)
                    urgency.check()
                    with self._budget(urgency) as budget:
                        prepared = model.prepare(inputs, urgency, budget)
            except Exception as error:
                if fault := fault_of(error):
                    self.repository.judge(ref.name, version, fault)
                raise
        return Handle(version, prepared.digest), prepared.seconds

    @contextmanager
    def _lent(self, ref: ModelRef, urgency: Urgency) -> Iterator[tuple[Model, int]]:
        """The model that answers, named on the timeline."""
        chosen = (ref.version, ref.label) if ref.answering is None else (ref.answering, None)
        with self.repository.lend(ref.name, *chosen, urgency.routing_key) as (model, version):
            urgency.timeline.model, urgency.timeline.version = ref.name, version
            yield model, version

    def _answering(
        self, name: str, model: Model, urgency: Urgency
    ) -> AbstractContextManager[Model | DegradedModel]:
        """What answers a request to a model, at the model's level of degradation."""
        if self.degradation is None:
            return nullcontext(model)
        return self.degradation.answering(name, model, urgency)

    def _shadow(
        self, name: str, version: int, work: Work, outputs: Mapping[str, np.ndarray], urgency: Urgency
    ) -> None:
        """Has the version under trial score the request, too, if it is drawn."""
        if self.shadow is not None and (other := self.repository.shadow_of(name, version)) is not None:
            sample = Sample(name, version, other, work.inputs, work.outputs, outputs)
            urgency.afterwards.append(partial(self.shadow.offer, sample))

    @contextmanager
    def _budget(self, urgency: Urgency) -> Iterator[LookupBudget | None]:
        """Of one request's lookups in stores; the client is told of rows that did not arrive."""
        budget = None if self.tiers is None else self.tiers.budget(urgency.remaining())
        yield budget
        if budget is not None and budget.default_rows:
            urgency.timeline.default_rows = budget.default_rows
            urgency.remarks[DEFAULT_ROWS] = described(budget)

    def manifest(self, ref: ModelRef) -> tuple[Manifest, int]:
        """The manifest and version that answer for `ref`. Raises as `run` does."""
        check_name(ref)
        require("status", ref.name)
        with self.repository.lend(ref.name, ref.version, ref.label) as (model, version):
            return model.manifest, version


def _by_other(answering: Model | DegradedModel) -> bool:
    """Whether scores, or a fault, may be another model's."""
    return isinstance(answering, DegradedModel) and answering.by_other


def _check_version(handle: Handle, name: str, version: int) -> None:
    if handle.version != version:
        raise StateVersionError(
            f"the handle is of version {handle.version} of model {name!r}, and version {version} answers; "
            "send request_features, or call PrepareRequest again"
        )


def check_name(ref: ModelRef) -> None:
    """Raises `InvalidRequestError` for a request without the name of a model."""
    if not ref.name:
        raise InvalidRequestError("model_spec.name is empty; name the model")
