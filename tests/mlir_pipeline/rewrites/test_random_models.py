"""Every rewrite, and all of them in their order, on random models: the same numbers, never more work."""

from typing import Any

import jax
import numpy as np
from hypothesis import HealthCheck, given, settings
from jax import export
from jax.extend import core

from mlir_pipeline.explain.cost import cost
from mlir_pipeline.flops import dot_flops
from mlir_pipeline.rewrites.fold_affine import fold_affine
from mlir_pipeline.rewrites.merge_broadcasts import merge_broadcasts
from mlir_pipeline.rewrites.merge_dots import merge_dots
from mlir_pipeline.rewrites.slice_pushdown import slice_pushdown
from mlir_pipeline.rewriting import MERGES, REWRITES, rewritten
from mlir_pipeline.split import split
from tests.mlir_pipeline.rewrites.models import Model, inputs, jaxpr, models


def _work(closed: core.ClosedJaxpr) -> int:
    """Elements that are computed or summed: a factor that leaves a sum is one product for fewer sums."""
    found = cost(closed).at(1000)
    return found.elementwise + found.transcendentals + found.reductions


_ALL = [*dict.fromkeys(REWRITES + MERGES), rewritten]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(model=models())
def test_the_numbers_stay(model: Model) -> None:
    """Within 1e-5 of values up to 1, relative beyond: sums in another order. One compilation evaluates what
    all of them make."""
    values, closed = inputs(3, 0), jaxpr(model, 3)
    after = [rewrite(closed) for rewrite in _ALL]

    def evaluate(*args: jax.Array) -> list[Any]:
        return [core.jaxpr_as_fun(a)(*args)[0] for a in after]

    expected = jax.jit(model)(*values)
    for rewrite, found in zip(_ALL, jax.jit(evaluate)(*values), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5, err_msg=rewrite.__name__)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(model=models())
def test_work_does_not_grow(model: Model) -> None:
    """For any number of candidates: products and elementwise operations of both halves together."""
    (count,) = export.symbolic_shape("n")
    closed = jaxpr(model, count)
    for rewrite in (slice_pushdown, merge_broadcasts, fold_affine, merge_dots):
        after = rewrite(closed)
        assert dot_flops(after) <= dot_flops(closed), rewrite.__name__
        assert _work(after) <= _work(closed), rewrite.__name__
        assert dot_flops(split(after).candidate) <= dot_flops(split(closed).candidate), rewrite.__name__
