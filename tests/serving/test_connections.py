"""How clients connect: tensorflow_model_server's flags, Unix sockets, TLS, compression, keepalive,
cancellation."""

import _ssl
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from serving.client import PredictClient
from serving.grpc_server import Server, StartError
from serving.message_bytes import MessageBytes
from serving.model import Model
from serving.model_config import ConfigError, ModelConfig, channel_arguments
from serving.monitoring.ended import Ended
from serving.rest_server import RestOptions, RestServer
from serving.scheduling import ANY_TIME, PROOF, SchedulingOptions, Urgency
from serving.tls import read_tls, subject_of
from serving.wire import predict_pb2 as pb
from serving.wire.codec import encode_content
from serving.wire.reflection import PREDICTION_SERVICE
from serving.workers import Workers
from tests.shared import killed

JAXRANK = str(Path(sys.executable).parent / "jaxrank")


def _half_plus_three(channel: grpc.Channel, value: float = 1.0, **options: object) -> float:
    import numpy as np

    request = pb.PredictRequest(model_spec=pb.ModelSpec(name="half_plus_three"))
    request.inputs["x"].CopyFrom(encode_content(np.array([value], np.float32)))
    call = channel.unary_unary(
        f"/{PREDICTION_SERVICE}/Predict",
        pb.PredictRequest.SerializeToString,
        pb.PredictResponse.FromString,
    )
    return call(request, timeout=30, **options).outputs["outputs"].float_val[0]  # type: ignore[arg-type]


def _config(base: Path, *names: str) -> str:
    entries = (
        f'config {{ name: "{name}" base_path: "{base / name}" model_platform: "tensorflow" '
        'version_labels { key: "stable" value: 1 } }'
        for name in names
    )
    return f"model_config_list {{ {' '.join(entries)} }}"


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_the_flags_of_tensorflow_model_server(example_models: Path, tmp_path: Path) -> None:
    """A command line of a deployment: a configuration file that changes, REST, a Unix socket, batching."""
    base = example_models / "models"
    (tmp_path / "models.config").write_text(_config(base, "half_plus_three"))
    (tmp_path / "batching").write_text("max_batch_size { value: 8192 } num_batch_threads { value: 4 }")
    rest, path = _free_port(), tmp_path / "grpc.sock"
    command = f"""{JAXRANK} serve --host 127.0.0.1 --port=0 --rest_api_port={rest} --grpc_socket_path={path}
        --model_config_file={tmp_path}/models.config --model_config_file_poll_wait_seconds=1
        --model_name=ignored --model_base_path=/ignored --enable_batching=true
        --batching_parameters_file={tmp_path}/batching --file_system_poll_wait_seconds=1
        --max_num_load_retries=0 --rest_api_timeout_in_ms=5000
        --grpc_channel_arguments=grpc.max_connection_age_ms=60000,grpc.x=y
        --num_request_iterations_for_warmup=0 --load_retry_interval_micros=-1
        --enable_per_model_batching_parameters --mixed_precision bfloat16
        --allow_version_labels_for_unavailable_models=true --tensorflow_session_parallelism=0"""
    with killed(subprocess.Popen(command.split(), stderr=subprocess.PIPE, text=True)) as process:
        assert process.stderr is not None
        log = []
        for line in process.stderr:
            log.append(line)
            if "serving on" in line:
                break
        text = "".join(log)
        assert "num_batch_threads has no meaning here: calls that run at once are --streams" in text
        assert "WARNING" in next(line for line in log if "5000 candidates may share a call" in line)
        assert "--tensorflow-session-parallelism has no effect" in text
        with grpc.insecure_channel(f"unix:{path}") as channel:
            assert _half_plus_three(channel) == 3.5
        url = f"http://127.0.0.1:{rest}/v1/models"
        assert (
            _curl(f"{url}/half_plus_three/labels/stable")["model_version_status"][0]["state"] == "AVAILABLE"
        )
        (tmp_path / "models.config").write_text("not a config")
        time.sleep(1.2)
        (tmp_path / "models.config").write_text(_config(base, "half_plus_three", "classifier"))
        state = ""
        for _ in range(300):
            state = _curl(f"{url}/classifier").get("model_version_status", [{}])[0].get("state", "")
            if state == "AVAILABLE":
                break
            time.sleep(0.1)
        assert state == "AVAILABLE"
        process.terminate()
        assert process.wait(20) == 0
        rest_of_log = process.stderr.read()
        assert (
            "is not a text protobuf of ModelServerConfig" in rest_of_log
            and "serving its models" in rest_of_log
        )


