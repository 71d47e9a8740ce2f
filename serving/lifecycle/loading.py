"""Brings one version into memory and lets it prove itself, before anything is switched."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path

from jaxrank import bundle as files
from serving.engines import StreamSchedulers
from serving.lifecycle.memory import MemoryUse, check_limit, expected_use
from serving.lifecycle.options import LifecycleOptions
from serving.lifecycle.scoring import score
from serving.lifecycle.self_check import recorded_requests, self_check
from serving.lifecycle.warmup import warm_up
from serving.model import Model
from serving.state import StateCache
from serving.tiers.placement import Tiers

log = logging.getLogger("jaxrank")


@dataclass(frozen=True)
class Loader:
    """Loads versions for a server: for a target, an engine and the streams of its devices."""

    options: LifecycleOptions
    schedulers: StreamSchedulers
    target: str = "cpu"
    engine: str | None = None
    tiers: Tiers | None = None
    states: StateCache | None = None

    def load(self, name: str, bundle: Path, in_use: int) -> tuple[Model, MemoryUse]:
        """A version that may be served, and what it takes.

        `in_use` are bytes of what is loaded beside it. Raises `MemoryLimitError` before anything is loaded,
        what `Model.load` raises, `SelfCheckError` and `WarmupError`; nothing stays loaded then.
        """
        began = time.monotonic()
        manifest = files.read_manifest(bundle)
        elsewhere = frozenset() if self.tiers is None else self.tiers.placed_files(name, manifest)
        use = expected_use(
            bundle,
            manifest,
            target=self.target,
            engine=self.engine,
            streams=self.schedulers.streams,
            elsewhere=elsewhere,
        )
        check_limit(use, in_use, self.options.memory_limit)
        done: list[str] = []
        model = Model.load(
            bundle,
            target=self.target,
            engine=self.engine,
            schedulers=self.schedulers,
            tiers=self.tiers,
            name=name,
            states=self.states,
            memory=self.options.table_memory,
            admit=lambda model: done.extend(self._prove(bundle, model)),
        )
        log.info(
            "model %s: %s loaded in %.2f s, %.1f MiB; %s",
            name,
            bundle.name,
            time.monotonic() - began,
            use.total / (1 << 20),
            ", ".join(done) or "neither checked nor warmed up",
        )
        return model, use

    def _prove(self, bundle: Path, model: Model) -> list[str]:
        done: list[str] = []
        if self.options.self_check:
            done.append(self_check(bundle, model))
        elif self.options.warmup:
            examples = recorded_requests(bundle, model.manifest)
            for example in examples:
                score(model, example.features)
            done.append(f"warmed up with {len(examples)} recorded requests")
        if self.options.warmup:
            count = warm_up(bundle, model, self.options.warmup_iterations)
            done += [f"warmed up with {count} requests of assets.extra"] if count else []
        return done
