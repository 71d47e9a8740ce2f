"""JAX primitives in ONNX: ONNX Runtime's results are JAX's, at several numbers of candidates."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from jax import export, lax
from jax.extend import core

from mlir_pipeline.engines.onnx import tower_to_onnx
from mlir_pipeline.errors import CompileError
from mlir_pipeline.jaxpr import flat_jaxpr

WIDTH = 6
RNG = np.random.default_rng(0)
W = RNG.normal(size=(WIDTH, 5)).astype(np.float32)
PICKS = np.array([[0, 3], [1, 1], [2, 2]], np.int32)


def _ids(x: Any, size: int) -> Any:
    return jnp.clip(jnp.abs(x[:, 0] * 3).astype(jnp.int32), 0, size)


def _while(x: Any) -> Any:
    return lax.while_loop(lambda c: jnp.max(c) < 9, lambda c: c * 1.5 + 0.5, jnp.abs(x))


def _scan(x: Any, reverse: bool = False) -> Any:
    xs = jnp.swapaxes(x, 0, 1)
    carry, ys = lax.scan(lambda c, v: (c * 0.5 + v, c - v), x[:, 0], xs, reverse=reverse)
    return carry, ys


OF_ROWS: dict[str, Callable[[Any], Any]] = {
    "arithmetic": lambda x: (x + 1) * x - x / 3,
    "log1p": lambda x: jnp.log1p(jnp.abs(x) * 1e-4),
    "log1p of large values": lambda x: jnp.log1p(jnp.abs(x) * 1e4),
    "expm1": lambda x: jnp.expm1(x * 1e-4),
    "expm1 of large values": lambda x: jnp.expm1(x * 9),
    "integer_pow": lambda x: (x**3, x**-2, x**5),
    "rounding": lambda x: (jnp.round(x), jnp.floor(x), jnp.ceil(x), lax.round(x)),
    "logic": lambda x: ((x > 0) & (x < 1)) | ~(x != 2),
    "select of booleans": lambda x: jnp.where(x > 0, x > 1, x < -1),
    "integers": lambda x: (lambda i: (i // 2, i % 3, i & 3, i | 4, i ^ 1))((x * 9).astype(jnp.int32)),
    "remainder": lambda x: lax.rem(x, jnp.float32(0.7)),
    "activations": lambda x: (jax.nn.gelu(x), jax.nn.softplus(x), jax.nn.silu(x), jax.nn.elu(x)),
    "softmax": lambda x: jax.nn.softmax(x, axis=-1),
    "clip": lambda x: jnp.clip(x, -0.5, 0.5),
    "bits": lambda x: lax.bitcast_convert_type(x, jnp.int32),
    "isfinite": lambda x: jnp.isfinite(1 / jnp.maximum(x, 0)),
    "broadcast in a reduction": lambda x: jnp.sum(jnp.broadcast_to(x[:, None], (x.shape[0], 4, WIDTH)), 1),
    "broadcast of both": lambda x: jnp.broadcast_to(jnp.arange(3.0)[:, None], (3, 2)) + 0 * x[0, 0],
    "iota of candidates": lambda x: jnp.arange(x.shape[0], dtype=jnp.float32)[:, None] + x,
    "number of candidates": lambda x: x / jnp.float32(x.shape[0]),
    "slices": lambda x: (x[:, 1:5:2], x[:, ::-1], lax.slice_in_dim(x, 2, 4, axis=1)),
    "pad": lambda x: jnp.pad(x, ((0, 0), (1, 2)), constant_values=3.0),
    "transpose and reshape": lambda x: jnp.reshape(x.reshape(x.shape[0], 2, 3).transpose(2, 0, 1), (3, -1)),
    "concat and split": lambda x: jnp.concatenate(jnp.split(x, 3, axis=1)[::-1], axis=1),
    "matmul": lambda x: x @ W,
    "matmul of three axes": lambda x: x.reshape(x.shape[0], 3, 2) @ W[:2],
    "batched matmul": lambda x: jnp.einsum("nij,nkj->nik", x.reshape(x.shape[0], 3, 2), x.reshape(-1, 3, 2)),
    "einsum of many axes": lambda x: jnp.einsum(
        "nij,nij->n", x.reshape(x.shape[0], 3, 2), x.reshape(-1, 3, 2)
    ),
    "candidates by candidates": lambda x: x @ x.T,
    "outer product": lambda x: jnp.einsum("ni,nj->nij", x, x),
    "reductions": lambda x: (x.sum(1), x.max(1), x.min(), x.prod(1), (x > 0).any(1), (x > 0).all(1)),
    "argmax": lambda x: (jnp.argmax(x, 1), jnp.argmin(x, 1)),
    "cumsum": lambda x: (jnp.cumsum(x, 1), lax.cumsum(x, 1, reverse=True)),
    "sort": lambda x: jnp.sort(x, axis=1),
    "sort by two keys": lambda x: lax.sort([jnp.round(x), -x, x], dimension=1, num_keys=2, is_stable=False),
    "top_k of ties": lambda x: lax.top_k(jnp.abs(jnp.round(x)), 3),
    "take rows": lambda x: jnp.asarray(W)[_ids(x, 5)],
    "take rows outside": lambda x: jnp.take(jnp.asarray(W), _ids(x, 99) + 2, axis=0, mode="fill"),
    "take columns": lambda x: x[:, np.array([4, 0, 0])],
    "take pairs": lambda x: x.reshape(x.shape[0], 3, 2)[:, PICKS[:, 0] % 3, PICKS[:, 1] % 2],
    "take along": lambda x: jnp.take_along_axis(x, jnp.argsort(-x, axis=1), axis=1),
    "windows": lambda x: jax.vmap(lambda r, s: lax.dynamic_slice(r, (s,), (2,)))(x, _ids(x, 9)),
    "dynamic slice": lambda x: lax.dynamic_slice(x, (0, x[0, 0].astype(jnp.int32) + 3), (1, 2)),
    "convolution": lambda x: lax.conv_general_dilated(
        x[:, :, None], W[:3, None, :], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    ),
    "while": _while,
    "while of each row": lambda x: jax.vmap(
        lambda r: lax.while_loop(
            lambda c: (c[0] > 0.1) & c[1].all(), lambda c: (c[0] * 0.5, c[1]), (r[0], r > -9)
        )
    )(x),
    "scan": lambda x: _scan(x),
    "scan backwards": lambda x: _scan(x, reverse=True),
    "cond": lambda x: lax.cond(x[0, 0] > 0, lambda v: v + 1, lambda v: v * 2, x),
    "switch": lambda x: lax.switch(_ids(x, 5)[0], [lambda v: v, lambda v: v * 2, lambda v: v * 3], x),
}


def _session(closed: core.ClosedJaxpr, **weights: np.ndarray) -> onnxruntime.InferenceSession:
    names = {value.tobytes(): name for name, value in weights.items()}
    model = tower_to_onnx(closed, lambda array: names.get(array.tobytes()))
    if not weights:
        onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(value) for value in weights.values()]
    options.add_external_initializers(list(weights), values)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


@pytest.mark.parametrize("name", OF_ROWS)
def test_primitives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact where only data moves; else float32 rounding of another order, 1e-5 of the size."""
    monkeypatch.setattr("mlir_pipeline.jaxpr.UNROLL_LIMIT", 0)  # loops stay loops
    function = OF_ROWS[name]
    (count,) = export.symbolic_shape("n")
    closed = flat_jaxpr(function, jax.ShapeDtypeStruct((count, WIDTH), np.float32))
    session = _session(closed)
    for rows in (1, 4, 33):
        x = np.random.default_rng(rows).normal(size=(rows, WIDTH)).astype(np.float32)
        expected = jax.tree.leaves(function(jnp.asarray(x)))
        found = session.run(None, {"input_0": x})
        assert len(found) == len(expected)
        for one, other in zip(found, map(np.asarray, expected), strict=True):
            assert (one.shape, one.dtype) == (other.shape, other.dtype)
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_weights_stay_in_the_archive() -> None:
    big = np.random.default_rng(1).normal(size=(WIDTH, 900)).astype(np.float32)
    (count,) = export.symbolic_shape("n")
    closed = flat_jaxpr(lambda x: x @ big, jax.ShapeDtypeStruct((count, WIDTH), np.float32))
    model = tower_to_onnx(closed, lambda array: "weight_0" if array.nbytes == big.nbytes else None)
    assert model.ByteSize() < 1000
    x = np.ones((2, WIDTH), np.float32)
    (found,) = _session(closed, weight_0=big).run(None, {"input_0": x})
    np.testing.assert_allclose(found, x @ big, rtol=1e-5, atol=1e-5)


def test_all_unknown_primitives_are_refused_at_once() -> None:
    def model(x: Any) -> Any:
        with jax.named_scope("@experts.0"):
            return lax.erf_inv(x) + lax.lgamma(x)

    closed = flat_jaxpr(model, jax.ShapeDtypeStruct((4,), np.float32))
    with pytest.raises(CompileError, match="'erf_inv' in experts.0, 'lgamma' in experts.0"):
        tower_to_onnx(closed, lambda array: None)


def test_what_a_primitive_cannot_is_refused_with_its_place() -> None:
    closed = flat_jaxpr(
        lambda x: lax.pad(x, jnp.float32(0), [(0, 0, 1)]), jax.ShapeDtypeStruct((4,), np.float32)
    )
    with pytest.raises(CompileError, match="a pad between elements .primitive 'pad' in the model's own"):
        tower_to_onnx(closed, lambda array: None)
