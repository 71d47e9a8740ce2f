"""One loaded bundle: features in, scores out."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxrank import bundle as files
from jaxrank.errors import BundleError
from jaxrank.manifest import Manifest
from serving.engine import IreeEngine
from serving.host import HostProgramRunner


class Model:
    """A verified bundle with its host program and one engine. Thread-safe."""

    def __init__(self, manifest: Manifest, host: HostProgramRunner, engine: IreeEngine):
        self.manifest = manifest
        self._host = host
        self._engine = engine

    @classmethod
    def load(cls, bundle: Path, *, target: str = "cpu", streams: int | None = None) -> "Model":
        """Checks every file of the bundle, opens its tables and loads the module compiled for `target`.

        Raises `BundleError` naming the file that is missing or damaged, or the targets that the bundle has.
        """
        manifest = files.verify(bundle)
        compiled = {t.name: t for t in manifest.targets}
        if target not in compiled:
            has = ", ".join(sorted(compiled)) or "none"
            raise BundleError(
                f"{bundle} is not compiled for {target!r} (it has: {has}); run jaxrank compile {bundle} "
                f"--target {target}"
            )
        host = HostProgramRunner(bundle, manifest)
        return cls(manifest, host, IreeEngine(bundle, manifest, compiled[target], streams=streams))

    def predict(
        self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Scores checked features (see `serving.validation`).

        Args:
            inputs: request-scope arrays with one row, candidate-scope arrays with N; strings are object
                arrays of bytes.
            outputs: names of the outputs to return; all by default.

        Returns:
            `[N, ...]` arrays by output name.
        """
        found = self._engine.run(self._host.run(inputs))
        named = {spec.name: value for spec, value in zip(self.manifest.signature.outputs, found, strict=True)}
        return named if outputs is None else {name: named[name] for name in outputs}

    def close(self) -> None:
        """Releases the engine's streams."""
        self._engine.close()
