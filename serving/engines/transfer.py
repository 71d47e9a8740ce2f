"""Results from device memory to NumPy arrays that the caller owns."""

import mmap
from typing import Any

import iree.runtime as rt
import numpy as np


def to_host(device: Any, result: rt.DeviceArray) -> np.ndarray:
    """A copy of a result in host memory.

    Where the device's memory is not the host's, it is copied into pages of our own: IREE's
    `DeviceArray.to_host` imports whatever address NumPy returns, and a Vulkan device takes only whole pages.
    """
    view = result._buffer_view
    source = view.get_buffer()
    visible = source.memory_type() & int(rt.MemoryType.HOST_VISIBLE)
    if visible and source.allowed_usage() & int(rt.BufferUsage.MAPPING_SCOPED):
        # to_host() is a view that dies with the DeviceArray.
        return np.array(result.to_host())
    size = source.byte_length()
    pages = np.frombuffer(mmap.mmap(-1, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE), np.uint8)
    target = device.allocator.import_host_allocation(
        pages,
        memory_type=int(rt.MemoryType.HOST_LOCAL | rt.MemoryType.DEVICE_VISIBLE),
        allowed_usage=int(rt.BufferUsage.TRANSFER_TARGET | rt.BufferUsage.MAPPING_PERSISTENT),
    )
    done = device.create_semaphore(0)
    device.queue_copy(
        source,
        target,
        wait_semaphores=rt.HalFence.create_at(done, 0),
        signal_semaphores=rt.HalFence.create_at(done, 1),
    )
    rt.HalFence.create_at(done, 1).wait()
    dtype = rt.HalElementType.map_to_dtype(view.element_type)
    shape = tuple(view.shape)
    return pages[:size].view(dtype)[: int(np.prod(shape, dtype=np.int64))].reshape(shape)
