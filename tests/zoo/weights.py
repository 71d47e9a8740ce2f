"""Weights as training leaves them: no constants, no saturated outputs, batch norm statistics that matter."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf


def trained(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """A float32 value for a variable, drawn by what its name says it is.

    Matrices keep the variance of what goes through them about 1.4-fold; tables have entries of about 0.4.
    """
    name = name.lower()
    if "variance" in name:
        value = rng.uniform(0.4, 1.8, shape)
    elif "mean" in name:
        value = rng.normal(0.0, 0.3, shape)
    elif "gamma" in name:
        value = rng.uniform(0.6, 1.4, shape)
    elif "alpha" in name:
        value = rng.uniform(0.05, 0.4, shape)
    elif "embedding" in name or "table" in name:
        value = rng.normal(0.0, 0.4, shape)
    elif len(shape) >= 2:
        value = rng.normal(0.0, np.sqrt(1.4 / np.prod(shape[:-1])), shape)
    else:
        value = rng.normal(0.0, 0.1, shape)
    return value.astype(np.float32)


def randomize(owner: Any, seed: int) -> None:
    """Gives every float variable under a module, layer or model a trained-like value."""
    rng = np.random.default_rng(seed)
    seen: set[int] = set()
    for name, variable in _variables("", owner, seen):
        if variable.dtype in (tf.float32, "float32"):
            variable.assign(trained(name, tuple(variable.shape), rng))


def _variables(name: str, owner: Any, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Variables in the order of the attributes, so that one seed always means the same model."""
    if id(owner) in seen:
        return
    seen.add(id(owner))
    if isinstance(owner, keras.layers.Layer):
        for weight in owner.weights:
            yield weight.path, weight
    elif isinstance(owner, tf.Variable):
        yield f"{name}/{owner.name}", owner
    elif isinstance(owner, tf.Module):
        for key, value in vars(owner).items():
            if not key.startswith("_"):
                yield from _variables(f"{name}/{key}", value, seen)
    elif isinstance(owner, dict):
        for key in list(owner):
            yield from _variables(f"{name}/{key}", owner[key], seen)
    elif isinstance(owner, list | tuple):
        for value in owner:
            yield from _variables(name, value, seen)


def randomize_session(session: Any, seed: int) -> None:
    """The same for every global variable of a graph; each part of a partitioned variable is one of them."""
    rng = np.random.default_rng(seed)
    for variable in tf.compat.v1.global_variables():
        if variable.dtype.base_dtype == tf.float32:
            variable.load(trained(variable.name, tuple(variable.shape), rng), session)
