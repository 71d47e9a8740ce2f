"""Writes models the ways teams do."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tests.zoo.weights import randomize, randomize_session

v1 = tf.compat.v1

Tensors = dict[str, Any]
"""Tensors of a request by input name, sparse and ragged ones among them."""

STRING, INT, FLOAT = tf.string, tf.int64, tf.float32


def spec(dtype: tf.DType, *shape: int | None) -> tf.TensorSpec:
    """The shape and dtype of an input; its name is the key it stands under."""
    return tf.TensorSpec(shape, dtype)


def save_module(module: Any, specs: Mapping[str, Any], directory: Path, *, seed: int) -> Path:
    """Saves `module(features) -> outputs` with one signature, its weights drawn after the first trace."""

    def serve(**features: Any) -> dict[str, tf.Tensor]:
        return module(features)

    named = {
        name: tf.TensorSpec(s.shape, s.dtype, name) if isinstance(s, tf.TensorSpec) else s
        for name, s in specs.items()
    }
    module.serve = tf.function(serve)
    concrete = module.serve.get_concrete_function(**named)
    randomize(module, seed)
    path = directory / "saved_model"
    tf.saved_model.save(module, str(path), signatures=concrete)
    return path


def export_keras(model: keras.Model, directory: Path, *, seed: int) -> Path:
    """Keras 3's own export: a SavedModel with the signature `serving_default`."""
    randomize(model, seed)
    path = directory / "saved_model"
    model.export(str(path), verbose=False)
    return path


@contextlib.contextmanager
def graph_session() -> Iterator[Any]:
    """A fresh graph and a session on it, as a TF1 export script has."""
    with tf.Graph().as_default(), v1.Session() as session:
        yield session


@contextlib.contextmanager
def control_flow_v1() -> Iterator[None]:
    """Loops and conditions inside become Switch/Merge/Enter/Exit, as graphs older than TensorFlow 2 have."""
    v1.disable_control_flow_v2()
    try:
        yield
    finally:
        v1.enable_control_flow_v2()


def initialize(session: Any, seed: int) -> None:
    """Tables, then every variable with a trained-like value."""
    session.run([v1.global_variables_initializer(), v1.tables_initializer()])
    randomize_session(session, seed)


def save_v1(session: Any, signatures: Mapping[str, Any], directory: Path, *, assets: bool = False) -> Path:
    """A TF1 SavedModel with collections, and its table initializer as the main op."""
    path = directory / "saved_model"
    builder = v1.saved_model.Builder(str(path))
    builder.add_meta_graph_and_variables(
        session,
        ["serve"],
        signature_def_map=dict(signatures),
        main_op=v1.tables_initializer(),
        assets_collection=v1.get_collection(v1.GraphKeys.ASSET_FILEPATHS) if assets else None,
        strip_default_attrs=True,
    )
    builder.save()
    return path


def predict_signature(inputs: Mapping[str, tf.Tensor], outputs: Mapping[str, tf.Tensor]) -> Any:
    """A signature of the Predict method."""
    return v1.saved_model.predict_signature_def(inputs=dict(inputs), outputs=dict(outputs))


def dense(x: tf.Tensor, units: int, name: str, activation: Callable[[Any], Any] | None = None) -> tf.Tensor:
    """`tf.layers.dense` as TF1 spelled it: MatMul, BiasAdd, activation in one variable scope."""
    with v1.variable_scope(name):
        kernel = v1.get_variable("kernel", [x.shape[-1], units])
        bias = v1.get_variable("bias", [units])
        y = tf.nn.bias_add(tf.matmul(x, kernel), bias)
        return y if activation is None else activation(y)
