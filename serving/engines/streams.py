"""Streams of a device: HAL devices with their VM contexts."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import iree.runtime as rt
import numpy as np
from iree.runtime.dtypes import map_dtype_to_hal_element_type

from jaxrank import bundle as files
from serving.engines.staging import Staging
from serving.monitoring.timeline import Moved


class Weights:
    """A bundle's weight archive, mapped into memory once for all streams."""

    def __init__(self, archive: Path | None):
        """`archive` is None for a model without weights. Raises `ValueError` or `OSError` where it does not
        open."""
        self.instance = rt.VmInstance()
        self._parameters = rt.ParameterIndex() if archive is not None else None
        if self._parameters is not None:
            self._parameters.load(str(archive))

    def modules(self) -> list[Any]:
        """The VM module through which a context reads them; none where there are no weights."""
        if self._parameters is None:
            return []
        provider = self._parameters.create_provider(scope=files.WEIGHTS_SCOPE)
        return [rt.create_io_parameters_module(self.instance, provider)]


class Stream:
    """One HAL device, and a VM context for each module loaded on it. Used by one thread at a time."""

    def __init__(self, driver: str, weights: Weights):
        # Reusing buffers saves page faults on the host; IREE 3.13's caching allocator asks a Vulkan
        # device for memory that it refuses (tests/serving/test_vulkan.py notices when it no longer does).
        on_host = driver.startswith("local")
        allocators: Any = ["caching"] if on_host else None
        self._device = rt.get_driver(driver).create_default_device(allocators=allocators)
        self._staging = None if on_host else Staging(self._device)
        self._weights = weights
        self._functions: dict[str, Callable[..., Any]] = {}
        self._moved = Moved()

    def load(self, module: Path, functions: Sequence[str]) -> None:
        """Makes a module's functions callable by name. Raises `ValueError` for one that it does not have."""
        hal = rt.create_hal_module(self._weights.instance, self._device)
        program = rt.VmModule.mmap(self._weights.instance, str(module))
        context = rt.VmContext(self._weights.instance, modules=[*self._weights.modules(), hal, program])
        for name in functions:
            function = program.lookup_function(name)
            if function is None:
                raise ValueError(f"the module {module.name} has no function @{name}")
            self._functions[name] = rt.FunctionInvoker(context, self._device, function)

    def staged(self, values: Sequence[Any]) -> list[Any]:
        """Arguments in the device's memory, all brought there at once; valid until the next ones are."""
        begun = time.perf_counter()
        found = self._imported(values) if self._staging is None else self._staging.to_device(values)
        size = sum(value.nbytes for value in values if isinstance(value, np.ndarray))
        if size:
            self._moved.argument_bytes += size
            self._moved.transfers += 1
            self._moved.seconds += time.perf_counter() - begun
        return found

    def call(self, function: str, arguments: Sequence[Any]) -> list[np.ndarray]:
        """The function's results, as arrays that the caller owns. Arguments are arrays or what `run` gave."""
        results = self.run(function, arguments)
        begun = time.perf_counter()
        # to_host() is a view that dies with the DeviceArray.
        found = (
            [np.array(r.to_host()) for r in results]
            if self._staging is None
            else self._staging.to_host(results)
        )
        self._moved.result_bytes += sum(value.nbytes for value in found)
        self._moved.transfers += 1
        self._moved.seconds += time.perf_counter() - begun
        return found

    def run(self, function: str, arguments: Sequence[Any]) -> list[rt.DeviceArray]:
        """The function's results in the device's memory, for the next calls of this stream."""
        found = self._functions[function](*self.staged(arguments))
        return list(found) if isinstance(found, (tuple, list)) else [found]

    def joined(self, size: int) -> None:
        """Counts bytes that were copied between host arrays for a call."""
        self._moved.joined_bytes += size

    def moved(self) -> Moved:
        """What was moved since this was last asked."""
        moved, self._moved = self._moved, Moved()
        return moved

    def _imported(self, values: Sequence[Any]) -> list[Any]:
        """Arrays as buffers of a device whose memory is the host's. IREE's invoker would copy them, too, but
        would not say how long it takes."""
        return [self._buffer(value) if isinstance(value, np.ndarray) else value for value in values]

    def _buffer(self, value: np.ndarray) -> Any:
        element = map_dtype_to_hal_element_type(value.dtype)
        assert element is not None, f"IREE has no {value.dtype}"
        return self._device.allocator.allocate_buffer_copy(
            memory_type=rt.MemoryType.DEVICE_LOCAL,
            allowed_usage=rt.BufferUsage.DEFAULT,
            device=self._device,
            buffer=np.ascontiguousarray(value),
            element_type=element,
        )
