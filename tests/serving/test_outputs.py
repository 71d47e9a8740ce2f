"""Outputs of every kind over gRPC: the host's strings and ids beside the dense half's floats, integers and
bools."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from msgspec.structs import replace

from converters.convert import convert
from jaxrank import bundle as files
from jaxrank.certificate import Example, load_examples, save_examples
from mlir_pipeline.compile import compile_bundle
from serving.client import PredictClient
from serving.grpc_server import Server, ServerOptions
from serving.model import Model
from serving.wire import tensor_pb2
from tests.shared import Once

pytestmark = pytest.mark.filterwarnings("ignore")


class _Labelled(tf.Module):
    """Scores a row, and says which item and in what words it is."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = tf.Variable(tf.random.stateless_normal([4, 2], seed=(0, 1)))

    @tf.function
    def scores(self, item_id: tf.Tensor, title: tf.Tensor, stats: tf.Tensor) -> dict[str, tf.Tensor]:
        hidden = stats @ self.weights
        return {
            "score": tf.sigmoid(hidden[:, 0]),
            "item_id": tf.identity(item_id),
            "title": tf.strings.lower(title),
            "best": tf.argmax(hidden, axis=1),
            "cheap": tf.reduce_sum(stats, axis=1) < 0.0,
        }


def _request(rows: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    words = np.array([b"Red SHOES", b"", "ÉTÉ".encode(), b"Hat"], object)
    return {
        "item_id": rng.integers(0, 1 << 40, rows),
        "title": words[rng.integers(0, len(words), rows)],
        "stats": rng.standard_normal((rows, 4)).astype(np.float32),
    }


@pytest.fixture(scope="module")
def saved_model(once: Once) -> Path:
    def build(directory: Path) -> None:
        module = _Labelled()
        specs = {
            "item_id": tf.TensorSpec([None], tf.int64),
            "title": tf.TensorSpec([None], tf.string),
            "stats": tf.TensorSpec([None, 4], tf.float32),
        }
        concrete = module.scores.get_concrete_function(**specs)  # pyright: ignore
        tf.saved_model.save(module, str(directory / "saved_model"), signatures=concrete)

    return once("labelled", build) / "saved_model"


@pytest.fixture(scope="module")
def bundles(saved_model: Path, once: Once) -> Path:
    """A models directory with `scores`, and `labels`: the same bundle with the host's outputs alone."""
    return once("labelled_bundles", lambda directory: _write_bundles(saved_model, directory))


def _write_bundles(saved_model: Path, models: Path) -> None:
    scores, labels = models / "scores" / "1", models / "labels" / "1"
    convert(saved_model, scores)
    shutil.copytree(scores, labels)
    manifest, host = files.read_manifest(labels), ("item_id", "title")
    outputs = tuple(t for t in manifest.signature.outputs if t.name in host)
    examples = [Example(e.features, {n: e.outputs[n] for n in host}) for e in load_examples(labels)]
    save_examples(labels, examples)
    files.write_manifest(labels, replace(manifest, signature=replace(manifest.signature, outputs=outputs)))
    for bundle in (scores, labels):
        compile_bundle(bundle, ["cpu"])


@pytest.fixture(scope="module")
def client(bundles: Path) -> Iterator[PredictClient]:
    server = Server(ServerOptions(models=bundles, host="127.0.0.1", port=0))
    client = PredictClient(server.address)
    yield client
    client.close()
    server.stop()


@pytest.mark.parametrize("rows", [1, 300])
def test_outputs_are_tensorflows(client: PredictClient, saved_model: Path, rows: int) -> None:
    """300 rows go through the engine in slices; the host makes its outputs once."""
    features = _request(rows, seed=rows)
    tensors = {name: tf.constant(value) for name, value in features.items()}
    expected = tf.saved_model.load(str(saved_model)).signatures["serving_default"](**tensors)
    found = client.predict("scores", features)
    assert set(found) == set(expected)
    np.testing.assert_allclose(found["score"], expected["score"], rtol=0, atol=1e-6)
    for name in ("item_id", "title", "best", "cheap"):
        assert found[name].tolist() == expected[name].numpy().tolist()
    assert (found["best"].dtype, found["cheap"].dtype) == (np.int64, np.bool_)


def test_outputs_of_the_host_alone(client: PredictClient, bundles: Path) -> None:
    """A filter that leaves only them out of two halves, and a model that has no dense half."""
    features = _request(5, seed=9)
    lower = [title.lower() for title in features["title"]]
    assert client.predict("scores", features, outputs=["title"])["title"].tolist() == lower
    assert client.predict("labels", features)["title"].tolist() == lower
    (target,) = files.verify(bundles / "labels" / "1").targets
    assert (target.engine, target.module) == ("host", "")
    model = Model.load(bundles / "labels" / "1", target="cpu")
    assert set(model.predict(features)) == {"item_id", "title"}


def test_metadata_has_the_signature_as_tensorflow_declares_it(client: PredictClient) -> None:
    definition = client.signature("scores")["serving_default"]
    assert definition.method_name == "tensorflow/serving/predict"
    assert definition.outputs["title"].dtype == tensor_pb2.DT_STRING
    assert definition.outputs["best"].dtype == tensor_pb2.DT_INT64
