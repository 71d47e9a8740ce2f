"""Who may do what: tokens, client certificates, permissions and quotas, over every protocol."""

import hashlib
import json
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import grpc
import numpy as np
import pytest

from serving.auth import AuthConfigError
from serving.auth.config import parse_auth_config
from serving.auth.quota import TokenBucket
from serving.grpc_server import Server
from serving.model_config import ModelConfig
from serving.scheduling import ANY_TIME
from serving.tls import read_tls
from serving.wire import inference_pb2, kserve_pb2, model_service_pb2, ranking_pb2
from serving.wire import predict_pb2 as pb
from serving.wire.codec import encode_content
from serving.wire.reflection import INFERENCE_SERVICE, MODEL_SERVICE, PREDICTION_SERVICE, RANKING_SERVICE

Code = grpc.StatusCode
OPEN = {"ServerLive", "ServerReady"}
NO_MODEL = {"ServerMetadata", "RepositoryIndex"}
"""Calls that any caller may make; the index lists what the caller may see."""


def _caller(name: str, **rest: object) -> dict:
    digest = hashlib.sha256(f"token of {name}".encode()).hexdigest()
    return {"name": name, "token_sha256": [digest], **rest}


def _write(path: Path, *callers: dict) -> Path:
    path.write_text(json.dumps({"callers": callers}))
    return path


CALLERS = (
    _caller("scorer", models={"half_plus_three": ["predict"]}),
    _caller("viewer", models={"*": ["status"]}),
    _caller("admin", models={"*": ["admin"]}),
    _caller("nobody", models={}),
    _caller("slow", models={"*": ["predict"]}, requests_per_second=0.01),
    _caller("small", models={"*": ["predict"]}, candidates_per_second=5),
    _caller("slices", models={"*": ["predict"]}, requests_per_second=0.01),
)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write(tmp_path_factory.mktemp("auth") / "auth.json", *CALLERS)


@pytest.fixture(scope="module")
def models(example_models: Path) -> tuple[ModelConfig, ...]:
    names = ("half_plus_three", "regressor")
    return tuple(ModelConfig(name, example_models / "models" / name) for name in names)


@pytest.fixture(scope="module")
def server(models: tuple, config: Path, start_server: Callable) -> Server:
    return start_server(models, rest_port=0, auth_config=config)


def _request(rows: int = 1, model: str = "half_plus_three") -> bytes:
    request = pb.PredictRequest(model_spec=pb.ModelSpec(name=model))
    request.inputs["x"].CopyFrom(encode_content(np.ones(rows, np.float32)))
    return request.SerializeToString()


def _call(server: Server, method: str, data: bytes, who: str | None) -> tuple[Code, str]:
    metadata = () if who is None else (("authorization", f"Bearer token of {who}"),)
    with grpc.insecure_channel(server.address) as channel:
        try:
            channel.unary_unary(f"/{method}")(data, metadata=metadata, timeout=20)
        except grpc.RpcError as error:
            return error.code(), error.details() or ""  # type: ignore[attr-defined]
    return Code.OK, ""


def _predict(server: Server, who: str | None, rows: int = 1, model: str = "half_plus_three"):  # noqa: ANN202
    return _call(server, f"{PREDICTION_SERVICE}/Predict", _request(rows, model), who)


def _curl(server: Server, path: str, *options: str, base: str = "http://127.0.0.1") -> tuple[int, str]:
    assert server.rest_address is not None
    url = f"{base}:{server.rest_address.rpartition(':')[2]}{path}"
    command = ["curl", "-s", "-4", "--max-time", "60", "-w", "%{http_code}", *options, url]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(said[-3:]), said[:-3]


def _as(who: str) -> tuple[str, str]:
    return "-H", f"Authorization: Bearer token of {who}"


def test_tokens_and_permissions(server: Server) -> None:
    assert _predict(server, "scorer") == (Code.OK, "")
    code, text = _predict(server, None)
    assert code is Code.UNAUTHENTICATED and "send 'authorization: Bearer TOKEN'" in text
    code, text = _predict(server, "somebody else")
    assert code is Code.UNAUTHENTICATED and "somebody" not in text
    code, text = _predict(server, "scorer", model="regressor")
    assert code is Code.PERMISSION_DENIED and "caller 'scorer'" in text and "'predict'" in text
    # Whether a model exists is not said to those who may not know.
    assert _predict(server, "scorer", model="no such")[0] is Code.PERMISSION_DENIED
    assert _predict(server, "viewer")[0] is Code.PERMISSION_DENIED


