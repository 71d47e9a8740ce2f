"""Small models, each with one thing that real ones do, through the whole road: converted, compiled, and with
TensorFlow's scores on fresh inputs."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from converters.convert import convert
from mlir_pipeline.compile import compile_bundle
from serving.model import Model
from tests import models

_RNG = np.random.default_rng(0)
W = tf.constant(_RNG.standard_normal((8, 4)), tf.float32)
V = tf.constant(_RNG.standard_normal((4, 1)), tf.float32)
TABLE = tf.constant(_RNG.standard_normal((20, 8)), tf.float32)


def _spec(name: str, *shape: int | None, dtype: tf.DType = tf.float32) -> tf.TensorSpec:
    return tf.TensorSpec(shape, dtype, name)


X = _spec("x", None, 8)
IDS = _spec("ids", None, dtype=tf.int64)


def _masked_mean(bag: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    mask = tf.cast(bag > 0, tf.float32)[..., None]
    pooled = tf.reduce_sum(tf.gather(TABLE, bag) * mask, 1) / tf.maximum(tf.reduce_sum(mask, 1), 1.0)
    return tf.reduce_sum(pooled * x, -1)


def _whole_numbers(x: tf.Tensor) -> tf.Tensor:
    """Integer division of numbers of both signs, after a product: in the dense half."""
    whole = tf.cast((x @ W) * 10.0, tf.int32)
    return tf.reduce_sum(tf.cast(whole // 7, tf.float32) + 0.1 * tf.cast(whole % 7, tf.float32), -1)


def _guarded(ids: tf.Tensor) -> tf.Tensor:
    inside = tf.where((ids < 3) | (ids >= 17), tf.zeros_like(ids), ids)
    return tf.reduce_sum(tf.gather(TABLE, inside), -1)


def _pairs_of_rows(p: tf.Tensor) -> tf.Tensor:
    """Every price beside every other: no input is the request's."""
    return tf.reduce_mean(tf.tanh(tf.tile(p[None, :], [tf.shape(p)[0], 1]) - p[:, None]), 1)


def _layer_norm(x: tf.Tensor) -> tf.Tensor:
    mean, variance = tf.nn.moments(x, [-1], keepdims=True)
    return tf.reduce_sum((x - mean) * tf.math.rsqrt(variance + 1e-6) * TABLE[0], -1)


