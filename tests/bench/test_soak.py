"""A short soak on a small model."""

from pathlib import Path

import pytest

from bench import soak
from serving.wire import predict_pb2 as pb
from serving.wire.codec import encode


def test_versions_are_swapped_under_load(ranker_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "SWAP_SECONDS", 1.0)
    monkeypatch.setattr(soak, "_WARM_SECONDS", 0.5)
    monkeypatch.setattr(soak, "MOST_ROWS", 200)
    figures = {f.name: f for f in soak.soak([soak.subject(ranker_bundle)], minutes=0.06)}
    assert figures["soak_answered"].value > 10 and figures["soak_swaps"].value >= 1
    assert not figures["soak_wrong_scores"].value and not figures["soak_failed"].value, figures["soak_failed"]


def test_a_wrong_score_is_noticed(ranker_bundle: Path) -> None:
    """It is off by more than the tolerance for one candidate."""
    subject = soak.subject(ranker_bundle)
    client = soak.Client("localhost:1", [subject])  # nothing is sent
    for off, right in ((0.0, True), (2e-5, False)):
        answer = pb.PredictResponse(model_spec=pb.ModelSpec(name=soak.MODEL))
        answer.model_spec.version.value = 7
        for name, value in subject.expected[0].items():
            value = value.copy()
            value[3] += off
            answer.outputs[name].CopyFrom(encode(value))
        assert client.check(0, answer.SerializeToString()) == (7, right)
    client.close()
