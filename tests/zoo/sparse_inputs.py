"""Signatures whose inputs are sparse or ragged tensors. A SavedModel flattens them: a sparse `tags` becomes
`tags` (indices), `tags_1` (values), `tags_2` (dense shape); a ragged one values and row splits."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf
from keras import layers

from tests.zoo import references
from tests.zoo.drawing import BRANDS, Draw
from tests.zoo.model import Features, ZooModel
from tests.zoo.saving import FLOAT, INT, STRING, Tensors, save_module, spec

ROWS_OF_TABLE = 150


class SparseBags(tf.Module):
    """One sparse id feature and its weights through every combiner, with and without weights and norms.

    Strict lookups refuse negative ids and give no row to a trailing empty bag, so they get a first id in each
    bag and ids from 0; the safe ones get the bags as they are, and drop negative ids and weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tables = {
            name: tf.Variable(tf.zeros([ROWS_OF_TABLE, 6 * width]), name=f"{name}_table")
            for name in ("sum", "mean", "sqrtn", "weighted", "clipped", "default")
        }
        self.hidden = layers.Dense(24 * width, "relu", name="hidden")
        self.out = layers.Dense(1, "sigmoid", name="ctr")

    def __call__(self, f: Tensors) -> dict[str, tf.Tensor]:
        ids: tf.SparseTensor = f["tags"]
        weights: tf.SparseTensor = f["weights"]
        own = tf.sparse.from_dense(f["item_id"][:, None] % (ROWS_OF_TABLE - 1) + 1)
        known = tf.SparseTensor(ids.indices, tf.maximum(ids.values, 0), ids.dense_shape)
        full = tf.sparse.concat(1, [own, known], expand_nonconcat_dims=True)
        strict, safe, tables = tf.nn.embedding_lookup_sparse, tf.nn.safe_embedding_lookup_sparse, self.tables
        bags = [
            strict(tables["sum"], full, None, combiner="sum"),
            strict(tables["mean"], full, None, combiner="mean", max_norm=0.8),
            safe(tables["sqrtn"], ids, combiner="sqrtn"),
            safe(tables["weighted"], ids, weights, combiner="sqrtn"),
            safe(tables["clipped"], ids, weights, combiner="sum", max_norm=0.5),
            safe(tables["default"], ids, combiner="mean", default_id=7),
        ]
        x = tf.concat([*bags, f["price"]], axis=-1)
        return {"ctr": self.out(self.hidden(x))[:, 0]}


def save_sparse_bags(directory: Path, width: int = 1) -> Path:
    specs = {
        "tags": tf.SparseTensorSpec([None, None], INT),
        "weights": tf.SparseTensorSpec([None, None], FLOAT),
        "item_id": spec(INT, None),
        "price": spec(FLOAT, None, 1),
    }
    return save_module(SparseBags(width), specs, directory, seed=71)


def sparse_bags_request(rows: int, seed: int) -> Features:
    draw = Draw(seed)
    counts = draw.lengths(5, rows)
    indices = np.stack([np.repeat(np.arange(rows), counts), _positions(counts)], axis=1).astype(np.int64)
    shape = np.array([rows, 5], np.int64)
    return {
        "tags": indices,
        "tags_1": draw.values(ROWS_OF_TABLE, counts, low=-10),
        "tags_2": shape,
        "weights": indices,
        "weights_1": draw.rng.uniform(-0.3, 2.0, len(indices)).astype(np.float32),
        "weights_2": shape,
        "item_id": draw.ids(ROWS_OF_TABLE, rows),
        "price": draw.floats(rows, 1),
    }


def take_sparse_row(features: Mapping[str, np.ndarray], row: int) -> Features:
    """One row of the sparse features, and of the dense ones beside them."""
    held = features["tags"][:, 0] == row
    indices = features["tags"][held] * np.array([0, 1])
    shape = np.array([1, 5], np.int64)
    taken = {
        "tags": indices, "tags_1": features["tags_1"][held], "tags_2": shape,
        "weights": indices, "weights_1": features["weights_1"][held], "weights_2": shape,
    }  # fmt: skip
    return taken | {n: features[n][row : row + 1] for n in ("item_id", "price")}


