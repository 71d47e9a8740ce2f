"""What goes wrong while a model is at a level of degradation."""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest

from jaxrank.manifest import Manifest
from serving.cpu_target import CpuTarget
from serving.data_plane import DataPlane, ModelRef, Work
from serving.degradation import DEGRADATION, Degradation, DegradationConfig
from serving.degradation.answer import DegradedModel
from serving.degradation.config import CandidatesStep, ModelSteps, Reductions
from serving.degradation.tally import Tally
from serving.engines import StreamSchedulers
from serving.errors import QUOTA, DeadlineError, OverloadedError
from serving.model import Model
from serving.repository import ModelRepository
from serving.scheduling import Urgency
from serving.state import StateCache
from tests import models
from tests.serving.lifecycle.versions import eventually

STEP = CandidatesStep(exact=10, prior="item_price", rest="rest")
CONFIG = DegradationConfig(models={"ranker": ModelSteps(steps=(STEP,), fixed_level=0)})


def _no_waits() -> tuple[int, float]:
    return 0, 0.0


def test_a_rest_model_that_refuses_leaves_the_order_to_the_prior(ranker_bundle: Path) -> None:
    """The device of the model of the rest takes no more requests."""
    full, full_streams = StreamSchedulers(1), StreamSchedulers(1)
    model = Model.load(ranker_bundle, schedulers=full_streams)
    rest = Model.load(ranker_bundle, schedulers=full)
    full.close()

    @contextmanager
    def lend(name: str) -> Iterator[tuple[Model, int]]:
        yield rest, 1

    tally, urgency, request = Tally("ranker"), Urgency(), models.ranker_request(60, 9)
    degraded = DegradedModel(model, 1, Reductions({}, STEP), lend, tally)
    scores = degraded.predict(request, ["click"], urgency)["click"]
    assert urgency.remarks[DEGRADATION] == "level=1;skipped=rest:rest;candidates=10/60"
    assert tally.quality(1, 0).skipped == {"rest:rest": 1}
    prior = request["item_price"]
    below = np.argsort(-prior, kind="stable")[10:]
    assert (np.argsort(-scores[below]) == np.arange(50)).all()
    for one in (model, rest):
        one.close()
    full_streams.close()


def test_what_a_handles_state_was_made_of_is_not_cut(
    ranker_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, urgency = Model.load(ranker_bundle, states=StateCache(1 << 20, 60.0)), Urgency()
    request = models.ranker_request(20, 9)
    user = {name: value for name, value in request.items() if name.startswith("user_")}
    prepared, expected = model.prepare(user).digest, model.predict(request, ["click"])["click"]

    def lend(name: str) -> AbstractContextManager[tuple[Model, int]]:
        raise AssertionError("no other model is asked")

    degraded = DegradedModel(model, 1, Reductions({"user_items": (3, "first")}), lend, Tally("ranker"))
    scores = degraded.predict(request, ["click"], urgency, prepared=prepared)["click"]
    assert urgency.remarks[DEGRADATION] == "level=1;skipped=history"
    assert not caplog.text  # which it does by design
    np.testing.assert_array_equal(scores, expected)
    model.close()


@pytest.mark.parametrize(
    ("error", "missed"), [(None, 1), (OverloadedError("full"), 1), (OverloadedError("yours", QUOTA), 0)]
)
def test_a_request_that_is_late_is_missed_wherever_that_is_seen(
    ranker_bundle: Path, tmp_path: Path, error: Exception | None, missed: int
) -> None:
    """Engines with threads of their own do not look at deadlines: the data plane does, after each step."""
    (tmp_path / "ranker").mkdir()
    (tmp_path / "ranker" / "1").symlink_to(ranker_bundle)
    repository = ModelRepository(tmp_path, streams=1)
    repository.scan()
    degradation = Degradation(CONFIG, repository.lend, _no_waits, CpuTarget(1.0))
    urgency = Urgency.within(0.05)

    def decode(manifest: Manifest) -> Work:
        while urgency.remaining() > 0:
            pass
        if error is not None:
            raise error
        return Work(models.ranker_request(2, 1))

    try:
        with pytest.raises((DeadlineError, OverloadedError)):
            DataPlane(repository, degradation=degradation).run(ModelRef("ranker"), urgency, decode, bool)
        quality = degradation.qualities()["ranker"]
        assert quality.missed == missed and not quality.answered
    finally:
        degradation.close()
        repository.close()


def test_one_model_that_cannot_be_looked_at_does_not_end_the_looks(caplog: pytest.LogCaptureFixture) -> None:
    looks = 0

    def lend(name: str) -> AbstractContextManager[tuple[Model, int]]:
        nonlocal looks
        if name == "other":
            looks += 1
        raise RuntimeError(f"a fault of {name}")

    steps = ModelSteps(steps=(CandidatesStep(exact=1, prior="p"),))
    config = DegradationConfig(models={"broken": steps, "other": steps})
    degradation = Degradation(config, lend, _no_waits, CpuTarget(1.0), period=0.01)
    try:
        eventually(lambda: looks > 3)
    finally:
        degradation.close()
    assert "a fault of broken" in caplog.text and caplog.records[0].levelno == logging.ERROR
