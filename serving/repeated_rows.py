"""Features of the request that a client repeats on every row, as TensorFlow Serving's clients have to: one
row is kept, and rows that differ are refused."""

from collections.abc import Mapping
from typing import NoReturn

import numpy as np

from jaxrank.manifest import Part, TensorSpec
from serving.errors import InvalidRequestError


def one_row(spec: TensorSpec, value: np.ndarray) -> np.ndarray:
    """The one row of an input `[N, ...]`. Raises `InvalidRequestError` naming the first row that differs."""
    if not value.ndim or len(value) == 1:
        return value
    row = _first_difference(value)
    if row < len(value):
        _refuse(spec.name, row)
    return value[:1]


def one_row_of_parts(
    feature: str, parts: Mapping[Part, list[TensorSpec]], inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The parts of a sparse or ragged feature, whose contents are checked, with one row. Raises
    `InvalidRequestError` naming the first row that differs."""
    if "sparse_indices" in parts:
        return _one_sparse_row(feature, parts, inputs)
    return _one_ragged_row(feature, parts, inputs)


def _one_sparse_row(
    feature: str, parts: Mapping[Part, list[TensorSpec]], inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    names = [parts[kind][0].name for kind in ("sparse_indices", "sparse_values", "sparse_shape")]
    indices, values, shape = (inputs[name] for name in names)
    rows = int(shape[0])
    if rows == 1:
        return dict(zip(names, (indices, values, shape), strict=True))
    counts = np.bincount(indices[:, 0], minlength=rows)
    # Rows before the first one of another length are of one length: what they hold is a matrix.
    row, each = _first_difference(counts), int(counts[0])
    columns = indices[: row * each, 1:].reshape(row, each, indices.shape[1] - 1)
    row = min(row, _first_difference(columns), _first_difference(values[: row * each].reshape(row, each)))
    if row < rows:
        _refuse(feature, row)
    one = np.array([1, *shape[1:]], shape.dtype)
    return dict(zip(names, (indices[:each], values[:each], one), strict=True))


def _one_ragged_row(
    feature: str, parts: Mapping[Part, list[TensorSpec]], inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    names, (flat,) = [spec.name for spec in parts["row_splits"]], [spec.name for spec in parts["flat_values"]]
    rows = row = len(inputs[names[0]]) - 1
    if rows == 1:
        return {name: inputs[name] for name in (*names, flat)}
    each, found = 1, dict[str, np.ndarray]()
    for name in names:
        splits = inputs[name]
        found[name] = splits[: each + 1]
        lengths = np.diff(splits[: row * each + 1]).reshape(row, each)
        row, each = min(row, _first_difference(lengths)), int(splits[each])
    values = inputs[flat]
    row = min(row, _first_difference(values[: row * each].reshape(row, each, *values.shape[1:])))
    if row < rows:
        _refuse(feature, row)
    return {**found, flat: values[:each]}


def _first_difference(value: np.ndarray) -> int:
    """The first row that is not as row 0; their number where all are."""
    if len(value) < 2:
        return len(value)
    same = value[1:] == value[:1]
    if value.dtype.kind == "f":
        # A NaN repeated on every row is one value.
        same = same | (np.isnan(value[1:]) & np.isnan(value[:1]))
    differs = ~np.asarray(same, bool).reshape(len(value) - 1, -1).all(axis=1)
    return int(np.argmax(differs)) + 1 if differs.any() else len(value)


def _refuse(feature: str, row: int) -> NoReturn:
    raise InvalidRequestError(
        f"feature {feature!r} must be the same for all candidates, but row {row} differs from row 0; send "
        "one request for each user, or convert the model with this input as a candidate feature"
    )