def _curl(url: str) -> dict:
    return json.loads(
        subprocess.run(["curl", "-s", "--max-time", "60", url], capture_output=True, check=True).stdout
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "give MODELS_DIR, or --model-base-path, or --model-config-file"),
        (["models", "--model_base_path=/x"], "give MODELS_DIR, or"),
        (["--model_config_file=/nothing"], "/nothing cannot be read"),
        (["models", "--grpc_channel_arguments=x"], "write name=value"),
        (["models", "--no_such_flag=1"], "No such option"),
        (["models", "--batching_parameters_file=/x"], "needs --enable-batching"),
        (
            ["--model_name=a", "--model_base_path=/x", "--canary=b=0.1", "--shadow=a=1", "--shadow=c=1"],
            "names b, c; there is a (--model-name)",
        ),
    ],
)
def test_refused_command_lines(options: list[str], words: str) -> None:
    from typer.testing import CliRunner

    from jaxrank.cli import app

    done = CliRunner().invoke(app, ["serve", *options, "--jemalloc", "off"])
    assert done.exit_code == 2
    assert words in re.sub(r"[│\s]+", " ", done.stderr)


def test_channel_arguments() -> None:
    assert channel_arguments("grpc.a=5,grpc.b=-1,grpc.c=x=y,") == (
        ("grpc.a", 5),
        ("grpc.b", -1),
        ("grpc.c", "x=y"),
    )
    assert channel_arguments("") == ()
    with pytest.raises(ConfigError, match="'=5'"):
        channel_arguments("=5")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`ca`, and `server` and `client` signed by it: `.key` and `.crt` of each."""
    path = tmp_path_factory.mktemp("certificates")

    def openssl(command: str) -> None:
        subprocess.run(["openssl", *command.split()], cwd=path, check=True, capture_output=True)

    openssl("req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=ca -keyout ca.key -out ca.crt")
    (path / "names").write_text("subjectAltName=DNS:localhost")
    for name in ("server", "client"):
        openssl(f"req -newkey rsa:2048 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr")
        openssl(
            f"x509 -req -days 2 -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -extfile names "
            f"-out {name}.crt"
        )
    return path


def _ssl_config(certificates: Path, tmp_path: Path, rest: str = "") -> Path:
    def pem(name: str) -> str:
        return (certificates / name).read_text().replace("\n", "\\n")

    path = tmp_path / "ssl.config"
    path.write_text(
        f'server_key: "{pem("server.key")}" server_cert: "{pem("server.crt")}" '
        + rest.replace("CA", pem("ca.crt"))
    )
    return path


def _half_plus_three_dir(example_models: Path) -> tuple[ModelConfig, ...]:
    return (ModelConfig("half_plus_three", example_models / "models" / "half_plus_three"),)


@pytest.mark.parametrize("mutual", [False, True])
def test_tls(
    example_models: Path, start_server: Callable, certificates: Path, tmp_path: Path, mutual: bool
) -> None:
    config = _ssl_config(certificates, tmp_path, 'custom_ca: "CA" client_verify: true' if mutual else "")
    server = start_server(_half_plus_three_dir(example_models), rest_port=0, tls=read_tls(config))
    address = server.address.replace("127.0.0.1", "localhost")
    ca = (certificates / "ca.crt").read_bytes()
    alone = grpc.ssl_channel_credentials(ca)
    known = grpc.ssl_channel_credentials(
        ca, (certificates / "client.key").read_bytes(), (certificates / "client.crt").read_bytes()
    )
    with grpc.secure_channel(address, known if mutual else alone) as channel:
        assert _half_plus_three(channel) == 3.5
    if mutual:
        with grpc.secure_channel(address, alone) as channel, pytest.raises(grpc.RpcError):
            _half_plus_three(channel)
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError):
        _half_plus_three(channel)
    own = ["--cacert", str(certificates / "ca.crt")]
    if mutual:
        assert _asked(server, "https", "/metrics", *own)[0] != 0
        own += ["--cert", str(certificates / "client.crt"), "--key", str(certificates / "client.key")]
    for path in ("/v1/models/half_plus_three", "/v2/health/ready", "/metrics", "/status.json", "/"):
        assert _asked(server, "https", path, *own) == (0, "200")
    assert _asked(server, "https", "/metrics", *own, "--tls-max", "1.1")[0] != 0
    assert _asked(server, "https", "/metrics", *own[2:])[0] != 0  # the server's certificate is not known then
    assert _asked(server, "http", "/metrics")[0] != 0


def _asked(server: Server, scheme: str, path: str, *options: str) -> tuple[int, str]:
    """curl's exit code and the status that it was given."""
    url = f"{scheme}://{server.rest_address}{path}".replace("127.0.0.1", "localhost")
    command = ["curl", "-s", "-4", "--max-time", "60", "-o", "/dev/null", "-w", "%{http_code}", *options, url]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, done.stdout


