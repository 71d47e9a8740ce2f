"""Every model of the zoo compiled for the CPU and served: TensorFlow's answers to fresh requests, from the
arrays of `serving.model` and over gRPC."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from mlir_pipeline.compile import compile_bundle
from serving.client import PredictClient
from serving.grpc_server import Server, ServerOptions
from serving.model import Model
from serving.validation import decode_inputs
from serving.wire.codec import encode_content
from tests.shared import Once
from tests.zoo import ZOO
from tests.zoo.converted import Converted, convert_once
from tests.zoo.model import Features, ZooModel

pytestmark = pytest.mark.filterwarnings("ignore")

NOT_COMPILED: dict[str, str] = {}
"""Models that cannot be compiled yet, and why."""


SERVED = [
    model
    for model in ZOO
    if "JAXRANK_WHOLE_ZOO" in os.environ
    or model.name in {
        "din", "dien", "lstm", "listwise_reranker", "string_operations", "example_parser", "tf1_while",
        "cond",
    }
]  # fmt: skip
"""Some of each kind; all of them with `make whole-zoo`. tests/serving/engines has others, and
tests/zoo/test_zoo.py compiles every model for CUDA."""


@pytest.fixture(scope="session", params=SERVED, ids=lambda model: model.name)
def converted(request: pytest.FixtureRequest, once: Once) -> Converted:
    """The models that are served here."""
    return convert_once(request.param, once)


@pytest.fixture(scope="session")
def compiled(converted: Converted, once: Once) -> Path:
    """The bundle of a model after `compile_bundle` for the CPU, which certifies it on the recorded
    requests."""
    return _compile(converted, once)


def _compile(converted: Converted, once: Once) -> Path:
    def build(directory: Path) -> None:
        shutil.copytree(converted.bundle, directory / "1")
        compile_bundle(directory / "1", ["cpu"], data_tiling=False)  # timing both ways takes seconds

    return once(f"compiled-{converted.model.name}", build) / "1"


def test_answers_are_tensorflows(
    converted: Converted, compiled: Path, request: pytest.FixtureRequest
) -> None:
    """Requests come as tensors on the wire. The tolerance is the model's: absolute up to 1, relative
    beyond."""
    if reason := NOT_COMPILED.get(converted.model.name):
        request.applymarker(pytest.mark.xfail(strict=True, reason=reason))
    model = Model.load(compiled, streams=2)
    try:
        for rows in (1, 50, 400):
            features = converted.model.request(rows, seed=7000 + rows)
            tensors = {name: encode_content(value) for name, value in features.items()}
            inputs = decode_inputs(tensors, model.manifest.signature, model.manifest.max_candidates)
            found = model.predict(inputs)
            _assert_close(
                found, converted.model.reference(converted.path, features), converted.model.tolerance
            )
    finally:
        model.close()


@pytest.fixture(scope="module")
def served(
    once: Once, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[PredictClient, dict[str, Path]]]:
    """A server of models whose inputs or outputs are not plain numbers, and the artifacts behind them."""
    directory = tmp_path_factory.mktemp("served")
    paths: dict[str, Path] = {}
    for name in ("sparse_bags", "ragged_bags", "multi_signature_classify", "list_context"):
        converted = convert_once(_model(name), once)
        paths[name] = converted.path
        shutil.copytree(_compile(converted, once), directory / "models" / name / "1")
    server = Server(ServerOptions(models=directory / "models", host="127.0.0.1", port=0))
    client = PredictClient(server.address)
    yield client, paths
    client.close()
    server.stop()


def _model(name: str) -> ZooModel:
    return next(model for model in ZOO if model.name == name)


@pytest.mark.parametrize("name", ["sparse_bags", "ragged_bags", "multi_signature_classify", "list_context"])
def test_answers_over_grpc(served: tuple[PredictClient, dict[str, Path]], name: str) -> None:
    """Sparse and ragged inputs, labels as strings, and a model that mixes candidates: 300 of them would be
    cut into slices if it did not."""
    client, paths = served
    model = _model(name)
    for rows in (1, 300):
        features = model.request(rows, seed=300 + rows)
        _assert_close(client.predict(name, features), model.reference(paths[name], features), model.tolerance)


def test_a_sparse_feature_with_a_wild_index_is_refused(served: tuple[PredictClient, dict[str, Path]]) -> None:
    client, _ = served
    features = _model("sparse_bags").request(4, seed=1)
    features["tags"] = features["tags"] + 100
    with pytest.raises(grpc.RpcError) as refused:
        client.predict("sparse_bags", features)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "'tags' has the index" in str(refused.value.details())


def _assert_close(found: Features, expected: Features, tolerance: float) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        if value.dtype == object:
            assert (found[name] == value).all(), name
            continue
        assert found[name].dtype == value.dtype, name
        a, b = found[name].astype(np.float64), value.astype(np.float64)
        error = (np.abs(a - b) / np.maximum(np.abs(b), 1.0)).max()
        assert error <= tolerance, f"{name} at {len(value)} rows differs by {error:.2e}"
