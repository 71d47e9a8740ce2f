"""Wide & deep with TF1 feature columns, from serialized examples and from raw tensors."""

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tests.zoo import references
from tests.zoo.drawing import BRANDS, CITIES, DEVICES, GENRES, Draw, example
from tests.zoo.model import USER_INPUTS, Features, ZooModel
from tests.zoo.saving import dense, graph_session, initialize, predict_signature, save_v1

v1 = tf.compat.v1
fc = tf.compat.v1.feature_column

ITEMS = 200


def _wide_deep(features: dict[str, Any], wide: list[Any], deep: list[Any], width: int) -> tf.Tensor:
    """Logits `[rows, 1]`: a linear model on the wide columns plus an MLP on the deep ones, whose tables are
    partitioned as on parameter servers."""
    with v1.variable_scope("dnn"):
        with v1.variable_scope("input_from_feature_columns", partitioner=v1.fixed_size_partitioner(2)):
            x = fc.input_layer(features, deep)
        x = dense(x, 32 * width, "hiddenlayer_0", tf.nn.relu)
        x = dense(x, 16 * width, "hiddenlayer_1", tf.nn.relu)
        deep_logit = dense(x, 1, "logits")
    with v1.variable_scope("linear"):
        wide_logit = fc.linear_model(features, wide, units=1, sparse_combiner="mean")
    return tf.add(deep_logit, wide_logit, name="logits")


def save_wide_deep(directory: Path, width: int = 1) -> Path:
    """The export of an Estimator: a parsing serving input, columns of every kind."""
    age = fc.numeric_column("age", default_value=30.0, normalizer_fn=lambda x: (x - 40.0) / 20.0)
    age_bucket = fc.bucketized_column(fc.numeric_column("age_raw", default_value=30.0), [18, 25, 35, 50, 65])
    stats = fc.numeric_column("stats", shape=(3,), default_value=[0.0, 0.0, 0.0])
    city = fc.categorical_column_with_vocabulary_list("city", list(CITIES), num_oov_buckets=2)
    device = fc.categorical_column_with_hash_bucket("device", 30)
    item = fc.categorical_column_with_identity("item_id", ITEMS, default_value=0)
    genres = fc.categorical_column_with_vocabulary_list("genres", list(GENRES), default_value=-1)
    tags = fc.weighted_categorical_column(fc.categorical_column_with_hash_bucket("tags", 40), "tag_weights")
    brand = fc.categorical_column_with_hash_bucket("brand", 50)
    age_city = fc.crossed_column([age_bucket, city], 60)
    city_brand = fc.crossed_column(["city", "brand"], 80, hash_key=99)
    triple = fc.crossed_column([age_bucket, "device", item], 100)
    wide = [age_bucket, city, genres, tags, age_city, city_brand, triple]
    deep = [
        age,
        stats,
        fc.indicator_column(city),
        fc.indicator_column(genres),
        fc.indicator_column(age_city),
        fc.embedding_column(device, 4, combiner="mean"),
        fc.embedding_column(item, 8 * width, combiner="sum", max_norm=1.0),
        fc.embedding_column(tags, 6, combiner="sqrtn"),
        fc.embedding_column(genres, 4, combiner="mean"),
        fc.embedding_column(city_brand, 5, combiner="sum"),
        fc.embedding_column(brand, 4),
    ]
    with graph_session() as session:
        serialized = v1.placeholder(tf.string, [None], name="input_example_tensor")
        features = v1.parse_example(serialized, fc.make_parse_example_spec([*wide, *deep]))
        logits = _wide_deep(features, wide, deep, width)
        probabilities = tf.sigmoid(logits, name="logistic")
        initialize(session, seed=81)
        signature = predict_signature({"examples": serialized}, {"logistic": probabilities, "logits": logits})
        return save_v1(session, {"serving_default": signature}, directory)


