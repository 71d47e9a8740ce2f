"""One compiled module answers for every length of a masked history and every number of candidates."""

from collections.abc import Iterator
from pathlib import Path

import jax
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from converters.convert import convert
from mlir_pipeline.compile import compile_bundle
from serving.model import Model
from tests.shared import Once
from tests.zoo import references
from tests.zoo.saving import INT, Tensors, save_module, spec

pytestmark = pytest.mark.filterwarnings("ignore")

STEPS, ITEMS, RANK = 512, 2000, 16


class LongHistory(tf.Module):
    """Target attention over up to 512 steps; id 0 is padding. The masked mean of the history is read too."""

    def __init__(self) -> None:
        super().__init__()
        self.items = layers.Embedding(ITEMS, RANK, name="item_embedding")
        self.keys = layers.Dense(RANK, name="keys")
        self.values = layers.Dense(RANK, name="values")
        self.query = layers.Dense(RANK, name="query")
        self.hidden = layers.Dense(32, "relu", name="hidden")
        self.out = layers.Dense(1, "sigmoid", name="score")

    def __call__(self, f: Tensors) -> dict[str, tf.Tensor]:
        mask = tf.not_equal(f["history"], 0)
        history, item = self.items(f["history"]), self.items(f["item_id"])
        held = tf.cast(mask, tf.float32)[..., None]
        mean = tf.math.divide_no_nan(tf.reduce_sum(history * held, 1), tf.reduce_sum(held, 1))
        logits = tf.matmul(self.query(item), self.keys(history)[0], transpose_b=True) / RANK**0.5
        attention = tf.nn.softmax(tf.where(mask, logits, -1e9), axis=-1)
        interest = tf.matmul(attention, self.values(history)[0])
        x = tf.concat([item, interest, item * mean], axis=-1)
        return {"score": self.out(self.hidden(x))[:, 0]}


@pytest.fixture(scope="module")
def saved(once: Once) -> Path:
    """The SavedModel, with its compiled bundle beside it."""

    def build(directory: Path) -> None:
        keras.utils.set_random_seed(5)
        specs = {"history": spec(INT, 1, STEPS), "item_id": spec(INT, None)}
        saved = save_module(LongHistory(), specs, directory, seed=5)
        assert saved == directory / "saved_model"
        convert(saved, directory / "bundle")
        compile_bundle(directory / "bundle", ["cpu"], data_tiling=False, batch_tile=16)
        jax.clear_caches()

    return once("long_history", build) / "saved_model"


@pytest.fixture(scope="module")
def model(saved: Path) -> Iterator[Model]:
    model = Model.load(saved.parent / "bundle", streams=2)
    yield model
    model.close()


def _request(length: int, candidates: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([length, candidates])
    history = np.zeros((1, STEPS), np.int64)
    history[0, :length] = rng.integers(1, ITEMS, length)
    return {"history": history, "item_id": rng.integers(1, ITEMS, candidates)}


LENGTHS, CANDIDATES = (1, 7, 100, 512), (1, 50, 5000)


@pytest.mark.parametrize("candidates", CANDIDATES)
@pytest.mark.parametrize("length", LENGTHS)
def test_scores_are_tensorflows(model: Model, saved: Path, length: int, candidates: int) -> None:
    """1e-5: float32 sums in another order."""
    features = _request(length, candidates)
    expected = references.signature()(saved, features)["score"]
    assert candidates == 1 or np.ptp(expected) > 1e-3
    np.testing.assert_allclose(model.predict(features)["score"], expected, rtol=0, atol=1e-5)


def test_padding_is_not_read(model: Model) -> None:
    """A step more changes the scores, and every length has its own: the mask is at work."""
    scores = [model.predict({**_request(n, 1), "item_id": np.array([5])})["score"][0] for n in (1, 7, 8, 512)]
    assert len(set(scores)) == 4


def test_lengths_share_a_batch(model: Model, saved: Path) -> None:
    requests = [_request(length, candidates) for length in LENGTHS for candidates in CANDIDATES]
    for features, found in zip(requests, model.predict_batch(requests), strict=True):
        expected = references.signature()(saved, features)["score"]
        np.testing.assert_allclose(found["score"], expected, rtol=0, atol=1e-5)
