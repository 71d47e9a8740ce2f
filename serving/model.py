"""One loaded bundle: features in, scores out."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxrank import bundle as files
from jaxrank.errors import BundleError
from jaxrank.host_program import HostProgram
from jaxrank.manifest import Manifest, TensorSpec
from serving.engine import IreeEngine
from serving.host import HostProgramRunner


class Model:
    """A verified bundle with its host program and one engine. Thread-safe."""

    def __init__(self, manifest: Manifest, host: HostProgramRunner, engine: IreeEngine | None):
        """`engine` is None where the host program makes every output."""
        self.manifest = manifest
        self._host = host
        self._engine = engine
        self._dense = _dense_outputs(manifest, host.program)

    @classmethod
    def load(cls, bundle: Path, *, target: str = "cpu", streams: int | None = None) -> "Model":
        """Checks every file of the bundle, opens its tables and loads the module compiled for `target`.

        Raises `BundleError` naming the file that is missing or damaged, or the targets that the bundle has.
        """
        manifest = files.verify(bundle)
        host = HostProgramRunner(bundle, manifest)
        if not _dense_outputs(manifest, host.program):
            return cls(manifest, host, None)
        compiled = {t.name: t for t in manifest.targets}
        if target not in compiled:
            has = ", ".join(sorted(compiled)) or "none"
            raise BundleError(
                f"{bundle} is not compiled for {target!r} (it has: {has}); run jaxrank compile {bundle} "
                f"--target {target}"
            )
        return cls(manifest, host, IreeEngine(bundle, manifest, compiled[target], streams=streams))

    def predict(
        self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Scores checked features (see `serving.validation`).

        Args:
            inputs: request-scope arrays with one row, candidate-scope arrays with N; strings are object
                arrays of bytes.
            outputs: names of the outputs to return; all by default, in the signature's order.

        Returns:
            `[N, ...]` arrays by output name, with the signature's dtypes.
        """
        names = [t.name for t in self.manifest.signature.outputs] if outputs is None else outputs
        blocks = self._host.run(inputs)
        found = dict(blocks.outputs)
        if self._engine is not None and any(name not in found for name in names):
            for spec, value in zip(self._dense, self._engine.run(blocks), strict=True):
                # The dense half computes an int64 as int32, which is what JAX has.
                found[spec.name] = value.astype(spec.dtype, copy=False)
        return {name: found[name] for name in names}

    def close(self) -> None:
        """Releases the engine's streams."""
        if self._engine is not None:
            self._engine.close()


def _dense_outputs(manifest: Manifest, program: HostProgram) -> list[TensorSpec]:
    """What the engine returns: the signature's outputs, in order, without those of the host."""
    by_host = {o.output for o in program.outputs}
    return [t for t in manifest.signature.outputs if t.name not in by_host]
