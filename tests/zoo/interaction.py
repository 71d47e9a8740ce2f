"""Models of feature interaction by attention, bilinear forms and dot products, and two towers."""

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from tests.zoo import references
from tests.zoo.drawing import BRANDS, CITIES, DEVICES, QUERIES, Draw
from tests.zoo.model import USER_INPUTS, Features, ZooModel
from tests.zoo.saving import FLOAT, INT, STRING, Tensors, export_keras, save_module, spec

ITEMS = 250


def save_autoint(directory: Path, width: int = 1) -> Path:
    """Multi-head self-attention over the fields, with residual projections, twice."""
    inputs = {
        "user_city": keras.Input((), dtype="string", name="user_city"),
        "user_device": keras.Input((), dtype="string", name="user_device"),
        "item_id": keras.Input((), dtype="int64", name="item_id"),
        "item_brand": keras.Input((), dtype="string", name="item_brand"),
        "item_stats": keras.Input((3,), name="item_stats"),
    }
    rank = 8 * width
    city = layers.StringLookup(vocabulary=list(CITIES))(inputs["user_city"])
    fields = [
        layers.Embedding(len(CITIES) + 1, rank, name="city_embedding")(city),
        layers.Embedding(20, rank, name="device_embedding")(layers.Hashing(20)(inputs["user_device"])),
        layers.Embedding(ITEMS, rank, name="item_embedding")(layers.Hashing(ITEMS)(inputs["item_id"])),
        layers.Embedding(40, rank, name="brand_embedding")(
            layers.Hashing(40, mask_value="")(inputs["item_brand"])
        ),
    ]
    # A numeric field is its value times a learned vector.
    scaled = layers.EinsumDense("bf,fd->bfd", (3, rank), name="numeric_embedding")(inputs["item_stats"])
    x = ops.concatenate([ops.stack(fields, axis=1), scaled], axis=1)
    for i in range(2):
        attended = layers.MultiHeadAttention(2, 4 * width, name=f"interact_{i}")(x, x)
        x = layers.ReLU()(attended + layers.Dense(rank, use_bias=False, name=f"residual_{i}")(x))
    logit = layers.Dense(1, name="logit")(layers.Flatten()(x))
    model = keras.Model(inputs, {"ctr": ops.sigmoid(logit)[:, 0]}, name="autoint")
    return export_keras(model, directory, seed=11)


def autoint_request(rows: int, seed: int) -> Features:
    draw = Draw(seed)
    return {
        "user_city": draw.strings(CITIES, 1),
        "user_device": draw.strings(DEVICES, 1),
        "item_id": draw.ids(ITEMS, rows),
        "item_brand": draw.strings(BRANDS, rows),
        "item_stats": draw.floats(rows, 3),
    }


