"""Parsing of serialized tf.Example against TensorFlow."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.host.comparison import Case, Cases, run_cases, strings

_NONE = strings()


def _feature(kind: str, found: list[Any]) -> tf.train.Feature:
    if kind == "string":
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=found))
    if kind == "float32":
        return tf.train.Feature(float_list=tf.train.FloatList(value=found))
    return tf.train.Feature(int64_list=tf.train.Int64List(value=found))


def _example(**features: tuple[str, list[Any]]) -> bytes:
    message = tf.train.Example()
    for key, (kind, found) in features.items():
        message.features.feature[key].CopyFrom(_feature(kind, found))
    return message.SerializeToString()


def _some(rng: np.random.Generator, kind: str, count: int) -> tuple[str, list[Any]]:
    if kind == "string":
        return kind, [bytes(rng.bytes(int(n))) for n in rng.integers(0, 6, count)]
    if kind == "float32":
        return kind, rng.normal(size=count).tolist()
    return kind, rng.integers(-(2**62), 2**62, count).tolist()


def _examples(rng: np.random.Generator, count: int) -> np.ndarray:
    """Dense features `df [2]`, `di []`, `ds [1]`, open `vf [-1, 2]`, and `sf si ss rf ri rs` of any length;
    some are missing."""
    out = []
    for _ in range(count):
        features = {}
        for name, kind, size in [("df", "float32", 2), ("di", "int64", 1), ("ds", "string", 1)]:
            if rng.random() < 0.7:
                features[name] = _some(rng, kind, size)
        if rng.random() < 0.7:
            features["vf"] = _some(rng, "float32", 2 * int(rng.integers(0, 4)))
        for name, kind in zip(("sf", "si", "ss", "rf", "ri", "rs"), _SPARSE_TYPES * 2, strict=True):
            if rng.random() < 0.7:
                features[name] = _some(rng, kind, int(rng.integers(0, 4)))
        out.append(_example(**features))
    return strings(*out)


_DEFAULTS = [np.array([1, 2], np.float32), np.array(-7), strings(b"d"), np.array([0.5], np.float32)]
_DENSE = {"dense_shapes": [[2], [], [1], [-1, 2]]}
_DENSE_KEYS = [b"df", b"di", b"ds", b"vf"]
_RAGGED_KEYS = [b"rf", b"ri", b"rs"]
_SPARSE_KEYS, _SPARSE_TYPES = [b"sf", b"si", b"ss"], ["float32", "int64", "string"]


def _v2_case(
    serialized: np.ndarray,
    dense: tuple[list[bytes], list[np.ndarray], list[list[int]]] = ([], [], []),
    sparse: tuple[list[bytes], list[str]] = ([], []),
    ragged: tuple[list[bytes], list[str], list[str]] = ([], [], []),
) -> Case:
    inputs = (serialized, _NONE, strings(*sparse[0]), strings(*dense[0]), strings(*ragged[0]), dense[1])
    attrs = {
        "num_sparse": len(sparse[0]),
        "sparse_types": sparse[1],
        "ragged_value_types": ragged[1],
        "ragged_split_types": ragged[2],
        "dense_shapes": dense[2],
    }
    return Case(inputs, attrs)


def _odd(kind: str) -> list[bytes]:
    """Messages that are broken, empty, of a wrong type, of a wrong size, or say something twice."""
    right = _example(x=(kind, [b"a"] if kind == "string" else [1]))
    other = _example(x=("string", [b"a"])) if kind != "string" else _example(x=("float32", [1.0]))
    unset = tf.train.Example()
    unset.features.feature["x"].CopyFrom(tf.train.Feature())
    twice = right + _example(x=(kind, [b"b"] if kind == "string" else [2]))
    many = _example(x=(kind, [b"a", b"b"] if kind == "string" else [1, 2]))
    return [
        b"",
        b"\xff",
        right[:-1],
        right,
        other,
        unset.SerializeToString(),
        _example(x=(kind, [])),
        many,
        b"abc",
        twice,
    ]


def _parse_v2(rng: np.random.Generator) -> Cases:
    dense = (_DENSE_KEYS, _DEFAULTS, _DENSE["dense_shapes"])
    sparse = (_SPARSE_KEYS, _SPARSE_TYPES)
    for count in (0, 1, 6):
        serialized = _examples(rng, count)
        for index in ("int32", "int64"):
            ragged = (_RAGGED_KEYS, _SPARSE_TYPES, [index] * 3)
            yield _v2_case(serialized, dense, sparse, ragged)
        yield _v2_case(serialized, dense)
        yield _v2_case(serialized, sparse=sparse)
    single = _examples(rng, 1).reshape(())
    yield _v2_case(single, dense, sparse)
    yield _v2_case(single, ragged=(_RAGGED_KEYS, _SPARSE_TYPES, ["int64"] * 3))
    for kind, default in [
        ("float32", np.array([3.0], np.float32)),
        ("int64", np.array([3])),
        ("string", strings(b"d")),
    ]:
        for text in _odd(kind):
            for at in (strings(text), strings(text, shape=())):
                yield _v2_case(at, ([b"x"], [default], [[1]]))
                yield _v2_case(at, ([b"x"], [default[:0]], [[1]]))
                yield _v2_case(at, ([b"x"], [default], [[-1]]))
                yield _v2_case(at, sparse=([b"x"], [kind]))
                yield _v2_case(at, ragged=([b"x"], [kind], ["int64"]))


def _parse_v1(rng: np.random.Generator) -> Cases:
    for count in (0, 1, 6):
        inputs = (
            _examples(rng, count),
            _NONE,
            [strings(k, shape=()) for k in _SPARSE_KEYS],
            [strings(k, shape=()) for k in _DENSE_KEYS],
            _DEFAULTS,
        )
        yield Case(inputs, {"sparse_types": _SPARSE_TYPES, **_DENSE})


def _parse_single(rng: np.random.Generator) -> Cases:
    attrs = {
        "num_sparse": 3,
        "sparse_keys": ["sf", "si", "ss"],
        "dense_keys": ["df", "di", "ds", "vf"],
        "sparse_types": _SPARSE_TYPES,
        **_DENSE,
    }
    for serialized in _examples(rng, 8):
        yield Case((strings(serialized, shape=()), _DEFAULTS), attrs)


CASES: dict[str, Callable[[np.random.Generator], Cases]] = {
    "ParseExample": _parse_v1,
    "ParseExampleV2": _parse_v2,
    "ParseSingleExample": _parse_single,
}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("op_type", CASES)
def test_as_tensorflow(op_type: str, seed: int) -> None:
    run_cases(op_type, CASES[op_type](np.random.default_rng(seed)))
