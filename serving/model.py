"""One loaded bundle: features in, scores out."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxrank import bundle as files
from jaxrank.host_program import HostProgram
from jaxrank.manifest import Manifest, Target, TensorSpec
from jaxrank.targets import HOST_CPU, choose_target
from serving.engines import BatchEngine, Engine, load_engine
from serving.host import HostProgramRunner

log = logging.getLogger("jaxrank")


class Model:
    """A verified bundle with its host program and one engine. Thread-safe."""

    def __init__(
        self,
        manifest: Manifest,
        host: HostProgramRunner,
        engine: Engine | None,
        target: Target | None = None,
    ):
        """`engine` and `target` are None where the host program makes every output."""
        self.manifest = manifest
        self.target = target
        self._host = host
        self._engine = engine
        self._dense = _dense_outputs(manifest, host.program)

    @classmethod
    def load(
        cls,
        bundle: Path,
        *,
        target: str = HOST_CPU,
        engine: str | None = None,
        streams: int | None = None,
        only: str | None = None,
    ) -> "Model":
        """Checks every file of the bundle, opens its tables and loads the program compiled for `target`.

        Args:
            target: "cpu" is the best of the bundle's CPU targets for this machine
                (`jaxrank.targets.choose_target`); `Model.target` says which.
            engine: which of the target's engines runs it; the manifest's choice by default.
            streams: calls of the dense half that may run at once; all cores on a CPU by default.
            only: the one candidate program of IREE's to run, by its function; the engine's plan decides by
                default.

        Raises `BundleError` naming the file that is missing or damaged, what the bundle is compiled for, or
        what this CPU lacks.
        """
        manifest = files.verify(bundle)
        host = HostProgramRunner(bundle, manifest)
        if not _dense_outputs(manifest, host.program):
            return cls(manifest, host, None)
        chosen = choose_target(bundle, manifest, target, engine=engine)
        running = load_engine(bundle, manifest, chosen, streams=streams, only=only)
        log.info("%s runs its target %s with the engine %s", bundle, chosen.name, chosen.engine)
        return cls(manifest, host, running, chosen)

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
            found |= self._named(self._engine.run(blocks))
        return {name: found[name] for name in names}

    def predict_batch(self, requests: Sequence[Mapping[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        """All outputs of each request, in the signature's order: what `predict` gives, up to the order of
        float32 sums. An engine that scores many requests at once does; with another they run one by one.
        Raises `ValueError` for more requests than the engine takes at once."""
        if not isinstance(self._engine, BatchEngine):
            return [self.predict(inputs) for inputs in requests]
        names = [t.name for t in self.manifest.signature.outputs]
        blocks = [self._host.run(inputs) for inputs in requests]
        found = zip(blocks, self._engine.run_batch(blocks), strict=True)
        answers = [{**b.outputs, **self._named(dense)} for b, dense in found]
        return [{name: answer[name] for name in names} for answer in answers]

    def _named(self, dense: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        # The dense half computes an int64 as int32, which is what JAX has.
        return {
            s.name: value.astype(s.dtype, copy=False) for s, value in zip(self._dense, dense, strict=True)
        }

    def close(self) -> None:
        """Releases the engine's streams."""
        if self._engine is not None:
            self._engine.close()


def _dense_outputs(manifest: Manifest, program: HostProgram) -> list[TensorSpec]:
    """What the engine returns: the signature's outputs, in order, without those of the host."""
    by_host = {o.output for o in program.outputs}
    return [t for t in manifest.signature.outputs if t.name not in by_host]