def wide_deep_request(rows: int, seed: int) -> Features:
    """Features are missing from some examples; user features are in every example of the request."""
    draw = Draw(seed)
    age = draw.rng.uniform(5, 90, 1)
    user = {"age": age, "age_raw": age, "city": draw.strings(CITIES, 1), "device": draw.strings(DEVICES, 1)}
    records = []
    for _ in range(rows):
        tags = draw.strings(GENRES, int(draw.rng.integers(0, 4)))
        features: dict[str, Any] = dict(user)
        features |= {
            "item_id": draw.ids(ITEMS, 1),
            "genres": draw.strings(GENRES, int(draw.rng.integers(0, 4))),
            "tags": tags,
            "tag_weights": draw.rng.uniform(0.1, 2.0, len(tags)),
            "brand": draw.strings(BRANDS, int(draw.rng.integers(0, 2))),
        }
        if draw.rng.random() < 0.8:
            features["stats"] = draw.floats(3)
        records.append(example(**features))
    return {"examples": np.array(records, object)}


def save_wide_deep_raw(directory: Path, width: int = 1) -> Path:
    """A raw serving input, a vocabulary file as an asset, and one table shared by two columns."""
    vocabulary = directory / "genres.txt"
    vocabulary.write_text("\n".join(GENRES) + "\n", encoding="utf-8")
    with graph_session() as session:
        liked = fc.categorical_column_with_vocabulary_file("user_genres", str(vocabulary), num_oov_buckets=1)
        genre = fc.categorical_column_with_vocabulary_file("item_genre", str(vocabulary), num_oov_buckets=1)
        liked_shared, genre_shared = fc.shared_embedding_columns([liked, genre], 6 * width, combiner="mean")
        city = fc.categorical_column_with_vocabulary_list("user_city", list(CITIES), default_value=0)
        item = fc.categorical_column_with_hash_bucket("item_id", 100, dtype=tf.int64)
        price = fc.bucketized_column(fc.numeric_column("item_price"), [1.0, 10.0, 50.0, 100.0])
        city_genre = fc.crossed_column([city, genre], 90)
        item_price = fc.crossed_column(["item_id", price], 70)
        wide = [city, price, city_genre, item_price]
        deep = [
            liked_shared,
            genre_shared,
            fc.embedding_column(city, 3),
            fc.embedding_column(item, 8 * width),
            fc.indicator_column(price),
            fc.embedding_column(item_price, 4),
        ]
        features = {
            "user_genres": v1.placeholder(tf.string, [None, 3], name="user_genres"),
            "user_city": v1.placeholder(tf.string, [None], name="user_city"),
            "item_id": v1.placeholder(tf.int64, [None], name="item_id"),
            "item_genre": v1.placeholder(tf.string, [None], name="item_genre"),
            "item_price": v1.placeholder(tf.float32, [None, 1], name="item_price"),
        }
        # Columns of rank 1 get a second dimension, as Estimator's raw serving input does.
        columns = {n: t if t.shape.rank == 2 else tf.expand_dims(t, -1) for n, t in features.items()}
        logits = _wide_deep(columns, wide, deep, width)
        initialize(session, seed=82)
        outputs = {"probability": tf.squeeze(tf.sigmoid(logits), axis=1)}
        signature = predict_signature(features, outputs)
        return save_v1(session, {"serving_default": signature}, directory, assets=True)


def wide_deep_raw_request(rows: int, seed: int) -> Features:
    draw = Draw(seed)
    return {
        "user_genres": draw.strings(GENRES, 1, 3),
        "user_city": draw.strings(CITIES, 1),
        "item_id": draw.ids(500, rows),
        "item_genre": draw.strings(GENRES, rows),
        "item_price": draw.prices(rows, 1),
    }


MODELS = (
    ZooModel(
        "wide_deep", "feature_columns",
        "Wide & deep on tf.Example: crosses, buckets, weights, every combiner",
        save_wide_deep, wide_deep_request, references.session(),
    ),
    ZooModel(
        "wide_deep_raw", "feature_columns",
        "Wide & deep on raw tensors: vocabulary file, shared table, crosses",
        save_wide_deep_raw, wide_deep_raw_request, references.session(request_inputs=USER_INPUTS),
        options={"request_inputs": USER_INPUTS},
    ),
)  # fmt: skip
