# The jaxpr objects of JAX ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""What each product would take on a GPU that this machine does not have: the larger of its arithmetic and its
memory traffic at the data sheet's peak rates. An estimate, and named so wherever it is shown."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxrank.manifest import PrecisionFormat
from mlir_pipeline.precision.cast import Product
from mlir_pipeline.precision.rules import FORMATS


@dataclass(frozen=True)
class Device:
    """Peak rates of a GPU."""

    name: str
    f32: float
    """FLOP/s outside of tensor cores."""
    f16: float
    """FLOP/s of float16 tensor cores with float32 accumulation."""
    bandwidth: float
    """Bytes/s of device memory."""
    has_bf16: bool = True


# NVIDIA's data sheets, dense rates.
DEVICES = {
    "cuda:sm_75": Device("T4", 8.1e12, 65e12, 320e9, has_bf16=False),
    "cuda:sm_80": Device("A100", 19.5e12, 312e12, 1555e9),
    "cuda:sm_86": Device("A10", 31.2e12, 125e12, 600e9),
    "cuda:sm_89": Device("L4", 30.3e12, 121e12, 300e9),
}


def estimate_products(
    found: Sequence[Product], device: Device, candidates: int
) -> dict[tuple[str, PrecisionFormat], float]:
    """Seconds of one request by module and format (see `timing.Seconds`)."""
    seconds: dict[tuple[str, PrecisionFormat], float] = {}
    for product in found:
        for chosen in FORMATS:
            key = (product.module, chosen)
            seconds[key] = seconds.get(key, 0.0) + _seconds(product, chosen, device, candidates)
    return seconds


def _seconds(product: Product, chosen: PrecisionFormat, device: Device, candidates: int) -> float:
    eqn = product.equation
    rows = candidates if any(not isinstance(d, int) for d in eqn.outvars[0].aval.shape) else 1
    moved = 4 * rows * _elements(eqn.outvars[0])
    for var, weight in zip(eqn.invars, product.weights, strict=True):
        if weight is None:
            # Activations come and go in float32; the cast is part of the product.
            repeated = rows if any(not isinstance(d, int) for d in var.aval.shape) else 1
            moved += 4 * repeated * _elements(var)
        else:
            moved += (4 if chosen == "f32" else 2) * _elements(var)
    small = chosen == "f16" or (chosen == "bf16" and device.has_bf16)
    return max(rows * product.flops / (device.f16 if small else device.f32), moved / device.bandwidth)


def _elements(var: object) -> int:
    return math.prod(d if isinstance(d, int) else 1 for d in var.aval.shape)  # pyright: ignore
