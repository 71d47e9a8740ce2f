"""Programs in waves: every operator once, after what it reads, and lookups that can wait together in one
wave."""

import random

import pytest

from jaxrank.host_program import HostOperator
from serving.host.waves import waves


def _operator(inputs: tuple[str, ...], output: str, attrs: dict[str, str]) -> HostOperator:
    return HostOperator(op="x", name="", inputs=inputs, outputs=(output,), scope="request", attrs=attrs)


@pytest.mark.parametrize("seed", range(20))
def test_any_program_keeps_its_order_of_dependence(seed: int) -> None:
    draw = random.Random(seed)
    operators = []
    for number in range(draw.randrange(1, 40)):
        known = [f"v{i}" for i in range(number)] + ["feature"]
        inputs = tuple(draw.choices(known, k=draw.randrange(1, 3)))
        attrs = {"table": draw.choice(["near", "far"])} if draw.random() < 0.4 else {}
        operators.append(_operator(inputs, f"v{number}", attrs))
    found = waves(operators, {"far"})
    order = [index for wave in found for index in (*wave.before, *wave.lookups)]
    assert sorted(order) == list(range(len(operators)))
    ready = {"feature"}
    for wave in found:
        for index in wave.before:
            assert set(operators[index].inputs) <= ready
            assert operators[index].attrs.get("table") != "far"
            ready.update(operators[index].outputs)
        for index in wave.lookups:
            assert set(operators[index].inputs) <= ready
            assert operators[index].attrs["table"] == "far"
        ready.update(f"v{index}" for index in wave.lookups)


def test_lookups_that_do_not_depend_on_each_other_wait_together() -> None:
    def operator(output: str, inputs: tuple[str, ...], table: str = "") -> HostOperator:
        return _operator(inputs, output, {"table": table} if table else {})

    program = [
        operator("a", ("x",), "far"),
        operator("ids", ("y",)),
        operator("b", ("ids",), "far"),
        operator("sum", ("a", "b")),
        operator("c", ("sum",), "far"),
    ]
    found = waves(program, {"far"})
    assert [(w.before, w.lookups) for w in found] == [((1,), (0, 2)), ((3,), (4,))]
    assert [(w.before, w.lookups) for w in waves(program, {})] == [((0, 1, 2, 3, 4), ())]
