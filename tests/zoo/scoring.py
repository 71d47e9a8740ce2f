"""A converted zoo model against TensorFlow on fresh requests."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from converters.convert import run_flax
from jaxrank import bundle as files
from tests.zoo.model import ZooModel


def answers(
    bundle: Path, model: ZooModel, path: Path, rows: int, seed: int
) -> tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]:
    """Outputs of the bundle and of TensorFlow for a fresh request of `rows` candidates."""
    features = model.request(rows, seed=seed)
    (found,) = run_flax(bundle, files.read_manifest(bundle), [features])
    return found, model.reference(path, features)


def largest_error(bundle: Path, model: ZooModel, path: Path, rows: int, seed: int) -> float:
    """Largest difference of any numeric output, relative where it is beyond 1; infinite if strings differ."""
    found, expected = answers(bundle, model, path, rows, seed)
    worst = 0.0
    for name, theirs in expected.items():
        if theirs.dtype.kind in "OS":
            worst = max(worst, 0.0 if np.array_equal(found[name], theirs) else float("inf"))
            continue
        error = np.abs(found[name].astype(np.float64) - theirs) / np.maximum(np.abs(theirs), 1.0)
        worst = max(worst, float(error.max(initial=0.0)))
    return worst
