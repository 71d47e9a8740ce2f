"""Requests of the server's own, which wait for those of clients."""

import time
from collections.abc import Mapping

import numpy as np

from serving.errors import STOPPING, OverloadedError
from serving.model import Model
from serving.scheduling import PROOF, Urgency

PATIENCE_SECONDS = 60.0
_PAUSE_SECONDS = 0.05


def score(model: Model, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All outputs of a request, whenever the streams have time. Raises what `Model.predict` does; a server
    that is too busy for `PATIENCE_SECONDS` ends it with `DeadlineError` or `OverloadedError`."""
    urgency = Urgency(time.monotonic() + PATIENCE_SECONDS, PROOF)
    while True:
        try:
            return model.predict(inputs, None, urgency)
        except OverloadedError as error:
            if error.reason == STOPPING or urgency.remaining() < _PAUSE_SECONDS:
                raise
            time.sleep(_PAUSE_SECONDS)
