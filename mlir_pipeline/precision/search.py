"""Searches a format for each module: the most time (or bytes) saved within bounds on the ranking.

Each module is tried alone in each format. Those that save something are added to float32 one after the
other, those that save most for what they use of the bounds first. One that breaks a bound together with
what is already there is left out: what stays is at the frontier.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import msgspec

from jaxrank.manifest import PrecisionFormat
from mlir_pipeline.errors import CompileError
from mlir_pipeline.precision.bounds import Bound, described, used
from mlir_pipeline.precision.rules import FORMATS

Prefer = Literal["time", "bytes"]
Evaluate = Callable[[Mapping[str, PrecisionFormat]], dict[str, float]]
"""Formats by module to the value of each bound's metric."""

# What a choice uses of the bounds counts as at least this much: below it, errors are float32's own.
_LEAST_USED = 1e-3


class ModuleCost(msgspec.Struct, frozen=True, kw_only=True):
    """What one module's products take in each format."""

    module: str
    flops_share: float
    """Of the products of a request with `Search.candidates` candidates."""
    milliseconds: dict[str, float]
    """By format."""
    weight_bytes: dict[str, int]


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """Formats that were tried, and what they did."""

    module: str
    format: PrecisionFormat
    """The module's format; the other modules are in float32, or in the formats of the steps that stayed."""
    saved: float
    """Milliseconds or bytes, of this trial's formats against float32."""
    values: dict[str, float]
    """By metric."""
    used: float
    """Share of the tightest bound."""
    stays: bool


class Search(msgspec.Struct, frozen=True, kw_only=True):
    """All of a search; `precision.json`."""

    target: str
    prefer: Prefer
    estimated: bool
    """Whether times are a model of a device that is not here."""
    candidates: int
    requests: int
    scores: str
    """What the scores were compared with."""
    labels: str
    """What the rows' labels are."""
    bounds: dict[str, float]
    float32: dict[str, float]
    """The metrics of float32 itself."""
    modules: list[ModuleCost]
    alone: list[Trial]
    steps: list[Trial]
    formats: dict[str, PrecisionFormat]
    """The choice; modules in float32 are left out."""
    program_milliseconds: dict[str, float] = {}
    """The whole dense program, "f32" and "chosen", compiled and run in turns."""
    note: str = ""
    """What was decided in the end, and why."""


def search(
    modules: Sequence[ModuleCost],
    formats: Sequence[PrecisionFormat],
    bounds: Sequence[Bound],
    evaluate: Evaluate,
    prefer: Prefer,
    done: Callable[[int], None] = lambda count: None,
) -> tuple[dict[str, float], list[Trial], list[Trial], dict[str, PrecisionFormat]]:
    """Returns float32's metrics, each module alone, the steps, and the formats that stayed.

    Raises `CompileError` where float32 itself breaks a bound.
    """
    float32 = evaluate({})
    if used(bounds, float32) > 1:
        raise CompileError(
            f"float32 itself does not keep what --keep asks for: {described(bounds, float32)}; give "
            "wider bounds"
        )
    costs = {m.module: m for m in modules}

    def trial(chosen: Mapping[str, PrecisionFormat], module: str) -> Trial:
        values = evaluate(chosen)
        part = used(bounds, values)
        saved = sum(saving(costs[m], f, prefer) for m, f in chosen.items())
        return Trial(
            module=module, format=chosen[module], saved=saved, values=values, used=part, stays=part <= 1
        )

    alone = []
    for module in costs:
        for chosen in formats:
            alone.append(trial({module: chosen}, module))
            done(1)
    useful = [t for t in alone if t.saved > 0 and t.stays]
    useful.sort(key=lambda t: t.saved / max(t.used, _LEAST_USED), reverse=True)
    kept: dict[str, PrecisionFormat] = {}
    steps = []
    for candidate in useful:
        before = kept.get(candidate.module, "f32")
        if candidate.saved <= saving(costs[candidate.module], before, prefer):
            continue
        step = trial({**kept, candidate.module: candidate.format}, candidate.module)
        steps.append(step)
        if step.stays:
            kept[candidate.module] = candidate.format
    return float32, alone, steps, kept


def saving(cost: ModuleCost, chosen: PrecisionFormat, prefer: Prefer) -> float:
    """Milliseconds or bytes that a format saves against float32."""
    by_format = cost.milliseconds if prefer == "time" else cost.weight_bytes
    return by_format["f32"] - by_format[chosen]


def small_formats() -> tuple[PrecisionFormat, ...]:
    """Every format but float32."""
    return tuple(f for f in FORMATS if f != "f32")