def _history_softmax(h: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    weights = tf.nn.softmax(tf.einsum("td,nd->nt", h[0], x))
    return tf.reduce_sum(tf.einsum("nt,td->nd", weights, h[0]), -1)


def _tiled_user(u: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    both = tf.concat([tf.tile(u @ W, [tf.shape(x)[0], 1]), x @ W], -1)
    return tf.reduce_sum(both @ W, -1)


def _user_times_item(u: tf.Tensor, ids: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.gather(TABLE, (tf.repeat(u, tf.shape(ids)[0]) * 3 + ids) % 20), -1)


MODELS = [
    pytest.param(lambda x: tf.nn.relu(x @ W) @ V, (X,), id="mlp without a request side, output of rank 2"),
    pytest.param(lambda x: x @ W, (X,), id="vector output"),
    pytest.param(
        lambda u, x: (x @ W)[:, 0] + (u @ W)[:, 1], (_spec("u", 1, 8), X), id="user logit added to each score"
    ),
    pytest.param(
        lambda u, x: tf.repeat((u @ W)[:, 0], tf.shape(x)[0]),
        (_spec("u", 1, 8), X),
        id="output of the user alone",
    ),
    pytest.param(_tiled_user, (_spec("u", 1, 8), X), id="user tiled and concatenated"),
    pytest.param(
        _history_softmax, (_spec("h", 1, 4, 8), X), id="attention with einsum over a request history"
    ),
    pytest.param(_masked_mean, (_spec("bag", None, 5, dtype=tf.int64), X), id="masked mean of an id bag"),
    pytest.param(lambda ids: tf.cast(ids, tf.float32) * 2.0, (IDS,), id="id as a number"),
    pytest.param(
        lambda ids: tf.reduce_sum(tf.gather(TABLE, ids), -1) + tf.cast(ids % 3, tf.float32),
        (IDS,),
        id="id used twice",
    ),
    pytest.param(_user_times_item, (_spec("u", 1, dtype=tf.int64), IDS), id="id crossed from user and item"),
    pytest.param(_layer_norm, (X,), id="layer norm"),
    pytest.param(_whole_numbers, (X,), id="floor division and remainder of negative numbers"),
    pytest.param(_guarded, (IDS,), id="ids guarded by two comparisons"),
    pytest.param(_pairs_of_rows, (_spec("p", None),), id="pairs of candidates"),
    pytest.param(
        lambda t, x: tf.cast(t[:, 0] % 7.0, tf.float32) * x[:, 0],
        (_spec("t", None, 1, dtype=tf.float64), X),
        id="float64 cast in the model",
    ),
    pytest.param(lambda x: tf.reduce_sum(tf.nn.gelu(x @ W), -1), (X,), id="gelu"),
    pytest.param(
        lambda x: tf.reduce_sum(tf.matmul(x, x, transpose_b=True), [1, 2]),
        (_spec("x", None, 5, 8),),
        id="batch matmul",
    ),
    pytest.param(
        lambda u, p: tf.nn.relu((u - p) @ W),
        (_spec("u", 1, 1), _spec("p", None, 8)),
        id="user scalar minus features",
    ),
    pytest.param(lambda x: tf.pow(x, 3.0)[:, 0], (X,), id="power of a negative number"),
    pytest.param(lambda x: tf.pow(2.0, -x)[:, 0] * -1.5, (X,), id="negative constant"),
    pytest.param(lambda x: x[:, 0] > 0.0, (X,), id="bool output"),
    pytest.param(
        lambda lengths, bytes: lengths + bytes[:, 0],
        (_spec("lengths", None), _spec("bytes", None, 2)),
        id="odd names",
    ),
    pytest.param(lambda x: tf.reduce_sum(tf.multiply(*tf.split(x, 2, -1)), -1), (X,), id="split"),
    pytest.param(
        lambda f, x: tf.where(f, x[:, 0], x[:, 1]), (_spec("f", None, dtype=tf.bool), X), id="bool feature"
    ),
    pytest.param(
        lambda s, x: tf.where(tf.equal(s, "a"), x[:, 0], -x[:, 1]),
        (_spec("s", None, dtype=tf.string), X),
        id="string",
    ),
    pytest.param(
        lambda x: tf.where(x > 0.0, tf.math.log(x), x)[:, 0], (X,), id="NaN in the branch not taken"
    ),
]


def _features(specs: tuple[tf.TensorSpec, ...], rows: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    features = {}
    for spec in specs:
        shape = tuple(rows if d is None else d for d in spec.shape)
        if spec.dtype == tf.string:
            features[spec.name] = rng.choice(np.array([b"a", b"", b"\xff"], object), shape)
        elif spec.dtype.is_integer:
            features[spec.name] = rng.integers(0, 20, shape)
        elif spec.dtype == tf.bool:
            features[spec.name] = rng.random(shape) < 0.5
        else:
            features[spec.name] = rng.standard_normal(shape).astype(spec.dtype.as_numpy_dtype)
    return features


@pytest.mark.parametrize(("function", "specs"), MODELS)
def test_scores_are_tensorflows(function: Callable, specs: tuple[tf.TensorSpec, ...], tmp_path: Path) -> None:
    """1e-5 absolute, relative for values beyond 1: float32 sums in another order."""
    module = tf.Module()
    module.f = tf.function(lambda *features: {"y": function(*features)}, input_signature=list(specs))
    concrete = module.f.get_concrete_function()
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=concrete)
    convert(tmp_path / "m", tmp_path / "b")
    compile_bundle(tmp_path / "b", ["cpu"])
    model = Model.load(tmp_path / "b")
    for rows in (1, 3, 70):
        features = _features(specs, rows, seed=rows)
        (found,) = model.predict(features).values()
        (expected,) = models.tensorflow_outputs(tmp_path / "m", features).values()
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    model.close()
