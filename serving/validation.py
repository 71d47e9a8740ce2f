"""Checks a request's features against the signature, before any of them is used."""

import difflib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxrank.manifest import Signature, TensorSpec
from serving.errors import InvalidRequestError
from serving.wire import tensor_pb2
from serving.wire.codec import decode


def validate(
    inputs: Mapping[str, np.ndarray], signature: Signature, max_candidates: int
) -> dict[str, np.ndarray]:
    """Features that fit the signature: request-scope arrays with one row, candidate-scope arrays with N equal
    rows counts.

    A request-scope feature may come once, or repeated on every row where the signature leaves its rows open:
    then all rows must be equal, and one is kept.

    Raises:
        InvalidRequestError: a missing or unknown feature, another dtype, rank or size, row counts that
        differ, no candidates or
            too many. The message names the feature.
    """
    specs = {spec.name: spec for spec in signature.inputs}
    _check_names(inputs, specs)
    for spec in specs.values():
        _check_form(spec, inputs[spec.name])
    counts = {s.name: len(inputs[s.name]) for s in specs.values() if s.scope == "candidate"}
    rows = next(iter(counts.values()))
    for name, count in counts.items():
        if count != rows:
            raise InvalidRequestError(
                f"feature {name!r} has {count} rows but {next(iter(counts))!r} has {rows}; every "
                "candidate feature must have one "
                "row for each candidate"
            )
    if not rows:
        raise InvalidRequestError(
            f"feature {next(iter(counts))!r} has no rows; at least one candidate is needed"
        )
    if rows > max_candidates:
        raise InvalidRequestError(
            f"feature {next(iter(counts))!r} has {rows} candidates; this model takes at most "
            f"{max_candidates} in one request"
        )
    return {
        name: _one_row(spec, inputs[name], rows) if spec.scope == "request" else inputs[name]
        for name, spec in specs.items()
    }


def decode_inputs(
    tensors: Mapping[str, tensor_pb2.TensorProto], signature: Signature, max_candidates: int
) -> dict[str, np.ndarray]:
    """Decodes and validates a request's tensors. No array larger than the signature allows is ever made."""
    specs = {spec.name: spec for spec in signature.inputs}
    _check_names(tensors, specs)
    # One row more than allowed still decodes, so that the refusal can name the count.
    limits = {s.name: (max_candidates + 1) * math.prod(d or 1 for d in s.shape[1:]) for s in signature.inputs}
    inputs = {name: decode(name, tensor, limits[name]) for name, tensor in tensors.items()}
    return validate(inputs, signature, max_candidates)


def _check_names(inputs: Mapping[str, Any], specs: Mapping[str, TensorSpec]) -> None:
    missing = sorted(specs.keys() - inputs.keys())
    unknown = sorted(inputs.keys() - specs.keys())
    problems = []
    if missing:
        problems.append(f"missing features: {', '.join(map(repr, missing))}")
    for name in unknown[:10]:
        close = difflib.get_close_matches(name[:200], missing or specs, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        problems.append(f"unknown feature {name[:200]!r}{hint}")
    if problems:
        raise InvalidRequestError(f"{'; '.join(problems)}; the signature takes: {', '.join(sorted(specs))}")


def _check_form(spec: TensorSpec, value: np.ndarray) -> None:
    dtype = "string" if value.dtype == object else value.dtype.name
    if dtype != spec.dtype:
        raise InvalidRequestError(f"feature {spec.name!r} has dtype {dtype}; the signature says {spec.dtype}")
    shape = ["N" if d is None else d for d in spec.shape]
    if value.ndim != len(spec.shape):
        raise InvalidRequestError(
            f"feature {spec.name!r} has {value.ndim} dimensions, shape {list(value.shape)}; the "
            f"signature says {shape}"
        )
    if any(
        want is not None and got != want for got, want in zip(value.shape[1:], spec.shape[1:], strict=True)
    ):
        raise InvalidRequestError(
            f"feature {spec.name!r} has shape {list(value.shape)}; the signature says {shape}"
        )


def _one_row(spec: TensorSpec, value: np.ndarray, rows: int) -> np.ndarray:
    if len(value) == 1:
        return value
    if spec.shape[0] is not None or len(value) != rows:
        allowed = (
            "one row" if spec.shape[0] is not None else f"one row or {rows}, as many as there are candidates"
        )
        raise InvalidRequestError(
            f"feature {spec.name!r} has {len(value)} rows; it is the same for all candidates: send {allowed}"
        )
    # Bytes are compared, so a NaN equals itself.
    same = value[1:] == value[:1]
    if value.dtype.kind == "f":
        same = same | (np.isnan(value[1:]) & np.isnan(value[:1]))
    differs = ~np.asarray(same, bool).reshape(rows - 1, -1).all(axis=1)
    if differs.any():
        row = int(np.argmax(differs)) + 1
        raise InvalidRequestError(
            f"feature {spec.name!r} must be the same for all candidates, but row {row} differs from row "
            "0; send one request for "
            "each user, or convert the model with this input as a candidate feature"
        )
    return value[:1]
