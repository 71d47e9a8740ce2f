# The MLIR and jaxpr objects of IREE and JAX ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Rows that all candidates share stay apart: the same numbers, most of the first attention once."""

from collections.abc import Callable, Sequence
from pathlib import Path

import iree.runtime as rt
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from iree.compiler import ir
from jax import export
from jax.extend import core

from mlir_pipeline.dump import IrDump
from mlir_pipeline.flops import dot_flops
from mlir_pipeline.iree import compile_module, parse_target
from mlir_pipeline.jaxpr import flat_jaxpr
from mlir_pipeline.lower import lower
from mlir_pipeline.passes.program import Program
from mlir_pipeline.passes.run import PASSES, run_passes
from mlir_pipeline.rewrites.merge_broadcasts import merge_broadcasts
from mlir_pipeline.rewrites.split_rows import split_rows
from mlir_pipeline.rewriting import rewritten
from mlir_pipeline.split import split

STEPS, DIM, HEADS = 6, 8, 2
Model = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""`(history [1, STEPS, DIM], mask [1, STEPS], candidate [1, 1, DIM]) -> [1, k]`."""


def _weights(seed: int, *shape: int) -> jax.Array:
    values = np.random.default_rng(seed).standard_normal(shape) / np.sqrt(shape[0])
    return jnp.asarray(values, jnp.float32)


def _rows(model: Model) -> Callable[[jax.Array, jax.Array], jax.Array]:
    def one(request: jax.Array, row: jax.Array) -> jax.Array:
        history = request[:, : STEPS * DIM].reshape(1, STEPS, DIM)
        return model(history, request[:, STEPS * DIM :] > 0, row.reshape(1, 1, DIM))[0]

    return lambda request, block: jax.vmap(lambda row: one(request, row))(block)


def _jaxpr(model: Model, count: object) -> core.ClosedJaxpr:
    request = jax.ShapeDtypeStruct((1, STEPS * DIM + STEPS), jnp.float32)
    return merge_broadcasts(
        flat_jaxpr(_rows(model), request, jax.ShapeDtypeStruct((count, DIM), jnp.float32))
    )


def _inputs(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    request = rng.standard_normal((1, STEPS * DIM + STEPS)).astype(np.float32)
    return request, rng.standard_normal((rows, DIM)).astype(np.float32)


def _candidate_flops(closed: core.ClosedJaxpr) -> int:
    return dot_flops(split(closed).candidate)


def _norm(x: jax.Array) -> jax.Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-3)


def _attend(x: jax.Array, held: jax.Array, seed: int, hidden: float = -1e9) -> jax.Array:
    width = x.shape[1]
    q, k, v = ((x @ _weights(seed + i, DIM, DIM)).reshape(1, width, HEADS, -1) for i in range(3))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * 0.5
    scores = jnp.where(held[:, None, None, :], scores, hidden)
    found = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, -1), v).reshape(1, width, DIM)
    return found @ _weights(seed + 3, DIM, DIM)


def _transformer(last: bool = False, hidden: float = -1e9) -> Model:
    def model(history: jax.Array, mask: jax.Array, candidate: jax.Array) -> jax.Array:
        x = jnp.concatenate([history, candidate], 1) + _weights(9, 1, STEPS + 1, DIM)
        held = jnp.concatenate([mask, jnp.ones((1, 1), bool)], 1)
        x = _norm(x + _attend(x, held, 10, hidden))
        x = _norm(x + jax.nn.relu(x @ _weights(20, DIM, 16)) @ _weights(21, 16, DIM))
        x = x[:, -1] if last else x.reshape(1, -1)
        return x @ _weights(22, x.shape[1], 2)

    return model


def _assert_same(closed: core.ClosedJaxpr, model: Model, rows: int, seed: int, tolerance: float) -> None:
    request, block = _inputs(rows, seed)
    (found,) = core.jaxpr_as_fun(closed)(request, block)
    expected = _rows(model)(jnp.asarray(request), jnp.asarray(block))
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("hidden", [-1e9, -np.inf], ids=["finite mask", "infinite mask"])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_a_transformer_keeps_its_numbers(last: bool, hidden: float, seed: int) -> None:
    """1e-5 of values around 1: sums in another order."""
    model = _transformer(last, hidden)
    _assert_same(split_rows(_jaxpr(model, 5)), model, 5, seed, 1e-5)


@pytest.mark.parametrize("hidden", [-1e9, -np.inf])
def test_a_history_that_is_masked_out(hidden: float) -> None:
    """The history's own maximum is the mask's value; only the candidate is attended to."""
    model = _transformer(hidden=hidden)
    request, block = _inputs(3, 0)
    request[:, STEPS * DIM :] = -1
    (found,) = core.jaxpr_as_fun(split_rows(_jaxpr(model, 3)))(request, block)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, _rows(model)(request, block), rtol=1e-5, atol=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [1e-3, 30.0])
def test_scores_far_from_each_other(scale: float) -> None:
    """Scores of some thousands: exponentials of the history alone and of the candidate alone would
    overflow, and those below the common maximum vanish."""

    def model(history: jax.Array, mask: jax.Array, candidate: jax.Array) -> jax.Array:
        x = jnp.concatenate([history * scale, candidate / scale], 1)
        return _norm(_attend(x, jnp.ones((1, STEPS + 1), bool), 1)).reshape(1, -1)

    _assert_same(split_rows(_jaxpr(model, 4)), model, 4, 1, 1e-3)


def test_attention_over_the_history_is_the_requests() -> None:
    """For each candidate and history step there is its score with the candidate and its share of the
    candidate's value, and one row of scores, not one for each step."""
    (count,) = export.symbolic_shape("n")

    def model(history: jax.Array, mask: jax.Array, candidate: jax.Array) -> jax.Array:
        x = jnp.concatenate([history, candidate], 1)
        held = jnp.concatenate([mask, jnp.ones((1, 1), bool)], 1)
        q, k, v = x @ _weights(1, DIM, DIM), x @ _weights(2, DIM, DIM), x @ _weights(3, DIM, DIM)
        scores = jnp.where(held[:, None], jnp.einsum("bqd,bkd->bqk", q, k), -1e9)
        return jnp.einsum("bqk,bkd->bqd", jax.nn.softmax(scores, -1), v).reshape(1, -1)

    rows = STEPS + 1
    before, after = _jaxpr(model, count), split_rows(_jaxpr(model, count))
    assert _candidate_flops(before) == 3 * 2 * rows * DIM * DIM + 2 * 2 * rows * rows * DIM
    projections = 3 * 2 * DIM * DIM
    # q_c K^T, Q k_c, q_c k_c, and the candidate's row of the history's values; the rest is elementwise.
    assert _candidate_flops(after) == projections + 2 * DIM * (STEPS + STEPS + 1 + STEPS)


