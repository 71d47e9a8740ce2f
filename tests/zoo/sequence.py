"""Models of the user's behaviour that attend to it from each candidate: DIN, SIM, DSIN, BST."""

from pathlib import Path

import numpy as np
import tensorflow as tf
from keras import layers

from tests.zoo import references
from tests.zoo.drawing import DEVICES, GENRES, Draw
from tests.zoo.model import USER_INPUTS, Features, ZooModel
from tests.zoo.saving import FLOAT, INT, STRING, Tensors, save_module, spec

ITEMS, CATEGORIES = 300, 40


class Dice(tf.Module):
    """Data-adaptive PReLU: a gate by normalized value chooses between x and alpha x."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.norm = layers.BatchNormalization(center=False, scale=False, epsilon=1e-8)
        self.alpha = tf.Variable(tf.zeros([units]), name="alpha")

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        gate = tf.sigmoid(self.norm(x, training=False))
        return self.alpha * (1.0 - gate) * x + gate * x


class Items(tf.Module):
    """Item and category vectors side by side; the category of an item is a constant of the graph."""

    def __init__(self, rank: int, seed: int) -> None:
        super().__init__()
        self.item = tf.Variable(tf.zeros([ITEMS, rank]), name="item_embedding")
        self.category = tf.Variable(tf.zeros([CATEGORIES, rank]), name="category_embedding")
        categories = np.random.default_rng(seed).integers(0, CATEGORIES, ITEMS)
        self.category_of = tf.constant(categories, tf.int64)

    def __call__(self, ids: tf.Tensor) -> tf.Tensor:
        ids = tf.where((ids < 0) | (ids >= ITEMS), tf.zeros_like(ids), ids)
        categories = tf.gather(self.category_of, ids)
        return tf.concat(
            [tf.nn.embedding_lookup(self.item, ids), tf.nn.embedding_lookup(self.category, categories)], -1
        )


class DIN(tf.Module):
    """Deep interest network: an activation unit for each (candidate, step), softmax over the steps there are,
    Dice in the output MLP after batch norm, and a bias for each item."""

    def __init__(self, width: int) -> None:
        super().__init__()
        rank = 4 * width
        self.items = Items(rank, seed=21)
        self.item_bias = tf.Variable(tf.zeros([ITEMS]), name="item_bias")
        self.attention = [layers.Dense(16 * width, "sigmoid", name="f1_att"), layers.Dense(8, "sigmoid")]
        self.attention_logit = layers.Dense(1, name="f3_att")
        self.norm = layers.BatchNormalization(name="b1")
        sizes = (24 * width, 12 * width)
        self.layers = [layers.Dense(s, name=f"f{i}") for i, s in enumerate(sizes)]
        self.dice = [Dice(s) for s in sizes]
        self.out = layers.Dense(1, name="f_out")

    def attend(self, query: tf.Tensor, keys: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        steps = keys.shape[1]
        queries = tf.tile(query[:, None, :], [1, steps, 1])
        x = tf.concat([queries, keys, queries - keys, queries * keys], axis=-1)
        for layer in self.attention:
            x = layer(x)
        scores = tf.transpose(self.attention_logit(x), [0, 2, 1])
        mask = tf.sequence_mask(lengths, steps)[:, None, :]
        scores = tf.where(mask, scores, tf.ones_like(scores) * (-(2.0**32) + 1.0))
        scores = tf.nn.softmax(scores / (keys.shape[-1] ** 0.5))
        return tf.squeeze(tf.matmul(scores, keys), axis=1)

    def __call__(self, f: Tensors) -> dict[str, tf.Tensor]:
        rows = tf.shape(f["item_id"])[0]
        history = tf.repeat(f["hist_items"], rows, axis=0)
        lengths = tf.repeat(f["hist_length"], rows)
        query, keys = self.items(f["item_id"]), self.items(history)
        interest = self.attend(query, keys, lengths)
        mask = tf.sequence_mask(lengths, keys.shape[1], dtype=tf.float32)[..., None]
        total = tf.reduce_sum(keys * mask, axis=1)
        x = self.norm(tf.concat([interest, query, total, query * total], axis=-1), training=False)
        for layer, dice in zip(self.layers, self.dice, strict=True):
            x = dice(layer(x))
        known = tf.clip_by_value(f["item_id"], 0, ITEMS - 1)
        logit = tf.squeeze(self.out(x), -1) + tf.gather(self.item_bias, known)
        return {"ctr": tf.sigmoid(logit)}


def save_din(directory: Path, width: int = 1) -> Path:
    specs = {
        "hist_items": spec(INT, 1, 12),
        "hist_length": spec(tf.int32, 1),
        "item_id": spec(INT, None),
    }
    return save_module(DIN(width), specs, directory, seed=21)


def din_request(rows: int, seed: int) -> Features:
    draw = Draw(seed)
    return {
        "hist_items": draw.ids(ITEMS, 1, 12),
        "hist_length": draw.lengths(12, 1).astype(np.int32),
        "item_id": draw.ids(ITEMS, rows),
    }


class SIM(tf.Module):
    """Search-based interest: a cheap dot product finds the steps of a long history that matter to the
    candidate, attention with time differences reads those; a short recent history is pooled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.rank = 4 * width
        self.items = Items(self.rank, seed=22)
        self.search = layers.Dense(self.rank, use_bias=False, name="search")
        self.days = layers.Embedding(16, self.rank, name="days_embedding")
        self.attention = layers.MultiHeadAttention(2, self.rank, name="exact_search")
        self.hidden = layers.Dense(24 * width, name="hidden")
        self.prelu = layers.PReLU(name="prelu")
        self.out = layers.Dense(1, "sigmoid", name="ctr")

    def __call__(self, f: Tensors) -> dict[str, tf.Tensor]:
        query, history = self.items(f["item_id"]), self.items(f["user_items"])
        held = f["user_items"] > 0
        relevance = tf.einsum("nd,ntd->nt", self.search(query), self.search(history))
        relevance = tf.where(held, relevance, tf.fill(tf.shape(relevance), -1e9))
        _, found = tf.math.top_k(relevance, k=6, sorted=True)
        steps = tf.gather(history, found, batch_dims=1)
        days = tf.searchsorted(tf.constant([1.0, 2.0, 4.0, 7.0, 14.0, 30.0, 90.0]), f["user_days"][0])
        days = tf.gather(tf.broadcast_to(days[None], tf.shape(f["user_days"])), found, batch_dims=1)
        steps = tf.concat([steps, self.days(days)], axis=-1)
        valid = tf.gather(held, found, batch_dims=1)
        interest = self.attention(query[:, None], steps, attention_mask=valid[:, None, :])[:, 0]
        # Without a valid step attention reads padding: leave it out.
        interest *= tf.cast(tf.reduce_any(held, axis=1, keepdims=True), tf.float32)
        recent = tf.reduce_sum(history[:, :4] * tf.cast(held[:, :4, None], tf.float32), axis=1)
        x = self.prelu(self.hidden(tf.concat([query, interest, recent], axis=-1)))
        return {"ctr": self.out(x)}