class FiBiNET(tf.Module):
    """Squeeze-and-excitation over the fields, then bilinear products of raw and reweighted fields."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.rank, self.names = 6 * width, ("user_id", "user_age", "item_id", "item_brand", "item_hour")
        sizes = (150, 8, ITEMS, 50, 24)
        self.tables = [tf.Variable(tf.zeros([s, self.rank]), name="table") for s in sizes]
        self.squeeze = layers.Dense(2, "relu", use_bias=False, name="squeeze")
        self.excite = layers.Dense(len(sizes), "relu", use_bias=False, name="excite")
        self.pairs = [(i, j) for i in range(len(sizes)) for j in range(i + 1, len(sizes))]
        self.bilinear = [tf.Variable(tf.zeros([self.rank, self.rank]), name="w") for _ in self.pairs]
        self.hidden = layers.Dense(24 * width, "gelu", name="hidden")
        self.out = layers.Dense(1, "sigmoid", name="ctr")

    def products(self, fields: tf.Tensor) -> tf.Tensor:
        parts = tf.unstack(fields, axis=1)
        return tf.concat(
            [
                tf.tensordot(parts[i], w, axes=[[-1], [0]]) * parts[j]
                for (i, j), w in zip(self.pairs, self.bilinear, strict=True)
            ],
            axis=-1,
        )

    def __call__(self, f: Tensors) -> dict[str, tf.Tensor]:
        ids = (
            f["user_id"] % 150,
            tf.raw_ops.Bucketize(input=f["user_age"], boundaries=[12, 18, 25, 35, 45, 60, 75]),
            tf.strings.to_hash_bucket_fast(tf.strings.as_string(f["item_id"]), ITEMS),
            tf.strings.to_hash_bucket_fast(f["item_brand"], 50),
            tf.math.floormod(f["item_timestamp"] // 3600, 24),
        )
        rows = tf.shape(f["item_id"])[0]
        vectors = [tf.nn.embedding_lookup(t, i) for t, i in zip(self.tables, ids, strict=True)]
        vectors = [tf.broadcast_to(v, [rows, self.rank]) for v in vectors[:2]] + vectors[2:]
        fields = tf.stack(vectors, axis=1)
        weights = self.excite(self.squeeze(tf.reduce_mean(fields, axis=-1)))
        reweighted = fields * tf.expand_dims(weights, -1)
        x = tf.concat([self.products(fields), self.products(reweighted)], axis=-1)
        return {"ctr": self.out(self.hidden(x))}


def save_fibinet(directory: Path, width: int = 1) -> Path:
    specs = {
        "user_id": spec(INT, 1),
        "user_age": spec(FLOAT, 1),
        "item_id": spec(INT, None),
        "item_brand": spec(STRING, None),
        "item_timestamp": spec(INT, None),
    }
    return save_module(FiBiNET(width), specs, directory, seed=12)


def fibinet_request(rows: int, seed: int) -> Features:
    draw = Draw(seed)
    return {
        "user_id": draw.ids(150, 1),
        "user_age": draw.rng.uniform(5, 95, 1).astype(np.float32),
        "item_id": draw.ids(ITEMS, rows),
        "item_brand": draw.strings(BRANDS, rows),
        "item_timestamp": draw.rng.integers(1_600_000_000, 1_700_000_000, rows),
    }


class DLRM(tf.Module):
    """Bottom MLP on the numbers, summed bags for the ids, the lower triangle of all dot products, top MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.rank = 8 * width
        self.bottom = [layers.Dense(16 * width, "relu", name="bottom_0"), layers.Dense(self.rank, "relu")]
        self.tables = [tf.Variable(tf.zeros([s, self.rank]), name="table") for s in (ITEMS, 80, 120)]
        self.top = [layers.Dense(32 * width, "relu", name="top_0"), layers.Dense(16, "relu", name="top_1")]
        self.out = layers.Dense(1, name="top_out")

    def bag(self, table: tf.Variable, ids: tf.Tensor) -> tf.Tensor:
        """Sum over a bag padded with negative ids."""
        held = tf.cast(ids >= 0, tf.float32)[..., None]
        rows = tf.gather(table, tf.where(ids >= 0, ids % table.shape[0], tf.zeros_like(ids)))
        return tf.reduce_sum(rows * held, axis=1)

    def __call__(self, f: Tensors) -> dict[str, tf.Tensor]:
        x = tf.math.log1p(tf.nn.relu(f["dense"]))
        for layer in self.bottom:
            x = layer(x)
        bags = [self.bag(t, f[n]) for t, n in zip(self.tables, ("ids_0", "ids_1", "ids_2"), strict=True)]
        vectors = tf.stack([x, *bags], axis=1)
        dots = tf.matmul(vectors, vectors, transpose_b=True)
        lower = np.tril(np.ones((4, 4), bool), k=-1)
        flat = tf.boolean_mask(dots, lower, axis=1)
        hidden = tf.concat([x, tf.ensure_shape(flat, [None, 6])], axis=-1)
        for layer in self.top:
            hidden = layer(hidden)
        return {"ctr": tf.sigmoid(self.out(hidden))}


