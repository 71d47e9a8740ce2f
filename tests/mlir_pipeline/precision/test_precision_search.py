"""The search on costs and errors that are given: what it adds, leaves out, and in which order."""

from collections.abc import Mapping

import pytest

from jaxrank.manifest import PrecisionFormat
from mlir_pipeline.errors import CompileError
from mlir_pipeline.precision.bounds import parse_bounds
from mlir_pipeline.precision.search import ModuleCost, search

BOUNDS = parse_bounds("abs:1.0")
FORMATS: tuple[PrecisionFormat, ...] = ("f16", "bf16")
ERRORS = {("a", "f16"): 0.3, ("a", "bf16"): 0.6, ("b", "f16"): 0.5, ("c", "f16"): 0.1, ("c", "bf16"): 2.0}
MILLISECONDS = {
    "a": {"f32": 9, "f16": 6, "bf16": 5},
    "b": {"f32": 4, "f16": 3, "bf16": 4},
    "c": {"f32": 1, "f16": 2, "bf16": 0.1},
}


def _evaluate(chosen: Mapping[str, PrecisionFormat], own: float = 0.0) -> dict[str, float]:
    return {"abs": own + sum(ERRORS.get(item, 0) for item in chosen.items())}


MODULES = [
    ModuleCost(
        module=m, flops_share=1 / 3, milliseconds=t, weight_bytes={"f32": 400, "f16": 200, "bf16": 200}
    )
    for m, t in MILLISECONDS.items()
]


def test_what_saves_most_for_its_error_comes_first_and_what_breaks_the_bound_is_left_out() -> None:
    float32, alone, steps, kept = search(MODULES, FORMATS, BOUNDS, _evaluate, "time")
    assert float32 == {"abs": 0}
    assert {(t.module, t.format): t.stays for t in alone}["c", "bf16"] is False
    # a: 3 ms at 0.3, then 4 ms at 0.6 instead; b would make 1.1.
    assert [(t.module, t.format, t.stays) for t in steps] == [
        ("a", "f16", True),
        ("a", "bf16", True),
        ("b", "f16", False),
    ]
    assert kept == {"a": "bf16"} and steps[1].saved == 4


def test_bytes_are_another_objective() -> None:
    *_, kept = search(MODULES, FORMATS, BOUNDS, _evaluate, "bytes")
    assert kept == {"a": "f16", "b": "bf16", "c": "f16"}


def test_nothing_is_chosen_where_nothing_is_faster() -> None:
    slow = [
        ModuleCost(
            module="a",
            flops_share=1.0,
            milliseconds={"f32": 1, "f16": 1, "bf16": 2},
            weight_bytes={"f32": 4, "f16": 2, "bf16": 2},
        )
    ]
    assert search(slow, FORMATS, BOUNDS, _evaluate, "time")[2:] == ([], {})


def test_bounds_that_float32_breaks() -> None:
    with pytest.raises(CompileError, match=r"float32 itself does not keep .*abs 2 \(bound 1, broken\)"):
        search(MODULES, FORMATS, BOUNDS, lambda chosen: _evaluate(dict(chosen), 2.0), "time")
