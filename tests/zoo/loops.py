"""Loops and conditions, of both versions of control flow."""

from pathlib import Path

import numpy as np
import tensorflow as tf
from keras import layers

from tests.zoo import references
from tests.zoo.drawing import Draw
from tests.zoo.model import USER_INPUTS, Features, ZooModel
from tests.zoo.recurrent import LOOP_REASON, LOOP_TOLERANCE
from tests.zoo.saving import (
    FLOAT,
    INT,
    Tensors,
    control_flow_v1,
    dense,
    graph_session,
    initialize,
    predict_signature,
    save_module,
    save_v1,
    spec,
)

v1 = tf.compat.v1

ITEMS, STEPS = 180, 7


def save_tf1_while(directory: Path, width: int = 1) -> Path:
    """A recurrent cell by hand: `tf.while_loop` in frames of TF1, reading and writing TensorArrays, then
    attention over the written states."""
    units = 8 * width
    with graph_session() as session, control_flow_v1():
        history = v1.placeholder(tf.int64, [None, STEPS], name="user_items")
        lengths = v1.placeholder(tf.int32, [None], name="user_length")
        item_id = v1.placeholder(tf.int64, [None], name="item_id")
        table = v1.get_variable("item_embedding", [ITEMS, units])
        steps = tf.nn.embedding_lookup(table, tf.math.floormod(history, ITEMS))
        query = tf.nn.embedding_lookup(table, tf.math.floormod(item_id, ITEMS))
        inputs = tf.TensorArray(tf.float32, size=STEPS).unstack(tf.transpose(steps, [1, 0, 2]))
        written = tf.TensorArray(tf.float32, size=STEPS)
        with v1.variable_scope("cell"):
            kernel = v1.get_variable("kernel", [2 * units, 2 * units])
            bias = v1.get_variable("bias", [2 * units])

        def step(
            i: tf.Tensor, state: tf.Tensor, states: tf.TensorArray
        ) -> tuple[tf.Tensor, tf.Tensor, tf.TensorArray]:
            x = tf.matmul(tf.concat([inputs.read(i), state], axis=1), kernel) + bias
            gate, proposed = tf.split(x, 2, axis=1)
            new = state + tf.sigmoid(gate) * (tf.tanh(proposed) - state)
            new = tf.where(i < lengths[:, None], new, state)
            return i + 1, new, states.write(i, new)

        zero = tf.zeros([tf.shape(history)[0], units])
        _, last, states = tf.while_loop(lambda i, *_: i < STEPS, step, (0, zero, written))
        every = tf.transpose(states.stack(), [1, 0, 2])
        every.set_shape([None, STEPS, units])
        logits = tf.reduce_sum(every * query[:, None, :], axis=2)
        mask = tf.sequence_mask(tf.maximum(lengths, 1), STEPS)
        weights = tf.nn.softmax(tf.where(mask, logits, tf.fill(tf.shape(logits), -1e9)))
        interest = tf.reduce_sum(every * weights[:, :, None], axis=1)
        x = tf.concat([interest, last, query, interest * query], axis=1)
        x.set_shape([None, 4 * units])
        logit = dense(dense(x, 16 * width, "fc_0", tf.nn.relu), 1, "fc_1")
        initialize(session, seed=101)
        signature = predict_signature(
            {"user_items": history, "user_length": lengths, "item_id": item_id},
            {"ctr": tf.sigmoid(logit), "logit": logit},
        )
        return save_v1(session, {"serving_default": signature}, directory)


def tf1_while_request(rows: int, seed: int) -> Features:
    draw = Draw(seed)
    return {
        "user_items": draw.ids(ITEMS, 1, STEPS),
        "user_length": draw.lengths(STEPS, 1).astype(np.int32),
        "item_id": draw.ids(ITEMS, rows),
    }


