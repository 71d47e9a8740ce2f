"""Rewrites, split and lowering on jaxprs: the same numbers, fewer FLOPs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from iree.compiler import ir
from jax import export
from jax.extend import core

from jaxrank.flax_module import load_flax
from mlir_pipeline.dump import IrDump
from mlir_pipeline.flops import dot_flops
from mlir_pipeline.jaxpr import flat_jaxpr, module_path
from mlir_pipeline.lower import lower
from mlir_pipeline.passes import drop_shape_assertions, remove_dead_code
from mlir_pipeline.passes.externalize_weights import externalize_weights
from mlir_pipeline.passes.legalize.legalize_dynamism import legalize_dynamism
from mlir_pipeline.passes.program import Program
from mlir_pipeline.passes.run import run_passes
from mlir_pipeline.rewrites.hoist_dots import hoist_dots
from mlir_pipeline.rewrites.merge_broadcasts import merge_broadcasts
from mlir_pipeline.rewriting import trace
from mlir_pipeline.split import split

STEPS, DIM, HIDDEN = 5, 4, 8


def _weights(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def _attention(request: jax.Array, candidate: jax.Array) -> jax.Array:
    """Target attention of one candidate row over the request's steps, as models write it."""
    keys = request.reshape(1, STEPS, DIM)
    query = jnp.tile(candidate[:, None], (1, STEPS, 1))
    pairs = jnp.concatenate([query, keys, query - keys, query * keys], -1)
    hidden = jax.nn.relu(pairs @ _weights(4 * DIM, HIDDEN) + _weights(HIDDEN, seed=1))
    weights = jax.nn.softmax((hidden @ _weights(HIDDEN, 1, seed=2))[..., 0], -1)
    interest = jnp.einsum("nt,ntd->nd", weights, keys)
    return jnp.concatenate([interest, candidate, keys.mean(1)], -1) @ _weights(3 * DIM, 3, seed=3)


def _rows(function: Callable[..., jax.Array]) -> Callable[..., Any]:
    return lambda request, block: jax.vmap(lambda row: function(request, row[None])[0])(block)


def _jaxpr(function: Callable[..., jax.Array], count: Any, width: int = DIM) -> core.ClosedJaxpr:
    shape = jax.ShapeDtypeStruct
    return flat_jaxpr(
        _rows(function), shape((1, STEPS * DIM), jnp.float32), shape((count, width), jnp.float32)
    )


def _inputs(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return (
        rng.standard_normal((1, STEPS * DIM)).astype(np.float32),
        rng.standard_normal((rows, DIM)).astype(np.float32),
    )


@pytest.mark.parametrize("rewrite", [merge_broadcasts, hoist_dots, lambda c: hoist_dots(merge_broadcasts(c))])
@pytest.mark.parametrize("seed", range(3))
def test_rewrites_keep_the_numbers(rewrite: Callable, seed: int) -> None:
    """1e-5 of values around 10: sums in another order."""
    request, block = _inputs(6, seed)
    expected = _rows(_attention)(request, block)
    (found,) = core.jaxpr_as_fun(rewrite(_jaxpr(_attention, 6)))(request, block)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_attention_keeps_a_quarter_of_its_products() -> None:
    """Of `[q, k, q-k, q*k] @ W` only `(q*k) @ W_4` and `q @ (W_1 + W_3)` are left for each candidate."""
    (count,) = export.symbolic_shape("n")
    closed = _jaxpr(_attention, count)
    before = dot_flops(split(closed).candidate)
    after = split(hoist_dots(merge_broadcasts(closed)))
    pairs = 2 * STEPS * DIM * HIDDEN
    assert dot_flops(after.candidate) <= before - 3 * pairs + 2 * 2 * DIM * HIDDEN
    assert dot_flops(after.request) > 0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from("qkdmp"), min_size=1, max_size=5), st.integers(0, 1000))
