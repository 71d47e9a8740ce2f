"""Lowerings that a user supplies for ops that we do not know.

A plugin is a Python module with a dict `LOWERINGS`: for each op type a function that expresses the op in
TensorFlow ops that we know. It runs while the graph is folded, so what it builds is placed, converted and
certified like any other part of the graph; nothing of it is in the bundle.
"""

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from converters.errors import ConversionError

Lowering = Callable[[Mapping[str, Any], Sequence[Any]], Sequence[Any]]
"""`(attributes, inputs) -> outputs`: attributes as Python values, symbolic tensors in and out."""
Lowerings = Mapping[str, Lowering]


def load_plugins(modules: Sequence[str]) -> dict[str, Lowering]:
    """The lowerings of plugin modules, later ones first. Modules are found as `python -m` finds them.

    Raises `ConversionError` for a module that does not load or has no `LOWERINGS`.
    """
    found: dict[str, Lowering] = {}
    for name in modules:
        sys.path.insert(0, str(Path.cwd()))
        try:
            module = importlib.import_module(name)
        except Exception as error:  # a user's module raises what it likes
            raise ConversionError(f"--op-plugin {name}: the module does not load: {error!r}") from error
        finally:
            sys.path.pop(0)
        lowerings = getattr(module, "LOWERINGS", None)
        if not isinstance(lowerings, dict) or not all(callable(f) for f in lowerings.values()):
            raise ConversionError(
                f"--op-plugin {name}: the module needs a dict LOWERINGS of functions by TensorFlow op type"
            )
        found.update({op: _checked(name, op, lowering) for op, lowering in lowerings.items()})
    return found


def _checked(module: str, op: str, lowering: Lowering) -> Lowering:
    """The lowering, with its own errors as messages."""

    def run(attributes: Mapping[str, Any], inputs: Sequence[Any]) -> Sequence[Any]:
        try:
            made = list(lowering(attributes, inputs))
        except Exception as error:  # a user's function raises what it likes
            raise ConversionError(f"--op-plugin {module}: its lowering of {op} fails: {error!r}") from error
        for value in made:
            if not isinstance(value, tf.Tensor):
                raise ConversionError(
                    f"--op-plugin {module}: its lowering of {op} gives a {type(value).__name__}; it must "
                    "give a list of the op's outputs as tensors"
                )
        return made

    return run
