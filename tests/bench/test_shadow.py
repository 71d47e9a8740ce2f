"""Two real servers beside each other, and what CI is told."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bench import shadow
from bench.shadow import Differences
from jaxrank import bundle as files
from jaxrank.tfrecord import framed
from serving.client import PredictClient
from serving.grpc_server import Server, ServerOptions
from serving.lifecycle.options import LifecycleOptions
from serving.tables import TableWriter, open_table
from serving.wire import predict_pb2 as pb
from serving.wire.codec import encode_content
from serving.wire.prediction_log_pb2 import PredictionLog, PredictLog
from tests import models


def _served(directory: Path, bundle: Path) -> Server:
    (directory / "ranker").mkdir(parents=True)
    (directory / "ranker" / "1").symlink_to(bundle)
    unchecked = LifecycleOptions(self_check=False)  # it would refuse the other model
    return Server(
        ServerOptions(models=directory, host="127.0.0.1", port=0, poll_seconds=0, lifecycle=unchecked)
    )


@pytest.fixture(scope="module")
def incumbent(ranker_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = _served(tmp_path_factory.mktemp("incumbent"), ranker_bundle)
    yield server.address
    server.stop()


@pytest.fixture(scope="module")
def other(ranker_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The same model with one embedding table a little larger."""
    directory = tmp_path_factory.mktemp("other")
    bundle = shutil.copytree(ranker_bundle, directory / "bundle")
    manifest = files.read_manifest(bundle)
    table = max(manifest.tables, key=lambda t: t.bytes)
    rows = np.array(open_table(bundle / table.file).array)
    (bundle / table.file).unlink()
    with TableWriter(bundle / table.file, table.dim) as writer:
        writer.append(rows * np.float32(1.01))
    files.write_manifest(bundle, manifest)
    server = _served(directory / "models", bundle)
    yield server.address
    server.stop()


def _run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        shadow.main(arguments)
        raise SystemExit(0)
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def _recorded(*rows: int) -> bytes:
    """Requests of so many candidates; of none, one without features."""
    records = []
    for seed, count in enumerate(rows):
        request = pb.PredictRequest(model_spec=pb.ModelSpec(name="ranker"))
        for name, value in models.ranker_request(count, seed).items() if count else ():
            request.inputs[name].CopyFrom(encode_content(value))
        records.append(framed(PredictionLog(predict_log=PredictLog(request=request)).SerializeToString()))
    return b"".join(records)