def test_any_concat_of_request_and_candidate_parts(parts: list[str], seed: int) -> None:
    """Random concatenations of query, keys, difference, product and sum against one random matrix."""

    def model(request: jax.Array, candidate: jax.Array) -> jax.Array:
        keys = request.reshape(1, STEPS, DIM)
        query = jnp.broadcast_to(candidate[:, None], (1, STEPS, DIM))
        made = {"q": query, "k": keys, "d": query - keys, "m": query * keys, "p": keys + query}
        return (jnp.concatenate([made[p] for p in parts], -1) @ _weights(len(parts) * DIM, 2, seed=seed)).sum(
            1
        )

    request, block = _inputs(3, seed)
    closed = _jaxpr(model, 3)
    rewritten = hoist_dots(merge_broadcasts(closed))
    np.testing.assert_allclose(
        core.jaxpr_as_fun(rewritten)(request, block)[0], _rows(model)(request, block), rtol=1e-4, atol=1e-4
    )
    assert dot_flops(split(rewritten).candidate) <= dot_flops(split(closed).candidate)


def test_a_difference_of_large_numbers_is_not_taken_apart() -> None:
    """`(now - published) @ W`: each product alone is a million times the difference that matters."""

    def recency(request: jax.Array, candidate: jax.Array) -> jax.Array:
        return (request[:, :DIM] - candidate) @ _weights(DIM, 2)

    rng = np.random.default_rng(0)
    request = (480000 + rng.random((1, STEPS * DIM))).astype(np.float32)
    block = (480000 + rng.random((5, DIM))).astype(np.float32)
    (found,) = core.jaxpr_as_fun(hoist_dots(merge_broadcasts(_jaxpr(recency, 5))))(request, block)
    np.testing.assert_allclose(found, _rows(recency)(request, block), rtol=0, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 4, 9])
def test_towers_compose_to_the_whole(rows: int) -> None:
    request, block = _inputs(rows, rows)
    towers = split(hoist_dots(merge_broadcasts(_jaxpr(_attention, rows))))
    state = core.jaxpr_as_fun(towers.request)(request)
    assert [s.shape for s in state] == [a.shape for a in towers.state]
    (found,) = core.jaxpr_as_fun(towers.candidate)(*state, block)
    np.testing.assert_allclose(found, _rows(_attention)(request, block), rtol=1e-5, atol=1e-5)


def test_a_model_without_a_request_side_has_no_state() -> None:
    closed = _jaxpr(lambda request, candidate: candidate @ _weights(DIM, 2), 3)
    assert split(closed).state == ()


def test_state_holds_no_repeated_rows(ranker_bundle: Path) -> None:
    """A request value that is only repeated for every candidate crosses as it was before."""
    for aval in trace(ranker_bundle).state:
        assert all(isinstance(d, int) for d in aval.shape)


def _lowered(function: Callable[..., jax.Array]) -> ir.Module:
    (count,) = export.symbolic_shape("n")
    return lower(split(hoist_dots(merge_broadcasts(_jaxpr(function, count)))), ir.Context())


def test_legalized_module_has_no_dynamic_stablehlo() -> None:
    module = _lowered(_attention)
    run_passes(Program(module), [drop_shape_assertions.PASS, remove_dead_code.PASS], IrDump(None))
    assert "dynamic_broadcast_in_dim" in str(module) and "shape_assertion" not in str(module)
    changed = [legalize_dynamism(op.operation) for op in module.body.operations]
    assert changed == [False, True]  # the request tower is static
    assert module.operation.verify()
    text = str(module.body.operations[1])
    assert "stablehlo.dynamic" not in text and "get_dimension_size" not in text and "tensor<i32>" not in text
    assert text.count("tensor.dim ") == 1


def test_weights_become_shared_parameters() -> None:
    module = _lowered(_attention)
    weights = externalize_weights(module, minimum_bytes=64)
    assert module.operation.verify()
    text = str(module)
    assert len(weights) == text.count("flow.parameter.named") > 0
    assert all(w.dtype == np.float32 and w.nbytes >= 64 for w in weights.values())
    for name in weights:
        assert f"@{name}" in text


def test_equations_know_their_flax_module(ranker_bundle: Path) -> None:
    """After every rewrite and the split, the products of a submodule carry its path."""
    towers = trace(ranker_bundle)
    products = [e for t in (towers.request, towers.candidate) for e in t.jaxpr.eqns]
    found = {module_path(e) for e in products if e.primitive.name == "dot_general"}
    layers = {".".join(map(str, path)) for path, _ in nnx.iter_modules(load_flax(ranker_bundle))}
    assert found and found - {""} <= layers and len(found) > 1
