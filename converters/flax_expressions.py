"""Expressions for the operators that lifting makes and ONNX's table does not have, in the table's form: a
function of operands and attributes."""

from collections.abc import Callable

import numpy as np

from converters.onnx_ops import OPS, OnnxOp, Operand


def _stack(*xs: Operand, axis: int) -> str:
    return f"stack([{', '.join(map(str, xs))}], axis={axis})"


def _factorization_machine(x: Operand, *, axis: int, keepdims: int) -> str:
    return f"factorization_machine({x}, axis={axis}{', keepdims=True' if keepdims else ''})"


def _l2_normalize(x: Operand, *, axis: int, epsilon: float) -> str:
    return f"l2_normalize({x}, axis={axis}, epsilon={np.float32(epsilon)})"


def _unsqueeze(x: Operand, axes: np.ndarray) -> str:
    """One axis as a number."""
    if x.known_shape is None:
        return OPS["Unsqueeze"].function(x, axes)
    found = [int(a) % (len(x.shape) + axes.size) for a in axes.reshape(-1)]
    return f"jnp.expand_dims({x}, {found[0] if len(found) == 1 else tuple(found)})"


_OWN: dict[str, Callable[..., str]] = {
    "Unsqueeze": _unsqueeze,
    "Stack": _stack,
    "FactorizationMachine": _factorization_machine,
    "L2Normalize": _l2_normalize,
}


def operator(op: str) -> OnnxOp | None:
    """The expression of an operator: lifting's own, or the ONNX table's."""
    own = _OWN.get(op)
    return OPS.get(op) if own is None else OnnxOp(own, static=(1,) if op == "Unsqueeze" else ())