class LongestHistory(tf.Module):
    """A loop that AutoGraph makes, over as many steps as the longest history of the batch has: how often it
    turns depends on the data, what a row gets does not."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.units = 8 * width
        self.items = tf.Variable(tf.zeros([ITEMS, self.units]), name="item_embedding")
        self.update = layers.Dense(self.units, "tanh", name="update")
        self.decay = tf.Variable(tf.zeros([self.units]), name="decay")
        self.hidden = layers.Dense(16 * width, "relu", name="hidden")
        self.out = layers.Dense(1, "sigmoid", name="ctr")

    def __call__(self, f: Tensors) -> dict[str, tf.Tensor]:
        rows, held = tf.shape(f["similar"])[0], f["similar"] > 0
        lengths = tf.reduce_sum(tf.cast(held, tf.int32), axis=1)
        vectors = tf.gather(self.items, tf.minimum(f["similar"], ITEMS - 1))
        self.update(tf.zeros([1, 2 * self.units]))
        state, i = tf.zeros([rows, self.units]), tf.constant(0)
        while i < tf.reduce_max(lengths):
            new = self.update(tf.concat([vectors[:, i], state * tf.sigmoid(self.decay)], axis=-1))
            state = tf.where((i < lengths)[:, None], new, state)
            i += 1
        item = tf.gather(self.items, tf.math.floormod(f["item_id"], ITEMS))
        x = tf.concat([state, item, f["item_stats"]], axis=-1)
        return {"ctr": self.out(self.hidden(x))[:, 0]}


def save_data_loop(directory: Path, width: int = 1) -> Path:
    specs = {
        "similar": spec(INT, None, STEPS),
        "item_id": spec(INT, None),
        "item_stats": spec(FLOAT, None, 3),
    }
    return save_module(LongestHistory(width), specs, directory, seed=102)


def data_loop_request(rows: int, seed: int) -> Features:
    draw = Draw(seed)
    return {
        "similar": draw.history(ITEMS, rows, STEPS),
        "item_id": draw.ids(ITEMS, rows),
        "item_stats": draw.floats(rows, 3),
    }


class ColdStart(tf.Module):
    """`tf.cond` on the user: with a history its mean, else a tower on the profile; and a `tf.case` between
    experiment arms."""

    def __init__(self, width: int) -> None:
        super().__init__()
        units = 8 * width
        self.items = tf.Variable(tf.zeros([ITEMS, units]), name="item_embedding")
        self.warm = layers.Dense(units, "relu", name="warm_tower")
        self.cold = layers.Dense(units, "relu", name="cold_tower")
        self.hidden = layers.Dense(16 * width, "relu", name="hidden")
        self.out = layers.Dense(1, name="out")
        self.offset = tf.Variable(tf.zeros([3]), name="arm_bias")

    def __call__(self, f: Tensors) -> dict[str, tf.Tensor]:
        held = f["user_items"] > 0
        item = tf.gather(self.items, tf.clip_by_value(f["item_id"], 0, ITEMS - 1))
        vectors = tf.gather(self.items, tf.minimum(f["user_items"], ITEMS - 1))
        self.warm(tf.zeros([1, item.shape[-1]]))
        self.cold(tf.zeros([1, 4]))

        def warm() -> tf.Tensor:
            mask = tf.cast(held, tf.float32)[..., None]
            return self.warm(tf.reduce_sum(vectors * mask, axis=1) / tf.reduce_sum(mask, axis=1))

        user = tf.cond(tf.reduce_any(held), warm, lambda: self.cold(f["user_profile"]))
        rows = tf.shape(item)[0]
        x = tf.concat([tf.repeat(user, rows, axis=0), item, user * item], axis=-1)
        logit = tf.squeeze(self.out(self.hidden(x)), -1)
        arm = f["user_arm"][0]
        score = tf.switch_case(
            tf.clip_by_value(arm, 0, 2),
            [
                lambda: tf.sigmoid(logit + self.offset[0]),
                lambda: tf.sigmoid(logit * 0.5 + self.offset[1]),
                lambda: tf.nn.softplus(logit) * tf.exp(self.offset[2]),
            ],
        )
        return {"score": score}


def save_cond(directory: Path, width: int = 1) -> Path:
    specs = {
        "user_items": spec(INT, 1, STEPS),
        "user_profile": spec(FLOAT, 1, 4),
        "user_arm": spec(tf.int32, 1),
        "item_id": spec(INT, None),
    }
    return save_module(ColdStart(width), specs, directory, seed=103)


def cond_request(rows: int, seed: int) -> Features:
    draw = Draw(seed)
    items = draw.history(ITEMS, 1, STEPS) * (draw.rng.random() < 0.6)
    return {
        "user_items": items,
        "user_profile": draw.floats(1, 4),
        "user_arm": draw.rng.integers(-1, 4, 1).astype(np.int32),
        "item_id": draw.ids(ITEMS, rows),
    }


MODELS = (
    ZooModel(
        "tf1_while", "tf1_saved_model", "TF1 while_loop frames with TensorArrays, attention over the states",
        save_tf1_while, tf1_while_request, references.session(request_inputs=USER_INPUTS),
        options={"request_inputs": USER_INPUTS}, tolerance=LOOP_TOLERANCE, reason=LOOP_REASON,
    ),
    ZooModel(
        "data_loop", "tf2_module", "AutoGraph while loop over the longest list of the batch",
        save_data_loop, data_loop_request, references.signature(),
        tolerance=LOOP_TOLERANCE, reason=LOOP_REASON,
    ),
    ZooModel(
        "cond", "tf2_module", "tf.cond between warm and cold users, tf.switch_case between arms",
        save_cond, cond_request, references.signature(),
    ),
)  # fmt: skip
