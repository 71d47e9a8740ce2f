"""Models whose scores depend on the other candidates, and how they are told from those that do not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from converters.convert import convert, run_flax
from converters.errors import ConversionError
from converters.whole_batch import ROWS, merge
from jaxrank.manifest import Manifest

_RNG = np.random.default_rng(5)
W = tf.constant(_RNG.standard_normal((8, 8)), tf.float32)
V = tf.constant(_RNG.standard_normal((8, 1)), tf.float32)
X = tf.TensorSpec([None, 8], tf.float32, "x")
USER = tf.TensorSpec([1, 8], tf.float32, "user")
TABLE = tf.constant(_RNG.standard_normal((30, 8)), tf.float32)
IDS = tf.TensorSpec([None], tf.int64, "ids")


def _softmax(x: Any) -> Any:
    return tf.nn.softmax((x @ W @ V)[:, 0])


def _attention(x: Any) -> Any:
    weights = tf.nn.softmax(tf.matmul(x @ W, x, transpose_b=True) / 3.0)
    return (tf.nn.tanh(weights @ x) @ V)[:, 0]


def _centered(x: Any, user: Any) -> Any:
    both = tf.concat([x, tf.tile(user, [tf.shape(x)[0], 1])], 1)
    return tf.reduce_sum((x - tf.reduce_mean(x, 0)) * both[:, 8:], 1)


def _share(x: Any) -> Any:
    return tf.nn.sigmoid(x @ V)[:, 0] / tf.cast(tf.shape(x)[0], tf.float32)


def _position(x: Any) -> Any:
    return x[:, 0] + tf.cast(tf.range(tf.shape(x)[0]), tf.float32) / 100.0


def _looked_up(ids: Any) -> Any:
    rows = tf.gather(TABLE, ids)
    return tf.reduce_sum(rows * tf.reduce_max(rows, 0), 1)


MIXING = [
    pytest.param(_softmax, (X,), id="softmax over candidates"),
    pytest.param(_attention, (X,), id="attention between candidates"),
    pytest.param(_centered, (X, USER), id="mean over candidates, with a user"),
    pytest.param(_share, (X,), id="divided by their number"),
    pytest.param(_looked_up, (IDS,), id="embeddings of all candidates"),
]


def _converted(function: Callable, specs: tuple[Any, ...], path: Path) -> tuple[Manifest, Any]:
    module = tf.Module()
    module.f = tf.function(lambda *a: {"y": function(*a)}, input_signature=list(specs))
    tf.saved_model.save(module, str(path / "m"), signatures=module.f)
    manifest = convert(path / "m", path / "b")
    return manifest, tf.saved_model.load(str(path / "m")).signatures["serving_default"]


def _features(specs: tuple[Any, ...], rows: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(rows)
    found = {}
    for spec in specs:
        shape = tuple(rows if d is None else d for d in spec.shape)
        numbers = rng.standard_normal(shape).astype(np.float32)
        found[spec.name] = rng.integers(0, 30, shape) if spec.dtype.is_integer else numbers
    return found


@pytest.mark.parametrize(("function", "specs"), MIXING)
def test_mixing_models_take_all_candidates_at_once(function: Callable, specs: Any, tmp_path: Path) -> None:
    """1e-5: float32 sums in another order, over up to 700 candidates."""
    manifest, reference = _converted(function, specs, tmp_path)
    assert not manifest.row_wise
    for rows in (1, 2, 131, 700):
        features = _features(specs, rows)
        (found,) = run_flax(tmp_path / "b", manifest, [features])
        expected = reference(**{k: tf.constant(v) for k, v in features.items()})["y"].numpy()
        np.testing.assert_allclose(found["y"], expected, rtol=1e-5, atol=1e-5)


def test_row_wise_models_are_not_taken_for_mixing(tmp_path: Path) -> None:
    manifest, _ = _converted(lambda x, user: tf.nn.tanh((x * user) @ V)[:, 0], (X, USER), tmp_path)
    assert manifest.row_wise


def _triangular(x: Any) -> Any:
    n = tf.shape(x)[0]
    return tf.matmul(tf.linalg.band_part(tf.ones([n, n]), -1, 0), x @ V)[:, 0]


@pytest.mark.parametrize("function", [_position, _triangular])
def test_constants_with_an_entry_for_each_candidate_are_refused(function: Callable, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="cannot be one module"):
        _converted(function, (X,), tmp_path)
    assert not (tmp_path / "b").exists()


def _text(rows: int, number: object) -> str:
    return f"y = x.reshape({number}, 8)  # {'rows'}\n"


def test_numbers_become_expressions() -> None:
    def merged(*numbers: object) -> str:
        return merge([_text(r, n) for r, n in zip(ROWS, numbers, strict=True)], None).split("reshape(")[1]

    assert merged(*ROWS).startswith("n, 8)")
    assert merged(*(4 * r for r in ROWS)).startswith("4 * n, 8)")
    assert merged(*(r + 1 for r in ROWS)).startswith("(n + 1), 8)")
    assert merged(*(2 * r - 3 for r in ROWS)).startswith("(2 * n - 3), 8)")
    assert merged(*(3.0 / r for r in ROWS)).startswith("(3.0 / n), 8)")
    assert merged(7, 7, 7).startswith("7, 8)")
    with pytest.raises(ConversionError, match="no multiple"):
        merged(*(r * r for r in ROWS))
    with pytest.raises(ConversionError, match="something else"):
        merge(["a = 1\n", "b = 1\n", "a = 1\n"], None)
