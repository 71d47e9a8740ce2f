"""TensorFlow's own answers from a saved artifact: SavedModel signatures, sessions on graphs, Keras files."""

import fnmatch
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tests.zoo.model import Features

v1 = tf.compat.v1

Reference = Callable[[Path, Mapping[str, np.ndarray]], Features]


def signature(name: str = "serving_default", request_inputs: Sequence[str] = ()) -> Reference:
    """Calls a signature of a TF2 SavedModel. Inputs that match `request_inputs` are repeated on every row, as
    a client of TensorFlow Serving sends them."""

    def reference(path: Path, features: Mapping[str, np.ndarray]) -> Features:
        function = _loaded(path, path.stat().st_mtime_ns).signatures[name]
        specs = function.structured_input_signature[1]
        features = _repeated(features, request_inputs)
        tensors = {n: tf.constant(features[n], dtype=s.dtype) for n, s in specs.items()}
        return {n: value.numpy() for n, value in function(**tensors).items()}

    return reference


def session(name: str = "serving_default", request_inputs: Sequence[str] = ()) -> Reference:
    """Runs a signature of a TF1 SavedModel in a session, as TensorFlow Serving does."""

    def reference(path: Path, features: Mapping[str, np.ndarray]) -> Features:
        running, signatures = _session(path, path.stat().st_mtime_ns)
        called = signatures[name]
        inputs = {n: running.graph.get_tensor_by_name(t.name) for n, t in called.inputs.items()}
        outputs = {n: t.name for n, t in called.outputs.items()}
        return _run(running, inputs, outputs, _repeated(features, request_inputs))

    return reference


def frozen_graph(
    inputs: Sequence[str], outputs: Sequence[str], request_inputs: Sequence[str] = ()
) -> Reference:
    """Runs a frozen GraphDef between the named tensors (`name:0`)."""

    def reference(path: Path, features: Mapping[str, np.ndarray]) -> Features:
        running = _frozen(path, path.stat().st_mtime_ns)
        return _run(
            running, _by_operation(running, inputs), _named(outputs), _repeated(features, request_inputs)
        )

    return reference


def meta_graph(
    inputs: Sequence[str], outputs: Sequence[str], request_inputs: Sequence[str] = ()
) -> Reference:
    """Restores a checkpoint beside its meta graph (`model.ckpt-1000.meta`) and runs the named tensors."""

    def reference(path: Path, features: Mapping[str, np.ndarray]) -> Features:
        running = _checkpoint(path, path.stat().st_mtime_ns)
        return _run(
            running, _by_operation(running, inputs), _named(outputs), _repeated(features, request_inputs)
        )

    return reference


def keras_file(request_inputs: Sequence[str] = ()) -> Reference:
    """Loads a `.keras` or `.h5` file with Keras and calls the model in inference mode."""

    def reference(path: Path, features: Mapping[str, np.ndarray]) -> Features:
        model = _keras(path, path.stat().st_mtime_ns)
        features = _repeated(features, request_inputs)
        outputs = model({n: tf.constant(v) for n, v in features.items()}, training=False)
        return {n: value.numpy() for n, value in outputs.items()}

    return reference


def _repeated(features: Mapping[str, np.ndarray], request_inputs: Sequence[str]) -> Features:
    request = {n for n in features if any(fnmatch.fnmatchcase(n, p) for p in request_inputs)}
    if not request:
        return dict(features)
    rows = max(len(value) for name, value in features.items() if name not in request)
    return {n: np.repeat(v, rows, axis=0) if n in request else v for n, v in features.items()}


def _run(
    running: Any, inputs: Mapping[str, Any], outputs: Mapping[str, str], features: Mapping[str, np.ndarray]
) -> Features:
    return running.run(dict(outputs), {tensor: features[name] for name, tensor in inputs.items()})


def _by_operation(running: Any, tensors: Sequence[str]) -> dict[str, Any]:
    return {name.partition(":")[0]: running.graph.get_tensor_by_name(name) for name in tensors}


def _named(tensors: Sequence[str]) -> dict[str, str]:
    return {name.partition(":")[0]: name for name in tensors}


# The time of the last change is part of the key: a path may be written again at another width.


@functools.lru_cache(maxsize=8)
def _loaded(path: Path, changed: int) -> Any:
    return tf.saved_model.load(str(path))


@functools.lru_cache(maxsize=8)
def _keras(path: Path, changed: int) -> Any:
    return keras.saving.load_model(path, compile=False)


@functools.lru_cache(maxsize=8)
def _session(path: Path, changed: int) -> tuple[Any, Any]:
    running = v1.Session(graph=tf.Graph())
    with running.graph.as_default():
        graph = v1.saved_model.load(running, ["serve"], str(path))
    return running, graph.signature_def


@functools.lru_cache(maxsize=8)
def _frozen(path: Path, changed: int) -> Any:
    definition = v1.GraphDef.FromString(path.read_bytes())
    running = v1.Session(graph=tf.Graph())
    with running.graph.as_default():
        tf.import_graph_def(definition, name="")
    return running


@functools.lru_cache(maxsize=8)
def _checkpoint(path: Path, changed: int) -> Any:
    running = v1.Session(graph=tf.Graph())
    with running.graph.as_default():
        v1.train.import_meta_graph(str(path)).restore(running, str(path.with_suffix("")))
        running.run(v1.tables_initializer())
    return running
