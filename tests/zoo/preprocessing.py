"""Raw text and ids all the way into the graph: Keras preprocessing on ragged splits, string operations, and
serialized `tf.Example` records."""

from pathlib import Path

import numpy as np
import tensorflow as tf
from keras import layers

from tests.zoo import references
from tests.zoo.drawing import BRANDS, CITIES, DEVICES, GENRES, QUERIES, Draw, example
from tests.zoo.model import USER_INPUTS, Features, ZooModel
from tests.zoo.saving import FLOAT, INT, STRING, Tensors, save_module, spec

ITEMS = 200


class KerasPreprocessing(tf.Module):
    """Every Keras preprocessing layer; comma-joined lists are split to ragged rows, looked up and pooled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.city = layers.StringLookup(vocabulary=list(CITIES), num_oov_indices=2, name="city")
        self.genre = layers.StringLookup(vocabulary=list(GENRES), mask_token="", name="genre")
        self.item = layers.IntegerLookup(vocabulary=list(range(3, ITEMS)), num_oov_indices=2, name="item")
        self.device = layers.Hashing(24, salt=1337, name="device")
        self.age = layers.Discretization([18.0, 25.0, 35.0, 50.0, 65.0], name="age")
        self.age_one_hot = layers.CategoryEncoding(6, output_mode="one_hot", name="age_one_hot")
        self.cross = layers.HashedCrossing(64, name="city_x_device")
        self.slots = layers.CategoryEncoding(8, output_mode="multi_hot", name="slots")
        self.item_embedding = layers.Embedding(ITEMS - 1, 8 * width, name="item_embedding")
        self.genre_table = tf.Variable(tf.zeros([len(GENRES) + 2, 8]), name="genre_embedding")
        self.cross_embedding = layers.Embedding(64, 4, name="cross_embedding")
        self.city_embedding = layers.Embedding(len(CITIES) + 2, 4, name="city_embedding")
        self.hidden = layers.Dense(32 * width, "relu", name="hidden")
        self.out = layers.Dense(1, "sigmoid", name="ctr")

    def __call__(self, f: Tensors) -> dict[str, tf.Tensor]:
        words = tf.strings.split(f["item_genres"], ",")
        genres = words.with_values(self.genre(words.values))
        pooled = tf.reduce_mean(tf.gather(self.genre_table, genres), axis=1)
        first = tf.nn.embedding_lookup(self.genre_table, genres[:, :1].to_tensor(shape=[None, 1]))[:, 0]
        viewed = tf.strings.split(f["user_viewed"], "|")
        viewed = viewed.with_values(tf.strings.to_number(viewed.values, tf.int64))
        viewed = tf.reduce_sum(self.item_embedding(self.item(viewed.to_tensor(-1, shape=[None, 5]))), axis=1)
        x = tf.concat(
            [
                self.city_embedding(self.city(f["user_city"])),
                self.cross_embedding(self.cross((f["user_city"], f["user_device"]))),
                tf.one_hot(self.device(f["user_device"]), 24),
                self.age_one_hot(self.age(f["user_age"][:, None])),
                viewed * 0.3,
                self.item_embedding(self.item(f["item_id"])),
                pooled,
                first,
                self.slots(f["item_slots"]),
            ],
            axis=-1,
        )
        return {"ctr": self.out(self.hidden(x))}


def save_keras_preprocessing(directory: Path, width: int = 1) -> Path:
    specs = {
        "user_city": spec(STRING, None),
        "user_device": spec(STRING, None),
        "user_age": spec(FLOAT, None),
        "user_viewed": spec(STRING, None),
        "item_id": spec(INT, None),
        "item_genres": spec(STRING, None),
        "item_slots": spec(tf.int32, None, 2),
    }
    return save_module(KerasPreprocessing(width), specs, directory, seed=61)


def keras_preprocessing_request(rows: int, seed: int) -> Features:
    draw = Draw(seed)
    viewed = "|".join(map(str, draw.ids(ITEMS, int(draw.rng.integers(1, 8)))))
    return {
        "user_city": draw.strings(CITIES, 1),
        "user_device": draw.strings(DEVICES, 1),
        "user_age": draw.rng.uniform(5, 90, 1).astype(np.float32),
        "user_viewed": np.array([viewed.encode()], object),
        "item_id": draw.ids(ITEMS, rows),
        "item_genres": draw.joined(GENRES, rows, 4),
        "item_slots": draw.rng.integers(0, 8, (rows, 2)).astype(np.int32),
    }


class StringOperations(tf.Module):
    """A query against titles: lower, trim, regex, split, n-grams, hashes of both kinds, numbers in strings,
    lengths, and a cross of query and brand by join."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.words = tf.Variable(tf.zeros([200, 8 * width]), name="word_embedding")
        self.bigrams = tf.Variable(tf.zeros([100, 8 * width]), name="bigram_embedding")
        self.crosses = tf.Variable(tf.zeros([80, 4]), name="cross_embedding")
        self.hidden = layers.Dense(24 * width, "relu", name="hidden")
        self.out = layers.Dense(1, name="out")

    def text(self, text: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Mean of word vectors and sum of bigram vectors."""
        text = tf.strings.regex_replace(tf.strings.lower(text, encoding="utf-8"), r"[^\p{L}\d ]", " ")
        words = tf.strings.split(tf.strings.strip(text))
        ids = tf.strings.to_hash_bucket_fast(words.values, 200)
        mean = tf.reduce_mean(words.with_values(tf.gather(self.words, ids)), axis=1)
        mean = tf.where(tf.math.is_nan(mean), tf.zeros_like(mean), mean)
        pairs = tf.strings.ngrams(words, 2, separator="_")
        ids = tf.strings.to_hash_bucket_strong(pairs.values, 100, key=[1, 2])
        return mean, tf.reduce_sum(pairs.with_values(tf.gather(self.bigrams, ids)), axis=1)

    def __call__(self, f: Tensors) -> dict[str, tf.Tensor]:
        rows = tf.shape(f["item_title"])[0]
        query_words, query_bigrams = self.text(f["query"])
        title_words, title_bigrams = self.text(f["item_title"])
        price = tf.strings.to_number(tf.strings.regex_replace(f["item_price"], "^$", "0"))
        slot = tf.strings.as_string(f["item_slot"], width=3, fill="0")
        key = tf.strings.join([tf.repeat(f["query"], rows), slot, f["item_brand"]], separator="&")
        cross = tf.gather(self.crosses, tf.strings.to_hash_bucket_fast(key, 80))
        size = tf.cast(tf.strings.length(f["item_title"], unit="UTF8_CHAR"), tf.float32)
        exact = tf.cast(tf.equal(f["item_title"], tf.repeat(f["query"], rows)), tf.float32)
        initial = tf.strings.to_hash_bucket_fast(tf.strings.substr(f["item_brand"], 0, 1), 8)
        x = tf.concat(
            [
                title_words,
                title_bigrams,
                title_words * query_words,
                title_bigrams * query_bigrams,
                cross,
                tf.one_hot(initial, 8),
                tf.stack([tf.math.log1p(price), size / 10.0, exact], axis=1),
            ],
            axis=-1,
        )
        return {"relevance": self.out(self.hidden(x))[:, 0]}


def save_string_operations(directory: Path, width: int = 1) -> Path:
    specs = {
        "query": spec(STRING, 1),
        "item_title": spec(STRING, None),
        "item_brand": spec(STRING, None),
        "item_price": spec(STRING, None),
        "item_slot": spec(INT, None),
    }
    return save_module(StringOperations(width), specs, directory, seed=62)


def string_operations_request(rows: int, seed: int) -> Features:
    draw = Draw(seed)
    prices = [b"" if p == 0 else f"{p:.2f}".encode() for p in draw.prices(rows)]
    return {
        "query": draw.strings(QUERIES, 1),
        "item_title": draw.strings((*QUERIES, "ШАПКА Ёлка", "red shoes red", "  -- "), rows),
        "item_brand": draw.strings(BRANDS, rows),
        "item_price": np.array(prices, object),
        "item_slot": draw.ids(50, rows),
    }


class ExampleParser(tf.Module):
    """Candidates as serialized `tf.Example`: fixed-length, variable-length with weights, and ragged features
    parsed in the graph; the weighted bag goes through `embedding_lookup_sparse`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.item = tf.Variable(tf.zeros([ITEMS, 8]), name="item_embedding")
        self.tag = tf.Variable(tf.zeros([60, 8]), name="tag_embedding")
        self.view = tf.Variable(tf.zeros([ITEMS, 8]), name="view_embedding")
        self.hidden = layers.Dense(24 * width, "relu", name="hidden")
        self.out = layers.Dense(1, "sigmoid", name="ctr")

    def __call__(self, f: Tensors) -> dict[str, tf.Tensor]:
        parsed: Tensors = tf.io.parse_example(
            f["examples"],
            {
                "item_id": tf.io.FixedLenFeature([], tf.int64),
                "price": tf.io.FixedLenFeature([1], tf.float32, default_value=[7.5]),
                "vector": tf.io.FixedLenFeature([4], tf.float32, default_value=[0.1, -0.2, 0.3, 0.0]),
                "city": tf.io.FixedLenFeature([], tf.string, default_value="nowhere"),
                "tags": tf.io.VarLenFeature(tf.string),
                "tag_weights": tf.io.VarLenFeature(tf.float32),
                "viewed": tf.io.RaggedFeature(tf.int64),
            },
        )
        tags = parsed["tags"]
        tag_ids = tf.SparseTensor(
            tags.indices, tf.strings.to_hash_bucket_fast(tags.values, 60), tags.dense_shape
        )
        bag = tf.nn.safe_embedding_lookup_sparse(
            self.tag, tag_ids, sparse_weights=parsed["tag_weights"], combiner="mean"
        )
        viewed = tf.reduce_sum(tf.gather(self.view, tf.math.floormod(parsed["viewed"], ITEMS)), axis=1)
        city = tf.one_hot(tf.strings.to_hash_bucket_fast(parsed["city"], 12), 12)
        item = tf.gather(self.item, tf.math.floormod(parsed["item_id"], ITEMS))
        x = tf.concat(
            [item, bag, viewed * 0.4, city, tf.math.log1p(parsed["price"]), parsed["vector"]], axis=-1
        )
        return {"ctr": self.out(self.hidden(x))[:, 0]}


def save_example_parser(directory: Path, width: int = 1) -> Path:
    return save_module(ExampleParser(width), {"examples": spec(STRING, None)}, directory, seed=63)


def example_parser_request(rows: int, seed: int) -> Features:
    draw = Draw(seed)
    records = []
    for _ in range(rows):
        tags = draw.strings(GENRES, int(draw.rng.integers(0, 4))).tolist()
        features = {
            "item_id": draw.ids(ITEMS, 1),
            "tags": tags,
            "tag_weights": draw.rng.uniform(-0.2, 2.0, len(tags)),
            "viewed": draw.ids(ITEMS, int(draw.rng.integers(0, 5))),
            "not_in_the_model": [1.0, 2.0],
        }
        if draw.rng.random() < 0.7:
            features |= {"price": draw.prices(1), "city": draw.strings(CITIES, 1)}
        if draw.rng.random() < 0.7:
            features["vector"] = draw.floats(4)
        records.append(example(**features))
    return {"examples": np.array(records, object)}


MODELS = (
    ZooModel(
        "keras_preprocessing", "tf2_module",
        "All Keras preprocessing layers, ragged splits looked up and pooled",
        save_keras_preprocessing, keras_preprocessing_request,
        references.signature(request_inputs=USER_INPUTS),
        options={"request_inputs": USER_INPUTS},
    ),
    ZooModel(
        "string_operations", "tf2_module",
        "Query and title text: regex, split, n-grams, both hashes, numbers",
        save_string_operations, string_operations_request, references.signature(),
    ),
    ZooModel(
        "example_parser", "tf2_module", "Serialized tf.Example: fixed, variable, ragged; weighted sparse bag",
        save_example_parser, example_parser_request, references.signature(),
    ),
)  # fmt: skip
