"""What a request's user side made, kept for the next slice of the same request.

`request_states.py` is the entry point, one for each version of a model: it finds the request's features by
their content (`digest.py`) in the server's one cache (`cache.py`), or has them computed once however many
slices come together, and stops looking where that costs more than it saves (`account.py`). `handle.py` is the
name that a client of PrepareRequest gets.
"""

from serving.state.cache import StateCache, StateCounts
from serving.state.handle import Handle
from serving.state.request_states import Prepared, RequestStates

__all__ = ["Handle", "Prepared", "RequestStates", "StateCache", "StateCounts"]
