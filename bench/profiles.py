"""Synthetic models and requests in the shapes of production services, from a profile of a few numbers.

A profile's model is the mixture of experts of the suite `dense` with the profile's features, its experts as
wide as the operations of a candidate need. The numbers are round ones for what such services have, from no
measurement; those of `article` are from the description of a production system that this project answers:
40 GFLOP a request, 5,000 candidates that are scored in slices, an answer within 300 ms.

| profile | candidates | history | fields of request + candidate | skew of ids | MFLOP a candidate | promise |
|---|---|---|---|---|---|---|
| `feed` | 1,000 | 100 | 28 + 8 | 1.05 | 3 | 100 ms |
| `ads` | 200 | 50 | 60 + 40 | 1.2 | 3 | 50 ms |
| `article` | 5,000 | 100 | 40 + 16 | 1.05 | 8 | 300 ms |
"""

from dataclasses import dataclass

import numpy as np

from bench.dense_models import VOCABULARY, DenseModel, Features, MMoE
from bench.draws import skewed

_STATS = 16
"""Numbers of the request, and of each candidate."""
_EXPERTS, _INNER, _TOWER, _TASKS, _RANK, _ITEM = 8, 256, 128, 3, 16, 64
"""Of the mixture: experts, their second layer, the towers', tasks, ranks of a field and of an item."""


@dataclass(frozen=True)
class Profile:
    """What a service sends, and what it promises."""

    name: str
    candidates: int
    history: int
    """Items of a user's history, from half as many up."""
    request_fields: int
    candidate_fields: int
    skew: float
    """Zipf's exponent of ids; 0 is uniform."""
    mflop: float
    """Of the source model for each candidate; a multiply-add counts as two."""
    slo_ms: float

    @property
    def width(self) -> int:
        """Of the experts' first layer."""
        inputs = (self.request_fields + self.candidate_fields) * _RANK + 2 * _ITEM + 2 * _STATS
        rest = 2 * _TASKS * (inputs * _EXPERTS + _INNER * _TOWER + _TOWER)
        each = 2 * _EXPERTS * (inputs + _INNER)
        return max(16, 16 * round((self.mflop * 1e6 - rest) / each / 16))

    def model(self) -> "ProfiledModel":
        """The model that requests are for."""
        inputs = {
            "user_history": (1, self.history),
            "user_fields": (1, self.request_fields),
            "user_stats": (1, _STATS),
            "item_id": (None,),
            "item_fields": (None, self.candidate_fields),
            "item_stats": (None, _STATS),
        }
        layers = (self.width, _INNER)
        return ProfiledModel(
            name=self.name,
            build=lambda: MMoE(self.request_fields, self.candidate_fields, _EXPERTS, layers, (_TOWER,)),
            inputs=inputs,
            request_side=True,
            shape=f"{_EXPERTS} experts {self.width}-{_INNER}, {_TASKS} towers of {_TOWER}",
            candidates=self.candidates,
            slo_ms=self.slo_ms,
            skew=self.skew,
        )


@dataclass(frozen=True)
class ProfiledModel(DenseModel):
    """A model whose ids come as often as a profile says."""

    skew: float = 0.0

    def request(self, rows: int, seed: int) -> Features:
        found = super().request(rows, seed)
        rng = np.random.default_rng(seed)
        for name, value in found.items():
            if value.dtype == np.int64:
                ids = skewed(rng, VOCABULARY - 1, value.size, self.skew).reshape(value.shape) + 1
                found[name] = np.where(value > 0, ids, 0) if name == "user_history" else ids
        return found


PROFILES = (
    Profile("feed", 1000, 100, 28, 8, 1.05, 3.0, 100.0),
    Profile("ads", 200, 50, 60, 40, 1.2, 3.0, 50.0),
    Profile("article", 5000, 100, 40, 16, 1.05, 8.0, 300.0),
)
