"""Features that travel as several arrays: a SparseTensor as indices, values and shape, a RaggedTensor as row
splits and flat values.

What a client says of itself is checked before it is decoded (`check_sizes`), the rest before anything uses it
(`check_contents`): the host's operators trust indices and splits.
"""

import math
from collections.abc import Mapping

import numpy as np

from jaxrank.manifest import Part, Signature, TensorSpec
from serving.errors import InvalidRequestError
from serving.wire.codec import MAX_ELEMENTS

MAX_VALUES = 1 << 20
"""Values of one sparse or ragged feature in one request: 200 for each of 5,000 candidates."""
MAX_DENSE_ELEMENTS = MAX_ELEMENTS
"""Elements that a sparse feature may have when it is made dense: the product of its shape."""

Shapes = Mapping[str, tuple[int, ...]]
Composites = Mapping[str, Mapping[Part, list[TensorSpec]]]


def composites(signature: Signature) -> Composites:
    """The parts of every composite feature by kind; row splits are outermost first."""
    found: dict[str, dict[Part, list[TensorSpec]]] = {}
    for spec in signature.inputs:
        if spec.part != "rows":
            found.setdefault(spec.feature, {}).setdefault(spec.part, []).append(spec)
    return found


def check_sizes(features: Composites, shapes: Shapes) -> dict[str, int]:
    """Checks what shapes alone tell. Returns the rows of ragged features; sparse ones say theirs in their
    values.

    Raises `InvalidRequestError` for parts whose lengths differ, or too many values.
    """
    rows: dict[str, int] = {}
    for feature, parts in features.items():
        for kind in ("sparse_values", "flat_values"):
            for spec in parts.get(kind, ()):
                count = math.prod(shapes[spec.name])
                if count > MAX_VALUES:
                    raise InvalidRequestError(
                        f"feature {spec.name!r} has {count} values; at most {MAX_VALUES} are taken"
                    )
        if "sparse_indices" in parts:
            (indices,), (values,) = parts["sparse_indices"], parts["sparse_values"]
            (shape,) = parts["sparse_shape"]
            count, rank = shapes[indices.name]
            if (count,) != shapes[values.name] or (rank,) != shapes[shape.name] or not rank:
                raise InvalidRequestError(
                    f"sparse feature {feature!r} has parts that do not fit: {indices.name!r} is "
                    f"{list(shapes[indices.name])}, {values.name!r} {list(shapes[values.name])}, "
                    f"{shape.name!r} "
                    f"{list(shapes[shape.name])}; a SparseTensor has indices [n, rank], values [n] and shape "
                    "[rank]"
                )
        else:
            for spec in parts["row_splits"]:
                (count,) = shapes[spec.name]
                if not 1 <= count <= MAX_VALUES:
                    raise InvalidRequestError(
                        f"feature {spec.name!r} has {count} row splits; a ragged feature has one more than "
                        f"rows, "
                        f"and at most {MAX_VALUES}"
                    )
            rows[feature] = shapes[parts["row_splits"][0].name][0] - 1
    return rows


def check_contents(features: Composites, inputs: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Checks indices and splits. Returns the rows of sparse features.

    Raises `InvalidRequestError` for an index outside of its shape or out of order, a shape that is negative
    or too large when made dense, and splits that do not divide what lies below them.
    """
    rows: dict[str, int] = {}
    for feature, parts in features.items():
        if "sparse_indices" in parts:
            indices, shape = (inputs[parts[kind][0].name] for kind in ("sparse_indices", "sparse_shape"))
            _check_sparse(feature, parts["sparse_indices"][0].name, indices, shape.tolist())
            rows[feature] = int(shape[0])
        else:
            _check_ragged(parts, inputs)
    return rows


def _check_sparse(feature: str, name: str, indices: np.ndarray, shape: list[int]) -> None:
    if min(shape) < 0 or math.prod(max(d, 1) for d in shape) > MAX_DENSE_ELEMENTS:
        raise InvalidRequestError(
            f"sparse feature {feature!r} says that its shape is {shape}; dimensions must not be negative, "
            f"and its dense form may have at most {MAX_DENSE_ELEMENTS} elements"
        )
    outside = ((indices < 0) | (indices >= np.asarray(shape, np.int64))).any(axis=1)
    if outside.any():
        at = int(np.argmax(outside))
        raise InvalidRequestError(
            f"feature {name!r} has the index {indices[at].tolist()} at position {at}, which is outside of "
            f"the feature's shape {shape}"
        )
    # Within the limit above, a position of the dense form is an exact integer.
    strides = np.cumprod([1, *shape[:0:-1]])[::-1].astype(np.int64)
    backwards = np.diff(indices @ strides) < 0
    if backwards.any():
        at = int(np.argmax(backwards)) + 1
        raise InvalidRequestError(
            f"feature {name!r} has the index {indices[at].tolist()} at position {at} after a later one; send "
            "indices in row-major order, as tf.sparse.reorder puts them"
        )


def _check_ragged(parts: Mapping[Part, list[TensorSpec]], inputs: Mapping[str, np.ndarray]) -> None:
    (values,) = parts["flat_values"]
    splits = parts["row_splits"]
    below = [(s.name, len(inputs[s.name]) - 1) for s in splits[1:]] + [
        (values.name, len(inputs[values.name]))
    ]
    for spec, (inner, length) in zip(splits, below, strict=True):
        found = inputs[spec.name]
        if found[0] != 0 or found[-1] != length or (np.diff(found) < 0).any():
            raise InvalidRequestError(
                f"feature {spec.name!r} must begin with 0, never decrease, and end with {length}, the "
                f"number of "
                f"rows of {inner!r}"
            )
