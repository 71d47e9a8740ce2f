"""Decides for every input whether it is the same for all rows of a request or has one row per candidate."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from converters.errors import ConversionError
from converters.savedmodel import SourceTensor
from jaxrank.manifest import Scope


def decide(inputs: Sequence[SourceTensor], request_patterns: Sequence[str]) -> dict[str, tuple[Scope, str]]:
    """Scope and reason of every input.

    An input is request-scope if its name matches one of `request_patterns` (shell patterns), or if the
    signature declares exactly one row for it. Everything else is candidate-scope. Raises `ConversionError`
    for a pattern that matches nothing and for a signature in which no input has one row per candidate.
    """
    names = [t.name for t in inputs]
    for pattern in request_patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConversionError(
                f"--request-inputs {pattern!r} matches no input; the inputs are: {', '.join(names)}"
            )
    scopes: dict[str, tuple[Scope, str]] = {}
    for tensor in inputs:
        matching = [p for p in request_patterns if fnmatchcase(tensor.name, p)]
        if matching:
            scopes[tensor.name] = ("request", f"matches --request-inputs {matching[0]!r}")
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
