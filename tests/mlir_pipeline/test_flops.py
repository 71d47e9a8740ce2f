"""FLOPs of matrix products, in loops and branches too."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from typer.testing import CliRunner

from jaxrank import bundle as files
from jaxrank.cli import app
from mlir_pipeline.compile import compile_bundle
from mlir_pipeline.flops import dot_flops, unknown_loops
from tests.shared import Once
from tests.zoo import ZOO
from tests.zoo.converted import convert_once

ROWS, WIDTH, STEPS = 3, 8, 11
PRODUCT = 2 * ROWS * WIDTH * WIDTH
W = jnp.ones((WIDTH, WIDTH))


def _plain(x: Any) -> Any:
    return x @ W


def _scan(x: Any) -> Any:
    return lax.scan(lambda carry, _: (carry @ W, None), x, length=STEPS)[0]


def _nested(x: Any) -> Any:
    return lax.scan(lambda carry, _: (_scan(carry) @ W, None), x, length=2)[0]


def _counted_loop(x: Any) -> Any:
    return lax.fori_loop(0, STEPS, lambda _, carry: carry @ W, x)


def _while(x: Any) -> Any:
    return lax.while_loop(lambda c: jnp.sum(c) < 1e3, lambda c: c @ W, x)


def _while_without_products(x: Any) -> Any:
    return lax.while_loop(lambda c: jnp.sum(c) < 1e3, lambda c: c + 1.0, x) @ W


def _branches(x: Any) -> Any:
    return lax.cond(jnp.sum(x) > 0, lambda x: x @ W @ W, lambda x: x @ W, x)


def _convolution(x: Any) -> Any:
    kernel = jnp.ones((2, WIDTH, 5))
    return lax.conv_general_dilated(x[None], kernel, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))


@pytest.mark.parametrize(
    ("function", "flops", "unknown"),
    [
        (_plain, PRODUCT, 0),
        (jax.jit(_plain), PRODUCT, 0),
        (_scan, STEPS * PRODUCT, 0),
        (_nested, 2 * (STEPS + 1) * PRODUCT, 0),
        (_counted_loop, STEPS * PRODUCT, 0),
        (_while, PRODUCT, 1),
        (_while_without_products, PRODUCT, 0),
        (_branches, 2 * PRODUCT, 0),
        (_convolution, 2 * (ROWS - 1) * 5 * 2 * WIDTH, 0),
    ],
)
def test_products_count_as_often_as_they_run(
    function: Callable[[Any], Any], flops: int, unknown: int
) -> None:
    closed = jax.make_jaxpr(function)(jnp.ones((ROWS, WIDTH)))
    assert (dot_flops(closed), unknown_loops(closed)) == (flops, unknown)


def test_a_dimension_of_the_number_of_candidates_counts_as_one() -> None:
    (n,) = jax.export.symbolic_shape("n")
    aval = jax.ShapeDtypeStruct((n, WIDTH), jnp.float32)
    assert dot_flops(jax.make_jaxpr(_scan)(aval)) == STEPS * 2 * WIDTH * WIDTH


@pytest.mark.filterwarnings("ignore")
def test_the_manifest_counts_loops_and_says_which_it_cannot(tmp_path: Path, once: Once) -> None:
    """A recurrent layer of known length, and one that runs until its data say stop."""
    known, unknown = (next(m for m in ZOO if m.name == name) for name in ("tf1_while", "data_loop"))
    for model, loops in ((known, 0), (unknown, 1)):
        bundle = tmp_path / model.name
        shutil.copytree(convert_once(model, once).bundle, bundle)
        before = files.read_manifest(bundle).flops
        flops = compile_bundle(bundle, ["cpu"], data_tiling=False).flops
        assert flops is not None and before is not None
        assert flops.uncounted_loops == loops
        # Each candidate costs the source all that the towers do for one, but for what the rewrites save.
        assert flops.source_per_candidate >= flops.request + flops.candidate
        assert flops.source_per_candidate > before.source_per_candidate
        shown = CliRunner().invoke(app, ["inspect", str(bundle)]).output
        assert ("ends by the data" in shown) == bool(loops)
