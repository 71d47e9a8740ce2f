"""A host program in two parts: what the request's features alone decide, and the rest."""

from collections.abc import Container
from dataclasses import dataclass

from jaxrank.host_program import TABLE_PREFIX, HostOperator, HostOutput, HostProgram

REPEAT_ROWS = "repeat_rows"
"""The one operator that needs the number of candidates: a request's row, once for each of them."""


@dataclass(frozen=True)
class Parts:
    """`request` fills the request's block; its outputs are the tensors that `candidate` reads beside the raw
    features. `candidate` fills the candidates' block and makes the program's outputs."""

    request: HostProgram
    candidate: HostProgram


def split(program: HostProgram, request_features: Container[str]) -> Parts | None:
    """The two parts of a program; None where the request's part would do nothing, or where the request's
    block depends on the number of candidates."""
    known = {n for n in _tensors_read(program) if n in request_features}
    request: list[HostOperator] = []
    candidate: list[HostOperator] = []
    for operator in program.operators:
        mine = (
            operator.op != REPEAT_ROWS
            and not any("per_row" in constant for constant in operator.constants.values())
            and all(name in known or name.startswith(TABLE_PREFIX) for name in operator.inputs)
        )
        (request if mine else candidate).append(operator)
        if mine:
            known.update(operator.outputs)
    columns = {
        scope: tuple(c for c in program.columns if c.scope == scope) for scope in ("request", "candidate")
    }
    depends = any(c.tensor not in known for c in columns["request"])
    if depends or not (request or columns["request"]):
        return None
    made = {name for operator in request for name in operator.outputs}
    read = {name for operator in candidate for name in operator.inputs}
    read |= {c.tensor for c in columns["candidate"]} | {o.tensor for o in program.outputs}
    handed = tuple(HostOutput(output=name, tensor=name) for name in sorted(made & read))
    return Parts(
        HostProgram(
            schema_version=program.schema_version,
            operators=tuple(request),
            columns=columns["request"],
            outputs=handed,
        ),
        HostProgram(
            schema_version=program.schema_version,
            operators=tuple(candidate),
            columns=columns["candidate"],
            outputs=program.outputs,
        ),
    )


def _tensors_read(program: HostProgram) -> set[str]:
    read = {name for operator in program.operators for name in operator.inputs}
    return read | {c.tensor for c in program.columns} | {o.tensor for o in program.outputs}
