"""Factorization machines and the deep models that grew out of them."""

from pathlib import Path

import keras
import tensorflow as tf
from keras import layers, ops

from tests.zoo import references
from tests.zoo.drawing import BRANDS, CITIES, DEVICES, GENRES, Draw
from tests.zoo.model import USER_INPUTS, Features, ZooModel
from tests.zoo.saving import FLOAT, INT, STRING, Tensors, export_keras, save_module, spec

ITEMS, USERS = 300, 200


class VocabularyTable(tf.Module):
    """String ids through a `StaticVocabularyTable`: known words first, then OOV buckets by hash."""

    def __init__(self, words: tuple[str, ...], oov_buckets: int) -> None:
        super().__init__()
        keys = tf.constant([w.encode() for w in words])
        entries = tf.lookup.KeyValueTensorInitializer(keys, tf.range(len(words), dtype=tf.int64))
        self.lookup = tf.lookup.StaticVocabularyTable(entries, oov_buckets)
        self.size = len(words) + oov_buckets

    def __call__(self, words: tf.Tensor) -> tf.Tensor:
        return self.lookup.lookup(words)


class FM(tf.Module):
    """Rendle's second-order machine: bias, linear weights, and half of (sum^2 - sum of squares)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.city = VocabularyTable(CITIES, oov_buckets=3)
        self.sizes = {"user_id": USERS, "user_city": self.city.size, "item_id": ITEMS, "item_brand": 50}
        rank = 8 * width
        self.factors = {n: tf.Variable(tf.zeros([s, rank]), name=f"{n}_table") for n, s in self.sizes.items()}
        self.linear = {n: tf.Variable(tf.zeros([s]), name=f"{n}_weight") for n, s in self.sizes.items()}
        self.price_weight = tf.Variable(tf.zeros([1, rank]), name="price_table")
        self.bias = tf.Variable(0.0, name="bias")

    def __call__(self, f: Tensors) -> dict[str, tf.Tensor]:
        ids = {
            "user_id": tf.strings.to_hash_bucket_fast(f["user_id"], USERS),
            "user_city": self.city(f["user_city"]),
            "item_id": tf.math.floormod(f["item_id"], ITEMS),
            "item_brand": tf.strings.to_hash_bucket_strong(f["item_brand"], 50, key=[17, 4711]),
        }
        rows = tf.shape(f["item_id"])[0]
        vectors, first = [], [self.bias]
        for name, index in ids.items():
            vector, weight = tf.gather(self.factors[name], index), tf.gather(self.linear[name], index)
            if name.startswith("user"):
                vector, weight = tf.repeat(vector, rows, axis=0), tf.repeat(weight, rows)
            vectors.append(vector)
            first.append(weight)
        vectors.append(tf.math.log1p(f["item_price"])[:, None] * self.price_weight)
        fields = tf.stack(vectors, axis=1)
        second = 0.5 * tf.reduce_sum(
            tf.square(tf.reduce_sum(fields, 1)) - tf.reduce_sum(tf.square(fields), 1), axis=-1
        )
        logit = tf.add_n([tf.broadcast_to(w, [rows]) for w in first]) + 0.2 * second
        return {"logit": logit, "ctr": tf.sigmoid(logit)}


def save_fm(directory: Path, width: int = 1) -> Path:
    specs = {
        "user_id": spec(STRING, 1),
        "user_city": spec(STRING, 1),
        "item_id": spec(INT, None),
        "item_brand": spec(STRING, None),
        "item_price": spec(FLOAT, None),
    }
    return save_module(FM(width), specs, directory, seed=1)


def fm_request(rows: int, seed: int) -> Features:
    draw = Draw(seed)
    return {
        "user_id": draw.strings([f"u{i}" for i in range(500)], 1),
        "user_city": draw.strings(CITIES, 1),
        "item_id": draw.ids(ITEMS, rows),
        "item_brand": draw.strings(BRANDS, rows),
        "item_price": draw.prices(rows),
    }


def save_deepfm(directory: Path, width: int = 1) -> Path:
    """Shared embeddings for the FM part and the MLP, a multi-valued field pooled under its mask."""
    inputs = {
        "user_city": keras.Input((), dtype="string", name="user_city"),
        "user_device": keras.Input((), dtype="string", name="user_device"),
        "item_id": keras.Input((), dtype="int64", name="item_id"),
        "item_genres": keras.Input((4,), dtype="string", name="item_genres"),
        "item_price": keras.Input((1,), name="item_price"),
    }
    ids = {
        "user_city": layers.StringLookup(vocabulary=list(CITIES), num_oov_indices=2)(inputs["user_city"]),
        "user_device": layers.Hashing(32, salt=[3, 5])(inputs["user_device"]),
        "item_id": layers.IntegerLookup(vocabulary=list(range(ITEMS)))(inputs["item_id"]),
        "item_price": layers.Discretization([1.0, 10.0, 50.0, 120.0])(inputs["item_price"])[:, 0],
    }
    sizes = {"user_city": len(CITIES) + 2, "user_device": 32, "item_id": ITEMS + 1, "item_price": 5}
    rank = 8 * width
    fields = [layers.Embedding(sizes[n], rank, name=f"{n}_embedding")(i) for n, i in ids.items()]
    first = [layers.Embedding(sizes[n], 1, name=f"{n}_first_order_embedding")(i) for n, i in ids.items()]
    genres = layers.StringLookup(vocabulary=list(GENRES), mask_token="")(inputs["item_genres"])
    held = ops.expand_dims(ops.cast(ops.not_equal(genres, 0), "float32"), -1)
    genres = layers.Embedding(len(GENRES) + 2, rank, name="genre_embedding")(genres)
    fields.append(ops.sum(genres * held, axis=1) / ops.maximum(ops.sum(held, axis=1), 1.0))
    stacked = ops.stack(fields, axis=1)
    squares = ops.square(ops.sum(stacked, axis=1)) - ops.sum(ops.square(stacked), axis=1)
    second = 0.5 * ops.sum(squares, axis=1, keepdims=True)
    hidden = layers.Flatten()(stacked)
    for i, units in enumerate((32 * width, 16 * width)):
        hidden = layers.Dense(units, use_bias=False, name=f"deep_{i}")(hidden)
        hidden = layers.BatchNormalization(name=f"deep_norm_{i}")(hidden)
        hidden = layers.Dropout(0.3)(layers.Activation("relu")(hidden))
    logit = layers.Add(name="logit")([*first, 0.2 * second, layers.Dense(1, name="deep_out")(hidden)])
    model = keras.Model(inputs, {"ctr": layers.Activation("sigmoid", name="ctr")(logit)}, name="deepfm")
    return export_keras(model, directory, seed=2)


def deepfm_request(rows: int, seed: int) -> Features:
    draw = Draw(seed)
    return {
        "user_city": draw.strings(CITIES, 1),
        "user_device": draw.strings(DEVICES, 1),
        "item_id": draw.ids(ITEMS, rows),
        "item_genres": draw.strings((*GENRES, "", ""), rows, 4),
        "item_price": draw.prices(rows, 1),
    }


class PNN(tf.Module):
    """Inner products of every pair of fields, and the outer product of the summed field, beside the linear
    signal."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.rank, hidden = 6 * width, 24 * width
        self.sizes = {"user_segment": 40, "item_id": ITEMS, "item_brand": 60, "item_slot": 10}
        self.tables = [tf.Variable(tf.zeros([s, self.rank]), name="table") for s in self.sizes.values()]
        fields = len(self.sizes)
        self.linear = tf.Variable(tf.zeros([fields * self.rank, hidden]), name="linear_signal")
        self.inner = tf.Variable(tf.zeros([fields * (fields - 1) // 2, hidden]), name="inner_product")
        self.outer = tf.Variable(tf.zeros([self.rank * self.rank, hidden]), name="outer_product")
        self.bias = tf.Variable(tf.zeros([hidden]), name="bias")
        self.hidden = layers.Dense(16 * width, activation="relu", name="hidden")
        self.out = layers.Dense(1, name="out")

    def __call__(self, f: Tensors) -> dict[str, tf.Tensor]:
        rows = tf.shape(f["item_id"])[0]
        ids = [
            tf.tile(tf.clip_by_value(f["user_segment"], 0, 39), [rows]),
            tf.math.floormod(f["item_id"], ITEMS),
            tf.strings.to_hash_bucket_fast(f["item_brand"], 60),
            tf.cast(tf.clip_by_value(f["item_slot"], 0, 9), tf.int64),
        ]
        fields = tf.stack([tf.nn.embedding_lookup(t, i) for t, i in zip(self.tables, ids, strict=True)], 1)
        left, right = zip(*[(i, j) for i in range(len(ids)) for j in range(i + 1, len(ids))], strict=True)
        inner = tf.reduce_sum(tf.gather(fields, left, axis=1) * tf.gather(fields, right, axis=1), axis=-1)
        total = tf.reduce_sum(fields, axis=1)
        outer = tf.matmul(total[:, :, None], total[:, None, :])
        signal = tf.matmul(tf.reshape(fields, [rows, len(ids) * self.rank]), self.linear)
        signal += tf.matmul(inner, self.inner)
        signal += tf.matmul(tf.reshape(outer, [-1, self.rank * self.rank]), self.outer)
        hidden = self.hidden(tf.nn.relu(tf.nn.bias_add(signal, self.bias)))
        return {"ctr": tf.squeeze(tf.sigmoid(self.out(hidden)), axis=-1)}


def save_pnn(directory: Path, width: int = 1) -> Path:
    specs = {
        "user_segment": spec(INT, 1),
        "item_id": spec(INT, None),
        "item_brand": spec(STRING, None),
        "item_slot": spec(tf.int32, None),
    }
    return save_module(PNN(width), specs, directory, seed=3)


def pnn_request(rows: int, seed: int) -> Features:
    draw = Draw(seed)
    return {
        "user_segment": draw.ids(40, 1),
        "item_id": draw.ids(ITEMS, rows),
        "item_brand": draw.strings(BRANDS, rows),
        "item_slot": draw.ids(10, rows).astype("int32"),
    }


def save_dcn_v2(directory: Path, width: int = 1) -> Path:
    """Three cross layers, each a gated mixture of low-rank experts, beside a deep tower."""
    inputs = {
        "user_age": keras.Input((1,), name="user_age"),
        "user_city": keras.Input((1,), dtype="string", name="user_city"),
        "item_id": keras.Input((1,), dtype="int64", name="item_id"),
        "item_stats": keras.Input((6,), name="item_stats"),
    }
    city = layers.Hashing(64)(inputs["user_city"])
    item = layers.IntegerLookup(vocabulary=list(range(5, ITEMS)), num_oov_indices=4)(inputs["item_id"])
    normal = layers.Normalization(mean=[0.1] * 6, variance=[0.9, 1.1, 2.0, 0.5, 1.0, 1.0])
    x0 = layers.Concatenate()(
        [
            layers.Flatten()(layers.Embedding(64, 8 * width, name="city_embedding")(city)),
            layers.Flatten()(layers.Embedding(ITEMS, 8 * width, name="item_embedding")(item)),
            normal(inputs["item_stats"]),
            layers.Rescaling(1 / 50.0, offset=-1.0)(inputs["user_age"]),
        ]
    )
    x, size = x0, x0.shape[-1]
    for i in range(3):
        experts = [
            layers.Dense(size, name=f"cross_{i}_expert_{e}_v")(
                layers.Dense(4 * width, "tanh", use_bias=False, name=f"cross_{i}_expert_{e}_u")(x)
            )
            for e in range(2)
        ]
        gate = layers.Dense(2, "softmax", name=f"cross_{i}_gate")(x)
        mixed = ops.sum(ops.stack(experts, axis=1) * ops.expand_dims(gate, -1), axis=1)
        x = x0 * mixed + x
    deep = layers.Dense(32 * width, "relu", name="deep_0")(x0)
    deep = layers.Dense(16 * width, "relu", name="deep_1")(deep)
    logit = layers.Dense(1, name="logit")(layers.Concatenate()([x, deep]))
    model = keras.Model(inputs, {"ctr": ops.sigmoid(0.3 * logit)}, name="dcn_v2")
    return export_keras(model, directory, seed=4)


def dcn_v2_request(rows: int, seed: int) -> Features:
    draw = Draw(seed)
    return {
        "user_age": draw.rng.uniform(0, 90, (1, 1)).astype("float32"),
        "user_city": draw.strings(CITIES, 1, 1),
        "item_id": draw.ids(ITEMS, rows, 1),
        "item_stats": draw.floats(rows, 6),
    }


class XDeepFM(tf.Module):
    """Compressed interaction network: field maps multiplied pairwise and compressed by 1x1 convolutions, half
    of each layer's maps going on, half going out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fields, self.rank, self.maps = 5, 6 * width, (8 * width, 8 * width)
        self.user = layers.Embedding(USERS, self.rank, name="user_embedding")
        self.item = layers.Embedding(ITEMS, self.rank, name="item_embedding")
        self.context = layers.Embedding(100, self.rank, name="context_embedding")
        incoming, self.filters = self.fields, []
        for maps in self.maps:
            self.filters.append(tf.Variable(tf.zeros([1, incoming * self.fields, maps]), name="filter"))
            incoming = maps // 2
        self.deep = [layers.Dense(32 * width, "relu", name="deep_0"), layers.Dense(16, name="deep_1")]
        self.out = layers.Dense(1, name="logit")

    def __call__(self, f: Tensors) -> dict[str, tf.Tensor]:
        city = tf.repeat(f["user_city"][:, None], 3, axis=1)
        crossed = tf.strings.join([city, f["item_context"]], separator="_x_")
        context = tf.strings.to_hash_bucket_fast(crossed, 100)
        x0 = tf.concat(
            [
                self.user(f["user_id"] % USERS)[:, None],
                self.item(tf.maximum(tf.minimum(f["item_id"], ITEMS - 1), 0))[:, None],
                self.context(context),
            ],
            axis=1,
        )
        x, pooled = x0, []
        for i, filters in enumerate(self.filters):
            pairs = tf.einsum("bhd,bmd->bdhm", x, x0)
            pairs = tf.reshape(pairs, [-1, self.rank, x.shape[1] * self.fields])
            maps = tf.nn.relu(tf.nn.conv1d(pairs, filters, stride=1, padding="VALID"))
            maps = tf.transpose(maps, [0, 2, 1])
            if i + 1 < len(self.filters):
                x, maps = tf.split(maps, 2, axis=1)
            pooled.append(tf.reduce_sum(maps, axis=-1))
        hidden = tf.reshape(x0, [-1, self.fields * self.rank])
        for layer in self.deep:
            hidden = layer(hidden)
        return {"ctr": tf.sigmoid(0.3 * self.out(tf.concat([*pooled, hidden], axis=-1)))}


def save_xdeepfm(directory: Path, width: int = 1) -> Path:
    specs = {
        "user_id": spec(INT, None),
        "user_city": spec(STRING, None),
        "item_id": spec(INT, None),
        "item_context": spec(STRING, None, 3),
    }
    return save_module(XDeepFM(width), specs, directory, seed=5)


def xdeepfm_request(rows: int, seed: int) -> Features:
    draw = Draw(seed)
    return {
        "user_id": draw.ids(USERS, 1),
        "user_city": draw.strings(CITIES, 1),
        "item_id": draw.ids(ITEMS, rows),
        "item_context": draw.strings(GENRES, rows, 3),
    }


MODELS = (
    ZooModel(
        "fm", "tf2_module", "FM: StaticVocabularyTable, fast and strong hashes, user tiled in the graph",
        save_fm, fm_request, references.signature(),
    ),
    ZooModel(
        "deepfm", "keras3", "DeepFM: lookups, hashing, discretization, masked mean pooling, batch norm",
        save_deepfm, deepfm_request, references.signature(request_inputs=USER_INPUTS),
        options={"request_inputs": USER_INPUTS},
    ),
    ZooModel(
        "pnn", "tf2_module", "PNN: inner and outer products, clipped ids",
        save_pnn, pnn_request, references.signature(),
    ),
    ZooModel(
        "dcn_v2", "keras3", "DCN-v2: mixture of low-rank cross layers, normalization, deep tower",
        save_dcn_v2, dcn_v2_request, references.signature(request_inputs=USER_INPUTS),
        options={"request_inputs": USER_INPUTS},
    ),
    ZooModel(
        "xdeepfm", "tf2_module", "xDeepFM: CIN by einsum and 1x1 convolution, crossed strings",
        save_xdeepfm, xdeepfm_request, references.signature(request_inputs=USER_INPUTS),
        options={"request_inputs": USER_INPUTS},
    ),
)  # fmt: skip
