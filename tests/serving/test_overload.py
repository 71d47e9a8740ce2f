"""More work than a server can do: what it answers is right and in time, and the rest is refused."""

import threading
import time
from collections import Counter
from pathlib import Path

import grpc
import numpy as np
import pytest

from serving.client import PredictClient
from serving.model import Model
from serving.scheduling import PRIORITY
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
