"""Every model of the zoo through the converter: TensorFlow's scores and order on fresh requests, a module
that reads and trains."""

import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxrank import bundle as files
from jaxrank.flax_module import dense_outputs, load_flax, load_source, unpack
from mlir_pipeline.compile import compile_bundle
from serving.host import HostProgramRunner
from tests.zoo.converted import Converted
from tests.zoo.scoring import answers

pytestmark = pytest.mark.filterwarnings("ignore")


def test_scores_and_order_are_tensorflows(converted: Converted) -> None:
    """The tolerance is the model's: absolute up to 1, relative beyond."""
    model = converted.model
    for rows in (1, 50, 400):
        outputs, expected = answers(converted.bundle, model, converted.path, rows, seed=9000 + rows)
        assert set(outputs) == set(expected)
        for name, found in outputs.items():
            assert (found.shape, found.dtype) == (expected[name].shape, expected[name].dtype), name
            if found.dtype == object:
                assert np.array_equal(found, expected[name])
                continue
            scale = np.maximum(np.abs(expected[name]), 1.0)
            error = (np.abs(found - expected[name]) / scale).max()
            assert error <= model.tolerance, f"{name} at {rows} rows differs by {error:.2e}"
            for column in range(found.size // rows):
                _assert_same_top(
                    found.reshape(rows, -1)[:, column],
                    expected[name].reshape(rows, -1)[:, column],
                    model.tolerance,
                )


def _assert_same_top(found: np.ndarray, expected: np.ndarray, tolerance: float, top: int = 50) -> None:
    """The best `top` of the found scores are in TensorFlow's order. Candidates whose TensorFlow scores are
    within the tolerance of each other are ties, and may stand in either order."""
    order = np.argsort(-found, kind="stable")
    ranked, rest = expected[order[:top]], expected[order[top:]]
    tie = tolerance * np.maximum(np.abs(ranked), 1.0)
    # What stands after a candidate may not be better than it, wherever it stands.
    best_after = np.maximum.accumulate(np.append(ranked, rest.max(initial=-np.inf))[::-1])[::-1][1:]
    inversions = best_after - ranked
    assert (inversions <= tie).all(), f"an inversion of {inversions.max():.2e} in the top {top}"


def test_an_inversion_in_the_top_is_noticed() -> None:
    expected = np.linspace(1.0, 0.0, 100, dtype=np.float32)
    tied = expected.copy()
    tied[11] = tied[10] - 1e-6
    _assert_same_top(tied[[*range(10), 11, 10, *range(12, 100)]], tied, 1e-5)
    for i, j in ((3, 4), (49, 50), (0, 99)):
        swapped = expected.copy()
        swapped[[i, j]] = expected[[j, i]]
        with pytest.raises(AssertionError, match="inversion"):
            _assert_same_top(swapped, expected, 1e-5)
    below = expected.copy()
    below[[60, 61]] = expected[[61, 60]]
    _assert_same_top(below, expected, 1e-5)


def test_module_passes_ruff(converted: Converted) -> None:
    options = ["--isolated", "--select", "E,F,I", "--line-length", "110"]
    check = [sys.executable, "-m", "ruff", "check", *options, str(converted.bundle / files.MODEL)]
    ran = subprocess.run(check, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout


def test_module_compiles_for_cuda(converted: Converted, tmp_path: Path) -> None:
    """Without a GPU. Where the host program makes every output, there is nothing to compile."""
    bundle = tmp_path / "b"
    shutil.copytree(converted.bundle, bundle)
    target = compile_bundle(bundle, ["cuda:sm_80"]).target("cuda:sm_80")
    assert target is not None and target.certificate is None
    assert all((bundle / module).stat().st_size for module in target.modules)
    assert target.modules or not dense_outputs(converted.manifest, files.read_host_program(bundle))


def test_module_trains(converted: Converted) -> None:
    """Every model but one, whose loop runs until its data say stop: JAX has no reverse-mode derivative of
    that."""
    if converted.model.name == "data_loop":
        with pytest.raises(ValueError, match="Reverse-mode differentiation"):
            _train(converted)
    else:
        _train(converted)


def _train(converted: Converted) -> None:
    """A step along the gradient of a squared loss on all outputs lowers it; a step too long for the curvature
    is tried again shorter."""
    features = converted.model.request(32, seed=77)
    blocks = HostProgramRunner(converted.bundle, converted.manifest).run(features)
    source, columns = load_source(converted.bundle), files.read_host_program(converted.bundle).columns
    request = source.Request(**unpack(jnp.asarray(blocks.request), columns, "request"))
    candidate = source.Candidate(**unpack(jnp.asarray(blocks.candidate), columns, "candidate"))
    graph, weights = nnx.split(load_flax(converted.bundle))

    @jax.jit
    def loss(weights: nnx.State) -> jax.Array:
        outputs = nnx.merge(graph, weights)(request, candidate)
        return sum((jnp.mean((y - 0.25) ** 2) for y in outputs.values()), jnp.zeros(()))

    before, gradient = jax.value_and_grad(loss)(weights)
    norms = [float(jnp.abs(g).max()) for g in jax.tree.leaves(gradient)]
    assert np.isfinite(norms).all() and max(norms) > 0.0
    steps = (0.03, 0.003, 0.0003)
    after = [float(loss(jax.tree.map(lambda w, g, s=s: w - s * g, weights, gradient))) for s in steps]
    assert min(after) < float(before)