def save_dlrm(directory: Path, width: int = 1) -> Path:
    specs = {
        "dense": spec(FLOAT, None, 5),
        "ids_0": spec(INT, None, 6),
        "ids_1": spec(INT, None, 2),
        "ids_2": spec(INT, None, 1),
    }
    return save_module(DLRM(width), specs, directory, seed=13)


def dlrm_request(rows: int, seed: int) -> Features:
    draw = Draw(seed)
    return {
        "dense": draw.prices(rows, 5) - 5.0,
        "ids_0": draw.ids(ITEMS, rows, 6, low=-100),
        "ids_1": draw.ids(80, rows, 2, low=-40),
        "ids_2": draw.ids(120, rows, 1),
    }


class TwoTower(tf.Module):
    """A query tower for the one user, an item tower for the candidates, cosine over a temperature."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.words = layers.Embedding(300, 8, name="word_embedding")
        self.user = layers.Embedding(200, 8, name="user_embedding")
        self.item = layers.Embedding(ITEMS + 1, 8, name="item_embedding")
        self.query_tower = [layers.Dense(32 * width, "relu"), layers.Dense(16 * width)]
        self.item_tower = [layers.Dense(32 * width, "selu"), layers.Dense(16 * width)]
        self.temperature = tf.Variable(0.5, trainable=False, name="temperature", dtype=tf.float32)
        self.known = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(
                tf.range(1000, 1000 + ITEMS, dtype=tf.int64), tf.range(ITEMS, dtype=tf.int64)
            ),
            default_value=ITEMS,
        )

    def __call__(self, f: Tensors) -> dict[str, tf.Tensor]:
        words = tf.strings.split(tf.strings.lower(f["query"]), " ")
        words = self.words(
            tf.strings.to_hash_bucket_fast(words.to_tensor(default_value="", shape=[1, 6]), 300)
        )
        query = tf.concat([tf.reduce_mean(words, axis=1), self.user(f["user_id"] % 200)], axis=-1)
        item = tf.concat([self.item(self.known.lookup(f["item_id"])), f["item_vector"]], axis=-1)
        for layer in self.query_tower:
            query = layer(query)
        for layer in self.item_tower:
            item = layer(item)
        cosine = tf.matmul(tf.nn.l2_normalize(item, -1), tf.nn.l2_normalize(query, -1), transpose_b=True)
        scores = tf.squeeze(cosine, -1) / (0.1 + tf.abs(self.temperature))
        return {"score": scores, "probability": tf.nn.sigmoid(scores)}


def save_two_tower(directory: Path, width: int = 1) -> Path:
    specs = {
        "query": spec(STRING, 1),
        "user_id": spec(INT, 1),
        "item_id": spec(INT, None),
        "item_vector": spec(FLOAT, None, 8),
    }
    return save_module(TwoTower(width), specs, directory, seed=14)


def two_tower_request(rows: int, seed: int) -> Features:
    draw = Draw(seed)
    return {
        "query": draw.strings(QUERIES, 1),
        "user_id": draw.ids(200, 1),
        "item_id": 1000 + draw.ids(ITEMS, rows),
        "item_vector": draw.floats(rows, 8),
    }


MODELS = (
    ZooModel(
        "autoint", "keras3", "AutoInt: multi-head self-attention over the fields with residuals",
        save_autoint, autoint_request, references.signature(request_inputs=USER_INPUTS),
        options={"request_inputs": USER_INPUTS},
    ),
    ZooModel(
        "fibinet", "tf2_module", "FiBiNET: SENET and bilinear products, Bucketize, hour of a timestamp",
        save_fibinet, fibinet_request, references.signature(),
    ),
    ZooModel(
        "dlrm", "tf2_module", "DLRM: bottom and top MLP, padded bags, lower triangle of dot products",
        save_dlrm, dlrm_request, references.signature(),
    ),
    ZooModel(
        "two_tower", "tf2_module", "Two towers: query words split and hashed, hash table, cosine",
        save_two_tower, two_tower_request, references.signature(),
    ),
)  # fmt: skip