class RaggedBags(tf.Module):
    """Ragged ids and words: a bag of vectors by sum, mean and max, its length, and its first word."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.items = tf.Variable(tf.zeros([ROWS_OF_TABLE, 8 * width]), name="item_table")
        self.words = tf.Variable(tf.zeros([64, 8]), name="word_table")
        self.hidden = layers.Dense(24 * width, "relu", name="hidden")
        self.out = layers.Dense(1, "sigmoid", name="ctr")

    def __call__(self, f: Tensors) -> dict[str, tf.Tensor]:
        items: tf.RaggedTensor = f["similar"]
        words: tf.RaggedTensor = f["words"]
        vectors = tf.nn.embedding_lookup(self.items, items)
        buckets = words.with_values(tf.strings.to_hash_bucket_fast(words.values, 64))
        pooled = tf.nn.safe_embedding_lookup_sparse(self.words, buckets.to_sparse(), combiner="mean")
        padded = tf.gather(self.words, buckets).to_tensor(shape=[None, 4, 8])
        lengths = tf.cast(items.row_lengths(), tf.float32)[:, None]
        x = tf.concat(
            [
                tf.reduce_sum(vectors, axis=1) * 0.5,
                tf.math.divide_no_nan(tf.reduce_sum(vectors, axis=1), lengths),
                pooled,
                tf.reduce_max(padded, axis=1),
                tf.math.log1p(lengths),
                f["price"][:, None],
            ],
            axis=-1,
        )
        return {"ctr": self.out(self.hidden(x))}


def save_ragged_bags(directory: Path, width: int = 1) -> Path:
    specs = {
        "similar": tf.RaggedTensorSpec([None, None], INT, ragged_rank=1, row_splits_dtype=tf.int64),
        "words": tf.RaggedTensorSpec([None, None], STRING, ragged_rank=1, row_splits_dtype=tf.int64),
        "price": spec(FLOAT, None),
    }
    return save_module(RaggedBags(width), specs, directory, seed=72)


def ragged_bags_request(rows: int, seed: int) -> Features:
    draw = Draw(seed)
    similar, words = draw.lengths(6, rows), draw.lengths(5, rows)
    return {
        "similar": draw.values(ROWS_OF_TABLE, similar),
        "similar_1": _splits(similar),
        "words": draw.strings(BRANDS, int(words.sum())),
        "words_1": _splits(words),
        "price": draw.floats(rows),
    }


def take_ragged_row(features: Mapping[str, np.ndarray], row: int) -> Features:
    """One row of the ragged features, and of the dense one beside them."""
    taken: Features = {"price": features["price"][row : row + 1]}
    for name in ("similar", "words"):
        start, stop = features[f"{name}_1"][row : row + 2]
        taken |= {name: features[name][start:stop], f"{name}_1": np.array([0, stop - start], np.int64)}
    return taken


def _positions(counts: np.ndarray) -> np.ndarray:
    """0, 1, ... within each bag."""
    return np.concatenate([np.arange(n) for n in counts]) if len(counts) else np.zeros(0, int)


def _splits(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


MODELS = (
    ZooModel(
        "sparse_bags", "tf2_module",
        "SparseTensor inputs: strict and safe lookups, all combiners, weights, norms",
        save_sparse_bags, sparse_bags_request, references.signature(), take=take_sparse_row,
    ),
    ZooModel(
        "ragged_bags", "tf2_module", "RaggedTensor inputs: sums, means, maxima, safe lookup of words",
        save_ragged_bags, ragged_bags_request, references.signature(), take=take_ragged_row,
    ),
)  # fmt: skip
