# The MLIR objects of IREE ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Ops on rows and over candidates, compiled once for any number of candidates and run by IREE: JAX's
numbers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import iree.runtime as rt
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from iree.compiler import ir
from jax import export, lax

from jaxrank import layers
from mlir_pipeline.dump import IrDump
from mlir_pipeline.iree import compile_module, parse_target
from mlir_pipeline.jaxpr import UNROLL_LIMIT, flat_jaxpr
from mlir_pipeline.lower import lower
from mlir_pipeline.passes.program import Program
from mlir_pipeline.passes.run import PASSES, run_passes
from mlir_pipeline.rewriting import rewritten
from mlir_pipeline.split import split

WEIGHTS = jnp.asarray(np.random.default_rng(5).standard_normal((6, 6)), jnp.float32)


def _index(v: jax.Array) -> jax.Array:
    return jnp.clip((v[0] * 3).astype(jnp.int32), 0, 5)


def _outer(v: jax.Array) -> jax.Array:
    """One reduction, read along two axes."""
    s = v.reshape(2, 3).sum(0)
    return (s + WEIGHTS[0, :3])[:, None] * (s + 1.0)[None]


def _long_scan(v: jax.Array) -> jax.Array:
    """Beyond the limit: stays a loop, which stacks its outputs."""
    steps = jnp.linspace(0.0, 1.0, UNROLL_LIMIT // 3)
    return lax.scan(lambda c, t: (jnp.tanh(c @ WEIGHTS * 0.1 + v * t), c[0]), v, steps)[1][-5:]


def _while(v: jax.Array) -> jax.Array:
    start = (jnp.float32(0), v)
    return lax.while_loop(
        lambda s: s[0] < jnp.abs(v[0]) * 5, lambda s: (s[0] + 1, s[1] @ WEIGHTS * 0.1), start
    )[1]


ON_ROWS: dict[str, Callable[[jax.Array], Any]] = {
    "gather by known indices": lambda v: v[np.array([0, 3, 3, 1])] * v[2],
    "gather by computed indices": lambda v: WEIGHTS[_index(v)] + v[_index(v)],
    "one hot": lambda v: jax.nn.one_hot(_index(v), 6),
    "top k with ties": lambda v: tuple(lax.top_k(jnp.round(v).astype(jnp.int32), 4)),
    "order of an order": lambda v: jnp.argsort(jnp.argsort(-v)),
    "argmax": jnp.argmax,
    "cumulative sum": jnp.cumsum,
    "cumulative maximum from the end": lambda v: lax.cummax(v, reverse=True),
    "convolution": lambda v: layers.conv(v[None, None], WEIGHTS[:2, None, :3])[0],
    "max pooling": lambda v: layers.max_pool(v[None, None], (3,), strides=(2,), pads=((1, 1),))[0, 0],
    "select by a branch": lambda v: lax.cond(v[0] > 0, lambda a: a * 2, lambda a: a - 1, v),
    "integers and bools": lambda v: ((v * 10).astype(jnp.int32) // 3, v > 0),
    "set at computed positions": lambda v: jnp.zeros(6).at[_index(v)].set(v[1]),
    "add at computed positions, some outside": lambda v: jnp.ones(6).at[(v * 3).astype(jnp.int32)].add(v),
    "dynamic slice": lambda v: lax.dynamic_slice(v, (_index(v),), (3,)),
    "a loop with a condition": _while,
    "a scan": lambda v: lax.scan(lambda c, t: (jnp.tanh(c @ WEIGHTS + t), c[0]), v, v[:, None])[1],
    "a long scan": _long_scan,
    "a reduction read along two axes": _outer,
}
OVER_CANDIDATES: dict[str, Callable[[jax.Array], Any]] = {
    "softmax": lambda x: jax.nn.softmax(x[:, 0]),
    "attention": lambda x: jax.nn.softmax(x @ x.T / 3) @ x,
    "standardized": lambda x: (x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-5),
    "twice as many rows": lambda x: jnp.concatenate([x, 2 * x], 0)[x.shape[0] :],
    "rows made of pieces": lambda x: (x.reshape(x.shape[0] * 3, 2) * 2).reshape(x.shape[0] * 2, 3).sum(0),
    "n x n flattened": lambda x: (x @ x.T).reshape(-1).reshape(x.shape[0], x.shape[0]).sum(1),
    "the row before": lambda x: x - jnp.concatenate([x[:1], x[:-1]], 0),
    "padded": lambda x: jnp.pad(x, ((1, 1), (0, 0)))[1:-1],
    "cumulative sum": lambda x: jnp.cumsum(x, 0),
    "cumulative sum from the end": lambda x: lax.cumsum(x[:, 0], reverse=True),
    "cumulative maximum": lambda x: lax.cummax(x, 0),
    "sorted": lambda x: jnp.sort(x[:, 0]),
    "order with ties": lambda x: jnp.argsort(-jnp.round(x[:, 0])),
    "rank of each": lambda x: jnp.argsort(jnp.argsort(-x[:, 0])),
    "rank of each in its row": lambda x: jnp.argsort(jnp.argsort(-x, axis=1), axis=1),
    "top k of all": lambda x: tuple(lax.top_k(jnp.floor(x[:, 0]), x.shape[0])),
    "top k beside padding": lambda x: tuple(lax.top_k(jnp.concatenate([x[:, 0], jnp.full(4, -9.0)]), 4)),
    "rows by score": lambda x: x[jnp.argsort(-x[:, 0])],
    "places by rank": lambda x: (
        jnp.zeros(x.shape[0], jnp.int32).at[jnp.argsort(x[:, 0])].set(jnp.arange(x.shape[0]))
    ),
    "sums by group, some outside": lambda x: jax.ops.segment_sum(x, (x[:, 0] * 5).astype(jnp.int32), 4),
    "pooled": lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (3, 1), (1, 1), "SAME"),
    "every second": lambda x: x[::2],
    "the number of candidates": lambda x: x / x.shape[0],
    "one branch for all": lambda x: lax.cond(x.sum() > 0, lambda a: a * 2, lambda a: a - 1, x),
}


def _compiled(
    function: Callable[[jax.Array], Any], directory: Path
) -> Callable[[np.ndarray], list[np.ndarray]]:
    (count,) = export.symbolic_shape("n")
    shapes = (jax.ShapeDtypeStruct((1, 1), np.float32), jax.ShapeDtypeStruct((count, 6), np.float32))
    towers = split(rewritten(flat_jaxpr(lambda request, block: function(block), *shapes)))
    program = Program(lower(towers, ir.Context()))
    # Without weights as parameters: there is no archive to load them from.
    run_passes(program, [p for p in PASSES if p.name != "externalize-weights"], IrDump(None))
    compile_module(program.text(), parse_target("cpu"), directory / "dense.vmfb")
    instance = rt.VmInstance()
    device = rt.get_driver("local-sync").create_default_device()
    program = rt.VmModule.mmap(instance, str(directory / "dense.vmfb"))
    context = rt.VmContext(instance, modules=[rt.create_hal_module(instance, device), program])
    tower = program.lookup_function("candidate_tower")
    assert tower is not None
    run = rt.FunctionInvoker(context, device, tower)

    def call(block: np.ndarray) -> list[np.ndarray]:
        found: Any = run(block)
        return [np.array(r.to_host()) for r in (found if isinstance(found, (list, tuple)) else [found])]

    return call


@pytest.mark.parametrize(
    "function",
    [
        *(pytest.param(jax.vmap(f), id=f"rows: {name}") for name, f in ON_ROWS.items()),
        *(pytest.param(f, id=f"candidates: {name}") for name, f in OVER_CANDIDATES.items()),
    ],
)
def test_numbers_are_jaxs(function: Callable[[jax.Array], Any], tmp_path: Path) -> None:
    """1e-5, relative beyond 1: sums in another order."""
    run = _compiled(function, tmp_path)
    for rows in (1, 7, 300, 7):
        block = np.random.default_rng(rows).standard_normal((rows, 6)).astype(np.float32)
        expected = jax.tree.leaves(jax.jit(function)(block))
        for found, value in zip(run(block), map(np.asarray, expected), strict=True):
            assert (found.shape, found.dtype) == (value.shape, value.dtype)
            np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-5)
