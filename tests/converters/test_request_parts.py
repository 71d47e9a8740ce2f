# TensorFlow's stubs do not know tensors as operands, nor modules with attributes.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
"""Histories that a model concatenates with the candidate before it looks them up stay the request's: the
request's block has their embeddings, the candidates' block only the candidates', and scores are
TensorFlow's."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from converters.convert import convert, dry_run, run_flax
from jaxrank import bundle as files
from jaxrank.certificate import CertificateError
from jaxrank.manifest import Manifest
from mlir_pipeline.compile import compile_bundle
from serving.errors import ServingError
from serving.model import Model
from tests import models

pytestmark = pytest.mark.filterwarnings("ignore")
RNG = np.random.default_rng(5)
STEPS, ROWS = 6, 40
TABLE = tf.constant(RNG.standard_normal((ROWS, 4)), tf.float32)
KINDS = tf.constant(RNG.integers(0, 7, ROWS), tf.int64)
POSITIONS = tf.constant(RNG.standard_normal((STEPS + 1, 4)), tf.float32)
WORDS = np.array([b"a", b"b", "köln".encode(), b"", b"\xff"], object)
Features = dict[str, np.ndarray]


def request(rows: int, seed: int, text: bool = False) -> Features:
    rng = np.random.default_rng(seed)
    if text:
        return {"user_items": rng.choice(WORDS, (1, STEPS)), "item_id": rng.choice(WORDS, rows)}
    history = rng.integers(1, ROWS, (1, STEPS))
    history[0, rng.integers(0, STEPS + 1) :] = 0
    return {"user_items": history, "item_id": rng.integers(0, ROWS, rows)}


def columns(bundle: Path) -> dict[str, list[tuple[int, ...]]]:
    """Shapes of the columns of each block, sorted."""
    found: dict[str, list[tuple[int, ...]]] = {"request": [], "candidate": []}
    for column in files.read_host_program(bundle).columns:
        found[column.scope].append(column.shape)
    return {scope: sorted(shapes) for scope, shapes in found.items()}


# --- a behaviour sequence transformer as Keras has it ---


def bst(steps: int = 16, width: int = 16) -> keras.Model:
    """Ids concatenated before one shared embedding that masks 0, learned positions, one block, of which the
    candidate's position is read."""
    history = keras.Input((steps,), dtype="int32", name="user_items")
    item = keras.Input((1,), dtype="int32", name="item_id")
    ids = layers.Concatenate(axis=1)([history, item])
    x = layers.Embedding(ROWS, width, mask_zero=True, name="items")(ids)
    mask = ops.not_equal(ids, 0)
    x = x + layers.Embedding(steps + 1, width, name="positions")(ops.arange(steps + 1))
    attended = layers.MultiHeadAttention(2, width // 2, name="attention")(
        x, x, attention_mask=ops.expand_dims(mask, 1)
    )
    x = layers.LayerNormalization(name="norm_0")(x + attended)
    inner = layers.Dense(4 * width, "relu", name="inner")(x)
    x = layers.LayerNormalization(name="norm_1")(x + layers.Dense(width, name="outer")(inner))
    x = layers.Dense(32, "relu", name="mlp")(x[:, -1])
    return keras.Model([history, item], {"ctr": layers.Dense(1, "sigmoid", name="ctr")(x)})


def bst_request(rows: int, seed: int) -> Features:
    rng = np.random.default_rng(seed)
    history = rng.integers(1, ROWS, (1, 16))
    history[0, rng.integers(1, 17) :] = 0
    return {
        "user_items": history.astype(np.int32),
        "item_id": rng.integers(1, ROWS, (rows, 1)).astype(np.int32),
    }


def test_keras_bst(tmp_path: Path) -> None:
    keras.utils.set_random_seed(3)
    bst().export(str(tmp_path / "m"), verbose=False)
    manifest = convert(tmp_path / "m", tmp_path / "b", request_inputs=["user_*"])
    assert columns(tmp_path / "b") == {"request": [(16,), (16, 16)], "candidate": [(1,), (1, 16)]}
    assert manifest.tables[0].rows == ROWS and len(manifest.tables) == 1
    manifest = compile_bundle(tmp_path / "b", ["cpu"])
    assert manifest.state, "the history's products are a request's"
    assert manifest.flops is not None and manifest.flops.request > 0
    assert manifest.flops.candidate < 0.2 * manifest.flops.source_per_candidate
    model = Model.load(tmp_path / "b")
    try:
        for rows in (1, 50, 400):
            features = bst_request(rows, seed=rows)
            expected = models.tensorflow_outputs(tmp_path / "m", features)["ctr"]
            np.testing.assert_allclose(model.predict(features)["ctr"], expected, rtol=1e-5, atol=1e-5)
    finally:
        model.close()


# --- what may lie between the concatenation and the dense half ---


def joined(f: Any) -> Any:
    return tf.concat([f["user_items"], f["item_id"][:, None]], 1)


