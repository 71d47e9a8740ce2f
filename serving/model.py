"""One loaded bundle: features in, scores out."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxrank import bundle as files
from jaxrank.host_program import HostProgram
from jaxrank.manifest import Manifest, Target, TensorSpec
from jaxrank.targets import HOST_CPU, choose_target
from serving.background import BackgroundDigests, in_background
from serving.engines import BatchEngine, Engine, ScheduledEngine, StreamSchedulers, load_engine
from serving.errors import UnsupportedError
from serving.host import HostProgramRunner
from serving.host.program import FeatureBlocks
from serving.scheduling import ANY_TIME, KeyLoad, Urgency
from serving.state import Prepared, RequestStates, StateCache, StateCounts
from serving.tables import TableMemory
from serving.tiers.budget import LookupBudget
from serving.tiers.hot_rows import CacheCounts
from serving.tiers.placement import Tiers
from serving.tiers.tiered_table import TieredTable
from serving.updates import LiveUpdates, deltas_of

log = logging.getLogger("jaxrank")


class Model:
    """A verified bundle with its host program and one engine. Thread-safe."""

    def __init__(
        self,
        manifest: Manifest,
        host: HostProgramRunner,
        engine: Engine | None,
        target: Target | None = None,
        tiered: Mapping[str, TieredTable] | None = None,
        updates: LiveUpdates | None = None,
        states: StateCache | None = None,
    ):
        """`engine` and `target` are None where the host program makes every output. `tiered` are the tables
        of `host` that are in stores. `states` keeps request sides; `host` is in parts then, if it can be."""
        self._tiered = tiered or {}
        self._updates = updates
        self.manifest = manifest
        self.target = target
        self._host = host
        self._engine = engine
        # Asking a protocol what is one takes as long as decoding a request.
        self._scheduled = engine if isinstance(engine, ScheduledEngine) else None
        self._dense = _dense_outputs(manifest, host.program)
        self._states = RequestStates(states, host, engine, manifest.signature) if states is not None else None

    @classmethod
    def load(
        cls,
        bundle: Path,
        *,
        target: str = HOST_CPU,
        engine: str | None = None,
        streams: int | None = None,
        schedulers: StreamSchedulers | None = None,
        only: str | None = None,
        tiers: Tiers | None = None,
        name: str = "",
        states: StateCache | None = None,
        memory: TableMemory = "mapped",
        admit: Callable[["Model"], object] | None = None,
    ) -> "Model":
        """Checks every file of the bundle, opens its tables and loads the program compiled for `target`.

        Args:
            target: "cpu" is the best of the bundle's CPU targets for this machine
                (`jaxrank.targets.choose_target`); `Model.target` says which.
            engine: which of the target's engines runs it; the manifest's choice by default.
            streams: calls of the dense half that may run at once; all cores on a CPU by default.
            schedulers: where the threads of a device come from that other models use too; of its own by
                default.
            only: the one candidate program of IREE's to run, by its function; the engine's plan decides by
                default.
            tiers: stores that hold tables of the model that the config knows as `name`; the bundle then need
                not have their files.
            states: where request sides are kept for the next slice of the same request (docs/state.md);
                nothing is kept by default.
            memory: how the rows of its tables come into memory.
            admit: is called with the model before deltas change its tables; what it raises closes the model.

        Raises `BundleError` naming the file that is missing or damaged, what the bundle is compiled for, or
        what this CPU lacks; `TierError` for a table that its store does not give.
        """
        elsewhere = frozenset() if tiers is None else tiers.placed_files(name, files.read_manifest(bundle))
        manifest = in_background(files.verify, bundle, BackgroundDigests(), elsewhere)
        tiered = {} if tiers is None else tiers.open_tables(name, manifest)
        try:
            host = HostProgramRunner(bundle, manifest, tiered, in_parts=states is not None, memory=memory)
            updates = LiveUpdates(deltas_of(bundle), host, name or str(bundle))
            running = chosen = None
            if _dense_outputs(manifest, host.program):
                chosen = choose_target(bundle, manifest, target, engine=engine)
                scheduler = schedulers.of(chosen) if schedulers is not None else None
                streams = schedulers.streams if schedulers is not None else streams
                running = load_engine(
                    bundle, manifest, chosen, streams=streams, scheduler=scheduler, only=only
                )
                log.info("%s runs its target %s with the engine %s", bundle, chosen.name, chosen.engine)
        except BaseException:
            for table in tiered.values():
                table.close()
            raise
        model = cls(manifest, host, running, chosen, tiered, updates, states)
        if admit is not None:
            try:
                admit(model)
            except BaseException:
                model.close()
                raise
        model.update_tables()
        return model

    @property
    def not_as_certified(self) -> str:
        """Why its scores may differ from those that its bundle recorded; empty where they must not."""
        if self._tiered:
            return f"tables are in a store ({', '.join(sorted(self._tiered))})"
        changed = sorted(name for name, t in self._host.tables.items() if t.position.sequence)
        return f"deltas changed its tables ({', '.join(changed)})" if changed else ""

    def predict(
        self,
        inputs: Mapping[str, np.ndarray],
        outputs: Sequence[str] | None = None,
        urgency: Urgency = ANY_TIME,
        budget: LookupBudget | None = None,
        prepared: bytes | None = None,
    ) -> dict[str, np.ndarray]:
        """Scores checked features (see `serving.validation`, which refuses requests without candidates).

        Args:
            inputs: request-scope arrays with one row, candidate-scope arrays with N; strings are object
                arrays of bytes. N may be 0.
            outputs: names of the outputs to return; all by default, in the signature's order.
            urgency: when the answer is wanted.
            budget: of lookups in stores, which it ends; it counts the default rows.
            prepared: `Prepared.digest` of a request whose `prepared_features` are among the inputs.

        Returns:
            `[N, ...]` arrays by output name, with the signature's dtypes.

        Raises:
            InvalidRequestError: what the host program refuses, as TensorFlow's ops do: an id outside of its
                table; for 0 candidates, a reshape to a size that nothing determines.
            OverloadedError, DeadlineError, CancelledError: it is not answered in time.
        """
        begun = time.monotonic()
        if self._states is None:
            blocks = self._host.run(inputs, budget)
        else:
            blocks = self._states.blocks(inputs, urgency, budget, prepared)
        urgency.timeline.host = (begun, time.monotonic())
        return self._outputs_of(blocks, outputs, urgency)

    def prepare(
        self,
        inputs: Mapping[str, np.ndarray],
        urgency: Urgency = ANY_TIME,
        budget: LookupBudget | None = None,
    ) -> Prepared:
        """Computes and keeps the request side of checked request-scope features, before there are candidates.
        Raises as `predict` does, and `UnsupportedError` where nothing is kept."""
        return self._kept_states().prepare(inputs, urgency, budget)

    def prepared_features(self, prepared: bytes) -> Mapping[str, np.ndarray]:
        """The request-scope features of a request that was prepared (`Prepared.digest`), for `predict`.
        Raises `StateNotFoundError`, and `UnsupportedError` where nothing is kept."""
        return self._kept_states().features(prepared)

    @property
    def state_counts(self) -> StateCounts | None:
        """What was found in the cache of request sides; None where nothing is kept."""
        return self._states.counts if self._states is not None else None

    def _kept_states(self) -> RequestStates:
        if self._states is None:
            raise UnsupportedError(
                "this server keeps no request state; start it with --state-cache-mb above 0, or send Predict"
            )
        return self._states

    def _outputs_of(
        self, blocks: FeatureBlocks, outputs: Sequence[str] | None, urgency: Urgency
    ) -> dict[str, np.ndarray]:
        names = [t.name for t in self.manifest.signature.outputs] if outputs is None else outputs
        found = dict(blocks.outputs)
        if self._engine is not None and any(name not in found for name in names):
            found |= self._named(self._dense_of(blocks, self._engine, urgency))
        return {name: found[name] for name in names}

    def predict_batch(self, requests: Sequence[Mapping[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        """All outputs of each request, in the signature's order: what `predict` gives, up to the order of
        float32 sums. An engine that scores many requests at once does; with another they run one by one.
        Raises `ValueError` for more requests than the engine takes at once."""
        if not isinstance(self._engine, BatchEngine):
            return [self.predict(inputs) for inputs in requests]
        names = [t.name for t in self.manifest.signature.outputs]
        blocks = [self._host.run(inputs) for inputs in requests]
        some = [b for b in blocks if len(b.candidate)]
        dense = iter(self._engine.run_batch(some) if some or not blocks else ())
        answers = [
            {
                **b.outputs,
                **self._named(next(dense) if len(b.candidate) else self._dense_of(b, self._engine)),
            }
            for b in blocks
        ]
        return [{name: answer[name] for name in names} for answer in answers]

    def _dense_of(
        self, blocks: FeatureBlocks, engine: Engine, urgency: Urgency = ANY_TIME
    ) -> list[np.ndarray]:
        """The engine's outputs. Engines are given at least one candidate: programs for tiles and models that
        mix candidates are not made for none."""
        if len(blocks.candidate):
            begun = time.monotonic()
            found = engine.run(blocks, urgency)
            if self._scheduled is None:  # one that is knows when its calls ran
                urgency.timeline.compute = (begun, time.monotonic())
            return found
        if all(None not in spec.shape[1:] for spec in self._dense):
            return [np.empty((0, *(d or 0 for d in spec.shape[1:])), spec.dtype) for spec in self._dense]
        # The program knows the sizes that the signature leaves open.
        one = np.zeros((1, *blocks.candidate.shape[1:]), blocks.candidate.dtype)
        return [value[:0].copy() for value in engine.run(FeatureBlocks(blocks.request, one, {}), urgency)]

    def _named(self, dense: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        # The dense half computes an int64 as int32, which is what JAX has.
        return {
            s.name: value.astype(s.dtype, copy=False) for s, value in zip(self._dense, dense, strict=True)
        }

    def update_tables(self) -> None:
        """Applies the deltas that have come for its tables, if any (docs/updates.md). Never raises for a bad
        one."""
        if self._updates is not None:
            self._updates.poll()

    def caches(self) -> dict[str, CacheCounts]:
        """What became of lookups in the memory before its stored tables, by table."""
        return {n: t.cache.counts() for n, t in self._tiered.items() if t.cache is not None}

    def refuse_late(self, urgency: Urgency) -> None:
        """Raises what `predict` would for an average request that does not end in time, before it has cost
        anything."""
        if self._scheduled is not None:
            self._scheduled.refuse_late(urgency)
        else:
            urgency.check()

    def stream_load(self) -> KeyLoad | None:
        """What the device's streams did for it; None where its engine has threads of its own, or it has
        none."""
        return self._scheduled.stream_load() if self._scheduled is not None else None

    def close(self) -> None:
        """Releases the engine's streams and what is open in stores."""
        if self._states is not None:
            self._states.close()
        if self._engine is not None:
            self._engine.close()
        self._host.close()
        for table in self._tiered.values():
            table.close()


def _dense_outputs(manifest: Manifest, program: HostProgram) -> list[TensorSpec]:
    """What the engine returns: the signature's outputs, in order, without those of the host."""
    by_host = {o.output for o in program.outputs}
    return [t for t in manifest.signature.outputs if t.name not in by_host]
