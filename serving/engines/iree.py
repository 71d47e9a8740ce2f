"""The dense half: runs a bundle's IREE modules on feature blocks.

A request's candidates are cut into calls that run side by side, on *streams* (each its own HAL device and VM
contexts on one shared VmInstance), as a plan says (`plan.py`). Slices keep activations in the cache and let
one request use all cores; the request tower runs once. A model that mixes candidates sees all of them in one
call. The candidates of several requests go through one program as tiles (`batches.py`), where the bundle has
it.
"""

import itertools
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import iree.runtime as rt
import numpy as np

from jaxrank import bundle as files
from jaxrank.errors import BundleError
from jaxrank.manifest import Cost, Manifest, Program, Target
from jaxrank.towers import CANDIDATE_TOWER, REQUEST_BATCH, REQUEST_TOWER
from serving.engines.batches import MAX_REQUESTS, WORTH_TILES, Tiles, of_rows, of_tiles, shares, tiled
from serving.engines.plan import Call, Planner
from serving.engines.transfer import to_host
from serving.host.program import FeatureBlocks


class IreeEngine:
    """One compiled dense program on one device. Thread-safe."""

    def __init__(
        self,
        bundle: Path,
        manifest: Manifest,
        target: Target,
        *,
        streams: int | None = None,
        only: str | None = None,
    ):
        """Loads the modules and maps their weights.

        Args:
            streams: calls that may run at once; all cores on a CPU, one on a device, by default.
            only: function of the one candidate program to use, whatever the costs say; the plan's choice by
                default. That of many requests is used by `run_batch` for every request that has candidates.

        Raises:
            BundleError: a module does not load here, or the target's driver finds no device.
        """
        programs = [CANDIDATE_TOWER, *(p.function for p in target.programs)]
        programs += [target.batch.function] if target.batch is not None else []
        if only is not None and only not in programs:
            raise BundleError(
                f"{bundle}: {target.name} has no program {only!r}; it has {', '.join(programs)}"
            )
        on_cpu = target.driver.startswith("local")
        self.streams = streams or (usable_cores() if on_cpu else 1)
        self._closed, self._running = False, 0
        self._calls = threading.Condition()
        self._has_state = bool(manifest.state)
        self._row_wise = manifest.row_wise
        self._batch = target.batch
        self._always_tiles = target.batch is not None and only == target.batch.function
        self._planner = _planner(manifest, target, self.streams, only)
        # The stream that was used last has its memory in the cache.
        self._free: queue.LifoQueue[Stream] = queue.LifoQueue()
        name = f"stream-{target.driver}"
        if on_cpu:
            self._pool = ThreadPoolExecutor(self.streams, name, _pin, (itertools.count(),))
        else:
            self._pool = ThreadPoolExecutor(self.streams, name)
        try:
            weights = Weights(bundle / files.WEIGHTS if files.WEIGHTS in manifest.files else None)
            # Every stream is opened now: a device that is not there must fail the load, not a request.
            for stream in self._pool.map(
                lambda _: self._opened(bundle, target, weights), range(self.streams)
            ):
                self._free.put(stream)
        except (RuntimeError, ValueError, OSError) as error:
            self._pool.shutdown()
            raise BundleError(
                f"{bundle / target.module} does not run here with the {target.driver} driver: {error}; "
                f"compile the bundle for this machine (jaxrank compile --target ...)"
            ) from error

    def run(self, blocks: FeatureBlocks) -> list[np.ndarray]:
        """The dense outputs in the order of the signature, each `[N, ...]` as the modules make them. The
        arrays are the caller's own."""
        with self._call():
            return self._run(blocks)

    def _run(self, blocks: FeatureBlocks) -> list[np.ndarray]:
        count = len(blocks.candidate)
        plan = self._planner.plan(count) if self._planner else ((Call(CANDIDATE_TOWER, count, 0, count),),)
        if len(plan) == 1:
            # On the caller's thread: waking another one takes longer than a small request.
            with self._stream() as stream:
                state = self._request(stream, blocks.request)
                return _joined(_candidates(stream, state, blocks.candidate, iter(plan[0])))
        with self._stream() as stream:
            state = self._request(stream, blocks.request)
        # Streams take the next call when they are ready: one on a core that is busy with other work takes
        # fewer. `next` of one iterator is atomic.
        calls = itertools.chain.from_iterable(plan)
        return _joined(
            self._side_by_side(len(plan), lambda s: _candidates(s, state, blocks.candidate, calls))
        )

    def run_batch(self, requests: Sequence[FeatureBlocks]) -> list[list[np.ndarray]]:
        """The dense outputs of each request, as `run` gives them up to the order of float32 sums.

        Requests may have any numbers of candidates. Without the bundle's program for many requests, those of
        a model with state run one by one, and so do those of a model that mixes candidates, and on a CPU
        those with more than `WORTH_TILES` tiles of candidates.

        Raises `ValueError` for no request or more than `MAX_REQUESTS`.
        """
        if not 1 <= len(requests) <= MAX_REQUESTS:
            raise ValueError(f"a batch has 1 to {MAX_REQUESTS} requests, this one has {len(requests)}")
        with self._call():
            return self._run_batch(requests)

    def _run_batch(self, requests: Sequence[FeatureBlocks]) -> list[list[np.ndarray]]:
        candidates = [blocks.candidate for blocks in requests]
        together = self._row_wise and (self._batch is not None or not self._has_state)
        alone = len(requests) == 1 and not self._always_tiles
        if alone or not together or not any(map(len, candidates)):
            return [self._run(blocks) for blocks in requests]
        if self._batch is None:
            rows = FeatureBlocks(requests[0].request, np.concatenate(candidates), {})
            return of_rows(self._run(rows), [len(block) for block in candidates])
        small = [self._is_small(blocks) for blocks in requests]
        if not all(small):
            tiled_together = list(itertools.compress(requests, small))
            found = iter(self._run_batch(tiled_together) if tiled_together else ())
            return [next(found) if s else self._run(b) for b, s in zip(requests, small, strict=True)]
        return self._run_tiles(requests, self._batch)

    def _is_small(self, blocks: FeatureBlocks) -> bool:
        """Whether a request is worth its tiles. The program needs one of each request; on a CPU, one that
        fills more than `WORTH_TILES` takes less time in a call of its own, without padding."""
        count, rows = len(blocks.candidate), self._batch.rows if self._batch is not None else 0
        any_number = self._planner is None or self._always_tiles
        return count > 0 and (any_number or count <= WORTH_TILES * rows)

    def _run_tiles(self, requests: Sequence[FeatureBlocks], batch: Program) -> list[list[np.ndarray]]:
        tiles = tiled([blocks.candidate for blocks in requests], batch.rows)
        request_block = np.concatenate([blocks.request for blocks in requests])
        parts = shares(tiles, self.streams) if self._planner else [[(0, len(tiles.owner))]]
        with self._stream() as stream:
            state = stream.call(REQUEST_BATCH, [request_block])
            if len(parts) == 1:
                return of_tiles(_joined(_tiles(stream, batch.function, state, tiles, iter(parts[0]))), tiles)
        ranges = itertools.chain.from_iterable(parts)
        pieces = self._side_by_side(len(parts), lambda s: _tiles(s, batch.function, state, tiles, ranges))
        return of_tiles(_joined(pieces), tiles)

    def close(self) -> None:
        """Ends the streams after the calls that run now. A later call is an error."""
        with self._calls:
            self._closed = True
            self._calls.wait_for(lambda: self._running == 0)
        self._pool.shutdown(wait=True)

    @contextmanager
    def _call(self) -> Iterator[None]:
        """Around a call from outside: `close` waits for its end."""
        with self._calls:
            if self._closed:
                raise RuntimeError("the engine is closed")
            self._running += 1
        try:
            yield
        finally:
            with self._calls:
                self._running -= 1
                self._calls.notify_all()

    @contextmanager
    def _stream(self) -> Iterator["Stream"]:
        """A stream of the caller's own, when one is free."""
        stream = self._free.get()
        try:
            yield stream
        finally:
            self._free.put(stream)

    def _request(self, stream: "Stream", request_block: np.ndarray) -> list[np.ndarray]:
        return stream.call(REQUEST_TOWER, [request_block]) if self._has_state else []

    def _side_by_side(self, streams: int, work: Callable[["Stream"], list["_Piece"]]) -> list["_Piece"]:
        """What `work` gives on each of so many streams at once."""

        def on_one(_: int) -> list[_Piece]:
            with self._stream() as stream:
                return work(stream)

        return [piece for part in self._pool.map(on_one, range(streams)) for piece in part]

    def _opened(self, bundle: Path, target: Target, weights: "Weights") -> "Stream":
        stream = Stream(target.driver, weights)
        stream.load(
            bundle / target.module, [REQUEST_TOWER, CANDIDATE_TOWER] if self._has_state else [CANDIDATE_TOWER]
        )
        for module in target.modules:
            tiles = [p.function for p in target.programs if p.module == module]
            if tiles:
                stream.load(bundle / module, tiles)
        if self._batch is not None:
            stream.load(bundle / self._batch.module, [REQUEST_BATCH, self._batch.function])
        return stream


