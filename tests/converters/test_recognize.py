"""Sub-graphs that TensorFlow spells in many ops become one host operator, with TensorFlow's own values."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from converters.convert import convert, run_flax
from jaxrank import bundle as files
from serving.tables import open_table

_RNG = np.random.default_rng(3)
ROWS, DIM = 40, 4
TABLE = _RNG.standard_normal((ROWS, DIM)).astype(np.float32)


def _save(path: Path, function: Callable[..., Any], *specs: Any) -> Path:
    """Saves `function(table, ...)` as a model; its argument names are the inputs'."""
    module = tf.Module()
    module.table = tf.Variable(TABLE, name="item_table")
    module.f = tf.function(partial(function, module.table), input_signature=list(specs))
    tf.saved_model.save(module, str(path), signatures=module.f)
    return path


def _bag_request(rows: int, seed: int, lowest: int = -2) -> dict[str, np.ndarray]:
    """Bags of 0 to 5 ids with weights, some of them zero and negative; ids from `lowest`."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 6, rows)
    lengths[-1] = 3  # a plain lookup has rows up to the last one with an id
    indices = np.array([[r, c] for r, n in enumerate(lengths) for c in range(n)], np.int64).reshape(-1, 2)
    ids = rng.integers(lowest, ROWS, len(indices))
    weights = rng.normal(0.5, 1.0, len(indices)).astype(np.float32)
    weights[rng.random(len(weights)) < 0.2] = 0.0
    shape = np.array([rows, 6], np.int64)
    return {
        "ids": indices, "ids_1": ids, "ids_2": shape,
        "weights": indices, "weights_1": weights, "weights_2": shape,
    }  # fmt: skip


SPARSE_IDS = tf.SparseTensorSpec([None, None], tf.int64)
SPARSE_WEIGHTS = tf.SparseTensorSpec([None, None], tf.float32)


@pytest.mark.parametrize("combiner", ["sum", "mean", "sqrtn"])
@pytest.mark.parametrize("max_norm", [None, 1.5])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("default_id", [None, 7])
def test_safe_embedding_bag(
    tmp_path: Path, combiner: str, max_norm: float | None, weighted: bool, default_id: int | None
) -> None:
    """1e-6: sums of at most five rows of a table in another order."""

    module = tf.Module()
    module.table = tf.Variable(TABLE, name="item_table")

    def score(ids: Any, weights: Any) -> dict[str, Any]:
        pooled = tf.nn.safe_embedding_lookup_sparse(
            module.table,
            ids,
            weights if weighted else None,
            combiner=combiner,
            max_norm=max_norm,
            default_id=default_id,
        )
        total = tf.reduce_sum(tf.ensure_shape(pooled, [None, DIM]) * tf.range(1.0, DIM + 1), 1)
        return {"y": total + 0 * tf.sparse.reduce_sum(weights, 1)}

    module.f = tf.function(score, input_signature=[SPARSE_IDS, SPARSE_WEIGHTS])
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=module.f)
    manifest = convert(tmp_path / "m", tmp_path / "b")
    operators = files.read_host_program(tmp_path / "b").operators
    bag = [o for o in operators if o.op == "embedding_bag"]
    assert len(bag) == 1, [o.op for o in operators]
    assert bag[0].attrs["combiner"] == combiner and bag[0].attrs["safe"]
    assert bag[0].attrs.get("max_norm") == max_norm and bag[0].attrs.get("default_id") == default_id
    assert not {o.op for o in operators} & {"unique", "where", "sparse_fill_empty_rows", "segment_sum"}
    reference = tf.saved_model.load(str(tmp_path / "m")).signatures["serving_default"]
    for rows in (1, 2, 60):
        features = _bag_request(rows, seed=rows)
        (found,) = run_flax(tmp_path / "b", manifest, [features])
        expected = reference(**{k: tf.constant(v) for k, v in features.items()})["y"].numpy()
        np.testing.assert_allclose(found["y"], expected, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("combiner", ["sum", "mean", "sqrtn"])
def test_plain_embedding_bag(tmp_path: Path, combiner: str) -> None:
    def bags(table: Any, ids: Any) -> dict[str, Any]:
        return {"y": tf.reduce_sum(tf.nn.embedding_lookup_sparse(table, ids, None, combiner=combiner), 1)}

    path = _save(tmp_path / "m", bags, SPARSE_IDS)
    # Every row has an id: TensorFlow gives no row for empty ones at the end.
    requests = {}
    for i, rows in enumerate((1, 3, 9)):
        request = _bag_request(rows, seed=i, lowest=0)
        starts = np.array([[r, 0] for r in range(rows)], np.int64)
        requests |= {
            f"{i}/ids": starts, f"{i}/ids_1": (request["ids_1"][:1].repeat(rows) + np.arange(rows)) % ROWS,
            f"{i}/ids_2": np.array([rows, 6], np.int64),
        }  # fmt: skip
    np.savez(tmp_path / "r.npz", **requests)
    names = {t.name for t in convert(path, tmp_path / "b", examples=tmp_path / "r.npz").signature.inputs}
    assert len(names) == 3
    (bag,) = [o for o in files.read_host_program(tmp_path / "b").operators if o.op == "embedding_bag"]
    assert bag.attrs["combiner"] == combiner and not bag.attrs["safe"]


@pytest.mark.parametrize("strategy", ["mod", "div"])
@pytest.mark.parametrize("partitions", [2, 3])
def test_partitioned_table_is_one_table(tmp_path: Path, strategy: str, partitions: int) -> None:
    """The partitions of both strategies, whose sizes differ by one where they do not divide the rows."""
    tf1: Any = tf.compat.v1
    with tf.Graph().as_default(), tf1.Session() as session:
        ids = tf1.placeholder(tf.int64, [None], "item_id")
        parts = [
            TABLE[i::partitions] if strategy == "mod" else np.array_split(TABLE, partitions)[i]
            for i in range(partitions)
        ]
        variables = [tf1.get_variable(f"table/part_{i}", initializer=p) for i, p in enumerate(parts)]
        rows = tf1.nn.embedding_lookup(variables, ids, partition_strategy=strategy)
        score = tf.reduce_sum(rows * TABLE[0], 1)
        session.run(tf1.global_variables_initializer())
        tf1.saved_model.simple_save(session, str(tmp_path / "m"), {"item_id": ids}, {"score": score})
    manifest = convert(tmp_path / "m", tmp_path / "b")
    operators = files.read_host_program(tmp_path / "b").operators
    assert [o.op for o in operators] == ["embedding_lookup"]
    (table,) = manifest.tables
    np.testing.assert_array_equal(open_table(tmp_path / "b" / table.file).array, TABLE)


def test_a_lookup_that_only_resembles_a_bag_is_left_alone(tmp_path: Path) -> None:
    """Segments of something else than the rows: the ops stay, and the scores are right."""

    def pooled(table: Any, ids: Any) -> dict[str, Any]:
        found = tf.gather(table, ids)
        return {"y": tf.math.segment_mean(tf.reduce_sum(found, 1), tf.range(tf.shape(ids)[0]))}

    path = _save(tmp_path / "m", pooled, tf.TensorSpec([None], tf.int64))
    manifest = convert(path, tmp_path / "b")
    ids = np.arange(57) % ROWS
    (found,) = run_flax(tmp_path / "b", manifest, [{"ids": ids}])
    np.testing.assert_allclose(found["y"], TABLE.sum(1)[ids], rtol=1e-5, atol=1e-5)
    kinds = [o.op for o in files.read_host_program(tmp_path / "b").operators]
    assert "segment_mean" in kinds and "embedding_bag" not in kinds


def _near_miss(ids: Any, weights: Any, kind: str) -> Any:
    """Sub-graphs that differ from a bag in one place."""
    table = tf.constant(TABLE)
    if kind == "rounded weights":
        weights = weights.with_values(tf.cast(tf.cast(weights.values, tf.int32), tf.float32))
        return tf.nn.safe_embedding_lookup_sparse(table, ids, weights, combiner="sum")
    if kind == "a padding id":
        kept = tf.sparse.retain(ids, (ids.values >= 0) & (ids.values != 3))
        return tf.nn.safe_embedding_lookup_sparse(table, kept, combiner="mean")
    segments = ids.indices[:, 0]
    weights_column = tf.expand_dims(tf.abs(weights.values) + 0.5, 1)
    rows = tf.gather(table, tf.maximum(ids.values, 0)) * weights_column
    total = tf.math.unsorted_segment_sum(rows, segments, ids.dense_shape[0])
    divisor = tf.math.unsorted_segment_sum(weights_column, segments, ids.dense_shape[0])
    return total / tf.maximum(divisor, 1.0)


@pytest.mark.parametrize("kind", ["rounded weights", "a padding id", "a divisor of its own"])
def test_near_misses_keep_their_meaning(tmp_path: Path, kind: str) -> None:
    """Recognised or not, the scores are TensorFlow's on weights and ids that tell the difference."""
    module = tf.Module()

    def score(ids: Any, weights: Any) -> dict[str, Any]:
        pooled = tf.ensure_shape(_near_miss(ids, weights, kind), [None, DIM])
        return {"y": tf.reduce_sum(pooled * tf.range(1.0, DIM + 1), 1) + 0 * tf.sparse.reduce_sum(weights, 1)}

    module.f = tf.function(score, input_signature=[SPARSE_IDS, SPARSE_WEIGHTS])
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=module.f)
    recorded = {f"{i}/{k}": v for i, n in enumerate((1, 9, 60)) for k, v in _bag_request(n, seed=i).items()}
    np.savez(tmp_path / "r.npz", **recorded)
    manifest = convert(tmp_path / "m", tmp_path / "b", examples=tmp_path / "r.npz")
    reference = tf.saved_model.load(str(tmp_path / "m")).signatures["serving_default"]
    for rows in (1, 5, 80):
        features = _bag_request(rows, seed=50 + rows)
        features["weights_1"] = features["weights_1"] * 3
        (found,) = run_flax(tmp_path / "b", manifest, [features])
        expected = reference(**{k: tf.constant(v) for k, v in features.items()})["y"].numpy()
        np.testing.assert_allclose(found["y"], expected, rtol=1e-5, atol=1e-5)
