"""Each pass on graphs that TensorFlow exports: the pattern is found and the values are TensorFlow's; what
only looks like it is left alone."""

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

from converters.lifting import lift
from tests.converters.lifting.exported import draw, export, flax_outputs, operators

_RNG = np.random.default_rng(7)
W = _RNG.normal(0, 0.3, (8, 6)).astype(np.float32)
B = _RNG.normal(0, 0.3, (6,)).astype(np.float32)
GAMMA = _RNG.normal(1, 0.3, (8,)).astype(np.float32)
BETA = _RNG.normal(0, 0.3, (8,)).astype(np.float32)
ALPHA = _RNG.normal(0.2, 0.3, (8,)).astype(np.float32)
MEAN = _RNG.normal(0, 0.3, (8,)).astype(np.float32)
VARIANCE = _RNG.uniform(0.5, 2.0, (8,)).astype(np.float32)
ROW, STEPS = (1, 8), (1, 5, 8)


def _layer_norm(x: tf.Tensor) -> tf.Tensor:
    mean, variance = tf.nn.moments(x, [-1], keepdims=True)
    return (x - mean) * tf.math.rsqrt(variance + 1e-5) * GAMMA + BETA


def _layer_norm_by_batch_norm(x: tf.Tensor) -> tf.Tensor:
    mean, variance = tf.nn.moments(x, [-1], keepdims=True)
    return tf.nn.batch_normalization(x, mean, variance, BETA, GAMMA, 1e-3)


