"""Decides for every input whether it is the same for all rows of a request or has one row per candidate."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from converters.errors import ConversionError
from converters.flat_model import FlatModel
from converters.frontier import ancestors
from converters.source import SourceTensor
from jaxrank.manifest import Scope


def decide(
    inputs: Sequence[SourceTensor], request_patterns: Sequence[str], tiled: Mapping[str, str] | None = None
) -> dict[str, tuple[Scope, str]]:
    """Scope and reason of every input.

    An input is request-scope if its name (or that of the sparse or ragged feature it is a part of) matches
    one of `request_patterns` (shell patterns), if the signature declares exactly one row for it, or if the
    graph repeats it for every row of another input (`tiled`: the op that does, by input). Everything else is
    candidate-scope. Raises `ConversionError` for a pattern that matches nothing and for a signature in
    which no input has one row per candidate.
    """
    tiled = tiled or {}
    names = [t.feature or t.name for t in inputs]
    for pattern in request_patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConversionError(
                f"--request-inputs {pattern!r} matches no input; the inputs are: {', '.join(names)}"
            )
    scopes: dict[str, tuple[Scope, str]] = {}
    for tensor in inputs:
        matching = [p for p in request_patterns if fnmatchcase(tensor.feature or tensor.name, p)]
        if matching:
            scopes[tensor.name] = ("request", f"matches --request-inputs {matching[0]!r}")
        elif tensor.name in tiled:
            scopes[tensor.name] = (
                "request",
                f"{tiled[tensor.name]} repeats it for every row of another input",
            )
        elif tensor.part != "rows":
            scopes[tensor.name] = ("candidate", f"a part of {tensor.feature!r}, whose rows are open")
        elif not tensor.shape:
            raise ConversionError(
                f"input {tensor.name!r} is a scalar; give it a leading row dimension in the signature"
            )
        elif tensor.shape[0] == 1:
            scopes[tensor.name] = ("request", "the signature declares one row")
        elif tensor.shape[0] is None:
            scopes[tensor.name] = ("candidate", "the signature leaves the number of rows open")
        else:
            raise ConversionError(
                f"input {tensor.name!r} has a fixed number of rows, {tensor.shape[0]}; export the "
                "signature with 1 or None"
            )
    if all(scope == "request" for scope, _ in scopes.values()):
        raise ConversionError(
            "every input is request-scope, so there is nothing to rank; check --request-inputs"
        )
    return scopes


def tiled_inputs(model: FlatModel) -> dict[str, str]:
    """Inputs with open rows that the graph repeats for every row of other inputs, each with the op that
    does: such a model takes them with one row only."""
    flat = model.with_open_rows()
    inputs = {t.placeholder: t for t in model.source.inputs}

    def above(tensor: Any) -> set[str]:
        return {op.name for op in ancestors([tensor]) if op.name in inputs}

    found: dict[str, str] = {}
    for op in flat.graph.get_operations():
        if op.type != "Tile":  # a broadcast takes one row and many
            continue
        repeated, counted = above(op.inputs[0]), above(op.inputs[1])
        if not counted or repeated & counted:
            continue
        for name in repeated:
            if inputs[name].part == "rows" and inputs[name].shape[:1] == (None,):
                found[inputs[name].name] = flat.source_name(op)
    return found
