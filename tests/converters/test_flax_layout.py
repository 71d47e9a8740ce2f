"""Generated modules of models as teams write them: classes for scopes, one class for repeated blocks, loops;
and TensorFlow's values on whole batches and row by row."""

import ast
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
import tensorflow as tf
from flax import nnx

from converters.convert import convert
from jaxrank import bundle as files
from jaxrank.flax_module import load_flax, load_source
from tests.converters import ranking_models
from tests.shared import Once


@dataclass(frozen=True)
class Written:
    """A model's SavedModel, its bundle and the generated source."""

    name: str
    saved_model: Path
    bundle: Path
    source: str


@pytest.fixture(scope="module", params=ranking_models.MODELS)
def written(request: pytest.FixtureRequest, once: Once) -> Written:
    """Each model is saved and converted once for all tests of this file."""

    def build(directory: Path) -> None:
        model = ranking_models.MODELS[request.param]()
        ranking_models.randomize(model)
        ranking_models.save(model, str(directory / "saved_model"))
        convert(directory / "saved_model", directory / "bundle")

    directory = once(f"layout-{request.param}", build)
    source = (directory / "bundle" / files.MODEL).read_text()
    return Written(request.param, directory / "saved_model", directory / "bundle", source)


CLASSES = {
    "mmoe": {"Expert", "Tower"},
    "functional_mmoe": {"Expert", "Tower"},
    "din": set(),
    "transformer": {"Attention", "Block"},
    "dcn": {"Cross"},
    "deepfm": set(),
}
LINES = {
    "mmoe": [
        "self.experts = nnx.List([Expert(rngs=rngs) for _ in range(4)])",
        "self.click_tower = Tower(rngs=rngs)",
        "experts = [expert(features) for expert in self.experts]",
        "stacked = stack(experts, axis=1)",
    ],
    "functional_mmoe": [
        "self.experts = nnx.List([Expert(rngs=rngs) for _ in range(3)])",
        "for layer in self.layers:",
        "experts = [expert(candidate.features) for expert in self.experts]",
    ],
    "din": [
        "for layer, dice in zip(self.mlp, self.dices, strict=True):",
        "x = dice(layer(x))",
        "attention_hidden = jax.nn.sigmoid(self.attention_hidden(features))",
    ],
    "transformer": [
        "self.blocks = nnx.List([Block(rngs=rngs) for _ in range(2)])",
        "for block in self.blocks:",
        "norm_1 = self.norm_1(x + self.attention(x))",
        "hidden = jax.nn.gelu(self.hidden(norm_1), approximate=False)",
    ],
    "dcn": [
        "for cross in self.crosses:",
        "return features * self.dense(x) + x",
        "for layer in self.deep:",
    ],
    "deepfm": [
        "for layer, prelu in zip(self.deep, self.prelus, strict=True):",
        "factorization_machine(candidate.fields, axis=1)",
    ],
}
LONGEST_CALL = 16
"""Lines of `Ranker.__call__`: what a person needs for the largest of these models."""


def test_reads_as_a_person_wrote_it(written: Written) -> None:
    classes = {n.name: n for n in ast.parse(written.source).body if isinstance(n, ast.ClassDef)}
    assert set(classes) - {"Request", "Candidate", "Ranker"} == CLASSES[written.name]
    for line in LINES[written.name]:
        assert line in written.source, written.source
    call = next(n for n in classes["Ranker"].body if getattr(n, "name", "") == "__call__")
    assert len(ast.unparse(call).splitlines()) <= LONGEST_CALL
    assert all(ast.get_docstring(node) for node in classes.values())
    # Nothing spelled out that a loop says, nothing of TensorFlow's plumbing.
    assert not re.search(r"self\.(expert|block|cross|dice|prelu)_\d", written.source)
    assert "Tensordot" not in written.source and "StatefulPartitionedCall" not in written.source


def test_passes_ruff(written: Written) -> None:
    options = ["--isolated", "--select", "E,F,I,UP,B,SIM", "--line-length", "110"]
    check = [sys.executable, "-m", "ruff", "check", *options, str(written.bundle / files.MODEL)]
    found = subprocess.run(check, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def _features(written: Written, rows: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    columns = files.read_host_program(written.bundle).columns
    return {c.feature: rng.normal(size=(rows, *c.shape)).astype(np.float32) for c in columns}


@pytest.mark.parametrize("rows", [1, 6])
def test_batches_and_rows_equal_tensorflow(written: Written, rows: int) -> None:
    """1e-6: sigmoids of float32 sums in another order."""
    source, ranker = load_source(written.bundle), load_flax(written.bundle)
    features = _features(written, rows, seed=rows)
    expected = tf.saved_model.load(str(written.saved_model)).signatures["serving_default"](
        **{name: tf.constant(value) for name, value in features.items()}
    )

    def one(candidate: dict[str, jax.Array]) -> dict[str, jax.Array]:
        row = source.Candidate(**{name: value[None] for name, value in candidate.items()})
        return {name: value[0] for name, value in ranker(source.Request(), row).items()}

    batched = ranker(source.Request(), source.Candidate(**features))
    by_row = jax.vmap(one)(features)
    assert set(batched) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(batched[name], value, rtol=0, atol=1e-6)
        np.testing.assert_allclose(by_row[name], value, rtol=0, atol=1e-6)


def test_weights_are_named_by_attribute_path(written: Written) -> None:
    paths = [".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(load_flax(written.bundle)))]
    expected = {
        "mmoe": "experts.3.hidden.kernel",
        "functional_mmoe": "experts.2.layers.1.bias",
        "din": "dices.1.norm.scale",
        "transformer": "blocks.1.attention.query.kernel",
        "dcn": "crosses.2.dense.kernel",
        "deepfm": "prelus.0.slope",
    }
    assert expected[written.name] in paths


def test_every_weight_trains(written: Written) -> None:
    """An optimizer step lowers the loss, and every parameter has a gradient: all but a key's bias, which adds
    the same to all scores of a softmax."""
    source, ranker = load_source(written.bundle), load_flax(written.bundle)
    graph, state = nnx.split(ranker)
    candidate = source.Candidate(**_features(written, 64, seed=3))

    def loss(weights: nnx.State) -> jax.Array:
        outputs = nnx.merge(graph, weights)(source.Request(), candidate)
        return sum(((value - 0.25) ** 2).mean() for value in outputs.values())  # type: ignore[return-value]

    before, gradient = jax.value_and_grad(loss)(state)
    optimizer = optax.sgd(1e-3)
    updates, _ = optimizer.update(gradient, optimizer.init(state))
    assert float(loss(optax.apply_updates(state, updates))) < float(before)
    for path, leaf in nnx.to_flat_state(gradient):
        assert path[-2:] == ("key", "bias") or np.abs(leaf[...]).max() > 0, path
