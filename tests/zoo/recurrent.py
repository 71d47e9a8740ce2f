"""Models that read the history step by step: DIEN, and Keras LSTM and GRU rankers."""

from pathlib import Path

import keras
import tensorflow as tf
from keras import layers, ops

from tests.zoo import references
from tests.zoo.drawing import CITIES, Draw
from tests.zoo.model import USER_INPUTS, Features, ZooModel
from tests.zoo.saving import INT, Tensors, export_keras, save_module, spec

ITEMS = 300
STEPS = 10
LOOP_TOLERANCE = 1e-4
LOOP_REASON = "each step of the recurrence multiplies the error of the steps before"


class DIEN(tf.Module):
    """Deep interest evolution: a GRU extracts interests once for the user; attention from the candidate
    scales the update gate of a second GRU (AUGRU), a while loop over the steps."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.units = 8 * width
        self.items = tf.Variable(tf.zeros([ITEMS, 8 * width]), name="item_embedding")
        self.extract = layers.GRU(self.units, return_sequences=True, name="interest_extractor")
        self.relate = tf.Variable(tf.zeros([8 * width, self.units]), name="relate")
        self.gates = layers.Dense(2 * self.units, "sigmoid", name="augru_gates")
        self.candidate = layers.Dense(self.units, "tanh", name="augru_candidate")
        self.hidden = layers.Dense(24 * width, "relu", name="hidden")
        self.out = layers.Dense(1, "sigmoid", name="ctr")

    def evolve(self, interests: tf.Tensor, weights: tf.Tensor, held: tf.Tensor) -> tf.Tensor:
        """Final state `[rows, units]` of the AUGRU; padded steps leave the state as it is."""
        rows = tf.shape(weights)[0]

        def step(i: tf.Tensor, state: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            x = tf.repeat(interests[:, i], rows, axis=0)
            reset, update = tf.split(self.gates(tf.concat([x, state], axis=-1)), 2, axis=-1)
            proposed = self.candidate(tf.concat([x, reset * state], axis=-1))
            update = (1.0 - weights[:, i, None]) * update
            new = update * state + (1.0 - update) * proposed
            return i + 1, tf.where(held[:, i, None], new, state)

        first = step(tf.constant(0), tf.zeros([rows, self.units]))[1]
        _, state = tf.while_loop(lambda i, _: i < STEPS, step, (tf.constant(1), first))
        return state

    def __call__(self, f: Tensors) -> dict[str, tf.Tensor]:
        held = f["hist_items"] > 0
        keys = tf.gather(self.items, tf.minimum(f["hist_items"], ITEMS - 1))
        query = tf.gather(self.items, tf.clip_by_value(f["item_id"], 0, ITEMS - 1))
        interests = self.extract(keys, mask=held)
        logits = tf.einsum("nd,tu,du->nt", query, interests[0], self.relate)
        logits = tf.where(held, logits, -1e9 * tf.ones_like(logits))
        state = self.evolve(interests, tf.nn.softmax(logits), held)
        total = tf.reduce_sum(keys * tf.cast(held, tf.float32)[..., None], axis=1)
        total = tf.repeat(total, tf.shape(query)[0], axis=0)
        return {"ctr": self.out(self.hidden(tf.concat([query, state, total, query * total], -1)))}


def save_dien(directory: Path, width: int = 1) -> Path:
    specs = {"hist_items": spec(INT, 1, STEPS), "item_id": spec(INT, None)}
    return save_module(DIEN(width), specs, directory, seed=31)


def dien_request(rows: int, seed: int) -> Features:
    draw = Draw(seed)
    return {"hist_items": draw.history(ITEMS, 1, STEPS), "item_id": draw.ids(ITEMS, rows)}


def recurrent_ranker(recurrent: layers.Layer, width: int) -> keras.Model:
    """The history under the mask of its embedding, through `recurrent`, times the item."""
    inputs = {
        "user_items": keras.Input((STEPS,), dtype="int64", name="user_items"),
        "user_city": keras.Input((), dtype="string", name="user_city"),
        "item_id": keras.Input((), dtype="int64", name="item_id"),
    }
    lookup = layers.IntegerLookup(vocabulary=list(range(1, ITEMS)), mask_token=0, name="item_lookup")
    embedding = layers.Embedding(ITEMS + 1, 8 * width, mask_zero=True, name="item_embedding")
    state = recurrent(embedding(lookup(inputs["user_items"])))
    query = layers.Dense(state.shape[-1], name="query")(embedding(lookup(inputs["item_id"])))
    city = layers.StringLookup(vocabulary=list(CITIES), output_mode="one_hot")(inputs["user_city"])
    x = layers.Concatenate()([state * query, query, city])
    x = layers.LayerNormalization(name="norm")(x)
    x = layers.Dense(16 * width, "swish", name="hidden")(x)
    outputs = {
        "ctr": layers.Dense(1, "sigmoid", name="ctr")(x),
        "dwell": ops.squeeze(layers.Dense(1, "softplus", name="dwell")(x), axis=-1),
    }
    return keras.Model(inputs, outputs)


def recurrent_request(rows: int, seed: int) -> Features:
    draw = Draw(seed)
    return {
        "user_items": draw.history(ITEMS, 1, STEPS),
        "user_city": draw.strings(CITIES, 1),
        "item_id": draw.ids(ITEMS, rows),
    }


def save_lstm(directory: Path, width: int = 1) -> Path:
    model = recurrent_ranker(layers.LSTM(8 * width, name="history_lstm"), width)
    return export_keras(model, directory, seed=32)


def save_gru(directory: Path, width: int = 1) -> Path:
    """Two GRU layers; the second has the gate order of the original paper (`reset_after=False`)."""
    stacked = keras.Sequential(
        [
            layers.GRU(8 * width, return_sequences=True, name="history_gru_0"),
            layers.GRU(8 * width, reset_after=False, go_backwards=True, name="history_gru_1"),
        ]
    )
    return export_keras(recurrent_ranker(stacked, width), directory, seed=33)


MODELS = (
    ZooModel(
        "dien", "tf2_module", "DIEN: GRU over the user's history, AUGRU loop for each candidate",
        save_dien, dien_request, references.signature(), tolerance=LOOP_TOLERANCE, reason=LOOP_REASON,
    ),
    ZooModel(
        "lstm", "keras3", "Keras LSTM under the embedding's mask, two outputs",
        save_lstm, recurrent_request, references.signature(request_inputs=USER_INPUTS),
        options={"request_inputs": USER_INPUTS},
        tolerance=LOOP_TOLERANCE, reason=LOOP_REASON,
    ),
    ZooModel(
        "gru", "keras3", "Two Keras GRU layers, reset_after on and off, one backwards",
        save_gru, recurrent_request, references.signature(request_inputs=USER_INPUTS),
        options={"request_inputs": USER_INPUTS},
        tolerance=LOOP_TOLERANCE, reason=LOOP_REASON,
    ),
)  # fmt: skip