def test_the_same_model_is_within_the_bounds(incumbent: str, ranker_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "shadow.json"
    servers = ("--incumbent", incumbent, "--candidate", incumbent)
    assert _run(*servers, "--bundle", str(ranker_bundle), "--out", str(out)) == 0
    found = {f["name"]: f for f in json.loads(out.read_text())["figures"]}
    assert found["compared"]["value"] == 8 and not found["failures"]["value"]
    assert not found["max_error"]["value"] and found["top10_overlap"]["value"] == 1.0
    ratio = found["latency_ratio"]
    assert 0 < ratio["lo"] <= ratio["value"] <= ratio["hi"]


def test_another_model_is_beyond_them(
    incumbent: str, other: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On recorded requests, of which one is refused by both."""
    (tmp_path / "file").write_bytes(_recorded(40, 200, 0))
    arguments = ("--incumbent", incumbent, "--candidate", other, "--requests", str(tmp_path / "file"))
    assert _run(*arguments) == 1
    printed = capsys.readouterr().out
    assert "beyond its bound: scores differ by" in printed and "1 INVALID_ARGUMENT" in printed
    assert _run(*arguments, "--max-error", "1", "--min-top-k", "0.5") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--candidate", "127.0.0.1:1"], "no server answers at 127.0.0.1:1", id="unreachable"),
        pytest.param(["--requests", "absent"], "absent is not a file of recorded calls", id="no file"),
        pytest.param(
            ["--requests", "{recorded}", "--bundle", "absent"], "not compared: absent", id="no bundle"
        ),
        pytest.param(["--model", "absent"], "answers none of 8 requests: 8 NOT_FOUND", id="no model"),
    ],
)
def test_what_is_not_compared(
    arguments: list[str],
    message: str,
    incumbent: str,
    ranker_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shadow, "_CONNECT_SECONDS", 0.5)
    (tmp_path / "recorded").write_bytes(_recorded(40))
    given = [a.format(recorded=tmp_path / "recorded") for a in arguments]
    servers = ("--incumbent", incumbent, "--candidate", incumbent, "--bundle", str(ranker_bundle))
    assert _run(*servers, *given) == 2
    assert message in capsys.readouterr().out


class _Ends:
    """Calls to a server: it ends after so many of them."""

    def __init__(self, server: Server, calls: int) -> None:
        self.left, self.server = calls, server
        self.client = PredictClient(server.address)
        self.channel = self

    def unary_unary(self, *how: object) -> object:
        call = self.client.channel.unary_unary(*how)  # type: ignore[arg-type]

        def answer(request: pb.PredictRequest, timeout: float) -> object:
            self.left -= 1
            if self.left == 0:
                self.server.stop()
            return call(request, timeout=timeout)

        return answer


def test_a_server_that_goes_away_leaves_what_was_compared(
    incumbent: str,
    ranker_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(shadow, "_CONNECT_SECONDS", 0.1)
    candidate = _served(tmp_path / "models", ranker_bundle)
    requests = shadow.read_requests(None, ranker_bundle, None, 8)
    clients = {shadow.INCUMBENT: PredictClient(incumbent), shadow.CANDIDATE: _Ends(candidate, 3 + 5)}
    found = shadow.shadow(clients, requests, Differences(10, 1e-5))  # type: ignore[arg-type]
    assert found.compared == 4 and "not available" in found.stopped and "after 4 of 8" in found.stopped

    def compared(*how: object) -> Differences:
        return found

    monkeypatch.setattr(shadow, "shadow", compared)
    out = tmp_path / "shadow.json"
    servers = ("--incumbent", incumbent, "--candidate", incumbent, "--bundle", str(ranker_bundle))
    assert _run(*servers, "--out", str(out)) == 2
    assert "not compared to the end: a server is not available" in capsys.readouterr().out
    assert {f["name"]: f["value"] for f in json.loads(out.read_text())["figures"]}["compared"] == 4


def test_an_answer_that_cannot_be_read_is_a_failure() -> None:
    """Of the server that gave it; the others are compared."""
    short = pb.PredictResponse()
    short.outputs["s"].CopyFrom(encode_content(np.zeros(2, np.float32)))
    short.outputs["s"].tensor_content = b"123"
    found, _ = shadow._answer(lambda request, timeout: short, pb.PredictRequest())
    assert isinstance(found, str) and "cannot be read: feature 's' has 3 bytes" in found


def test_what_counts_as_a_failure() -> None:
    """Missing outputs and other shapes and types; a NaN is an error, unless the incumbent has it, too."""
    found = Differences(top_k=1, tolerance=1e-5)
    scores = np.array([0.1, 0.9, 0.5], np.float32)
    found.compare({"a": scores, "b": scores}, {"a": scores})
    found.compare({"a": scores}, {"a": scores[:2]})
    found.compare({"a": scores}, {"a": scores.astype(np.float64)})
    assert len(found.failures) == 3 and found.failures.total() == 3 and found.error == 0.0
    nan = np.array([0.1, np.nan, 0.5], np.float32)
    found.compare({"c": nan}, {"c": nan})
    assert found.error == 0.0
    found.compare({"c": scores}, {"c": nan})
    assert found.error == float("inf")


def test_rankings_that_change() -> None:
    """The best of three changes places: no overlap of the best one, and one pair of three inverted."""
    found = Differences(top_k=1, tolerance=1e-5)
    found.compare({"s": np.array([0.3, 0.2, 0.1])}, {"s": np.array([0.2, 0.3, 0.1])})
    assert (found.overlap, found.inverted, found.ordered) == (0.0, 1, 3)
    lines = found.beyond(0.999)
    assert lines == [
        "scores differ by 1.00e-01, more than 1e-05",
        "top-1 overlap is 0.00000, less than 0.999",
    ]
