"""Small TensorFlow models for the tests, each with what a real one has: strings, ids, hashing, tables, masks,
batch norm."""

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

CITIES = ["amsterdam", "berlin", "köln", "łódź"]
TAGS = ["new", "sale", "große", "x"]
ITEMS = 300
STEPS = 6


def save_ranker(path: Path, *, user_rows: int | None = 1, seed: int = 0) -> None:
    """A ranker of one user against N items, with target attention over the user's last items.

    `user_rows` is the leading dimension of the user's inputs in the signature: 1 (tiled in the graph) or None
    (one row for each item, as Keras models export).
    """
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    city = layers.StringLookup(vocabulary=CITIES, name="city")
    tag = layers.StringLookup(vocabulary=TAGS, mask_token="", name="tag")
    item = layers.IntegerLookup(vocabulary=list(range(10, 10 + ITEMS)), mask_token=0, name="item")
    device = layers.Hashing(num_bins=64, name="device")
    item_embedding = layers.Embedding(ITEMS + 2, 8, embeddings_initializer="normal", name="item_embedding")
    city_embedding = layers.Embedding(
        len(CITIES) + 1, 4, embeddings_initializer="normal", name="city_embedding"
    )
    device_embedding = layers.Embedding(64, 4, embeddings_initializer="normal", name="device_embedding")
    slot_embedding = layers.Embedding(5, 3, embeddings_initializer="normal", name="slot_embedding")
    attention_hidden = layers.Dense(16, activation="relu", name="attention_hidden")
    attention_logit = layers.Dense(1, name="attention_logit")
    mlp = layers.Dense(32, activation="relu", name="mlp")
    norm = layers.BatchNormalization(name="norm")
    click, watch = layers.Dense(1, name="click_head"), layers.Dense(1, name="watch_head")

    def rank(
        user_city: tf.Tensor,
        user_device: tf.Tensor,
        user_age: tf.Tensor,
        user_items: tf.Tensor,
        item_id: tf.Tensor,
        item_tags: tf.Tensor,
        item_price: tf.Tensor,
        item_slot: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        rows = tf.shape(item_id)[0]

        def each(value: tf.Tensor) -> tf.Tensor:
            return tf.repeat(value, rows, axis=0) if user_rows == 1 else value

        history = each(item(user_items))
        keys = item_embedding(history)
        query = tf.repeat(item_embedding(item(item_id))[:, None, :], STEPS, axis=1)
        pairs = tf.concat([query, keys, query - keys, query * keys], axis=-1)
        logits = tf.squeeze(attention_logit(attention_hidden(pairs)), -1)
        mask = tf.not_equal(history, 0)
        weights = tf.nn.softmax(tf.where(mask, logits, -1e9 * tf.ones_like(logits)))
        interest = tf.reduce_sum(weights[..., None] * keys, axis=1)
        tags = tf.reduce_max(tf.one_hot(tag(item_tags), len(TAGS) + 2), axis=1)
        features = tf.concat(
            [
                each(city_embedding(city(user_city))),
                each(device_embedding(device(user_device))),
                each(tf.math.log1p(tf.maximum(user_age, 0.0)))[:, None],
                interest,
                item_embedding(item(item_id)),
                tags,
                tf.tanh(item_price)[:, None],
                slot_embedding(item_slot),
            ],
            axis=-1,
        )
        hidden = norm(mlp(features), training=False)
        return {"click": tf.sigmoid(click(hidden))[:, 0], "watch": tf.nn.softplus(watch(hidden))[:, 0]}

    def spec(shape: list[int | None], dtype: tf.DType, name: str) -> tf.TensorSpec:
        return tf.TensorSpec(shape, dtype, name)

    module = tf.Module()
    module.rank = tf.function(
        rank,
        input_signature=[
            spec([user_rows], tf.string, "user_city"),
            spec([user_rows], tf.string, "user_device"),
            spec([user_rows], tf.float32, "user_age"),
            spec([user_rows, STEPS], tf.int64, "user_items"),
            spec([None], tf.int64, "item_id"),
            spec([None, 3], tf.string, "item_tags"),
            spec([None], tf.float32, "item_price"),
            spec([None], tf.int32, "item_slot"),
        ],
    )
    concrete = module.rank.get_concrete_function()
    norm.set_weights([np.random.default_rng(seed).uniform(0.5, 2.0, 32).astype(np.float32) for _ in range(4)])
    module.layers = [
        city, tag, item, device, item_embedding, city_embedding, device_embedding, slot_embedding,
        attention_hidden, attention_logit, mlp, norm, click, watch,
    ]  # fmt: skip
    tf.saved_model.save(module, str(path), signatures=concrete)


def ranker_request(rows: int, seed: int) -> dict[str, np.ndarray]:
    """Random raw features for `save_ranker`'s model: known, unknown, empty and non-ASCII values."""
    rng = np.random.default_rng(seed)

    def strings(pool: list[str], shape: tuple[int, ...]) -> np.ndarray:
        choice = np.array([p.encode() for p in [*pool, "", "unknown ☃"]], object)
        return rng.choice(choice, shape)

    items = rng.integers(5, 20 + ITEMS, (1, STEPS))
    items[:, int(rng.integers(0, STEPS + 1)) :] = 0
    return {
        "user_city": strings(CITIES, (1,)),
        "user_device": strings(["phone", "a rather long device name, 中文 included", "tv"], (1,)),
        "user_age": rng.uniform(-1, 90, 1).astype(np.float32),
        "user_items": items.astype(np.int64),
        "item_id": rng.integers(5, 20 + ITEMS, rows),
        "item_tags": strings(TAGS, (rows, 3)),
        "item_price": rng.standard_normal(rows).astype(np.float32),
        "item_slot": rng.integers(-5, 5, rows).astype(np.int32),
    }


def tensorflow_outputs(path: Path, features: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The SavedModel's own outputs; user features are repeated where the signature asks for rows."""
    function = tf.saved_model.load(str(path)).signatures["serving_default"]
    return call(function, features)


def call(function: object, features: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One call of a loaded signature."""
    specs = function.structured_input_signature[1]  # type: ignore[attr-defined]
    rows = max(len(v) for v in features.values())
    tensors = {}
    for name, spec in specs.items():
        value = features[name]
        if spec.shape[0] is None and len(value) != rows:
            value = np.repeat(value, rows, axis=0)
        tensors[name] = tf.constant(value, dtype=spec.dtype)
    return {name: value.numpy() for name, value in function(**tensors).items()}  # type: ignore[operator]


def as_npz(features: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Features as arrays that `np.savez` writes without pickle: strings as NumPy byte strings."""
    return {k: v.astype("S") if v.dtype == object else v for k, v in features.items()}


class Classifier(tf.Module):
    """Parses tf.Examples itself, as signatures for Classify do."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = tf.Variable(tf.random.stateless_normal([2, 3], [1, 2]))
        self.items = tf.Variable(tf.random.stateless_normal([50, 3], [3, 4]))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def classify(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        features = {
            "price": tf.io.FixedLenFeature([2], tf.float32),
            "id": tf.io.FixedLenFeature([], tf.int64),
        }
        parsed = tf.io.parse_example(inputs, features)
        scores = tf.nn.softmax(parsed["price"] @ self.weights + tf.gather(self.items, parsed["id"]))
        classes = tf.tile(tf.constant([["no", "maybe", "ja ✓"]]), [tf.shape(inputs)[0], 1])
        return {"classes": classes, "scores": scores}


class Regressor(tf.Module):
    """Plain features of every kind that an Example can hold, and the output that Regress reads."""

    def __init__(self) -> None:
        super().__init__()
        self.items = tf.Variable(tf.random.stateless_normal([50, 4], [5, 6]))

    @tf.function(
        input_signature=[
            tf.TensorSpec([1], tf.float32, name="user_age"),
            tf.TensorSpec([None], tf.int32, name="item_id"),
            tf.TensorSpec([None, 2], tf.float32, name="item_price"),
            tf.TensorSpec([None], tf.string, name="item_color"),
        ]
    )
    def regress(
        self, user_age: tf.Tensor, item_id: tf.Tensor, item_price: tf.Tensor, item_color: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        color = tf.cast(tf.strings.to_hash_bucket_fast(item_color, 7), tf.float32)
        of_item = tf.reduce_sum(tf.gather(self.items, item_id), axis=1)
        return {"outputs": tf.tanh(of_item + 0.1 * user_age) * item_price[:, 0] + item_price[:, 1] + color}


class HalfPlusThree(tf.Module):
    """The model of TensorFlow Serving's documentation."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def regress(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"outputs": 0.5 * x + 3.0}


def save_half_plus_three(path: Path) -> None:
    """`0.5 x + 3`."""
    model = HalfPlusThree()
    tf.saved_model.save(model, str(path), signatures={"serving_default": model.regress})


def save_classifier(path: Path) -> None:
    """A model for Classify."""
    model = Classifier()
    tf.saved_model.save(model, str(path), signatures={"serving_default": model.classify})


def save_regressor(path: Path) -> None:
    """A model for Regress."""
    model = Regressor()
    tf.saved_model.save(model, str(path), signatures={"serving_default": model.regress})