def test_http_may_stay_in_the_clear(
    example_models: Path, start_server: Callable, certificates: Path, tmp_path: Path
) -> None:
    tls = read_tls(_ssl_config(certificates, tmp_path))
    server = start_server(_half_plus_three_dir(example_models), rest_port=0, tls=tls, rest_plaintext=True)
    assert _asked(server, "http", "/v1/models/half_plus_three") == (0, "200")
    assert _asked(server, "https", "/metrics", "-k")[0] != 0


def test_a_connection_without_a_handshake_ends(certificates: Path, tmp_path: Path) -> None:
    """In the time in which headers must come, and a clean end does not wait for it."""
    options = RestOptions(
        host="127.0.0.1",
        port=0,
        header_seconds=0.2,
        tls=read_tls(_ssl_config(certificates, tmp_path)).context(),
    )
    rest = RestServer(options, [], Workers(1), Ended(), MessageBytes(1 << 20))
    with socket.create_connection(("127.0.0.1", rest.port), timeout=60) as silent:
        assert silent.recv(1) == b""
    rest.stop(1.0)


def test_subjects_are_written_as_openssl_writes_them(tmp_path: Path) -> None:
    subject = r"/C=SE/O=Ads, \"big\" \+ <more>; x=1/OU=a+CN=#1 \\ ümlaut ✓ "
    made = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-utf8", "-subj", subject]
    shown = ["x509", "-in", "x.crt", "-noout", "-subject", "-nameopt", "RFC2253"]
    for command in ([*made, "-keyout", "x.key", "-out", "x.crt"], shown):
        done = subprocess.run(["openssl", *command], cwd=tmp_path, check=True, capture_output=True, text=True)
    found = _ssl._test_decode_cert(str(tmp_path / "x.crt"))  # type: ignore[attr-defined]
    assert f"subject={subject_of(found)}" == done.stdout.strip("\n")


def test_a_subject_that_cannot_be_written_is_nobody() -> None:
    assert subject_of({"subject": ((("commonName", "a"),), (("1.2.3.4", "b"),))}) is None
    assert subject_of({}) == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('server_key: "secret"', "needs server_key and server_cert"),
        ('server_key: "secret" server_cert: "x" client_verify: true', "without custom_ca"),
    ],
)
def test_a_key_is_never_shown(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "ssl.config").write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        read_tls(tmp_path / "ssl.config")
    assert "secret" not in str(caught.value)