def test_unauthenticated_calls_are_told_before_their_message_comes(server: Server) -> None:
    """They cannot hold anything by waiting."""
    with grpc.insecure_channel(server.address) as channel:
        forever = channel.stream_unary(f"/{PREDICTION_SERVICE}/Predict")
        event = threading.Event()

        def messages():  # noqa: ANN202
            event.wait()
            yield from ()

        with pytest.raises(grpc.RpcError) as refused:
            forever(messages(), timeout=5)
        event.set()
    assert refused.value.code() is Code.UNAUTHENTICATED


def _methods() -> list[tuple[str, bytes]]:
    """Every method of every service, with a request for `half_plus_three`."""
    spec = pb.ModelSpec(name="half_plus_three")
    requests = {
        "Predict": _request(),
        "GetModelMetadata": pb.GetModelMetadataRequest(model_spec=spec, metadata_field=["signature_def"]),
        "GetModelStatus": model_service_pb2.GetModelStatusRequest(model_spec=spec),
        "HandleReloadConfigRequest": model_service_pb2.ReloadConfigRequest(),
        "ModelReady": kserve_pb2.ModelReadyRequest(name="half_plus_three"),
        "ModelMetadata": kserve_pb2.ModelMetadataRequest(name="half_plus_three"),
        "ModelStatistics": kserve_pb2.ModelStatisticsRequest(name="half_plus_three"),
        "ModelInfer": kserve_pb2.ModelInferRequest(model_name="half_plus_three"),
        "RepositoryModelLoad": kserve_pb2.RepositoryModelLoadRequest(model_name="half_plus_three"),
        "RepositoryModelUnload": kserve_pb2.RepositoryModelUnloadRequest(model_name="half_plus_three"),
        "Classify": inference_pb2.ClassificationRequest(model_spec=spec),
        "Regress": inference_pb2.RegressionRequest(model_spec=spec),
    }
    from serving.wire.reflection import public_pool

    pool = public_pool()
    return [
        (f"{service}/{method}", data if isinstance(data, bytes) else data.SerializeToString())
        for service in (PREDICTION_SERVICE, MODEL_SERVICE, INFERENCE_SERVICE)
        for method in pool.FindServiceByName(service).methods_by_name
        for data in (requests.get(method, b""),)
    ]


@pytest.mark.parametrize(("method", "data"), _methods(), ids=lambda v: v if isinstance(v, str) else "")
def test_every_method_needs_a_permission(server: Server, method: str, data: bytes) -> None:
    """Also those that are added one day: a caller without any is answered by none but these."""
    name = method.partition("/")[2]
    code = _call(server, method, data, None)[0]
    if code is Code.UNIMPLEMENTED:
        return
    assert code is (Code.OK if name in OPEN else Code.UNAUTHENTICATED)
    found = _call(server, method, data, "nobody")[0]
    if name == "MultiInference":
        assert found is Code.INVALID_ARGUMENT  # it names no model
    else:
        assert found is (Code.OK if name in OPEN | NO_MODEL else Code.PERMISSION_DENIED)


def test_administration(models: tuple, config: Path, start_server: Callable) -> None:
    server = start_server(models, auth_config=config)
    unload = kserve_pb2.RepositoryModelUnloadRequest(model_name="regressor").SerializeToString()
    method = f"{INFERENCE_SERVICE}/RepositoryModelUnload"
    assert _call(server, method, unload, "viewer")[0] is Code.PERMISSION_DENIED
    assert "regressor" in server.repository.loaded()
    assert _call(server, method, unload, "admin")[0] is Code.OK
    assert "regressor" not in server.repository.loaded()
    reload = model_service_pb2.ReloadConfigRequest()
    reload.config.model_config_list.config.add(name="r", base_path=str(models[1].base_path))
    method = f"{MODEL_SERVICE}/HandleReloadConfigRequest"
    assert _call(server, method, reload.SerializeToString(), "scorer")[0] is Code.PERMISSION_DENIED
    assert _call(server, method, reload.SerializeToString(), "admin")[0] is Code.OK
    assert server.repository.loaded() == {"r": 1}