def test_nothing_changes_where_nothing_is_shared() -> None:
    def model(history: jax.Array, mask: jax.Array, candidate: jax.Array) -> jax.Array:
        both = jnp.concatenate([history * candidate, candidate], 1)
        return (both @ _weights(1, DIM, 3)).sum(1)

    closed = _jaxpr(model, 4)
    assert split_rows(closed) is closed


def test_nothing_changes_where_it_saves_no_product() -> None:
    def model(history: jax.Array, mask: jax.Array, candidate: jax.Array) -> jax.Array:
        return jnp.tanh(jnp.concatenate([history, candidate], 1)).sum(1)

    closed = _jaxpr(model, 4)
    assert split_rows(closed) is closed


OPERATIONS: dict[str, Callable[[jax.Array, jax.Array, int], jax.Array]] = {
    "dense": lambda x, held, seed: x @ _weights(seed, DIM, DIM),
    "relu": lambda x, held, seed: jax.nn.relu(x),
    "norm": lambda x, held, seed: _norm(x),
    "position": lambda x, held, seed: x + _weights(seed, 1, x.shape[1], DIM),
    "attend": lambda x, held, seed: x + _attend(x, held, seed),
    "mask": lambda x, held, seed: jnp.where(held[..., None], x, 0.0),
    "heads": lambda x, held, seed: (
        (x.reshape(1, x.shape[1], HEADS, -1).transpose(0, 2, 1, 3) * _weights(seed, HEADS)[:, None, None])
        .transpose(0, 2, 1, 3)
        .reshape(x.shape)
    ),
    "features": lambda x, held, seed: jnp.concatenate([x, x * 2.0], -1) @ _weights(seed, 2 * DIM, DIM),
    "longer": lambda x, held, seed: x[:, 1:] + x[:, :-1] if x.shape[1] > 8 else jnp.concatenate([x, x], 1),
    "drop first": lambda x, held, seed: x[:, 1:] if x.shape[1] > 3 else x,
    "mix steps": lambda x, held, seed: jnp.einsum("btd,ts->bsd", x, _weights(seed, x.shape[1], x.shape[1])),
    "gate": lambda x, held, seed: x * jax.nn.sigmoid(x.mean(1, keepdims=True)),
    "most": lambda x, held, seed: x + x.max(1, keepdims=True),
    "similar": lambda x, held, seed: jnp.einsum("btd,bsd->bts", x, x) @ (x / x.shape[1]),
}
ENDINGS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "flat": lambda x: x.reshape(1, -1) @ _weights(1, x.shape[1] * DIM, 3),
    "last": lambda x: x[:, -1],
    "sum": lambda x: x.sum(1),
    "as it is": lambda x: x,
}


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.sampled_from(sorted(OPERATIONS)), min_size=1, max_size=4),
    st.sampled_from(sorted(ENDINGS)),
    st.sampled_from(["hc", "ch", "hch", "hhc", "cc"]),
    st.integers(0, 1000),
)
def test_any_operations_on_a_history_and_a_candidate(
    names: Sequence[str], ending: str, order: str, seed: int
) -> None:
    def model(history: jax.Array, mask: jax.Array, candidate: jax.Array) -> jax.Array:
        x = jnp.concatenate([history if part == "h" else candidate for part in order], 1)
        held = jnp.concatenate([mask if p == "h" else jnp.ones((1, 1), bool) for p in order], 1)
        for i, name in enumerate(names):
            held = held[:, : x.shape[1]]
            held = jnp.concatenate([held, jnp.ones((1, x.shape[1] - held.shape[1]), bool)], 1)
            x = OPERATIONS[name](x, held, seed + 10 * i)
            x = x if name == "dense" else _norm(x)
        return ENDINGS[ending](x)

    closed = _jaxpr(model, 4)
    found = split_rows(closed)
    assert _candidate_flops(found) <= _candidate_flops(closed)
    # Norms of rows that are nearly constant enlarge rounding.
    _assert_same(found, model, 4, seed, 2e-3)


@pytest.mark.parametrize("last", [True, False])
def test_iree_computes_the_same(last: bool, tmp_path: Path) -> None:
    """Any number of candidates with one module, after every other rewrite."""
    (count,) = export.symbolic_shape("n")
    model = _transformer(last)
    towers = split(rewritten(_jaxpr(model, count)))
    program = Program(lower(towers, ir.Context()))
    # Without weights as parameters: there is no archive to load them from.
    run_passes(program, [p for p in PASSES if p.name != "externalize-weights"], IrDump(None))
    compile_module(program.text(), parse_target("cpu"), tmp_path / "dense.vmfb")
    config = rt.Config("local-sync")
    module = rt.VmModule.copy_buffer(config.vm_instance, (tmp_path / "dense.vmfb").read_bytes())
    context = rt.SystemContext(vm_modules=[module], config=config)
    functions = context.modules[module.name]
    for rows in (1, 3, 40):
        request, block = _inputs(rows, rows)
        state = functions.request_tower(request)
        found = functions.candidate_tower(*(state if isinstance(state, (tuple, list)) else [state]), block)
        scores = np.array(found.to_host())
        expected = _rows(model)(jnp.asarray(request), jnp.asarray(block))
        np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)
