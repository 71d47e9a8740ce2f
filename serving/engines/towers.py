"""The dense half as calls of two towers on the streams of a device.

A request's candidates are cut into calls that run side by side, on *streams*, as a plan says (`plan.py`);
what a stream is, and runs, is an engine's own (`iree.py`, `onnxruntime.py`). Slices keep activations in the
cache and let one request use all cores; the request tower runs once. A model that mixes candidates sees all
of them in one call. The candidates of several requests go through one program as tiles (`batches.py`), where
the bundle has it.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from jaxrank.manifest import Cost, Manifest, Program, Target
from jaxrank.towers import CANDIDATE_TOWER, REQUEST_BATCH, REQUEST_TOWER
from serving.engines import default_streams
from serving.engines.batches import MAX_REQUESTS, WORTH_TILES, Tiles, of_rows, of_tiles, shares, tiled
from serving.engines.calls import Calls
from serving.engines.plan import Call, Planner
from serving.engines.streams import aligned
from serving.host.program import FeatureBlocks
from serving.monitoring.timeline import Moved
from serving.scheduling import ANY_TIME, Job, KeyLoad, StreamScheduler, Urgency

_T = TypeVar("_T")


class Stream(Protocol):
    """One call at a time on a device. Arguments are the state of the request tower, then the candidates."""

    def staged(self, values: Sequence[Any]) -> list[Any]:
        """Arguments in the device's memory, all brought there at once; valid until the next ones are."""
        ...

    def call(self, function: str, arguments: Sequence[Any], *, for_calls: bool = False) -> list[np.ndarray]:
        """The function's results, as arrays that the caller owns; those `for_calls` become arguments of other
        calls. Arguments are arrays, or what `staged` or `run` gave."""
        ...

    def run(self, function: str, arguments: Sequence[Any]) -> list[Any]:
        """The function's results in the device's memory, for the next calls of this stream."""
        ...

    def joined(self, size: int) -> None:
        """Counts bytes that were copied between host arrays for a call."""
        ...

    def moved(self) -> Moved:
        """What was moved since this was last asked."""
        ...