def _keras_layer(layer: tf.keras.layers.Layer, shape: tuple[int, ...]) -> Callable[[tf.Tensor], tf.Tensor]:
    layer.build(shape)
    layer.set_weights([_RNG.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
    return layer


def _plain_norm(x: tf.Tensor) -> tf.Tensor:
    mean, variance = tf.nn.moments(x, [-1], keepdims=True)
    return (x - mean) / tf.sqrt(variance + 1e-6)


def _batch_norm(x: tf.Tensor) -> tf.Tensor:
    return tf.nn.batch_normalization(x, MEAN, VARIANCE, BETA, GAMMA, 1e-3)


def _batch_norm_of_linear(x: tf.Tensor) -> tf.Tensor:
    return _batch_norm(x @ np.concatenate([W, W[:, :2]], 1) + ALPHA)


def _dice(x: tf.Tensor) -> tf.Tensor:
    p = tf.sigmoid(tf.nn.batch_normalization(x, MEAN, VARIANCE, None, None, 1e-8))
    return ALPHA * (1.0 - p) * x + p * x


def _deep_interest_prelu(x: tf.Tensor) -> tf.Tensor:
    return tf.nn.relu(x) + ALPHA * (x - tf.abs(x)) * 0.5


def _softmax(x: tf.Tensor) -> tf.Tensor:
    e = tf.exp(x - tf.reduce_max(x, -1, keepdims=True))
    return e / tf.reduce_sum(e, -1, keepdims=True)


def _softmax_over_two_axes(x: tf.Tensor) -> tf.Tensor:
    e = tf.exp(x - tf.reduce_max(x, -1, keepdims=True))
    return e / tf.reduce_sum(e, 1, keepdims=True)


def _log_softmax(x: tf.Tensor) -> tf.Tensor:
    shifted = x - tf.reduce_max(x, -1, keepdims=True)
    return shifted - tf.math.log(tf.reduce_sum(tf.exp(shifted), -1, keepdims=True))


def _interactions(x: tf.Tensor) -> tf.Tensor:
    return 0.5 * (tf.square(tf.reduce_sum(x, 1)) - tf.reduce_sum(tf.square(x), 1))


def _pooled_interactions(x: tf.Tensor) -> tf.Tensor:
    return 0.5 * tf.reduce_sum(tf.reduce_sum(x, 1) ** 2 - tf.reduce_sum(x**2, 1), axis=1, keepdims=True)


def _heads(x: tf.Tensor) -> tf.Tensor:
    return tf.reshape(tf.reshape(x, [5, 8]) @ W, [1, 5, 3, 2]) + B.reshape(3, 2)


def _tanh_gelu(x: tf.Tensor) -> tf.Tensor:
    return 0.5 * x * (1.0 + tf.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _transposed_twice(x: tf.Tensor) -> tf.Tensor:
    return -tf.transpose(tf.transpose(x, [0, 2, 1]), [0, 2, 1])


FOUND = [
    pytest.param(_layer_norm, STEPS, {"LayerNormalization"}, id="layer norm by moments"),
    pytest.param(_layer_norm_by_batch_norm, ROW, {"LayerNormalization"}, id="layer norm by batch norm"),
    pytest.param(_plain_norm, STEPS, {"LayerNormalization"}, id="layer norm without weights"),
    pytest.param(
        _keras_layer(tf.keras.layers.LayerNormalization(epsilon=1e-6), STEPS),
        STEPS, {"LayerNormalization"}, id="Keras layer norm",
    ),
    pytest.param(
        _keras_layer(tf.keras.layers.LayerNormalization(scale=False, center=False), STEPS),
        STEPS, {"LayerNormalization"}, id="Keras layer norm without weights",
    ),
    pytest.param(_batch_norm, ROW, {"ScaleShift"}, id="batch norm"),
    pytest.param(_batch_norm_of_linear, ROW, {"Linear"}, id="batch norm in the linear before"),
    pytest.param(tf.nn.gelu, ROW, {"Gelu"}, id="GELU by erf"),
    pytest.param(lambda x: tf.nn.gelu(x, approximate=True), ROW, {"Gelu"}, id="GELU by tanh"),
    pytest.param(_tanh_gelu, ROW, {"Gelu"}, id="GELU by tanh, by hand"),
    pytest.param(
        lambda x: 0.5 * x * (1.0 + tf.math.erf(x / np.sqrt(2.0))), ROW, {"Gelu"}, id="GELU by hand"
    ),
    pytest.param(_keras_layer(tf.keras.layers.PReLU(), ROW), ROW, {"PRelu"}, id="Keras PReLU"),
    pytest.param(_deep_interest_prelu, ROW, {"PRelu"}, id="PReLU of the Deep Interest Network"),
    pytest.param(_dice, ROW, {"Dice"}, id="Dice"),
    pytest.param(tf.nn.silu, ROW, {"Swish"}, id="SiLU"),
    pytest.param(lambda x: x * tf.sigmoid(1.5 * x), ROW, {"Swish"}, id="Swish with a slope"),
    pytest.param(lambda x: x * tf.tanh(tf.math.softplus(x)), ROW, {"Mish"}, id="Mish"),
    pytest.param(lambda x: x * tf.nn.relu6(x + 3.0) / 6.0, ROW, {"HardSwish"}, id="hard swish"),
    pytest.param(lambda x: tf.math.log(1.0 + tf.exp(x)), ROW, {"Softplus"}, id="softplus by hand"),
    pytest.param(
        lambda x: tf.maximum(x, 0.0) + tf.math.log1p(tf.exp(-tf.abs(x))), ROW, {"Softplus"},
        id="stable softplus",
    ),
    pytest.param(_softmax, STEPS, {"Softmax"}, id="softmax by hand"),
    pytest.param(
        _softmax_over_two_axes, STEPS, {"ReduceMax", "Sub", "Softmax"}, id="softmax of differences"
    ),
    pytest.param(_log_softmax, ROW, {"LogSoftmax"}, id="log-softmax by hand"),
    pytest.param(lambda x: tf.math.l2_normalize(x, -1), STEPS, {"L2Normalize"}, id="L2 norm"),
    pytest.param(_interactions, STEPS, {"FactorizationMachine"}, id="factorization machine"),
    pytest.param(
        _pooled_interactions, STEPS, {"FactorizationMachine", "ReduceSum"}, id="pooled factorization machine"
    ),
    pytest.param(lambda x: x @ W + B, ROW, {"Linear"}, id="linear"),
    pytest.param(lambda x: tf.tensordot(x, W, 1) + B, STEPS, {"Linear"}, id="linear over steps"),
    pytest.param(_heads, STEPS, {"Linear", "Reshape"}, id="heads with a bias"),
    pytest.param(lambda x: tf.repeat(x[:, None], 5, 1), ROW, {"Unsqueeze", "Expand"}, id="repeat"),
    pytest.param(lambda x: tf.stack([x, -x], 1), ROW, {"Neg", "Stack"}, id="stack"),
    pytest.param(_transposed_twice, STEPS, {"Neg"}, id="transposes"),
    pytest.param(lambda x: -tf.squeeze(x[..., None], -1), STEPS, {"Neg"}, id="squeezed again"),
    pytest.param(lambda x: -x[:, 3], STEPS, {"Gather", "Neg"}, id="one step"),
    pytest.param(
        lambda x: tf.where(x > 0.0, x, -1e9 * tf.ones([1, 8])), ROW, {"Greater", "Where"}, id="masked"
    ),
]  # fmt: skip


@pytest.mark.parametrize(("function", "shape", "expected"), FOUND)
def test_found_and_equal(
    function: Callable[[tf.Tensor], tf.Tensor], shape: tuple[int, ...], expected: set[str]
) -> None:
    """2e-6 on values of up to about 10: the same float32 operations in another order."""
    model = export(function, [shape])
    lifted = lift(model)
    assert set(operators(lifted)) == expected
    for seed in range(3):
        (x,) = draw([shape], seed)
        np.testing.assert_allclose(flax_outputs(lifted, [x]), function(tf.constant(x)), rtol=1e-6, atol=2e-6)


def _epsilon_on_deviation(x: tf.Tensor) -> tf.Tensor:
    mean, variance = tf.nn.moments(x, [-1], keepdims=True)
    return (x - mean) / (tf.sqrt(variance) + 1e-5)


def _norm_over_steps(x: tf.Tensor) -> tf.Tensor:
    mean, variance = tf.nn.moments(x, [1], keepdims=True)
    return (x - mean) * tf.math.rsqrt(variance + 1e-5)


def _shared_deviation(x: tf.Tensor) -> tf.Tensor:
    mean, variance = tf.nn.moments(x, [-1], keepdims=True)
    std = tf.sqrt(variance + 1e-5)
    return (x - mean) / std + 0.1 * std


def _masked_softmax(x: tf.Tensor) -> tf.Tensor:
    e = tf.exp(x) * tf.cast(x > 0.0, tf.float32)
    return e / (tf.reduce_sum(e, -1, keepdims=True) + 1.0)


def _interactions_over_two_axes(x: tf.Tensor) -> tf.Tensor:
    return 0.5 * (tf.square(tf.reduce_sum(x, 1)) - tf.reduce_sum(tf.square(x), 2)[:, :1])


LEFT_ALONE = [
    pytest.param(_epsilon_on_deviation, STEPS, "LayerNormalization", id="epsilon outside the root"),
    pytest.param(_norm_over_steps, STEPS, "LayerNormalization", id="norm over another axis"),
    pytest.param(_shared_deviation, STEPS, "LayerNormalization", id="deviation read elsewhere"),
    pytest.param(
        lambda x: 0.5 * x * (1.0 + tf.math.erf(x / 1.5)), ROW, "Gelu", id="GELU with another constant"
    ),
    pytest.param(
        lambda x: 0.5 * x * (1.0 + tf.math.erf((x + 1.0) / np.sqrt(2.0))), ROW, "Gelu",
        id="erf of another value",
    ),
    pytest.param(lambda x: x * tf.sigmoid(x[:, ::-1]), ROW, "Swish", id="gate of another value"),
    pytest.param(lambda x: tf.nn.relu(x) + ALPHA * tf.abs(x), ROW, "PRelu", id="absolute value, not PReLU"),
    pytest.param(_masked_softmax, STEPS, "Softmax", id="softmax with a mask inside"),
    pytest.param(
        lambda x: x * tf.math.rsqrt(tf.reduce_sum(x * x, -1, keepdims=True) + 1e-12), STEPS, "L2Normalize",
        id="epsilon added to the norm",
    ),
    pytest.param(_interactions_over_two_axes, (1, 8, 8), "FactorizationMachine", id="sums over two axes"),
    pytest.param(lambda x: (x - MEAN) * GAMMA, ROW, "ScaleShift", id="centred before it is scaled"),
    pytest.param(lambda x: tf.math.log(1.5 + tf.exp(x)), ROW, "Softplus", id="log of another sum"),
    pytest.param(lambda x: tf.matmul(x, x, transpose_b=True), STEPS, "Linear", id="product of two values"),
]  # fmt: skip


@pytest.mark.parametrize(("function", "shape", "operator"), LEFT_ALONE)
def test_near_misses_are_left_alone(
    function: Callable[[tf.Tensor], tf.Tensor], shape: tuple[int, ...], operator: str
) -> None:
    lifted = lift(export(function, [shape]))
    assert operator not in operators(lifted)
    (x,) = draw([shape], 0)
    np.testing.assert_allclose(flax_outputs(lifted, [x]), function(tf.constant(x)), rtol=2e-6, atol=2e-6)


def test_a_linear_layer_that_others_read_keeps_its_batch_norm_apart() -> None:
    def function(x: tf.Tensor) -> tf.Tensor:
        hidden = x @ np.concatenate([W, W[:, :2]], 1) + ALPHA
        return _batch_norm(hidden) + hidden

    lifted = lift(export(function, [ROW]))
    assert {"Linear", "ScaleShift"} <= set(operators(lifted))


def test_lifting_keeps_names_and_shapes_of_inputs_and_outputs() -> None:
    model = export(lambda x: tf.nn.gelu(x @ W + B), [ROW])
    lifted = lift(model)
    assert lifted.graph.input == model.graph.input
    assert lifted.graph.output == model.graph.output