def test_texts_that_are_no_pem(example_models: Path, start_server: Callable, tmp_path: Path) -> None:
    (tmp_path / "ssl.config").write_text('server_key: "secret" server_cert: "x"')
    tls = read_tls(tmp_path / "ssl.config")
    assert "secret" not in repr(tls)
    with pytest.raises(StartError, match="PEM"):
        start_server(_half_plus_three_dir(example_models), tls=tls)
    with pytest.raises(ConfigError, match="PEM"):
        tls.context()


@pytest.fixture(scope="module")
def server(example_models: Path, start_server: Callable) -> Server:
    arguments = (
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 100),
        ("grpc.default_compression_algorithm", 2),
    )
    return start_server(
        _half_plus_three_dir(example_models), rest_port=0, workers=1, channel_arguments=arguments
    )


@pytest.mark.parametrize("algorithm", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_requests_and_answers(server: Server, algorithm: grpc.Compression) -> None:
    with grpc.insecure_channel(server.address, compression=algorithm) as channel:
        assert _half_plus_three(channel) == 3.5


def test_a_client_that_pings_stays_connected(server: Server) -> None:
    """With gRPC's defaults a server ends connections that are pinged this often (too_many_pings)."""
    options = [
        ("grpc.keepalive_time_ms", 200),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    with grpc.insecure_channel(server.address, options=options) as channel:
        assert _half_plus_three(channel) == 3.5
        states: list[grpc.ChannelConnectivity] = []
        channel.subscribe(states.append)
        time.sleep(2)
        assert _half_plus_three(channel) == 3.5
        assert states[-1] is grpc.ChannelConnectivity.READY
        assert grpc.ChannelConnectivity.IDLE not in states[1:]


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event, list[float]]]:
    """The model waits inside of its first request: (it is inside, let it go on, what it was asked)."""
    inside, go_on, asked = threading.Event(), threading.Event(), []
    predict = Model.predict

    def slow(self: Model, inputs: dict, *arguments: object) -> dict:
        urgency = arguments[1] if len(arguments) > 1 else ANY_TIME
        assert isinstance(urgency, Urgency)
        if urgency.priority == PROOF:  # the server's own check of a new version
            return predict(self, inputs, *arguments)  # type: ignore[arg-type]
        asked.append(float(inputs["x"][0]))
        inside.set()
        assert go_on.wait(20)
        return predict(self, inputs, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Model, "predict", slow)
    yield inside, go_on, asked
    go_on.set()


def test_what_nobody_waits_for_is_not_computed(server: Server, held: tuple) -> None:
    """One turn: the first request holds it; of those behind it one is cancelled, one passes its deadline,
    one comes by HTTP and its client leaves."""
    inside, go_on, asked = held
    with PredictClient(server.address).channel as channel:
        first = threading.Thread(target=_half_plus_three, args=(channel, 1.0))
        first.start()
        assert inside.wait(20)
        call = channel.unary_unary(f"/{PREDICTION_SERVICE}/Predict")

        def later(value: float, timeout: float) -> grpc.Future:
            import numpy as np

            request = pb.PredictRequest(model_spec=pb.ModelSpec(name="half_plus_three"))
            request.inputs["x"].CopyFrom(encode_content(np.array([value], np.float32)))
            return call.future(request.SerializeToString(), timeout=timeout)

        cancelled, late = later(2.0, 30), later(3.0, 0.3)
        url = f"http://{server.rest_address}/v1/models/half_plus_three:predict"
        body = ["--max-time", "0.3", "-d", '{"inputs": [4.0]}']
        assert subprocess.run(["curl", "-s", *body, url]).returncode == 28  # curl's own time is over
        time.sleep(0.2)
        cancelled.cancel()
        time.sleep(0.3)  # until the server knows
        with pytest.raises(grpc.RpcError) as caught:
            late.result()
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        go_on.set()
        first.join(20)
        assert _half_plus_three(channel, 5.0) == 5.5
    assert asked == [1.0, 5.0]


