"""Several objectives from one request: MMoE, PLE, ESMM."""

from pathlib import Path

import keras
import tensorflow as tf
from keras import layers, ops

from tests.zoo import references
from tests.zoo.drawing import CITIES, GENRES, Draw
from tests.zoo.model import USER_INPUTS, Features, ZooModel
from tests.zoo.saving import FLOAT, INT, STRING, Tensors, export_keras, save_module, spec

ITEMS = 200


def save_mmoe(directory: Path, width: int = 1) -> Path:
    """Multi-gate mixture of experts: four shared experts, a softmax gate and a tower for each task."""
    inputs = {
        "user_city": keras.Input((), dtype="string", name="user_city"),
        "user_profile": keras.Input((6,), name="user_profile"),
        "item_id": keras.Input((), dtype="int64", name="item_id"),
        "item_genre": keras.Input((), dtype="string", name="item_genre"),
    }
    city = layers.StringLookup(vocabulary=list(CITIES), output_mode="one_hot")(inputs["user_city"])
    genre = layers.StringLookup(vocabulary=list(GENRES))(inputs["item_genre"])
    x = layers.Concatenate()(
        [
            city,
            layers.BatchNormalization(name="profile_norm")(inputs["user_profile"]),
            layers.Embedding(ITEMS, 8 * width, name="item_embedding")(
                layers.Hashing(ITEMS)(inputs["item_id"])
            ),
            layers.Embedding(len(GENRES) + 1, 4, name="genre_embedding")(genre),
        ]
    )
    experts = []
    for i in range(4):
        hidden = layers.Dense(24 * width, "relu", name=f"expert_{i}_hidden")(x)
        experts.append(layers.Dense(16 * width, "relu", name=f"expert_{i}_out")(hidden))
    stacked = ops.stack(experts, axis=1)
    outputs = {}
    for task, activation in (("click", "sigmoid"), ("like", "sigmoid"), ("watch_time", "softplus")):
        gate = layers.Dense(4, "softmax", name=f"{task}_gate")(x)
        mixed = layers.Dot(axes=(1, 1), name=f"{task}_mixture")([gate, stacked])
        tower = layers.Dense(8 * width, "relu", name=f"{task}_tower")(mixed)
        outputs[task] = layers.Dense(1, activation, name=f"{task}_head")(tower)
    return export_keras(keras.Model(inputs, outputs, name="mmoe"), directory, seed=41)


def mmoe_request(rows: int, seed: int) -> Features:
    draw = Draw(seed)
    return {
        "user_city": draw.strings(CITIES, 1),
        "user_profile": draw.floats(1, 6),
        "item_id": draw.ids(ITEMS, rows),
        "item_genre": draw.strings(GENRES, rows),
    }


class ExtractionLayer(tf.Module):
    """One level of PLE: experts of each task and shared ones, a gate for each task and one for the shared."""

    def __init__(self, tasks: int, units: int, last: bool, level: int) -> None:
        super().__init__()
        self.tasks, self.last = tasks, last
        self.own = [
            [layers.Dense(units, "relu", name=f"level_{level}_task_{t}_expert_{e}") for e in range(2)]
            for t in range(tasks)
        ]
        self.shared = [layers.Dense(units, "relu", name=f"level_{level}_shared_{e}") for e in range(2)]
        self.gates = [layers.Dense(4, "softmax", name=f"level_{level}_gate_{t}") for t in range(tasks)]
        if not last:
            self.shared_gate = layers.Dense(2 * tasks + 2, "softmax", name=f"level_{level}_shared_gate")

    def __call__(self, inputs: list[tf.Tensor]) -> list[tf.Tensor]:
        own = [[e(x) for e in experts] for experts, x in zip(self.own, inputs, strict=False)]
        shared = [e(inputs[-1]) for e in self.shared]
        outputs = []
        for t in range(self.tasks):
            experts = tf.stack([*own[t], *shared], axis=1)
            outputs.append(tf.linalg.matvec(experts, self.gates[t](inputs[t]), transpose_a=True))
        if not self.last:
            experts = tf.stack([*sum(own, []), *shared], axis=1)
            gate = self.shared_gate(inputs[-1])
            outputs.append(tf.reduce_sum(experts * gate[:, :, None], axis=1))
        return outputs


