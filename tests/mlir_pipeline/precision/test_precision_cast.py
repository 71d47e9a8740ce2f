# The MLIR objects of IREE ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Casting products of a jaxpr: against the same rounding written out in NumPy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import iree.runtime as rt
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from iree.compiler import ir
from iree.runtime import save_archive_file
from jax import export, lax
from jax.extend import core

from jaxrank.manifest import PrecisionFormat
from mlir_pipeline.errors import CompileError
from mlir_pipeline.jaxpr import flat_jaxpr
from mlir_pipeline.lower import lower
from mlir_pipeline.passes.externalize_weights import externalize_weights
from mlir_pipeline.precision.cast import cast_products, modules_of, products
from mlir_pipeline.precision.emulate import Emulator
from mlir_pipeline.precision.rules import BODY
from mlir_pipeline.split import split

SMALL: tuple[PrecisionFormat, ...] = ("f16", "bf16", "f16_storage", "bf16_storage")
ROUND: dict[str, Any] = {"f16": np.float16, "bf16": jnp.bfloat16}
RNG = np.random.default_rng(0)
FIRST = RNG.normal(size=(6, 24)).astype(np.float32)
SECOND = RNG.normal(size=(24, 5)).astype(np.float32)


def _flat(function: Callable[..., Any]) -> core.ClosedJaxpr:
    (n,) = export.symbolic_shape("n")
    request, candidate = (jax.ShapeDtypeStruct(s, np.float32) for s in ((1, 4), (n, 6)))
    return flat_jaxpr(function, request, candidate)


def _two_layers(request: Any, candidate: Any) -> Any:
    with jax.named_scope("@first"):
        hidden = jnp.tanh(candidate @ FIRST)
    with jax.named_scope("@second"):
        return (jax.nn.softmax(hidden @ SECOND + request[:, :1]),)


def _run(closed: core.ClosedJaxpr, request: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    avals = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in closed.jaxpr.invars]  # pyright: ignore
    exported = export.export(jax.jit(core.jaxpr_as_fun(closed)))(*avals)
    options: Any = {"xla_allow_excess_precision": False}
    return np.asarray(jax.jit(exported.call, compiler_options=options)(request, candidate)[0])


