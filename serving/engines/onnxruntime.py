"""The dense half on ONNX Runtime: the towers as ONNX models, for any number of candidates, with the weights
of the bundle's archive."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrank.errors import BundleError
from jaxrank.manifest import Manifest, Target
from jaxrank.towers import CANDIDATE_TOWER, REQUEST_TOWER
from serving.engines.towers import TowerEngine
from serving.engines.weights import TowerProgram, Weights, read_program
from serving.monitoring.timeline import Moved
from serving.scheduling import StreamScheduler

PROGRAM_SCHEMA = 1

_SMALL_ACTIVATIONS = 64
"""`Manifest.slice_rows` of a model whose activations are small."""


class OnnxRuntimeEngine(TowerEngine):
    """A bundle's ONNX models."""

    def __init__(
        self,
        bundle: Path,
        manifest: Manifest,
        target: Target,
        *,
        streams: int | None = None,
        scheduler: StreamScheduler | None = None,
    ):
        """Opens a session for each tower; arguments are `TowerEngine`'s. Raises `BundleError`: ONNX Runtime
        is not installed, has no provider for the target, or does not take the models."""
        try:
            import onnxruntime
        except ImportError as error:
            raise BundleError(
                f"{bundle}: the engine 'onnxruntime' needs ONNX Runtime: "
                f"pip install 'jaxrank[onnxruntime]' ({error})"
            ) from error
        self._path = bundle / target.module
        self._program = read_program(self._path, TowerProgram, PROGRAM_SCHEMA)
        # Sessions read the archive where it is mapped.
        self._weights = Weights(bundle)
        providers = _providers(self._path, target, onnxruntime.get_available_providers())
        # Streams are the parallelism, where candidates can be cut into slices.
        threads = 1 if target.on_cpu and manifest.row_wise else 0
        towers = [REQUEST_TOWER, CANDIDATE_TOWER] if manifest.state else [CANDIDATE_TOWER]
        sessions = {tower: self._session(onnxruntime, tower, threads, providers) for tower in towers}
        super().__init__(
            manifest,
            target,
            lambda scheduler: [_Stream(sessions, target.on_cpu) for _ in range(scheduler.streams)],
            streams=streams,
            scheduler=scheduler,
            # Measured at production width: models with small activations take 4-10% longer in slices of 64
            # than of 256 rows; DIN, whose activations leave the cache, 15% less.
            slice_rows=target.slice_rows or (256 if manifest.slice_rows >= _SMALL_ACTIVATIONS else 64),
        )

    def _session(self, onnxruntime: Any, tower: str, threads: int, providers: Sequence[str]) -> Any:
        """On so many threads; 0: on as many as there are cores."""
        path = self._path.parent / self._program.towers[tower]
        specs = self._program.weights[tower]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        try:
            # ONNX Runtime reads these arrays where they are: the archive is mapped once for all sessions.
            arrays = [self._weights.array(w.name, w.shape, np.dtype(w.dtype)) for w in specs]
            values = [onnxruntime.OrtValue.ortvalue_from_numpy(a) for a in arrays]
            options.add_external_initializers([w.name for w in specs], values)
            return onnxruntime.InferenceSession(path.read_bytes(), options, providers=providers)
        except BundleError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions have no base of their own
            raise BundleError(
                f"{path} does not load with ONNX Runtime {onnxruntime.__version__}: {error}; "
                "compile the bundle again: jaxrank compile ... --engine onnxruntime"
            ) from error


class _Stream:
    """Calls of sessions that all streams share. State lies in the host's memory between them."""

    def __init__(self, sessions: Mapping[str, Any], on_cpu: bool):
        self._sessions = {
            tower: (session, [i.name for i in session.get_inputs()], [o.name for o in session.get_outputs()])
            for tower, session in sessions.items()
        }
        self._on_cpu = on_cpu
        self._moved = Moved()

    def staged(self, values: Sequence[Any]) -> list[Any]:
        return list(values)

    def call(self, function: str, arguments: Sequence[Any], *, for_calls: bool = False) -> list[np.ndarray]:
        session, inputs, outputs = self._sessions[function]
        found = session.run(outputs, dict(zip(inputs, arguments, strict=True)))
        if not self._on_cpu:
            self._moved.transfers += 2
            self._moved.argument_bytes += sum(value.nbytes for value in arguments)
        self._moved.result_bytes += sum(value.nbytes for value in found)
        return found

    run = call

    def joined(self, size: int) -> None:
        self._moved.joined_bytes += size

    def moved(self) -> Moved:
        moved, self._moved = self._moved, Moved()
        return moved


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
