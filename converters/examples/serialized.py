"""Serialized tf.Examples drawn to fit what a model's parse op reads."""

from collections.abc import Callable

import numpy as np

from converters.errors import ConversionError
from converters.examples.domains import ExampleDomain, FeatureDomain, ParsedFeature
from converters.examples.messages_pb2 import Example
from converters.examples.values import MAX_VALUES, draw_values, with_empty
from serving.wire.example_pb2 import Feature

_MISSING = 0.125


def serialized_examples(rng: np.random.Generator, domain: ExampleDomain, rows: int) -> np.ndarray:
    """One serialized Example for each row, `[rows]` object array of bytes.

    A feature that may be missing is, in one of eight rows. Raises `ConversionError` for a `structure_of` that
    names no earlier feature.
    """
    drawn: dict[str, tuple[ParsedFeature, np.ndarray, np.ndarray]] = {}
    for feature in sorted(domain.features, key=lambda f: _structure_of(f) is not None):
        other = _structure_of(feature)
        if other is None:
            lengths = _lengths(rng, feature, rows)
        elif other in drawn:
            lengths = drawn[other][1]
        else:
            raise ConversionError(
                f"the domain of {feature.name!r} in {domain.name!r} has the structure of {other!r}, which is "
                "no feature with a structure of its own"
            )
        value_domain = feature.domain or FeatureDomain(name=feature.name)
        size = int(np.prod(feature.shape, dtype=np.int64))
        values = draw_values(rng, feature.dtype, value_domain, (int(lengths.clip(min=0).sum()) * size,))
        drawn[feature.name] = (feature, lengths, values)
    records = np.empty(rows, object)
    examples = [Example() for _ in range(rows)]
    for name, (feature, lengths, values) in drawn.items():
        set_values = _SETTERS[feature.dtype]
        size = int(np.prod(feature.shape, dtype=np.int64))
        flat, start = values.tolist(), 0
        for example, length in zip(examples, lengths.tolist(), strict=True):
            if length < 0:
                continue
            set_values(example.features.feature[name], flat[start : start + length * size])
            start += length * size
    records[:] = [e.SerializeToString(deterministic=True) for e in examples]
    return records


def _structure_of(feature: ParsedFeature) -> str | None:
    return feature.domain.structure_of if feature.domain is not None else None


def _lengths(rng: np.random.Generator, feature: ParsedFeature, rows: int) -> np.ndarray:
    """Rows of `shape` that each Example has; -1 where it lacks the feature."""
    if feature.kind == "fixed":
        lengths = np.ones(rows, np.int64)
    else:
        lengths = with_empty(rng, rng.integers(1, MAX_VALUES + 1, rows))
    if not feature.optional:
        return lengths
    return np.where(rng.random(rows) < _MISSING, -1, lengths)


def _set_bytes(feature: Feature, values: list) -> None:
    feature.bytes_list.value.extend(values)
    feature.bytes_list.SetInParent()


def _set_floats(feature: Feature, values: list) -> None:
    feature.float_list.value.extend(values)
    feature.float_list.SetInParent()


def _set_integers(feature: Feature, values: list) -> None:
    feature.int64_list.value.extend(values)
    feature.int64_list.SetInParent()


_SETTERS: dict[str, Callable[[Feature, list], None]] = {
    "string": _set_bytes,
    "float32": _set_floats,
    "int64": _set_integers,
}