def save_sim(directory: Path, width: int = 1) -> Path:
    specs = {
        "user_items": spec(INT, None, 24),
        "user_days": spec(FLOAT, None, 24),
        "item_id": spec(INT, None),
    }
    return save_module(SIM(width), specs, directory, seed=22)


def sim_request(rows: int, seed: int) -> Features:
    draw = Draw(seed)
    return {
        "user_items": draw.history(ITEMS, 1, 24),
        "user_days": draw.rng.gamma(1.0, 20.0, (1, 24)).astype(np.float32),
        "item_id": draw.ids(ITEMS, rows),
    }


class DSIN(tf.Module):
    """Deep session interest: self-attention inside each session with a bias encoding, a bidirectional LSTM
    over the sessions, and an activation unit on both from the candidate."""

    sessions, steps = 3, 4

    def __init__(self, width: int) -> None:
        super().__init__()
        rank = 4 * width
        self.items = Items(rank, seed=23)
        size = 2 * rank
        self.session_bias = tf.Variable(tf.zeros([self.sessions, 1, 1]), name="session_bias")
        self.step_bias = tf.Variable(tf.zeros([1, self.steps, 1]), name="step_bias")
        self.unit_bias = tf.Variable(tf.zeros([1, 1, size]), name="unit_bias")
        self.attention = layers.MultiHeadAttention(2, rank, name="session_attention")
        self.norm = layers.LayerNormalization(name="session_norm")
        self.forward = layers.Bidirectional(layers.LSTM(size, return_sequences=True), merge_mode="ave")
        self.units = [layers.Dense(8 * width, "relu", name=f"unit_{i}") for i in range(2)]
        self.logits = [layers.Dense(1, name=f"unit_logit_{i}") for i in range(2)]
        self.hidden = layers.Dense(24 * width, "elu", name="hidden")
        self.out = layers.Dense(1, "sigmoid", name="ctr")

    def activate(self, which: int, query: tf.Tensor, keys: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        queries = tf.repeat(query[:, None], self.sessions, axis=1)
        keys = tf.broadcast_to(keys, tf.shape(queries))
        logits = self.logits[which](self.units[which](tf.concat([queries, keys, queries * keys], -1)))[..., 0]
        weights = tf.nn.softmax(logits + (1.0 - mask) * -1e9, axis=-1)
        return tf.einsum("ns,nsd->nd", weights, keys)

    def __call__(self, f: Tensors) -> dict[str, tf.Tensor]:
        query, behaviour = self.items(f["item_id"]), f["user_sessions"]
        held = behaviour[0] > 0
        x = self.items(behaviour)[0] + self.session_bias + self.step_bias + self.unit_bias
        mask = tf.logical_and(held[:, :, None], held[:, None, :])
        x = self.norm(x + self.attention(x, x, attention_mask=mask))
        sums = tf.reduce_sum(x * tf.cast(held, tf.float32)[..., None], axis=1)
        counts = tf.reduce_sum(tf.cast(held, tf.float32), axis=1, keepdims=True)
        interests = tf.math.divide_no_nan(sums, counts)[None]
        evolved = self.forward(interests)
        present = tf.cast(tf.reduce_any(held, axis=1), tf.float32)[None]
        own = self.activate(0, query, interests, present)
        context = self.activate(1, query, evolved, present)
        return {"ctr": self.out(self.hidden(tf.concat([query, own, context], axis=-1)))[:, 0]}


def save_dsin(directory: Path, width: int = 1) -> Path:
    specs = {"user_sessions": spec(INT, 1, DSIN.sessions, DSIN.steps), "item_id": spec(INT, None)}
    return save_module(DSIN(width), specs, directory, seed=23)


def dsin_request(rows: int, seed: int) -> Features:
    draw = Draw(seed)
    return {
        "user_sessions": draw.history(ITEMS, DSIN.sessions, DSIN.steps)[None],
        "item_id": draw.ids(ITEMS, rows),
    }


class BST(tf.Module):
    """Behaviour sequence transformer: the candidate is the last step of the history, positions are buckets of
    time, two post-norm blocks with leaky ReLU."""

    steps = 8

    def __init__(self, width: int) -> None:
        super().__init__()
        rank = 8 * width
        self.items = Items(rank // 2, seed=24)
        self.position = layers.Embedding(12, rank, name="position_embedding")
        self.device = layers.Embedding(16, 4, name="device_embedding")
        self.hash = layers.Hashing(16)
        self.genre = layers.StringLookup(vocabulary=list(GENRES), output_mode="one_hot")
        self.attention = [layers.MultiHeadAttention(2, 4 * width, name=f"attention_{i}") for i in range(2)]
        self.norms = [layers.LayerNormalization(epsilon=1e-6, name=f"norm_{i}") for i in range(4)]
        self.inner = [layers.Dense(16 * width, name=f"inner_{i}") for i in range(2)]
        self.outer = [layers.Dense(rank, name=f"outer_{i}") for i in range(2)]
        self.mlp = [layers.Dense(32 * width, name="mlp_0"), layers.Dense(16 * width, name="mlp_1")]
        self.out = layers.Dense(1, name="ctr")

    def __call__(self, f: Tensors) -> dict[str, tf.Tensor]:
        rows = tf.shape(f["item_id"])[0]
        ids = tf.concat([f["user_items"], f["item_id"][:, None]], axis=1)
        ages = tf.math.log(1.0 + tf.nn.relu(f["user_days"])) * 2.0
        buckets = tf.minimum(tf.cast(tf.floor(ages), tf.int32) + 1, 11)
        buckets = tf.concat([buckets, tf.zeros([rows, 1], tf.int32)], axis=1)
        x = self.items(ids) + self.position(buckets)
        held = tf.concat([f["user_items"] > 0, tf.ones([rows, 1], tf.bool)], axis=1)
        for i in range(2):
            attended = self.attention[i](x, x, attention_mask=held[:, None, :])
            x = self.norms[2 * i](x + attended)
            inner = tf.nn.leaky_relu(self.inner[i](x), alpha=0.01)
            x = self.norms[2 * i + 1](x + self.outer[i](inner))
        x *= tf.cast(held, tf.float32)[..., None]
        flat = tf.reshape(x, [-1, (self.steps + 1) * x.shape[-1]])
        genre = tf.cast(self.genre(f["item_genre"]), tf.float32)
        x = tf.concat([flat, self.device(self.hash(f["user_device"])), genre], axis=-1)
        for layer in self.mlp:
            x = tf.nn.leaky_relu(layer(x))
        return {"ctr": tf.sigmoid(self.out(x))}


def save_bst(directory: Path, width: int = 1) -> Path:
    specs = {
        "user_items": spec(INT, None, BST.steps),
        "user_days": spec(FLOAT, None, BST.steps),
        "user_device": spec(STRING, None),
        "item_id": spec(INT, None),
        "item_genre": spec(STRING, None),
    }
    return save_module(BST(width), specs, directory, seed=24)


def bst_request(rows: int, seed: int) -> Features:
    draw = Draw(seed)
    return {
        "user_items": draw.history(ITEMS, 1, BST.steps),
        "user_days": draw.rng.gamma(1.0, 20.0, (1, BST.steps)).astype(np.float32),
        "user_device": draw.strings(DEVICES, 1),
        "item_id": draw.ids(ITEMS, rows),
        "item_genre": draw.strings(GENRES, rows),
    }


MODELS = (
    ZooModel(
        "din", "tf2_module", "DIN: target attention under a length mask, Dice, batch norm, item bias",
        save_din, din_request, references.signature(),
    ),
    ZooModel(
        "sim", "tf2_module", "SIM: top-k search in a long history, attention with time buckets, PReLU",
        save_sim, sim_request, references.signature(request_inputs=USER_INPUTS),
        options={"request_inputs": USER_INPUTS},
    ),
    ZooModel(
        "dsin", "tf2_module", "DSIN: self-attention in sessions, bidirectional LSTM over sessions",
        save_dsin, dsin_request, references.signature(),
    ),
    ZooModel(
        "bst", "tf2_module", "BST: transformer over history and candidate, layer norm, time positions",
        save_bst, bst_request, references.signature(request_inputs=USER_INPUTS),
        options={"request_inputs": USER_INPUTS},
    ),
)  # fmt: skip
