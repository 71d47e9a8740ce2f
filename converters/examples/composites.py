"""Features that travel as several arrays: a SparseTensor as indices, values and shape, a RaggedTensor as row
splits and flat values."""

from collections.abc import Mapping, Sequence

import numpy as np

from converters.errors import ConversionError
from jaxrank.manifest import Signature, TensorSpec


def composites(inputs: Sequence[TensorSpec]) -> dict[str, list[TensorSpec]]:
    """The parts of every composite feature, in the signature's order; row splits are outermost first."""
    found: dict[str, list[TensorSpec]] = {}
    for spec in inputs:
        if spec.part != "rows":
            found.setdefault(spec.feature, []).append(spec)
    return found


def parts_named(parts: Sequence[TensorSpec], kind: str) -> list[TensorSpec]:
    """The parts of one kind."""
    return [spec for spec in parts if spec.part == kind]


def rows_of(signature: Signature, features: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Rows of every feature: of plain tensors by their input name, of composite ones by their feature
    name."""
    rows = {t.name: len(features[t.name]) for t in signature.inputs if t.part == "rows"}
    for feature, parts in composites(signature.inputs).items():
        rows[feature] = rows_of_parts(parts, features)
    return rows


def rows_of_parts(parts: Sequence[TensorSpec], features: Mapping[str, np.ndarray]) -> int:
    """Rows of one composite feature."""
    shapes = parts_named(parts, "sparse_shape")
    if shapes:
        return int(features[shapes[0].name][0])
    return len(features[parts_named(parts, "row_splits")[0].name]) - 1


def repeat_request_rows(signature: Signature, features: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Features as TensorFlow's signature takes them: a request-scope feature of one row is repeated for every
    candidate where the signature leaves its rows open."""
    rows = rows_of(signature, features)
    scopes = {t.feature or t.name: t.scope for t in signature.inputs}
    candidates = max((count for name, count in rows.items() if scopes[name] == "candidate"), default=1)
    repeated = dict(features)
    for spec in signature.inputs:
        if spec.part == "rows" and spec.scope == "request" and spec.shape[0] is None and rows[spec.name] == 1:
            repeated[spec.name] = np.repeat(features[spec.name], candidates, axis=0)
    for feature, parts in composites(signature.inputs).items():
        if parts[0].scope == "request" and rows[feature] == 1 and not _one_row_declared(parts):
            repeated.update(repeat_parts(parts, features, candidates))
    return repeated


def check_parts(
    feature: str, parts: Sequence[TensorSpec], features: Mapping[str, np.ndarray], where: str
) -> None:
    """Raises `ConversionError` unless the parts are one SparseTensor or RaggedTensor."""
    kinds = [spec.part for spec in parts]
    if sorted(kinds) == ["sparse_indices", "sparse_shape", "sparse_values"]:
        indices, values, shape = (
            features[parts_named(parts, kind)[0].name]
            for kind in ("sparse_indices", "sparse_values", "sparse_shape")
        )
        if shape.ndim != 1 or not len(shape) or indices.shape != (len(values), len(shape)):
            raise ConversionError(
                f"{where}: the parts of {feature!r} do not fit: indices {list(indices.shape)}, values "
                f"{list(values.shape)}, shape {list(shape.shape)}; a SparseTensor has indices [n, rank], "
                "values [n] and shape [rank]"
            )
        if ((indices < 0) | (indices >= shape)).any() or (shape < 0).any():
            raise ConversionError(f"{where}: {feature!r} has an index outside of its shape {shape.tolist()}")
    elif kinds.count("flat_values") == 1 and set(kinds) == {"flat_values", "row_splits"}:
        below = [features[spec.name] for spec in parts_named(parts, "row_splits")]
        below.append(features[parts_named(parts, "flat_values")[0].name])
        for splits, inner in zip(below, below[1:], strict=False):
            length = len(inner) - 1 if inner is not below[-1] else len(inner)
            if not len(splits) or splits[0] != 0 or (np.diff(splits) < 0).any() or splits[-1] != length:
                raise ConversionError(
                    f"{where}: the row splits of {feature!r} must begin with 0, not decrease, and end with "
                    f"the {length} that lie below them"
                )
    else:
        raise ConversionError(
            f"{where}: {feature!r} has the parts {', '.join(kinds)}; a SparseTensor has sparse_indices, "
            "sparse_values and sparse_shape, a RaggedTensor row_splits and flat_values"
        )


def _one_row_declared(parts: Sequence[TensorSpec]) -> bool:
    """A signature can fix the rows of a ragged feature by the length of its outermost splits."""
    splits = parts_named(parts, "row_splits")
    return bool(splits) and splits[0].shape[0] == 2


def first_row(parts: Sequence[TensorSpec], features: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The parts of a composite feature's first row alone."""
    first: dict[str, np.ndarray] = {}
    if parts_named(parts, "sparse_shape"):
        mine = features[parts_named(parts, "sparse_indices")[0].name][:, 0] == 0
        for spec in parts:
            value = features[spec.name]
            if spec.part == "sparse_shape":
                first[spec.name] = np.concatenate([[1], value[1:]]).astype(value.dtype)
            else:
                first[spec.name] = value[mine]
        return first
    length = 1
    for spec in parts_named(parts, "row_splits"):
        first[spec.name] = features[spec.name][: length + 1]
        length = int(first[spec.name][-1])
    (values,) = parts_named(parts, "flat_values")
    return {**first, values.name: features[values.name][:length]}


def repeat_parts(
    parts: Sequence[TensorSpec], features: Mapping[str, np.ndarray], times: int
) -> dict[str, np.ndarray]:
    """A composite feature of one row, `times` times."""
    repeated: dict[str, np.ndarray] = {}
    for spec in parts:
        value = features[spec.name]
        if spec.part == "sparse_shape":
            repeated[spec.name] = np.concatenate([[times], value[1:]]).astype(value.dtype)
        elif spec.part == "row_splits":
            count = value[-1]
            later = (np.arange(times)[:, None] * count + value[None, 1:]).ravel()
            repeated[spec.name] = np.concatenate([[0], later]).astype(value.dtype)
        elif spec.part == "sparse_indices":
            tiled = np.tile(value, (times, 1))
            tiled[:, 0] = np.repeat(np.arange(times), len(value))
            repeated[spec.name] = tiled
        else:
            repeated[spec.name] = np.concatenate([value] * times)
    return repeated