_Piece = tuple[int, list[np.ndarray]]
"""The first candidate of a call, or its first tile, and its outputs."""


def _candidates(
    stream: "Stream", state: Sequence[np.ndarray], candidate_block: np.ndarray, calls: Iterator[Call]
) -> list[_Piece]:
    found = []
    for call in calls:
        rows = candidate_block[call.start : call.stop]
        if len(rows) < call.rows:
            padded = np.zeros((call.rows, *rows.shape[1:]), rows.dtype)
            padded[: len(rows)] = rows
            outputs = stream.call(call.function, [*state, padded])
            found.append((call.start, [output[: len(rows)] for output in outputs]))
        else:
            found.append((call.start, stream.call(call.function, [*state, rows])))
    return found


def _tiles(
    stream: "Stream",
    function: str,
    state: Sequence[np.ndarray],
    tiles: Tiles,
    ranges: Iterator[tuple[int, int]],
) -> list[_Piece]:
    """Outputs of each range of tiles. `state` is all requests'; a call gets that of its owners."""
    found = []
    for start, stop in ranges:
        first, last = tiles.owner[start], tiles.owner[stop - 1]
        owned = [value[first : last + 1] for value in state]
        owner = tiles.owner[start:stop] - first
        found.append((start, stream.call(function, [*owned, owner, tiles.blocks[start:stop]])))
    return found


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _pin(number: "itertools.count[int]") -> None:
    """Keeps the calling thread on one of the cores that the process may use, the next one for each stream.
    The scheduler otherwise wakes two slices of a request on one core, where one waits for the other."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[next(number) % len(cores)]})


def _joined(pieces: Sequence[_Piece]) -> list[np.ndarray]:
    """Outputs of all candidates from those of each call."""
    if len(pieces) == 1:
        return pieces[0][1]
    ordered = [outputs for _, outputs in sorted(pieces, key=lambda piece: piece[0])]
    return [np.concatenate(column) for column in zip(*ordered, strict=True)]


class Weights:
    """A bundle's weight archive, mapped into memory once for all streams."""

    def __init__(self, archive: Path | None):
        """`archive` is None for a model without weights. Raises `ValueError` or `OSError` where it does not
        open."""
        self.instance = rt.VmInstance()
        self._parameters = rt.ParameterIndex() if archive is not None else None
        if self._parameters is not None:
            self._parameters.load(str(archive))

    def modules(self) -> list[Any]:
        """The VM module through which a context reads them; none where there are no weights."""
        if self._parameters is None:
            return []
        provider = self._parameters.create_provider(scope=files.WEIGHTS_SCOPE)
        return [rt.create_io_parameters_module(self.instance, provider)]


