"""Between NumPy arrays and the memory of a device that is not the host's."""

import mmap
from collections.abc import Sequence
from typing import Any

import iree.runtime as rt
import numpy as np
from iree.runtime.dtypes import map_dtype_to_hal_element_type

_ALIGNMENT = 256
"""Of each array in the staging memory; as much as any device asks for."""


class Staging:
    """Host memory that a device reads and writes, and device memory for arguments; both are reused, and grow
    to the largest call. Used by one thread at a time, for one call after another.

    The arguments of a call are copied into the host memory and go to the device in one submission, and its
    results come back in one. The host memory is whole pages of our own: a Vulkan device takes nothing else,
    and `DeviceArray.to_host` offers it whatever address NumPy returns.
    """

    def __init__(self, device: Any):
        self._device = device
        self._pages = np.empty(0, np.uint8)
        self._host: Any = None
        self._arguments: list[Any] = []

    def to_device(self, values: Sequence[Any]) -> list[Any]:
        """Arguments of a call: arrays on the device, valid until the next call of this. What lies there
        already stays where it is."""
        if not any(isinstance(v, np.ndarray) for v in values):
            return list(values)
        arrays = {i: np.ascontiguousarray(v) for i, v in enumerate(values) if isinstance(v, np.ndarray)}
        offsets = self._reserve([a.nbytes for a in arrays.values()])
        found, command = list(values), rt.HalCommandBuffer(self._device)
        for (i, array), offset in zip(arrays.items(), offsets, strict=True):
            target = self._argument(i, array.nbytes)
            if array.nbytes:
                self._pages[offset : offset + array.nbytes] = array.reshape(-1).view(np.uint8)
                command.copy(self._host, target, offset, 0, array.nbytes)
            element = map_dtype_to_hal_element_type(array.dtype)
            assert element is not None, f"IREE has no {array.dtype}"
            found[i] = rt.HalBufferView(target, array.shape, element)
        self._run(command)
        return found

    def to_host(self, views: Sequence[rt.HalBufferView]) -> list[np.ndarray]:
        """Copies that the caller owns."""
        dtypes = [np.dtype(rt.HalElementType.map_to_dtype(view.element_type)) for view in views]
        shapes = [tuple(view.shape) for view in views]
        sizes = [int(np.prod(s, dtype=np.int64)) * d.itemsize for s, d in zip(shapes, dtypes, strict=True)]
        offsets = self._reserve(sizes)
        command = rt.HalCommandBuffer(self._device)
        for view, size, offset in zip(views, sizes, offsets, strict=True):
            if size:
                command.copy(view.get_buffer(), self._host, 0, offset, size)
        self._run(command)
        return [
            self._pages[offset : offset + size].view(dtype).reshape(shape).copy()
            for offset, size, dtype, shape in zip(offsets, sizes, dtypes, shapes, strict=True)
        ]

    def _run(self, command: rt.HalCommandBuffer) -> None:
        command.end()
        done = self._device.create_semaphore(0)
        finished = rt.HalFence.create_at(done, 1)
        self._device.queue_execute(command, rt.HalFence.create_at(done, 0), finished)
        finished.wait()

    def _reserve(self, sizes: Sequence[int]) -> list[int]:
        """Where each array lies in the host memory, after it has grown to hold them all."""
        offsets, end = [], 0
        for size in sizes:
            offsets.append(end)
            end += -(-size // _ALIGNMENT) * _ALIGNMENT
        if self._host is None or end > len(self._pages):
            length = max(_grown(end), mmap.PAGESIZE)
            self._host = None
            self._pages = np.frombuffer(mmap.mmap(-1, length), np.uint8)
            self._host = self._device.allocator.import_host_allocation(
                self._pages,
                memory_type=int(rt.MemoryType.HOST_LOCAL | rt.MemoryType.DEVICE_VISIBLE),
                allowed_usage=int(rt.BufferUsage.TRANSFER | rt.BufferUsage.MAPPING_PERSISTENT),
            )
        return offsets

    def _argument(self, position: int, size: int) -> Any:
        """Device memory of an argument, at least of this size."""
        while len(self._arguments) <= position:
            self._arguments.append(None)
        if self._arguments[position] is None or self._arguments[position].byte_length() < size:
            self._arguments[position] = None
            self._arguments[position] = self._device.allocator.allocate_buffer(
                memory_type=int(rt.MemoryType.DEVICE_LOCAL),
                allowed_usage=int(rt.BufferUsage.DEFAULT),
                allocation_size=max(_grown(size), _ALIGNMENT),
            )
        return self._arguments[position]


def _grown(size: int) -> int:
    """The next power of two: memory that grows does so a few times only."""
    return 1 << max(size - 1, 0).bit_length()
