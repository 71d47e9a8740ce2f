"""Which inputs are the request's: by pattern, by signature, and by what the graph does with them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from converters.convert import convert, run_flax
from converters.errors import ConversionError
from converters.report import read_report

_RNG = np.random.default_rng(11)
W = tf.constant(_RNG.standard_normal((4, 4)), tf.float32)
TABLE = tf.constant(_RNG.standard_normal((20, 4)), tf.float32)


def _save(path: Path, score: Callable, **specs: Any) -> Path:
    module = tf.Module()
    module.f = tf.function(score, input_signature=[tf.TensorSpec(s, d, n) for n, (s, d) in specs.items()])
    tf.saved_model.save(module, str(path), signatures=module.f)
    return path


def _tiled(user: Any, item: Any) -> dict[str, Any]:
    both = tf.concat([tf.tile(user @ W, [tf.shape(item)[0], 1]), item @ W], 1)
    return {"y": tf.reduce_sum(tf.tanh(both), 1)}


def test_an_input_that_the_graph_tiles_is_the_requests(tmp_path: Path) -> None:
    """The signature leaves its rows open, but with more than one it would not run."""
    path = _save(tmp_path / "m", _tiled, user=([None, 4], tf.float32), item=([None, 4], tf.float32))
    manifest = convert(path, tmp_path / "b")
    assert {t.name: t.scope for t in manifest.signature.inputs} == {"user": "request", "item": "candidate"}
    assert "repeats it for every row" in read_report(tmp_path / "b").scope_reasons["user"]
    rng = np.random.default_rng(0)
    features = {n: rng.standard_normal((r, 4)).astype(np.float32) for n, r in (("user", 1), ("item", 60))}
    (found,) = run_flax(tmp_path / "b", manifest, [features])
    expected = _tiled(tf.constant(features["user"]), tf.constant(features["item"]))["y"].numpy()
    np.testing.assert_allclose(found["y"], expected, rtol=1e-5, atol=1e-5)


def test_a_request_id_crossed_with_every_candidates(tmp_path: Path) -> None:
    """A sparse cross of a request's feature and a candidate's: the request's indices are made again for every
    candidate, not repeated."""

    def crossed(city: Any, tags: Any) -> dict[str, Any]:
        cross = tf.sparse.cross_hashed(
            [tf.sparse.from_dense(city), tf.sparse.from_dense(tags)], num_buckets=20
        )
        bag = tf.nn.safe_embedding_lookup_sparse(TABLE, cross, combiner="sum")
        return {"y": tf.reduce_sum(tf.ensure_shape(bag, [None, 4]), 1)}

    path = _save(tmp_path / "m", crossed, city=([None, 1], tf.string), tags=([None, 3], tf.string))
    manifest = convert(path, tmp_path / "b", request_inputs=["city"])
    words = np.array([b"", b"a", b"\xc3\xa9", b"longer"], object)
    for rows in (1, 5, 77):
        rng = np.random.default_rng(rows)
        features = {"city": rng.choice(words[1:], (1, 1)), "tags": rng.choice(words, (rows, 3))}
        (found,) = run_flax(tmp_path / "b", manifest, [features])
        repeated = {"city": np.repeat(features["city"], rows, 0), "tags": features["tags"]}
        expected = (
            tf.saved_model.load(str(path))
            .signatures["serving_default"](
                **{k: tf.constant(v.tolist(), shape=v.shape) for k, v in repeated.items()}
            )["y"]
            .numpy()
        )
        np.testing.assert_allclose(found["y"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("patterns", "message"), [(["nothing*"], "matches no input"), (["*"], "nothing to rank")]
)
def test_patterns_that_make_no_sense(tmp_path: Path, patterns: list[str], message: str) -> None:
    path = _save(tmp_path / "m", _tiled, user=([1, 4], tf.float32), item=([None, 4], tf.float32))
    with pytest.raises(ConversionError, match=message):
        convert(path, tmp_path / "b", request_inputs=patterns)
    assert not (tmp_path / "b").exists()
