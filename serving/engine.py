"""The dense half: runs a bundle's IREE module on feature blocks.

A request's candidates are cut into slices that run side by side, one on each *stream* (its own HAL device and
VM context on one shared VmInstance). Slices keep activations in the cache and let one request use all cores;
the request tower runs once. A model that mixes candidates sees all of them in one call.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import iree.runtime as rt
import numpy as np

from jaxrank import bundle as files
from jaxrank.cpu import instruction_sets
from jaxrank.errors import BundleError
from jaxrank.manifest import Manifest, Target
from serving.host.program import FeatureBlocks
from serving.transfer import to_host

# Candidates of one call on a CPU stream. Larger slices leave the L2 cache, smaller ones pay more for their
# dispatches; docs/architecture.md has the measurement.
_CPU_SLICE = 256
_CPU_SMALLEST_SLICE = 32


class IreeEngine:
    """One compiled dense program on one device. Thread-safe."""

    def __init__(self, bundle: Path, manifest: Manifest, target: Target, *, streams: int | None = None):
        """Loads the module and maps its weights.

        Args:
            streams: calls that may run at once; all cores on a CPU, one on a device, by default.

        Raises:
            BundleError: the module does not load here, or the target's driver finds no device.
        """
        missing = set(target.instruction_sets) - instruction_sets()
        if missing:
            raise BundleError(
                f"{bundle / target.module} was compiled for a CPU with {', '.join(sorted(missing))}, which "
                f"this one does not have; compile it here: jaxrank compile {bundle} --target {target.name}"
            )
        self._instance = rt.VmInstance()
        self._target = target
        self._has_state = bool(manifest.state)
        self._has_weights = files.WEIGHTS in manifest.files
        self._row_wise = manifest.row_wise
        self._module_path = bundle / target.module
        self._parameters = rt.ParameterIndex()
        self._on_cpu = target.driver.startswith("local")
        self.streams = streams or (os.cpu_count() or 1 if self._on_cpu else 1)
        self._local = threading.local()
        self._pool = ThreadPoolExecutor(self.streams, thread_name_prefix=f"stream-{target.driver}")
        try:
            if self._has_weights:
                self._parameters.load(str(bundle / files.WEIGHTS))
            # Every stream is opened now: a device that is not there must fail the load, not a request.
            barrier = threading.Barrier(self.streams)
            list(self._pool.map(lambda _: self._open_stream(barrier), range(self.streams)))
        except (RuntimeError, ValueError, OSError, threading.BrokenBarrierError) as error:
            self._pool.shutdown()
            raise BundleError(
                f"{self._module_path} does not run here with the {target.driver} driver: {error}; "
                f"compile the bundle for this machine (jaxrank compile --target ...)"
            ) from error

    def run(self, blocks: FeatureBlocks) -> list[np.ndarray]:
        """The dense outputs in the order of the signature, each `[N, ...]` as the module makes it. The
        arrays are the caller's own."""
        state = self._pool.submit(self._request, blocks.request).result() if self._has_state else []
        count = len(blocks.candidate)
        slices = self._slices(count)
        if len(slices) == 1:
            return self._pool.submit(self._candidates, state, blocks.candidate).result()
        parts = list(self._pool.map(lambda s: self._candidates(state, blocks.candidate[s]), slices))
        return [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]

    def close(self) -> None:
        """Ends the streams after the calls that run now."""
        self._pool.shutdown(wait=True)

    def _slices(self, count: int) -> list[slice]:
        if not self._on_cpu or not self._row_wise:
            return [slice(0, count)]
        parts = max(-(-count // _CPU_SLICE), min(self.streams, count // _CPU_SMALLEST_SLICE), 1)
        edges = [count * i // parts for i in range(parts + 1)]
        return [slice(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]

    def _request(self, request_block: np.ndarray) -> list[np.ndarray]:
        return self._call("request_tower", [request_block])

    def _candidates(self, state: Sequence[np.ndarray], candidate_block: np.ndarray) -> list[np.ndarray]:
        return self._call("candidate_tower", [*state, candidate_block])

    def _call(self, name: str, arguments: Sequence[np.ndarray]) -> list[np.ndarray]:
        found = self._local.functions[name](*arguments)
        results = found if isinstance(found, (tuple, list)) else [found]
        return [to_host(self._local.device, result) for result in results]

    def _open_stream(self, barrier: threading.Barrier) -> None:
        try:
            # Reusing buffers saves page faults on the host; IREE 3.13's caching allocator asks a Vulkan
            # device for memory that it refuses (tests/serving/test_vulkan.py notices when it no
            # longer does).
            allocators: Any = ["caching"] if self._on_cpu else None
            device = rt.get_driver(self._target.driver).create_default_device(allocators=allocators)
            self._local.device = device
            modules = [rt.create_hal_module(self._instance, device)]
            if self._has_weights:
                provider = self._parameters.create_provider(scope=files.WEIGHTS_SCOPE)
                modules.insert(0, rt.create_io_parameters_module(self._instance, provider))
            program = rt.VmModule.mmap(self._instance, str(self._module_path))
            context = rt.VmContext(self._instance, modules=[*modules, program])
            self._local.functions = {
                name: _function(context, device, program, name)
                for name in (["request_tower"] if self._has_state else []) + ["candidate_tower"]
            }
        except BaseException:
            barrier.abort()
            raise
        barrier.wait(timeout=60)


def _function(context: Any, device: Any, module: Any, name: str) -> Callable[..., Any]:
    function = module.lookup_function(name)
    if function is None:
        raise ValueError(f"the module has no function @{name}")
    return rt.FunctionInvoker(context, device, function)
