"""Classify, Regress and MultiInference on tf.Examples, against TensorFlow's own answers and statuses."""

from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import tensorflow as tf

from serving.client import PredictClient
from serving.protocols.classification import CLASSIFY, REGRESS
from serving.wire import inference_pb2 as pb
from serving.wire.predict_pb2 import ModelSpec
from serving.wire.reflection import PREDICTION_SERVICE

INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture(scope="module")
def client(example_models: Path, start_server: Callable) -> Iterator[PredictClient]:
    client = PredictClient(start_server(example_models / "models").address)
    yield client
    client.close()


def _call(client: PredictClient, method: str, request: object, answer: type) -> object:
    call = client.channel.unary_unary(
        f"/{PREDICTION_SERVICE}/{method}", type(request).SerializeToString, answer.FromString
    )
    return call(request, timeout=30)


def _example(**features: object) -> bytes:
    """A real tf.Example: the kind of a feature is that of its values."""
    lists = {}
    for name, value in features.items():
        values = value if isinstance(value, list) else [value]
        if isinstance(values[0], bytes):
            lists[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
        elif isinstance(values[0], int):
            lists[name] = tf.train.Feature(int64_list=tf.train.Int64List(value=values))
        else:
            lists[name] = tf.train.Feature(float_list=tf.train.FloatList(value=values))
    return tf.train.Example(features=tf.train.Features(feature=lists)).SerializeToString()


def _list(*examples: bytes) -> pb.Input:
    return pb.Input(example_list=pb.ExampleList(examples=examples))


def _classify(client: PredictClient, given: pb.Input, **spec: object) -> pb.ClassificationResponse:
    request = pb.ClassificationRequest(
        model_spec=ModelSpec(**{"name": "classifier", **spec}),  # type: ignore[arg-type]
        input=given,
    )
    return _call(client, "Classify", request, pb.ClassificationResponse)  # type: ignore[return-value]


def _regress(client: PredictClient, given: pb.Input, **spec: object) -> pb.RegressionResponse:
    request = pb.RegressionRequest(
        model_spec=ModelSpec(**{"name": "regressor", **spec}),  # type: ignore[arg-type]
        input=given,
    )
    return _call(client, "Regress", request, pb.RegressionResponse)  # type: ignore[return-value]


@pytest.mark.parametrize("rows", [1, 40])
def test_classify_gives_tensorflows_classes(client: PredictClient, example_models: Path, rows: int) -> None:
    """1e-6: a softmax of sums of three float32 numbers, in another order."""
    rng = np.random.default_rng(rows)
    examples = [_example(price=rng.normal(size=2).tolist(), id=int(rng.integers(50))) for _ in range(rows)]
    response = _classify(client, _list(*examples))
    loaded = tf.saved_model.load(str(example_models / "classifier"))
    expected = loaded.signatures["serving_default"](inputs=tf.constant(examples))
    assert response.model_spec == ModelSpec(
        name="classifier", signature_name="serving_default", version={"value": 1}
    )
    found = response.result.classifications
    assert [[c.label.encode() for c in row.classes] for row in found] == expected["classes"].numpy().tolist()
    scores = [[c.score for c in row.classes] for row in found]
    np.testing.assert_allclose(scores, expected["scores"], rtol=0, atol=1e-6)


def test_a_context_is_merged_and_the_example_wins(client: PredictClient) -> None:
    """As `MergeFrom` of the messages: the last feature of a name counts."""
    context = _example(price=[0.5, 1.5], id=3)
    given = pb.ExampleListWithContext(examples=[_example(id=7), _example()], context=context)
    found = _classify(client, pb.Input(example_list_with_context=given)).result
    alone = _classify(client, _list(_example(price=[0.5, 1.5], id=7), context)).result
    assert found == alone


def _regress_features(rows: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(rows)
    return {
        "user_age": rng.uniform(1, 90, 1).astype(np.float32),
        "item_id": rng.integers(0, 50, rows).astype(np.int32),
        "item_price": rng.normal(size=(rows, 2)).astype(np.float32),
        "item_color": np.array([b"red", b"\xff", b""] * rows, object)[:rows],
    }


@pytest.mark.parametrize("user", ["context", "every example"])
def test_regress_reads_plain_features_by_name(client: PredictClient, example_models: Path, user: str) -> None:
    """1e-5: values up to 10, sums of float32 in another order."""
    features = _regress_features(9)
    rows = [
        {name: features[name][i].tolist() for name in ("item_id", "item_price")}
        | {"item_color": features["item_color"][i]}
        for i in range(9)
    ]
    age = float(features["user_age"][0])
    if user == "context":
        given = pb.ExampleListWithContext(
            examples=[_example(**row) for row in rows], context=_example(user_age=age)
        )
        response = _regress(client, pb.Input(example_list_with_context=given))
    else:
        response = _regress(client, _list(*(_example(**row, user_age=age) for row in rows)))
    loaded = tf.saved_model.load(str(example_models / "regressor"))
    expected = loaded.signatures["serving_default"](**{k: tf.constant(v) for k, v in features.items()})
    found = [r.value for r in response.result.regressions]
    np.testing.assert_allclose(found, expected["outputs"], rtol=0, atol=1e-5)


GOOD = _example(user_age=3.0, item_id=1, item_price=[1.0, 2.0], item_color=b"x")


@pytest.mark.parametrize(
    ("given", "spec", "words"),
    [
        pytest.param(pb.Input(), {}, "Input is empty", id="empty"),
        pytest.param(_list(), {}, "Input is empty", id="no examples"),
        pytest.param(_list(b"\xff\xff"), {}, "not a serialized tf.Example", id="garbage"),
        pytest.param(_list(_example(item_id=1)), {}, "'item_color' .* is required", id="missing feature"),
        pytest.param(
            _list(_example(user_age=1, item_id=1, item_price=[1.0, 2.0], item_color=b"x")),
            {},
            "'user_age' is a int64_list, expected float32",
            id="kind",
        ),
        pytest.param(
            _list(_example(user_age=1.0, item_id=2**40, item_price=[1.0, 2.0], item_color=b"x")),
            {},
            "'item_id' has a value outside of int32",
            id="range",
        ),
        pytest.param(
            _list(GOOD, _example(user_age=4.0, item_id=1, item_price=[1.0, 2.0], item_color=b"x")),
            {},
            "'user_age' must be the same for all candidates",
            id="request feature that differs",
        ),
        pytest.param(
            _list(*[GOOD] * 5001), {}, "5001 examples; this model takes at most 5000", id="too many"
        ),
        pytest.param(
            _list(GOOD),
            {"signature_name": "train"},
            "No signature was found with the name: train",
            id="signature",
        ),
        pytest.param(_list(GOOD), {"name": ""}, "name is empty", id="no name"),
        pytest.param(
            _list(GOOD), {"version_label": "x"}, "Unrecognized servable version label: x", id="label"
        ),
    ],
)
def test_refused_examples(client: PredictClient, given: pb.Input, spec: dict, words: str) -> None:
    with pytest.raises(grpc.RpcError, match=words) as caught:
        _regress(client, given, **spec)
    assert caught.value.code() is INVALID
    assert len(_regress(client, _list(GOOD)).result.regressions) == 1


def test_a_signature_of_another_method(client: PredictClient) -> None:
    with pytest.raises(grpc.RpcError, match="Expected classification signature outputs") as caught:
        _classify(client, _list(GOOD), name="regressor")
    assert caught.value.code() is INVALID
    with pytest.raises(grpc.RpcError, match="Expected regression signature to have one output") as caught:
        _regress(client, _list(GOOD), name="classifier")
    assert caught.value.code() is INVALID


def test_method_names_are_checked_when_asked(example_models: Path, start_server: Callable) -> None:
    """TensorFlow 2 exports every signature as one for Predict, which is why the check is off by default."""
    client = PredictClient(start_server(example_models / "models", check_method=True).address)
    with pytest.raises(grpc.RpcError, match="method_name to be tensorflow/serving/regress") as caught:
        _regress(client, _list(GOOD))
    assert caught.value.code() is INVALID
    client.close()


def _tasks(*tasks: tuple[str, str, str]) -> pb.MultiInferenceRequest:
    return pb.MultiInferenceRequest(
        tasks=[
            pb.InferenceTask(model_spec=ModelSpec(name=name, signature_name=signature), method_name=method)
            for name, signature, method in tasks
        ],
        input=_list(GOOD),
    )


def test_multi_inference(client: PredictClient) -> None:
    request = _tasks(("regressor", "", REGRESS))
    response = _call(client, "MultiInference", request, pb.MultiInferenceResponse)
    (result,) = response.results  # type: ignore[attr-defined]
    assert result.regression_result == _regress(client, _list(GOOD)).result
    assert result.model_spec.version.value == 1


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        pytest.param(_tasks(), INVALID, "name is empty", id="no tasks"),
        pytest.param(
            _tasks(("regressor", "", REGRESS), ("classifier", "", CLASSIFY)),
            INVALID,
            "same model name",
            id="two models",
        ),
        pytest.param(
            _tasks(("regressor", "", REGRESS), ("regressor", "", REGRESS)),
            INVALID,
            "Duplicate evaluation of signature: serving_default",
            id="twice",
        ),
        pytest.param(
            _tasks(("regressor", "other", REGRESS)),
            INVALID,
            "Requested signature not found in model graph: other",
            id="signature",
        ),
        pytest.param(
            _tasks(("regressor", "", "tensorflow/serving/predict")),
            grpc.StatusCode.UNIMPLEMENTED,
            "Unsupported signature method_name",
            id="method",
        ),
        pytest.param(_tasks(("no", "", REGRESS)), grpc.StatusCode.NOT_FOUND, "no model 'no'", id="model"),
    ],
)
def test_refused_tasks(
    client: PredictClient, request_: pb.MultiInferenceRequest, code: grpc.StatusCode, words: str
) -> None:
    with pytest.raises(grpc.RpcError, match=words) as caught:
        _call(client, "MultiInference", request_, pb.MultiInferenceResponse)
    assert caught.value.code() is code
