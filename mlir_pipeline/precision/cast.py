# The jaxpr objects of JAX ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Casts the matrix products of chosen modules to a smaller type.

Rule, for a product of float32 operands in a module whose format is f16 (bf16 likewise):

    dot(a, b)  =  dot(f16(a), f16(b)) with sums and result in float32

and for f16_storage, where b is a weight:

    dot(a, b)  =  dot(a, f32(stored f16(b)))

Requires: a flat jaxpr after every rewrite that looks for products. Ensures: weights are constants of the
small type. Everything between products stays in float32: softmax, norms, sums, biases.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from jaxrank.manifest import PrecisionFormat
from mlir_pipeline.errors import CompileError
from mlir_pipeline.jaxpr import Read, module_path, retrace
from mlir_pipeline.precision.rules import BODY

SMALL_TYPES: Mapping[PrecisionFormat, Any] = {
    "f16": jnp.float16,
    "bf16": jnp.bfloat16,
    "f16_storage": jnp.float16,
    "bf16_storage": jnp.bfloat16,
}
_PRODUCTS = ("dot_general", "conv_general_dilated")
# Repeats or rearranges a weight without changing it: the weight is cast before.
_COPIES = ("broadcast_in_dim", "reshape", "transpose", "squeeze", "expand_dims")


@dataclass(frozen=True)
class Product:
    """A matrix product or convolution of a flat jaxpr."""

    equation: core.JaxprEqn
    module: str
    """Path of the module that made it, `BODY` for the model's own."""
    weights: tuple[Any, Any]
    """For each operand, the constant that it is a copy of, or None."""

    @property
    def flops(self) -> int:
        """Floating-point operations, two for a multiply-add, with the number of candidates taken as 1."""
        lhs, rhs = (_shape(v) for v in self.equation.invars)
        result = math.prod(_shape(self.equation.outvars[0]))
        if self.equation.primitive.name == "dot_general":
            (contract, _), _ = self.equation.params["dimension_numbers"]
            return 2 * result * math.prod(lhs[d] for d in contract)
        output_features = rhs[self.equation.params["dimension_numbers"].rhs_spec[0]]
        return 2 * result * math.prod(rhs) // max(output_features, 1)

    @property
    def weight_elements(self) -> int:
        return sum(math.prod(np.shape(w)) for w in self.weights if w is not None)


def products(closed: core.ClosedJaxpr) -> list[Product]:
    """The float32 products of a flat jaxpr, in order."""
    producer = {v: eqn for eqn in closed.jaxpr.eqns for v in eqn.outvars}
    constants = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))

    def weight(var: Any) -> Any:
        if isinstance(var, core.Literal) or var in constants:
            return None if isinstance(var, core.Literal) else constants[var]
        eqn = producer.get(var)
        return weight(eqn.invars[0]) if eqn is not None and eqn.primitive.name in _COPIES else None

    found = []
    for eqn in closed.jaxpr.eqns:
        if eqn.primitive.name in _PRODUCTS and all(v.aval.dtype == np.float32 for v in eqn.invars):
            lhs, rhs = eqn.invars
            found.append(Product(eqn, module_path(eqn) or BODY, (weight(lhs), weight(rhs))))
    return found


def modules_of(found: list[Product]) -> list[str]:
    """Paths of the modules that have products, those with the most FLOPs first."""
    flops: dict[str, int] = {}
    for product in found:
        flops[product.module] = flops.get(product.module, 0) + product.flops
    return sorted(flops, key=lambda path: -flops[path])


def cast_products(closed: core.ClosedJaxpr, formats: Mapping[str, PrecisionFormat]) -> core.ClosedJaxpr:
    """Applies each module's format to its products.

    Raises `CompileError` naming the module whose weights a float16 cannot hold.
    """
    by_equation = {id(p.equation): p for p in products(closed)}
    producer = {v: eqn for eqn in closed.jaxpr.eqns for v in eqn.outvars}
    stored: dict[tuple[int, Any], np.ndarray] = {}
    narrowed: dict[tuple[Any, Any], Any] = {}

    def small_weight(value: Any, dtype: Any, module: str) -> np.ndarray:
        key = (id(value), dtype)
        if key not in stored:
            stored[key] = _small_weight(np.asarray(value), dtype, module)
        return stored[key]

    def cast(var: Any, weight: Any, dtype: Any, module: str, read: Read) -> Any:
        """An operand in the small type; a copy of a weight is made again from the small weight."""
        if weight is None:
            if (var, dtype) not in narrowed:
                narrowed[var, dtype] = lax.convert_element_type(read(var), dtype)
            return narrowed[var, dtype]
        eqn = producer.get(var)
        if eqn is None:
            return small_weight(weight, dtype, module)
        return eqn.primitive.bind(cast(eqn.invars[0], weight, dtype, module, read), **eqn.params)

    def rule(eqn: core.JaxprEqn, read: Read) -> list[Any] | None:
        product = by_equation.get(id(eqn))
        if product is None or formats.get(product.module, "f32") == "f32":
            return None
        chosen = formats[product.module]
        dtype = SMALL_TYPES[chosen]
        operands = []
        for var, weight in zip(eqn.invars, product.weights, strict=True):
            if not chosen.endswith("_storage"):
                operands.append(cast(var, weight, dtype, product.module, read))
            elif weight is not None:
                small = cast(var, weight, dtype, product.module, read)
                operands.append(lax.convert_element_type(small, jnp.float32))
            else:
                operands.append(read(var))
        return [with_operands(eqn, operands)]

    return retrace(closed, rule)


def with_operands(eqn: core.JaxprEqn, operands: list[Any]) -> Any:
    """A product's equation on other operands, of any type, with sums and result in float32."""
    return eqn.primitive.bind(*operands, **{**eqn.params, "preferred_element_type": np.dtype(np.float32)})


def _small_weight(value: np.ndarray, dtype: Any, module: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        small = value.astype(dtype)
    lost = np.isfinite(value) & ~np.isfinite(small.astype(np.float32))
    if lost.any():
        raise CompileError(
            f"module {module!r} has {int(lost.sum())} weights beyond {float(jnp.finfo(dtype).max):g}, "
            "the largest "
            f"{np.dtype(dtype).name} (up to {np.abs(value[lost]).max():g}); choose bf16 or f32 for it"
        )
    return small


def _shape(var: Any) -> tuple[int, ...]:
    return tuple(d if isinstance(d, int) else 1 for d in var.aval.shape)