def test_a_request_that_is_late_over_http(example_models: Path, start_server: Callable, held: tuple) -> None:
    inside, go_on, _ = held
    server = start_server(_half_plus_three_dir(example_models), rest_port=0, rest_timeout_seconds=0.3)
    url = f"http://{server.rest_address}/v1/models/half_plus_three:predict"
    done = subprocess.run(
        ["curl", "-s", "--max-time", "60", "-w", "%{http_code}", "-d", '{"inputs": [4.0]}', url],
        capture_output=True,
        text=True,
    )
    assert inside.is_set()
    assert done.stdout.endswith("504") and "no answer within 0.3 s" in done.stdout


def test_too_many_at_once_over_http(example_models: Path, start_server: Callable, held: tuple) -> None:
    """One turn, and seven may wait; the others are told at once."""
    inside, go_on, _ = held
    server = start_server(
        _half_plus_three_dir(example_models),
        rest_port=0,
        workers=1,
        scheduling=SchedulingOptions(max_waiting=7),
    )
    url = f"http://{server.rest_address}/v1/models/half_plus_three:predict"
    curls = [
        subprocess.Popen(
            [
                "curl",
                "-s",
                "--max-time",
                "60",
                "-o",
                "/dev/null",
                "-w",
                "%{http_code}",
                "-d",
                '{"inputs": [4.0]}',
                url,
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(12)
    ]
    assert inside.wait(20)
    for _ in range(200):
        if sum(curl.poll() is not None for curl in curls) == 4:
            break
        time.sleep(0.05)
    go_on.set()
    assert sorted(curl.communicate(timeout=20)[0] for curl in curls) == ["200"] * 8 + ["429"] * 4


def test_tensor_content_when_asked(example_models: Path, start_server: Callable) -> None:
    server = start_server(_half_plus_three_dir(example_models), tensor_content=True)
    client = PredictClient(server.address)
    with client.channel as channel:
        import numpy as np

        request = pb.PredictRequest(model_spec=pb.ModelSpec(name="half_plus_three"))
        request.inputs["x"].CopyFrom(encode_content(np.array([1, 2], np.float32)))
        data = channel.unary_unary(f"/{PREDICTION_SERVICE}/Predict")(request.SerializeToString(), timeout=30)
    tensor = pb.PredictResponse.FromString(data).outputs["outputs"]
    assert tensor.tensor_content == np.array([3.5, 4], np.float32).tobytes() and not tensor.float_val


def test_labels_at_the_start(example_models: Path, start_server: Callable) -> None:
    base = example_models / "models" / "half_plus_three"
    config = ModelConfig("half_plus_three", base, labels={"next": 2})
    with pytest.raises(
        StartError, match="version 2 of model half_plus_three, which is not currently available"
    ):
        start_server((config,))
    server = start_server((config,), labels_of_unavailable=True)
    assert server.repository.loaded() == {"half_plus_three": 1}


def test_a_version_is_tried_again(
    example_models: Path, start_server: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As often as `--max_num_load_retries` says, then it has ended."""
    shutil.copytree(example_models / "models" / "half_plus_three", tmp_path / "m")
    (tmp_path / "m" / "1" / "host_program.json").write_text("{}")
    server = start_server((ModelConfig("m", tmp_path / "m"),), load_retries=2, retry_seconds=0.1)
    for _ in range(100):
        (status,) = server.repository.statuses("m")
        if status.state == "END":
            break
        time.sleep(0.1)
    assert (status.state, caplog.text.count("does not load")) == ("END", 3)
    assert "not tried again until its files change" in caplog.text
