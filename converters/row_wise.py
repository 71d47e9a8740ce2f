"""Whether a model scores every candidate on its own, asked of TensorFlow itself."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from converters.examples.composites import composites, parts_named
from jaxrank.certificate import GROUP_ROWS
from jaxrank.manifest import Signature
from serving.host.program import count_candidates

Predict = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


def mixes_candidates(
    predict: Predict, signature: Signature, features: Mapping[str, np.ndarray], tolerance: float
) -> str | None:
    """None if every candidate alone gets the scores that it gets among the others; else the output that
    changes.

    Args:
        features: a request of several candidates, request-scope features with one row.
        tolerance: largest difference, relative beyond 1, that is rounding.
    """
    together = predict(features)
    rows = count_candidates(features, signature)
    for row in range(rows):
        alone = predict(candidates(signature, features, row, row + 1))
        for name, expected in together.items():
            if len(expected) != rows or len(alone[name]) != 1:
                return name
            a, b = expected[row : row + 1], alone[name]
            if a.shape != b.shape:
                return name
            if a.dtype.kind not in "fiub":
                if (a != b).any():
                    return name
                continue
            error = np.abs(a.astype(np.float64) - b) / np.maximum(np.abs(a.astype(np.float64)), 1.0)
            if not (np.nan_to_num(error, nan=0.0) <= tolerance).all():
                return name
    return None


def candidates(
    signature: Signature, features: Mapping[str, np.ndarray], start: int, stop: int
) -> dict[str, np.ndarray]:
    """The request with candidates `start` to `stop` only."""
    found = dict(features)
    for spec in signature.inputs:
        if spec.scope == "candidate" and spec.part == "rows":
            found[spec.name] = features[spec.name][start:stop]
    for parts in composites(signature.inputs).values():
        if parts[0].scope != "candidate":
            continue
        if parts_named(parts, "sparse_indices"):
            indices, values, shape = (
                parts_named(parts, kind)[0].name
                for kind in ("sparse_indices", "sparse_values", "sparse_shape")
            )
            here = (features[indices][:, 0] >= start) & (features[indices][:, 0] < stop)
            kept = features[indices][here]
            kept[:, 0] -= start
            found[indices], found[values] = kept, features[values][here]
            found[shape] = np.array([stop - start, *features[shape][1:]], features[shape].dtype)
            continue
        low, high = start, stop
        for spec in parts_named(parts, "row_splits"):
            splits = features[spec.name]
            found[spec.name] = splits[low : high + 1] - splits[low]
            low, high = int(splits[low]), int(splits[high])
        values = parts_named(parts, "flat_values")[0].name
        found[values] = features[values][low:high]
    return found


def resized(
    signature: Signature, requests: Sequence[Mapping[str, np.ndarray]], max_candidates: int
) -> list[dict[str, np.ndarray]]:
    """Requests of 1, 7, 200 and the largest number of candidates made of recorded ones, whose sizes alone
    would leave others uncertified: fewer of their candidates, or all of them over and over. Sparse and ragged
    candidates are only made fewer."""
    largest = max(requests, key=lambda r: count_candidates(r, signature))
    available = count_candidates(largest, signature)
    whole = all(t.part == "rows" for t in signature.inputs if t.scope == "candidate")
    found = []
    for rows in (*GROUP_ROWS, max_candidates):
        if rows <= available:
            found.append(candidates(signature, largest, 0, rows))
        elif whole:
            chosen = np.resize(np.arange(available), rows)
            scopes = {t.name: t.scope for t in signature.inputs}
            found.append({n: v[chosen] if scopes[n] == "candidate" else v for n, v in largest.items()})
    return found
