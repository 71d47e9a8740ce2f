"""Models whose score of one candidate depends on the others: they take the whole list at once."""

from pathlib import Path

import tensorflow as tf
from keras import layers

from tests.zoo import references
from tests.zoo.drawing import CITIES, Draw
from tests.zoo.model import Features, ZooModel
from tests.zoo.saving import FLOAT, INT, STRING, Tensors, save_module, spec

ITEMS = 200


class ListwiseReranker(tf.Module):
    """Re-ranking by self-attention over the candidates, then a softmax over the list."""

    def __init__(self, width: int) -> None:
        super().__init__()
        rank = 8 * width
        self.item = tf.Variable(tf.zeros([ITEMS, rank]), name="item_embedding")
        self.city = tf.Variable(tf.zeros([30, rank]), name="city_embedding")
        self.project = layers.Dense(rank, name="project")
        self.query, self.key, self.value = (layers.Dense(rank, name=n) for n in ("query", "key", "value"))
        self.norm = layers.LayerNormalization(name="norm")
        self.hidden = layers.Dense(16 * width, "relu", name="hidden")
        self.out = layers.Dense(1, name="out")

    def __call__(self, f: Tensors) -> dict[str, tf.Tensor]:
        rows = tf.shape(f["item_id"])[0]
        city = tf.gather(self.city, tf.strings.to_hash_bucket_fast(f["user_city"], 30))
        item = tf.gather(self.item, tf.math.floormod(f["item_id"], ITEMS))
        x = self.project(tf.concat([tf.tile(city, [rows, 1]), item, f["item_score"][:, None]], axis=-1))
        logits = tf.matmul(self.query(x), self.key(x), transpose_b=True)
        x = self.norm(x + tf.matmul(tf.nn.softmax(logits, axis=-1), self.value(x)))
        logit = tf.squeeze(self.out(self.hidden(x)), axis=-1)
        return {"logit": logit, "share": tf.nn.softmax(logit, axis=0)}


def save_reranker(directory: Path, width: int = 1) -> Path:
    specs = {"user_city": spec(STRING, 1), "item_id": spec(INT, None), "item_score": spec(FLOAT, None)}
    return save_module(ListwiseReranker(width), specs, directory, seed=51)


def reranker_request(rows: int, seed: int) -> Features:
    draw = Draw(seed)
    return {
        "user_city": draw.strings(CITIES, 1),
        "item_id": draw.ids(ITEMS, rows),
        "item_score": draw.floats(rows),
    }


class ListContext(tf.Module):
    """A row model on features of the list: how a price compares with the list's mean, deviation and best, and
    an excitation of the item by the mean of all items."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.item = layers.Embedding(ITEMS, 8, name="item_embedding")
        self.excite = layers.Dense(8, "sigmoid", name="excite")
        self.hidden = layers.Dense(16 * width, "relu", name="hidden")
        self.out = layers.Dense(1, name="out")

    def __call__(self, f: Tensors) -> dict[str, tf.Tensor]:
        price = f["item_price"]
        mean, variance = tf.nn.moments(price, axes=[0])
        relative = (price - mean) * tf.math.rsqrt(variance + 1.0)
        cheapest = price / (tf.reduce_min(price) + 10.0)
        x = self.item(tf.clip_by_value(f["item_id"], 0, ITEMS - 1))
        x *= self.excite(tf.reduce_mean(x, axis=0, keepdims=True))
        x = tf.concat([x, relative[:, None], tf.math.log1p(cheapest)[:, None]], axis=-1)
        return {"score": self.out(self.hidden(x))[:, 0]}


def save_list_context(directory: Path, width: int = 1) -> Path:
    specs = {"item_id": spec(INT, None), "item_price": spec(FLOAT, None)}
    return save_module(ListContext(width), specs, directory, seed=52)


def list_context_request(rows: int, seed: int) -> Features:
    draw = Draw(seed)
    return {"item_id": draw.ids(ITEMS, rows), "item_price": draw.prices(rows)}


MODELS = (
    ZooModel(
        "listwise_reranker", "tf2_module", "Self-attention and softmax over the candidates",
        save_reranker, reranker_request, references.signature(), row_wise=False,
    ),
    ZooModel(
        "list_context", "tf2_module", "Features normalized over the list, squeeze-and-excitation by it",
        save_list_context, list_context_request, references.signature(), row_wise=False,
    ),
)  # fmt: skip
