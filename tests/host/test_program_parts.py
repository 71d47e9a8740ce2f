"""Programs in two parts: every operator once, and nothing of the candidates in the request's part."""

import random

import pytest

from jaxrank.host_program import HOST_SCHEMA_VERSION, BlockColumn, HostOperator, HostOutput, HostProgram
from jaxrank.manifest import Scope
from serving.host.scopes import REPEAT_ROWS, split

GROWN = {"1": {"dtype": "int64", "shape": [1], "values": [1], "per_row": [1]}}


def _operator(inputs: tuple[str, ...], output: str, op: str = "x", grown: bool = False) -> HostOperator:
    constants = GROWN if grown else {}
    return HostOperator(
        op=op, name="", inputs=inputs, outputs=(output,), scope="request", constants=constants
    )


def _column(tensor: str, scope: Scope) -> BlockColumn:
    return BlockColumn(tensor=tensor, feature=tensor, scope=scope, offset=0, shape=(1,), dtype="float32")


def _program(
    operators: list[HostOperator], columns: list[BlockColumn], outputs: tuple[str, ...]
) -> HostProgram:
    return HostProgram(
        schema_version=HOST_SCHEMA_VERSION,
        operators=tuple(operators),
        columns=tuple(columns),
        outputs=tuple(HostOutput(output=name, tensor=name) for name in outputs),
    )


@pytest.mark.parametrize("seed", range(20))
def test_any_program_is_divided_without_loss(seed: int) -> None:
    draw = random.Random(seed)
    operators, request = [], {"user"}
    for number in range(draw.randrange(1, 40)):
        known = [f"v{i}" for i in range(number)] + ["user", "item", "table:t"]
        inputs = tuple(draw.choices(known, k=draw.randrange(1, 3)))
        op, grown = draw.choice(["x", "x", "x", REPEAT_ROWS]), draw.random() < 0.1
        operators.append(_operator(inputs, f"v{number}", op, grown))
        if op == "x" and not grown and set(inputs) <= request | {"table:t"}:
            request.add(f"v{number}")
    columns = [_column("user", "request"), _column("item", "candidate")]
    columns += [
        _column(draw.choice(sorted(request)), "request"),
        _column(operators[-1].outputs[0], "candidate"),
    ]
    program = _program(operators, columns, (operators[0].outputs[0],))
    parts = split(program, {"user", "other_user"})
    assert parts is not None
    assert {o.outputs[0] for o in parts.request.operators} == request - {"user"}
    divided = (*parts.request.operators, *parts.candidate.operators)
    assert sorted(o.outputs[0] for o in divided) == sorted(o.outputs[0] for o in operators)
    assert sorted(c.tensor for c in (*parts.request.columns, *parts.candidate.columns)) == sorted(
        c.tensor for c in columns
    )
    ready = {"user", "item", "table:t", *(o.tensor for o in parts.request.outputs)}
    for operator in parts.candidate.operators:
        assert set(operator.inputs) <= ready
        ready.update(operator.outputs)
    assert {c.tensor for c in parts.candidate.columns} | {o.tensor for o in program.outputs} <= ready
    assert parts.candidate.outputs == program.outputs


def test_programs_that_are_not_divided() -> None:
    """One without a request's side, and one whose request's block depends on the number of candidates."""
    item = _column("item", "candidate")
    assert split(_program([_operator(("item",), "v")], [item], ("v",)), {"user"}) is None
    counted = [_operator(("user",), "v", grown=True)]
    assert split(_program(counted, [_column("v", "request"), item], ()), {"user"}) is None
    assert split(_program([], [_column("user", "request"), item], ()), {"user"}) is not None
