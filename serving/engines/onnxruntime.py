"""The dense half on ONNX Runtime: the towers as ONNX models, for any number of candidates, with the weights
of the bundle's archive."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from jaxrank.errors import BundleError
from jaxrank.manifest import Manifest, Target
from jaxrank.towers import CANDIDATE_TOWER, REQUEST_TOWER
from serving.cores import usable_cores
from serving.engines.calls import Calls
from serving.engines.weights import TowerProgram, Weights, read_program
from serving.host.program import FeatureBlocks
from serving.scheduling import ANY_TIME, Urgency

PROGRAM_SCHEMA = 1
_CPU_SLICE = 256
_CPU_SMALLEST_SLICE = 32


class OnnxRuntimeEngine:
    """One dense program on one device. Thread-safe."""

    def __init__(self, bundle: Path, manifest: Manifest, target: Target, *, streams: int | None = None):
        """Opens a session for each tower.

        Args:
            streams: slices of candidates that run at once; all cores on a CPU, one on a device, by default.

        Raises:
            BundleError: ONNX Runtime is not installed, has no provider for the target, or does not take the
                models.
        """
        try:
            import onnxruntime
        except ImportError as error:
            raise BundleError(
                f"{bundle}: the engine 'onnxruntime' needs ONNX Runtime: "
                f"pip install 'jaxrank[onnxruntime]' ({error})"
            ) from error
        self._path = bundle / target.module
        self._program = read_program(self._path, TowerProgram, PROGRAM_SCHEMA)
        self._weights = Weights(bundle)
        self._row_wise, self._on_cpu = manifest.row_wise, target.driver == "cpu"
        self.streams = streams or (usable_cores() if self._on_cpu else 1)
        self._providers = _providers(self._path, target, onnxruntime.get_available_providers())
        self._request = self._session(onnxruntime, REQUEST_TOWER) if manifest.state else None
        self._candidate = self._session(onnxruntime, CANDIDATE_TOWER)
        self._inputs = [i.name for i in self._candidate.get_inputs()]
        self._outputs = [o.name for o in self._candidate.get_outputs()]
        self._pool = ThreadPoolExecutor(self.streams, thread_name_prefix="onnxruntime")
        self._calls = Calls()

    def run(self, blocks: FeatureBlocks, urgency: Urgency = ANY_TIME) -> list[np.ndarray]:
        """The dense outputs in the order of the signature, each `[N, ...]`. The arrays are the caller's
        own."""
        urgency.check()
        with self._calls.running():
            return self._run(blocks)

    def prepare(self, request: np.ndarray, urgency: Urgency = ANY_TIME) -> Sequence[np.ndarray]:
        """The state of a request's block."""
        urgency.check()
        with self._calls.running():
            return self._pool.submit(self._state, request).result()

    def _run(self, blocks: FeatureBlocks) -> list[np.ndarray]:
        slices = self._slices(len(blocks.candidate))
        if len(slices) == 1:
            return self._pool.submit(self._both, blocks).result()
        state = blocks.state
        if state is None:
            state = self._pool.submit(self._state, blocks.request).result()
        parts = list(self._pool.map(lambda s: self._candidates(state, blocks.candidate[s]), slices))
        return [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]

    def close(self) -> None:
        """Ends the streams after the calls that run now. A later call is an error."""
        self._calls.close()
        self._pool.shutdown(wait=True)

    def _both(self, blocks: FeatureBlocks) -> list[np.ndarray]:
        state = blocks.state if blocks.state is not None else self._state(blocks.request)
        return self._candidates(state, blocks.candidate)

    def _state(self, request_block: np.ndarray) -> list[np.ndarray]:
        if self._request is None:
            return []
        return self._request.run(None, {self._request.get_inputs()[0].name: request_block})

    def _candidates(self, state: Sequence[np.ndarray], block: np.ndarray) -> list[np.ndarray]:
        feeds = dict(zip(self._inputs, [*state, block], strict=True))
        return self._candidate.run(self._outputs, feeds)

    def _slices(self, count: int) -> list[slice]:
        """Slices keep activations in the cache, and every core has one."""
        if not self._on_cpu or not self._row_wise:
            return [slice(0, count)]
        parts = max(-(-count // _CPU_SLICE), min(self.streams, count // _CPU_SMALLEST_SLICE), 1)
        edges = [count * i // parts for i in range(parts + 1)]
        return [slice(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]

    def _session(self, onnxruntime: Any, tower: str) -> Any:
        path = self._path.parent / self._program.towers[tower]
        specs = self._program.weights[tower]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if self._on_cpu and self._row_wise:
            options.intra_op_num_threads = 1  # slices are the parallelism
        try:
            # ONNX Runtime reads these arrays where they are: the archive is mapped once for all sessions.
            arrays = [self._weights.array(w.name, w.shape, np.dtype(w.dtype)) for w in specs]
            values = [onnxruntime.OrtValue.ortvalue_from_numpy(a) for a in arrays]
            options.add_external_initializers([w.name for w in specs], values)
            return onnxruntime.InferenceSession(path.read_bytes(), options, providers=self._providers)
        except BundleError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions have no base of their own
            raise BundleError(
                f"{path} does not load with ONNX Runtime {onnxruntime.__version__}: {error}; "
                "compile the bundle again: jaxrank compile ... --engine onnxruntime"
            ) from error


def _providers(path: Path, target: Target, available: Sequence[str]) -> list[str]:
    """The execution providers of a target. ONNX Runtime would fall back to the CPU without a word."""
    if target.driver == "cpu":
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in available:
        raise BundleError(
            f"{path} needs ONNX Runtime's CUDAExecutionProvider, and the one installed has: "
            f"{', '.join(available)}; install onnxruntime-gpu in place of onnxruntime"
        )
    return ["CUDAExecutionProvider", "CPUExecutionProvider"]
