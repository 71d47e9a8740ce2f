"""Trades quality for load, along steps that a model's owner allows in a file (docs/overload.md).

Each second `Degradation` (`monitor.py`) gives the `Controller` of a model what was observed: requests, those
that were late, how long they waited, how busy the device is. Its level says how many of the model's steps
(`config.py`) apply to the requests that come: fewer candidates scored exactly, shorter histories
(`reductions.py`), or another model in its place. `DegradedModel` (`answer.py`) stands between the data plane
and a `Model` and does that.
"""

from serving.degradation.answer import DEGRADATION, DegradedModel
from serving.degradation.config import DegradationConfig, DegradationError, load_degradation_config
from serving.degradation.monitor import Degradation
from serving.degradation.tally import Quality

__all__ = [
    "DEGRADATION",
    "Degradation",
    "DegradationConfig",
    "DegradationError",
    "DegradedModel",
    "Quality",
    "load_degradation_config",
]
