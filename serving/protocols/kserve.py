"""What KServe v2 answers, whatever carries it: the documents of its REST form, which gRPC's messages
mirror."""

import importlib.metadata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from jaxrank.manifest import Manifest, TensorSpec
from serving.auth import may, require
from serving.data_plane import DataPlane, ModelRef, Prediction, Work
from serving.errors import InvalidRequestError, ServingError, UnsupportedError
from serving.monitoring.counts import PREDICT, REQUEST, Counts
from serving.protocols.administration import check_admin
from serving.protocols.kserve_tensors import DATATYPES
from serving.scheduling import Urgency
from serving.validation import validate

T = TypeVar("T")

_EXTENSIONS = ["model_repository", "binary_tensor_data", "statistics"]
_STATES = {"AVAILABLE": "READY", "END": "UNAVAILABLE"}
_SEQUENCE = ("sequence_id", "sequence_start", "sequence_end")


@dataclass(frozen=True)
class KServe:
    """Documents over the data plane. Each method raises the refusals of what it asks."""

    data_plane: DataPlane

    def ready(self) -> bool:
        """Whether any model answers."""
        return bool(self.data_plane.repository.loaded())

    def model_ready(self, name: str, version: str) -> bool:
        """Whether a model answers now."""
        require("status", name)
        try:
            self.data_plane.manifest(model_ref(name, version))
        except ServingError:
            return False
        return True

    def server_metadata(self) -> dict[str, Any]:
        return {
            "name": "jaxrank",
            "version": importlib.metadata.version("jaxrank"),
            "extensions": _EXTENSIONS,
        }

    def model_metadata(self, name: str, version: str) -> dict[str, Any]:
        manifest, _ = self.data_plane.manifest(model_ref(name, version))
        return {
            "name": name,
            "versions": [str(v) for v in self.data_plane.repository.served_versions(name)],
            "platform": "jaxrank",
            "inputs": [_tensor(spec) for spec in manifest.signature.inputs],
            "outputs": [_tensor(spec) for spec in manifest.signature.outputs],
        }

    def index(self, ready: bool) -> list[dict[str, str]]:
        """Every version that is known, or only those that answer, of the models that the caller may see."""
        repository = self.data_plane.repository
        return [
            {
                "name": name,
                "version": str(status.version),
                "state": _STATES.get(status.state, status.state),
                "reason": status.error,
            }
            for name in repository.known()
            if may("status", name)
            for status in repository.statuses(name)
            if not ready or status.state == "AVAILABLE"
        ]

    def load(self, name: str, parameters: Iterable[str]) -> None:
        """Loads a model again. Raises `UnsupportedError` for a configuration or files by request."""
        if given := sorted(parameters):
            raise UnsupportedError(
                f"load of {name[:200]!r} has the parameters {', '.join(given)[:500]}; a model is "
                "loaded as its "
                "bundle is"
            )
        check_admin(self.data_plane.repository, name)
        self.data_plane.repository.load(name)

    def unload(self, name: str) -> None:
        check_admin(self.data_plane.repository, name)
        self.data_plane.repository.unload(name)

    def statistics(self, name: str, version: str) -> list[dict[str, Any]]:
        """Counters of the served versions of one model, or of all that the caller may see."""
        if name:
            require("status", name)
        elif version:
            raise InvalidRequestError(f"version {version[:200]} is of no model; name the model, too")
        repository, counts = self.data_plane.repository, self.data_plane.counts.of_versions()
        if version:
            served = [(name, self.data_plane.manifest(model_ref(name, version))[1])]
        elif name:
            served = [(name, v) for v in repository.served_versions(name)]
        else:
            served = [key for key in repository.served() if may("status", key[0])]
        return [_statistics(n, v, counts.get((n, v), Counts())) for n, v in served]

    def infer(
        self,
        name: str,
        version: str,
        urgency: Urgency,
        read: Callable[[], tuple[Mapping[str, np.ndarray], Sequence[str]]],
        encode: Callable[[Prediction], T],
    ) -> T:
        """Runs a model. `read` gives a request's inputs and the outputs that it wants, once it is known that
        the request is to be answered; `encode` makes the answer of a `Prediction`."""

        def decode(manifest: Manifest) -> Work:
            inputs, outputs = read()
            known = [spec.name for spec in manifest.signature.outputs]
            for output in outputs:
                if output not in known:
                    raise InvalidRequestError(
                        f"output {output[:200]!r} is not there; the outputs are: {', '.join(known)}"
                    )
            checked = validate(inputs, manifest.signature, manifest.max_candidates)
            return Work(checked, list(dict.fromkeys(outputs)) or None)

        return self.data_plane.run(model_ref(name, version), urgency, decode, encode)


def model_ref(name: str, version: str) -> ModelRef:
    """KServe's version is a text: a number, a label, or empty for the highest version."""
    if not version:
        return ModelRef(name)
    if version.isascii() and version.isdecimal() and len(version) < 20:
        return ModelRef(name, version=int(version))
    return ModelRef(name, label=version)


def check_parameters(parameters: Iterable[str], known: Iterable[str], of: str) -> None:
    """Raises `UnsupportedError` for a parameter of a tensor that changes what is meant (shared memory,
    classification)."""
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise UnsupportedError(f"{of} has the parameters {', '.join(unknown)[:500]}, which are not supported")


def check_request_parameters(parameters: Iterable[str]) -> None:
    """Raises `UnsupportedError` for sequences: requests do not depend on each other here."""
    if any(name in _SEQUENCE for name in parameters):
        raise UnsupportedError("the request is of a sequence, which is not supported")


def unique(names: Sequence[str]) -> None:
    """Raises `InvalidRequestError` for an input that is given twice."""
    if len(set(names)) < len(names):
        name, _ = Counter(names).most_common(1)[0]
        raise InvalidRequestError(f"input {name[:200]!r} is given more than once")


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "datatype": DATATYPES.get(spec.dtype, spec.dtype.upper()),
        "shape": [-1 if size is None else size for size in spec.shape],
    }


def _statistics(name: str, version: int, counts: Counts) -> dict[str, Any]:
    def duration(count: int, seconds: float) -> dict[str, int]:
        return {"count": count, "ns": round(seconds * 1e9)}

    def of(histogram: str) -> dict[str, int]:
        return duration(counts.count_of(histogram), counts.sum_of(histogram))

    return {
        "name": name,
        "version": str(version),
        "last_inference": counts.last_ms,
        "inference_count": counts.candidates,
        "execution_count": counts.success,
        "inference_stats": {
            "success": of(REQUEST),
            "fail": duration(counts.fail, counts.fail_seconds),
            "queue": of("queue"),
            "compute_input": of("decode"),
            "compute_infer": of(PREDICT),
            "compute_output": of("encode"),
        },
    }
