"""More work than a server can do: what it answers is right and in time, and the rest is refused."""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest

from serving.client import PredictClient
from serving.model import Model
from serving.scheduling import ANY_TIME, PRIORITY, Job, StreamScheduler
from serving.wire import predict_pb2 as pb
from serving.wire.codec import encode
from serving.wire.reflection import PREDICTION_SERVICE
from tests import models
from tests.serving.conftest import StartServer

CLIENTS, REQUESTS, DEADLINE = 24, 8, 0.25
REFUSALS = {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED}


def test_a_burst_of_large_requests_with_short_deadlines(
    models_dir: Path, ranker_bundle: Path, start_server: StartServer
) -> None:
    """Every answer has the scores that the model gives alone; a refusal comes by the deadline; afterwards the
    server answers at once. `slack` is what gRPC and a busy machine add to the deadline."""
    slack = 5.0
    server = start_server(models_dir, streams=1, workers=4)
    features = {rows: models.ranker_request(rows, rows) for rows in (10, 300, 4000)}
    model = Model.load(ranker_bundle)
    expected = {rows: model.predict(request)["click"] for rows, request in features.items()}
    model.close()
    statuses: Counter = Counter()
    wrong: list[str] = []

    def use(number: int) -> None:
        client = PredictClient(server.address)
        for turn in range(REQUESTS):
            rows = list(features)[(number + turn) % 3]
            started = time.monotonic()
            try:
                found = client.predict("ranker", features[rows], timeout=DEADLINE)["click"]
            except grpc.RpcError as error:
                statuses[error.code()] += 1  # type: ignore[attr-defined]
            else:
                statuses[grpc.StatusCode.OK] += 1
                # 1e-6: requests that share a call add their float32 products in another order.
                if not np.allclose(found, expected[rows], rtol=0, atol=1e-6):
                    wrong.append(f"{rows} candidates")
            if time.monotonic() - started > DEADLINE + slack:
                wrong.append(f"after {time.monotonic() - started:.1f} s")
        client.close()

    threads = [threading.Thread(target=use, args=(n,)) for n in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong
    assert statuses[grpc.StatusCode.OK] and statuses.keys() - {grpc.StatusCode.OK} <= REFUSALS
    assert sum(statuses.values()) == CLIENTS * REQUESTS
    client = PredictClient(server.address)
    assert len(client.predict("ranker", features[300], timeout=10)["click"]) == 300
    client.close()


def test_an_unknown_priority_is_refused(client: PredictClient) -> None:
    request = pb.PredictRequest(model_spec=pb.ModelSpec(name="ranker"))
    for name, value in models.ranker_request(2, 1).items():
        request.inputs[name].CopyFrom(encode(value))
    call = client.channel.unary_unary(f"/{PREDICTION_SERVICE}/Predict")
    data = request.SerializeToString()
    for name in ("low", "normal", "high"):
        assert call(data, metadata=((PRIORITY, name),), timeout=20)
    with pytest.raises(grpc.RpcError, match="it may be low, normal, high") as refused:
        call(data, metadata=((PRIORITY, "urgent"),), timeout=20)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("others", [(), ("idle",)])
def test_a_message_that_no_model_would_answer_is_not_read(
    ranker_bundle: Path, tmp_path: Path, start_server: StartServer, others: tuple[str, ...]
) -> None:
    """The refusal comes though the message never does; not where it might be for a model that has time."""
    for name in ("ranker", *others):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "1").symlink_to(ranker_bundle)
    config = tmp_path / "degradation.json"
    step = {"kind": "candidates", "exact": 10, "prior": "item_price"}
    config.write_text(json.dumps({"models": {"ranker": {"steps": [step], "fixed_level": 0}}}))
    server = start_server(tmp_path / "models", streams=1, degradation_config=config)
    scheduler = next(iter(server.repository._schedulers._schedulers.values()))
    with server.repository.lend("ranker") as (model, _):
        assert model._scheduled is not None
        key = model._scheduled._key  # type: ignore[attr-defined]
    scheduler._costs.observe(key, 1, 1000.0, 1)
    with _taken(scheduler), grpc.insecure_channel(server.address) as channel:
        call = channel.stream_unary(f"/{PREDICTION_SERVICE}/Predict")
        ended = threading.Event()

        def messages() -> Iterator[bytes]:
            ended.wait()
            yield from ()

        try:
            with pytest.raises(grpc.RpcError) as refused:
                call(messages(), timeout=3 if others else 30)
        finally:
            ended.set()
    assert server.degradation is not None
    missed = server.degradation.qualities()["ranker"].missed
    if others:
        assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED and not missed
    else:
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and missed == 1
        assert "before it" in str(refused.value.details())


@contextmanager
def _taken(scheduler: StreamScheduler) -> Iterator[None]:
    """The one stream runs something, and something else waits for it."""
    begun, ended = threading.Event(), threading.Event()

    def run(job: Job, stream: int) -> None:
        begun.set()
        ended.wait()
        job.finish = lambda: [None]

    jobs = [threading.Thread(target=scheduler.run, args=(Job(n, ANY_TIME, 1, None, run),)) for n in "ab"]
    jobs[0].start()
    begun.wait()
    jobs[1].start()
    try:
        while not scheduler.is_behind:
            time.sleep(0.01)
        yield
    finally:
        ended.set()
        for job in jobs:
            job.join()
