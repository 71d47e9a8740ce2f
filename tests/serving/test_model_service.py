"""ModelService over gRPC: status of versions, labels, and another configuration while the server runs."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from serving.client import PredictClient
from serving.grpc_server import Server
from serving.model_config import ALL, ConfigError, ModelConfig, VersionPolicy, read_model_config
from serving.wire import model_service_pb2 as pb
from serving.wire import server_config_pb2
from serving.wire.predict_pb2 import ModelSpec
from serving.wire.reflection import MODEL_SERVICE
from tests import models

REQUEST = models.ranker_request(2, 0)
State = pb.ModelVersionStatus


@pytest.fixture(scope="module")
def base(ranker_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions 1, 2, 4 of the ranker, and 5, which is damaged."""
    path = tmp_path_factory.mktemp("base") / "ranker"
    for version in ("1", "2", "4", "5"):
        shutil.copytree(ranker_bundle, path / version)
    (path / "5" / "host_program.json").write_bytes(b"{}")
    return path


@pytest.fixture
def server(base: Path, start_server: Callable) -> Server:
    return start_server((ModelConfig("ranker", base),))


@pytest.fixture
def client(server: Server) -> Iterator[PredictClient]:
    client = PredictClient(server.address)
    yield client
    client.close()
    server.stop()


def _status(client: PredictClient, **spec: object) -> list[tuple[int, int]]:
    call = client.channel.unary_unary(
        f"/{MODEL_SERVICE}/GetModelStatus",
        pb.GetModelStatusRequest.SerializeToString,
        pb.GetModelStatusResponse.FromString,
    )
    request = pb.GetModelStatusRequest(model_spec=ModelSpec(**{"name": "ranker", **spec}))  # type: ignore[arg-type]
    return [(v.version, v.state) for v in call(request, timeout=30).model_version_status]


def _reload(
    client: PredictClient, text: str | server_config_pb2.ModelServerConfig
) -> pb.ReloadConfigResponse:
    from google.protobuf import text_format

    config = text_format.Parse(text, server_config_pb2.ModelServerConfig()) if isinstance(text, str) else text
    call = client.channel.unary_unary(
        f"/{MODEL_SERVICE}/HandleReloadConfigRequest",
        pb.ReloadConfigRequest.SerializeToString,
        pb.ReloadConfigResponse.FromString,
    )
    return call(pb.ReloadConfigRequest(config=config), timeout=60)


def _config(base: Path, rest: str = "", name: str = "ranker") -> str:
    return f"""model_config_list {{ config {{
        name: "{name}" base_path: "{base}" model_platform: "tensorflow" {rest} }} }}"""


def test_a_version_that_does_not_load_has_its_reason(client: PredictClient, server: Server) -> None:
    """The highest version that loads is served, and the damaged one says why it is not."""
    assert _status(client) == [(5, State.LOADING), (4, State.AVAILABLE)]
    (status,) = server.repository.statuses("ranker", 5)
    assert "host_program.json" in status.error
    assert _status(client, version={"value": 4}) == [(4, State.AVAILABLE)]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"version": {"value": 77}}, "Could not find version 77 of model ranker"),
        ({"name": "no"}, "Could not find any versions of model no"),
    ],
)
def test_status_of_what_is_not_there(client: PredictClient, spec: dict, words: str) -> None:
    with pytest.raises(grpc.RpcError, match=words) as caught:
        _status(client, **spec)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_policies_and_labels(client: PredictClient, base: Path) -> None:
    """What a canary does: two versions at once, each behind a label that moves."""
    response = _reload(
        client,
        _config(
            base,
            """model_version_policy { specific { versions: 1 versions: 2 } }
               version_labels { key: "stable" value: 1 } version_labels { key: "canary" value: 2 }""",
        ),
    )
    assert response.status.error_code == pb.StatusProto.OK
    assert [s for s in _status(client) if s[1] == State.AVAILABLE] == [
        (2, State.AVAILABLE),
        (1, State.AVAILABLE),
    ]
    assert (4, State.END) in _status(client)
    assert _version_of(client, version_label="stable") == 1
    assert _version_of(client, version_label="canary") == 2
    assert _version_of(client) == 2
    assert _status(client, version_label="stable") == [(1, State.AVAILABLE)]
    with pytest.raises(
        grpc.RpcError, match="label 'stable' to version 9 .*not currently available"
    ) as caught:
        _reload(
            client,
            _config(base, 'model_version_policy { all {} } version_labels { key: "stable" value: 9 }'),
        )
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    # The models are those of the new configuration, the labels those of the old one.
    assert _version_of(client, version_label="stable") == 1
    assert _version_of(client) == 4


def _version_of(client: PredictClient, **spec: object) -> int:
    from serving.wire import predict_pb2
    from serving.wire.codec import encode_content
    from serving.wire.reflection import PREDICTION_SERVICE

    request = predict_pb2.PredictRequest(model_spec=ModelSpec(name="ranker", **spec))  # type: ignore[arg-type]
    for name, value in REQUEST.items():
        request.inputs[name].CopyFrom(encode_content(value))
    call = client.channel.unary_unary(
        f"/{PREDICTION_SERVICE}/Predict",
        predict_pb2.PredictRequest.SerializeToString,
        predict_pb2.PredictResponse.FromString,
    )
    return call(request, timeout=30).model_spec.version.value


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        (lambda base: server_config_pb2.ModelServerConfig(), "INVALID_ARGUMENT", "only model_config_list"),
        (lambda base: _config(Path("models")), "INVALID_ARGUMENT", "absolute base_path"),
        (lambda base: _config(base, name=""), "INVALID_ARGUMENT", "has no name"),
        (
            lambda base: _config(base, "} config { name: 'ranker' base_path: '/x'"),
            "INVALID_ARGUMENT",
            "listed more than once",
        ),
        (lambda base: _config(base).replace("tensorflow", "onnx"), "INVALID_ARGUMENT", "platform 'onnx'"),
        (lambda base: _config(base / "nothing", name="other"), "UNKNOWN", "did not become available: other"),
    ],
)
def test_refused_configurations(
    client: PredictClient, base: Path, text: Callable, code: str, words: str
) -> None:
    with pytest.raises(grpc.RpcError, match=words) as caught:
        _reload(client, text(base))
    assert caught.value.code().name == code
    if code != "UNKNOWN":
        assert _version_of(client) == 4


def test_a_configuration_file(tmp_path: Path) -> None:
    """Everything of TensorFlow Serving's documentation of the file."""
    path = tmp_path / "models.config"
    path.write_text(
        """
        # two models
        model_config_list: {
          config: {
            name: "first", base_path: "/models/first", model_platform: "tensorflow"
            model_version_policy { specific { versions: 42 versions: 43 } }
            version_labels { key: "stable" value: 42 }
            version_labels { key: "canary" value: 43 }
            logging_config { sampling_config { sampling_rate: 0.1 } }
          }
          config { name: "second" base_path: "/models/second" model_type: TENSORFLOW
                   model_version_policy: { latest: { num_versions: 3 } } }
          config { name: "third" base_path: "/models/third" model_version_policy { all: {} } }
        }
        """
    )
    first, second, third = read_model_config(path)
    assert first == ModelConfig(
        "first",
        Path("/models/first"),
        VersionPolicy(None, frozenset({42, 43})),
        {"stable": 42, "canary": 43},
    )
    assert (second.policy, third.policy) == (VersionPolicy(3), ALL)
    path.write_text("model_config_list { config { nome: 'x' } }")
    with pytest.raises(ConfigError, match=r"models.config is not a text protobuf.*1:30.*nome"):
        read_model_config(path)