class Stream:
    """One HAL device, and a VM context for each module loaded on it. Used by one thread at a time."""

    def __init__(self, driver: str, weights: Weights):
        # Reusing buffers saves page faults on the host; IREE 3.13's caching allocator asks a Vulkan
        # device for memory that it refuses (tests/serving/test_vulkan.py notices when it no longer does).
        allocators: Any = ["caching"] if driver.startswith("local") else None
        self._device = rt.get_driver(driver).create_default_device(allocators=allocators)
        self._weights = weights
        self._functions: dict[str, Callable[..., Any]] = {}

    def load(self, module: Path, functions: Sequence[str]) -> None:
        """Makes a module's functions callable by name. Raises `ValueError` for one that it does not have."""
        hal = rt.create_hal_module(self._weights.instance, self._device)
        program = rt.VmModule.mmap(self._weights.instance, str(module))
        context = rt.VmContext(self._weights.instance, modules=[*self._weights.modules(), hal, program])
        for name in functions:
            function = program.lookup_function(name)
            if function is None:
                raise ValueError(f"the module {module.name} has no function @{name}")
            self._functions[name] = rt.FunctionInvoker(context, self._device, function)

    def call(self, function: str, arguments: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The function's results, as arrays that the caller owns."""
        found = self._functions[function](*arguments)
        results = found if isinstance(found, (tuple, list)) else [found]
        return [to_host(self._device, result) for result in results]


def _planner(manifest: Manifest, target: Target, streams: int, only: str | None) -> Planner | None:
    """None where all candidates go into one call: the model mixes them, or a device takes them at once."""
    if not manifest.row_wise or not (target.driver.startswith("local") or target.programs):
        return None
    tiles, costs = target.programs, target.costs
    if only is not None:
        tiles = tuple(p for p in tiles if p.function == only)
        costs = tuple(Cost(function=p.function, rows=p.rows, ms=1.0) for p in tiles)
    return Planner(tiles, costs, streams=streams, max_candidates=manifest.max_candidates)
