"""TensorFlow functions as tf2onnx exports them, and lifted models as Flax runs them."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx
import tensorflow as tf
import tf2onnx.convert
from flax import nnx

from converters.einsum import keep_einsum
from converters.flax_writer import module_source
from converters.lifting.graph import OWN_DOMAIN

Function = Callable[..., tf.Tensor]


def export(function: Function, shapes: Sequence[tuple[int, ...]]) -> onnx.ModelProto:
    """The function of float32 tensors `x0`, `x1`, ... through tf2onnx, with ops that the converter keeps."""

    def keep(context: Any, node: Any, name: str, arguments: Any) -> Any:
        node.domain = OWN_DOMAIN
        return node

    def select(context: Any, node: Any, name: str, arguments: Any) -> Any:
        node.type = "Where"
        return node

    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    handlers = {name: (keep, []) for name in ("Erfc", "Log1p")}
    specs = [tf.TensorSpec(shape, tf.float32, f"x{i}") for i, shape in enumerate(shapes)]
    model, _ = tf2onnx.convert.from_function(
        tf.function(function),
        specs,
        opset=18,
        custom_op_handlers={**handlers, "SelectV2": (select, []), "Einsum": (keep_einsum, [])},
        extra_opset=[onnx.helper.make_opsetid(OWN_DOMAIN, 1)],
    )
    return model


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def flax_outputs(model: onnx.ModelProto, inputs: Sequence[np.ndarray]) -> np.ndarray:
    """The first output of the module that is written for a model."""
    source = module_source(model)
    namespace: dict[str, Any] = {"__name__": "model"}
    exec(compile(source.text, "model.py", "exec"), namespace)
    module = namespace["Model"](rngs=nnx.Rngs(0))
    for path, parameter in nnx.to_flat_state(nnx.state(module, nnx.Param)):
        parameter[...] = jnp.asarray(source.params[".".join(map(str, path))])
    return np.asarray(module(*map(jnp.asarray, inputs))[0])


def draw(shapes: Sequence[tuple[int, ...]], seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(0.0, 1.0, shape).astype(np.float32) for shape in shapes]
