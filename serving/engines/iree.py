"""The dense half on IREE. A stream is a HAL device of its own, with VM contexts on one shared VmInstance."""

from collections.abc import Sequence
from pathlib import Path

from jaxrank import bundle as files
from jaxrank.errors import BundleError
from jaxrank.manifest import Manifest, Target
from jaxrank.towers import CANDIDATE_TOWER, REQUEST_BATCH, REQUEST_TOWER
from serving.engines.streams import Stream, Weights
from serving.engines.towers import TowerEngine
from serving.scheduling import StreamScheduler


class IreeEngine(TowerEngine):
    """A bundle's IREE modules."""

    def __init__(
        self,
        bundle: Path,
        manifest: Manifest,
        target: Target,
        *,
        streams: int | None = None,
        scheduler: StreamScheduler | None = None,
        only: str | None = None,
    ):
        """Loads the modules and maps their weights; arguments are `TowerEngine`'s. Raises `BundleError`: a
        module does not load here, or the target's driver finds no device."""
        programs = [CANDIDATE_TOWER, *(p.function for p in target.programs)]
        programs += [target.batch.function] if target.batch is not None else []
        if only is not None and only not in programs:
            raise BundleError(
                f"{bundle}: {target.name} has no program {only!r}; it has {', '.join(programs)}"
            )
        weights = bundle / files.WEIGHTS if files.WEIGHTS in manifest.files else None

        def load(stream: Stream) -> None:
            towers = [REQUEST_TOWER, CANDIDATE_TOWER] if manifest.state else [CANDIDATE_TOWER]
            stream.load(bundle / target.module, towers)
            for module in target.modules:
                tiles = [p.function for p in target.programs if p.module == module]
                if tiles:
                    stream.load(bundle / module, tiles)
            if target.batch is not None:
                stream.load(bundle / target.batch.module, [REQUEST_BATCH, target.batch.function])

        def open_streams(on: StreamScheduler) -> Sequence[Stream]:
            try:
                shared = Weights(weights)
                # Drivers start threads, which would inherit a lower priority; a module that was compiled for
                # another CPU packs its weights now, which takes long.
                opened = on.on_each(lambda _: Stream(target.driver, shared))
                on.on_each(lambda n: load(opened[n]), in_background=target.on_cpu)
            except (RuntimeError, ValueError, IndexError, OSError) as error:
                raise BundleError(
                    f"{bundle / target.module} does not run here with the {target.driver} driver: {error}; "
                    f"compile the bundle for this machine (jaxrank compile --target ...)"
                ) from error
            return opened

        super().__init__(
            manifest,
            target,
            open_streams,
            streams=streams,
            scheduler=scheduler,
            only=only,
            slice_rows=manifest.slice_rows,
        )
