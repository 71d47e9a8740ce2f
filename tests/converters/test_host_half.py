"""The host program's own tensors, one by one, are those that TensorFlow computes at the same place of the
graph: strings, ids and masks bit for bit, sums of embeddings within 1e-6 of the value or of 1 (another order
of rounding)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from converters.convert import convert
from converters.examples.composites import repeat_request_rows
from converters.flat_model import FlatModel
from converters.loaders import load
from jaxrank import bundle as files
from jaxrank.manifest import Manifest
from serving.host import HostProgramRunner
from tests.host.blocks import assert_native
from tests.shared import Once
from tests.zoo import ZOO, ZooModel
from tests.zoo.converted import convert_once

pytestmark = pytest.mark.filterwarnings("ignore")
RNG = np.random.default_rng(17)
TABLE = RNG.standard_normal((30, 4)).astype(np.float32)
WORDS = ["a", "b b", "köln", "東京", "Ünï", "x,y", "☃"]
Features = dict[str, np.ndarray]


def host_tensors(bundle: Path, manifest: Manifest, features: Mapping[str, np.ndarray]) -> dict[str, tuple]:
    """`(operator, its values)` of every host operator that is an op of the source graph."""
    runner = HostProgramRunner(bundle, manifest, native=False)
    now = runner._now
    assert now.lookups is not None
    values: dict[str, Any] = {**now.arrays, **features}
    blocks = runner.run(features)
    candidates, found = len(blocks.candidate), {}
    for step in runner._parts[0].steps:
        runner._run(step, values, candidates, now.lookups)
        if step.run is not None:
            found[step.operator.name] = (step.operator, [values[o] for o in step.operator.outputs])
    return found


def assert_host_is_tensorflows(model: FlatModel, bundle: Path, manifest: Manifest, features: Features) -> int:
    """Number of tensors that were compared."""
    repeated = repeat_request_rows(manifest.signature, features)
    compared = 0
    assert_native(bundle, manifest, features)
    for name, (operator, values) in host_tensors(bundle, manifest, features).items():
        for i, value in enumerate(values):
            source = model.live.flat.tensors.get(f"{name}:{i}")
            if not isinstance(source, tf.Tensor) or operator.op == "wrap_negative":
                continue
            # What is computed from the user alone is computed once; TensorFlow computes it so, too.
            asked = features if operator.scope == "request" else repeated
            (expected,) = model.live.run([f"{name}:{i}"], asked)
            value = np.asarray(value)
            assert value.shape == expected.shape, (name, operator.op)
            if expected.dtype.kind == "f":
                np.testing.assert_allclose(
                    value, expected, rtol=1e-6, atol=1e-6, err_msg=f"{name} {operator.op}"
                )
            else:
                np.testing.assert_array_equal(value, expected, err_msg=f"{name} {operator.op}")
            compared += 1
    return compared


# --- the zoo ---

PREPROCESSING = (
    "wide_deep", "wide_deep_raw", "sparse_bags", "ragged_bags", "keras_preprocessing", "string_operations",
    "example_parser", "frozen_partitioned", "checkpoint", "partitioned",
)  # fmt: skip


@pytest.mark.parametrize("zoo", [m for m in ZOO if m.name in PREPROCESSING], ids=lambda m: m.name)
def test_zoo(zoo: ZooModel, once: Once) -> None:
    found = convert_once(zoo, once)
    loading = {k: v for k, v in zoo.options.items() if k in ("signature", "inputs", "outputs")}
    model = FlatModel(load(found.path, **loading))
    for rows in (1, 300):
        features = zoo.request(rows, seed=4000 + rows)
        assert assert_host_is_tensorflows(model, found.bundle, found.manifest, features) >= 3


def test_all_of_these_are_in_the_zoo() -> None:
    assert set(PREPROCESSING) <= {m.name for m in ZOO}


# --- small models ---


@dataclass(frozen=True)
class Small:
    function: Callable[..., Any]
    specs: tuple[Any, ...]
    draw: Callable[[int, np.random.Generator], Features]
    dense: bool = True


def words(rows: int, rng: np.random.Generator, *shape: int) -> np.ndarray:
    pool = [*(w.encode() for w in WORDS), b"", b"unknown", b"\xff\xfe", b" spaces \t"]
    return rng.choice(np.array(pool, object), (rows, *shape))


def lengths_of(rows: int, rng: np.random.Generator) -> np.ndarray:
    """Every third bag is empty, the first among them."""
    return np.where(np.arange(rows) % 3 == 0, 0, rng.integers(1, 5, rows))


def spec(name: str, dtype: tf.DType, *shape: int | None) -> tf.TensorSpec:
    return tf.TensorSpec([None, *shape], dtype, name)


def vocabulary(oov: int = 0) -> Any:
    known = tf.lookup.KeyValueTensorInitializer(
        [w.encode() for w in WORDS], tf.range(len(WORDS), dtype=tf.int64)
    )
    if oov:
        return tf.lookup.StaticVocabularyTable(known, oov)
    return tf.lookup.StaticHashTable(known, -1)


def _hashes(table: Any, oov: Any) -> Callable[..., Any]:
    def serve(s: Any, x: Any) -> dict[str, Any]:
        fast = tf.strings.to_hash_bucket_fast(tf.strings.lower(s, encoding="utf-8"), 30)
        strong = tf.strings.to_hash_bucket_strong(s, 30, [12345, 67890])
        known = tf.where(table.lookup(s) < 0, tf.constant(29, tf.int64), table.lookup(s))
        found = [tf.gather(TABLE, i) for i in (fast, strong, known, oov.lookup(s))]
        return {"y": tf.reduce_sum(tf.add_n(found) * x[:, None], 1)}

    return serve


def _ids(ids: Any, x: Any) -> dict[str, Any]:
    """Negative ids and ids beyond the table, as teams guard against them."""
    wrapped = tf.math.floormod(ids, 30)
    clipped = tf.clip_by_value(ids, 0, 29)
    doubled = tf.reduce_sum(tf.one_hot(ids, 5), 1)
    crossed = tf.gather(TABLE, tf.math.floormod(ids[:, 0] * 7 + ids[:, 1], 30))
    both = tf.reduce_sum(tf.gather(TABLE, wrapped) - tf.gather(TABLE, clipped), 1) + crossed
    return {"y": tf.reduce_sum(both, 1) * x + tf.reduce_sum(doubled, 1)}


def _bags(combiner: str) -> Callable[..., Any]:
    def serve(bag: tf.SparseTensor, w: tf.SparseTensor, x: Any) -> dict[str, Any]:
        weights = tf.SparseTensor(bag.indices, w.values, bag.dense_shape)
        found = tf.nn.safe_embedding_lookup_sparse(TABLE, bag, weights, combiner=combiner)
        return {"y": tf.reduce_sum(found, 1) * x}

    return serve


def _bag_features(rows: int, rng: np.random.Generator) -> Features:
    counts = lengths_of(rows, rng)
    row = np.repeat(np.arange(rows), counts)
    column = np.concatenate([np.arange(c) for c in counts]) if counts.any() else np.zeros(0, np.int64)
    indices = np.stack([row, column], 1).astype(np.int64)
    shape = np.array([rows, max(1, counts.max(initial=1))], np.int64)
    size = len(indices)
    return {
        "bag": indices, "bag_1": rng.integers(-3, 30, size), "bag_2": shape,
        "w": indices, "w_1": rng.uniform(0.1, 2.0, size).astype(np.float32), "w_2": shape,
        "x": rng.standard_normal(rows).astype(np.float32),
    }  # fmt: skip


def _ragged(r: tf.RaggedTensor, x: Any) -> dict[str, Any]:
    rows = tf.gather(TABLE, r % 30)
    first = tf.gather(TABLE, r.to_tensor(default_value=3, shape=[None, 3]) % 30)
    pooled = tf.reduce_sum(rows, 1) + tf.reduce_mean(first, 1)
    return {"y": tf.reduce_sum(pooled, 1) * x + tf.cast(r.row_lengths(), tf.float32)}


def _ragged_features(rows: int, rng: np.random.Generator) -> Features:
    splits = np.concatenate([[0], np.cumsum(lengths_of(rows, rng))]).astype(np.int64)
    return {
        "r": rng.integers(0, 99, splits[-1]), "r_1": splits,
        "x": rng.standard_normal(rows).astype(np.float32),
    }  # fmt: skip


SPARSE = (
    tf.SparseTensorSpec([None, None], tf.int64), tf.SparseTensorSpec([None, None], tf.float32),
    spec("x", tf.float32),
)  # fmt: skip


def _words_and_x(rows: int, rng: np.random.Generator) -> Features:
    return {"s": words(rows, rng), "x": rng.standard_normal(rows).astype(np.float32)}


def _split(table: Any) -> Callable[..., Any]:
    def serve(s: Any, x: Any) -> dict[str, Any]:
        parts = tf.strings.split(tf.strings.regex_replace(s, "[aeiou]", ","), ",")
        ids = tf.ragged.map_flat_values(tf.strings.to_hash_bucket_fast, parts, 30)
        lengths = tf.strings.length(s, unit="UTF8_CHAR") + tf.strings.length(s)
        pooled = tf.reduce_sum(tf.gather(TABLE, ids), 1)
        return {"y": tf.reduce_sum(pooled, 1) * x + tf.cast(lengths, tf.float32)}

    return serve


def _hashing(table: Any, oov: Any) -> tuple[Small, tuple[Any, ...]]:
    specs = spec("s", tf.string), spec("x", tf.float32)
    return Small(_hashes(table, oov), specs, _words_and_x), (table, oov)


SMALL = {
    "hashes and vocabularies": lambda: _hashing(vocabulary(), vocabulary(4)),
    "split strings": lambda: (
        Small(_split(None), (spec("s", tf.string), spec("x", tf.float32)), _words_and_x), ()
    ),
    "ids": lambda: (
        Small(
            _ids, (spec("ids", tf.int64, 3), spec("x", tf.float32)),
            lambda rows, rng: {
                "ids": rng.integers(-40, 60, (rows, 3)), "x": rng.standard_normal(rows).astype(np.float32),
            },
        ), (),
    ),
    **{
        f"bags {c}": lambda c=c: (Small(_bags(c), SPARSE, _bag_features), ())
        for c in ("sum", "mean", "sqrtn")
    },
    "ragged": lambda: (
        Small(
            _ragged, (tf.RaggedTensorSpec([None, None], tf.int64, 1), spec("x", tf.float32)), _ragged_features
        ), (),
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=SMALL, ids=str)
def small(request: pytest.FixtureRequest, once: Once) -> Any:
    """`(model, bundle, manifest, draw)` of one of the small models."""
    with tf.init_scope():
        made, owned = SMALL[request.param]()

    def build(directory: Path) -> None:
        module = tf.Module()
        module.owned = list(owned)
        module.serve = tf.function(made.function, input_signature=list(made.specs))
        tf.saved_model.save(module, str(directory / "m"), signatures=module.serve.get_concrete_function())
        convert(directory / "m", directory / "b")

    directory = once(f"small-{request.param.replace(' ', '_')}", build)
    bundle = directory / "b"
    return FlatModel(load(directory / "m")), bundle, files.read_manifest(bundle), made.draw


@pytest.mark.parametrize("rows", [1, 2, 7, 300])
def test_small_models(small: Any, rows: int) -> None:
    model, bundle, manifest, draw = small
    features = draw(rows, np.random.default_rng(rows))
    assert assert_host_is_tensorflows(model, bundle, manifest, features) >= 1


def test_weights_that_are_not_numbers(tmp_path: Path) -> None:
    """NaN and infinite weights of a bag make its sum what TensorFlow's is; other bags are as they were."""
    module = tf.Module()
    module.serve = tf.function(_bags("sum"), input_signature=list(SPARSE))
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=module.serve.get_concrete_function())
    manifest = convert(tmp_path / "m", tmp_path / "b")
    features = _bag_features(30, np.random.default_rng(1))
    features["w_1"][[0, 5, 9]] = np.nan, np.inf, -np.inf
    features["bag_1"][[0, 5, 9]] = 1, 2, 3
    assert (
        assert_host_is_tensorflows(FlatModel(load(tmp_path / "m")), tmp_path / "b", manifest, features) >= 1
    )


# --- the live graph ---


def test_the_live_graph_gives_any_tensor(small: Any) -> None:
    """Every tensor of the source that is a number or a string, and the same outputs as the exported model."""
    model, _, _, draw = small
    features = draw(7, np.random.default_rng(3))
    names = [
        n
        for n, t in model.live.flat.tensors.items()
        if isinstance(t, tf.Tensor) and t.dtype not in (tf.resource, tf.variant)
        and t.graph is model.live.flat.graph
    ]  # fmt: skip
    values = model.live.run(names, features)
    assert len(values) > 5
    outputs = [t.tensor_name for t in model.source.outputs]
    for found, expected in zip(
        model.live.run(outputs, features), model.source.run(outputs, features), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