def test_over_http(server: Server) -> None:
    path, body = "/v1/models/half_plus_three", ("-d", '{"inputs": [1.0]}')
    assert _curl(server, f"{path}:predict", *body, *_as("scorer")) == (200, '{"outputs":[3.5]}')
    code, text = _curl(server, f"{path}:predict", *body, "-i")
    assert code == 401 and "WWW-Authenticate: Bearer" in text
    assert _curl(server, f"{path}:predict", *body, *_as("viewer"))[0] == 403
    assert _curl(server, "/v2/health/ready")[0] == 200
    for what in (path, f"{path}/metadata", "/v2/models/half_plus_three", "/v2/models/half_plus_three/ready"):
        codes = [_curl(server, what)[0], _curl(server, what, *_as("nobody"))[0]]
        assert [*codes, _curl(server, what, *_as("viewer"))[0]] == [401, 403, 200]
    unload = "/v2/repository/models/regressor/unload"
    assert _curl(server, unload, "-X", "POST", *_as("viewer"))[0] == 403
    index = ("/v2/repository/index", "-X", "POST")
    assert _curl(server, *index, *_as("nobody")) == (200, "[]")
    assert len(json.loads(_curl(server, *index, *_as("viewer"))[1])) == 2


def test_quotas(server: Server) -> None:
    assert _predict(server, "slow")[0] is Code.OK
    code, text = _predict(server, "slow")
    assert code is Code.RESOURCE_EXHAUSTED and "quota of 0.01 requests a second; try again in" in text
    # A request of any size passes once, and is paid for afterwards.
    assert _predict(server, "small", rows=300)[0] is Code.OK
    code, text = _predict(server, "small")
    assert code is Code.RESOURCE_EXHAUSTED and "quota of 5 candidates a second" in text
    assert _predict(server, "scorer")[0] is Code.OK


def test_each_slice_counts_against_the_quota(server: Server) -> None:
    first = ranking_pb2.RankRequest(model_spec=pb.ModelSpec(name="half_plus_three"))
    first.candidates["x"].CopyFrom(encode_content(np.ones(1, np.float32)))
    later = ranking_pb2.RankRequest(candidates=first.candidates)
    with grpc.insecure_channel(server.address) as channel:
        answers = channel.stream_stream(f"/{RANKING_SERVICE}/RankSlices")(
            iter([first.SerializeToString(), later.SerializeToString()]),
            metadata=(("authorization", "Bearer token of slices"),),
            timeout=20,
        )
        assert ranking_pb2.RankResponse.FromString(next(answers)).outputs
        with pytest.raises(grpc.RpcError, match="quota of 0.01 requests a second") as refused:
            next(answers)
    assert refused.value.code() is Code.RESOURCE_EXHAUSTED


def test_who_may_not_ask_is_told_before_anything_is_read(server: Server) -> None:
    """Bodies that would not do, by callers that may not send them."""
    model = "half_plus_three"
    for path in (f"/v1/models/{model}:predict", f"/v1/models/{model}:classify", f"/v2/models/{model}/infer"):
        assert _curl(server, path, "-d", "{", *_as("viewer"))[0] == 403
        assert _curl(server, path, "-d", "{", *_as("scorer"))[0] == 400
    request = kserve_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name="x", datatype="nothing", shape=[1])
    method, data = f"{INFERENCE_SERVICE}/ModelInfer", request.SerializeToString()
    assert _call(server, method, data, "viewer")[0] is Code.PERMISSION_DENIED
    assert _call(server, method, data, "scorer")[0] is Code.INVALID_ARGUMENT
    request.inputs[0].datatype = "FP32"
    with ExitStack() as turns:
        for _ in range(server._turns.most):
            turns.enter_context(server._turns.turn(ANY_TIME)).turn_over()
        assert _curl(server, f"/v1/models/{model}:predict", "-d", "{", *_as("scorer"))[0] == 429
        assert _call(server, method, data, "scorer")[0] is Code.RESOURCE_EXHAUSTED


def test_a_bucket_over_time() -> None:
    now = 0.0
    bucket = TokenBucket(10.0, lambda: now)
    assert [bucket.take(1) for _ in range(10)] == [0.0] * 10
    assert bucket.take(1) == pytest.approx(0.1)
    now = 0.1
    assert bucket.take(25) == 0.0  # into debt by 24
    assert bucket.take(1) == pytest.approx(2.5)
    now = 100.0
    assert [bucket.take(1) for _ in range(11)] == [*[0.0] * 10, pytest.approx(0.1)]