def _by_hand(chosen: str, request: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    dtype = ROUND[chosen.removesuffix("_storage")]

    def rounded(value: np.ndarray) -> np.ndarray:
        return value.astype(dtype).astype(np.float64)

    activations = (lambda v: v) if chosen.endswith("_storage") else rounded
    hidden = np.tanh(activations(candidate) @ rounded(FIRST)).astype(np.float32)
    logits = activations(hidden) @ rounded(SECOND) + request[:, :1]
    exponents = np.exp(logits - logits.max(-1, keepdims=True))
    return exponents / exponents.sum(-1, keepdims=True)


@pytest.mark.parametrize("chosen", SMALL)
@pytest.mark.parametrize("seed", range(3))
def test_products_round_as_numpy_does(chosen: PrecisionFormat, seed: int) -> None:
    """float32's own rounding is 1e-6 here. Where it moves an activation across a boundary of the small type,
    one of 24 terms moves by that type's last place: 1e-3 for bf16, 1e-4 for f16."""
    rng = np.random.default_rng(seed)
    request = rng.normal(size=(1, 4)).astype(np.float32)
    candidate = rng.normal(size=(9, 6)).astype(np.float32)
    flat = _flat(_two_layers)
    modules = modules_of(products(flat))
    assert modules == ["first", "second"]
    expected = _by_hand(chosen, request, candidate)
    within = {"f16": 1e-4, "bf16": 1e-3}.get(chosen, 2e-6)
    formats: dict[str, PrecisionFormat] = dict.fromkeys(modules, chosen)
    np.testing.assert_allclose(_run(cast_products(flat, formats), request, candidate), expected, atol=within)
    (emulated,) = Emulator(flat, modules, row_wise=True)(formats, request, candidate)
    np.testing.assert_allclose(emulated, expected, atol=within)
    # The test can tell: float32 is further away.
    assert np.abs(_run(flat, request, candidate) - expected).max() > within or chosen == "f16"


@pytest.mark.parametrize("chosen", SMALL)
def test_weights_are_stored_small_and_everything_between_products_stays_in_float32(
    chosen: PrecisionFormat,
) -> None:
    cast = cast_products(_flat(_two_layers), {"first": chosen})
    dtypes = {c.shape: str(c.dtype) for c in cast.consts}
    assert dtypes == {
        FIRST.shape: "bfloat16" if chosen.startswith("bf16") else "float16",
        SECOND.shape: "float32",
    }
    for eqn in cast.jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            assert eqn.outvars[0].aval.dtype == np.float32  # pyright: ignore
        elif eqn.primitive.name != "convert_element_type":
            assert all(v.aval.dtype == np.float32 for v in (*eqn.invars, *eqn.outvars))  # pyright: ignore


def test_weights_that_float16_cannot_hold_name_their_module() -> None:
    def large(request: Any, candidate: Any) -> Any:
        with jax.named_scope("@experts.3.out"):
            return (candidate @ (FIRST * 1e6),)

    flat = _flat(large)
    with pytest.raises(CompileError, match=r"module 'experts.3.out' has \d+ weights beyond 65504"):
        cast_products(flat, {"experts.3.out": "f16_storage"})
    cast_products(flat, {"experts.3.out": "bf16"})


def test_state_that_is_only_multiplied_is_stored_small() -> None:
    """A product of candidate rows with what is made of the request: float32's state has twice the bytes."""

    def attention(request: Any, candidate: Any) -> Any:
        keys = jnp.tanh(request.reshape(1, 4) * FIRST[:, :4].reshape(6, 4))
        return (candidate @ keys,)

    flat = _flat(attention)
    assert [str(a.dtype) for a in split(flat).state] == ["float32"]
    assert [str(a.dtype) for a in split(cast_products(flat, {BODY: "f16"})).state] == ["float16"]
    # Storage is about weights; here is none.
    assert [str(a.dtype) for a in split(cast_products(flat, {BODY: "f16_storage"})).state] == ["float32"]


@pytest.mark.parametrize("chosen", SMALL)
def test_convolutions_are_products_too(chosen: PrecisionFormat) -> None:
    kernel: Any = RNG.normal(size=(3, 1, 2)).astype(np.float32)

    def convolution(request: Any, candidate: Any) -> Any:
        found = lax.conv_general_dilated(
            candidate[:, :, None], kernel, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
        )
        return (found,)

    flat = _flat(convolution)
    request, candidate = np.zeros((1, 4), np.float32), RNG.normal(size=(5, 6)).astype(np.float32)
    dtype = ROUND[chosen.removesuffix("_storage")]
    kept = candidate if chosen.endswith("_storage") else candidate.astype(dtype).astype(np.float32)
    expected = _run(
        _flat(lambda r, c: (lax.conv_general_dilated(
            c[:, :, None], kernel.astype(dtype).astype(np.float32), (1,), "VALID",
            dimension_numbers=("NWC", "WIO", "NWC"),
        ),)), request, kept,
    )  # fmt: skip
    found = _run(cast_products(flat, {BODY: chosen}), request, candidate)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("chosen", SMALL)
@pytest.mark.parametrize("splat", [False, True])
def test_the_archive_holds_the_small_weights(chosen: PrecisionFormat, splat: bool, tmp_path: Path) -> None:
    """With half the bytes; a matrix of one value is stored like any other."""
    matrix = np.full((6, 200), 1.1, np.float32) if splat else RNG.normal(size=(6, 200)).astype(np.float32)
    flat = cast_products(_flat(lambda request, candidate: (candidate @ matrix,)), {BODY: chosen})
    (array,) = externalize_weights(lower(split(flat), ir.Context())).values()
    save_archive_file({"weight": array}, tmp_path / "weights.irpa")
    index = rt.ParameterIndex()
    index.load(str(tmp_path / "weights.irpa"))
    ((_, entry),) = index.items()
    expected = matrix.astype(ROUND[chosen.removesuffix("_storage")])
    assert entry.length == matrix.nbytes // 2
    assert array.dtype == expected.dtype and array.tobytes() == expected.tobytes()