def attend(x: Any, mask: Any = None) -> Any:
    """Scores that need every step: pairwise products, softmax under a mask."""
    logits = tf.matmul(x, x, transpose_b=True)
    if mask is not None:
        logits = tf.where(mask, logits, -1e9)
    return tf.reduce_sum(tf.tanh(tf.matmul(tf.nn.softmax(logits), x)), [1, 2])


def masked(f: Any) -> Any:
    """A mask of pairs from the concatenated ids, causal too; positions added after the lookup."""
    ids = joined(f)
    held = tf.not_equal(ids, 0)
    causal = tf.constant(np.tril(np.ones((STEPS + 1, STEPS + 1), bool)))
    pairs = held[:, tf.newaxis, :] & held[..., tf.newaxis] & causal
    x = (tf.gather(TABLE, ids) + POSITIONS) * tf.cast(held, tf.float32)[..., None]
    return attend(x, pairs | tf.eye(STEPS + 1, dtype=tf.bool))


def guarded(f: Any) -> Any:
    """Ids clipped and replaced, a category from a constant, numbers made of the ids."""
    ids = tf.clip_by_value(joined(f), 1, ROWS - 2)
    ids = tf.where(ids == 3, tf.zeros_like(ids), ids)
    x = tf.gather(TABLE, ids) + tf.gather(TABLE, tf.gather(KINDS, ids))
    x += tf.gather(TABLE, tf.math.floormod(ids * 7 + tf.range(STEPS + 1, dtype=tf.int64), ROWS))
    return attend(x * tf.cast(ids % 3, tf.float32)[..., None] + tf.one_hot(ids, 4))


def hashed(f: Any) -> Any:
    return attend(tf.gather(TABLE, tf.strings.to_hash_bucket_fast(tf.strings.lower(joined(f)), ROWS)))


