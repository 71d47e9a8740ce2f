"""Scores of the suite `serve`'s servers beside TensorFlow's: nothing wrong is timed."""

from collections.abc import Mapping

import grpc
import numpy as np

from bench.dense import TOLERANCE, largest_error
from bench.dense_build import Built
from bench.results import NotMeasured
from bench.serve_found import OURS, TENSORFLOW, TFS, Found, Measured, Model
from bench.serve_processes import settings, tensorflow_server
from bench.serve_requests import first_scores, scores
from serving.cores import usable_cores


class WrongScoresError(RuntimeError):
    """Scores of ours are not TensorFlow's."""


def compare(
    found: Found, measured: Measured, model: Model, built: Built, addresses: dict[str, str], first: bytes
) -> None:
    """Takes servers out whose scores are not TensorFlow's, and says so. Raises `RuntimeError` where ours are
    not, or nobody knows TensorFlow's."""
    answered: dict[str, dict[str, np.ndarray]] = {}
    for name in list(addresses):
        try:
            answered[name] = scores(addresses[name], first)
        except grpc.RpcError as error:
            found.missing.append(not_served(model, name, error))
            del addresses[name]
    ours = answered.pop(OURS, None)
    known = answered.get(TENSORFLOW) or measured.expected or first_scores(model) or answered.get(TFS)
    if ours is None or not known:
        raise RuntimeError(
            "our server did not answer" if ours is None else "TensorFlow's scores are not known"
        )
    measured.expected = known
    error = _error(ours, ours, known)
    measured.error = max(measured.error, error)
    _refuse(model, built, error)
    if TFS in answered:
        error = _error(ours, answered[TFS], known)
        if not error <= _tolerance(built):
            why = f"refused: the scores of {addresses.pop(TFS)} differ from the model's by {error:.1e}"
            found.missing.append(NotMeasured(name=f"{model.name}/throughput/{TFS}", why=why))


def not_served(model: Model, server: str, error: Exception) -> NotMeasured:
    """That a server's throughput is not known, and why."""
    if isinstance(error, grpc.RpcError):
        why = f"{error.code().name}: {error.details()}"  # type: ignore[attr-defined]
    else:
        why = " ".join(str(error).split())
    return NotMeasured(name=f"{model.name}/throughput/{server}", why=why[:300])


def tensorflow_scores(model: Model, built: Built, first: bytes) -> Mapping[str, np.ndarray]:
    """Of the first request, for parts that measure no TensorFlow: what a bundle knows, or what its
    SavedModel answers. Raises `UserModelError` where there is neither."""
    known = first_scores(model)
    if known:
        return known
    setting = settings(usable_cores())[0]
    with tensorflow_server(built.saved, setting, built.manifest.signature.name) as server:
        return scores(server.address, first)


def check(model: Model, built: Built, address: str, first: bytes, known: Mapping[str, np.ndarray]) -> None:
    """Raises `RuntimeError` where a server of ours has other scores than TensorFlow, `grpc.RpcError` where it
    does not answer."""
    ours = scores(address, first)
    _refuse(model, built, _error(ours, ours, known))


def _refuse(model: Model, built: Built, error: float) -> None:
    if not error <= _tolerance(built):
        raise WrongScoresError(f"{model.name}: scores differ from TensorFlow's by {error:.1e}")


def _error(
    ours: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray], known: Mapping[str, np.ndarray]
) -> float:
    """Of the outputs that ours has; one that lacks is infinitely far."""
    nothing = np.zeros(0)
    return largest_error([found.get(n, nothing) for n in ours], [known.get(n, nothing) for n in ours])


def _tolerance(built: Built) -> float:
    return max(TOLERANCE, built.manifest.certificate.tolerance)
