"""Graphs of TensorFlow 1: a frozen GraphDef with partitioned tables, a training checkpoint with its meta
graph, a SavedModel with reference variables."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf

from tests.zoo import references
from tests.zoo.drawing import BRANDS, CITIES, DEVICES, Draw
from tests.zoo.model import USER_INPUTS, Features, ZooModel
from tests.zoo.saving import (
    control_flow_v1,
    dense,
    graph_session,
    initialize,
    predict_signature,
    save_v1,
)

v1 = tf.compat.v1

ITEMS = 210
FROZEN_INPUTS = ("user_id:0", "user_city:0", "item_id:0", "item_tags:0")
FROZEN_OUTPUTS = ("ctr:0", "logit:0")
CHECKPOINT_INPUTS = ("user_device:0", "user_profile:0", "item_id:0", "item_brand:0")
CHECKPOINT_OUTPUTS = ("prediction:0",)


def save_frozen(directory: Path, width: int = 1) -> Path:
    """Tables on three and four parameter servers, looked up by mod and by div, frozen to constants."""
    with graph_session() as session, control_flow_v1():
        user_id = v1.placeholder(tf.int64, [1], name="user_id")
        user_city = v1.placeholder(tf.string, [1], name="user_city")
        item_id = v1.placeholder(tf.int64, [None], name="item_id")
        item_tags = v1.placeholder(tf.string, [None, 4], name="item_tags")
        with v1.variable_scope("tables", partitioner=v1.fixed_size_partitioner(3), use_resource=False):
            users = v1.get_variable("user_embedding", [150, 8 * width])
            items = v1.get_variable("item_embedding", [ITEMS, 8 * width])
        partitioner = v1.min_max_variable_partitioner(max_partitions=4, min_slice_size=256)
        with v1.variable_scope("more_tables", partitioner=partitioner, use_resource=False):
            tags = v1.get_variable("tag_embedding", [61, 8])
        cities = v1.get_variable("city_embedding", [20, 4], use_resource=False)
        user = tf.nn.embedding_lookup(list(users), tf.math.floormod(user_id, 150))
        item = v1.nn.embedding_lookup(items, tf.math.floormod(item_id, ITEMS), partition_strategy="div")
        buckets = v1.string_to_hash_bucket_fast(item_tags, 61)
        held = tf.where(tf.not_equal(item_tags, ""))
        bag = tf.SparseTensor(held, tf.gather_nd(buckets, held), tf.shape(item_tags, out_type=tf.int64))
        bag = v1.nn.safe_embedding_lookup_sparse(
            list(tags), bag, None, combiner="mean", default_id=0, partition_strategy="div"
        )
        city = tf.gather(cities, v1.string_to_hash_bucket(user_city, 20))
        rows = tf.shape(item_id)[0]
        x = tf.concat([tf.tile(user, [rows, 1]), tf.tile(city, [rows, 1]), item, bag], axis=1)
        x = dense(x, 24 * width, "fc_0", tf.nn.relu)
        logit = tf.identity(tf.reshape(dense(x, 1, "fc_1"), [-1]), name="logit")
        tf.sigmoid(logit, name="ctr")
        initialize(session, seed=91)
        frozen = v1.graph_util.convert_variables_to_constants(
            session, session.graph.as_graph_def(), ["ctr", "logit"]
        )
    path = directory / "frozen.pb"
    path.write_bytes(frozen.SerializeToString())
    return path


def frozen_request(rows: int, seed: int) -> Features:
    draw = Draw(seed)
    tags = draw.strings(BRANDS, rows, 4)
    tags[draw.rng.random(rows) < 0.2] = b""
    return {
        "user_id": draw.ids(150, 1),
        "user_city": draw.strings(CITIES, 1),
        "item_id": draw.ids(ITEMS, rows),
        "item_tags": tags,
    }


def batch_norm(x: tf.Tensor, is_training: tf.Tensor, name: str) -> tf.Tensor:
    """Batch norm as a training script writes it: a condition between moments and moving averages."""
    with v1.variable_scope(name):
        size = x.shape[-1]
        gamma = v1.get_variable("gamma", [size])
        beta = v1.get_variable("beta", [size])
        mean = v1.get_variable("moving_mean", [size], trainable=False)
        variance = v1.get_variable("moving_variance", [size], trainable=False)

        def training() -> tuple[tf.Tensor, tf.Tensor]:
            batch_mean, batch_variance = tf.nn.moments(x, axes=[0])
            updates = [
                v1.assign_sub(mean, 0.01 * (mean - batch_mean)),
                v1.assign_sub(variance, 0.01 * (variance - batch_variance)),
            ]
            with tf.control_dependencies(updates):
                return tf.identity(batch_mean), tf.identity(batch_variance)

        used = tf.cond(is_training, training, lambda: (tf.identity(mean), tf.identity(variance)))
        return tf.nn.batch_normalization(x, *used, beta, gamma, 1e-3)


def save_checkpoint(directory: Path, width: int = 1) -> Path:
    """What a training job leaves: labels, loss, Adagrad and its slots, `is_training` off by default."""
    with graph_session() as session, control_flow_v1():
        device = v1.placeholder(tf.string, [None], name="user_device")
        profile = v1.placeholder(tf.float32, [None, 5], name="user_profile")
        item_id = v1.placeholder(tf.int64, [None], name="item_id")
        brand = v1.placeholder(tf.string, [None], name="item_brand")
        labels = v1.placeholder(tf.float32, [None, 1], name="labels")
        is_training = v1.placeholder_with_default(False, [], name="is_training")
        known = tf.lookup.KeyValueTensorInitializer(
            [w.encode() for w in BRANDS], np.arange(1, len(BRANDS) + 1)
        )
        brands = tf.lookup.StaticHashTable(known, default_value=0)
        with v1.variable_scope("embeddings"):
            item_table = v1.get_variable("item_embedding", [ITEMS, 8 * width])
            brand_table = v1.get_variable("brand_embedding", [len(BRANDS) + 1, 4])
            device_table = v1.get_variable("device_embedding", [16, 4])
        x = tf.concat(
            [
                tf.nn.embedding_lookup(item_table, tf.math.floormod(item_id, ITEMS)),
                tf.nn.embedding_lookup(brand_table, brands.lookup(brand)),
                tf.nn.embedding_lookup(device_table, v1.string_to_hash_bucket_fast(device, 16)),
                batch_norm(profile, is_training, "profile_norm"),
            ],
            axis=1,
        )
        for i, units in enumerate((32 * width, 16 * width)):
            x = tf.nn.relu(batch_norm(dense(x, units, f"fc_{i}"), is_training, f"bn_{i}"))
            x = tf.cond(is_training, _dropped(x), _kept(x))
        logits = dense(x, 1, "logits")
        tf.sigmoid(logits, name="prediction")
        loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits))
        v1.train.AdagradOptimizer(0.05).minimize(loss, global_step=v1.train.get_or_create_global_step())
        initialize(session, seed=92)
        prefix = v1.train.Saver().save(session, str(directory / "model.ckpt"), global_step=1000)
    return Path(f"{prefix}.meta")


def _dropped(x: tf.Tensor) -> Callable[[], tf.Tensor]:
    return lambda: tf.nn.dropout(x, rate=0.4)


def _kept(x: tf.Tensor) -> Callable[[], tf.Tensor]:
    return lambda: tf.identity(x)


def checkpoint_request(rows: int, seed: int) -> Features:
    draw = Draw(seed)
    return {
        "user_device": draw.strings(DEVICES, 1),
        "user_profile": draw.floats(1, 5),
        "item_id": draw.ids(ITEMS, rows),
        "item_brand": draw.strings(BRANDS, rows),
    }


def save_partitioned(directory: Path, width: int = 1) -> Path:
    """A SavedModel of reference variables: div-partitioned tables restored from slices, an index table with
    OOV buckets, a default input."""
    with graph_session() as session:
        hour = v1.placeholder_with_default(tf.constant([12.0]), [1], name="user_hour")
        item_id = v1.placeholder(tf.int64, [None], name="item_id")
        city = v1.placeholder(tf.string, [None], name="item_city")
        with v1.variable_scope("ps", partitioner=v1.fixed_size_partitioner(4), use_resource=False):
            items = v1.get_variable("item_embedding", [ITEMS + 3, 8 * width])
            bias = v1.get_variable("item_bias", [ITEMS + 3])
        cities = tf.lookup.StaticVocabularyTable(
            tf.lookup.KeyValueTensorInitializer(
                [w.encode() for w in CITIES], tf.range(len(CITIES), dtype=tf.int64)
            ),
            num_oov_buckets=3,
        )
        ids = tf.clip_by_value(item_id, 0, ITEMS - 1)
        vector = v1.nn.embedding_lookup(items, ids, partition_strategy="div", max_norm=1.2)
        place = tf.one_hot(cities.lookup(city), len(CITIES) + 3)
        angle = hour * (2.0 * np.pi / 24.0)
        clock = tf.tile(tf.stack([tf.sin(angle), tf.cos(angle)], axis=1), [tf.shape(item_id)[0], 1])
        x = dense(tf.concat([vector, place, clock], axis=1), 24 * width, "fc_0", tf.nn.elu)
        logit = tf.squeeze(dense(x, 1, "fc_1"), 1)
        logit += v1.nn.embedding_lookup(bias, ids, partition_strategy="div")
        initialize(session, seed=93)
        signature = predict_signature(
            {"user_hour": hour, "item_id": item_id, "item_city": city}, {"score": tf.nn.softplus(logit)}
        )
        return save_v1(session, {"serving_default": signature}, directory)


def partitioned_request(rows: int, seed: int) -> Features:
    draw = Draw(seed)
    return {
        "user_hour": draw.rng.uniform(0, 24, 1).astype(np.float32),
        "item_id": draw.ids(ITEMS, rows),
        "item_city": draw.strings(CITIES, rows),
    }


MODELS = (
    ZooModel(
        "frozen_partitioned", "frozen_graph", "Frozen GraphDef: mod and div partitions, safe sparse lookup",
        save_frozen, frozen_request, references.frozen_graph(FROZEN_INPUTS, FROZEN_OUTPUTS),
        options={"inputs": FROZEN_INPUTS, "outputs": FROZEN_OUTPUTS},
    ),
    ZooModel(
        "checkpoint", "tf1_checkpoint",
        "Training checkpoint: is_training, batch norm and dropout in conditions",
        save_checkpoint, checkpoint_request,
        references.meta_graph(CHECKPOINT_INPUTS, CHECKPOINT_OUTPUTS, USER_INPUTS),
        options={
            "inputs": CHECKPOINT_INPUTS, "outputs": CHECKPOINT_OUTPUTS, "request_inputs": USER_INPUTS,
        },
    ),
    ZooModel(
        "partitioned", "tf1_saved_model",
        "TF1 SavedModel: reference variables in four slices, max_norm, OOV table",
        save_partitioned, partitioned_request, references.session(),
    ),
)  # fmt: skip
