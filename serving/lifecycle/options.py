"""How versions come into service and go out of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from serving.lifecycle.trials import Trial
from serving.tables import TableMemory


@dataclass(frozen=True)
class LifecycleOptions:
    """For all models of a server.

    Attributes:
        self_check: whether a version is served only if it gives the scores that its bundle recorded.
        warmup: whether it answers its warm-up requests first.
        warmup_iterations: how often each of them.
        rollback_requests: the first requests of a version that decide whether it stays; 0: it stays.
        rollback_share: of those, how many may fail or give a score that is no finite number; in [0, 1].
        memory_limit: bytes of all loaded versions together; None: as much as there is.
        table_memory: how the rows of embedding tables come into memory.
        trials: by model, for those of a directory; a model configuration has its own.
    """

    self_check: bool = True
    warmup: bool = True
    warmup_iterations: int = 1
    rollback_requests: int = 100
    rollback_share: float = 0.05
    memory_limit: int | None = None
    table_memory: TableMemory = "mapped"
    trials: Mapping[str, Trial] = field(default_factory=dict)
