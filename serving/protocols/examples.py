"""tf.Examples as the features of a request.

A signature whose only input is a string vector named `inputs` takes serialized examples, as TensorFlow
Serving's classification and regression signatures do. Otherwise each feature is read from the examples by its
name, as `tf.io.parse_example` would: features with as many values as the signature says, sparse and ragged
ones with any number. TensorFlow Serving refuses such signatures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxrank.manifest import Part, Signature, TensorSpec
from serving.composites import composites
from serving.errors import InvalidRequestError
from serving.host.operators.example_parsing import parse_example_v2
from serving.host.operators.registry import Lookups, strings
from serving.repeated_rows import one_row
from serving.validation import validate
from serving.wire import inference_pb2 as pb

INPUTS = "inputs"
"""`tf.saved_model.CLASSIFY_INPUTS` and `REGRESS_INPUTS`."""

# tf.io.parse_example knows three dtypes; the others are read in the one that holds them.
_WIDE = {"string": "string", "float64": "float32", "float32": "float32", "float16": "float32"}


def serialized_examples(given: pb.Input) -> list[bytes]:
    """The examples of a request, each with its context in front: fields of the same name that come later
    win. Raises `InvalidRequestError` for none."""
    if given.WhichOneof("kind") == "example_list_with_context":
        with_context = given.example_list_with_context
        found = [with_context.context + example for example in with_context.examples]
    else:
        found = list(given.example_list.examples)
    if not found:
        raise InvalidRequestError("Input is empty: it has no examples; send one for each candidate")
    return found


def takes_serialized(signature: Signature) -> bool:
    """Whether the model parses the examples itself."""
    specs = signature.inputs
    return (
        len(specs) == 1
        and specs[0].name == INPUTS
        and specs[0].dtype == "string"
        and specs[0].shape == (None,)
    )


def decode_examples(
    examples: Sequence[bytes], signature: Signature, max_candidates: int
) -> dict[str, np.ndarray]:
    """Features for `Model.predict`, one candidate for each example.

    Raises `InvalidRequestError`: no tf.Example, a feature that is missing, of another kind or size, a
    request's feature that differs between examples, and what `validate` refuses.
    """
    if len(examples) > max_candidates:
        raise InvalidRequestError(
            f"{len(examples)} examples; this model takes at most {max_candidates} candidates in one request"
        )
    serialized = strings(list(examples))
    if takes_serialized(signature):
        return validate({INPUTS: serialized}, signature, max_candidates)
    inputs = _parsed(serialized, signature)
    for spec in signature.inputs:
        if spec.scope == "request" and spec.part == "rows":
            inputs[spec.name] = one_row(spec, inputs[spec.name])
    return validate(inputs, signature, max_candidates)


@dataclass(frozen=True)
class _Composite:
    """A sparse or ragged feature: its parts by kind."""

    name: str
    parts: Mapping[Part, list[TensorSpec]]

    @property
    def values(self) -> TensorSpec:
        return (self.parts.get("sparse_values") or self.parts["flat_values"])[0]


def _parsed(serialized: np.ndarray, signature: Signature) -> dict[str, np.ndarray]:
    dense = [spec for spec in signature.inputs if spec.part == "rows"]
    varying = [_Composite(name, parts) for name, parts in composites(signature).items()]
    for feature in varying:
        if len(feature.parts.get("row_splits", ())) > 1:
            raise InvalidRequestError(
                f"feature {feature.name!r} is ragged in several dimensions, which a tf.Example cannot "
                "hold; use "
                "Predict"
            )
    found = parse_example_v2(
        Lookups({}, {}),
        serialized,
        strings([]),
        strings([]),
        strings([spec.name.encode() for spec in dense]),
        strings([feature.name.encode() for feature in varying]),
        *(np.zeros(0, _dtype(spec)) for spec in dense),
        num_sparse=0,
        sparse_types=(),
        ragged_value_types=[_wide(feature.values) for feature in varying],
        ragged_split_types=["int64"] * len(varying),
        dense_shapes=[_dense_shape(spec) for spec in dense],
    )
    inputs = {spec.name: _narrow(spec, value) for spec, value in zip(dense, found[: len(dense)], strict=True)}
    ragged = found[len(dense) :]
    for feature, values, splits in zip(varying, ragged[: len(varying)], ragged[len(varying) :], strict=True):
        request = feature.values.scope == "request"
        inputs |= _parts(feature, *_same_for_all(feature, values, splits) if request else (values, splits))
    return inputs


def _same_for_all(
    feature: _Composite, values: np.ndarray, splits: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The values of a request's feature once, where every example has the same."""
    rows = [values[a:b].tolist() for a, b in zip(splits[:-1], splits[1:], strict=True)]
    for i, row in enumerate(rows):
        if row != rows[0]:
            raise InvalidRequestError(
                f"feature {feature.name!r} must be the same for all candidates, but example {i} differs from "
                "example 0; put it into the context"
            )
    return values[: splits[1]], splits[:2]


def _parts(feature: _Composite, values: np.ndarray, splits: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays of a feature with `splits[i]:splits[i + 1]` values in row i."""
    values = _narrow(feature.values, values)
    if "row_splits" in feature.parts:
        (spec,) = feature.parts["row_splits"]
        return {spec.name: splits.astype(spec.dtype), feature.values.name: values}
    lengths = np.diff(splits)
    column = np.arange(len(values)) - np.repeat(splits[:-1], lengths)
    indices = np.column_stack([np.repeat(np.arange(len(lengths)), lengths), column]).astype(np.int64)
    shape = np.array([len(lengths), lengths.max(initial=0)], np.int64)
    (indices_spec,), (shape_spec,) = feature.parts["sparse_indices"], feature.parts["sparse_shape"]
    return {indices_spec.name: indices, feature.values.name: values, shape_spec.name: shape}


def _wide(spec: TensorSpec) -> str:
    return _WIDE.get(spec.dtype, "int64")


def _dtype(spec: TensorSpec) -> np.dtype:
    return np.dtype(object if spec.dtype == "string" else _wide(spec))


def _dense_shape(spec: TensorSpec) -> list[int]:
    inner = spec.shape[1:]
    if None in inner[1:]:
        raise InvalidRequestError(
            f"feature {spec.name!r} has more than one open dimension, which a tf.Example cannot hold; "
            "use Predict"
        )
    return [-1 if size is None else size for size in inner]


def _narrow(spec: TensorSpec, value: np.ndarray) -> np.ndarray:
    """The value in the signature's dtype."""
    if spec.dtype == "string":
        return value
    narrow = value.astype(spec.dtype)
    if narrow.dtype.kind in "iub" and (narrow != value).any():
        raise InvalidRequestError(f"feature {spec.name!r} has a value outside of {spec.dtype}")
    return narrow if spec.shape else narrow[0]
