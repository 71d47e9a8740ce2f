"""One TF1 SavedModel with three signatures: predict on raw tensors, regress and classify on `tf.Example`."""

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tests.zoo import references
from tests.zoo.drawing import BRANDS, Draw, example
from tests.zoo.model import Features, ZooModel
from tests.zoo.saving import dense, graph_session, initialize, predict_signature, save_v1

v1 = tf.compat.v1

ITEMS = 160


def _scores(
    item_id: tf.Tensor, brand: tf.Tensor, stats: tf.Tensor, width: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Two-class probabilities `[rows, 2]` and an expected price `[rows, 1]`."""
    with v1.variable_scope("model", reuse=v1.AUTO_REUSE):
        items = v1.get_variable("item_embedding", [ITEMS, 8 * width])
        brands = v1.get_variable("brand_embedding", [40, 4])
        x = tf.concat(
            [
                tf.nn.embedding_lookup(items, tf.math.floormod(item_id, ITEMS)),
                tf.nn.embedding_lookup(brands, v1.string_to_hash_bucket_fast(brand, 40)),
                tf.clip_by_value(stats, -3.0, 3.0),
            ],
            axis=1,
        )
        x = dense(x, 24 * width, "shared", tf.nn.relu6)
        return tf.nn.softmax(dense(x, 2, "classes")), tf.exp(dense(x, 1, "price"))


def save_signatures(directory: Path, width: int = 1) -> Path:
    with graph_session() as session:
        serialized = v1.placeholder(tf.string, [None], name="tf_example")
        parsed = v1.parse_example(
            serialized,
            {
                "item_id": v1.FixedLenFeature([], tf.int64),
                "brand": v1.FixedLenFeature([], tf.string, default_value=""),
                "stats": v1.FixedLenFeature([3], tf.float32, default_value=[0.0, 0.5, 1.0]),
            },
        )
        raw = {
            "item_id": v1.placeholder(tf.int64, [None], name="item_id"),
            "brand": v1.placeholder(tf.string, [None], name="brand"),
            "stats": v1.placeholder(tf.float32, [None, 3], name="stats"),
        }
        classes, price = _scores(**parsed, width=width)
        raw_classes, raw_price = _scores(**raw, width=width)
        initialize(session, seed=111)
        signatures: dict[str, Any] = {
            "serving_default": v1.saved_model.classification_signature_def(
                examples=serialized, classes=None, scores=classes
            ),
            "regress": v1.saved_model.regression_signature_def(examples=serialized, predictions=price),
            "predict": predict_signature(raw, {"probabilities": raw_classes, "price": raw_price}),
        }
        return save_v1(session, signatures, directory)


def raw_request(rows: int, seed: int) -> Features:
    draw = Draw(seed)
    return {
        "item_id": draw.ids(ITEMS, rows),
        "brand": draw.strings(BRANDS, rows),
        "stats": 2.0 * draw.floats(rows, 3),
    }


def examples_request(rows: int, seed: int) -> Features:
    draw, raw = Draw(seed), raw_request(rows, seed)
    records = []
    for i in range(rows):
        kept = {n: np.atleast_1d(v[i]) for n, v in raw.items() if n == "item_id" or draw.rng.random() < 0.8}
        records.append(example(**kept))
    return {"inputs": np.array(records, object)}


MODELS = (
    ZooModel(
        "multi_signature_predict", "tf1_saved_model", "Several signatures: predict, raw tensors, two outputs",
        save_signatures, raw_request, references.session("predict"), options={"signature": "predict"},
    ),
    ZooModel(
        "multi_signature_regress", "tf1_saved_model", "Several signatures: regress on tf.Example",
        save_signatures, examples_request, references.session("regress"), options={"signature": "regress"},
    ),
    ZooModel(
        "multi_signature_classify", "tf1_saved_model",
        "Several signatures: classify on tf.Example, two classes",
        save_signatures, examples_request, references.session(), options={},
    ),
)  # fmt: skip