class PLE(tf.Module):
    """Progressive layered extraction, two levels; the shared weights are cut off for the last level."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.user = tf.Variable(tf.zeros([120, 8]), name="user_embedding")
        self.item = tf.Variable(tf.zeros([ITEMS, 8]), name="item_embedding")
        self.levels = [
            ExtractionLayer(2, 16 * width, last=False, level=0),
            ExtractionLayer(2, 12 * width, last=True, level=1),
        ]
        self.towers = [layers.Dense(8 * width, "tanh", name=f"tower_{t}") for t in range(2)]
        self.heads = [layers.Dense(1, name=f"head_{t}") for t in range(2)]

    def __call__(self, f: Tensors) -> dict[str, tf.Tensor]:
        rows = tf.shape(f["item_id"])[0]
        user = tf.gather(self.user, tf.strings.to_hash_bucket_fast(f["user_id"], 120))
        item = tf.gather(self.item, tf.math.floormod(f["item_id"], ITEMS))
        x = tf.concat([tf.tile(user, [rows, 1]), item, f["item_stats"]], axis=-1)
        outputs = [x, x, x]
        for level in self.levels:
            outputs = level(outputs)
        finish, share = (h(t(x)) for h, t, x in zip(self.heads, self.towers, outputs, strict=True))
        finish, share = tf.sigmoid(finish)[:, 0], tf.sigmoid(share)[:, 0]
        # The value that the page sorts by: a product of powers, as teams tune it.
        return {"finish": finish, "share": share, "value": tf.pow(finish, 0.7) * tf.pow(share + 0.01, 0.3)}


def save_ple(directory: Path, width: int = 1) -> Path:
    specs = {"user_id": spec(STRING, 1), "item_id": spec(INT, None), "item_stats": spec(FLOAT, None, 4)}
    return save_module(PLE(width), specs, directory, seed=42)


def ple_request(rows: int, seed: int) -> Features:
    draw = Draw(seed)
    return {
        "user_id": draw.strings([f"u{i}" for i in range(300)], 1),
        "item_id": draw.ids(ITEMS, rows),
        "item_stats": draw.floats(rows, 4),
    }


def save_esmm(directory: Path, width: int = 1) -> Path:
    """Entire space model: click and conversion towers on shared embeddings; pCTCVR is their product."""
    inputs = {
        "user_id": keras.Input((), dtype="int64", name="user_id"),
        "user_genres": keras.Input((3,), dtype="string", name="user_genres"),
        "item_id": keras.Input((), dtype="int64", name="item_id"),
        "item_price": keras.Input((), name="item_price"),
    }
    genres = layers.StringLookup(vocabulary=list(GENRES), output_mode="multi_hot")(inputs["user_genres"])
    shared = layers.Concatenate(name="shared_embeddings")(
        [
            layers.Embedding(100, 8, name="user_embedding")(layers.Hashing(100)(inputs["user_id"])),
            layers.Embedding(ITEMS, 8, name="item_embedding")(layers.Hashing(ITEMS)(inputs["item_id"])),
            genres,
            ops.expand_dims(ops.log1p(inputs["item_price"]), -1),
        ]
    )
    rates = []
    for task in ("ctr", "cvr"):
        x = shared
        for i, units in enumerate((24 * width, 12 * width)):
            x = layers.Dense(units, "relu", name=f"{task}_hidden_{i}")(x)
            x = layers.Dropout(0.2)(x)
        rates.append(layers.Dense(1, "sigmoid", name=f"{task}_head")(x))
    outputs = {"ctr": rates[0], "ctcvr": layers.Multiply(name="ctcvr")(rates)}
    return export_keras(keras.Model(inputs, outputs, name="esmm"), directory, seed=43)


def esmm_request(rows: int, seed: int) -> Features:
    draw = Draw(seed)
    return {
        "user_id": draw.ids(100, 1),
        "user_genres": draw.strings(GENRES, 1, 3),
        "item_id": draw.ids(ITEMS, rows),
        "item_price": draw.prices(rows),
    }


MODELS = (
    ZooModel(
        "mmoe", "keras3", "MMoE: four experts, a softmax gate and a tower for each of three tasks",
        save_mmoe, mmoe_request, references.signature(request_inputs=USER_INPUTS),
        options={"request_inputs": USER_INPUTS},
    ),
    ZooModel(
        "ple", "tf2_module", "PLE: two extraction levels, three outputs, one a product of powers",
        save_ple, ple_request, references.signature(),
    ),
    ZooModel(
        "esmm", "keras3", "ESMM: click and conversion towers on shared embeddings, product output",
        save_esmm, esmm_request, references.signature(request_inputs=USER_INPUTS),
        options={"request_inputs": USER_INPUTS},
    ),
)  # fmt: skip
