# The jaxpr objects of JAX ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Scores of any choice of precision without compiling it: one program whose formats are an input.

Operands are rounded to the type that a code chooses and multiplied in float32. A product of two 16-bit
numbers is exact in float32, so what differs from a compiled module is the order of its float32 sums.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.extend import core

from jaxrank.manifest import PrecisionFormat
from mlir_pipeline.jaxpr import Read, evaluate
from mlir_pipeline.precision.cast import products, with_operands
from mlir_pipeline.precision.rules import FORMATS

_ROWS = 256
# XLA may otherwise drop a rounding whose result it widens again.
_OPTIONS = {"xla_allow_excess_precision": False}


class Emulator:
    """A dense program at any precision."""

    def __init__(self, closed: core.ClosedJaxpr, modules: Sequence[str], *, row_wise: bool) -> None:
        """`closed` is the flat jaxpr of `(request_block [1, R], candidate_block [n, C])` after its rewrites;
        `modules` are the paths that formats may be given for. XLA compiles a program for each number of
        candidates, and for one only where each row is scored by itself."""
        self._row_wise = row_wise
        self._modules = list(modules)
        by_equation = {id(p.equation): p for p in products(closed)}

        def run(codes: Any, *blocks: Any) -> list[Any]:
            def rule(eqn: core.JaxprEqn, read: Read) -> list[Any] | None:
                product = by_equation.get(id(eqn))
                if product is None:
                    return None
                code = codes[self._modules.index(product.module)]
                operands = [
                    _rounded(read(var), code, stored=weight is not None)
                    for var, weight in zip(eqn.invars, product.weights, strict=True)
                ]
                return [with_operands(eqn, operands)]

            return evaluate(closed.jaxpr, closed.consts, blocks, rule)

        avals = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in closed.jaxpr.invars]
        codes = jax.ShapeDtypeStruct((len(self._modules),), np.int32)
        exported = export.export(jax.jit(run), platforms=["cpu"])(codes, *avals)
        self._compiled = jax.jit(exported.call, compiler_options=_OPTIONS)

    def __call__(
        self, formats: Mapping[str, PrecisionFormat], request_block: np.ndarray, candidate_block: np.ndarray
    ) -> list[np.ndarray]:
        """The dense outputs, `[N, ...]` each; modules that `formats` leaves out are in float32."""
        codes = np.array([FORMATS.index(formats.get(m, "f32")) for m in self._modules], np.int32)
        if not self._row_wise:
            return [np.asarray(v) for v in self._run(codes, request_block, candidate_block)]
        rows = len(candidate_block)
        padded = np.pad(candidate_block, ((0, -rows % _ROWS), (0, 0)), mode="edge")
        parts = [
            self._run(codes, request_block, padded[start : start + _ROWS])
            for start in range(0, len(padded), _ROWS)
        ]
        return [np.concatenate(pieces)[:rows] for pieces in zip(*parts, strict=True)]

    def _run(self, *arguments: np.ndarray) -> Any:
        # On the CPU, wherever JAX would run it.
        return self._compiled(*jax.device_put(arguments, jax.local_devices(backend="cpu")[0]))


def _rounded(value: Any, code: Any, *, stored: bool) -> Any:
    """An operand in the type of a format; one that is no weight stays as it is where only weights are
    stored."""
    f16, bf16 = (jnp.asarray(value).astype(t).astype(jnp.float32) for t in (jnp.float16, jnp.bfloat16))
    to_f16, to_bf16 = code == FORMATS.index("f16"), code == FORMATS.index("bf16")
    if stored:
        to_f16 |= code == FORMATS.index("f16_storage")
        to_bf16 |= code == FORMATS.index("bf16_storage")
    return jnp.where(to_f16, f16, jnp.where(to_bf16, bf16, value))