class TowerEngine:
    """One compiled dense program on one device. Thread-safe."""

    def __init__(
        self,
        manifest: Manifest,
        target: Target,
        open_streams: Callable[[StreamScheduler], Sequence[Stream]],
        *,
        streams: int | None = None,
        scheduler: StreamScheduler | None = None,
        only: str | None = None,
        slice_rows: int,
    ):
        """Loads the programs.

        Args:
            open_streams: makes one for each of the scheduler's.
            streams: calls that may run at once; all cores on a CPU, one on a device, by default.
            scheduler: threads of the device that other models share; of its own by default.
            only: function of the one candidate program to use, whatever the costs say; the plan's choice by
                default. That of many requests is used by `run_batch` for every request that has candidates.
            slice_rows: candidates of a call on a CPU, where no costs were measured.

        Raises what `open_streams` does.
        """
        self._owns_scheduler = scheduler is None
        self._scheduler = scheduler or StreamScheduler(
            streams or default_streams(target), on_cpu=target.on_cpu
        )
        self.streams = self._scheduler.streams
        self._calls = Calls()
        # What the scheduler knows of an engine must not keep it in memory.
        self._key = object()
        self._has_state = bool(manifest.state)
        self._row_wise = manifest.row_wise
        self._batch = target.batch
        self._always_tiles = target.batch is not None and only == target.batch.function
        self._planner = _planner(manifest, target, self.streams, only, slice_rows)
        try:
            self._streams = open_streams(self._scheduler)
        except BaseException:
            if self._owns_scheduler:
                self._scheduler.close()
            raise

    def run(self, blocks: FeatureBlocks, urgency: Urgency = ANY_TIME) -> list[np.ndarray]:
        """The dense outputs in the order of the signature, each `[N, ...]` as the modules make them. The
        arrays are the caller's own. Raises what `StreamScheduler.run` does."""
        with self._calls:
            return self._scheduler.run(self._job([blocks], urgency))[0]

    def prepare(self, request: np.ndarray, urgency: Urgency = ANY_TIME) -> list[np.ndarray]:
        """The state of a request's block, in the host's memory: any stream takes it from there. Raises what
        `StreamScheduler.run` does."""
        if not self._has_state:
            return []
        with self._calls:
            return self._scheduler.run(Job(self._key, urgency, 0, request, self._begin_state))

    def run_batch(
        self, requests: Sequence[FeatureBlocks], urgency: Urgency = ANY_TIME
    ) -> list[list[np.ndarray]]:
        """The dense outputs of each request, as `run` gives them up to the order of float32 sums.

        Requests may have any numbers of candidates. Without the bundle's program for many requests, those of
        a model with state run one by one, and so do those of a model that mixes candidates, and on a CPU
        those with more than `WORTH_TILES` tiles of candidates.

        Raises `ValueError` for no request or more than `MAX_REQUESTS`, and what `StreamScheduler.run` does.
        """
        if not 1 <= len(requests) <= MAX_REQUESTS:
            raise ValueError(f"a batch has 1 to {MAX_REQUESTS} requests, this one has {len(requests)}")
        shared = [blocks for blocks in requests if self._shared_rows(blocks)]
        with self._calls:
            found = iter(self._scheduler.run(self._job(shared, urgency)) if shared else ())
            return [
                next(found)
                if self._shared_rows(blocks)
                else self._scheduler.run(self._job([blocks], urgency))[0]
                for blocks in requests
            ]

    def refuse_late(self, urgency: Urgency) -> None:
        """Raises what `run` would for an average request, before it has cost anything."""
        self._scheduler.refuse_late(self._key, urgency)

    def stream_load(self) -> KeyLoad:
        """What its streams did for it, and for all models on them."""
        return self._scheduler.load_of(self._key)

    def _job(self, requests: Sequence[FeatureBlocks], urgency: Urgency) -> Job:
        """For requests that share calls, or for one."""
        return Job(
            self._key,
            urgency,
            sum(len(blocks.candidate) for blocks in requests),
            requests,
            self._begin,
            shared_rows=sum(map(self._shared_rows, requests)),
        )

    def _begin_state(self, job: Job, number: int) -> Moved:
        stream = self._streams[number]
        state = stream.call(REQUEST_TOWER, [job.payload], for_calls=True)
        job.finish = lambda: [state]
        return stream.moved()

    def _begin(self, job: Job, number: int) -> Moved:
        """The first call of a job: the request tower, and then calls that any stream may take."""
        stream = self._streams[number]
        requests = [blocks for member in job.members for blocks in member.payload]
        sizes = [len(member.payload) for member in job.members]
        if len(requests) == 1 and not (self._always_tiles and job.shared_rows):
            finish = self._begin_one(job, stream, requests[0])
            job.finish = lambda: [[finish()]]
        elif self._batch is None:
            rows = FeatureBlocks(requests[0].request, np.concatenate([b.candidate for b in requests]), {})
            stream.joined(rows.candidate.nbytes)
            finish = self._begin_one(job, stream, rows)
            counts = [len(blocks.candidate) for blocks in requests]
            job.finish = lambda: _grouped(_copied(job, of_rows(finish(), counts)), sizes)
        else:
            finish_all = self._begin_tiles(job, stream, requests, self._batch)
            job.finish = lambda: _grouped(_copied(job, finish_all()), sizes)
        return stream.moved()

    def _begin_one(self, job: Job, stream: Stream, blocks: FeatureBlocks) -> Callable[[], list[np.ndarray]]:
        """Starts one request; what is returned gives its outputs after the job's last call."""
        if self._planner is None:
            if blocks.state is not None:
                found = stream.call(CANDIDATE_TOWER, [*blocks.state, blocks.candidate])
            else:
                request, candidates = stream.staged([blocks.request, blocks.candidate])
                found = stream.call(CANDIDATE_TOWER, [*self._state(stream, request), candidates])
            return lambda: found
        plan = self._planner.plan(len(blocks.candidate))
        pieces: list[_Piece] = []
        if len(plan) == 1:
            # On this stream: handing them to others takes longer than a small request.
            state = self._state(stream, blocks.request) if blocks.state is None else blocks.state
            pieces += [_candidates(stream, state, blocks.candidate, call) for call in plan[0]]
            return lambda: _joined(job, pieces)
        if blocks.state is not None:
            state = blocks.state
        else:
            request = [blocks.request]
            state = stream.call(REQUEST_TOWER, request, for_calls=True) if self._has_state else []

        def run(number: int, call: Call) -> Moved:
            pieces.append(_candidates(self._streams[number], state, blocks.candidate, call))
            return self._streams[number].moved()

        # Streams take the next call when they are ready: one on a core that is busy with other work takes
        # fewer.
        for call in itertools.chain.from_iterable(plan):
            job.add(functools.partial(run, call=call))
        return lambda: _joined(job, pieces)

    def _begin_tiles(
        self, job: Job, stream: Stream, requests: Sequence[FeatureBlocks], batch: Program
    ) -> Callable[[], list[list[np.ndarray]]]:
        """Starts requests that share calls; what is returned gives the outputs of each."""
        tiles = tiled([blocks.candidate for blocks in requests], batch.rows)
        stream.joined(tiles.blocks.nbytes)
        parts = shares(tiles, self.streams) if self._planner else [[(0, len(tiles.owner))]]
        state = _batch_state(stream, requests)
        pieces: list[_Piece] = []

        def run(number: int, part: tuple[int, int]) -> Moved:
            pieces.append(_tiles(self._streams[number], batch.function, state, tiles, part))
            return self._streams[number].moved()

        if len(parts) == 1:
            pieces += [_tiles(stream, batch.function, state, tiles, part) for part in parts[0]]
        else:
            for part in itertools.chain.from_iterable(parts):
                job.add(functools.partial(run, part=part))
        return lambda: of_tiles(_joined(job, pieces), tiles)

    def _shared_rows(self, blocks: FeatureBlocks) -> int:
        """Candidates, with padding, that a request adds to a call it shares with others; 0 for one that is
        better off, or can only run, in calls of its own.

        The program for many requests needs a tile of each. On a CPU, a request that fills more than
        `WORTH_TILES` takes less time alone, without padding.
        """
        count = len(blocks.candidate)
        if not count or not self._row_wise:
            return 0
        if self._batch is None:
            return 0 if self._has_state else count
        any_number = self._planner is None or self._always_tiles
        if not any_number and count > WORTH_TILES * self._batch.rows:
            return 0
        return -(-count // self._batch.rows) * self._batch.rows

    def close(self) -> None:
        """Ends after the requests that run now. A later call is an error."""
        self._calls.close()
        self._scheduler.forget(self._key)
        if self._owns_scheduler:
            self._scheduler.close()

    def _state(self, stream: Stream, request: Any) -> list[Any]:
        """In the memory of the stream's device."""
        return stream.run(REQUEST_TOWER, [request]) if self._has_state else []


_Piece = tuple[int, list[np.ndarray]]
"""The first candidate of a call, or its first tile, and its outputs."""


def _candidates(stream: Stream, state: Sequence[Any], candidate_block: np.ndarray, call: Call) -> _Piece:
    rows = candidate_block[call.start : call.stop]
    if len(rows) == call.rows:
        return call.start, stream.call(call.function, [*state, rows])
    padded = aligned((call.rows, *rows.shape[1:]), rows.dtype)
    padded[: len(rows)], padded[len(rows) :] = rows, 0
    stream.joined(rows.nbytes)
    return call.start, [output[: len(rows)] for output in stream.call(call.function, [*state, padded])]


def _batch_state(stream: Stream, requests: Sequence[FeatureBlocks]) -> list[np.ndarray]:
    """`[B, ...]` of all requests: what is known already, and the rest in one call."""
    unknown = [blocks.request for blocks in requests if blocks.state is None]
    made = stream.call(REQUEST_BATCH, [np.concatenate(unknown)], for_calls=True) if unknown else []
    if len(unknown) == len(requests):
        return made
    rest = iter(zip(*made, strict=True))
    states = [blocks.state if blocks.state is not None else next(rest) for blocks in requests]
    return [np.stack(values) for values in zip(*states, strict=True)]


def _tiles(
    stream: Stream, function: str, state: Sequence[np.ndarray], tiles: Tiles, part: tuple[int, int]
) -> _Piece:
    """Outputs of a range of tiles. `state` is all requests'; a call gets that of its owners."""
    start, stop = part
    first, last = tiles.owner[start], tiles.owner[stop - 1]
    owned = [value[first : last + 1] for value in state]
    owner = tiles.owner[start:stop] - first
    return start, stream.call(function, [*owned, owner, tiles.blocks[start:stop]])


def _grouped(outputs: Sequence[_T], sizes: Sequence[int]) -> list[list[_T]]:
    rest = iter(outputs)
    return [list(itertools.islice(rest, size)) for size in sizes]


def _joined(job: Job, pieces: Sequence[_Piece]) -> list[np.ndarray]:
    """Outputs of all candidates from those of each call."""
    if len(pieces) == 1:
        return pieces[0][1]
    ordered = [outputs for _, outputs in sorted(pieces, key=lambda piece: piece[0])]
    joined = [np.concatenate(column) for column in zip(*ordered, strict=True)]
    return _copied(job, [joined])[0]


def _copied(job: Job, outputs: list[list[np.ndarray]]) -> list[list[np.ndarray]]:
    """Outputs that were copied between host arrays; after the last call of the job."""
    job.moved.joined_bytes += sum(value.nbytes for values in outputs for value in values)
    return outputs


def _planner(
    manifest: Manifest, target: Target, streams: int, only: str | None, slice_rows: int
) -> Planner | None:
    """None where all candidates go into one call: the model mixes them, or a device takes them at once."""
    if not manifest.row_wise or not (target.on_cpu or target.programs):
        return None
    tiles, costs = target.programs, target.costs
    if only is not None:
        tiles = tuple(p for p in tiles if p.function == only)
        costs = tuple(Cost(function=p.function, rows=p.rows, ms=1.0) for p in tiles)
    return Planner(
        tiles,
        costs,
        streams=streams,
        max_candidates=manifest.max_candidates,
        slice_rows=slice_rows,
    )