def nested(f: Any) -> Any:
    """Two concatenations, the outer one of the inner one: a start token, the history, the candidate twice."""
    inner = tf.concat([joined(f), f["item_id"][:, None] // 2], 1)
    ids = tf.concat([tf.zeros([tf.shape(f["item_id"])[0], 1], tf.int64), inner], 1)
    return attend(tf.gather(TABLE, ids))


def features_beside(f: Any) -> Any:
    """Two lookups' ids beside each other on an axis of their own, both of concatenations."""
    ids = joined(f)
    both = tf.concat([ids[..., None], (ids[..., None] * 3) % ROWS], -1)
    stacked = tf.stack([ids, (ids * 5) % ROWS], 2)
    return attend(tf.reduce_sum(tf.gather(TABLE, both) * tf.gather(TABLE, stacked), 2))


def reshaped(f: Any) -> Any:
    ids = tf.reshape(tf.expand_dims(joined(f), -1), [-1, 1, STEPS + 1])
    x = tf.gather(TABLE, tf.transpose(ids, [0, 2, 1]))
    return attend(tf.reshape(x, [-1, STEPS + 1, 4]))


def stacked(f: Any) -> Any:
    """The last step of the history and the candidate, stacked."""
    return attend(tf.gather(TABLE, tf.stack([f["user_items"][:, 0], f["item_id"]], 1)))


def tiled(f: Any) -> Any:
    """The graph repeats the user's row itself."""
    history = tf.tile(f["user_items"], [tf.shape(f["item_id"])[0], 1])
    return attend(tf.gather(TABLE, joined({**f, "user_items": history})))


def counted(f: Any) -> Any:
    """A sum over the steps has no rule: it reads the whole, the lookup its parts."""
    ids = joined(f)
    kinds = tf.reduce_sum(tf.cast(ids > 5, tf.int64), 1)
    return attend(tf.gather(TABLE, ids)) + tf.cast(kinds, tf.float32)


@dataclass(frozen=True)
class Variant:
    score: Callable[[Any], Any]
    request: list[tuple[int, ...]]
    candidate: list[tuple[int, ...]]
    text: bool = False
    tiles: bool = False
    """Whether the model takes the user's one row and repeats it itself."""


S = STEPS
VARIANTS = {
    "masks and positions": Variant(masked, [(S,), (S, 4)], [(1,), (1, 4)]),
    "arithmetic on ids": Variant(guarded, [(S,)] + [(S, 4)] * 4, [(1,)] + [(1, 4)] * 4),
    "hashed strings": Variant(hashed, [(S, 4)], [(1, 4)], text=True),
    "two levels": Variant(nested, [(S + 1, 4)], [(2, 4)]),
    "ids beside ids": Variant(features_beside, [(S, 2, 4)] * 2, [(1, 2, 4)] * 2),
    "views": Variant(reshaped, [(S, 1, 4)], [(1, 1, 4)]),
    "a stack": Variant(stacked, [(1, 4)], [(1, 4)]),
    "a tiled history": Variant(tiled, [(S, 4)], [(1, 4)], tiles=True),
    "an op without a rule": Variant(counted, [(S, 4)], [(), (1, 4)]),
}


def save(path: Path, variant: Variant) -> Path:
    dtype = tf.string if variant.text else tf.int64
    module = tf.Module()
    module.f = tf.function(
        lambda user_items, item_id: {"y": variant.score({"user_items": user_items, "item_id": item_id})},
        input_signature=[
            tf.TensorSpec([None, STEPS], dtype, "user_items"),
            tf.TensorSpec([None], dtype, "item_id"),
        ],
    )
    tf.saved_model.save(module, str(path), signatures=module.f)
    return path


def expected(path: Path, features: Features, tiles: bool = False) -> np.ndarray:
    function = tf.saved_model.load(str(path)).signatures["serving_default"]
    rows = len(features["item_id"])
    if not tiles and len(features["user_items"]) != rows:
        features = {**features, "user_items": np.repeat(features["user_items"], rows, 0)}
    given = {n: tf.constant(v.tolist(), shape=v.shape, dtype=_dtype(v)) for n, v in features.items()}
    return function(**given)["y"].numpy()


def _dtype(value: np.ndarray) -> Any:
    return tf.string if value.dtype == object else value.dtype


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name: str, tmp_path: Path) -> None:
    variant = VARIANTS[name]
    path = save(tmp_path / "m", variant)
    manifest = convert(path, tmp_path / "b", request_inputs=["user_*"])
    assert columns(tmp_path / "b") == {"request": variant.request, "candidate": variant.candidate}
    _assert_scores(path, tmp_path / "b", manifest, variant)


def _assert_scores(path: Path, bundle: Path, manifest: Manifest, variant: Variant) -> None:
    requests = [request(rows, 70 + rows, variant.text) for rows in (1, 50, 400)]
    for features, found in zip(requests, run_flax(bundle, manifest, requests), strict=True):
        wanted = expected(path, features, variant.tiles)
        np.testing.assert_allclose(found["y"], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["two levels", "a stack"])
def test_the_report_has_every_op_once(name: str, tmp_path: Path) -> None:
    """The same ops as without a request's part, where nothing is taken apart."""
    path = save(tmp_path / "m", VARIANTS[name])
    reports = [dry_run(path, request_inputs=patterns) for patterns in (["user_*"], [])]
    placed = [(p.name, p.op, p.place) for p in reports[0].ops]
    assert len(placed) == len(set(placed))
    assert {p.name for p in reports[0].ops} == {p.name for p in reports[1].ops}
    joins = {(p.op, p.place) for p in reports[0].ops if "joins what is the request's" in p.reason}
    assert joins == {("ConcatV2", "dense")}
    assert all(len(set(t.readers)) == len(t.readers) for t in reports[0].tables)


def test_ids_of_a_table_in_the_dense_half_are_checked(tmp_path: Path) -> None:
    """The parts of the ids cross, and each is checked."""
    path = save(tmp_path / "m", Variant(lambda f: attend(tf.gather(TABLE, joined(f))), [], []))
    manifest = convert(path, tmp_path / "b", request_inputs=["user_*"], device_table_limit=1 << 20)
    assert columns(tmp_path / "b") == {"request": [(STEPS,)], "candidate": [(1,)]}
    features = request(9, 1)
    (found,) = run_flax(tmp_path / "b", manifest, [features])
    np.testing.assert_allclose(found["y"], expected(path, features), rtol=1e-5, atol=1e-5)
    for name in features:
        wrong = {**features, name: np.full_like(features[name], ROWS)}
        with pytest.raises(ServingError, match=str(ROWS)):
            run_flax(tmp_path / "b", manifest, [wrong])


def test_candidates_alone_are_left_as_they_are(tmp_path: Path) -> None:
    """Without a request's part there is nothing to keep apart."""
    path = save(tmp_path / "m", VARIANTS["masks and positions"])
    manifest = convert(path, tmp_path / "b")
    assert columns(tmp_path / "b")["request"] == []
    features = request(50, 3)
    features["user_items"] = np.repeat(features["user_items"], 50, 0)
    (found,) = run_flax(tmp_path / "b", manifest, [features])
    np.testing.assert_allclose(found["y"], expected(path, features), rtol=1e-5, atol=1e-5)


def test_a_difference_is_not_blamed_on_the_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part is compared with that part of TensorFlow's tensor, and what joins parts with none."""
    (tmp_path / "parts_plugin.py").write_text(
        "import tensorflow as tf\nLOWERINGS = {'Tanh': lambda attributes, inputs: [tf.sin(inputs[0])]}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    path = save(tmp_path / "m", VARIANTS["two levels"])
    with pytest.raises(CertificateError, match=r"first difference: \S*Tanh:0 .*dense"):
        convert(
            path,
            tmp_path / "b",
            request_inputs=["user_*"],
            op_plugins=["parts_plugin"],
            debug_numerics=True,
        )
