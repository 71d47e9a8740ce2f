"""The request side of one version of a model: computed once for all slices of a request."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxrank.manifest import Signature
from serving.engines import Engine, StatefulEngine
from serving.errors import StateNotFoundError
from serving.host import HostProgramRunner
from serving.host.program import FeatureBlocks, RequestSide, Snapshot
from serving.scheduling import Urgency
from serving.state.account import Account
from serving.state.cache import Entry, StateCache, StateCounts
from serving.state.digest import digest
from serving.tiers.budget import LookupBudget

Features = Mapping[str, np.ndarray]

_ENTRY_BYTES = 1024
"""Of an entry without its arrays, and of each array's own object: what Python takes for them, about."""
_ARRAY_BYTES = 128


@dataclass(frozen=True)
class Prepared:
    """What a client of PrepareRequest is told: the digest that finds its request, and for how long."""

    digest: bytes
    seconds: float


@dataclass(frozen=True)
class _Side:
    """What is kept: the host's part and what the request tower made of it, None where nothing is."""

    host: RequestSide
    state: Sequence[Any] | None


class RequestStates:
    """Thread-safe."""

    def __init__(
        self, cache: StateCache, host: HostProgramRunner, engine: Engine | None, signature: Signature
    ):
        self._cache, self._host = cache, host
        self._engine = engine if isinstance(engine, StatefulEngine) else None
        self._names = [spec.name for spec in signature.inputs if spec.scope == "request"]
        self._owner = cache.new_owner()
        self._account = Account()

    @property
    def counts(self) -> StateCounts:
        """What lookups found so far."""
        return self._cache.counts(self._owner)

    def blocks(
        self,
        inputs: Features,
        urgency: Urgency,
        budget: LookupBudget | None = None,
        prepared: bytes | None = None,
    ) -> FeatureBlocks:
        """The feature blocks of a request, its state among them where it was found or is worth finding.
        `prepared` is the digest of a request that was prepared; what was computed before the tables changed
        is computed again. Raises what the host program, the engine's request tower and `StateCache.get`
        do."""
        if not self._host.in_parts or (prepared is None and not self._account.look()):
            return self._host.run(inputs, budget)
        now = self._host.now
        if prepared is not None:
            side, *_ = self._side(prepared, now, inputs, urgency, budget)
        else:
            began = time.perf_counter_ns()
            key = digest([inputs[name] for name in self._names])
            spent = time.perf_counter_ns() - began
            side, hit, _ = self._side(key, now, inputs, urgency, budget)
            self._account.looked(spent, hit)
        assert side is not None, "a host program in parts makes a side"
        return replace(self._host.rank(now, side.host, inputs, budget), state=side.state)

    def prepare(self, inputs: Features, urgency: Urgency, budget: LookupBudget | None = None) -> Prepared:
        """Computes the request side, and keeps it with the features. `inputs` are those of the request.
        Raises as `blocks` does."""
        key = digest([inputs[name] for name in self._names])
        # A client counts on the time that it is told: half of it at least.
        *_, entry = self._side(
            key, self._host.now, inputs, urgency, budget, for_seconds=self._cache.ttl_s / 2
        )
        return Prepared(key, self._cache.remaining(entry))

    def features(self, prepared: bytes) -> Features:
        """Those of a request that was prepared, by its digest. Raises `StateNotFoundError` where they are no
        longer there."""
        known = self._cache.find((self._owner, prepared))
        if known is None:
            raise StateNotFoundError(
                "the state of this handle is not here: it expired, made room for others, or was prepared by "
                "another server; send request_features, or call PrepareRequest again"
            )
        return known.features

    def close(self) -> None:
        """Drops everything that is kept."""
        self._cache.drop(self._owner)

    def _side(
        self,
        key: bytes,
        now: Snapshot,
        inputs: Features,
        urgency: Urgency,
        budget: LookupBudget | None,
        *,
        for_seconds: float = 0.0,
    ) -> tuple[_Side | None, bool, Entry]:
        """The request side, whether it was there, and its entry."""
        made: list[_Side | None] = []

        def make() -> Entry:
            began = time.perf_counter_ns()
            side = self._made(now, inputs, urgency, budget)
            made.append(side)
            self._account.made(time.perf_counter_ns() - began)
            # The request's own message ends with the request.
            features = {name: np.array(inputs[name]) for name in self._names}
            # Rows that a store did not give may be there for the next slice.
            kept = None if budget is not None and budget.default_rows else side
            return Entry(now.epoch, features, kept, _size(features, kept))

        entry, hit = self._cache.get((self._owner, key), now.epoch, make, urgency, for_seconds=for_seconds)
        return made[0] if made else entry.value, hit, entry

    def _made(
        self, now: Snapshot, inputs: Features, urgency: Urgency, budget: LookupBudget | None
    ) -> _Side | None:
        if not self._host.in_parts:
            return None
        host = self._host.prepare(now, inputs, budget)
        # The turn goes on: the candidates are looked up next.
        kept = replace(urgency, turn_over=lambda: None)
        state = self._engine.prepare(host.block, kept) if self._engine is not None else None
        return _Side(host, state)


def _size(features: Features, side: _Side | None) -> int:
    arrays = list(features.values())
    if side is not None:
        arrays += [side.host.block, *side.host.handed.values(), *(side.state or ())]
    return _ENTRY_BYTES + sum(_array_bytes(array) + _ARRAY_BYTES for array in arrays)


def _array_bytes(array: Any) -> int:
    if array.dtype == object:
        # A bytes object has 33 bytes of its own.
        return array.nbytes + sum(len(text) + 33 for text in array.ravel().tolist())
    return array.nbytes
