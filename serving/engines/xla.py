"""The dense half on JAX's XLA (PJRT): compiled when the model is loaded, once for each tile of candidates.

A bundle holds the towers as `jax.export` artifacts: StableHLO in a flatbuffer, no pickle and no code of
Python. XLA compiles for known shapes only, so the bundle names *tiles* (8, 64, ... rows); each is compiled
at load, on one set of weights. A request is covered by tiles, and the last one is padded: no request waits
for a compiler.
"""

import functools
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from jaxrank.errors import BundleError
from jaxrank.manifest import Manifest, Target
from jaxrank.towers import CANDIDATE_TOWER, REQUEST_TOWER
from serving.engines.calls import Calls
from serving.engines.weights import TowerProgram, Weights, WeightSpec, read_program
from serving.host.program import FeatureBlocks
from serving.scheduling import ANY_TIME, Urgency

PROGRAM_SCHEMA = 1
_CALL_ROWS = 16
"""What a call costs beyond its rows, in rows: it decides between two small tiles and a padded one."""
_CUSTOM_CALL = re.compile(r"custom_call\s*@(\w+)")
_HARMLESS_CALLS = {"shape_assertion"}


class XlaProgram(TowerProgram, frozen=True, kw_only=True):
    """The weights of a tower are its leading arguments."""

    tiles: tuple[int, ...]
    """Rows of the candidate block that the tower is compiled for, ascending."""
    candidate_width: int


