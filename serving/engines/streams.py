"""Streams of a device: HAL devices with their VM contexts."""

import functools
import math
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import iree.runtime as rt
import numpy as np
from iree.runtime.dtypes import map_dtype_to_hal_element_type

from jaxrank import bundle as files
from serving.engines.staging import Staging
from serving.monitoring.timeline import Moved

_ALIGNMENT = 64
"""Of host memory that compiled code may read where it is: what its own buffers have."""
_HOST_MEMORY = int(rt.MemoryType.DEVICE_LOCAL | rt.MemoryType.HOST_VISIBLE)
_HOST_USAGE = int(rt.BufferUsage.DEFAULT | rt.BufferUsage.MAPPING)


class Weights:
    """A bundle's weight archive, mapped into memory once for all streams."""

    def __init__(self, archive: Path | None):
        """`archive` is None for a model without weights. Raises `ValueError` or `OSError` where it does not
        open."""
        self.instance = rt.VmInstance()
        self._given = archive
        self._archives: dict[tuple[Path, int], rt.ParameterIndex] = {}
        if archive is not None:
            self._archive(archive)
        self._lock = threading.Lock()

    def of(self, module: Path) -> list[Any]:
        """The VM module through which a compiled module reads them, and those that were packed for it; none
        where there are no weights. Raises as the constructor does."""
        if self._given is None:
            return []
        scopes = {self._given: files.WEIGHTS_SCOPE}
        if (packed := files.packed_weights(module)).exists():
            scopes[packed] = files.PACKED_SCOPE
        with self._lock:
            providers = [self._archive(archive).create_provider(scope=s) for archive, s in scopes.items()]
        return [rt.create_io_parameters_module(self.instance, *providers)]

    def _archive(self, path: Path) -> rt.ParameterIndex:
        """Of a file as it is now: a compiler that tries modules puts others in its place."""
        key = path, path.stat().st_mtime_ns
        if key not in self._archives:
            index = self._archives[key] = rt.ParameterIndex()
            index.load(str(path))
        return self._archives[key]


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
        self._functions: dict[str, tuple[rt.VmContext, rt.VmFunction]] = {}
        self._moved = Moved()

    def load(self, module: Path, functions: Sequence[str]) -> None:
        """Makes a module's functions callable by name. Raises `ValueError` for one that it does not have."""
        hal = rt.create_hal_module(self._weights.instance, self._device)
        program = rt.VmModule.mmap(self._weights.instance, str(module))
        context = rt.VmContext(self._weights.instance, modules=[*self._weights.of(module), hal, program])
        for name in functions:
            function = program.lookup_function(name)
            if function is None:
                raise ValueError(f"the module {module.name} has no function @{name}")
            self._functions[name] = context, function

    def staged(self, values: Sequence[Any]) -> list[Any]:
        """Arguments in the device's memory, all brought there at once; valid until the next ones are. On a
        host, aligned arrays are read where they are."""
        begun = time.perf_counter()
        if self._staging is None:
            found, size = self._imported(values)
        else:
            found = self._staging.to_device(values)
            size = sum(value.nbytes for value in values if isinstance(value, np.ndarray))
        if size:
            self._moved.argument_bytes += size
            self._moved.transfers += 1
            self._moved.seconds += time.perf_counter() - begun
        return found

    def call(self, function: str, arguments: Sequence[Any], *, for_calls: bool = False) -> list[np.ndarray]:
        """The function's results, as arrays that the caller owns; `for_calls` are aligned, to be arguments of
        other calls. Arguments are arrays or what `run` gave."""
        results = self.run(function, arguments)
        begun = time.perf_counter()
        found = (
            [_copied(result, for_calls) for result in results]
            if self._staging is None
            else self._staging.to_host(results)
        )
        self._moved.result_bytes += sum(value.nbytes for value in found)
        self._moved.transfers += 1
        self._moved.seconds += time.perf_counter() - begun
        return found

    def run(self, function: str, arguments: Sequence[Any]) -> list[rt.HalBufferView]:
        """The function's results in the device's memory, for the next calls of this stream."""
        context, target = self._functions[function]
        # `rt.FunctionInvoker` does this, and reads descriptions of every value for each call.
        given, results = rt.VmVariantList(len(arguments)), rt.VmVariantList(1)
        for value in self.staged(arguments):
            given.push_ref(value)
        context.invoke(target, given, results)
        return [results.get_as_object(i, rt.HalBufferView) for i in range(len(results))]

    def joined(self, size: int) -> None:
        """Counts bytes that were copied between host arrays for a call."""
        self._moved.joined_bytes += size

    def moved(self) -> Moved:
        """What was moved since this was last asked."""
        moved, self._moved = self._moved, Moved()
        return moved

    def _imported(self, values: Sequence[Any]) -> tuple[list[Any], int]:
        """Arrays as buffers of a device whose memory is the host's, and the bytes that were copied for it."""
        found, copied = list(values), 0
        for i, value in enumerate(values):
            if not isinstance(value, np.ndarray):
                continue
            if is_aligned(value):
                buffer = self._device.allocator.import_host_allocation(value, _HOST_MEMORY, _HOST_USAGE)
                found[i] = rt.HalBufferView(buffer, value.shape, _element_type(value.dtype))
            else:
                found[i] = self._device.allocator.allocate_buffer_copy(
                    memory_type=rt.MemoryType.DEVICE_LOCAL,
                    allowed_usage=rt.BufferUsage.DEFAULT,
                    device=self._device,
                    buffer=np.ascontiguousarray(value),
                    element_type=_element_type(value.dtype),
                )
                copied += value.nbytes
        return found, copied


def is_aligned(value: np.ndarray) -> bool:
    """Whether compiled code may read an array where it is: IREE takes no memory that is read-only."""
    flags = value.flags
    return bool(value.nbytes and flags.c_contiguous and flags.writeable and not _address(value) % _ALIGNMENT)


def aligned(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """An uninitialized array that is aligned."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -_address(memory) % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def _address(value: np.ndarray) -> int:
    return value.__array_interface__["data"][0]


def _copied(view: rt.HalBufferView, for_calls: bool) -> np.ndarray:
    """A buffer of the host's memory as an array of its own."""
    shape, dtype = tuple(view.shape), _dtype_of(view.element_type)
    found = aligned(shape, dtype) if for_calls else np.empty(shape, dtype)
    if found.size:
        np.copyto(found, view.map().asarray(shape, dtype))
    return found


@functools.cache
def _dtype_of(element_type: rt.HalElementType) -> np.dtype:
    """Of the elements of a buffer."""
    return np.dtype(rt.HalElementType.map_to_dtype(element_type))


@functools.cache
def _element_type(dtype: np.dtype) -> Any:
    element = map_dtype_to_hal_element_type(dtype)
    assert element is not None, f"IREE has no {dtype}"
    return element
