"""Models that were saved as one Keras file: the `.keras` archive and the legacy HDF5 file."""

from pathlib import Path

import keras
from keras import layers

from tests.zoo import references
from tests.zoo.drawing import BRANDS, CITIES, Draw
from tests.zoo.model import USER_INPUTS, Features, ZooModel
from tests.zoo.recurrent import LOOP_REASON, LOOP_TOLERANCE, recurrent_ranker, recurrent_request
from tests.zoo.weights import randomize


def save_keras_archive(directory: Path, width: int = 1) -> Path:
    """A GRU ranker with lookup layers, whose vocabularies are in the archive."""
    model = recurrent_ranker(layers.GRU(8 * width, name="history_gru"), width)
    randomize(model, seed=121)
    path = directory / "ranker.keras"
    model.save(path)
    return path


def save_h5(directory: Path, width: int = 1) -> Path:
    """A functional MLP with batch norm and dropout; ids arrive as numbers in the range of their tables."""
    inputs = {
        "user_city": keras.Input((), dtype="int32", name="user_city"),
        "user_profile": keras.Input((4,), name="user_profile"),
        "item_id": keras.Input((), dtype="int32", name="item_id"),
        "item_brands": keras.Input((3,), dtype="int32", name="item_brands"),
    }
    item = layers.Embedding(140, 8 * width, name="item_embedding")(inputs["item_id"])
    brands = layers.Embedding(len(BRANDS), 4, name="brand_embedding")(inputs["item_brands"])
    x = layers.Concatenate()(
        [
            layers.Embedding(len(CITIES), 4, name="city_embedding")(inputs["user_city"]),
            inputs["user_profile"],
            item,
            layers.GlobalMaxPooling1D(name="brand_pooling")(brands),
        ]
    )
    for i, units in enumerate((32 * width, 16 * width)):
        x = layers.Dense(units, name=f"hidden_{i}")(x)
        x = layers.LeakyReLU(negative_slope=0.1)(layers.BatchNormalization(name=f"norm_{i}")(x))
        x = layers.Dropout(0.2)(x)
    outputs = {
        "ctr": layers.Dense(1, "sigmoid", name="ctr")(x),
        "rating": layers.Dense(5, "softmax", name="rating")(x),
    }
    model = keras.Model(inputs, outputs, name="mlp")
    randomize(model, seed=122)
    path = directory / "ranker.h5"
    model.save(path)
    return path


def h5_request(rows: int, seed: int) -> Features:
    draw = Draw(seed)
    return {
        "user_city": draw.rng.integers(0, len(CITIES), 1, "int32"),
        "user_profile": draw.floats(1, 4),
        "item_id": draw.rng.integers(0, 140, rows, "int32"),
        "item_brands": draw.rng.integers(0, len(BRANDS), (rows, 3), "int32"),
    }


MODELS = (
    ZooModel(
        "keras_archive", "keras_file", "A .keras file: GRU, lookups, layer norm, two outputs",
        save_keras_archive, recurrent_request, references.keras_file(USER_INPUTS),
        options={"request_inputs": USER_INPUTS}, tolerance=LOOP_TOLERANCE, reason=LOOP_REASON,
    ),
    ZooModel(
        "legacy_h5", "h5_file", "An HDF5 file: MLP with batch norm, dropout, pooled embeddings",
        save_h5, h5_request, references.keras_file(USER_INPUTS),
        options={"request_inputs": USER_INPUTS},
    ),
)  # fmt: skip
