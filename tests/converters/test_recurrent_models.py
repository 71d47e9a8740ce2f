"""Recurrent layers and control flow of real TensorFlow graphs: through tf2onnx to a Flax module, with
TensorFlow's outputs on fresh inputs."""

from collections.abc import Callable

import jax
import keras
import numpy as np
import onnx
import pytest
import tensorflow as tf
import tf2onnx
from flax import nnx

from converters.flax_writer import module_source

STEPS, FEATURES, UNITS = 6, 5, 4


def _onnx(function: Callable, specs: list[tf.TensorSpec]) -> onnx.ModelProto:
    model, _ = tf2onnx.convert.from_function(tf.function(function, input_signature=specs), specs, opset=18)
    return model


def _module(model: onnx.ModelProto) -> tuple[nnx.Module, str]:
    source = module_source(model)
    namespace: dict = {"__name__": "model"}
    exec(compile(source.text, "model.py", "exec"), namespace)
    module = namespace["Model"](rngs=nnx.Rngs(0))
    for name, value in source.params.items():
        owner, _, attribute = name.rpartition(".")
        getattr(getattr(module, owner) if owner else module, attribute).set_value(value)
    return module, source.text


def _features(specs: list[tf.TensorSpec], seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal([int(d or 1) for d in s.shape]).astype(np.float32) for s in specs]


def _spec(*shape: int) -> tf.TensorSpec:
    return tf.TensorSpec(shape, tf.float32)


SEQUENCE = _spec(1, STEPS, FEATURES)


def _layer(make: Callable[[], keras.Layer]) -> Callable:
    layer = make()
    layer.build((1, STEPS, FEATURES))
    rng = np.random.default_rng(9)
    layer.set_weights([rng.standard_normal(w.shape).astype(np.float32) * 0.5 for w in layer.get_weights()])
    return lambda x: layer(x)


def _countdown(x: tf.Tensor) -> tf.Tensor:
    """Trips that depend on a value."""
    return tf.while_loop(
        lambda i, y: tf.reduce_sum(tf.abs(y)) > 0.5, lambda i, y: (i + 1, y * 0.7), (tf.constant(0), x)
    )[1]


def _counted(x: tf.Tensor) -> tf.Tensor:
    return tf.while_loop(
        lambda i, y: i < 4, lambda i, y: (i + 1, tf.tanh(y) + tf.cast(i, tf.float32)), (tf.constant(0), x)
    )[1]


def _running_state(x: tf.Tensor) -> tf.Tensor:
    steps = tf.transpose(x, [1, 0, 2])
    return tf.scan(lambda h, now: tf.tanh(h + now), steps, initializer=tf.zeros([1, FEATURES]))


def _captured(x: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
    """The body reads a value from around it."""
    return tf.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, tf.tanh(y @ w)), (tf.constant(0), x))[1]


def _condition(x: tf.Tensor) -> tf.Tensor:
    return tf.cond(tf.reduce_sum(x) > 0.0, lambda: x * 2.0, lambda: tf.exp(x) - 1.0)


def _steps(values: Callable) -> Callable:
    """A loop with outputs for each trip, stacked by a TensorArray."""

    def function(x: tf.Tensor) -> tf.Tensor:
        array = tf.TensorArray(tf.float32, size=STEPS, element_shape=[1, FEATURES])
        _, _, array = tf.while_loop(
            lambda i, h, a: i < STEPS,
            lambda i, h, a: (i + 1, values(h, x[:, i]), a.write(i, values(h, x[:, i]))),
            (tf.constant(0), tf.zeros([1, FEATURES]), array),
        )
        return array.stack()

    return function


MODELS = [
    pytest.param(_layer(lambda: keras.layers.LSTM(UNITS)), [SEQUENCE], id="LSTM"),
    pytest.param(
        _layer(lambda: keras.layers.LSTM(UNITS, return_sequences=True)), [SEQUENCE], id="LSTM sequence"
    ),
    pytest.param(
        _layer(lambda: keras.layers.LSTM(UNITS, go_backwards=True)), [SEQUENCE], id="LSTM backwards"
    ),
    pytest.param(_layer(lambda: keras.layers.GRU(UNITS)), [SEQUENCE], id="GRU"),
    pytest.param(
        _layer(lambda: keras.layers.GRU(UNITS, reset_after=False)), [SEQUENCE], id="GRU reset before"
    ),
    pytest.param(
        _layer(lambda: keras.layers.GRU(UNITS, return_sequences=True)), [SEQUENCE], id="GRU sequence"
    ),
    pytest.param(_layer(lambda: keras.layers.SimpleRNN(UNITS)), [SEQUENCE], id="SimpleRNN"),
    pytest.param(
        _layer(lambda: keras.layers.Bidirectional(keras.layers.LSTM(UNITS, return_sequences=True))),
        [SEQUENCE],
        id="bidirectional LSTM",
    ),
    pytest.param(_countdown, [_spec(1, FEATURES)], id="while with a condition on values"),
    pytest.param(_counted, [_spec(1, FEATURES)], id="while with a count"),
    pytest.param(
        _captured, [_spec(1, FEATURES), _spec(FEATURES, FEATURES)], id="body with a value from outside"
    ),
    pytest.param(_running_state, [SEQUENCE], id="scan"),
    pytest.param(_steps(lambda h, now: tf.tanh(h + now)), [SEQUENCE], id="loop with a TensorArray"),
    pytest.param(
        lambda x: tf.map_fn(lambda step: tf.nn.softmax(step * 2.0), x[0]), [SEQUENCE], id="map over steps"
    ),
    pytest.param(_condition, [_spec(1, FEATURES)], id="cond"),
]


@pytest.mark.parametrize(("function", "specs"), MODELS)
def test_outputs_are_tensorflows(function: Callable, specs: list[tf.TensorSpec]) -> None:
    """1e-5: float32 sums in another order, over six steps."""
    module, text = _module(_onnx(function, specs))
    for seed in range(3):
        features = _features(specs, seed)
        (found,) = jax.jit(module)(*features)  # type: ignore[operator]
        expected = function(*map(tf.constant, features))
        assert found.shape == tuple(expected.shape), text
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5, err_msg=text)


@pytest.mark.parametrize(("function", "specs"), [p for p in MODELS if p.values[1] == [SEQUENCE]])
def test_rows_under_vmap(function: Callable, specs: list[tf.TensorSpec]) -> None:
    """Written for one row, run for many: what the compiler does with candidates."""
    module, text = _module(_onnx(function, specs))
    (rows,) = _features([_spec(7, 1, STEPS, FEATURES)], seed=3)
    (found,) = jax.vmap(module)(rows)  # type: ignore[arg-type]
    for row, result in zip(rows, found, strict=True):
        np.testing.assert_allclose(result, function(tf.constant(row)), rtol=1e-5, atol=1e-5, err_msg=text)


@pytest.mark.parametrize("make", [keras.layers.LSTM, keras.layers.GRU, keras.layers.SimpleRNN])
def test_recurrent_layers_are_counted_loops_of_linear_layers(make: Callable) -> None:
    """The number of steps is found, the counter is the loop's index, and weights are layers, not state."""
    _, text = _module(_onnx(_layer(lambda: make(UNITS)), [SEQUENCE]))
    assert f"layers.counted_loop(step, {STEPS}, " in text
    assert "nnx.Linear(" in text
    assert "state_2" not in text