def test_the_file_is_read_again(
    models: tuple, start_server: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = _write(tmp_path / "auth.json", CALLERS[0])
    server = start_server(models, auth_config=path)
    assert _predict(server, "scorer")[0] is Code.OK
    path.write_text("{")
    _until(lambda: "the callers that it had stay" in caplog.text)
    assert _predict(server, "scorer")[0] is Code.OK
    _write(path, _caller("other", models={"*": ["predict"]}))
    _until(lambda: _predict(server, "other")[0] is Code.OK)
    assert _predict(server, "scorer")[0] is Code.UNAUTHENTICATED
    assert "token of" not in caplog.text


def _until(true: Callable[[], bool]) -> None:
    ends = time.monotonic() + 30
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_client_certificates(models: tuple, start_server: Callable, tmp_path: Path) -> None:
    """The subject of a verified certificate is who calls, where there is no token."""

    def openssl(command: str) -> None:
        subprocess.run(["openssl", *command.split()], cwd=tmp_path, check=True, capture_output=True)

    openssl("req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=ca -keyout ca.key -out ca.crt")
    (tmp_path / "names").write_text("subjectAltName=DNS:localhost")
    for name in ("server", "ads", "stranger"):
        openssl(f"req -newkey rsa:2048 -nodes -subj /O=team/CN={name} -keyout {name}.key -out {name}.csr")
        openssl(f"x509 -req -days 2 -in {name}.csr -CA ca.crt -CAkey ca.key -extfile names -out {name}.crt")
    pem = {n: (tmp_path / n).read_text().replace("\n", "\\n") for n in ("server.key", "server.crt", "ca.crt")}
    ssl = tmp_path / "ssl.config"
    ssl.write_text(
        f'server_key: "{pem["server.key"]}" server_cert: "{pem["server.crt"]}" custom_ca: "{pem["ca.crt"]}" '
        "client_verify: true"
    )
    caller = {"name": "ads", "certificates": ["CN=ads,O=team"], "models": {"*": ["predict"]}}
    auth = _write(tmp_path / "auth.json", caller)
    server = start_server(models, auth_config=auth, rest_port=0, tls=read_tls(ssl))

    def ask(name: str) -> Code:
        texts = [(tmp_path / file).read_bytes() for file in ("ca.crt", f"{name}.key", f"{name}.crt")]
        address = server.address.replace("127.0.0.1", "localhost")
        with grpc.secure_channel(address, grpc.ssl_channel_credentials(*texts)) as channel:
            try:
                channel.unary_unary(f"/{PREDICTION_SERVICE}/Predict")(_request(), timeout=20)
            except grpc.RpcError as error:
                return error.code()  # type: ignore[attr-defined]
        return Code.OK

    def ask_http(name: str) -> int:
        files = [str(tmp_path / file) for file in ("ca.crt", f"{name}.key", f"{name}.crt")]
        keys = [text for pair in zip(("--cacert", "--key", "--cert"), files, strict=True) for text in pair]
        path = "/v1/models/half_plus_three:predict"
        return _curl(server, path, *keys, "-d", '{"instances": [1]}', base="https://localhost")[0]

    assert ask("ads") is Code.OK and ask_http("ads") == 200
    assert ask("stranger") is Code.UNAUTHENTICATED and ask_http("stranger") == 401


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "is no auth config"),
        ('{"callers": [{"name": "a", "models": {}}]}', "neither token_sha256 nor certificates"),
        ('{"callers": [{"name": "a", "models": {}, "token_sha256": ["secret"]}]}', "is no auth config"),
        ('{"callers": [{"name": "a", "models": {"m": ["all"]}}]}', r"`\$.callers\[0\].models"),
        ('{"callers": [{"name": "a", "models": {}, "tokens": []}]}', "unknown field `tokens`"),
        (json.dumps({"callers": [CALLERS[0], CALLERS[0]]}), "'scorer' twice"),
        (json.dumps({"callers": [CALLERS[0], {**CALLERS[0], "name": "b"}]}), "that another caller has, too"),
    ],
)
def test_refused_files(text: str, words: str) -> None:
    with pytest.raises(AuthConfigError, match=words) as refused:
        parse_auth_config(text.encode(), Path("auth.json"))
    assert "secret" not in str(refused.value) and CALLERS[0]["token_sha256"][0] not in str(refused.value)