class XlaEngine:
    """One dense program on one PJRT device. Thread-safe."""

    def __init__(self, bundle: Path, manifest: Manifest, target: Target, *, streams: int | None = None):
        """Compiles every tile.

        Args:
            streams: taken for the protocol; PJRT has its own threads and queues.

        Raises:
            BundleError: JAX is not installed, has no such device, or does not take the program.
        """
        try:
            import jax
        except ImportError as error:
            raise BundleError(
                f"{bundle}: the engine 'xla' needs JAX: pip install 'jaxrank[xla]' ({error})"
            ) from error
        self.streams = streams or 1
        self._path = bundle / target.module
        self._program = read_program(self._path, XlaProgram, PROGRAM_SCHEMA)
        if not self._program.tiles:
            raise BundleError(f"{self._path} is of another version of jaxrank; compile the bundle again")
        self._weights = Weights(bundle)
        self._device_weights: dict[WeightSpec, Any] = {}
        self._calls = Calls()
        try:
            self._device = jax.devices(target.driver)[0]
        except RuntimeError as error:
            raise BundleError(
                f"{self._path} needs a PJRT device {target.driver!r}, which JAX does not have here: {error}"
            ) from error
        with jax.default_device(self._device):
            rows = [None, *self._program.tiles] if manifest.state else list(self._program.tiles)
            lowered = {n: self._lowered(CANDIDATE_TOWER if n else REQUEST_TOWER, n) for n in rows}
            # XLA's compiler lets other threads run.
            with ThreadPoolExecutor(len(lowered)) as pool:
                compiled = dict(zip(lowered, pool.map(lambda bound: bound(), lowered.values()), strict=True))
        self._request = compiled.pop(None, None)
        self._candidate = {n: tower for n, tower in compiled.items() if n is not None}

    def run(self, blocks: FeatureBlocks, urgency: Urgency = ANY_TIME) -> list[np.ndarray]:
        """The dense outputs in the order of the signature, each `[N, ...]`. The arrays are the caller's
        own."""
        urgency.check()
        with self._calls:
            return self._run(blocks)

    def prepare(self, request: np.ndarray, urgency: Urgency = ANY_TIME) -> Sequence[Any]:
        """The state of a request's block, in the device's memory."""
        urgency.check()
        with self._calls:
            return self._request(request) if self._request is not None else ()

    def _run(self, blocks: FeatureBlocks) -> list[np.ndarray]:
        if blocks.state is not None:
            state = blocks.state
        else:
            state = self._request(blocks.request) if self._request is not None else ()
        count, start, parts = len(blocks.candidate), 0, []
        for rows in cover(count, self._program.tiles):
            tile = blocks.candidate[start : start + rows]
            if len(tile) < rows:
                # A candidate again, not zeros: a loop that ends by its data would not have to end.
                tile = np.concatenate([tile, np.repeat(tile[-1:], rows - len(tile), axis=0)])
            # Calls return before they are done; PJRT runs them side by side.
            parts.append(self._candidate[rows](*state, tile))
            start += rows
        return [_joined(pieces, count) for pieces in zip(*parts, strict=True)]

    def close(self) -> None:
        """Returns after the calls that run now. A later call is an error."""
        self._calls.close()

    def _lowered(self, name: str, rows: int | None) -> Callable[[], Any]:
        """What compiles a tower for a number of rows (None: as it is) and binds its weights."""
        import jax
        from jax import export

        path = self._path.parent / self._program.towers[name]
        try:
            exported = export.deserialize(bytearray(path.read_bytes()))
            calls = set(_CUSTOM_CALL.findall(exported.mlir_module())) - _HARMLESS_CALLS
            if calls:
                raise ValueError(f"it calls {', '.join(sorted(calls))} outside of StableHLO")
            weights = [self._on_device(spec) for spec in self._program.weights[name]]
            avals = [jax.ShapeDtypeStruct(w.shape, w.dtype) for w in weights]
            own = exported.in_avals[len(weights) :]
            avals += [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in own[:-1]]
            last = own[-1].shape if rows is None else (rows, self._program.candidate_width)
            avals.append(jax.ShapeDtypeStruct(last, own[-1].dtype))
            lowered = jax.jit(exported.call).lower(*avals)
        except BundleError:
            raise
        except (OSError, ValueError, TypeError, RuntimeError, KeyError, IndexError, AssertionError) as error:
            raise BundleError(
                f"{path} does not load with JAX {jax.__version__}: {error}; compile the bundle again: "
                "jaxrank compile ... --engine xla"
            ) from error
        except Exception as error:  # flatbuffers and MLIR raise their own kinds on bytes that are not theirs
            raise BundleError(f"{path} is damaged: {error!r}; copy the bundle again") from error
        return lambda: functools.partial(lowered.compile(), *weights)

    def _on_device(self, spec: WeightSpec) -> Any:
        """A weight on the device; one array for all tiles and both towers."""
        import jax

        if spec not in self._device_weights:
            array = self._weights.array(spec.name, spec.shape, np.dtype(spec.dtype))
            self._device_weights[spec] = jax.device_put(array, self._device)
        return self._device_weights[spec]


def cover(count: int, tiles: Sequence[int]) -> list[int]:
    """Tiles that hold `count` candidates, the largest first; only the last is padded.

    Whole tiles of the largest size, then what costs least for the rest, a call being worth `_CALL_ROWS`.
    """
    largest = tiles[-1]
    return [largest] * (count // largest) + _cover_rest(count % largest, tuple(tiles))


@functools.cache
def _cover_rest(count: int, tiles: tuple[int, ...]) -> list[int]:
    if count <= 0:
        return []
    fits = [t for t in tiles if t <= count]
    padded = [next(t for t in tiles if t >= count)] if tiles[-1] >= count else []
    found = [[padded[0]]] if padded else []
    if fits:
        found.append([fits[-1], *_cover_rest(count - fits[-1], tiles)])
    return min(found, key=lambda cover: sum(cover) + _CALL_ROWS * len(cover))


def _joined(pieces: Sequence[Any], count: int) -> np.ndarray:
    arrays = [np.asarray(piece) for piece in pieces]
    # np.asarray is a view of the device's buffer on a CPU.
    return np.array(arrays[0][:count]) if len(arrays) == 1 else np.concatenate(arrays)[:count]
